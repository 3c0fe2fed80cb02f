"""Do weights of other systems give layers of the same numbers, and go back to the same bits?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras, when imported, takes TensorFlow unless told

import fastrnn
import numpy as np
import pytest
import safetensors.numpy
from fastrnn.convert import (
    Backwards,
    from_flax,
    from_haste,
    from_keras,
    from_torch,
    keras_weights,
    lengths_from_mask,
    to_flax,
    to_haste,
    to_keras,
    to_torch,
)
from problems import flat
from tolerances import assert_close, assert_same_bits, chain

pytestmark = pytest.mark.frameworks

I, H, B, T = 3, 5, 4, 6  # noqa: E741


def fill(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    return (0.5 * rng.normal(size=shape)).astype(dtype)


def same_parameters(layer: Any, other: Any) -> None:
    assert repr(layer) == repr(other)
    assert list(layer.parameters) == list(other.parameters)
    for name, array in layer.parameters.items():
        assert_same_bits(other.parameters[name], array, name)


def filled(layer: Any, rng: np.random.Generator) -> Any:
    """Give a layer other parameters than a new one could have."""
    for array in layer.parameters.values():
        array[...] = 0.5 * rng.normal(size=array.shape)
    return layer


# ---------------------------------------------------------------------------------------- torch

TORCH = [
    ("LSTM", {"num_layers": 2, "bidirectional": True, "dropout": 0.25}),
    ("LSTM", {"proj_size": 2, "bias": False, "num_layers": 2}),
    ("LSTM", {"proj_size": 2, "bidirectional": True}),
    ("GRU", {"num_layers": 3, "batch_first": True}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
    ("RNN", {}),
    ("LSTMCell", {}),
    ("GRUCell", {"bias": False}),
    ("RNNCell", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("kind", "options"), TORCH)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_torch_modules(kind: str, options: dict[str, Any], dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(I, H, **options, dtype=getattr(torch, dtype)).eval()
    layer = from_torch(module).eval()
    assert type(layer).__name__ == kind
    assert layer.dtype == dtype
    x = fill(rng, *((B, I) if "Cell" in kind else (T, B, I)), dtype=dtype)
    with torch.no_grad():
        right = module(torch.from_numpy(x))
    for ours, theirs in zip(flat_all(layer(x)), flat_all(right), strict=True):
        assert_close(ours, theirs.numpy(), n_products=chain(layer._spec, T))

    back = to_torch(layer)
    assert repr(back) == repr(module)
    assert not back.training
    state = back.state_dict()
    assert list(state) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(state[name], tensor)
    same_parameters(layer, from_torch(back).eval())


def flat_all(results: Any) -> list[Any]:
    """Flatten what a layer returns."""
    return [part for r in results for part in flat_all(r)] if isinstance(results, tuple) else [results]


@pytest.mark.parametrize(("kind", "options"), TORCH)
def test_torch_state_dicts_and_files(
    kind: str, options: dict[str, Any], tmp_path: Path, rng: np.random.Generator
) -> None:
    seen = {k: v for k, v in options.items() if k in ("batch_first", "nonlinearity")}
    layer = getattr(fastrnn, kind)(I, H, **{k: v for k, v in options.items() if k != "dropout"}, seed=0)
    saved = {f"decoder.{name}": array for name, array in filled(layer, rng).state_dict().items()}
    saved["readout.weight"] = np.zeros((2, 2), "float32")
    same_parameters(layer, from_torch(saved, prefix="decoder.", **seen))
    safetensors.numpy.save_file(saved, tmp_path / "model.safetensors")
    for path in tmp_path / "model.safetensors", str(tmp_path / "model.safetensors"):
        same_parameters(layer, from_torch(path, prefix="decoder.", **seen))
    with pytest.raises(
        ValueError, match=r"no name in .*model\.safetensors begins with 'x'; there are decoder"
    ):
        from_torch(path, prefix="x")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_half_is_widened(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    module = torch.nn.GRU(I, H, dtype=getattr(torch, dtype))
    save_file({f"rnn.{name}": tensor for name, tensor in module.state_dict().items()}, tmp_path / "half")
    for layer in (
        from_torch(module),
        from_torch(module.state_dict()),
        from_torch(tmp_path / "half", prefix="rnn."),
        from_torch(module, dtype="float64"),
    ):
        for name, tensor in module.state_dict().items():
            assert layer.parameters[name].tolist() == tensor.float().tolist()
    assert from_torch(module).dtype == "float32"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"peephole": "diagonal", "num_layers": 2, "bidirectional": True}),
        ("LSTM", {"peephole": "full", "proj_size": 2, "bias": False}),
        ("GRU", {"reset_after": False, "num_layers": 2, "batch_first": True}),
        ("GRU", {}),
        ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
        ("LSTMCell", {}),
        ("GRUCell", {"reset_after": False}),
        ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    ],
)
def test_modules_of_fastrnns_own(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    import fastrnn.torch

    torch.manual_seed(0)
    module = getattr(fastrnn.torch, kind)(I, H, **options).eval()
    layer = from_torch(module).eval()
    assert repr(layer) == repr(getattr(fastrnn, kind)(I, H, **options).eval())
    x = fill(rng, *((B, I) if "Cell" in kind else (T, B, I)))
    with torch.no_grad():
        right = module(torch.from_numpy(x))
    for ours, theirs in zip(flat_all(layer(x)), flat_all(right), strict=True):
        assert_same_bits(np.ascontiguousarray(ours), np.ascontiguousarray(theirs))
    told = {k: v for k, v in options.items() if k in ("batch_first", "nonlinearity", "reset_after")}
    same_parameters(layer, from_torch(module.state_dict(), **told).eval())


def test_torch_weights_that_are_computed(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.GRU(I, H), "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0 *= 2
    layer = from_torch(module).eval()
    x = fill(rng, T, B, I)
    with torch.no_grad():
        right, _ = module(torch.from_numpy(x))
    assert_close(layer(x)[0], right.numpy(), n_products=chain(layer._spec, T))


def test_torch_layers_by_their_mode() -> None:
    torch = pytest.importorskip("torch")
    assert from_torch(torch.nn.RNNBase("RNN_RELU", I, H, 2)).nonlinearity == "relu"
    with pytest.raises(TypeError, match="source has type Linear; expected a recurrent module"):
        from_torch(torch.nn.Linear(I, H))


def test_torch_options_that_the_source_contradicts() -> None:
    torch = pytest.importorskip("torch")
    import fastrnn.torch

    gru = torch.nn.GRU(I, H, batch_first=True)
    assert from_torch(gru, batch_first=True, reset_after=True).batch_first
    for module, options, message in [
        (gru, {"batch_first": False}, "batch_first is False, but that of source is True"),
        (gru, {"reset_after": False}, "reset_after is False, but that of source is True"),
        (
            torch.nn.RNN(I, H),
            {"nonlinearity": "relu"},
            "nonlinearity is 'relu', but that of source is 'tanh'",
        ),
        (gru.state_dict(), {"nonlinearity": "relu"}, "nonlinearity is 'relu', but that of source is 'tanh'"),
        (torch.nn.LSTM(I, H).state_dict(), {"reset_after": False}, "reset_after is False, but"),
        (
            fastrnn.torch.LSTMCell(I, H, peephole="full"),
            {},
            r"source is LSTMCell\(3, 5, peephole='full'\); exp",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            from_torch(module, **options)


def arrays_of(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, "float32") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (arrays_of(weight=(2, 2)), {}, ValueError, "source has the tensor 'weight'; expected weight_ih_l0"),
        ({}, {}, ValueError, "source: weight_ih_l0 is missing; there are no tensors"),
        (arrays_of(weight_ih_l0=(8, 3)), {}, ValueError, "weight_hh_l0 is missing; there are weight_ih_l0"),
        (
            arrays_of(weight_ih_l0=(9, 3), weight_hh_l0=(9, 2)),
            {},
            ValueError,
            r"weight_ih_l0 has shape \(9, 3\); expected \(4\*H, I\), \(3\*H, I\) or \(H, I\) with H = 2",
        ),
        (
            arrays_of(weight_ih_l0=(8, 3), weight_hh_l0=(7, 2)),
            {},
            ValueError,
            r"weight_hh_l0 has shape \(7, 2\), expected \(8, 2\)",
        ),
        (
            arrays_of(weight_ih_l0=(8, 3), weight_hh_l0=(8, 2), weight_ih_l1=(8, 2)),
            {},
            ValueError,
            "missing weight_hh_l1",
        ),
        (
            arrays_of(a=(2, 2)),
            {"prefix": "b."},
            ValueError,
            "no name in source begins with 'b.'; there are a",
        ),
        (
            arrays_of(weight_ih_l0=(8, 3), weight_hh_l0=(8, 2))
            | {"bias_ih_l0": [0.0] * 8, "bias_hh_l0": 0.0},
            {},
            TypeError,
            "bias_ih_l0.* has type list; expected an array",
        ),
        ({5: np.zeros(2)}, {}, ValueError, "source has the tensor 5; expected weight_ih_l0"),
        ({5: np.zeros(2)}, {"prefix": "b."}, ValueError, "no name in source begins with 'b.'; there are 5"),
        (5, {}, TypeError, "source has type int; expected a recurrent module of torch.nn, a mapping"),
        (5, {"prefix": "a"}, TypeError, "prefix is 'a' for a int; expected a mapping with it"),
    ],
)
def test_torch_errors(source: Any, options: dict[str, Any], error: Any, message: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(error, match=message):
        from_torch(source, **options)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (fastrnn.LSTM(I, H, peephole="diagonal"), "torch.nn has no peephole"),
        (fastrnn.GRU(I, H, zoneout=0.1), "torch.nn has no zoneout"),
        (fastrnn.RNN(I, H, recurrent_dropout=0.1), "torch.nn has no recurrent_dropout"),
        (fastrnn.GRU(I, H, reset_after=False), "torch.nn has no reset_after=False"),
        (fastrnn.RNN(I, H, nonlinearity="sigmoid"), "torch.nn has no nonlinearity='sigmoid'"),
    ],
)
def test_what_torch_does_not_have(layer: Any, message: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=message):
        to_torch(layer)
    with pytest.raises(TypeError, match="layer has type int"):
        to_torch(5)


# ---------------------------------------------------------------------------------------- Keras


KERAS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"use_bias": False}),
    ("LSTM", {"dtype": "float64"}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "use_bias": False}),
    ("SimpleRNN", {}),
    ("SimpleRNN", {"activation": "relu"}),
    ("SimpleRNN", {"activation": "linear", "use_bias": False}),
    ("SimpleRNN", {"activation": "sigmoid"}),
]


def keras_layer(
    kind: str, rng: np.random.Generator, side: str = "forward", width: int = I, **options: Any
) -> Any:
    keras = pytest.importorskip("keras")
    layer = getattr(keras.layers, kind)(H, return_sequences=True, go_backwards=side == "backward", **options)
    if side == "both":
        layer = keras.layers.Bidirectional(layer)
    layer.build((None, None, width))
    layer.set_weights([fill(rng, *w.shape, dtype=str(w.dtype)) for w in layer.weights])
    return layer


def run_keras(layer: Any, x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return numpy_of(layer(x, mask=mask))


def numpy_of(value: Any) -> np.ndarray:
    """Return an array or variable of Keras as NumPy's."""
    value = getattr(value, "value", value)
    return value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)


@pytest.mark.parametrize(("kind", "options"), KERAS)
@pytest.mark.parametrize("side", ["forward", "backward", "both"])
@pytest.mark.parametrize("masked", [False, True])
def test_keras_layers(
    kind: str, options: dict[str, Any], side: str, masked: bool, rng: np.random.Generator
) -> None:
    if options.get("dtype") == "float64":
        pytest.importorskip("keras")
        if os.environ["KERAS_BACKEND"] == "jax":
            pytest.skip("JAX computes in float32 unless a program says otherwise at its start")
    theirs = keras_layer(kind, rng, side, **options)
    layer = from_keras(theirs)
    inner = layer.layer if isinstance(layer, Backwards) else layer
    inner.eval()
    x = fill(rng, B, T, I, dtype=inner.dtype)
    mask = lengths = None
    if masked:
        mask = np.arange(T) < np.array([T, 1, 3, T - 1])[:, None]
        lengths = lengths_from_mask(mask)
    right = run_keras(theirs, x, mask)
    y, _ = layer(x, lengths=lengths)
    if side == "backward":
        y = y[:, ::-1]
        if masked:  # Keras repeats the output before, of which there is none in front of the first valid step
            mask = mask[:, ::-1]
    if masked:
        y, right = (np.where(mask[..., None], a, 0) for a in (y, right))
    # In float64 too Keras keeps masked states, and those of Bidirectional, in float32.
    single = masked or side == "both"
    assert_close(y, right, n_products=chain(inner._spec, T), dtype="float32" if single else inner.dtype)

    # There and back, in arrays and in layers.
    back = to_keras(layer)
    assert type(back) is type(theirs)
    for own, given in zip(back.weights, theirs.weights, strict=True):
        assert_same_bits(numpy_of(own), numpy_of(given), given.path)
    again = from_keras(back)
    assert isinstance(again, Backwards) == (side == "backward")
    same_parameters(inner.train(), again.layer if isinstance(again, Backwards) else again)


def test_keras_stacks(rng: np.random.Generator) -> None:
    first, second = keras_layer("GRU", rng, "both"), keras_layer("GRU", rng, "both", width=2 * H)
    layer = from_keras([first, second]).eval()
    assert (layer.num_layers, layer.bidirectional) == (2, True)
    x = fill(rng, B, T, I)
    right = run_keras(second, run_keras(first, x, None), None)
    assert_close(layer(x)[0], right, n_products=chain(layer._spec, T))
    same_parameters(layer.train(), from_keras(to_keras(layer)))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_keras_stacks_from_the_end(kind: str, rng: np.random.Generator) -> None:
    pytest.importorskip("keras")
    layer = filled(getattr(fastrnn, kind)(I, H, 3, batch_first=True), rng)
    if kind != "GRU":  # which alone has two biases in Keras
        for name, array in layer.parameters.items():
            if name.startswith("bias_hh"):
                array[...] = 0
    stack = to_keras(Backwards(layer))
    assert [entry.go_backwards for entry in stack] == [True, False, False]
    y = x = fill(rng, B, T, I)
    for entry in stack:
        y = run_keras(entry, y, None)
    right, _ = Backwards(layer.eval())(x)
    assert_close(y[:, ::-1], right, n_products=chain(layer._spec, T))
    again = from_keras(stack)
    assert isinstance(again, Backwards)
    same_parameters(layer.train(), again.layer)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_output_of_keras(bidirectional: bool, rng: np.random.Generator) -> None:
    pytest.importorskip("keras")
    layer = filled(fastrnn.GRU(I, H, 2, batch_first=True, bidirectional=bidirectional), rng)
    stack = to_keras(layer, return_sequences=False)
    x = fill(rng, B, T, I)
    right = run_keras(stack[1], run_keras(stack[0], x, None), None)
    _, h_n = layer.eval()(x)
    last = np.concatenate([*h_n[-2:]], axis=-1) if bidirectional else h_n[-1]
    assert_close(last, right, n_products=chain(layer._spec, T))


def test_keras_options_that_the_source_contradicts() -> None:
    keras = pytest.importorskip("keras")
    gru = keras.layers.GRU(H)
    gru.build((None, None, I))
    assert from_keras(gru, reset_after=True, nonlinearity="tanh").reset_after
    arrays = keras_weights(fastrnn.LSTM(I, H))
    for source, options, message in [
        (gru, {"go_backwards": True}, "go_backwards is True, but that of source is False"),
        (gru, {"reset_after": False}, "reset_after is False, but that of source is True"),
        ([gru], {"nonlinearity": "relu"}, "nonlinearity is 'relu', but that of source is 'tanh'"),
        (arrays, {"reset_after": False}, "reset_after is False, but that of source is True"),
        (arrays, {"nonlinearity": "relu"}, "nonlinearity is 'relu', but that of source is 'tanh'"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_keras(source, **options)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, False), (1, True), (3, True)])
@pytest.mark.parametrize("bias", [True, False])
def test_keras_arrays(
    kind: str, num_layers: int, bidirectional: bool, bias: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    options: list[dict[str, Any]] = [{}] + [{"reset_after": False}] * (kind == "GRU")
    for option in options:
        layer = getattr(fastrnn, kind)(
            I, H, num_layers, bias=bias, bidirectional=bidirectional, batch_first=True, seed=0, **option
        )
        one_bias = not (kind == "GRU" and layer.reset_after)
        for name, array in filled(layer, rng).parameters.items():
            if one_bias and name.startswith("bias_hh"):
                array[...] = 0
        same_parameters(layer, from_keras(keras_weights(layer), **(option if not bias else {})))
    if num_layers == 1 and not bidirectional:
        safetensors.numpy.save_file(keras_weights(layer), tmp_path / "keras.safetensors")
        same_parameters(layer, from_keras(tmp_path / "keras.safetensors", **(option if not bias else {})))


def test_what_keras_arrays_do_not_say(rng: np.random.Generator) -> None:
    layer = filled(fastrnn.RNN(I, H, nonlinearity="identity", batch_first=True), rng)
    layer.parameters["bias_hh_l0"][...] = 0
    arrays = keras_weights(layer)
    for name in "linear", "identity":
        made = from_keras(arrays, nonlinearity=name, go_backwards=True)
        assert isinstance(made, Backwards)
        same_parameters(layer, made.layer)
    same_parameters(layer, from_keras(arrays, nonlinearity="linear", go_backwards=False))
    with pytest.raises(TypeError, match="go_backwards is 1"):
        from_keras(arrays, go_backwards=1)
    for source in arrays, keras_weights(fastrnn.GRU(I, H)):
        for wrong in [], 0:
            with pytest.raises(TypeError, match=rf"nonlinearity is {re.escape(str(wrong))} .*; expected"):
                from_keras(source, nonlinearity=wrong)
        with pytest.raises(ValueError, match="nonlinearity is ''; expected one of 'tanh', "):
            from_keras(source, nonlinearity="")
    with pytest.raises(ValueError, match=r"bidirectional=True.*; expected one direction"):
        from_keras((arrays, arrays), go_backwards=True)


def test_two_biases_become_their_sum(rng: np.random.Generator) -> None:
    layer = filled(fastrnn.LSTM(I, H, batch_first=True, dtype="float64"), rng).eval()
    x = fill(rng, B, T, I, dtype="float64")
    for other in from_keras(keras_weights(layer)), from_haste(to_haste(layer), batch_first=True):
        assert_close(other(x)[0], layer(x)[0], n_products=chain(layer._spec, T))


KERNELS = arrays_of(kernel=(I, 4 * H), recurrent_kernel=(H, 4 * H), bias=(4 * H,))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "recurrent_kernel is missing; there are no tensors"),
        (
            {**KERNELS, "gamma": np.zeros(2)},
            r"unexpected gamma \(2,\); expected bias, kernel, recurrent_kernel",
        ),
        (
            {**KERNELS, **arrays_of(recurrent_kernel=(5, 7))},
            r"recurrent_kernel has shape \(5, 7\); expected .* = \(5, 20\), \(5, 15\) or \(5, 5\)",
        ),
        (
            {**KERNELS, **arrays_of(kernel=(3, 19))},
            r"kernel has shape \(3, 19\); expected \(I, 4\*H\) = \(I, 20\)",
        ),
        (
            {**KERNELS, **arrays_of(bias=(2, 20))},
            r"bias has shape \(2, 20\); expected \(4\*H,\) = \(20,\)",
        ),
        (
            [KERNELS, {**KERNELS, **arrays_of(kernel=(4, 20))}],
            r"layer 1: kernel has shape \(4, 20\); expected \(I, 4\*H\) = \(5, 20\)",
        ),
        (
            (KERNELS, {**KERNELS, **arrays_of(recurrent_kernel=(4, 20))}),
            r"backward: recurrent_kernel has shape \(4, 20\); expected .* = \(5, 20\)",
        ),
        ([KERNELS, (KERNELS, KERNELS)], r"the layers of source have \[1, 2\] directions"),
        (
            [KERNELS, arrays_of(kernel=(5, 15), recurrent_kernel=(5, 15))],
            "the layers of source are of the cells 'lstm' and 'gru'; expected one",
        ),
    ],
)
def test_keras_array_errors(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_keras(source)


def test_keras_layer_errors(rng: np.random.Generator) -> None:
    keras = pytest.importorskip("keras")
    layers = keras.layers

    def refused(layer: Any, message: str, error: Any = ValueError) -> None:
        built = layer if isinstance(layer, list) else [layer]
        for entry in built:
            entry.build((None, None, I))
        with pytest.raises(error, match=message):
            from_keras(layer)

    with pytest.raises(ValueError, match="the LSTM 'a' is not built"):
        from_keras(layers.LSTM(H, name="a"))
    refused(layers.LSTM(H, activation="relu"), "activation is 'relu'; expected tanh")
    refused(layers.GRU(H, recurrent_activation="hard_sigmoid"), "recurrent_activation is 'hard_sigmoid'")
    refused(layers.SimpleRNN(H, activation="elu"), "activation is 'elu'; expected tanh or relu or sigmoid or")
    refused(layers.Bidirectional(layers.GRU(H), merge_mode="sum"), "merge_mode is 'sum'; expected 'concat'")
    refused(layers.Dense(H), "source has type Dense; expected a Keras LSTM", TypeError)
    both = [layers.LSTM(H, go_backwards=True, return_sequences=True) for _ in range(2)]
    refused(both, "a list of layers with go_backwards=True; expected them one by one")
    refused(
        [layers.GRU(H), layers.GRU(H, reset_after=False)], r"the reset_after \[True, False\]; expected one"
    )
    with pytest.raises(ValueError, match="expected no projection, which Keras does not have"):
        to_keras(fastrnn.LSTM(I, H, proj_size=2))
    with pytest.raises(ValueError, match="expected no zoneout, which Keras does not have"):
        to_keras(fastrnn.GRU(I, H, zoneout=0.1))


# ----------------------------------------------------------------------------------------- Flax


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("cell", ["OptimizedLSTMCell", "LSTMCell", "GRUCell", "SimpleCell"])
def test_flax_cells(api: str, cell: str, rng: np.random.Generator) -> None:
    pytest.importorskip("flax")
    import jax

    x = fill(rng, T, B, I)
    if api == "linen":
        import flax.linen as nn

        module = getattr(nn, cell)(H)
        carry = module.initialize_carry(jax.random.key(0), (B, I))
        given = module.init(jax.random.key(1), carry, x[0])
        given = jax.tree.map(lambda a: fill(rng, *a.shape), given)

        def step(carry: Any, x_t: np.ndarray) -> Any:
            return module.apply(given, carry, x_t)
    else:
        from flax import nnx

        module = getattr(nnx, cell)(I, H, rngs=nnx.Rngs(0))
        carry = module.initialize_carry((B, I), nnx.Rngs(0))
        given = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        given = jax.tree.map(lambda a: fill(rng, *a.shape), given)
        nnx.update(module, given)
        step = module
    outputs = []
    for x_t in x:
        carry, y = step(carry, x_t)
        outputs.append(np.asarray(y))
    layer = from_flax(given)
    y, state_n = layer.eval()(x)
    assert_close(y, np.stack(outputs), n_products=chain(layer._spec, T))
    ends = [np.asarray(part) for part in (carry[::-1] if isinstance(carry, tuple) else [carry])]
    for ours, right in zip(flat(state_n), ends, strict=True):
        assert_close(ours[0], right, n_products=chain(layer._spec, T))

    if api == "nnx" and cell == "LSTMCell":
        return  # the same numbers as the other LSTM, which is what to_flax writes
    back = to_flax(layer, api=api)
    assert jax.tree.structure(back) == jax.tree.structure(given)
    for ours, right in zip(jax.tree.leaves(back), jax.tree.leaves(given), strict=True):
        assert_same_bits(ours, right)
    same_parameters(layer.train(), from_flax(back))


def test_flax_of_jax_arrays_inside_other_modules() -> None:
    pytest.importorskip("flax")
    import flax.linen as nn
    import jax

    x = np.ones((B, T, I), "float32")
    module = nn.RNN(nn.GRUCell(H))
    parameters = module.init(jax.random.key(0), x)
    layer = from_flax(parameters).eval()
    y, _ = layer(np.ascontiguousarray(x.swapaxes(0, 1)))
    assert_close(y.swapaxes(0, 1), np.asarray(module.apply(parameters, x)), n_products=chain(layer._spec, T))


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("cell", ["OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_both_directions_of_flax(api: str, cell: str, rng: np.random.Generator) -> None:
    pytest.importorskip("flax")
    import jax

    x = fill(rng, B, T, I)
    if api == "linen":
        import flax.linen as nn

        module = nn.Bidirectional(*(nn.RNN(getattr(nn, cell)(H)) for _ in range(2)))
        given = module.init(jax.random.key(0), x)
        right = module.apply(given, x)
    else:
        from flax import nnx

        module = nnx.Bidirectional(
            *(nnx.RNN(getattr(nnx, cell)(I, H, rngs=nnx.Rngs(n))) for n in range(2)), rngs=nnx.Rngs(0)
        )
        given = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        right = module(x)
    layer = from_flax(given).eval()
    assert layer.bidirectional
    y, _ = layer(np.ascontiguousarray(x.swapaxes(0, 1)))
    assert_close(y.swapaxes(0, 1), np.asarray(right), n_products=chain(layer._spec, T))


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, False), (1, True), (3, True)])
def test_flax_stacks(
    api: str, kind: str, num_layers: int, bidirectional: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    layer = filled(getattr(fastrnn, kind)(I, H, num_layers, bidirectional=bidirectional), rng)
    for name, array in layer.parameters.items():
        if name.startswith("bias_ih" if kind == "LSTM" else "bias_hh"):
            array[: 2 * H if kind == "GRU" and api == "linen" else None] = 0
    written = to_flax(layer, api=api)
    same_parameters(layer, from_flax(written))
    if num_layers == 1 and not bidirectional:
        cell = written.get("params", written)
        named = {f"{part}.{kind}": array for part, arrays in cell.items() for kind, array in arrays.items()}
        safetensors.numpy.save_file({f"rnn.{k}": v for k, v in named.items()}, tmp_path / "flax.safetensors")
        same_parameters(layer, from_flax(tmp_path / "flax.safetensors", prefix="rnn."))


@pytest.mark.parametrize("joined", ["/", "."])
def test_flat_names_of_nnx(joined: str, rng: np.random.Generator) -> None:
    layer = filled(fastrnn.LSTM(I, H), rng)
    layer.parameters["bias_ih_l0"][...] = 0
    named = {
        f"{'if_' if part == 'if' else part}{joined}{kind}": array
        for part, arrays in to_flax(layer)["params"].items()
        for kind, array in arrays.items()
    }
    assert f"if_{joined}kernel" in named
    same_parameters(layer, from_flax(named))
    same_parameters(
        layer, from_flax({f"cell.{name}": array for name, array in named.items()}, prefix="cell.")
    )


def test_bfloat16_of_jax_is_widened() -> None:
    jnp = pytest.importorskip("jax.numpy")
    layer = fastrnn.GRU(I, H, seed=0)
    cell = {
        part: {kind: jnp.asarray(array, "bfloat16") for kind, array in arrays.items()}
        for part, arrays in to_flax(layer)["params"].items()
    }
    narrow = {
        part: {kind: np.asarray(array) for kind, array in arrays.items()} for part, arrays in cell.items()
    }
    for given in cell, narrow:
        made = from_flax(given)
        assert made.dtype == "float32"
        rounded = np.asarray(cell["hn"]["kernel"]).astype("float32")
        assert_same_bits(made.parameters["weight_hh_l0"][2 * H :], np.ascontiguousarray(rounded.T))
    layer.load_state_dict({name: jnp.asarray(a, "bfloat16") for name, a in layer.parameters.items()})
    assert_same_bits(layer.parameters["weight_hh_l0"], from_flax(cell).parameters["weight_hh_l0"])


def test_flax_errors(rng: np.random.Generator) -> None:
    cell = to_flax(fastrnn.LSTM(I, H))["params"]

    def refused(message: str, **changes: Any) -> None:
        changed = {name: dict(arrays) for name, arrays in cell.items()}
        for name, array in changes.items():
            part, _, kind = name.partition("__")
            changed.setdefault(part, {})[kind] = array
            if array is None:
                del changed[part][kind]
        with pytest.raises(ValueError, match=message):
            from_flax({"params": changed})

    refused(r"hg/kernel has shape \(5, 4\); expected \(H, H'\) = \(5, 5\)", hg__kernel=np.zeros((5, 4)))
    refused(r"if/kernel has shape \(4, 5\); expected \(I, H\) = \(3, 5\)", **{"if__kernel": np.zeros((4, 5))})
    refused("ho/bias is missing; there are hf/bias", ho__bias=None)
    refused(r"unexpected scale/gamma \(3,\)", scale__gamma=np.zeros(3))
    with pytest.raises(ValueError, match="h/kernel is missing; there are a"):
        from_flax({"a": np.zeros(2)})
    layers: list[Any] = [{"params": cell}, {"params": cell}]
    with pytest.raises(
        ValueError, match=r"layer 1: ii/kernel has shape \(3, 5\); expected \(I, H\) = \(5, 5\)"
    ):
        from_flax(layers)
    with pytest.raises(TypeError, match="source has type int; expected a mapping"):
        from_flax(5)
    with pytest.raises(ValueError, match="source is an empty list"):
        from_flax([])
    with pytest.raises(TypeError, match="ii/kernel is int64; expected floats"):
        from_flax({**cell, "ii": {"kernel": np.zeros((I, H), np.int64)}})
    with pytest.raises(ValueError, match="nonlinearity is 'relu', but that of source is 'tanh'"):
        from_flax({"params": cell}, nonlinearity="relu")
    with pytest.raises(ValueError, match="Flax has no reset_after=False"):
        to_flax(fastrnn.GRU(I, H, reset_after=False))
    with pytest.raises(ValueError, match="bias_hh_l0 of the candidate is not 0"):
        to_flax(fastrnn.GRU(I, H), api="nnx")
    with pytest.raises(ValueError, match="api is 'haiku'; expected one of 'linen', 'nnx'"):
        to_flax(fastrnn.GRU(I, H), api="haiku")


# ---------------------------------------------------------------------------------------- Haste


def haste_lstm(tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Compute the LSTM of Haste's documentation, gates side by side in the order i, g, f, o."""
    h = c = np.zeros((x.shape[1], H))
    outputs = []
    for x_t in x:
        v = x_t @ tensors["kernel"] + h @ tensors["recurrent_kernel"] + tensors["bias"]
        i, g, f, o = np.split(v, 4, axis=1)
        i, g, f, o = (1 / (1 + np.exp(-i)), np.tanh(g), 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-o)))
        c = f * c + i * g
        h = o * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


def haste_gru(tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Compute the GRU of Haste's documentation, gates side by side in the order z, r, g."""
    h = np.zeros((x.shape[1], H))
    outputs = []
    for x_t in x:
        wz, wr, wg = np.split(x_t @ tensors["kernel"] + tensors["bias"], 3, axis=1)
        uz, ur, ug = np.split(h @ tensors["recurrent_kernel"] + tensors["recurrent_bias"], 3, axis=1)
        z, r = 1 / (1 + np.exp(-wz - uz)), 1 / (1 + np.exp(-wr - ur))
        h = z * h + (1 - z) * np.tanh(wg + r * ug)
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize(("cell", "G"), [("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_haste(cell: str, G: int, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "kernel": (I, G * H),
        "recurrent_kernel": (H, G * H),
        "bias": (G * H,),
    }
    if cell == "GRU":
        shapes["recurrent_bias"] = (G * H,)
    tensors = {name: fill(rng, *shape, dtype=dtype) for name, shape in shapes.items()}
    layer = from_haste(tensors)
    assert type(layer).__name__ == cell
    x = fill(rng, T, B, I, dtype=dtype)
    right = {"LSTM": haste_lstm, "GRU": haste_gru}[cell](tensors, x)
    assert_close(layer.eval()(x)[0], right, n_products=chain(layer._spec, T))
    back = to_haste(layer)
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        assert_same_bits(back[name], array, name)
    safetensors.numpy.save_file(back, tmp_path / "haste.safetensors")
    same_parameters(layer.train(), from_haste(tmp_path / "haste.safetensors"))

    stack = filled(getattr(fastrnn, cell)(I, H, 2, bidirectional=True, dtype=dtype), rng)
    for name, array in stack.parameters.items():
        if cell == "LSTM" and name.startswith("bias_hh"):
            array[...] = 0
    same_parameters(stack, from_haste(to_haste(stack)))


def test_haste_errors() -> None:
    gru = to_haste(fastrnn.GRU(I, H))
    with pytest.raises(ValueError, match=r"recurrent_bias has shape \(14,\); expected \(3\*H,\) = \(15,\)"):
        from_haste(gru | arrays_of(recurrent_bias=(14,)))
    with pytest.raises(ValueError, match="recurrent_bias is missing; there are bias, kernel"):
        from_haste({name: array for name, array in gru.items() if name != "recurrent_bias"})
    with pytest.raises(ValueError, match=r"unexpected gamma \(2, 15\)"):
        from_haste(gru | arrays_of(gamma=(2, 15)))
    with pytest.raises(
        ValueError, match=r"recurrent_kernel has shape \(5, 5\); expected \(H, 4\*H\) of an LSTM"
    ):
        from_haste(arrays_of(kernel=(3, 5), recurrent_kernel=(5, 5)))
    with pytest.raises(ValueError, match=r"recurrent_kernel has shape \(5,\); expected a matrix"):
        from_haste(gru | arrays_of(recurrent_kernel=(5,)))
    with pytest.raises(ValueError, match="Haste has no RNN"):
        to_haste(fastrnn.RNN(I, H))
    with pytest.raises(ValueError, match="Haste has no reset_after=False"):
        to_haste(fastrnn.GRU(I, H, reset_after=False))
    with pytest.raises(ValueError, match="expected no peephole, which Haste does not have"):
        to_haste(fastrnn.LSTM(I, H, peephole="full"))
    with pytest.raises(ValueError, match="expected no zoneout of c, which Haste does not have"):
        to_haste(fastrnn.LSTM(I, H, zoneout=(0.1, 0.2)))
    with pytest.raises(TypeError, match="layer has type dict; expected a fastrnn LSTM, GRU or RNN"):
        to_haste({})
    layer = fastrnn.GRU(I, H, zoneout=0.1, seed=0)
    same_parameters(layer, from_haste(to_haste(layer), zoneout=0.1))


def test_short_names() -> None:
    for name in fastrnn.convert.__all__:
        if name.startswith(("from_", "to_")):
            assert getattr(fastrnn, name) is getattr(fastrnn.convert, name)
            assert name in dir(fastrnn)
    with pytest.raises(AttributeError, match="no attribute 'from_caffe'"):
        _ = fastrnn.from_caffe


def test_nothing_else_is_imported() -> None:
    code = "import sys, fastrnn.convert, fastrnn.onnx; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "fastrnn" in loaded
    assert not loaded & {"onnx", "torch", "keras", "flax", "jax"}


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("none")
    for read in from_torch, from_keras, from_flax, from_haste:
        with pytest.raises(ValueError, match=r"text\.safetensors is not a safetensors file"):
            read(tmp_path / "text.safetensors")
        with pytest.raises(FileNotFoundError):
            read(str(tmp_path / "missing.safetensors"))


# ------------------------------------------------------------------------- masks and directions


def test_lengths_from_mask() -> None:
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    assert lengths_from_mask(mask).tolist() == [2, 0, 3]
    with pytest.raises(ValueError, match=r"mask\[1\] has a valid step after one that is not"):
        lengths_from_mask([[True, False], [False, True]])
    with pytest.raises(ValueError, match=r"mask has shape \(3,\); expected \(B, T\)"):
        lengths_from_mask(mask[0])
    with pytest.raises(TypeError, match="mask is int64; expected bool"):
        lengths_from_mask(mask.astype("int64"))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_backwards_is_the_second_direction(kind: str, batch_first: bool, rng: np.random.Generator) -> None:
    both = getattr(fastrnn, kind)(I, H, bidirectional=True, batch_first=batch_first, seed=0).eval()
    one = getattr(fastrnn, kind)(I, H, batch_first=batch_first)
    one.load_state_dict({n: both.parameters[f"{n}_reverse"] for n in one.parameters})
    x, lengths = fill(rng, *((B, T, I) if batch_first else (T, B, I))), [0, T, 1, 3]
    backwards = Backwards(one.eval())
    for given in None, lengths:
        y, state_n = backwards(x, lengths=given)
        right, right_n = both(x, lengths=given)
        assert_same_bits(np.ascontiguousarray(y), np.ascontiguousarray(right[..., H:]))
        for ours, theirs in zip(flat(state_n), flat(right_n), strict=True):
            assert_same_bits(ours[0], theirs[1])
    assert "kernel" in backwards.explain(x)
    assert repr(backwards) == f"Backwards({one!r})"
    with pytest.raises(ValueError, match="expected one direction"):
        Backwards(both)
    with pytest.raises(ValueError, match="x has shape"):
        backwards(x[..., :2])
    with pytest.raises(ValueError, match=r"lengths\[0\] is 9"):
        backwards(x, lengths=[9, 1, 1, 1])
