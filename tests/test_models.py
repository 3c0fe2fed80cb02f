"""Are models what they are made of: outputs, gradients, streams, copies and files?"""

from __future__ import annotations

import copy
import pickle

import fastrnn
import numpy as np
import pytest
from fastrnn.charmodel import CharacterModel, Vocabulary
from fastrnn.diagnostics import gradient_check
from fastrnn.models import EncoderDecoder, ManyToMany, Model, MultiTap, OutputFeedback, TimeDelay
from fastrnn.training import Adam, Batches, Linear
from nested import assert_equal
from tolerances import assert_close

LAYERS = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}


def many_to_many(cell="gru", dtype="float64", **options):
    return ManyToMany(LAYERS[cell](3, 4, dtype=dtype, seed=0, **options), 2, seed=1)


@pytest.mark.parametrize("cell", LAYERS)
def test_a_stream_is_the_call_step_by_step(rng, cell):
    model = many_to_many(cell, num_layers=2).eval()
    x = rng.standard_normal((5, 6, 3))
    o, state_n = model(x)
    stream = model.stream(6)
    for x_t, o_t in zip(x, o, strict=True):
        assert_close(stream.step(x_t), o_t, n_products=4)
    assert_equal(stream.state, state_n)
    stream.state = state_n
    stream.reset([1])
    h = stream.state[0] if cell == "lstm" else stream.state
    assert (h[:, 1] == 0).all()
    assert (h[:, 0] != 0).any()


class Residual(Model):
    """What a user may write: the stream is then of one-step calls."""

    def __init__(self, layer):
        super().__init__(layer=layer)
        self.layer, self.output_size = layer, layer.output_size

    def __call__(self, x, state=None):
        y, state_n = self.layer(x, state)
        return x + y, state_n

    def backward(self, do=None, dstate_n=None):
        dx, dstate = self.layer.backward(do, dstate_n)
        return do + dx, dstate


@pytest.mark.parametrize("cell", LAYERS)
def test_every_model_has_a_stream(rng, cell):
    model = Residual(LAYERS[cell](4, 4, dtype="float64", seed=0))
    with pytest.raises(RuntimeError, match=r"eval mode; call eval\(\) first"):
        model.stream()
    stream = model.eval().stream(2)
    assert stream.state is None
    x = rng.standard_normal((5, 2, 4))
    o, state_n = model(x)
    assert_equal(np.stack([stream.step(x_t) for x_t in x]), o)
    assert_equal(stream.state, state_n)
    kept = stream.state
    stream.reset(np.array([True, False]))
    both = stream.state if cell == "lstm" else (stream.state,)
    assert all((a[:, 0] == 0).all() and (a[:, 1] != 0).any() for a in both)
    stream.state = kept
    assert_equal(stream.state, state_n)
    stream.reset()
    assert_equal(stream.step(x[0]).copy(), o[0])
    with pytest.raises(ValueError, match=r"rows is \[2\]; expected from 0 to 1"):
        stream.reset([2])
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\); expected \(2, \.\.\.\)"):
        stream.step(x[:3, 0])
    with pytest.raises(
        ValueError, match=r"state has an array of shape \(1, 3, 4\); expected 2 rows on axis 1"
    ):
        stream.state = np.zeros((1, 3, 4))
    model.train()
    with pytest.raises(RuntimeError, match="eval mode"):
        stream.step(x[0])


@pytest.mark.parametrize("training", [True, False])
def test_state_dict_is_loaded_whole_or_not_at_all(training):
    model, other = ManyToMany(many_to_many(), 5, seed=3), ManyToMany(many_to_many(), 5, seed=4)
    for array in other.parameters.values():
        array += 1
    model.train(training)
    before = model.state_dict()
    wrong = other.state_dict()
    wrong["readout.bias"] = wrong.pop("layer.readout.bias")[:1]
    del wrong["layer.layer.bias_hh_l0"]
    with pytest.raises(
        ValueError, match=r"missing layer\.layer\.bias_hh_l0, layer\.readout\.bias; .*bias has shape \(1,\)"
    ):
        model.load_state_dict(wrong)
    with pytest.raises(TypeError, match="expected a mapping"):
        model.load_state_dict([1])
    assert_equal(model.state_dict(), before)
    model.load_state_dict({name: a.astype("float32") for name, a in other.state_dict().items()})
    assert model.training is training
    x = np.ones((3, 2, 3))
    for name, array in other.parameters.items():
        array[...] = array.astype("float32")
        assert_equal(model.parameters[name], array)
    assert_equal(model(x), other.train(training)(x))
    model(x)
    model.load_state_dict(before)
    with pytest.raises(RuntimeError, match="backward"):
        model.backward(np.ones((3, 2, 5)))
    assert all((g == 0).all() for g in model.gradients.values())


def test_copies_own_their_parameters(rng):
    model = many_to_many()
    x = rng.standard_normal((5, 2, 3))
    o, _ = model(x)
    for own in copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        assert own.layer is own.parts["layer"]
        with pytest.raises(RuntimeError, match="backward"):
            own.backward(None)
        assert_equal(own(x)[0], o)
        own.backward(np.ones_like(o))
        own.parameters["layer.weight_hh_l0"][...] = 0
        own.parameters["readout.weight"][...] = 0
    assert_equal(model(x)[0], o)
    assert all((g == 0).all() for g in model.gradients.values())


def test_a_file_goes_into_a_model_of_the_same_kind(tmp_path):
    path = tmp_path / "model.safetensors"
    model = many_to_many()
    model.save(path)
    other = ManyToMany(fastrnn.GRU(3, 4, dtype="float64"), 2)
    assert_equal(other.load(path).state_dict(), model.state_dict())
    before = other.state_dict()
    larger = ManyToMany(fastrnn.GRU(3, 5, dtype="float64"), 2)
    larger.save(path)
    with pytest.raises(ValueError, match="weight_ih_l0 has shape"):
        other.load(path)
    with pytest.raises(ValueError, match="its class is 'ManyToMany'; expected 'Residual'"):
        Residual(fastrnn.GRU(4, 4)).load(path)
    with pytest.raises(ValueError, match=r"holds a model: read it with the load\(\) of a model"):
        fastrnn.load(path)
    with pytest.raises(OSError, match="nowhere"):
        other.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere/model'"):
        other.save(tmp_path / "nowhere" / "model")
    assert_equal(other.state_dict(), before)


def test_modes_reach_every_part():
    model = ManyToMany(many_to_many(), 5)
    assert model.training
    model.eval()
    assert not model.training
    assert not model.layer.training
    assert not model.layer.layer.training
    model.layer.layer.train()
    assert not model.training
    assert model.train().training
    with pytest.raises(TypeError, match="mode is 1"):
        model.train(1)


def test_a_readout_in_eval_mode_keeps_nothing():
    readout = Linear(3, 2)
    x = np.ones((4, 3), "float32")
    y = readout.eval()(x)
    with pytest.raises(RuntimeError, match="forward call in training mode"):
        readout.backward(y)
    readout.train()(x)
    readout.train(False)
    with pytest.raises(RuntimeError, match="forward call in training mode"):
        readout.train().backward(y)
    with pytest.raises(TypeError, match="mode is 0"):
        readout.train(0)


class Scale:
    """A module with nothing but what training asks for."""

    def __init__(self):
        self.parameters, self.gradients = {"factor": np.ones(4)}, {"factor": np.zeros(4)}


class Scaled(Model):
    def __init__(self):
        self.scale, self.layer = Scale(), fastrnn.GRU(3, 4, dtype="float64", seed=0)
        super().__init__(scale=self.scale, layer=self.layer)

    def __call__(self, x, state=None):
        self._saved, state_n = self.layer(x, state)
        return self._saved * self.scale.parameters["factor"], state_n

    def backward(self, do=None, dstate_n=None):
        y = self._last_call()
        self.scale.gradients["factor"] += (do * y).sum(axis=(0, 1))
        return self.layer.backward(do * self.scale.parameters["factor"], dstate_n)


def test_modules_of_ones_own_are_parts(rng):
    model = Scaled()
    assert (model.dtype, model.device, model.training) == ("float64", "cpu", True)
    assert gradient_check(model, rng.standard_normal((5, 2, 3))).passed
    other = Scaled().eval()
    other.load_state_dict({name: array + 1 for name, array in model.state_dict().items()})
    assert_equal(other.scale.parameters["factor"], np.full(4, 2.0))


class Parts(Model):
    """Parts that nothing is computed with."""

    def __call__(self, x, state=None):
        raise AssertionError

    def backward(self, do=None, dstate_n=None):
        raise AssertionError


def test_a_model_has_both_passes():
    class Forward(Model):
        def __call__(self, x, state=None):
            return x, state

    with pytest.raises(TypeError, match=r"abstract.* '?backward"):
        Forward(layer=fastrnn.GRU(3, 4))


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"parts have different dtypes: \{'a': 'float32', 'b': 'float64'\}"):
        Parts(a=fastrnn.GRU(3, 4), b=Linear(4, 2, dtype="float64"))
    with pytest.raises(
        ValueError, match=r"layer is GRU\(3, 4, batch_first=True\); expected batch_first=False"
    ):
        ManyToMany(fastrnn.GRU(3, 4, batch_first=True), 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ManyToMany(fastrnn.GRU, 2),
            TypeError,
            "layer is <class .*GRU'>; expected a layer or a model",
        ),
        (
            lambda: ManyToMany(fastrnn.GRU(3, 4), 0),
            ValueError,
            "output_size is 0; expected an integer of at l",
        ),
        (lambda: OutputFeedback(3, 0, 2), ValueError, "hidden_size is 0; expected an integer of at least 1"),
        (lambda: OutputFeedback(3, 4, 0), ValueError, "output_size is 0; expected an integer of at least 1"),
        (lambda: OutputFeedback(3, 4, 2, seed="1"), TypeError, r"seed is '1' \(str\); expected an integer"),
        (lambda: TimeDelay(3, 0, 2, 1), ValueError, "hidden_size is 0; expected an integer of at least 1"),
        (lambda: TimeDelay(3, 4, 0, 1), ValueError, "output_size is 0; expected an integer of at least 1"),
        (
            lambda: EncoderDecoder(fastrnn.GRU(3, 4), fastrnn.GRU(3, 4), 2, bridge="yes"),
            TypeError,
            r"bridge is 'yes' \(str\); expected True or False",
        ),
    ],
)
def test_errors_name_the_argument_of_the_model(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_nothing_is_there_twice():
    layer = fastrnn.GRU(3, 3)
    with pytest.raises(ValueError, match=r"b\.layer is a, GRU\(3, 3\); expected each once"):
        Parts(a=layer, b=ManyToMany(layer, 2))


def test_models_say_what_they_are():
    model = many_to_many("lstm", num_layers=2)
    assert repr(model) == (
        "ManyToMany(layer=LSTM(3, 4, num_layers=2, dtype='float64'), readout=Linear(4, 2, bias=True))"
    )
    assert model.output_size == 2
    report = model.explain(np.zeros((5, 2, 3)))
    assert report["readout"] == "one product"
    assert report["isa"] == model.layer.explain(np.zeros((5, 2, 3)))["isa"]
    with pytest.raises(NotImplementedError, match="ask its parts: layer"):
        Residual(fastrnn.GRU(4, 4)).explain(None)


def test_a_streams_state_has_the_models_shapes():
    stream = MultiTap(3, 4, 2).eval().stream(2)
    with pytest.raises(ValueError, match=r"shapes \(\(3, 2, 4\),\); expected \(\(2, 2, 4\),\)"):
        stream.state = np.zeros((3, 2, 4), "float32")
    assert stream.state is None
    stream.state = np.ones((2, 2, 4), "float32")
    assert stream.state.shape == (2, 2, 4)
    stream.state = None
    assert stream.state is None


class Switched(Scale):
    training = True

    def train(self, mode=True):
        self.training = mode


def test_a_part_whose_train_returns_nothing(rng):
    model = Parts(scale=Switched(), layer=fastrnn.GRU(3, 4, dtype="float64", seed=0))
    other = {name: array + 1 for name, array in model.state_dict().items()}
    model.load_state_dict(other)
    assert_equal(model.state_dict(), other)


def test_nothing_has_no_dtype():
    with pytest.raises(AttributeError, match=r"Parts\(\) has no dtype: none of its parts has one"):
        _ = Parts().dtype
    assert Parts(a=Parts(), b=fastrnn.GRU(3, 4)).dtype == "float32"


def test_what_is_made_of_models_tells_what_it_is():
    layer = fastrnn.GRU(3, 4)
    taps = MultiTap(3, 4, taps=2).eval()
    assert repr(taps.stream(5)) == f"ModelStream({taps!r}, batch=5)"
    assert repr(ManyToMany(layer, 2).eval().stream(5)) == "PartStream(Stream(GRU(3, 4), batch=5))"
    assert repr(Adam([layer.train()], 0.01)) == "Adam([GRU(3, 4)], learning_rate=0.01)"
    assert repr(Batches(10, 4, list, seed=1)) == "Batches(rows=10, size=4, seed=1)"
    assert repr(CharacterModel(Vocabulary("ab"), "gru", 4)) == "CharacterModel(Vocabulary('ab'), GRU(3, 4))"


def test_to_moves_all_parts_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ManyToMany(fastrnn.GRU(3, 4, seed=1), 2)
    x = np.ones((5, 2, 3), "float32")
    o, _ = model(x)
    assert model.to("cpu") is model
    model.backward(o)  # the call is still there: nothing was moved
    model.eval().layer.quantize("int8")
    assert model.to("cpu").layer.quantized == "int8"
    with pytest.raises(RuntimeError, match="layer is quantised to int8"):
        model.to("cpu", "float64")
    model.train().to("cpu", "float64")
    assert (model.layer.dtype, model.readout.dtype) == ("float64", "float64")

    def refuse(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(model.readout), "to", refuse)
    with pytest.raises(MemoryError):
        model.to("cpu", "float32")
    assert (model.layer.dtype, model.readout.dtype) == ("float64", "float64")
