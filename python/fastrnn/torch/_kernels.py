"""Calls of the compiled kernels on torch's tensors, without a copy, and the memory kept between them.

Everything here takes tensors as they are, below autograd, and trusts their shapes.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .. import _core, functional
from .._backends import CPU
from .._calls import Layout
from ..layouts import Spec, checked_dtype
from ._formula import from_time_major, state_from_time_major, state_to_time_major, to_time_major

Tensor = Any

_KINDS: dict[str, Any] = {
    "cell": str,
    "input_size": int,
    "hidden_size": int,
    "num_layers": int,
    "bias": lambda text: text == "True",
    "dropout": float,
    "bidirectional": lambda text: text == "True",
    "proj_size": int,
    "peephole": str,
    "reset_after": lambda text: text == "True",
    "nonlinearity": str,
}


@dataclass(eq=False)
class Plan:
    """What a call's options say, spelled out once."""

    spec: Spec
    layout: Layout
    network: Any

    def __post_init__(self) -> None:
        axes, spec = self.layout.axes, self.spec
        self.layouts = (axes,)
        self.lstm = spec.cell == "lstm"
        self.output_size = spec.output_size
        self.steps = "T" in axes
        """Whether there is a y."""
        self.batch_axis = axes.find("B")
        self.dtype: Any = np.dtype(spec.dtype) if self.network is not None else None
        self._front = (spec.num_layers * spec.num_directions,) if self.steps else ()
        self._widths = (spec.recurrent_size, spec.hidden_size) if self.lstm else (spec.hidden_size,)

    def state_shapes(self, x: Tensor) -> list[tuple[int, ...]]:
        """Return the shapes of h and, of an LSTM, c for this x, in the caller's layout."""
        rows = () if self.batch_axis < 0 else (x.shape[self.batch_axis],)
        return [(*self._front, *rows, width) for width in self._widths]


@functools.lru_cache(maxsize=1024)
def plan_of(options: str, dtype: Any) -> Plan:
    """Read options as the modules write them: ``layout=TB cell=gru input_size=3 ...``."""
    given = dict(word.split("=") for word in options.split(" "))
    layout = Layout(given.pop("layout"))
    fields: dict[str, Any] = {name: _KINDS[name](value) for name, value in given.items()}
    spec = Spec(**fields, dtype=checked_dtype(str(dtype).removeprefix("torch.")))
    on_cpu = spec.dtype in ("float32", "float64")
    return Plan(spec, layout, CPU.network(spec) if on_cpu else None)


# ------------------------------------------------------------------------------ memory of a layer


_READS = _core.read_tensors(torch.Tensor)
"""Whether the kernels read tensors by themselves, as from torch 2.10 on."""

_KEPT_BYTES = 64 << 20
"""How much memory of reserves is kept for the next calls, beside the first reserve."""

_among_others = torch.distributed.is_initialized if torch.distributed.is_available() else lambda: False
"""Whether there is a process group: what its collectives and sharding write, no version counts."""


def check_device(device: torch.device, other: Tensor, what: str) -> None:
    """Refuse a tensor that is not where the input is, in torch.nn's words."""
    if other.device != device:
        raise RuntimeError(
            f"Input and {what} tensors are not at the same device, found input tensor at {device} and "
            f"{what} tensor at {other.device}"
        )


def _check_memory(plan: Plan, weights: Sequence[Tensor]) -> None:
    """Refuse weights that have no memory of the host's, in rows."""
    for name, w in zip(plan.spec.parameter_shapes(), weights, strict=True):
        if not isinstance(w, torch.Tensor):
            raise TypeError(f"{name} has type {type(w).__name__}; expected a tensor")
        check_device(torch.device("cpu"), w, "parameter")
        if w.layout is not torch.strided:
            raise RuntimeError(f"{name} has layout {w.layout}; expected torch.strided")


class Memory:
    """What is kept for one set of weights as long as the first of them lives.

    Threads may share it: `seen` and `packed` are each written whole, and read once a call.

    Attributes
    ----------
    seen
        Plan and weights (address, shape, strides, dtype) of the last call, as they are, and whether changes
        of them are counted.
    packed
        The weights packed for inference, and what they are a copy of: plan, arrays, identities, versions.
        The arrays keep their memory from being used again, so that the same list is the same memory.
    repacked
        Memory for the packed weights of calls that pack their own.
    reserves
        Memory for what training calls save, of calls that nothing can go back through any more.
    """

    __slots__ = ("__weakref__", "owner", "packed", "repacked", "reserves", "seen")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.seen: tuple[Plan, Any, list[Any], bool] | None = None
        self.packed: tuple[Any, ...] | None = None
        self.repacked: list[tuple[Plan, Any]] = []
        self.reserves: list[Any] = []

    def views(self, plan: Plan, weights: Sequence[Tensor]) -> tuple[list[Any], bool]:
        """Return the weights as the kernels take them, and whether a copy of them may be kept."""
        try:
            found: Any = (
                _core.layouts_of(weights)
                if _READS
                else [(w.data_ptr(), w.shape, w.stride(), w.dtype) for w in weights]
            )
        except (AttributeError, TypeError, RuntimeError):
            found = None  # refused below, which says why, or not kept
        seen = self.seen
        if seen is not None and seen[0] is plan and seen[1] == found:
            arrays = seen[2]
            # Storage of tensors can be freed, and other memory of the weights be at its address.
            if type(arrays[0]) is np.ndarray or _core.layouts_of(arrays) == found:
                return arrays, seen[3]
        _check_memory(plan, weights)
        for (name, expected), w in zip(plan.spec.parameter_shapes().items(), weights, strict=True):
            if tuple(w.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(w.shape)}; expected {expected}")
            if w.dtype is not weights[0].dtype:
                raise RuntimeError(
                    f"weights are {weights[0].dtype} and {w.dtype}; expected one dtype for all of them"
                )
        # Unlike detach(), which makes a view, .data does not keep the weight itself alive.
        whole = [_aligned(w.data.resolve_neg().contiguous()) for w in weights]
        # Only what is no copy stays what the weights are.
        own = all(part.data_ptr() == w.data_ptr() for part, w in zip(whole, weights, strict=True))
        # An array would be for good: the memory of a tensor that has given one out cannot be resized.
        arrays = [_plain(part) for part in whole]
        own = own and found is not None and len({type(part) for part in arrays}) == 1
        # No version counts what another process writes.
        counted = own and not any(w.is_shared() for w in weights)
        self.packed = None
        self.seen = (plan, found, arrays, counted) if own else None
        return arrays, counted


_memories: dict[int, Memory] = {}


def memory_of(first: Tensor) -> Memory:
    """Return what is kept for the weights that begin with this one."""
    number = id(first)
    memory = _memories.get(number)
    if memory is None or memory.owner() is not first:
        gone = lambda _: _memories.pop(number, None)  # noqa: E731
        memory = _memories[number] = Memory(weakref.ref(first, gone))
    return memory


def drop_memory(first: Tensor) -> None:
    """Forget what is kept for the weights that begin with this one, and the reference to it."""
    _memories.pop(id(first), None)


def drop_packed() -> None:
    """Forget all packed weights."""
    for memory in list(_memories.values()):
        memory.packed = None


def _after_optimizer(*_: Any) -> None:
    """Forget all packed weights: the fused optimizers of torch write weights and count no version."""
    if not torch.compiler.is_compiling():  # compiled, they do count
        drop_packed()


register_optimizer_step_post_hook(_after_optimizer)


def _packed(
    plan: Plan, memory: Memory, weights: Sequence[Tensor], cached: bool
) -> tuple[Any, tuple[Plan, Any] | None, list[Any]]:
    """Return packed weights: those of an earlier call only if nothing has changed since.

    The second result is None if they are kept, else what goes to `memory.repacked` after the call; the third
    the weights as the kernels take them.
    """
    arrays, counted = memory.views(plan, weights)
    state = None
    if cached and counted and not _among_others():
        try:
            state = (*map(id, weights), *[w._version for w in weights])
        except RuntimeError:  # inference tensors count no versions
            state = None
    if state is None:
        memory.packed = None
    else:
        kept = memory.packed
        if kept is not None and kept[0] is plan and kept[1] is arrays and kept[2] == state:
            return kept[3], None, arrays
    packed = None
    if state is None and memory.repacked:
        made_for, packed = memory.repacked.pop()
        if made_for is not plan:
            packed = None
    if packed is None:
        packed = _core.Weights(plan.network)
    packed.pack(arrays)
    if state is None:
        return packed, (plan, packed), arrays
    memory.packed = (plan, arrays, state, packed)
    return packed, None, arrays


# ------------------------------------------------------------------- what backward finds again


def _keep(home: list[Any], reserve: Any) -> None:
    """Keep the memory of a reserve for the next call, but not of all steps of a long graph of cells."""
    if not home or (len(home) + 1) * reserve.nbytes <= _KEPT_BYTES:
        home.append(reserve)


class _Token(np.ndarray[Any, Any]):
    """Memory of a tensor that stands for a reserve: one int64 of no meaning but its address.

    When nobody can ask for the reserve any more, its memory goes back to where it came from.
    """

    __slots__ = ("address", "home", "reserve", "weights")
    reserve: Any
    home: list[Any]
    weights: Any
    """Those of forward, as backward takes them."""
    address: int

    def __del__(self) -> None:
        del _tokens[self.address]
        _keep(self.home, self.reserve)


class _Stack(np.ndarray[Any, Any]):
    """Memory of a tensor that stands for several: the addresses of its elements stand for them, too."""

    __slots__ = ("address", "tokens")
    tokens: list[_Token]
    address: int

    def __del__(self) -> None:
        for number in range(len(self.tokens)):
            del _tokens[self.address + 8 * number]


_tokens: dict[int, weakref.ref[_Token]] = {}


def token_of(reserve: Any, home: list[Any], weights: Any) -> Tensor:
    """Return a tensor that holds on to a reserve, and weights, for as long as its memory lives.

    A copy of it holds none; `run_backward` then runs forward again.
    """
    memory = np.zeros(1, np.int64).view(_Token)
    token = torch.from_numpy(memory)
    memory.reserve, memory.home, memory.weights = reserve, home, weights
    address = memory.address = token.data_ptr()
    _tokens[address] = weakref.ref(memory)
    return token


def _held_by(token: Tensor) -> _Token | None:
    """Return what a token, or one element of a stack of them, stands for."""
    found = _tokens.get(token.data_ptr())
    return None if found is None else found()


def stack_tokens(tokens: Sequence[Tensor]) -> Tensor:
    """Stack tokens so that each element still stands for its reserve, where they can be looked at."""
    held = []
    try:
        for token in tokens:
            one = _held_by(token)
            if one is None:
                return torch.stack(tokens)
            held.append(one)
    except RuntimeError:  # they stand for tensors of a transform further out, and have no memory
        return torch.stack(tokens)
    memory = np.zeros((len(held), 1), np.int64).view(_Stack)
    stack = torch.from_numpy(memory)
    memory.tokens, memory.address = held, stack.data_ptr()
    for number, one in enumerate(held):
        _tokens[memory.address + 8 * number] = weakref.ref(one)
    return stack


# ------------------------------------------------------------------------------------------- CPU


def follow_threads() -> None:
    """Use as many threads as torch does."""
    wanted = torch.get_num_threads()
    if _core.get_num_threads() != wanted:
        _core.set_num_threads(wanted)


def _rows(tensor: Tensor | None, layout: Layout) -> Any:
    """View a sequence as the kernels read it; a copy only if its last axis has no unit stride."""
    if tensor is None:
        return None
    if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
        tensor = tensor.contiguous()
    return layout.to_kernel(_array(tensor))


def _whole(tensor: Tensor | None) -> Any:
    return None if tensor is None else _array(tensor.contiguous())


def _aligned(tensor: Tensor) -> Tensor:
    # A view of a file's bytes, say, is not.
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _array(tensor: Tensor) -> Any:
    if tensor.requires_grad:
        tensor = tensor.detach()
    tensor = _aligned(tensor)
    try:
        return tensor.numpy()
    except RuntimeError:  # a view with its sign still to change, say, or zeros without memory
        return tensor.clone().numpy()


def _plain(tensor: Tensor | None) -> Any:
    """Return a tensor as calls of plain arguments take it."""
    if tensor is None or (_READS and type(tensor) is torch.Tensor and not tensor.is_neg()):
        return tensor
    return _array(tensor)


def _plain_state(plan: Plan, h: Tensor | None, c: Tensor | None) -> Any:
    if h is None:
        return None
    return (_plain(h), _plain(c)) if plan.lstm else _plain(h)


def _state(tensor: Tensor | None, layout: Layout) -> Any:
    return None if tensor is None else layout.state_to_kernel(_whole(tensor))


def _resets(tensor: Tensor | None, layout: Layout) -> Any:
    return None if tensor is None else np.ascontiguousarray(layout.to_kernel(_array(tensor)))


def run_forward(
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor | None,
    options: str,
    cached: bool,
    save: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Return y (None of a cell), h_n, c_n (None but of an LSTM) and, to `save`, the token for backward."""
    plan = plan_of(options, x.dtype)
    if not x.is_cpu:
        return _device_forward(plan, x, h, c, weights, lengths, resets, seed, save)
    follow_threads()
    layout = plan.layout
    memory = memory_of(weights[0])
    # Where a graph is wanted the weights are about to change.
    packed, again, arrays = _packed(plan, memory, weights, cached and not save)
    # A mask needs a reserve, also where nobody goes back.
    reserve = (
        (memory.reserves.pop() if memory.reserves else _core.Reserve()) if save or seed is not None else None
    )
    if seed is None and lengths is None and resets is None:
        done: Any = packed.run_plain(plan.layouts, _plain(x), _plain_state(plan, h, c), reserve, True, None)
        if done is not None:
            if again is not None:
                memory.repacked.append(again)
            y, state_n = done if plan.steps else (None, done)
            h_n, c_n = state_n if plan.lstm else (state_n, None)
            return (
                None if y is None else torch.from_numpy(y),
                torch.from_numpy(h_n),
                None if c_n is None else torch.from_numpy(c_n),
                token_of(reserve, memory.reserves, arrays) if save else None,
            )

    made = [_core.empty(shape, plan.dtype) for shape in plan.state_shapes(x)]
    state_arrays = [layout.state_to_kernel(part) for part in made]
    y = None
    y_array = state_arrays[0]
    if plan.steps:
        y = _core.empty((*x.shape[:-1], plan.output_size), plan.dtype)
        y_array = layout.to_kernel(y)
    _core.forward(
        plan.network,
        packed,
        _rows(x, layout),
        _state(h, layout),
        _state(c, layout),
        _whole(lengths),
        _resets(resets, layout),
        y_array,
        state_arrays[0],
        state_arrays[1] if plan.lstm else None,
        reserve,
        0 if seed is None else int(seed),
        0,
    )
    if again is not None:
        memory.repacked.append(again)
    token = None
    if save:
        token = token_of(reserve, memory.reserves, arrays)
    elif reserve is not None:
        _keep(memory.reserves, reserve)
    return (
        None if y is None else torch.from_numpy(y),
        torch.from_numpy(made[0]),
        torch.from_numpy(made[1]) if plan.lstm else None,
        token,
    )


def run_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor | None,
    y: Tensor,
    token: Tensor,
    options: str,
    need_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, list[Tensor]]:
    """Return dx (None unless needed), dh, dc (None but of an LSTM) and the gradients in the weights.

    y is that of forward, of a cell its h_n.
    """
    held = _held_by(token)
    if held is None:  # the token is a copy
        again = run_forward(x, h, c, weights, lengths, resets, seed, options, False, True)
        y, token = again[1] if again[0] is None else again[0], again[3]
        held = _held_by(token)
        assert held is not None
    plan = plan_of(options, x.dtype)
    if not x.is_cpu:
        return _device_backward(plan, dy, dh_n, dc_n, x, weights, held.reserve, need_dx)
    follow_threads()
    layout = plan.layout
    arrays = held.weights
    if seed is None and lengths is None and resets is None:
        done = _core.backward_plain(
            plan.network,
            arrays,
            plan.layouts,
            _plain(x),
            _plain_state(plan, h, c),
            _plain(y),
            held.reserve,
            _plain(dy) if plan.steps else None,
            _plain(dh_n),
            _plain(dc_n),
            need_dx,
            None,
        )
        if done is not None:
            dx, dh, dc, sums = done
            return (
                None if dx is None else torch.from_numpy(dx),
                torch.from_numpy(dh),
                None if dc is None else torch.from_numpy(dc),
                [torch.from_numpy(total) for total in sums],
            )
    # Of the shape of x, without its strides: an expanded x has a dx of its own memory.
    dx = _core.empty(x.shape, plan.dtype) if need_dx else None
    dstate = [_core.empty(shape, plan.dtype) for shape in plan.state_shapes(x)]
    sums = [_core.empty(w.shape, plan.dtype) for w in weights]
    dstate_arrays = [layout.state_to_kernel(part) for part in dstate]
    y_array = _array(y)
    _core.backward(
        plan.network,
        arrays,
        _rows(x, layout),
        _state(h, layout),
        _state(c, layout),
        _whole(lengths),
        _resets(resets, layout),
        layout.to_kernel(y_array) if plan.steps else layout.state_to_kernel(y_array),
        held.reserve,
        _rows(dy, layout) if plan.steps else None,
        _state(dh_n, layout),
        _state(dc_n, layout),
        None if dx is None else layout.to_kernel(dx),
        dstate_arrays[0],
        dstate_arrays[1] if plan.lstm else None,
        sums,
        False,
        0 if seed is None else int(seed),
        0,
    )
    return (
        None if dx is None else torch.from_numpy(dx),
        torch.from_numpy(dstate[0]),
        torch.from_numpy(dstate[1]) if plan.lstm else None,
        [torch.from_numpy(total) for total in sums],
    )


# ------------------------------------------------------------------------------------------ CUDA


def _device_state(plan: Plan, h: Tensor | None, c: Tensor | None) -> Any:
    parts = [None if s is None else state_to_time_major(plan.layout, s.detach()) for s in (h, c)]
    if plan.lstm:
        return None if parts[0] is None and parts[1] is None else tuple(parts)
    return parts[0]


def _named(plan: Plan, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(plan.spec.parameter_shapes(), (w.detach() for w in weights), strict=True))


def _device_forward(
    plan: Plan,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor | None,
    save: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    layout, named = plan.layout, _named(plan, weights)
    given: dict[str, Any] = {
        "lengths": lengths,
        "reset": None if resets is None else to_time_major(layout, resets),
    }
    state = _device_state(plan, h, c)
    inputs = (plan.spec, named, to_time_major(layout, x.detach()), state)
    token = None
    if save or seed is not None:
        y, state_n, reserve = functional.forward_train(
            *inputs, **given, seed=0 if seed is None else int(seed)
        )
        if save:
            token = token_of(reserve, [], None)
    else:
        y, state_n = functional.forward(*inputs, **given)
    parts = [state_from_time_major(layout, part) for part in (state_n if plan.lstm else (state_n,))]
    return (
        from_time_major(layout, y) if plan.steps else None,
        parts[0],
        parts[1] if plan.lstm else None,
        token,
    )


def _device_backward(
    plan: Plan,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    weights: Sequence[Tensor],
    reserve: Any,
    need_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, list[Tensor]]:
    layout = plan.layout
    dx, dstate, gradients = functional.backward(
        plan.spec,
        _named(plan, weights),
        reserve,
        None if dy is None else to_time_major(layout, dy.detach()),
        _device_state(plan, dh_n, dc_n),
    )
    parts = [state_from_time_major(layout, part) for part in (dstate if plan.lstm else (dstate,))]
    return (
        from_time_major(layout, dx) if need_dx else None,
        parts[0],
        parts[1] if plan.lstm else None,
        list(gradients.values()),
    )
