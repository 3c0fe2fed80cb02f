"""Models with layers on device="cuda": are they those of the CPU, with NumPy's arrays and the device's?"""

from __future__ import annotations

import copy
from typing import ClassVar

import fastrnn
import numpy as np
import pytest
from devices import device_array
from fastrnn import sampling
from fastrnn._backends import on_host
from fastrnn.models import DeepInTime, EncoderDecoder, LayerNormGRU, ManyToMany, ManyToOne, OneToMany, Sweep2D
from fastrnn.training import Adam, Linear, fit, mean_squared_error, softmax, softmax_cross_entropy
from nested import arrays, assert_equal
from tolerances import assert_close, size

pytestmark = pytest.mark.cuda

T, B, X, H, Y = 5, 3, 4, 6, 2


def gru(device, inputs=X, seed=0, **options):
    return fastrnn.GRU(inputs, H, device=device, seed=seed, **options)


MODELS = {
    "many to many": lambda device: ManyToMany(gru(device, num_layers=2), Y, seed=1),
    "many to one": lambda device: ManyToOne(gru(device, bidirectional=True), Y, seed=1),
    "one to many": lambda device: OneToMany(gru(device), Y, X, seed=1),
    "encoder-decoder": lambda device: EncoderDecoder(
        gru(device, bidirectional=True), gru(device, X, 1), Y, bridge=True, seed=2
    ),
    "deep in time": lambda device: ManyToMany(DeepInTime(gru(device), 2), Y, seed=1),
    "sweep": lambda device: Sweep2D(gru(device, bidirectional=True), gru(device, 2 * H, 1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_a_device_are_those_of_the_cpu(rng, name):
    model, peer = (MODELS[name](device) for device in ("cuda", "cpu"))
    assert model.device == "cuda:0"
    shape = {"one to many": (B, X), "sweep": (3, T, B, X)}.get(name, (T, B, X))
    x = rng.standard_normal(shape, dtype="float32")
    options = {"inputs": rng.standard_normal((T, B, X), dtype="float32")} if "decoder" in peer.parts else {}
    results = []
    for one in model, peer:
        o, state_n = one(x, **options)
        dx, dstate = one.backward(np.ones_like(o))
        dinputs = getattr(one, "dinputs", None)
        assert (dinputs is not None) == bool(options)
        results.append((o, state_n, dx, dstate, dinputs, *(on_host(g) for g in one.gradients.values())))
    for a, b in zip(*map(arrays, map(tuple, results)), strict=True):
        assert_close(a, b, n_products=50 * T * H, scale=max(1, size(b)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", ["state", "input"])
def test_sixteen_bits_take_what_numpy_has_of_them(dtype, mode):
    host = "float32" if dtype == "bfloat16" else dtype
    options = {"device": "cuda", "dtype": dtype, "seed": 0}
    vectors, inputs = np.ones((B, X), host), np.ones((T, B, X), host)
    one = OneToMany(fastrnn.LSTM(X, H, **options), Y, X, mode=mode, seed=1)
    encoder = fastrnn.LSTM(X, H, bidirectional=True, **options)
    two = EncoderDecoder(encoder, fastrnn.GRU(X, H, **options), Y, bridge=True, seed=1)
    for model, x in ((one, vectors), (two, inputs)):
        o, _ = model(x, inputs=inputs)
        dx, _ = model.backward(np.ones_like(o))
        assert o.dtype == dx.dtype == host
        assert np.abs(dx).max() > 0


def test_arrays_of_the_device_stay_there(rng):
    model, peer = (MODELS["many to many"](device) for device in ("cuda", "cpu"))
    x = rng.standard_normal((T, B, X), dtype="float32")
    o, _ = model(device_array(x))
    dx, _ = model.backward(o)
    own, _ = peer(x)
    own_dx, _ = peer.backward(own)
    assert_close(o.numpy(), own, n_products=20 * T * H)
    assert_close(dx.numpy(), own_dx, n_products=20 * T * H)
    stream = model.eval().stream(B)
    assert_close(stream.step(x[0]), own[0], n_products=20 * H)


@pytest.mark.parametrize("options", [{}, {"lengths": [5, 0, 2]}], ids=["whole", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_step_is_taken_on_the_device(rng, bidirectional, options):
    """To the bits of the same model given NumPy's arrays; with a gradient of o and of h_n, or of h_n."""
    x, do = rng.standard_normal((T, B, X), dtype="float32"), rng.standard_normal((B, Y), dtype="float32")
    dh = rng.standard_normal((1 + bidirectional, B, H), dtype="float32")
    results = []
    for place, back in (device_array, on_host), (np.asarray, np.asarray):
        model = ManyToOne(gru("cuda", bidirectional=bidirectional), Y, seed=1)
        o, h_n = model(place(x), **options)
        first = model.backward(place(do), place(dh))
        model(place(x), **options)
        second = model.backward(None, place(dh))
        results.append([back(a) for a in (o, h_n, *first, *second, *map(on_host, model.gradients.values()))])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", ["one to many", "bridge", "no bridge"])
def test_a_decoder_s_inputs_are_taken_on_the_device(rng, name, tokens):
    """A bridge, and what OneToMany starts from, are computed on the host; the arrays come back from there."""
    x = rng.standard_normal((T, B, X), dtype="float32")
    inputs = rng.integers(0, X, (T, B)) if tokens else rng.standard_normal((T, B, X), dtype="float32")
    do, results = rng.standard_normal((T, B, Y), dtype="float32"), []
    for place, back in (device_array, on_host), (np.asarray, np.asarray):
        if name == "one to many":
            model, first = OneToMany(gru("cuda"), Y, X, seed=1), x[0]
        else:
            first = place(x)
            model = EncoderDecoder(gru("cuda"), gru("cuda", seed=1), Y, bridge=name == "bridge", seed=2)
        o, h_n = model(first, inputs=place(inputs), target_lengths=[T, 1, 3])
        model.backward(place(do), h_n)
        dinputs = [] if tokens else [back(model.dinputs)]
        results.append([back(o), back(h_n), *dinputs, *map(on_host, model.gradients.values())])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["many to many", "many to one", "one to many"])
def test_probabilities_are_where_the_outputs_are(rng, name, dtype):
    """Those of torch.softmax of the same outputs, up to rounding; of the host's arrays too."""
    torch = pytest.importorskip("torch")
    layer = gru("cuda", dtype=dtype)
    kind = {"many to many": ManyToMany, "many to one": ManyToOne, "one to many": OneToMany}[name]
    model = kind(layer, Y, *([X] if name == "one to many" else []), output="softmax", seed=1).eval()
    x = rng.standard_normal((T, B, X)).astype("float32" if dtype == "bfloat16" else dtype)
    assert "on the host" in getattr(model, "decoder", model).explain(x)["softmax of predict()"]
    decoder = name == "one to many"  # whose x is of the host
    for place in (lambda a: device_array(a, dtype)), np.asarray:
        given, options = (x[0], {"inputs": place(x)}) if decoder else (place(x), {})
        o, _ = model(given, **options)
        p = model.predict(given, **options)
        assert type(p) is type(o)
        assert (p.dtype, p.shape) == (o.dtype, o.shape)
        exact = torch.softmax(torch.from_numpy(np.array(on_host(o), "float64")), -1)
        # The difference, exp, the sum and the division round once each, p is at most 1 and |o| under 2.
        unit = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        np.testing.assert_allclose(on_host(p), exact.numpy(), rtol=0, atol=5 * unit)


def test_probabilities_are_of_floats():
    with pytest.raises(
        TypeError, match="logits are int64; expected one of float32, float64, float16, bfloat"
    ):
        softmax(device_array(np.ones((2, 3), int)))


def test_what_a_model_takes_on_the_host_alone(rng):
    x, vectors = device_array(np.ones((T, B, X), "float32")), np.ones((B, X), "float32")
    lengths = device_array(np.full(B, T))
    host = "is on DLPack device type 2; expected the CPU: copy it there first"
    with pytest.raises(ValueError, match=f"x {host}"):
        MODELS["one to many"]("cuda")(device_array(vectors), inputs=x)
    with pytest.raises(ValueError, match=f"inputs {host}"):
        OneToMany(gru("cuda"), Y, X, mode="input")(vectors, inputs=x)
    with pytest.raises(ValueError, match=f"lengths {host}"):
        MODELS["many to one"]("cuda")(x, lengths=lengths)
    with pytest.raises(ValueError, match=f"x {host}"):
        MODELS["many to one"]("cpu")(x)
    with pytest.raises(ValueError, match=f"inputs {host}"):
        EncoderDecoder(gru("cpu"), gru("cpu"), Y)(np.ones((T, B, X), "float32"), inputs=x)
    with pytest.raises(ValueError, match=f"inputs {host}"):
        MODELS["one to many"]("cpu")(vectors, inputs=x)
    model = MODELS["one to many"]("cuda")
    with pytest.raises(ValueError, match=r"inputs has shape \(5, 3, 4\); expected \(T, B, I\) = "):
        model(np.ones((B + 1, X), "float32"), inputs=x)
    with pytest.raises(RuntimeError, match="backward"):  # nothing has run
        model.first.backward(None, None)


@pytest.mark.parametrize(
    ("place", "lengths", "message"),
    [
        (np.array, [T + 1, 1, 1], r"lengths\[0\] is 6; expected from 0 to T = 5"),
        (np.array, [1, 1], r"lengths has shape \(2,\)"),
        (lambda lengths: device_array(np.array(lengths)), [1, 1], r"lengths has shape \(2,\)"),
    ],
)
def test_lengths_of_inputs_on_the_device_are_checked_before_the_encoder_runs(rng, place, lengths, message):
    x = device_array(rng.standard_normal((T, B, X), dtype="float32"))
    for name in "one to many", "encoder-decoder":
        model = MODELS[name]("cuda")
        if name == "one to many":
            first, runs = np.ones((B, X), "float32"), model.first
        else:
            first, runs = x, model.encoder
        with pytest.raises(ValueError, match=message):
            model(first, inputs=x, target_lengths=place(lengths))
        with pytest.raises(RuntimeError, match="backward"):  # nothing has run
            runs.backward(None, None)


def test_parameters_travel(tmp_path):
    model, peer = (MODELS["encoder-decoder"](device) for device in ("cuda", "cpu"))
    for array in peer.parameters.values():
        array += 1
    model.load_state_dict(peer.state_dict())
    model.save(tmp_path / "model.safetensors")
    again = MODELS["encoder-decoder"]("cpu").load(tmp_path / "model.safetensors")
    assert_equal(again.state_dict(), peer.state_dict())
    other = copy.deepcopy(model)
    other.parameters["decoder.readout.weight"][...] = 0
    for name, array in model.state_dict().items():
        assert_equal(array.numpy(), peer.parameters[name])
    assert other.device == "cuda:0"
    with pytest.raises(ValueError, match="parts have different devices"):
        EncoderDecoder(LayerNormGRU(X, H), gru("cuda"), Y)


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("loss", [softmax_cross_entropy, mean_squared_error])
def test_a_model_is_fitted_in_any_type(rng, loss, dtype, place):
    host = "float32" if dtype == "bfloat16" else dtype
    x = rng.standard_normal((T, B, X)).astype(host)
    given = x if place == "host" else device_array(x, dtype)
    targets = rng.integers(0, Y, (T, B)) if loss is softmax_cross_entropy else x[..., :Y]
    model = ManyToMany(gru("cuda", dtype=dtype), Y, seed=1)
    history = fit(model, [(given, targets)] * 4, loss=loss, optimizer=Adam([model], 0.05), epochs=2)
    assert history.losses[-1] < 0.9 * history.losses[0]


def test_what_is_sampled_from_may_begin_on_the_device(rng):
    """With a prompt, a history; what is drawn is on the host."""
    writer = ManyToMany(fastrnn.GRU(Y, H, device="cuda", seed=0), Y, seed=1).eval()
    walker = ManyToMany(gru("cuda", Y), Y, seed=1).eval()
    prompt, history = np.array([[0, 1], [1, 0]]), rng.standard_normal((T, B, Y), dtype="float32")
    for place in np.array, device_array:
        drawn = sampling.generate(writer, place(prompt), 6, seed=1)
        path = sampling.forecast(walker, place(history), 4).path
        if place is np.array:
            expected = drawn, path
    np.testing.assert_array_equal(drawn, expected[0])
    np.testing.assert_array_equal(path, expected[1])


@pytest.mark.parametrize("name", MODELS)
def test_models_move(rng, name):
    """There and back, with their gradients; what has moved is what was made there."""
    moved, made = (MODELS[name](device) for device in ("cpu", "cuda"))
    shape = {"one to many": (B, X), "sweep": (3, T, B, X)}.get(name, (T, B, X))
    x = rng.standard_normal(shape, dtype="float32")
    options = {"inputs": rng.standard_normal((T, B, X), dtype="float32")} if "decoder" in moved.parts else {}
    o, _ = moved(x, **options)
    before = [on_host(array) for array in moved.parameters.values()]
    assert moved.to("cuda") is moved
    assert moved.device == "cuda:0"
    with pytest.raises(RuntimeError, match="backward"):
        moved.backward(np.ones_like(o))
    results = []
    for model in moved, made:
        model(x, **options)
        results.append(model.backward(np.ones_like(o)))
    assert_equal(*results)
    gradients = [on_host(array) for array in moved.gradients.values()]
    assert any(gradient.any() for gradient in gradients)
    moved.to("cpu")
    for kept, arrays_now in (before, moved.parameters), (gradients, moved.gradients):
        for one, other in zip(kept, arrays_now.values(), strict=True):
            assert type(other) is np.ndarray
            np.testing.assert_array_equal(one, other)


class Own:
    """A module without `to`."""

    parameters: ClassVar[dict[str, np.ndarray]] = {}
    gradients: ClassVar[dict[str, np.ndarray]] = {}

    def zero_grad(self):
        """Have nothing to do."""


def test_what_stays_on_the_cpu_says_so():
    layer = gru("cpu")
    model = ManyToMany(DeepInTime(layer, 2), Y, seed=1)
    for stays in LayerNormGRU(X, H), ManyToMany(LayerNormGRU(X, H), Y):
        with pytest.raises(
            NotImplementedError, match=r"NumPy computes LayerNormGRU.*; expected device 'cpu'"
        ):
            stays.to("cuda")
        assert stays.to("cpu").device == "cpu"
    with pytest.raises(ValueError, match="device is 'tpu'; expected 'cpu' or 'cuda'"):
        model.to("tpu")
    model._parts["own"] = Own()
    with pytest.raises(NotImplementedError, match=r"own is .*Own.*, which has no to\(\)"):
        model.to("cuda")
    assert layer.device == "cpu", "nothing was moved"
    del model._parts["own"]
    model.eval()
    layer.quantize("int8")
    with pytest.raises(RuntimeError, match="is quantised to int8; call quantize"):
        model.to("cuda")
    half = ManyToMany(gru("cuda", dtype="float16"), Y)
    with pytest.raises(TypeError, match="dtype is 'float16'"):
        half.to("cpu")
    assert half.device == "cuda:0"


def test_an_output_layer_moves():
    readout, x = Linear(3, 2, seed=1), np.ones((4, 3), "float32")
    y = readout(x)
    readout.backward(y)
    weight, gradient = readout.parameters["weight"], readout.gradients["weight"]
    assert readout.to("cpu") is readout
    assert readout.parameters["weight"] is weight
    readout(x)
    readout.to("cuda", dtype="bfloat16")
    assert (readout.device, readout.dtype) == ("cuda:0", "bfloat16")
    with pytest.raises(RuntimeError, match="needs a forward call"):
        readout.backward(y)
    with pytest.raises(TypeError, match="dtype is 'bfloat16'"):
        readout.to("cpu")
    readout.to("cpu", "float32")
    assert np.abs(readout.parameters["weight"] - weight).max() <= 2.0**-8
    assert np.abs(readout.gradients["weight"] - gradient).max() <= 2.0**-8 * np.abs(gradient).max()
    assert readout(x).dtype == np.float32
