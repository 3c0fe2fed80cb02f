"""One checked call of the kernels: what `functional` and the layers share.

A caller's arrays come in several layouts (time first, batch first, no batch, a cell's single step);
the kernels know one, time-major.  `check_call` checks everything in the caller's own layout, so that
messages show the caller's shapes, and only then turns it into the kernels' view of the same memory.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np

from . import _core
from ._arrays import (
    BOOLS,
    INTEGERS,
    Array,
    Export,
    as_it_is,
    contiguous,
    describe_axes,
    empty,
    expect_shape,
    exporter,
    take,
    take_float,
    take_listed,
    unit_stride,
)
from .layouts import Spec

State = tuple[Array, ...]
"""State arrays as the kernels take them: (h,) or, for LSTM, (h, c); each (L*D, B, R or H)."""

SEED_END = 2**64
"""Seeds and call numbers are 64-bit, since they key the dropout generator."""


@functools.lru_cache(maxsize=256)
def network(spec: Spec) -> _core.Network:
    """Return the compiled side of a Spec."""
    return _core.Network(
        cell=spec.cell,
        dtype=spec.dtype,
        input_size=spec.input_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        bidirectional=spec.bidirectional,
        bias=spec.bias,
        proj_size=spec.proj_size,
        peephole=spec.peephole,
        reset_after=spec.reset_after,
        nonlinearity=spec.nonlinearity,
        dropout=spec.dropout,
    )


# ---------------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Layout:
    """Which of the axes T and B a caller's sequences have, and in which order.

    States have B where sequences do, and the axis L*D in front unless T is missing (a cell).
    """

    axes: str

    def sequence_axes(self, steps: int | None, batch: int | None, **last: int) -> dict[str, int | None]:
        """Name the axes of x, y, reset or a gradient of one of them; `last` is the feature axis, if any."""
        sizes = {"T": steps, "B": batch}
        return {axis: sizes[axis] for axis in self.axes} | last

    def state_axes(self, spec: Spec, batch: int | None) -> tuple[dict[str, int | None], ...]:
        """Name the axes of (h,) or (h, c)."""
        front: dict[str, int | None] = (
            {"L*D": spec.num_layers * spec.num_directions} if "T" in self.axes else {}
        )
        if "B" in self.axes:
            front["B"] = batch
        h = front | ({"P": spec.proj_size} if spec.proj_size else {"H": spec.hidden_size})
        return (h, front | {"H": spec.hidden_size}) if spec.cell == "lstm" else (h,)

    def to_kernel(self, sequence: Array) -> Array:
        """View a caller's sequence as (T, B, ...)."""
        if self.axes == "TB":
            return sequence
        if self.axes == "BT":
            return sequence.swapaxes(0, 1)
        if self.axes == "T":
            return sequence[:, None]
        return sequence[None] if self.axes == "B" else sequence[None, None]

    def from_kernel(self, sequence: Array) -> Array:
        """Undo `to_kernel`."""
        if self.axes == "TB":
            return sequence
        if self.axes == "BT":
            return sequence.swapaxes(0, 1)
        if self.axes == "T":
            return sequence[:, 0]
        return sequence[0] if self.axes == "B" else sequence[0, 0, ...]

    def state_to_kernel(self, state: Array) -> Array:
        """View a caller's state as (L*D, B, ...)."""
        if "T" not in self.axes:
            state = state[None]
        return state if "B" in self.axes else state[:, None]

    def state_from_kernel(self, state: Array) -> Array:
        """Undo `state_to_kernel`."""
        if "B" not in self.axes:
            state = state[:, 0]
        return state if "T" in self.axes else state[0]

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return a new time-major array whose memory is contiguous in the caller's layout."""
        if self.axes == "BT":
            return empty((shape[1], shape[0], *shape[2:]), dtype).swapaxes(0, 1)
        return empty(shape, dtype)


TIME_MAJOR = Layout("TB")
BATCH_FIRST = Layout("BT")
UNBATCHED = Layout("T")
CELL = Layout("B")
CELL_UNBATCHED = Layout("")


# ----------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Call:
    """Checked inputs of one forward call, as the kernels take them."""

    spec: Spec
    layout: Layout
    export: Export
    x: Array  # (T, B, I), or int64 tokens (T, B)
    state: State | None
    lengths: Array | None
    reset: Array | None

    @property
    def steps(self) -> int:
        return int(self.x.shape[0])

    @property
    def batch(self) -> int:
        return int(self.x.shape[1])

    @property
    def tokens(self) -> bool:
        return self.x.ndim == 2

    @property
    def y_axes(self) -> dict[str, int | None]:
        return self.layout.sequence_axes(self.steps, self.batch, **{"D*R": self.spec.output_size})

    def give(self, sequence: Array, *, writeable: bool = True) -> Any:
        """Return a time-major result in the caller's layout and library.

        Other libraries have no read-only arrays, so `writeable` is a matter of NumPy alone.
        """
        result = self.layout.from_kernel(sequence)[...]
        if self.export is as_it_is:
            result.flags.writeable = writeable
        return self.export(result)

    def give_state(self, state: State) -> Any:
        """Return state arrays in the caller's layout and library: h, or the pair (h, c)."""
        arrays = tuple(self.export(self.layout.state_from_kernel(array)) for array in state)
        return arrays if len(arrays) == 2 else arrays[0]


def check_spec(spec: object) -> None:
    if not isinstance(spec, Spec):
        raise TypeError(f"spec has type {type(spec).__name__}; expected a fastrnn.functional.Spec")


def check_x(name: str, spec: Spec, x: Any) -> Array:
    """Take float features of the network's dtype, or integers, which `check_tokens` has to see."""
    array = take(name, x)
    return array if is_tokens(array) else take_float(name, x, np.dtype(spec.dtype))


def is_tokens(array: Array) -> bool:
    return array.dtype.kind in INTEGERS


def check_tokens(name: str, spec: Spec, tokens: Array, valid: Any = True) -> Array:
    """Return tokens as contiguous int64; where not `valid` they may be anything."""
    for bad in int(tokens.min(initial=0, where=valid)), int(tokens.max(initial=0, where=valid)):
        if not 0 <= bad < spec.input_size:
            raise ValueError(f"{name} holds the token {bad}; expected tokens from 0 to {spec.input_size - 1}")
    return contiguous(tokens.astype(np.int64, copy=False))


def check_call(
    spec: Spec,
    layouts: Sequence[Layout],
    x: Any,
    state: Any = None,
    lengths: Any = None,
    reset: Any = None,
    *,
    batch: int | None = None,
) -> Call:
    """Check the inputs of a forward call; `layouts` are those that x may come in, told apart by rank.

    `batch` demands that many rows.
    """
    array = check_x("x", spec, x)
    export = exporter("x", x)

    # Ranks.
    features = {} if is_tokens(array) else {"I": spec.input_size}
    layout = next((known for known in layouts if len(known.axes) + len(features) == array.ndim), None)
    if layout is None:
        expected = " or ".join(
            describe_axes(known.sequence_axes(None, None, **features)) for known in layouts
        )
        raise ValueError(f"x has shape {array.shape}; expected {expected}")

    # Shapes.
    expect_shape("x", array, layout.sequence_axes(None, batch, **features))
    shape = array.shape
    array = layout.to_kernel(array)
    steps, batch = array.shape[:2]
    if steps == 0:
        raise ValueError(f"x has shape {shape}; expected at least one step (T >= 1)")
    lengths = check_lengths(layout, steps, batch, lengths)
    if features:
        array = unit_stride(array)
    else:
        valid = True if lengths is None else np.arange(steps)[:, None] < lengths
        array = check_tokens("x", spec, array, valid)
    return Call(
        spec,
        layout,
        export,
        array,
        check_state("state", spec, layout, batch, state),
        lengths,
        check_reset(layout, steps, batch, reset),
    )


def check_state(name: str, spec: Spec, layout: Layout, batch: int, state: Any) -> State | None:
    """Take h, or for LSTM the pair (h, c)."""
    if state is None:
        return None
    parts = state_parts(name, spec, state)
    return tuple(
        _state_array(part, value, spec, layout, axes)
        for (part, value), axes in zip(parts.items(), layout.state_axes(spec, batch), strict=True)
    )


def state_parts(name: str, spec: Spec, state: Any) -> dict[str, Any]:
    """Return the values of h, or of h and c, under the names that messages use for them."""
    if spec.cell != "lstm":
        if isinstance(state, tuple | list):
            raise TypeError(f"{name} has type {type(state).__name__}; expected one array h")
        return {name: state}
    if not isinstance(state, tuple | list):
        raise TypeError(f"{name} has type {type(state).__name__}; expected the pair (h, c)")
    if len(state) != 2:
        raise ValueError(f"{name} has {len(state)} entries; expected the pair (h, c)")
    return {f"{name}[0] (h)": state[0], f"{name}[1] (c)": state[1]}


def _state_array(name: str, value: Any, spec: Spec, layout: Layout, axes: Mapping[str, int | None]) -> Array:
    array = take_float(name, value, np.dtype(spec.dtype))
    expect_shape(name, array, axes)
    return contiguous(layout.state_to_kernel(array))


def check_lengths(layout: Layout, steps: int, batch: int, lengths: Any) -> Array | None:
    """Take (B,) integers from 0 to T; without a batch axis one integer."""
    if lengths is None:
        return None
    if "B" not in layout.axes and isinstance(lengths, int | np.integer):
        lengths = [lengths]
    array = take_listed("lengths", lengths, INTEGERS, "integers")
    if "B" not in layout.axes and array.ndim == 0:
        array = array[None]
    expect_shape("lengths", array, {"B": batch})
    bad = np.flatnonzero((array < 0) | (array > steps))
    if bad.size:
        raise ValueError(f"lengths[{bad[0]}] is {array[bad[0]]}; expected from 0 to T = {steps}")
    return contiguous(array.astype(np.int64, copy=False))


def check_reset(layout: Layout, steps: int, batch: int, reset: Any) -> Array | None:
    """Take bools, with the leading axes of x."""
    if reset is None:
        return None
    array = take_listed("reset", reset, BOOLS, "bool")
    expect_shape("reset", array, layout.sequence_axes(steps, batch))
    return contiguous(layout.to_kernel(array))


# ----------------------------------------------------------------------------------------- weights


def check_parameters(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Any,
    dtype: np.dtype[Any],
    *,
    cast: bool = False,
) -> list[Array]:
    """Take arrays in the order of `shapes`; all names and shapes that do not match are listed.

    `cast` is for checkpoints: other float widths are converted, and tensors that require grad are
    taken without their graph.
    """
    if not isinstance(parameters, Mapping):
        raise TypeError(f"{name} has type {type(parameters).__name__}; expected a mapping of names to arrays")
    problems = []
    missing = [key for key in shapes if key not in parameters]
    unexpected = [str(key) for key in parameters if key not in shapes]
    if missing:
        problems.append(f"missing {', '.join(missing)}")
    if unexpected:
        problems.append(f"unexpected {', '.join(unexpected)}")
    arrays = []
    for key, shape in shapes.items():
        if key not in parameters:
            continue
        label = f"{name}[{key!r}]"
        value = parameters[key]
        if cast:
            array = take(label, _plain(value))
            if array.dtype.kind != "f":
                raise TypeError(f"{label} is {array.dtype}; expected floats")
            array = array.astype(dtype, copy=False)
        else:
            array = take_float(label, value, dtype)
        if array.shape != shape:
            problems.append(f"{key} has shape {array.shape}, expected {shape}")
        arrays.append(contiguous(array))
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")
    return arrays


def _plain(value: Any) -> Any:
    """Return a checkpoint's tensor without its graph, and in a width that NumPy has."""
    if getattr(value, "requires_grad", False):
        value = value.detach()
    return value.float() if str(getattr(value, "dtype", "")) == "torch.bfloat16" else value


class KernelMemory:
    """What holds memory of the kernels: it can be neither copied nor pickled."""

    __slots__ = ()
    _instead: ClassVar[str]

    def __reduce__(self) -> NoReturn:  # copy and deepcopy come here too
        raise TypeError(f"a {type(self).__name__} can be neither copied nor pickled; {self._instead}")


class Packed(KernelMemory):
    """Parameters packed once for the forward kernels, of the instruction set in force then.

    Made by `fastrnn.functional.pack`; immutable from outside, so any number of calls may share it.

    Attributes
    ----------
    spec : Spec
        What it was packed for.
    nbytes : int
        Memory that the packed copy takes.
    """

    _instead = "pack the parameters again"

    def __init__(self, spec: Spec, arrays: Sequence[Array]) -> None:
        self.spec = spec
        self.network = network(spec)
        self.weights = _core.Weights(self.network)
        self.weights.pack(arrays)

    @property
    def nbytes(self) -> int:
        """Memory that the packed copy takes."""
        return self.weights.nbytes

    def __repr__(self) -> str:
        return f"Packed({self.spec}, nbytes={self.nbytes})"


# ------------------------------------------------------------------------------------ running them


class Reserve(KernelMemory):
    """What a training forward saves for `fastrnn.functional.backward`; a value, any number may be kept.

    It holds on to the arrays of its call (x, y, states, lengths, reset) beside the kernels' own
    memory, so these must not change before backward.

    Attributes
    ----------
    spec : Spec
        That of the call.
    nbytes : int
        Memory of the kernels' part.  Beside x and y, one layer keeps at most G values per (t, b, unit) and
        direction, LSTM G+1, an Elman network none.  In a stack the outputs of all layers but the last, which
        are the x of the layers above, are kept too and counted.
    """

    _instead = "run forward_train again"

    def __init__(self, call: Call, saved: _core.Reserve, seed: int, number: int) -> None:
        self.call = call
        self.saved = saved
        self.seed = seed
        self.number = number
        self.y: Array | None = None  # until the call has run

    @property
    def spec(self) -> Spec:
        """That of the call."""
        return self.call.spec

    @property
    def nbytes(self) -> int:
        """Memory of the kernels' part, without x and y."""
        return self.saved.nbytes

    def __repr__(self) -> str:
        steps, batch = self.call.x.shape[:2]
        return f"Reserve(T={steps}, B={batch}, nbytes={self.nbytes})"


def _pair(state: Sequence[Array | None] | None) -> tuple[Array | None, Array | None]:
    """Return (h, c) for the kernels, None where there is none."""
    if state is None:
        return None, None
    return state[0], state[1] if len(state) == 2 else None


def _empty_state(call: Call) -> State:
    return tuple(np.empty(shape, call.spec.dtype) for shape in call.spec.state_shapes(call.batch))


def run_forward(
    packed: Packed,
    call: Call,
    y: Array | None = None,
    state_n: State | None = None,
    reserve: Reserve | None = None,
) -> tuple[Array, State]:
    """Return time-major y and final state, in new memory unless given; `reserve` makes it training."""
    if y is None:
        y = call.layout.empty((call.steps, call.batch, call.spec.output_size), np.dtype(call.spec.dtype))
    if state_n is None:
        state_n = _empty_state(call)
    h_n, c_n = _pair(state_n)
    assert h_n is not None
    saved, seed, number = (None, 0, 0) if reserve is None else (reserve.saved, reserve.seed, reserve.number)
    _core.forward(
        packed.network,
        packed.weights,
        call.x,
        *_pair(call.state),
        call.lengths,
        call.reset,
        y,
        h_n,
        c_n,
        saved,
        seed,
        number,
    )
    if reserve is not None:
        reserve.y = y
    return y, state_n


def check_incoming(
    reserve: Reserve, dy: Any, dstate_n: Any
) -> tuple[Array | None, list[Array | None] | None]:
    """Take dy and the parts of dstate_n; any of them may be None."""
    call = reserve.call
    spec, layout = call.spec, call.layout
    if dy is not None:
        dy = take_float("dy", dy, np.dtype(spec.dtype))
        expect_shape("dy", dy, call.y_axes)
        dy = unit_stride(layout.to_kernel(dy))
    if dstate_n is None:
        return dy, None
    parts = state_parts("dstate_n", spec, dstate_n)
    return dy, [
        None if value is None else _state_array(part, value, spec, layout, axes)
        for (part, value), axes in zip(parts.items(), layout.state_axes(spec, call.batch), strict=True)
    ]


def run_backward(
    reserve: Reserve,
    parameters: Sequence[Array],
    dy: Array | None,
    dstate_n: Sequence[Array | None] | None,
    gradients: Sequence[Array],
    dx: Array | None = None,
    dstate: State | None = None,
) -> tuple[Array | None, State]:
    """Return time-major dx (None for tokens) and dstate; overwrites `gradients`."""
    call = reserve.call
    if dx is None and not call.tokens:
        dx = call.layout.empty(call.x.shape, call.x.dtype)
    if dstate is None:
        dstate = _empty_state(call)
    dh_0, dc_0 = _pair(dstate)
    assert dh_0 is not None
    assert reserve.y is not None
    _core.backward(
        network(call.spec),
        parameters,
        call.x,
        *_pair(call.state),
        call.lengths,
        call.reset,
        reserve.y,
        reserve.saved,
        dy,
        *_pair(dstate_n),
        dx,
        dh_0,
        dc_0,
        gradients,
        reserve.seed,
        reserve.number,
    )
    return dx, dstate
