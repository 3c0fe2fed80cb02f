"""Do arrays of other libraries go in and out by DLPack, in place where their layout allows?"""

from __future__ import annotations

import importlib
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import _core, functional
from fastrnn.layouts import DTYPES

torch = pytest.importorskip("torch")

T, B, IN, H = 5, 3, 4, 6


class Borrowed:
    """An array of a library that can give arrays by DLPack but not take them."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def normal(*shape: int, dtype: str = "float32") -> Any:
    return torch.randn(shape, dtype=getattr(torch, dtype))


def shares(tensor: Any, array: np.ndarray) -> bool:
    return bool(tensor.data_ptr() == array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_tensors_come_back_as_tensors(dtype: str, batch_first: bool, training: bool) -> None:
    layer = fastrnn.LSTM(IN, H, batch_first=batch_first, dtype=dtype, seed=1).train(training)
    shape = (B, T) if batch_first else (T, B)
    x = normal(*shape, IN, dtype=dtype)
    state = normal(1, B, H, dtype=dtype), normal(1, B, H, dtype=dtype)
    lengths, reset = torch.tensor([5, 0, 2]), torch.rand(shape) < 0.3
    y, (h_n, c_n) = layer(x, state, lengths=lengths, reset=reset)
    expected, (h, c) = layer(
        x.numpy(), tuple(part.numpy() for part in state), lengths=lengths.numpy(), reset=reset.numpy()
    )
    for ours, theirs in zip((y, h_n, c_n), (expected, h, c), strict=True):
        assert type(ours) is torch.Tensor
        np.testing.assert_array_equal(ours.numpy(), theirs)
    assert y.is_contiguous()


@pytest.mark.parametrize("beside_the_modules", [False, True])
def test_plain_calls_in_eval_mode_give_tensors(beside_the_modules: bool) -> None:
    if beside_the_modules:
        importlib.import_module("fastrnn.torch")
    layer, cell = fastrnn.LSTM(IN, H, seed=1).eval(), fastrnn.GRUCell(IN, H, seed=1).eval()
    x, state = normal(T, B, IN), (normal(1, B, H), normal(1, B, H))
    weights = layer.state_dict()
    for given in None, state:
        there = None if given is None else tuple(part.numpy() for part in given)
        calls = (
            (layer(x, given), layer(x.numpy(), there)),
            (functional.forward(layer._spec, weights, x, given), layer(x.numpy(), there)),
        )
        for (y, (h, c)), expected in calls:
            assert type(y) is type(h) is type(c) is torch.Tensor
            np.testing.assert_array_equal(y.numpy(), expected[0])
    assert type(cell(x[0])) is torch.Tensor
    assert type(layer.stream(B).step(x[0])) is torch.Tensor


def test_backward_gives_tensors_too() -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    x, dy = normal(T, B, IN), normal(T, B, H)
    layer(x)
    dx, dh = layer.backward(dy)
    layer(x.numpy())
    dx_expected, dh_expected = layer.backward(dy.numpy())
    np.testing.assert_array_equal(dx.numpy(), dx_expected)
    np.testing.assert_array_equal(dh.numpy(), dh_expected)


def test_x_is_read_in_place_and_results_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fastrnn.GRU(IN, H, seed=1).eval()
    seen: dict[str, Any] = {}
    compiled = _core.forward

    def spy(*arguments: Any) -> None:
        seen["x"], seen["state"], seen["y"] = arguments[2], arguments[3], arguments[7]
        compiled(*arguments)

    monkeypatch.setattr(_core, "forward", spy)
    wide = normal(T, B + 1, IN + 2)
    state = normal(1, B, H)
    for x in (normal(T, B, IN), wide[:, 1:, 1:-1], normal(B, T, IN).transpose(0, 1)):
        y, _ = layer(x, state)
        assert shares(x, seen["x"])
        assert shares(state, seen["state"])
        assert shares(y, seen["y"])
    x = normal(IN, T, B).permute(1, 2, 0)  # its last axis has no unit stride
    y, _ = layer(x)
    assert not shares(x, seen["x"])
    assert shares(y, seen["y"])


class Counted(torch.Tensor):
    """A tensor that counts how often it is exported."""

    exports = 0

    def __dlpack__(self, *arguments: Any, **options: Any) -> Any:
        Counted.exports += 1
        return super().__dlpack__(*arguments, **options)


@pytest.mark.parametrize("work", ["layer", "cell", "step", "run", "tokens"])
def test_x_is_exported_once(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, cell = fastrnn.GRU(IN, H, seed=1).eval(), fastrnn.GRUCell(IN, H, seed=1)
    x = normal(T, B, IN).as_subclass(Counted)
    monkeypatch.setattr(Counted, "exports", 0)
    if work == "tokens":
        layer(torch.zeros((T, B), dtype=torch.int32).as_subclass(Counted))
    elif work == "step":
        layer.stream(B).step(x[0])
    elif work == "run":
        layer.stream(B).run(x)
    else:
        layer(x) if work == "layer" else cell(x[0])
    assert Counted.exports == 1


def test_a_training_result_is_kept_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    x = normal(T, B, IN)
    y, _ = layer(x)
    assert shares(x, layer._pending.call.x)
    assert shares(y, layer._pending.y)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8"])
def test_tokens_and_empty_batches(kind: str) -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    y, _ = layer(torch.randint(IN, (T, B)).to(getattr(torch, kind)))
    assert tuple(y.shape) == (T, B, H)
    dx, dh = layer.backward(torch.ones_like(y))
    assert dx is None
    assert type(dh) is torch.Tensor
    y, h_n = layer(normal(T, 0, IN))
    assert (tuple(y.shape), tuple(h_n.shape)) == ((T, 0, H), (1, 0, H))


def test_cells_and_streams() -> None:
    cell = fastrnn.LSTMCell(IN, H, seed=1)
    h, c = cell(normal(B, IN))
    h, c = cell(normal(B, IN), (h, c))
    assert type(h) is type(c) is torch.Tensor
    layer = fastrnn.GRU(IN, H, seed=1).eval()
    stream = layer.stream(batch=B)
    x = normal(T, B, IN)
    y, h_n = layer(x)
    for t in range(T - 1):
        step = stream.step(x[t], rows=torch.arange(B))
        assert type(step) is torch.Tensor
        np.testing.assert_array_equal(step.numpy(), y[t].numpy())
    np.testing.assert_array_equal(stream.run(x[-1:]).numpy(), y[-1:].numpy())
    np.testing.assert_array_equal(stream.state, h_n.numpy())
    stream.reset(torch.tensor([True, False, True]))
    assert not stream.state[:, [0, 2]].any()
    stream.state = h_n
    np.testing.assert_array_equal(stream.state, h_n.numpy())


def test_functional_takes_and_fills_tensors() -> None:
    spec = functional.Spec("gru", IN, H)
    parameters = {name: normal(*shape) for name, shape in spec.parameter_shapes().items()}
    x = normal(T, B, IN)
    y, h_n = torch.empty(T, B, H), torch.empty(1, B, H)
    results = functional.forward(spec, parameters, x, out=(y, h_n))
    assert results[0] is y
    assert results[1] is h_n
    *again, reserve = functional.forward_train(spec, functional.pack(spec, parameters), x)
    assert torch.equal(again[0], y)
    assert torch.equal(again[1], h_n)
    gradients = {name: torch.empty(shape) for name, shape in spec.parameter_shapes().items()}
    dx, dh, filled = functional.backward(spec, parameters, reserve, y, out=(None, None, gradients))
    assert filled is gradients
    allocated = functional.backward(spec, parameters, reserve, y)
    assert torch.equal(allocated[0], dx)
    assert torch.equal(allocated[1], dh)
    assert all(torch.equal(allocated[2][name], gradients[name]) for name in gradients)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_of_torch_loads_as_it_is(training: bool) -> None:
    theirs = torch.nn.LSTM(IN, H, num_layers=2, bidirectional=True, proj_size=2)
    layer = fastrnn.LSTM(IN, H, num_layers=2, bidirectional=True, proj_size=2).train(training)
    layer.load_state_dict(dict(theirs.named_parameters()))  # these require grad
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(layer.parameters[name], tensor.numpy())
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in layer.state_dict().items()})
    fastrnn.GRU(IN, H).load_state_dict(torch.nn.GRU(IN, H).double().state_dict())


def test_a_tensor_that_requires_grad_is_refused() -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    x = normal(T, B, IN).requires_grad_()
    with pytest.raises(TypeError, match=r"^x requires grad.*x.detach\(\).*fastrnn.torch"):
        layer(x)
    with pytest.raises(TypeError, match=r"^state requires grad"):
        layer(x.detach(), torch.nn.Parameter(normal(1, B, H)))
    y, _ = layer(x.detach())
    with pytest.raises(TypeError, match=r"^dy requires grad"):
        layer.backward(y.clone().requires_grad_())
    layer.backward(y)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (lambda: normal(T, B, IN, dtype="float64"), r"x is float64; expected float32.*x.to\(torch.float32\)"),
        (lambda: normal(T, B, IN, dtype="float16"), "x is float16; expected float32"),
        (lambda: normal(T, B, IN, dtype="bfloat16"), r"x \(torch.bfloat16\) cannot be taken by DLPack"),
        (lambda: normal(T, IN).to_sparse(), r"x \(torch.float32\) cannot be taken by DLPack"),
        (lambda: normal(T, B, IN).to(torch.complex64), "x is complex64; expected float32"),
        (lambda: Borrowed(np.ones((T, B, IN), "float32")), r"x has type Borrowed.*pass np.from_dlpack\(x\)"),
    ],
)
def test_what_cannot_be_taken_is_named(x: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fastrnn.GRU(IN, H)(x())


def test_an_array_elsewhere_is_refused() -> None:
    x = Borrowed(np.ones((T, B, IN), "float32"), device=(2, 0))
    with pytest.raises(ValueError, match="x is on DLPack device type 2; expected the CPU"):
        fastrnn.GRU(IN, H)(x)


def test_a_library_that_cannot_take_arrays_may_still_give_state() -> None:
    layer, x = fastrnn.GRU(IN, H, seed=1), np.ones((T, B, IN), "float32")
    h = np.full((1, B, H), 0.5, "float32")
    np.testing.assert_array_equal(layer(x, Borrowed(h))[0], layer(x, h)[0])


def test_tensors_without_memory_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"x \(torch.float32\) cannot be taken by DLPack"):
        fastrnn.GRU(IN, H)(torch.ones((T, B, IN), device="meta"))


def test_a_checkpoint_may_be_bfloat16() -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    state = {name: torch.tensor(array).bfloat16() for name, array in layer.parameters.items()}
    state["bias_hh_l0"].requires_grad_()
    layer.load_state_dict(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(layer.parameters[name], tensor.detach().float().numpy())
    with pytest.raises(TypeError, match=r"x \(torch.bfloat16\) cannot be taken"):
        layer(normal(T, B, IN).bfloat16())
