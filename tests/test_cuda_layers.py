"""Layers with device="cuda": do they keep the promises of the CPU's, and hand arrays over without a copy?

Without a GPU these run on an emulated device (conftest.py), whose memory is the host's.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fastrnn
import numpy as np
import pytest
from devices import device_array
from fastrnn import _device, functional
from fastrnn._backends import on_host
from fastrnn.layouts import Spec
from fastrnn.training import (
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Linear,
    RMSprop,
    clip_by_global_norm,
    log_likelihood,
    mean_squared_error,
    softmax_cross_entropy,
)
from tolerances import FACTOR, chain, size

pytestmark = pytest.mark.cuda

T, B, IN, H = 5, 3, 4, 6


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class Library:
    """What a foreign library hands over: `module` is where its arrays' from_dlpack is looked for."""

    taken: ClassVar[list[Any]] = []

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __array_namespace__(self) -> Any:
        return Library

    @staticmethod
    def from_dlpack(array: Any) -> Library:
        return Library(_device.module().from_dlpack(array, 1))


class Interface:
    """An array of a library that has no DLPack."""

    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.owner = array


def test_numpy_in_numpy_out() -> None:
    layer = fastrnn.LSTM(IN, H, device="cuda", seed=1)
    assert layer.device == "cuda:0"
    y, (h, c) = layer(normal(T, B, IN))
    dx, (dh, dc) = layer.backward(np.ones_like(y))
    for array in y, h, c, dx, dh, dc:
        assert type(array) is np.ndarray
        assert array.dtype == np.float32
    assert dx.shape == (T, B, IN)


def test_the_same_seed_gives_the_same_layer_on_both() -> None:
    here, there = (fastrnn.GRU(IN, H, seed=3, device=device) for device in ("cpu", "cuda"))
    for name, array in here.parameters.items():
        np.testing.assert_array_equal(there.parameters[name].numpy(), array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_layers(dtype: str) -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", dtype=dtype, seed=1)
    host = "float32" if dtype == "bfloat16" else dtype
    y, h = layer(normal(T, B, IN, dtype=host))
    assert y.dtype == h.dtype == host
    wide = fastrnn.GRU(IN, H, dtype="float64")
    wide.load_state_dict({name: array.numpy() for name, array in layer.parameters.items()})
    given = device_array(normal(T, B, IN, dtype=host), dtype).numpy()
    # x and h are rounded in every step; each gate is at most 1, and so is what a step makes of an error.
    eps = 2.0 ** (-8 if dtype == "bfloat16" else -11)
    assert np.abs(y - wide(given.astype("float64"))[0]).max() <= 4 * eps * np.sqrt(T)
    with pytest.raises(TypeError, match=f"x is float64; expected {host}"):
        layer(normal(T, B, IN, dtype="float64"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_cpu_has_no_16_bit_layers(dtype: str) -> None:
    with pytest.raises(TypeError, match=f"dtype is '{dtype}'; expected 'float32' or 'float64'"):
        fastrnn.GRU(IN, H, dtype=dtype)
    layer = fastrnn.GRU(IN, H, dtype=dtype, device="cuda", seed=1)
    with pytest.raises(TypeError, match=f"dtype is '{dtype}'"):
        layer.to("cpu")
    assert layer.device == "cuda:0"
    assert layer.to("cpu", dtype="float32").parameters["bias_hh_l0"].dtype == np.float32


# ------------------------------------------------------------------------------- other libraries


def test_a_library_gets_results_back_without_a_copy() -> None:
    layer = fastrnn.LSTM(IN, H, device="cuda", seed=1)
    x = normal(T, B, IN)
    expected, _ = layer(x)
    y, (h, c) = layer(Library(device_array(x)))
    assert type(y) is type(h) is type(c) is Library
    np.testing.assert_array_equal(y.array.numpy(), expected)
    dx, _ = layer.backward(Library(device_array(np.ones_like(expected))))
    assert type(dx) is Library
    layer(x)
    np.testing.assert_array_equal(dx.array.numpy(), layer.backward(np.ones_like(expected))[0])


def test_kernels_read_a_caller_s_memory() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", batch_first=True, seed=1)
    x = device_array(normal(B, T, IN))
    layer(Library(x))
    call = layer._pending.call
    assert call.x.ptr == x.ptr
    assert call.x.shape == (T, B, IN)


class Tensor(Library):
    """A stand-in for torch.Tensor on a device, whose library works on a stream of its own."""

    told: ClassVar[list[int]] = []

    def __dlpack__(self, stream: int, **options: Any) -> Any:
        if self.get_device() != Torch.current:
            raise BufferError("Can't export tensors on a different CUDA device index.")
        self.told.append(stream)
        return self.array.__dlpack__(stream=-1, **options)

    def get_device(self) -> int:
        return self.__dlpack_device__()[1]


Tensor.__module__ = "torch"


class Nowhere:
    """An array that cannot even say where it is, as torch's of device "meta"."""

    def __dlpack__(self, **options: Any) -> Any:
        raise ValueError("nothing to share")

    def __dlpack_device__(self) -> tuple[int, int]:
        raise ValueError("no such device")


def test_arrays_that_are_nowhere() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    with pytest.raises(TypeError, match=r"x \(Nowhere\) cannot be taken by DLPack: no such device"):
        layer(Nowhere())
    with pytest.raises(TypeError, match=r"state \(Nowhere\) cannot be taken"):
        layer(normal(T, B, IN), Nowhere())
    state = layer.state_dict() | {"bias_ih_l0": Nowhere()}
    with pytest.raises(TypeError, match=r"state_dict\['bias_ih_l0'\] \(Nowhere\) cannot be taken"):
        layer.load_state_dict(state)


class Subclass(Tensor):
    """Of a class that a caller derived from torch's."""


class Torch(SimpleNamespace):
    """A stand-in for torch, which allocates on a device and has a current one and a current stream."""

    current = 0
    """The device."""

    def __init__(self) -> None:
        self.stream = SimpleNamespace(cuda_stream=0x77)
        self.made: list[Tensor] = []
        cuda = SimpleNamespace(
            is_initialized=lambda: True,
            current_stream=lambda index: self.stream,
            current_device=lambda: Torch.current,
            device=self.device,
        )
        super().__init__(Tensor=Tensor, cuda=cuda, from_dlpack=lambda array: array, float32="float32")

    @staticmethod
    @contextmanager
    def device(index: int) -> Iterator[None]:
        before, Torch.current = Torch.current, index
        yield
        Torch.current = before

    def empty(self, shape: tuple[int, ...], dtype: str, device: str) -> Tensor:
        index = int(device.removeprefix("cuda:"))
        self.made.append(Tensor(device_array(np.full(shape, np.nan, dtype), device=index)))
        return self.made[-1]


@pytest.mark.parametrize("kind", [Tensor, Subclass])
def test_torch_allocates_results_and_names_the_stream(
    kind: type[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    if _device.module().__name__ != "_cuda_emulated":
        pytest.skip("the streams of this test are on an emulated device alone")
    torch = Torch()
    layer = fastrnn.GRU(IN, H, device="cuda", batch_first=True, seed=1)
    expected, _ = layer(normal(B, T, IN))
    monkeypatch.setitem(sys.modules, "torch", torch)
    Tensor.told.clear()
    y, h = layer(kind(device_array(normal(B, T, IN))))
    # The stream of the caller is where the work is queued, so that nobody is asked to wait ...
    assert set(Tensor.told) == {-1}
    assert y.stream == h.stream == layer.parameters["bias_hh_l0"].stream == 0x77
    # ... and results lie in the caller's memory.
    assert [y.ptr, h.ptr] == [tensor.array.ptr for tensor in torch.made]
    np.testing.assert_array_equal(y.numpy(), expected)
    # Another stream than that of the forward call has to be waited for.
    torch.stream.cuda_stream = 0x99
    dx, _ = layer.backward(kind(device_array(np.ones_like(expected))))
    assert Tensor.told[-3] == 0x77
    assert dx.shape == (B, T, IN)
    layer.zero_grad()
    assert layer.gradients["bias_hh_l0"].stream == 0x99


def test_torch_s_current_device_need_not_be_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    if _device.module().device_count() < 2:
        pytest.skip("there is one device")
    layer = fastrnn.GRU(IN, H, device="cuda:1", seed=1)
    x = normal(T, B, IN)
    expected, _ = layer(x)
    torch = Torch()
    torch.stream.cuda_stream = 0
    monkeypatch.setitem(sys.modules, "torch", torch)
    y, _ = layer(Tensor(device_array(x, device=1)))
    assert y.device == "cuda:1"
    np.testing.assert_array_equal(y.numpy(), expected)
    layer.parameters["bias_hh_l0"][...] = Tensor(device_array(np.ones(3 * H, "float32"), device=1))
    assert (layer.parameters["bias_hh_l0"].numpy() == 1).all()
    with pytest.raises(ValueError, match="x is on cuda:0; expected cuda:1"):
        layer(Tensor(device_array(x)))
    assert Torch.current == 0


@pytest.mark.parametrize("wrap", [Interface, lambda array: array], ids=["interface", "own"])
def test_arrays_without_a_library_give_device_arrays(wrap: Any) -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    x = normal(T, B, IN)
    y, h = layer(wrap(device_array(x)))
    expected, h_expected = layer(x)
    assert type(y) is _device.module().DeviceArray
    np.testing.assert_array_equal(y.numpy(), expected)
    np.testing.assert_array_equal(h.numpy(), h_expected)


def test_strided_input() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1).eval()
    wide = normal(T, B + 2, IN + 3)
    x, inner = device_array(wide), wide[:, 1:-1, :IN]
    # To rounding: products may be done by another kernel where rows are further apart.
    for given, same in (x[:, 1:-1, :IN], inner), (x[:, 1:-1, IN - 1 :: -1], inner[:, :, ::-1]):
        expected, _ = layer(np.ascontiguousarray(same))
        np.testing.assert_allclose(layer(given)[0].numpy(), expected, rtol=0, atol=1e-6)


def test_lengths_resets_and_tokens_on_the_device() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", bidirectional=True, seed=1).eval()
    tokens = np.random.default_rng(0).integers(0, IN, (T, B))
    lengths, reset = np.array([5, 0, 3]), np.random.default_rng(1).random((T, B)) < 0.3
    expected = layer(tokens, lengths=lengths, reset=reset)
    y, h = layer(device_array(tokens), lengths=device_array(lengths), reset=device_array(reset))
    np.testing.assert_array_equal(y.numpy(), expected[0])
    np.testing.assert_array_equal(h.numpy(), expected[1])
    with pytest.raises(TypeError, match="lengths is int32 on cuda:0; expected int64 there"):
        layer(tokens, lengths=device_array(lengths.astype("int32")))


# ------------------------------------------------------------------------------- what is refused


def test_arrays_of_another_device_or_dtype() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    with pytest.raises(TypeError, match="x is float64 on cuda:0; expected float32"):
        layer(device_array(normal(T, B, IN, dtype="float64")))
    with pytest.raises(ValueError, match=r"x has shape \(5, 3, 5\); expected \(T, B, I\)"):
        layer(device_array(normal(T, B, IN + 1)))
    with pytest.raises(ValueError, match="x is on DLPack device type 2; expected the CPU"):
        fastrnn.GRU(IN, H)(device_array(normal(T, B, IN)))
    if _device.module().device_count() > 1:
        with pytest.raises(ValueError, match="x is on cuda:1; expected cuda:0"):
            layer(device_array(normal(T, B, IN), device=1))


def test_host_inputs_are_checked_before_they_are_copied() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    x = normal(T, B, IN)
    with pytest.raises(ValueError, match=r"lengths\[1\] is 6; expected from 0 to T = 5"):
        layer(x, lengths=[1, 6, 2])
    with pytest.raises(ValueError, match="x holds the token 4; expected tokens from 0 to 3"):
        layer(np.full((T, B), IN))
    with pytest.raises(RuntimeError, match="backward without a training call"):
        layer.backward()


def test_devices_that_are_not_there() -> None:
    count = _device.module().device_count()
    with pytest.raises(RuntimeError, match=f"device='cuda:{count}' is not available: there are {count}"):
        fastrnn.GRU(IN, H, device=f"cuda:{count}")


def test_another_device_than_the_first() -> None:
    if _device.module().device_count() < 2:
        pytest.skip("there is one device")
    x, options = normal(T, B, IN), {"num_layers": 2, "dropout": 0.3, "seed": 1}
    results = []
    for device in "cuda:0", "cuda:1":
        layer = fastrnn.LSTM(IN, H, device=device, **options)
        optimizer = Adam([layer], learning_rate=0.01)
        y, _ = layer(x, lengths=[5, 0, 3])
        optimizer.zero_grad()
        dx, _ = layer.backward(np.ones_like(y))
        clip_by_global_norm([layer], 1.0)
        optimizer.step()
        stream = layer.eval().stream(batch=B)
        stream.step(x[0, 1:2], rows=[1])
        stream.reset(rows=[0])
        results.append([y, dx, stream.step(x[0]), *(a.numpy() for a in layer.state_dict().values())])
        assert layer.state_dict()["bias_hh_l0"].device == device
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
    moved = layer.to("cuda:0").parameters["bias_hh_l0"]
    assert moved.device == "cuda:0"
    np.testing.assert_array_equal(moved.numpy(), layer.to("cuda:1").parameters["bias_hh_l0"].numpy())


# -------------------------------------------------------------------------------- moving, copying


def test_to_and_back_keeps_everything() -> None:
    layer = fastrnn.LSTM(IN, H, num_layers=2, dropout=0.5, seed=1)
    x = normal(T, B, IN)
    for _ in range(2):
        y, _ = layer(x)
        layer.backward(np.ones_like(y))
    parameters, gradients = ({k: v.copy() for k, v in d.items()} for d in (layer.parameters, layer.gradients))
    twin = copy.copy(layer)
    assert layer.to("cuda") is layer
    assert layer.device == "cuda:0"
    assert layer.training
    np.testing.assert_allclose(layer(x)[0], twin(x)[0], rtol=0, atol=1e-6)  # the third mask
    assert layer.to("cpu").device == "cpu"
    np.testing.assert_array_equal(layer(x)[0], twin(x)[0])  # the fourth
    for name in parameters:
        np.testing.assert_array_equal(layer.parameters[name], parameters[name])
        np.testing.assert_array_equal(layer.gradients[name], gradients[name])
    assert not layer.eval().to("cuda").training


@pytest.mark.parametrize("masks", [{"dropout": 0.5}, {"recurrent_dropout": 0.5}, {"zoneout": 0.5}])
def test_masks_are_those_of_the_cpu(masks: dict[str, float]) -> None:
    """Of every call, also of those after a layer has moved."""
    x, results = normal(T, B, IN), []
    for device in "cpu", "cuda":
        layer = fastrnn.GRU(IN, H, num_layers=2, **masks, seed=7, device=device)
        results.append([layer(x)[0] for _ in range(3)])
        results[-1].append(layer.to("cpu")(x)[0])
    for here, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, here, rtol=0, atol=1e-6)
    assert np.abs(results[0][0] - results[0][1]).max() > 0.01  # each call has its own


def test_copies_and_files(tmp_path: Path) -> None:
    layer = fastrnn.GRU(IN, H, num_layers=2, dropout=0.5, dtype="bfloat16", device="cuda", seed=1)
    x = normal(T, B, IN)
    layer(x)
    layer.save(tmp_path / "layer.safetensors")
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    copies.append(fastrnn.load(tmp_path / "layer.safetensors", device="cuda"))
    expected, _ = layer(x)
    for twin in copies:
        assert twin.device == "cuda:0"
        assert twin.dtype == "bfloat16"
        np.testing.assert_array_equal(twin(x)[0], expected)
    with pytest.raises(ValueError, match="dtype is 'bfloat16'; expected 'float32' or 'float64'"):
        fastrnn.load(tmp_path / "layer.safetensors")


def test_state_dict() -> None:
    layer, other = (fastrnn.GRU(IN, H, device="cuda", seed=seed) for seed in (1, 2))
    x = normal(T, B, IN)
    for mode in True, False:
        state = layer.train(mode).state_dict()
        state["bias_hh_l0"][...] = 3  # a copy
        other.train(mode).load_state_dict(layer.state_dict())
        np.testing.assert_array_equal(other(x)[0], layer(x)[0])
    other.load_state_dict({name: array.numpy().astype("float64") for name, array in state.items()})
    np.testing.assert_array_equal(other.parameters["bias_hh_l0"].numpy(), np.full(3 * H, 3, "float32"))
    with pytest.raises(ValueError, match="missing weight_ih_l0"):
        layer.load_state_dict({})


def test_parameters_are_read_only_in_eval_mode() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    parameter = layer.parameters["bias_hh_l0"]
    layer.eval()
    assert layer.parameters["bias_hh_l0"] is parameter
    with pytest.raises(ValueError, match="read-only"):
        parameter[...] = 0
    layer.train()
    parameter[...] = 0
    assert not layer.parameters["bias_hh_l0"].numpy().any()


def test_gradients_accumulate() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    x = normal(T, B, IN)
    once = {}
    for count in 1, 2:
        y, _ = layer(x)
        layer.backward(np.ones_like(y))
        for name, gradient in layer.gradients.items():
            once.setdefault(name, gradient.numpy())
            np.testing.assert_array_equal(gradient.numpy(), count * once[name])
    layer.zero_grad()
    assert not any(gradient.numpy().any() for gradient in layer.gradients.values())


# --------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    "make",
    [partial(SGD, momentum=0.9), AdaGrad, RMSprop, Adam, partial(AdamW, weight_decay=0.3)],
    ids=["sgd", "adagrad", "rmsprop", "adam", "adamw"],
)
def test_optimizers(make: Any, dtype: str) -> None:
    host = "float32" if dtype == "bfloat16" else dtype
    there = fastrnn.GRU(IN, H, device="cuda", dtype=dtype, seed=1)
    here = fastrnn.GRU(IN, H, dtype=host)
    here.load_state_dict({name: array.numpy() for name, array in there.parameters.items()})
    optimizers = make([there], learning_rate=0.01), make([here], learning_rate=0.01)
    rng = np.random.default_rng(0)
    for step in range(3):
        for name, gradient in here.gradients.items():
            gradient[...] = 4 * rng.standard_normal(gradient.shape)
            there.gradients[name][...] = gradient
            gradient[...] = there.gradients[name].numpy()
        norms = [clip_by_global_norm([layer], 1.0) for layer in (there, here)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        for optimizer in optimizers:
            optimizer.step()
        # Each step rounds the gradient, when it is clipped, and the parameter, both at most 1.
        allowed = 4 * (step + 1) * {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8}[dtype]
        for name, array in here.parameters.items():
            assert np.abs(there.parameters[name].numpy() - array).max() <= allowed
    assert optimizers[0].steps == 3
    resumed = make([there], learning_rate=0.5)
    resumed.load_state_dict(optimizers[0].state_dict())
    kept = resumed.state_dict()
    for name, array in optimizers[0].state_dict().items():
        np.testing.assert_array_equal(kept[name], array)
    optimizers[0].zero_grad()
    assert not any(gradient.numpy().any() for gradient in there.gradients.values())
    there.eval()
    with pytest.raises(RuntimeError, match="is in eval mode"):
        optimizers[0].step()
    there.train().to("cpu", dtype="float64")
    with pytest.raises(RuntimeError, match="a parameter is on cpu, but was on cuda:0 when"):
        optimizers[0].step()


@pytest.mark.parametrize("make", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_an_optimizer_is_copied_with_its_layer(make: Any) -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    optimizer = Adam([layer], learning_rate=0.01)
    for gradient in layer.gradients.values():
        gradient[...] = 0.5
    optimizer.step()
    twin, its_own = make((layer, optimizer))
    before = layer.parameters["bias_hh_l0"].numpy()
    its_own.step()
    np.testing.assert_array_equal(layer.parameters["bias_hh_l0"].numpy(), before)
    optimizer.step()
    assert its_own.steps == optimizer.steps == 2
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(twin.parameters[name].numpy(), array.numpy())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (np.ones(3, "float64"), TypeError, r"gradients\[1\] is float64; expected float32"),
        (np.ones(4, "float32"), ValueError, r"gradients\[1\] has shape \(4,?\); expected \(3,?\)"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_that_is_refused_changes_nothing(
    device: str, wrong: np.ndarray, error: type[Exception], message: str
) -> None:
    place = device_array if device == "cuda" else np.array
    module = SimpleNamespace(
        parameters={name: place(np.ones(3, "float32")) for name in "ab"},
        gradients={"a": place(np.ones(3, "float32")), "b": place(wrong)},
    )
    optimizer = Adam([module], learning_rate=0.1)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert optimizer.steps == 0
    for name in "ab":
        np.testing.assert_array_equal(on_host(module.parameters[name]), np.ones(3))


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    layer.gradients["bias_hh_l0"][3] = np.nan
    with pytest.raises(FloatingPointError, match="the norm of the gradients is nan"):
        clip_by_global_norm([layer], 1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool, dtype: str) -> None:
    host = "float32" if dtype == "bfloat16" else dtype
    there = Linear(IN, H, bias, dtype=dtype, seed=1, device="cuda")
    here = Linear(IN, H, bias, dtype=host)
    for name, array in there.parameters.items():
        here.parameters[name][...] = array.numpy()
    x, dy = (
        device_array(normal(T, B, IN, dtype=host), dtype),
        device_array(normal(T, B, H, dtype=host), dtype),
    )
    eps = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-9}[dtype]
    for count in 1, 2:
        y, dx = there(x), there.backward(dy)
        expected, dx_expected = here(x.numpy()), here.backward(dy.numpy())
        pairs = [(y, expected), (dx, dx_expected)]
        pairs += [(there.gradients[name], here.gradients[name]) for name in here.gradients]
        for result, reference in pairs:
            assert result.shape == reference.shape
            # Sums of at most 30 products, each at most three times as large as the largest result.
            allowed = 4 * count * eps * np.sqrt(T * B) * max(np.abs(reference).max(), 1)
            assert np.abs(result.numpy() - reference).max() <= allowed
    assert type(there(x.numpy())) is np.ndarray
    there.zero_grad()
    assert not there.gradients["weight"].numpy().any()
    with pytest.raises(ValueError, match=r"x has shape \(3, 5\); expected \(..., 4\)"):
        there(normal(B, IN + 1, dtype=host))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("size", [1, 31, 33, 70])
def test_softmax_cross_entropy(size: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits = (5 * rng.standard_normal((T, B, size))).astype(dtype)
    targets, mask = rng.integers(0, size, (T, B)), rng.random((T, B)) < 0.6
    logits[~mask] = np.nan
    targets[~mask] = -1
    expected, dexpected = softmax_cross_entropy(logits.astype("float64"), targets, mask)
    loss, dlogits = softmax_cross_entropy(device_array(logits), targets, device_array(mask))
    eps = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11}[dtype]
    # exp multiplies the rounding of its argument, at most 30, into what is at most 1.
    assert loss == pytest.approx(expected, abs=64 * max(2.0**-53, min(eps, 2.0**-24)))
    assert np.abs(dlogits.numpy() - dexpected).max() <= 64 * min(eps, 2.0**-24) + eps
    with pytest.raises(ValueError, match=r"targets range from"):
        softmax_cross_entropy(device_array(logits), targets)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_mean_squared_error(dtype: str) -> None:
    rng = np.random.default_rng(0)
    host = "float32" if dtype == "bfloat16" else dtype
    outputs = device_array(rng.standard_normal((T, B, H)).astype(host), dtype)
    targets, mask = rng.standard_normal((T, B, H)), rng.random((T, B)) < 0.6
    wide = outputs.numpy().astype("float64")
    eps = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for reduction in "mean", "sum":
        loss, error = mean_squared_error(outputs, targets, device_array(mask), reduction=reduction)
        expected, slope = mean_squared_error(wide, targets, mask, reduction=reduction)
        assert (error.dtype, error.device) == (dtype, "cuda:0")
        assert loss == pytest.approx(expected, rel=4 * max(eps**2, 2.0**-23))
        np.testing.assert_allclose(error.numpy(), slope, rtol=0, atol=eps * np.abs(slope).max())
    with pytest.raises(ValueError, match=r"targets have shape \(2,\); expected \(5, 3, 6\)"):
        mean_squared_error(outputs, [1, 2])
    with pytest.raises(TypeError, match="outputs are int64; expected one of float32"):
        mean_squared_error(device_array(np.zeros(3, int)), np.zeros(3))


def test_losses_take_targets_and_masks_from_the_device() -> None:
    logits = normal(T, B, H)
    targets, mask = np.arange(T * B).reshape(T, B) % H, np.arange(T * B).reshape(T, B) % 3 > 0
    there = device_array(targets), device_array(mask)
    for loss in softmax_cross_entropy, log_likelihood:
        expected = loss(logits, targets, mask)
        for place in np.array, device_array:
            results = loss(place(logits), *there)
            for one, other in zip(results, expected, strict=True):
                values = one if isinstance(one, float) else on_host(one)
                np.testing.assert_allclose(values, other, rtol=0, atol=1e-6)
    squared, gradient = mean_squared_error(logits, device_array(logits + 1), device_array(mask))
    assert squared == pytest.approx(1, rel=1e-5)
    assert type(gradient) is np.ndarray


def test_training_on_the_device_alone() -> None:
    rng = np.random.default_rng(0)
    rnn, readout = fastrnn.GRU(4, 8, device="cuda", seed=0), Linear(8, 4, seed=1, device="cuda")
    optimizer = Adam([rnn, readout], learning_rate=0.03)
    tokens = rng.integers(0, 4, (6, 8))
    x, losses = device_array(tokens), []
    for _ in range(25):
        y, _ = rnn(x)
        loss, dlogits = softmax_cross_entropy(readout(y), x)
        losses.append(loss)
        optimizer.zero_grad()
        rnn.backward(readout.backward(dlogits))
        optimizer.step()
    assert losses[-1] < losses[0] / 4


def test_training_learns() -> None:
    rng = np.random.default_rng(0)
    layer, readout = fastrnn.GRU(1, 8, device="cuda", seed=0), Linear(8, 1, seed=1)
    optimizer = Adam([layer, readout], learning_rate=0.02)
    x = rng.standard_normal((6, 8, 1), dtype=np.float32)
    losses = []
    for _ in range(30):
        y, _ = layer(x)
        error = readout(y) - x
        losses.append(float(np.mean(error**2)))
        optimizer.zero_grad()
        layer.backward(readout.backward(2 * error / error.size))
        clip_by_global_norm([layer, readout], 1.0)
        optimizer.step()
    assert losses[-1] < losses[0] / 4


# ---------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streams(dtype: str) -> None:
    layer = fastrnn.LSTM(IN, H, num_layers=2, device="cuda", dtype=dtype, seed=1).eval()
    stream, x = layer.stream(batch=B), normal(T, B, IN)
    tolerance = 1e-6 if dtype == "float32" else 2.0**-6
    expected, (h_n, c_n) = layer(x)
    steps = np.stack([stream.step(x[t]) for t in range(T)])
    np.testing.assert_allclose(steps, expected, rtol=0, atol=tolerance)
    h, c = stream.state
    assert (h.dtype, c.dtype) == (dtype, "float32")  # c never leaves float32 between steps
    np.testing.assert_allclose(h.numpy(), h_n, rtol=0, atol=tolerance)
    np.testing.assert_allclose(c.numpy(), c_n, rtol=0, atol=tolerance)

    # Some rows alone; the others stay.
    before = h.numpy()
    stream.step(x[0, [2, 0]], rows=[2, 0])
    after = stream.state[0].numpy()
    assert (before[:, 1] == after[:, 1]).all()
    assert (before[:, [0, 2]] != after[:, [0, 2]]).any(axis=(0, 2)).all()

    # State out and in, resets, whole sequences.
    stream.state = (h, c.numpy())
    assert (stream.state[0].numpy() == before).all()
    stream.reset(rows=[1])
    assert not stream.state[1].numpy()[:, 1].any()
    assert stream.state[1].numpy()[:, 0].any()
    stream.reset(rows=np.array([True, False, False]))
    assert not stream.state[0].numpy()[:, :2].any()
    stream.reset()
    np.testing.assert_allclose(stream.run(x), expected, rtol=0, atol=tolerance)
    with pytest.raises(ValueError, match=r"rows\[0\] is 3; expected from 0 to 2"):
        stream.step(x[0, :1], rows=[3])
    layer.train()
    with pytest.raises(RuntimeError, match="no longer has"):
        stream.step(x[0])


def test_stream_of_device_arrays() -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1).eval()
    stream, x = layer.stream(batch=B), device_array(normal(T, B, IN))
    steps = [stream.step(x[t]).numpy() for t in range(T)]
    np.testing.assert_allclose(np.stack(steps), layer(x)[0].numpy(), rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------- functional


def test_functional_runs_where_the_parameters_are() -> None:
    spec = Spec("lstm", IN, H, num_layers=2)
    weights = {name: normal(*shape, seed=1) for name, shape in spec.parameter_shapes().items()}
    there = {name: device_array(array) for name, array in weights.items()}
    x = normal(T, B, IN)
    y, _, reserve = functional.forward_train(spec, there, device_array(x))
    expected, _, expected_reserve = functional.forward_train(spec, weights, x)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-5)
    results = functional.backward(spec, there, reserve, dy=device_array(np.ones_like(expected)))
    references = functional.backward(spec, weights, expected_reserve, dy=np.ones_like(expected))
    np.testing.assert_allclose(results[0].numpy(), references[0], rtol=0, atol=1e-4)
    for name in weights:
        np.testing.assert_allclose(results[2][name].numpy(), references[2][name], rtol=1e-4, atol=1e-4)


def test_functional_outputs() -> None:
    spec = Spec("gru", IN, H)
    weights = {name: device_array(normal(*shape)) for name, shape in spec.parameter_shapes().items()}
    packed = functional.pack(spec, weights)
    x = device_array(normal(T, B, IN))
    expected, _ = functional.forward(spec, packed, x)
    weights["bias_hh_l0"][...] = 9  # does not reach what was packed
    out = device_array(np.full((T, B, H), np.nan, "float32"))
    y, _ = functional.forward(spec, packed, x, out=out)
    assert y is out
    np.testing.assert_array_equal(out.numpy(), expected.numpy())
    square = Spec("gru", IN, IN)
    zeros = {n: device_array(np.zeros(s, "float32")) for n, s in square.parameter_shapes().items()}
    same = device_array(np.zeros((T, B, IN), "float32"))
    with pytest.raises(ValueError, match=r"out \(y\) overlaps x in memory"):
        functional.forward(square, zeros, same, out=same[...])
    with pytest.raises(TypeError, match=r"out \(y\) has type ndarray; expected an array on cuda:0"):
        functional.forward(spec, packed, x, out=np.empty((T, B, H), "float32"))


# ------------------------------------------------------------------------------------------- words


def test_info_and_explain() -> None:
    report = fastrnn.info()
    assert report["cuda"][0].startswith("cuda:0 ")
    assert report["cublas"]
    layer = fastrnn.LSTM(IN, H, device="cuda", seed=1)
    assert layer.explain(normal(T, B, IN))["strategy"] == "step"
    assert not {"zoneout", "recurrent_dropout"} & set(layer.explain(normal(T, B, IN)))
    noise = {"recurrent_dropout": 0.25, "zoneout": (0.1, 0.05)}
    here, there = (fastrnn.LSTM(IN, H, device=device, **noise) for device in ("cpu", "cuda"))
    for _ in range(2):  # training, inference
        said, own = (one.explain(normal(T, B, IN)) for one in (there, here))
        assert {name: said[name] for name in noise} == {name: own[name] for name in noise}
        here.eval(), there.eval()
    before = fastrnn.get_float32_products()
    fastrnn.set_float32_products("tf32")
    try:
        assert fastrnn.info()["float32_products"] == "tf32"
        assert "tf32" in str(layer.explain(normal(T, B, IN)))
    finally:
        fastrnn.set_float32_products(before)


@pytest.mark.parametrize("hidden", [1, 2, 5, 33, 64])
@pytest.mark.parametrize("size", [1, 2.5], ids=["default", "larger"])
@pytest.mark.parametrize("nonlinearity", ["identity", "tanh"])
def test_float32_stays_float32(nonlinearity: str, size: float, hidden: int) -> None:
    """Off by at most 2e-5 with the initial weights, or else by 20 times what the CPU's float32 is.

    Few units, whose weights come back at every step, show best what a product leaves out of them.
    """
    steps = 50 if hidden < 5 else 16
    options: dict[str, Any] = {"nonlinearity": nonlinearity, "seed": 2}
    there, here, wide = (
        fastrnn.RNN(hidden, hidden, device=device, dtype=dtype, **options)
        for device, dtype in (("cuda", "float32"), ("cpu", "float32"), ("cpu", "float64"))
    )
    for name, array in here.parameters.items():
        array *= size
        there.parameters[name][...] = array
        wide.parameters[name][...] = array
    x = normal(steps, 8, hidden)
    results = [layer(x.astype(layer.dtype))[0] for layer in (there, here, wide)]
    largest = np.abs(results[2]).max()
    error, plain = (np.abs(result - results[2]).max() / largest for result in results[:2])
    assert error <= (max(2e-5, 20 * plain) if size == 1 else 20 * plain)


def test_a_launch_that_is_insisted_on_is_made() -> None:
    core = _device.module()
    x = device_array(normal(T, 9, IN))
    layer = fastrnn.GRU(IN, 96, device="cuda", seed=1).eval()  # fewer would go step by step
    network = layer._backend.network(layer._spec)
    launches = network.launches(T, 9, backward=False)
    assert all(launch["estimate"] > 0 for launch in launches)
    found = {launch["strategy"]: launch for launch in launches}
    if not found:
        pytest.skip("this device has room for no persistent kernel")
    expected = layer(x)[0].numpy()
    # Products there are bf16x3, each 2^-16 off.
    allowed = FACTOR * 2.0**-16 * np.sqrt(chain(layer._spec, T)) * size(expected)
    try:
        for strategy, launch in found.items():
            sizes = {name: value for name, value in launch.items() if name != "estimate"}
            core.set_wish(**sizes)
            report = layer.explain(x)
            assert report["strategy"] == strategy
            assert f"every {launch['columns']} rows" in report["strategy_reason"]
            assert strategy == "cta" or f"of {launch['ranks']} CTAs" in report["strategy_reason"]
            np.testing.assert_allclose(layer(x)[0].numpy(), expected, rtol=0, atol=allowed)
        core.set_wish("cluster", ranks=3)
        assert "does not fit" in layer.explain(x)["strategy_reason"]
        core.set_wish("step")
        assert layer.explain(x)["strategy"] == "step"
        for words in ({"strategy": "grid"}, {"tile": "broad"}):
            with pytest.raises(ValueError, match="which is none of its values"):
                core.set_wish(**words)
            assert "as asked for" in layer.explain(x)["strategy_reason"], "nothing has changed"
        layer.train()
        chosen = layer.explain(x)["strategy"]
        for strategy in {launch["strategy"] for launch in network.launches(T, 9, backward=True)}:
            core.set_wish(strategy, backward=True)
            assert layer.explain(x)["backward_strategy"] == strategy
            assert layer.explain(x)["strategy"] == chosen
    finally:
        core.set_wish()
        core.set_wish(backward=True)
    assert "asked" not in str(layer.explain(x))
