"""Does gradient_check pass what is right, see what is wrong, and leave a model as it was?"""

from __future__ import annotations

import fastrnn
import numpy as np
import pytest
from fastrnn.diagnostics import gradient_check
from fastrnn.models import EncoderDecoder, ManyToMany
from fastrnn.training import softmax_cross_entropy
from tolerances import assert_same_bits

LAYERS = [
    lambda **o: fastrnn.RNN(3, 4, bidirectional=True, seed=1, **o),
    lambda **o: fastrnn.GRU(3, 4, num_layers=2, dropout=0.5, seed=2, **o),
    lambda **o: fastrnn.GRU(3, 4, reset_after=False, seed=3, **o),
    lambda **o: fastrnn.LSTM(3, 5, proj_size=2, peephole="full", seed=4, **o),
    lambda **o: fastrnn.LSTM(3, 4, 2, recurrent_dropout=0.3, zoneout=(0.2, 0.4), seed=5, **o),
]


def draw_state(rng, layer, batch):
    _, state_n = layer(np.zeros((1, batch, 3), layer.dtype))
    parts = state_n if isinstance(state_n, tuple) else (state_n,)
    drawn = tuple(rng.normal(size=part.shape).astype(layer.dtype) for part in parts)
    return drawn if isinstance(state_n, tuple) else drawn[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", LAYERS)
def test_right_gradients_pass(rng, make, dtype):
    layer = make(dtype=dtype)
    x = rng.normal(size=(5, 3, 3)).astype(dtype)
    options = {"lengths": [5, 0, 3]}
    check = gradient_check(layer, x, state=draw_state(rng, layer, 3), options=options, samples=20)
    states = {"state[0]", "state[1]"} if isinstance(layer, fastrnn.LSTM) else {"state"}
    assert set(check.errors) == {*layer.parameters, "x", *states}
    assert check.passed, str(check)
    if dtype == "float64":
        assert check.worst < 1e-6, str(check)  # as right gradients of order 1 are, far below the tolerance


def test_a_model_with_a_loss_and_tokens(rng):
    model = ManyToMany(fastrnn.LSTM(6, 4, dtype="float64", seed=0), 6, seed=1)
    tokens = rng.integers(0, 6, (7, 2))
    check = gradient_check(model, tokens[:-1], tokens[1:], loss=softmax_cross_entropy)
    assert list(check.errors) == list(model.parameters)
    assert check.worst < 1e-6, str(check)


def test_a_decoders_inputs_are_looked_at(rng):
    layers = (fastrnn.GRU(3, 4, dtype="float64", seed=seed) for seed in (0, 1))
    model, x, inputs = (
        EncoderDecoder(*layers, 2, seed=2),
        rng.normal(size=(4, 2, 3)),
        rng.normal(size=(3, 2, 3)),
    )
    check, before = gradient_check(model, x, options={"inputs": inputs}), inputs.copy()
    assert list(check.errors) == [*model.parameters, "x", "inputs"]
    assert check.worst < 1e-6, str(check)
    assert_same_bits(inputs, before)
    tokens = gradient_check(model, x, options={"inputs": [[0, 1], [2, 0]]})
    assert list(tokens.errors) == [*model.parameters, "x"]


def test_only_samples_are_looked_at(rng):
    layer, calls = fastrnn.RNN(3, 4, bias=False, dtype="float64", seed=0), []

    def loss(o, targets):
        calls.append(targets)
        return float(o.sum()), np.ones_like(o)

    gradient_check(layer, rng.normal(size=(2, 1, 3)), "target", loss=loss, samples=5)
    assert calls == ["target"] * (1 + 2 * 3 * 5)  # of two weights and x, 12, 16 and 6 elements


class Broken(ManyToMany):
    """Forgets the gradient of the readout's bias in part."""

    def backward(self, do=None, dstate_n=None):
        before = self.gradients["readout.bias"].copy()
        result = super().backward(do, dstate_n)
        bias = self.gradients["readout.bias"]
        bias[...] = before + 0.999 * (bias - before)
        return result


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (1.1, False)])
def test_a_loss_that_bends_is_no_wrong_gradient(factor, passed):
    """Over e = 5e-3 of float32 a wave of 80 radians is off by (80 e)^2 / 6 = 2.6e-2, beyond the tolerance."""
    layer = fastrnn.RNN(1, 1, bias=False, nonlinearity="identity", seed=0)
    layer.parameters["weight_ih_l0"][...] = 1

    def loss(o, targets):
        return float(np.sin(80 * (o - 1)).sum()), factor * 80 * np.cos(80 * (o - 1))

    check = gradient_check(layer, np.ones((1, 1, 1), "float32"), loss=loss)
    assert check.passed == passed, str(check)


def test_a_wrong_gradient_is_named(rng):
    model = Broken(fastrnn.GRU(3, 4, dtype="float64", seed=0), 2, seed=1)
    check = gradient_check(model, rng.normal(size=(4, 2, 3)))
    assert not check.passed
    assert [name for name, error in check.errors.items() if error > check.tolerance] == ["readout.bias"]
    assert check.errors["readout.bias"] == pytest.approx(1e-3, rel=1e-3)
    assert "readout.bias" in next(line for line in str(check).splitlines() if line.endswith("WRONG"))


def test_gradients_that_are_nan_do_not_pass(rng):
    class NaN(ManyToMany):
        def backward(self, do=None, dstate_n=None):
            result = super().backward(do, dstate_n)
            self.gradients["readout.bias"][0] = np.nan
            return result

    model = NaN(fastrnn.GRU(3, 4, dtype="float64", seed=0), 2, seed=1)
    check = gradient_check(model, rng.normal(size=(4, 2, 3)))
    assert not check.passed
    assert np.isnan(check.worst)


@pytest.mark.parametrize("mode", ["train", "eval", "checkpoint", "quantized"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(rng, mode, fails):
    layer = fastrnn.GRU(3, 4, num_layers=2, dropout=0.5, seed=0)
    model = ManyToMany(layer, 2, seed=1)
    x = rng.normal(size=(4, 2, 3)).astype("float32")
    o, _ = model(x)
    model.backward(np.ones_like(o))
    if mode == "checkpoint":
        layer.train(checkpoint=2)
    elif mode != "train":
        model.eval()
    if mode == "quantized":
        layer.quantize("int8")
    before = {name: array.copy() for name, array in [*model.parameters.items()]}
    gradients = {name: array.copy() for name, array in model.gradients.items()}
    calls, report = layer.calls, layer.explain(x)
    x_before = x.copy()
    countdown = iter(range(9))

    def loss(o, targets):
        if fails and next(countdown, None) is None:  # in the middle of a difference
            raise ArithmeticError("enough")
        return float(o.sum()), np.ones_like(o)

    if fails:
        with pytest.raises(ArithmeticError, match="enough"):
            gradient_check(model, x, loss=loss)
    else:
        assert gradient_check(model, x, loss=loss, samples=3).passed
    assert_same_bits(x, x_before)
    for name, array in model.parameters.items():
        assert_same_bits(array, before[name], name)
        assert_same_bits(model.gradients[name], gradients[name], name)
        assert array.flags.writeable == (mode in ("train", "checkpoint") or name.startswith("readout"))
    assert (layer.calls, layer.explain(x)) == (calls, report)
    assert model.training == (mode in ("train", "checkpoint"))
    assert layer.quantized == ("int8" if mode == "quantized" else None)
    if model.training:
        with pytest.raises(RuntimeError, match="backward without a training call"):
            layer.backward(o)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model is 3; expected a layer or a fastrnn.models.Model"),
        ({"targets": [1]}, ValueError, "targets are given without a loss; expected loss=, or no targets"),
        ({"loss": 3}, TypeError, "loss is 3; expected a function of outputs and targets"),
        ({"epsilon": 0}, ValueError, "epsilon is 0; expected a finite number greater than 0"),
        ({"epsilon": 1e-30}, ValueError, r"epsilon is 1e-30; expected at least 2\.4e-07"),
        ({"samples": 0}, ValueError, "samples is 0; expected an integer of at least 1"),
        ({"seed": -1}, ValueError, "seed is -1; expected an integer of at least 0"),
        (
            {"loss": lambda o, targets: (np.nan, o)},
            FloatingPointError,
            "the loss is nan; expected a finite number",
        ),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"model": fastrnn.RNN(3, 4), "x": np.zeros((2, 1, 3), "float32")} | change
    with pytest.raises(error, match=message):
        gradient_check(**arguments)


def test_the_figure_has_a_bar_for_each(rng):
    pytest.importorskip("matplotlib")
    check = gradient_check(fastrnn.RNN(3, 4, dtype="float64", seed=0), rng.normal(size=(4, 2, 3)))
    figure = check.draw()
    assert len(figure.axes[0].patches) == len(check.errors)
