"""Are the modules of fastrnn.torch torch.nn's: arguments, attributes, results, gradients, errors, copies?"""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import io
import itertools
import pickle
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shapes import make_spec
from tolerances import assert_close, chain, size

torch = pytest.importorskip("torch")
import fastrnn.torch as ours  # noqa: E402
from fastrnn.torch import _kernels  # noqa: E402
from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "lstm-proj": ("LSTM", {"proj_size": 5}),
    "gru": ("GRU", {}),
    "rnn-tanh": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
    "rnn-tanh": ("RNNCell", {}),
    "rnn-relu": ("RNNCell", {"nonlinearity": "relu"}),
}
INPUT, HIDDEN, STEPS, BATCH = 7, 9, 6, 5


def pair(variant: str, *, cell: bool = False, **options: Any) -> tuple[Any, Any]:
    """Return torch.nn's module and ours, each made after the same seed."""
    name, own = (CELLS if cell else KINDS)[variant]
    made = []
    for library in (torch.nn, ours):
        torch.manual_seed(7)
        made.append(getattr(library, name)(INPUT, HIDDEN, **own, **options))
    return made[0], made[1]


def flat(results: Any) -> list[Any]:
    """Return the tensors of what a module returned, in order."""
    if isinstance(results, PackedSequence):
        return [results.data]
    if isinstance(results, tuple | list):
        return [tensor for part in results for tensor in flat(part)]
    return [results]


def state_of(module: Any, batch: int | None) -> Any:
    """Draw a state."""
    n = module.num_layers * (2 if module.bidirectional else 1)
    dtype = module.weight_ih_l0.dtype
    widths = [module.proj_size or module.hidden_size, module.hidden_size]
    h, c = (torch.randn((n, width) if batch is None else (n, batch, width), dtype=dtype) for width in widths)
    return (h, c) if module.mode == "LSTM" else h


def compare(theirs: Any, mine: Any, arguments: list[Any], n: int) -> None:
    """Compare results and gradients, in the parameters and in every tensor of the arguments."""
    grown = []
    for module in (theirs, mine):
        leaves: list[Any] = []

        def leaf(value: Any, leaves: list[Any] = leaves) -> Any:
            if isinstance(value, PackedSequence):
                return value._replace(data=leaf(value.data))
            if isinstance(value, tuple):
                return tuple(leaf(part) for part in value)
            if isinstance(value, torch.Tensor):
                leaves.append(value.detach().clone().requires_grad_())
                return leaves[-1]
            return value

        results = module(*[leaf(argument) for argument in arguments])
        outs = flat(results)
        generator = torch.Generator().manual_seed(1)
        loss = sum((out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in outs)
        gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()])
        grown.append((outs, gradients, results))
    (expected, their_gradients, their_results), (actual, my_gradients, my_results) = grown
    assert type(my_results) is type(their_results)
    assert [type(part) for part in my_results] == [type(part) for part in their_results]
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert_close(a.detach().numpy(), e.detach().numpy(), n_products=2 * n)
    scale = size(*(g.numpy() for g in their_gradients))
    for a, e in zip(my_gradients, their_gradients, strict=True):
        assert_close(a.numpy(), e.numpy(), n_products=2 * n, scale=scale, what="gradient")


def products(variant: str, layers: int, bidirectional: bool) -> int:
    """Chain of products of forward and backward."""
    spec = make_spec(variant, INPUT, HIDDEN, num_layers=layers, bidirectional=bidirectional)
    return chain(spec, STEPS * BATCH, 1)


# ------------------------------------------------------------------------------ results, gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"bidirectional": True},
        {"num_layers": 3, "batch_first": True},
        {"num_layers": 3, "bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("variant", KINDS)
def test_every_option(variant: str, options: dict[str, Any], dtype: Any) -> None:
    """Plain, with a state, unbatched, one step, packed sorted and not; the same bits in eval mode."""
    theirs, mine = pair(variant, **options, dtype=dtype)
    batch_first = mine.batch_first
    n = products(variant, mine.num_layers, mine.bidirectional)
    torch.manual_seed(2)

    def draw(steps: int, batch: int) -> Any:
        shape = (batch, steps, INPUT) if batch_first else (steps, batch, INPUT)
        return torch.randn(shape, dtype=dtype)

    compare(theirs, mine, [draw(STEPS, BATCH)], n)
    compare(theirs, mine, [draw(STEPS, BATCH), state_of(theirs, BATCH)], n)
    compare(theirs, mine, [draw(1, BATCH), state_of(theirs, BATCH)], n)
    compare(theirs, mine, [torch.randn(STEPS, INPUT, dtype=dtype), state_of(theirs, None)], n)
    compare(theirs, mine, [torch.randn(STEPS, INPUT, dtype=dtype)], n)
    for lengths, enforce_sorted in (([6, 5, 5, 2, 1], True), ([3, 6, 1, 6, 2], False)):
        packed = pack_padded_sequence(
            draw(STEPS, BATCH), torch.tensor(lengths), batch_first, enforce_sorted=enforce_sorted
        )
        compare(theirs, mine, [packed], n)
        compare(theirs, mine, [packed, state_of(theirs, BATCH)], n)
    x = draw(STEPS, BATCH)
    training = flat(mine(x))
    for without in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with without():
            for module in (mine.train(), mine.eval()):
                assert all(torch.equal(a, e) for a, e in zip(flat(module(x)), training, strict=True))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", CELLS)
def test_cells(variant: str, dtype: Any, bias: bool) -> None:
    theirs, mine = pair(variant, cell=True, bias=bias, dtype=dtype)
    n = products(variant, 1, False)
    for shape, training in itertools.product([(BATCH,), (), (0,)], [True, False]):
        theirs.train(training)
        mine.train(training)
        x = torch.randn(*shape, INPUT, dtype=dtype)
        h, c = torch.randn(2, *shape, HIDDEN, dtype=dtype)
        compare(theirs, mine, [x], n)
        compare(theirs, mine, [x, (h, c) if variant == "lstm" else h], n)
        with torch.no_grad():
            for a, e in zip(flat(mine(x)), flat(theirs(x)), strict=True):
                assert_close(a.numpy(), e.numpy(), n_products=2 * n)


@pytest.mark.parametrize("variant", KINDS)
def test_an_empty_batch(variant: str) -> None:
    theirs, mine = pair(variant, bidirectional=True)
    compare(theirs, mine, [torch.zeros(STEPS, 0, INPUT)], 1)
    with torch.no_grad():
        assert [a.shape for a in flat(mine(torch.zeros(STEPS, 0, INPUT)))] == [
            e.shape for e in flat(theirs(torch.zeros(STEPS, 0, INPUT)))
        ]


@pytest.mark.parametrize("variant", KINDS)
def test_strides_of_every_kind(variant: str) -> None:
    """Transposed, sliced, expanded and negated inputs, and gradients that come in expanded."""
    theirs, mine = pair(variant)
    n = products(variant, 1, False)
    wide = torch.randn(STEPS, BATCH, 2 * INPUT)
    inputs = [
        wide[:, :, ::2],
        wide[:, :, INPUT:],
        torch.randn(STEPS, INPUT, BATCH).transpose(1, 2),
        torch.randn(BATCH, STEPS, INPUT).transpose(0, 1),
        torch.randn(1, 1, INPUT).expand(STEPS, BATCH, INPUT),
        torch.imag(torch.randn(STEPS, BATCH, INPUT, dtype=torch.complex64).conj()),
    ]
    for x in inputs:
        gradients = []
        for module in (theirs, mine):
            for mode in (torch.no_grad, torch.enable_grad):
                with mode():
                    y = module(x)[0]
                    if mode is torch.no_grad:
                        plain = y
            gradients.append((plain, y.detach(), *torch.autograd.grad(y.sum(), list(module.parameters()))))
        scale = size(*(g.numpy() for g in gradients[0]))
        for e, a in zip(*gradients, strict=True):
            assert_close(a.numpy(), e.numpy(), n_products=2 * n, scale=scale)


def test_results_are_laid_out_contiguously() -> None:
    """With batch_first, where torch.nn's are not."""
    _, mine = pair("lstm", batch_first=True)
    for y in (mine(torch.zeros(BATCH, STEPS, INPUT))[0], mine.eval()(torch.zeros(BATCH, STEPS, INPUT))[0]):
        assert y.is_contiguous()


@pytest.mark.parametrize("reads", [True, False], ids=["tensors read in place", "as arrays"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "lengths"])
def test_no_copies(plain: bool, reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are given the memory of x, state, parameters and results themselves."""
    if reads and not _kernels._READS:
        pytest.skip("this torch has no functions to read tensors in place")
    calls: list[tuple[str, Any, Any]] = []

    def watched(real: Any, name: str) -> Any:
        def run(*arguments: Any) -> Any:
            calls.append((name, arguments, real(*arguments)))
            return calls[-1][2]

        return run

    class Watched:
        def __init__(self, real: Any, names: tuple[str, ...]) -> None:
            self.real, self.names = real, names

        def __getattr__(self, name: str) -> Any:
            real = getattr(self.real, name)
            return watched(real, name) if name in self.names else real

    real = _kernels._core
    core = Watched(real, ("forward", "backward", "backward_plain"))
    core.Weights = lambda network: Watched(real.Weights(network), ("run_plain",))
    if not plain:
        core.Weights = real.Weights
    monkeypatch.setattr(_kernels, "_core", core)
    monkeypatch.setattr(_kernels, "_READS", reads)
    mine = ours.LSTM(INPUT, HIDDEN, batch_first=True)
    x = torch.randn(BATCH, STEPS, INPUT, requires_grad=True)
    h, c = (torch.randn(1, BATCH, HIDDEN, requires_grad=True) for _ in range(2))
    y, (h_n, c_n) = mine(x, (h, c), lengths=None if plain else torch.full((BATCH,), STEPS))
    dy = torch.randn_like(y)
    y.backward(dy)

    def at(value: Any) -> list[int]:
        if isinstance(value, tuple | list):
            return [address for part in value for address in at(part)]
        if isinstance(value, torch.Tensor):
            return [value.data_ptr()]
        return [] if value is None else [int(value.__array_interface__["data"][0])]

    (forward, given, made), (backward, given_back, made_back) = calls
    if plain:
        assert (forward, backward) == ("run_plain", "backward_plain")
        inputs, results = given[1:3], made
        to_backward, sums = [given_back[k] for k in (1, 3, 4, 5, 7)], made_back
    else:
        assert (forward, backward) == ("forward", "backward")
        inputs, results = given[2:5], given[7:10]
        to_backward = [given_back[k] for k in (1, 2, 3, 4, 7, 9)]
        sums = given_back[12:16]
    assert at(inputs) == at([x, h, c])
    assert at(results) == at([y, h_n, c_n])
    assert at(to_backward) == at([*mine.parameters(), x, h, c, y, dy])
    assert at(sums) == at([x.grad, h.grad, c.grad, *[p.grad for p in mine.parameters()]])


@pytest.mark.parametrize("layout", ["TB", "BT", "T"])
@pytest.mark.parametrize("variant", KINDS)
def test_every_way_to_the_kernels_gives_the_same_bits(
    variant: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors read in place, arrays, and the way of what is not plain: with lengths, though of all steps."""
    _, mine = pair(variant, num_layers=2, bidirectional=True, batch_first=layout == "BT")
    rows = None if layout == "T" else BATCH
    x = torch.randn({"TB": (STEPS, BATCH), "BT": (BATCH, STEPS), "T": (STEPS,)}[layout] + (INPUT,))
    state = state_of(mine, rows)
    found = []
    for reads, lengths in (
        (_kernels._READS, None),
        (False, None),
        (False, torch.full((rows or 1,), STEPS)),
    ):
        monkeypatch.setattr(_kernels, "_READS", reads)
        leaves = [part.clone().requires_grad_() for part in [x, *flat(state)]]
        given = leaves[1] if len(leaves) == 2 else tuple(leaves[1:])
        outs = flat(mine(leaves[0], given, lengths=lengths))
        dys = [torch.linspace(-1, 1, out.numel()).reshape(out.shape) for out in outs]
        gradients = torch.autograd.grad(outs, [*leaves, *mine.parameters()], dys)
        with torch.no_grad():
            found.append([*outs, *gradients, *flat(mine.eval()(x, state, lengths=lengths))])
        mine.train()
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("variant", CELLS)
def test_cells_give_the_same_bits_either_way(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mine = pair(variant, cell=True)
    found = []
    x = torch.randn(BATCH, INPUT)
    h = torch.randn(2, BATCH, HIDDEN)
    for reads in (_kernels._READS, False):
        monkeypatch.setattr(_kernels, "_READS", reads)
        outs = flat(mine(x, (h[0], h[1]) if variant == "lstm" else h[0]))
        dys = [torch.linspace(-1, 1, out.numel()).reshape(out.shape) for out in outs]
        found.append([*outs, *torch.autograd.grad(outs, list(mine.parameters()), dys)])
    assert all(map(torch.equal, *found))


# ---------------------------------------------------------------------- construction, attributes


@pytest.mark.parametrize("variant", KINDS)
def test_the_same_module(variant: str) -> None:
    """Initial weights for a seed, names, order, attributes, repr, and the class."""
    for options in (
        {},
        {"num_layers": 2, "bidirectional": True, "bias": False},
        {"num_layers": 2, "dropout": 0.5, "batch_first": True, "dtype": torch.float64},
    ):
        theirs, mine = pair(variant, **options)
        assert isinstance(mine, torch.nn.RNNBase)
        assert repr(mine) == repr(theirs)
        assert list(mine.state_dict()) == list(theirs.state_dict())
        for a, e in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, e)
            assert a.dtype == e.dtype
        for name in (
            "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
            "bidirectional", "proj_size", "training",
        ):  # fmt: skip
            assert getattr(mine, name) == getattr(theirs, name)
        assert [[w.shape for w in part] for part in mine.all_weights] == [
            [w.shape for w in part] for part in theirs.all_weights
        ]
        theirs.load_state_dict(mine.state_dict())
        mine.load_state_dict(theirs.state_dict())
        torch.manual_seed(3)
        mine.reset_parameters()
        torch.manual_seed(3)
        theirs.reset_parameters()
        assert all(map(torch.equal, mine.parameters(), theirs.parameters()))


@pytest.mark.parametrize("variant", CELLS)
def test_the_same_cell(variant: str) -> None:
    for bias in (True, False):
        theirs, mine = pair(variant, cell=True, bias=bias)
        assert isinstance(mine, type(theirs))
        assert isinstance(mine, torch.nn.RNNCellBase)
        assert repr(mine) == repr(theirs)
        assert list(mine.state_dict()) == list(theirs.state_dict())
        assert all(map(torch.equal, mine.parameters(), theirs.parameters()))
        assert (mine.bias_ih is None) == (not bias)


def test_arguments_by_position() -> None:
    assert repr(ours.RNN(3, 4, 2, "relu", False, True)) == repr(torch.nn.RNN(3, 4, 2, "relu", False, True))
    theirs, mine = (
        torch.nn.LSTM(3, 4, 2, False, True, 0.25, True, 2),
        ours.LSTM(3, 4, 2, False, True, 0.25, True, 2),
    )
    assert repr(mine) == repr(theirs)
    assert mine(input=torch.zeros(2, 5, 3), hx=None)[0].shape == (2, 5, 4)


def test_meta_device() -> None:
    for name in ("LSTM", "GRU", "RNN"):
        layer = getattr(ours, name)(3, 4, 2, device="meta")
        y, _ = layer(torch.zeros(5, 2, 3, device="meta"))
        assert (y.device.type, y.shape) == ("meta", (5, 2, 4))
        cell = getattr(ours, name + "Cell")(3, 4, device="meta")
        assert flat(cell(torch.zeros(2, 3, device="meta")))[0].shape == (2, 4)
        layer.to_empty(device="cpu").reset_parameters()
        assert torch.isfinite(layer(torch.zeros(5, 2, 3))[0]).all()


# -------------------------------------------------------------------------------------- errors


def cases() -> list[Any]:
    """Return what torch.nn refuses: (name, call of a module)."""
    zeros = torch.zeros
    found: list[tuple[str, Callable[[Any, Any], Any]]] = [
        ("no steps", lambda m, s: m(zeros(0, 2, 3))),
        ("no steps, no rows", lambda m, s: m(zeros(0, 0, 3))),
        ("rank 1", lambda m, s: m(zeros(3))),
        ("rank 4", lambda m, s: m(zeros(1, 5, 2, 3))),
        ("input size", lambda m, s: m(zeros(5, 2, 4))),
        ("input size, unbatched", lambda m, s: m(zeros(5, 4))),
        ("input dtype", lambda m, s: m(zeros(5, 2, 3).double())),
        ("integers", lambda m, s: m(zeros(5, 2, 3).long())),
        ("state of other rows", lambda m, s: m(zeros(5, 2, 3), s(1, 3, 4))),
        ("state of other width", lambda m, s: m(zeros(5, 2, 3), s(1, 2, 5))),
        ("state of other layers", lambda m, s: m(zeros(5, 2, 3), s(2, 2, 4))),
        ("state without rows", lambda m, s: m(zeros(5, 2, 3), s(1, 4))),
        ("state with rows", lambda m, s: m(zeros(5, 3), s(1, 1, 4))),
        ("state of other width, unbatched", lambda m, s: m(zeros(5, 3), s(1, 5))),
        ("None", lambda m, s: m(None)),
        ("meta input", lambda m, s: m(zeros(5, 2, 3, device="meta"))),
    ]
    return [pytest.param(call, id=name) for name, call in found]


def refusal(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception, match=r".*") as caught:
        call()
    return caught.value


@pytest.mark.parametrize("call", cases())
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_errors_are_torchs(name: str, call: Callable[[Any, Any], Any]) -> None:
    def state(*shape: int) -> Any:
        return (torch.zeros(shape), torch.zeros(shape)) if name == "LSTM" else torch.zeros(shape)

    expected = refusal(lambda: call(getattr(torch.nn, name)(3, 4), state))
    actual = refusal(lambda: call(getattr(ours, name)(3, 4), state))
    assert type(actual) is type(expected)
    assert str(actual) == str(expected)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_errors_of_packed_calls(name: str) -> None:
    """Always told, where torch.nn.LSTM leaves wrong sizes to oneDNN, which may read past the end."""
    state = torch.zeros(1, 2, 4)
    with pytest.raises(RuntimeError, match=r"input.size.* Expected 3, got 5"):
        getattr(ours, name)(3, 4)(pack_sequence([torch.zeros(4, 5)]))
    with pytest.raises(RuntimeError, match=r"Expected hidden(\[0\])? size \(1, 1, 4\), got \[1, 2, 4\]"):
        getattr(ours, name)(3, 4)(
            pack_sequence([torch.zeros(4, 3)]), (state, state) if name == "LSTM" else state
        )


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_errors_where_torchs_words_are_another_librarys(name: str) -> None:
    """A state of another dtype: the same type."""
    state = torch.zeros(1, 2, 4, dtype=torch.float64)
    hx = (state, state) if name == "LSTM" else state
    for library in (torch.nn, ours):
        assert isinstance(
            refusal(lambda lib=library: getattr(lib, name)(3, 4)(torch.zeros(5, 2, 3), hx)), RuntimeError
        )


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((0, 4), {}),
        ((3, 0), {}),
        ((3.0, 4), {}),
        ((3, 4.0), {}),
        ((3, 4, 0), {}),
        ((3, 4), {"dropout": 1.5}),
        ((3, 4), {"dropout": True}),
        ((3, 4), {"bias": 1}),
        ((3, 4), {"batch_first": 1}),
        ((3, 4), {"proj_size": 4}),
        ((3, 4), {"proj_size": -1}),
        ((3, 4), {"dtype": torch.int32}),
        ((3, 4), {"nonlinearity": "sigmoid"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_constructors_refuse_what_torchs_do(name: str, arguments: Any, options: Any) -> None:
    expected = refusal(lambda: getattr(torch.nn, name)(*arguments, **options))
    actual = refusal(lambda: getattr(ours, name)(*arguments, **options))
    assert type(actual) is type(expected)
    assert str(actual) == str(expected)


def test_a_warning_of_torchs() -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        ours.GRU(3, 4, dropout=0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, s: m(torch.zeros(1, 2, 3)),
        lambda m, s: m(torch.zeros(2, 4)),
        lambda m, s: m(torch.zeros(4)),
        lambda m, s: m(torch.zeros(2, 3), s(3, 4)),
        lambda m, s: m(torch.zeros(2, 3), s(2, 5)),
        lambda m, s: m(torch.zeros(2, 3), s(4)),
        lambda m, s: m(torch.zeros(2, 3), s(1, 2, 4)),
        lambda m, s: m(torch.zeros(3), s(1, 4)),
        lambda m, s: m(torch.zeros(3), s(5)),
    ],
    ids=["rank", "size", "unbatched size", "rows", "width", "rank 1", "rank 3", "unbatched", "narrow"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_errors_of_cells_are_torchs(name: str, call: Callable[[Any, Any], Any]) -> None:
    def state(*shape: int) -> Any:
        return (torch.zeros(shape), torch.zeros(shape)) if name == "LSTMCell" else torch.zeros(shape)

    expected = refusal(lambda: call(getattr(torch.nn, name)(3, 4), state))
    actual = refusal(lambda: call(getattr(ours, name)(3, 4), state))
    assert type(actual) is type(expected)
    assert str(actual) == str(expected)


def test_a_dtype_without_kernels() -> None:
    with pytest.raises(TypeError, match=r"weights are torch.bfloat16 on cpu; expected torch.float32 or"):
        ours.GRU(3, 4, dtype=torch.bfloat16)(torch.zeros(5, 2, 3, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"weights are torch.float16"):
        ours.LSTMCell(3, 4).half()(torch.zeros(2, 3).half())
    mixed = ours.GRU(3, 4)
    mixed.bias_hh_l0.data = mixed.bias_hh_l0.data.double()
    with pytest.raises(
        RuntimeError, match=r"weights are torch.float32 and torch.float64; expected one dtype"
    ):
        mixed(torch.zeros(5, 2, 3))


# ---------------------------------------------------------------------------- extra arguments


@pytest.mark.parametrize("peephole", ["diagonal", "full"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_peepholes(peephole: str, bidirectional: bool) -> None:
    """The numbers of the layer for NumPy, whose reference is the textbook; base weights as without."""
    import fastrnn

    options: Any = {"num_layers": 2, "bidirectional": bidirectional, "proj_size": 3}
    torch.manual_seed(5)
    plain = ours.LSTM(INPUT, HIDDEN, **options)
    torch.manual_seed(5)
    mine = ours.LSTM(INPUT, HIDDEN, **options, peephole=peephole)
    for name, value in plain.named_parameters():
        assert torch.equal(mine.get_parameter(name), value)
    theirs = fastrnn.LSTM(INPUT, HIDDEN, **options, peephole=peephole)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(STEPS, BATCH, INPUT, requires_grad=True)
    y, _ = mine(x)
    expected, _ = theirs(x.detach().numpy())
    assert (y.detach().numpy() == expected).all()
    y.backward(torch.ones_like(y))
    dx, _ = theirs.backward(np.ones_like(expected))
    assert (x.grad.numpy() == dx).all()
    for name, gradient in theirs.gradients.items():
        assert (mine.get_parameter(name).grad.numpy() == gradient).all()
    assert f"peephole='{peephole}'" in repr(mine)
    assert [len(part) for part in mine.all_weights] == [6] * (4 if bidirectional else 2)
    again = copy.deepcopy(mine)
    assert torch.equal(again(x)[0], y)
    cell = ours.LSTMCell(INPUT, HIDDEN, peephole=peephole)
    one = fastrnn.LSTM(INPUT, HIDDEN, peephole=peephole)
    one.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    assert (cell(x[0].detach())[0].detach().numpy() == one(x[:1].detach().numpy())[0][0]).all()


def test_the_reset_gate_of_the_paper() -> None:
    import fastrnn

    mine = ours.GRU(INPUT, HIDDEN, num_layers=2, reset_after=False)
    theirs = fastrnn.GRU(INPUT, HIDDEN, num_layers=2, reset_after=False)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(STEPS, BATCH, INPUT)
    assert (mine(x)[0].detach().numpy() == theirs(x.numpy())[0]).all()
    assert repr(mine) == f"GRU({INPUT}, {HIDDEN}, num_layers=2, reset_after=False)"
    cell, one = (
        ours.GRUCell(INPUT, HIDDEN, reset_after=False),
        fastrnn.GRUCell(INPUT, HIDDEN, reset_after=False),
    )
    one.load_state_dict(cell.state_dict())
    assert (cell(x[0]).detach().numpy() == one(x[0].numpy())).all()
    with pytest.raises(TypeError, match="reset_after should be of type bool"):
        ours.GRU(3, 4, reset_after=1)
    with pytest.raises(ValueError, match="peephole is True; expected False, 'diagonal' or 'full'"):
        ours.LSTM(3, 4, peephole=True)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("variant", KINDS)
def test_lengths_are_what_packing_is(variant: str, batch_first: bool) -> None:
    """Same bits as the packed call; NaN in the padding reaches nothing."""
    _, mine = pair(variant, bidirectional=True, num_layers=2, batch_first=batch_first)
    lengths = torch.tensor([3, 6, 1, 6, 2])
    x = torch.randn((BATCH, STEPS, INPUT) if batch_first else (STEPS, BATCH, INPUT))
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    expected, state = mine(packed, state_of(mine, BATCH))
    torch.manual_seed(4)
    expected, state = mine(packed)
    expected, _ = pad_packed_sequence(expected, batch_first)
    past = torch.arange(STEPS)[:, None] >= lengths
    padded = x.masked_fill((past.T if batch_first else past)[..., None], torch.nan)
    padded.requires_grad_()
    y, state_n = mine(padded, lengths=lengths)
    assert torch.equal(y, expected)
    assert all(map(torch.equal, flat(state_n), flat(state)))
    y.sum().backward()
    assert torch.isfinite(padded.grad).all()
    y, _ = mine(x, lengths=[0, 6, 1, 6, 2])
    assert (y.select(1 - mine.batch_first, 0) == 0).all()


@pytest.mark.parametrize("variant", KINDS)
def test_resets_cut(variant: str) -> None:
    """The same bits as the pieces run apart."""
    _, mine = pair(variant, num_layers=2)
    x = torch.randn(STEPS, BATCH, INPUT)
    resets = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    resets[4] = True
    y, state = mine(x, resets=resets)
    first, _ = mine(x[:4])
    second, end = mine(x[4:])
    assert torch.equal(y, torch.cat([first, second]))
    assert all(map(torch.equal, flat(state), flat(end)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": torch.tensor([1])}, ValueError, r"lengths has shape \(1,\); expected \(B,\) = \(2,\)"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, r"lengths is torch.float32; expected integers"),
        ({"lengths": torch.tensor([1, 6])}, ValueError, r"lengths\[1\] is 6; expected from 0 to T = 5"),
        ({"lengths": torch.tensor([-1, 5])}, ValueError, r"lengths\[0\] is -1; expected from 0 to T = 5"),
        ({"resets": torch.zeros(5, 2)}, TypeError, r"resets is torch.float32; expected torch.bool"),
        ({"resets": torch.zeros(2, 5).bool()}, ValueError, r"resets has shape \(2, 5\); .* \(5, 2\)"),
    ],
    ids=str,
)  # fmt: skip
def test_errors_of_extra_arguments(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ours.GRU(3, 4)(torch.zeros(5, 2, 3), **options)
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name} is given beside a PackedSequence"):
        ours.GRU(3, 4)(pack_sequence([torch.zeros(5, 3)]), **options)


# ------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("variant", KINDS)
def test_dropout(variant: str) -> None:
    """A mask of its own for each call, from torch's generator; none in eval mode; p of 1 as torch.nn's."""
    theirs, mine = pair(variant, num_layers=2, dropout=0.5)
    x = torch.randn(STEPS, BATCH, INPUT)
    torch.manual_seed(1)
    first, second = mine(x)[0], mine(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(mine(x)[0], first)
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(mine(x)[0], first)
    n = products(variant, 2, False)
    assert_close(mine.eval()(x)[0].detach().numpy(), theirs.eval()(x)[0].detach().numpy(), n_products=2 * n)
    theirs, mine = pair(variant, num_layers=2, dropout=1.0)
    compare(theirs, mine, [x], n)


def test_dropout_drops_as_many() -> None:
    """Under an identity-like second layer the share of zeros is the probability, within four deviations."""
    layer = ours.RNN(1, 64, num_layers=2, nonlinearity="relu", dropout=0.3, bias=False)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        layer.weight_hh_l0.zero_()
        layer.weight_hh_l1.zero_()
        layer.weight_ih_l1.copy_(torch.eye(64))
    y, _ = layer(torch.ones(100, 20, 1))
    n = y.numel()
    assert abs((y == 0).float().mean().item() - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5
    assert torch.allclose(y[y != 0], torch.tensor(1 / 0.7))


# ------------------------------------------------------------------------ copies, modes, changes


@pytest.mark.parametrize("variant", KINDS)
def test_copies(variant: str) -> None:
    """Deepcopy, pickle, torch.save, to(): the same bits, and nothing shared."""
    _, mine = pair(variant, num_layers=2)
    x = torch.randn(STEPS, BATCH, INPUT)
    y = mine.eval()(x)[0].detach()
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), torch.load(buffer, weights_only=False)]
    with torch.no_grad():
        for one in copies:
            assert torch.equal(one(x)[0], y)
            one.weight_hh_l0.add_(1)
            assert not torch.equal(one(x)[0], y)
        assert torch.equal(mine(x)[0], y)
        wide = copy.deepcopy(mine).to(torch.float64)
        assert wide(x.double())[0].dtype == torch.float64
        assert torch.equal(wide.float()(x)[0], y)


@pytest.mark.parametrize("variant", CELLS)
def test_copies_of_cells(variant: str) -> None:
    _, mine = pair(variant, cell=True)
    x = torch.randn(BATCH, INPUT)
    y = flat(mine.eval()(x))[0].detach()
    for one in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert torch.equal(flat(one(x))[0], y)


CHANGES: dict[str, Callable[[Any], None]] = {
    "in place": lambda m: m.weight_hh_l0.mul_(0.5),
    "a new parameter": lambda m: setattr(m, "weight_hh_l0", torch.nn.Parameter(m.weight_hh_l0 * 0.5)),
    "new data": lambda m: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data * 0.5),
    "a checkpoint": lambda m: m.load_state_dict({k: v * 0.5 for k, v in m.state_dict().items()}),
    "an optimizer": lambda m: one_step(m, torch.optim.SGD),
    "fused Adam": lambda m: one_step(m, torch.optim.Adam, fused=True),
    "fused AdamW": lambda m: one_step(m, torch.optim.AdamW, fused=True),
    "fused SGD": lambda m: one_step(m, torch.optim.SGD, fused=True),
    "fused Adagrad": lambda m: one_step(m, torch.optim.Adagrad, fused=True),
    "fused, gradients of before": lambda m: step_of_gradients(m),
    "turned data": lambda m: setattr(m.weight_hh_l0, "data", turned(m.weight_hh_l0.data)),
    "turned in place": lambda m: m.weight_hh_l0.set_(turned(m.weight_hh_l0.data)),
    "a parameter of the same memory": lambda m: setattr(
        m, "weight_hh_l0", torch.nn.Parameter(m.weight_hh_l0.data.mul_(0.5))
    ),
    "through .data, told": lambda m: (m.weight_hh_l0.data.mul_(0.5), m.flatten_parameters()),
    "through .data, modes": lambda m: (m.weight_hh_l0.data.mul_(0.5), m.eval()),
    "dtypes": lambda m: (m.double(), m.weight_hh_l0.data.mul_(0.5), m.float()),
}


def one_step(module: Any, kind: Any, **options: Any) -> None:
    optimizer = kind(module.parameters(), lr=0.5, **options)
    with torch.enable_grad():
        module(torch.ones(STEPS, BATCH, INPUT))[0].sum().backward()
    optimizer.step()


def step_of_gradients(module: Any) -> None:
    """A step without a call with a graph before it."""
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.Adam(module.parameters(), lr=0.5, fused=True).step()


def turned(matrix: Any) -> Any:
    """Other numbers at the same address, of the same shape."""
    rows, columns = matrix.shape
    return matrix.as_strided((rows, columns), (1, rows))


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("variant", ["lstm", "gru", "rnn-tanh"])
def test_packed_weights_are_never_stale(variant: str, change: Callable[[Any], None]) -> None:
    theirs, mine = pair(variant)
    x = torch.randn(STEPS, BATCH, INPUT)
    mine.eval()
    with torch.no_grad():
        before = mine(x)[0]
        change(mine)
        after = mine(x)[0]
        theirs.load_state_dict(mine.state_dict())
        expected = theirs(x)[0]
    assert not torch.equal(before, after)
    assert_close(after.numpy(), expected.numpy(), n_products=2 * products(variant, 1, False))


def test_weights_are_packed_once_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in training mode at every call; flatten_parameters drops them."""
    packed = []
    real = _kernels._core.Weights

    class Counted:
        def __new__(cls, network: Any) -> Any:
            inner = real(network)

            class Weights:
                run_plain = staticmethod(inner.run_plain)

                def pack(self, arrays: Any) -> None:
                    packed.append(1)
                    inner.pack(arrays)

            return Weights()

    class Core:
        Weights = Counted

        def __getattr__(self, name: str) -> Any:
            return getattr(_core, name)

    _core = _kernels._core
    monkeypatch.setattr(_kernels, "_core", Core())
    layer = ours.GRU(3, 4)
    x = torch.zeros(5, 2, 3)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        assert len(packed) == 3
        layer.eval()
        for _ in range(3):
            layer(x)
        assert len(packed) == 4
        layer.flatten_parameters()
        layer(x)
        assert len(packed) == 5


def test_weights_that_other_processes_write_are_packed_every_time() -> None:
    """No version counts such writes; a NumPy view of the shared memory stands for the other process."""
    theirs, mine = pair("gru")
    theirs.share_memory()
    mine.share_memory().eval()
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.no_grad():
        mine(x)
        for module in (theirs, mine):
            module.weight_hh_l0.numpy()[:] *= 0.5
        expected, found = theirs(x)[0], mine(x)[0]
    assert_close(found.numpy(), expected.numpy(), n_products=2 * products("gru", 1, False))


def write_uncounted(weight: Any, numbers: Any) -> None:
    """Write as sharding does when it gathers a weight: the same tensor, address and version."""
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(weight):
        weight.copy_(numbers)


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no process groups",
)
def test_weights_are_packed_every_time_in_a_process_group() -> None:
    """Its collectives and its sharding of weights write without counting."""
    theirs, mine = pair("gru")
    mine.eval()
    x = torch.randn(STEPS, BATCH, INPUT)
    n = 2 * products("gru", 1, False)
    with torch.no_grad():
        mine(x)  # kept, before there is a group
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        try:
            for _ in range(2):
                for module in (theirs, mine):
                    write_uncounted(module.weight_hh_l0, module.weight_hh_l0 * 0.5)
                assert_close(mine(x)[0].numpy(), theirs(x)[0].numpy(), n_products=n)
        finally:
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize("forget", ["flatten_parameters", "eval"])
def test_packed_weights_of_tensors_that_are_put_in_for_a_call_are_dropped(forget: str) -> None:
    """As hooks do that gather a sharded weight: between calls the module has another one."""
    theirs, mine = pair("gru")
    mine.eval()
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.no_grad():
        mine(x)
        first = mine.weight_ih_l0
        mine.weight_ih_l0 = torch.nn.Parameter(torch.zeros_like(first))
        for module in (theirs, mine):
            module.weight_hh_l0.data.mul_(0.5)
        getattr(mine, forget)()
        mine.weight_ih_l0 = first
        expected, found = theirs(x)[0], mine(x)[0]
    assert_close(found.numpy(), expected.numpy(), n_products=2 * products("gru", 1, False))


@pytest.mark.skipif(not _kernels._READS, reason="this torch has no functions to read tensors in place")
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_other_memory_at_the_address_of_freed_weights(training: bool) -> None:
    theirs, mine = pair("gru")
    mine.train(training)
    x = torch.randn(STEPS, BATCH, INPUT)
    n = 2 * products("gru", 1, False)
    hits = 0
    for _ in range(20):
        with torch.no_grad():
            mine(x)
        weight = mine.weight_hh_l0
        address, shape = weight.data_ptr(), weight.shape
        weight.untyped_storage().resize_(0)
        held = []
        for _ in range(10):
            held.append(torch.randn(shape))
            if held[-1].data_ptr() == address:
                hits += 1
                break
        weight.data = held[-1]
        theirs.load_state_dict(mine.state_dict())
        with torch.no_grad():
            assert_close(mine(x)[0].numpy(), theirs(x)[0].numpy(), n_products=n)
    if not hits:
        pytest.skip("the allocator gave no address twice")


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "later call"])
@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_hh_l0"])
def test_a_weight_elsewhere_or_sparse_is_refused(name: str, warm: bool) -> None:
    theirs, mine = pair("gru")
    x = torch.randn(STEPS, BATCH, INPUT)
    if warm:
        mine(x)
    weight = getattr(mine, name).detach()
    messages = []
    for module in (theirs, mine):
        setattr(module, name, torch.nn.Parameter(weight.to("meta")))
        with pytest.raises(RuntimeError) as raised:
            module(x)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    setattr(mine, name, torch.nn.Parameter(weight.to_sparse()))
    with pytest.raises(RuntimeError, match=f"^{name} has layout torch.sparse_coo; expected torch.strided$"):
        mine(x)


def test_zeros_without_memory() -> None:
    """What autograd makes of a zero gradient, and a user of an input."""
    theirs, mine = pair("lstm")
    found = []
    for module in (theirs, mine):
        x = torch.randn(STEPS, BATCH, INPUT, generator=torch.Generator().manual_seed(0), requires_grad=True)
        y, (h, c) = module(x)
        zeros = [torch._efficientzerotensor(part.shape) for part in (y, c)]
        gradients = torch.autograd.grad((y, h, c), [x, *module.parameters()], (zeros[0], h, zeros[1]))
        found.append(gradients)
    with torch.no_grad():
        y, _ = mine(torch._efficientzerotensor(x.shape))
        assert torch.equal(y, mine(torch.zeros(x.shape))[0])
    scale = size(*(g.numpy() for g in found[0]))
    for e, a in zip(*found, strict=True):
        assert_close(a.numpy(), e.numpy(), n_products=2 * products("lstm", 1, False), scale=scale)


@pytest.mark.skipif(not _kernels._READS, reason="this torch has no functions to read tensors in place")
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_the_memory_of_weights_may_be_freed_and_filled(training: bool) -> None:
    """As by torch's sharded data parallelism between calls, and between forward and backward."""
    theirs, mine = pair("gru")
    x = torch.randn(STEPS, BATCH, INPUT)
    found = []
    for module in (theirs, mine):
        y = module.train(training)(x)[0]
        for p in module.parameters():
            storage, kept = p.untyped_storage(), p.detach().clone()
            size_before = storage.size()
            storage.resize_(0)
            storage.resize_(size_before)
            write_uncounted(p, kept)
        found.append([y, module(x)[0], *torch.autograd.grad(y.sum(), list(module.parameters()))])
        # Other numbers: in eval mode with flatten_parameters, as what is not counted cannot be seen.
        with torch.no_grad():
            module(x)
            for p in module.parameters():
                write_uncounted(p, p * 0.5)
            module.flatten_parameters()
            found[-1].append(module(x)[0])
    scale = size(*(g.detach().numpy() for g in found[0]))
    for e, a in zip(*found, strict=True):
        assert_close(
            a.detach().numpy(), e.detach().numpy(), n_products=2 * products("gru", 1, False), scale=scale
        )


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_weights_at_an_address_of_no_float(training: bool) -> None:
    _, mine = pair("gru")
    x = torch.randn(STEPS, BATCH, INPUT)
    expected = mine.train(training)(x)[0]
    memory = bytearray(2) + bytearray(mine.weight_hh_l0.detach().numpy().tobytes())
    odd = torch.frombuffer(memory, dtype=torch.float32, offset=2).reshape(mine.weight_hh_l0.shape)
    mine.weight_hh_l0.data = odd
    assert odd.data_ptr() % 4
    y = mine(x)[0]
    assert torch.equal(y, expected)
    y.sum().backward()
    assert mine.weight_hh_l0.grad.abs().sum() > 0
    with torch.no_grad():
        odd.mul_(0.5)  # not counted, of a copy that is not kept
        assert not torch.equal(mine(x)[0], expected)


def test_memory_given_back_and_taken_again_is_no_copy_of_before() -> None:
    """What was packed goes as soon as another call has seen other weights."""
    theirs, mine = pair("rnn-tanh")
    mine.eval()
    x = torch.randn(STEPS, BATCH, INPUT)
    n = 2 * products("rnn-tanh", 1, False)
    for _ in range(20):
        with torch.no_grad():
            mine(x)
        address = mine.weight_hh_l0.data_ptr()
        mine.weight_hh_l0.data = torch.randn(HIDDEN, HIDDEN)
        mine(x)[0].sum().backward()
        for _ in range(10):
            mine.weight_hh_l0.data = torch.randn(HIDDEN, HIDDEN)
            if mine.weight_hh_l0.data_ptr() == address:
                break
        theirs.load_state_dict(mine.state_dict())
        with torch.no_grad():
            assert_close(mine(x)[0].numpy(), theirs(x)[0].numpy(), n_products=n)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
@pytest.mark.parametrize("variant", CELLS)
def test_another_dtype_after_a_call(variant: str, cell: bool, training: bool) -> None:
    theirs, mine = pair(variant, cell=cell)
    x = torch.randn(BATCH, INPUT)
    for dtype in (torch.float32, torch.float64, torch.float32):
        found, expected = (flat(m.to(dtype).train(training)(x.to(dtype)))[0] for m in (mine, theirs))
        assert found.dtype is dtype
        n = 2 * BATCH * products(variant, 1, False)
        assert_close(found.detach().numpy(), expected.detach().numpy(), n_products=n)


@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_parameters_may_be_swapped(cell: bool) -> None:
    """torch's other way to convert and load takes no tensor with weak references."""
    _, mine = pair("gru", cell=cell)
    x = torch.randn(BATCH, INPUT)
    mine.eval()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with torch.no_grad():
            mine(x)
            mine.double()
            assert flat(mine(x.double()))[0].dtype is torch.float64
            if cell:  # torch.nn's layers have weak references of their own then
                mine.load_state_dict({k: v * 0.5 for k, v in mine.state_dict().items()})
                mine(x.double())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def test_arrays_of_the_caller_may_change_after_the_call() -> None:
    _, mine = pair("gru")
    x = torch.randn(STEPS, BATCH, INPUT)
    lengths, resets = np.full(BATCH, STEPS), np.zeros((STEPS, BATCH), bool)
    gradients = []
    for changed in (False, True):
        y = mine(x, lengths=lengths, resets=resets)[0]
        if changed:
            lengths[:] = 1
            resets[:] = True
        gradients.append(torch.autograd.grad(y.sum(), list(mine.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_threads_with_a_weight_in_common() -> None:
    """Two layers that share their first weight share what is kept; neither sees the other's weights."""
    first, second = (ours.RNN(8, 8).eval() for _ in range(2))
    second.weight_ih_l0 = first.weight_ih_l0
    x = torch.randn(2, 1, 8)
    with torch.no_grad():
        expected = {module: module(x)[0] for module in (first, second)}
    wrong = []

    def run(module: Any) -> None:
        with torch.no_grad():
            for _ in range(500):
                if not torch.equal(module(x)[0], expected[module]):
                    wrong.append(module)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(run, [first, second] * 2))
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_weight_of_another_shape_is_named() -> None:
    mine = ours.GRU(INPUT, HIDDEN).eval()
    x = torch.randn(STEPS, BATCH, INPUT)
    mine(x)
    mine.weight_ih_l0.data = mine.weight_ih_l0.data.view(INPUT, 3 * HIDDEN)
    with pytest.raises(ValueError, match=r"weight_ih_l0 has shape \(7, 27\); expected \(27, 7\)"):
        mine(x)


@pytest.mark.parametrize("reads", [True, False])
def test_a_weight_that_is_none_is_named(reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "_READS", reads and _kernels._READS)
    mine = ours.GRU(INPUT, HIDDEN)
    mine.bias_hh_l0 = None
    with pytest.raises(TypeError, match="bias_hh_l0 has type NoneType; expected a tensor"):
        mine(torch.randn(STEPS, BATCH, INPUT))


@pytest.mark.parametrize(
    ("name", "hx"),
    [
        ("LSTM", torch.zeros(2, 1, BATCH, HIDDEN)),
        ("LSTM", ()),
        ("LSTM", (torch.zeros(1, BATCH, HIDDEN),)),
        ("LSTM", (torch.zeros(1, BATCH, HIDDEN),) * 3),
        ("LSTMCell", torch.zeros(2, BATCH, HIDDEN)),
        ("LSTMCell", torch.zeros(BATCH, HIDDEN)),
        ("LSTMCell", ()),
        ("LSTMCell", (torch.zeros(BATCH, HIDDEN),)),
        ("LSTMCell", (torch.zeros(BATCH, HIDDEN),) * 3),
    ],
)
def test_states_that_are_no_pair_are_refused_as_torchs(name: str, hx: Any) -> None:
    x = torch.zeros(STEPS, BATCH, INPUT) if name == "LSTM" else torch.zeros(BATCH, INPUT)
    theirs, mine = (getattr(library, name)(INPUT, HIDDEN) for library in (torch.nn, ours))
    assert type(refusal(lambda: mine(x, hx))) is type(refusal(lambda: theirs(x, hx)))


@pytest.mark.parametrize("kind", [torch.complex64, torch.float32, torch.bool], ids=str)
def test_lengths_are_integers(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"lengths is .*; expected integers"):
        ours.GRU(INPUT, HIDDEN)(torch.zeros(STEPS, BATCH, INPUT), lengths=torch.ones(BATCH, dtype=kind))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_input_at_an_address_of_no_float(training: bool) -> None:
    mine = ours.LSTM(INPUT, HIDDEN).train(training)
    x = torch.randn(STEPS, BATCH, INPUT)
    memory = bytearray(2) + bytearray(x.numpy().tobytes())
    odd = torch.frombuffer(memory, dtype=torch.float32, offset=2).reshape(x.shape)
    assert odd.data_ptr() % 4
    assert torch.equal(mine(odd)[0], mine(x)[0])


def test_little_is_kept_of_a_long_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "_KEPT_BYTES", 0)
    cell = ours.GRUCell(3, 4)
    h = None
    for _ in range(5):
        h = cell(torch.zeros(2, 3), h)
    h.sum().backward()
    del h
    assert len(_kernels.memory_of(cell.weight_ih).reserves) == 1


def test_memory_goes_with_the_weights() -> None:
    """And what a call saved goes when nobody can go back through it; the next call uses it again."""
    gc.collect()
    before, tokens = len(_kernels._memories), len(_kernels._tokens)
    layer = ours.GRU(3, 4)
    y = layer(torch.zeros(5, 2, 3))[0]
    memory = _kernels.memory_of(layer.weight_ih_l0)
    assert (len(_kernels._memories), len(_kernels._tokens), memory.reserves) == (before + 1, tokens + 1, [])
    del y
    assert (len(_kernels._tokens), len(memory.reserves)) == (tokens, 1)
    y = layer(torch.zeros(5, 2, 3))[0]
    assert memory.reserves == []
    del y, layer, memory
    gc.collect()
    assert len(_kernels._memories) == before


def test_threads_follow_torchs(threads: None) -> None:
    from fastrnn import _core

    layer = ours.GRU(3, 4)
    before = torch.get_num_threads()
    try:
        for n in (2, 1, 3):
            torch.set_num_threads(n)
            y, _ = layer(torch.zeros(5, 2, 3))
            assert _core.get_num_threads() == n
        torch.set_num_threads(2)
        y.sum().backward()
        assert _core.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------- what else torch does to modules


def test_parametrizations_and_weight_norm() -> None:
    for wrap in (
        lambda m: torch.nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: torch.nn.utils.parametrizations.orthogonal(m, "weight_hh_l0"),
    ):
        theirs, mine = pair("gru")
        torch.manual_seed(0)
        wrap(theirs)
        torch.manual_seed(0)
        wrap(mine)
        compare(theirs, mine, [torch.randn(STEPS, BATCH, INPUT)], products("gru", 1, False))
        x = torch.randn(STEPS, BATCH, INPUT)
        with torch.no_grad():
            before = mine.eval()(x)[0]
            next(mine.parametrizations.parameters()).mul_(2)
            mine.bias_ih_l0.add_(1)
            assert not torch.equal(mine(x)[0], before)
    theirs, mine = pair("rnn-tanh", cell=True)
    for module in (theirs, mine):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh")
    compare(theirs, mine, [torch.randn(BATCH, INPUT)], products("rnn-tanh", 1, False))


def test_the_older_weight_norm() -> None:
    theirs, mine = pair("lstm")
    for module in (theirs, mine):
        with pytest.warns(FutureWarning):
            torch.nn.utils.weight_norm(module, "weight_hh_l0")
    compare(theirs, mine, [torch.randn(STEPS, BATCH, INPUT)], products("lstm", 1, False))


def test_tied_weights() -> None:
    """Two layers with one matrix: its gradient is the sum."""
    both = []
    for library in (torch.nn, ours):
        torch.manual_seed(0)
        first, second = (library.GRU(HIDDEN, HIDDEN) for _ in range(2))
        second.weight_hh_l0 = first.weight_hh_l0
        second.weight_ih_l0 = first.weight_ih_l0
        torch.manual_seed(1)
        x = torch.randn(STEPS, BATCH, HIDDEN)
        y, _ = second(first(x)[0])
        y.sum().backward()
        both.append((y.detach(), first.weight_hh_l0.grad, second.bias_hh_l0.grad))
        with torch.no_grad():
            first.eval()
            second.eval()
            both[-1] += (second(first(x)[0])[0],)
    scale = size(*(g.numpy() for g in both[0]))
    for e, a in zip(*both, strict=True):
        assert_close(a.numpy(), e.numpy(), n_products=4 * products("gru", 2, False), scale=scale)


def test_gradients_in_some_parameters_alone() -> None:
    for wanted in (["weight_hh_l0"], ["bias_ih_l1", "bias_hh_l1"], []):
        theirs, mine = pair("lstm", num_layers=2)
        x = torch.randn(STEPS, BATCH, INPUT)
        for module in (theirs, mine):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in wanted)
            given = x.clone().requires_grad_(not wanted)
            module(given)[0].sum().backward()
            module.given = given
        for name, parameter in mine.named_parameters():
            assert (parameter.grad is None) == (name not in wanted)
            if parameter.grad is not None:
                expected = theirs.get_parameter(name).grad.numpy()
                assert_close(
                    parameter.grad.numpy(), expected, n_products=2 * products("lstm", 2, False),
                    scale=max(1.0, size(expected)),
                )  # fmt: skip
        assert (mine.given.grad is None) == bool(wanted)
    mine.requires_grad_(False)
    assert not mine(x)[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
@pytest.mark.parametrize("variant", CELLS)
def test_autocast(variant: str, cell: bool, dtype: Any) -> None:
    """Results in torch.nn's dtypes; computed in the dtype of the weights; gradients reach everything."""
    theirs, mine = pair(variant, cell=cell)
    x = torch.randn(*([] if cell else [STEPS]), BATCH, INPUT)
    exact = flat(mine(x))
    for given in (x, x.to(dtype)):
        with torch.autocast("cpu", dtype):
            results = flat(mine(given.requires_grad_()))
            if dtype == torch.bfloat16 or variant != "lstm":  # oneDNN has no LSTM of float16 here
                assert [r.dtype for r in results] == [e.dtype for e in flat(theirs(given))]
        for r, e in zip(results, exact, strict=True):
            assert torch.allclose(r.float(), e, atol=20 * torch.finfo(dtype).eps)
        sum(r.float().sum() for r in results).backward()
        assert given.grad.dtype == given.dtype
        assert all(torch.isfinite(p.grad).all() for p in mine.parameters())
    with torch.autocast("cpu", dtype, enabled=False):
        assert flat(mine(x))[0].dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("variant", KINDS)
def test_dtypes_under_autocast(variant: str, options: dict[str, Any]) -> None:
    """Of output and each state, packed and not: torch.nn's."""
    theirs, mine = pair(variant, **options)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(STEPS, BATCH, INPUT, dtype=dtype)
        packed = pack_padded_sequence(x, torch.tensor([3, 6, 1, 6, 2]), enforce_sorted=False)
        for given in (x, packed):
            with torch.autocast("cpu", torch.bfloat16):
                assert [r.dtype for r in flat(mine(given))] == [e.dtype for e in flat(theirs(given))]


def test_hooks_and_a_state_carried() -> None:
    """Truncated back-propagation: the state detached between calls."""
    theirs, mine = pair("lstm")
    seen = []
    mine.register_forward_hook(lambda m, a, r: seen.append(1))
    x = torch.randn(3, STEPS, BATCH, INPUT)
    sums = []
    for module in (theirs, mine):
        state = None
        for piece in x:
            y, state = module(piece, state)
            y.sum().backward()
            state = tuple(s.detach() for s in state)
        sums.append([p.grad for p in module.parameters()])
    assert len(seen) == 3
    scale = size(*(g.numpy() for g in sums[0]))
    for e, a in zip(*sums, strict=True):
        assert_close(a.numpy(), e.numpy(), n_products=6 * products("lstm", 1, False), scale=scale)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_the_layers_for_numpy_take_tensors_as_before(name: str, training: bool) -> None:
    """The kernels read tensors for the modules here alone: results are tensors, and gradients lead here."""
    import fastrnn

    x = torch.randn(*(() if name == "GRUCell" else (5,)), 2, 3)
    layer = getattr(fastrnn, name)(3, 4, seed=1)
    layer = layer.train() if training else layer.eval()
    found = flat(layer(x))[0]
    assert isinstance(found, torch.Tensor)
    assert (found.numpy() == flat(layer(x.numpy()))[0]).all()
    with pytest.raises(TypeError, match=re.escape("fastrnn.torch")):
        layer(x.requires_grad_())
