"""Do parameters survive state_dict and files, exactly, and is nothing changed when they do not fit?"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
import safetensors.numpy
from fastrnn import layers
from fastrnn._backends import Cpu, on_host
from fastrnn.layouts import DTYPES
from nested import assert_equal
from tolerances import assert_same_bits

MODELS: dict[str, Any] = {
    "lstm": lambda dtype, seed: fastrnn.LSTM(
        3, 5, 2, True, True, 0.5, True, 2, peephole="full", dtype=dtype, seed=seed
    ),
    "gru": lambda dtype, seed: fastrnn.GRU(3, 5, 2, False, reset_after=False, dtype=dtype, seed=seed),
    "rnn": lambda dtype, seed: fastrnn.RNN(3, 5, 1, "relu", dtype=dtype, seed=seed),
    "lstm-cell": lambda dtype, seed: fastrnn.LSTMCell(3, 5, dtype=dtype, seed=seed),
    "gru-cell": lambda dtype, seed: fastrnn.GRUCell(3, 5, reset_after=False, dtype=dtype, seed=seed),
    "rnn-cell": lambda dtype, seed: fastrnn.RNNCell(3, 5, False, "sigmoid", dtype=dtype, seed=seed),
}
each_model = pytest.mark.parametrize("name", MODELS)


def assert_same_dict(one: Any, other: Any) -> None:
    assert list(one) == list(other)
    assert_equal(one, other)


@each_model
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_state_dict_is_a_copy_that_loads(name: str, dtype: str, training: bool) -> None:
    model, other = (MODELS[name](dtype, seed).train(training) for seed in (1, 2))
    state = model.state_dict()
    assert_same_dict(state, model.parameters)
    assert not any(np.shares_memory(array, model.parameters[key]) for key, array in state.items())
    kept = dict(other.parameters)
    other.load_state_dict(dict(reversed(state.items())))
    assert_same_dict(other.parameters, state)
    assert all(array is kept[key] for key, array in other.parameters.items())
    assert all(array.flags.writeable is training for array in other.parameters.values())
    x = np.ones((4, 3), dtype)
    assert_equal(model.eval()(x), other.eval()(x))


def test_loading_in_eval_mode_packs_again() -> None:
    one, other = (fastrnn.GRU(3, 5, seed=seed).eval() for seed in (1, 2))
    x = np.ones((4, 2, 3), "float32")
    assert not np.array_equal(one(x)[0], other(x)[0])
    other.load_state_dict(one.state_dict())
    assert_same_bits(one(x)[0], other(x)[0])


def test_loading_converts_other_float_widths() -> None:
    double = fastrnn.GRU(3, 5, dtype="float64", seed=1)
    single = fastrnn.GRU(3, 5, seed=2)
    single.load_state_dict(double.state_dict())
    for name, array in double.parameters.items():
        assert_same_bits(single.parameters[name], array.astype("float32"))
    half = {name: array.astype("float16") for name, array in double.state_dict().items()}
    double.load_state_dict(half)
    for name, array in half.items():
        assert_same_bits(double.parameters[name], array.astype("float64"))


def test_a_layer_can_load_its_own_parameters() -> None:
    layer = fastrnn.GRU(3, 5, seed=1)
    before = layer.state_dict()
    layer.load_state_dict(layer.parameters)
    assert_same_dict(layer.parameters, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_directions_can_be_exchanged_without_a_copy(device: str, training: bool) -> None:
    layer, twin = (fastrnn.GRU(5, 5, bidirectional=True, device=device, seed=1) for _ in range(2))
    names = list(layer.parameters)
    exchanged = dict(zip(names, names[len(names) // 2 :] + names[: len(names) // 2], strict=True))
    twin.load_state_dict({name: twin.state_dict()[other] for name, other in exchanged.items()})
    layer.train(training)
    layer.load_state_dict({name: layer.parameters[other] for name, other in exchanged.items()})
    for name, array in twin.parameters.items():
        assert_same_bits(on_host(layer.parameters[name]), on_host(array))
    x = np.ones((4, 2, 5), "float32")
    assert_equal(layer(x), twin(x))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_nothing_has_changed_if_memory_runs_out(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, other = (fastrnn.GRU(3, 5, device=device, seed=seed).eval() for seed in (1, 2))
    x = np.ones((4, 2, 3), "float32")
    expected, before = layer(x), {name: on_host(a).copy() for name, a in layer.parameters.items()}

    def fail(*arguments: Any) -> None:
        raise MemoryError

    for owner, name, change in (
        (layers, "Packed", lambda: layer.load_state_dict(other.state_dict())),
        (type(layer._backend), "array", lambda: layer.load_state_dict(other.state_dict())),
        (Cpu, "array", lambda: layer.to("cpu", "float64")),
        (Cpu, "zeros", lambda: layer.to("cpu", "float64")),
        (Cpu, "reserve", lambda: layer.to("cpu", "float64")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(MemoryError):
                change()
        assert (layer.dtype, layer.device, layer.training) == (other.dtype, other.device, False)
        assert_same_dict({name: on_host(a) for name, a in layer.parameters.items()}, before)
        assert_equal(layer(x), expected)


def test_loading_ends_the_call_to_go_back_through() -> None:
    layer = fastrnn.GRU(3, 5, seed=1)
    y, _ = layer(np.ones((4, 2, 3), "float32"))
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="without a training call"):
        layer.backward(y)


def test_every_name_and_shape_that_does_not_fit_is_listed() -> None:
    layer = fastrnn.LSTM(3, 5, seed=1)
    before = layer.state_dict()
    state = layer.state_dict()
    state["weight_hh_l1"] = state.pop("weight_hh_l0")
    state["bias_ih_l0"] = np.ones(4, "float32")
    state["weight_ih_l0"] = np.ones((20, 2), "float32")
    with pytest.raises(ValueError, match="state_dict") as caught:
        layer.load_state_dict(state)
    for part in (
        "missing weight_hh_l0",
        "unexpected weight_hh_l1",
        "weight_ih_l0 has shape (20, 2), expected (20, 3)",
        "bias_ih_l0 has shape (4,), expected (20,)",
    ):
        assert part in str(caught.value)
    assert_same_dict(layer.parameters, before)


# ------------------------------------------------------------------------------------------- files


@each_model
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_gives_back_the_same_model(name: str, dtype: str, tmp_path: Path) -> None:
    model, path = MODELS[name](dtype, 1), tmp_path / "model.safetensors"
    x = np.ones((4, 3), dtype)
    model(x)  # moves on to the next dropout mask
    model.eval().save(path)
    other = fastrnn.load(str(path))
    assert type(other) is type(model)
    assert repr(other) == repr(model)
    assert other.training
    assert other.seed == model.seed
    assert_same_dict(other.parameters, model.parameters)
    assert_equal(model.train()(x), other(x))
    stored = safetensors.numpy.load_file(path)
    assert_same_dict({key: stored[key] for key in model.parameters}, model.parameters)


def test_saving_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for seed in (1, 2):
        fastrnn.GRU(3, 5, seed=seed).save(path)
    assert fastrnn.load(path).seed == 2
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="directory"):
        fastrnn.GRU(3, 5).save(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        fastrnn.GRU(3, 5).save(tmp_path / "missing" / "model.safetensors")


def write(path: Path, description: Any, tensors: dict[str, np.ndarray] | None = None) -> Path:
    tensors = fastrnn.GRU(3, 5, seed=1).state_dict() if tensors is None else tensors
    safetensors.numpy.save_file(tensors, path, None if description is None else {"fastrnn": description})
    return path


def describe(**changes: Any) -> str:
    description = {
        "format": 1,
        "class": "GRU",
        "arguments": {"input_size": 3, "hidden_size": 5},
        "seed": 1,
        "calls": 0,
    }
    return json.dumps(description | changes)


def test_the_description_used_below_is_a_good_one(tmp_path: Path) -> None:
    assert repr(fastrnn.load(write(tmp_path / "model", describe()))) == "GRU(3, 5)"


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, r"was not written by save\(\).*load_state_dict"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (describe(format=2), "format 2; expected 1"),
        (describe(**{"class": "QRNN"}), "its class is 'QRNN'; expected one of LSTM, GRU"),
        (describe(**{"class": ["GRU"]}), r"its class is \['GRU'\]"),
        ("[" * 100_000, "cannot be read"),
        (
            describe(arguments={"input_size": 3, "hidden_size": 5, "device": "cuda"}),
            "it has device='cuda'; a GRU",
        ),
        (describe(arguments={"input_size": 3, "hidden_size": 2**28}), r"weight_hh_l0 has shape \(15, 5\)"),
        (
            describe(arguments={"input_size": 3, "hidden_size": 5, "num_layers": 2**31 - 1}),
            "num_layers is 2147483647, but there are 4 arrays",
        ),
        (describe(arguments={"input_size": 3}), "hidden_size"),
        (describe(arguments={"input_size": 3, "hidden_size": 5, "highway": 1}), "highway"),
        (describe(arguments={"input_size": 3, "hidden_size": 0}), "hidden_size is 0"),
        (describe(arguments={"input_size": 3, "hidden_size": 6}), r"weight_hh_l0 has shape \(15, 5\)"),
        (describe(seed="x"), "seed is 'x'"),
        (describe(calls=-1), "calls is -1"),
    ],
)
def test_files_of_others_are_told_apart(description: str | None, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model", description)
    with pytest.raises(ValueError, match=message) as caught:
        fastrnn.load(path)
    assert str(path) in str(caught.value)


def test_a_width_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model"
    header = {
        "__metadata__": {"fastrnn": describe()},
        "weight_ih_l0": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ValueError, match="model holds 'weight_ih_l0' as BF16; expected F16, F32 or F64"):
        fastrnn.load(path)


def test_a_character_model_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "model"
    safetensors.numpy.save_file({"a": np.ones(2)}, path, {"fastrnn character model": "{}"})
    with pytest.raises(ValueError, match=r"model holds a character model: .*CharacterModel\.load\(path\)"):
        fastrnn.load(path)


def test_paths_may_be_bytes(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "model")
    layer = fastrnn.GRU(3, 5, seed=1)
    layer.save(path)
    assert_same_dict(fastrnn.load(path).parameters, layer.parameters)


@pytest.mark.parametrize("contents", [b"", b"not tensors at all", b"\xff" * 100])
def test_other_files_are_refused(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        fastrnn.load(path)


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """It stays one, and its reader gets what a file would hold."""
    layer, pipe, file = fastrnn.GRU(2, 3, seed=0), tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        layer.save(pipe)
        layer.save(file)
        assert read.result() == file.read_bytes()
    assert pipe.is_fifo()


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastrnn.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        fastrnn.load(tmp_path)
    with pytest.raises(IsADirectoryError) as caught:
        fastrnn.GRU(2, 3).save(tmp_path)
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path), None)
    assert str(caught.value).endswith(f": {str(tmp_path)!r}")
