"""One checked call of the kernels: what `functional` and the layers share.

A caller's arrays come in several layouts (time first, batch first, no batch, a cell's single step);
the kernels know one, time-major.  `check_call` checks everything in the caller's own layout, so that
messages show the caller's shapes, and only then turns it into the kernels' view of the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np

from ._arrays import BOOLS, INTEGERS, describe_axes, expect_shape
from ._backends import CPU, Array, Backend, Library, is_integer
from .layouts import Spec, integer, one_of

State = tuple[Array, ...]
"""State arrays as the kernels take them: (h,) or, for LSTM, (h, c); each (L*D, B, R or H)."""


# ---------------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Layout:
    """Which of the axes T and B a caller's sequences have, and in which order.

    States have B where sequences do, and the axis L*D in front unless T is missing (a cell).
    """

    axes: str

    def sequence_axes(self, steps: int | None, batch: int | None, **last: int) -> dict[str, int | None]:
        """Name the axes of x, y, reset or a gradient of one of them; `last` is the feature axis, if any."""
        return {axis: steps if axis == "T" else batch for axis in self.axes} | last

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

    def empty(self, library: Library, shape: tuple[int, ...], dtype: str) -> Array:
        """Return a new time-major array whose memory is contiguous in the caller's layout."""
        if self.axes == "BT":
            return library.empty((shape[1], shape[0], *shape[2:]), dtype).swapaxes(0, 1)
        return library.empty(shape, dtype)


TIME_MAJOR = Layout("TB")
BATCH_FIRST = Layout("BT")
UNBATCHED = Layout("T")
CELL = Layout("B")
CELL_UNBATCHED = Layout("")


# ----------------------------------------------------------------------------------------- inputs


@dataclass(slots=True, eq=False)  # frozen ones take a microsecond longer to make
class Call:
    """Checked inputs of one forward call, as the kernels take them."""

    backend: Backend
    spec: Spec
    layout: Layout
    library: Library
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
        return bool(self.x.ndim == 2)

    @property
    def y_axes(self) -> dict[str, int | None]:
        return self.layout.sequence_axes(self.steps, self.batch, **{"D*R": self.spec.output_size})

    def give(self, sequence: Array, *, writeable: bool = True) -> Any:
        """Return a time-major result in the caller's layout and library."""
        return self.library.give(self.layout.from_kernel(sequence), writeable)

    def give_state(self, state: State) -> Any:
        """Return state arrays in the caller's layout and library: h, or the pair (h, c)."""
        give, view = self.library.give, self.layout.state_from_kernel
        return give(view(state[0])) if len(state) == 1 else (give(view(state[0])), give(view(state[1])))


def check_spec(spec: object) -> None:
    if not isinstance(spec, Spec):
        raise TypeError(f"spec has type {type(spec).__name__}; expected a fastrnn.functional.Spec")


def check_x(backend: Backend, name: str, spec: Spec, x: Any) -> tuple[Library, Array]:
    """Take float features of the network's dtype, or integers, which `check_tokens` has to see."""
    try:
        library, array = backend.take_x(name, x)
    except TypeError:
        packed = hasattr(x, "batch_sizes")  # as torch's PackedSequence has
        if packed or (isinstance(x, list | tuple) and any(getattr(part, "ndim", 0) for part in x)):
            came = type(x).__name__ + ("" if packed else " of arrays")
            raise TypeError(
                f"{name} is a {came}; expected one array: stack them, and pad sequences of different lengths"
            ) from None
        raise
    if is_integer(array):
        return library, library.take_listed(name, array, INTEGERS, "integers")
    return library, library.check_float(name, array, spec.dtype, x)


def tokens_note(spec: Spec, x: Array) -> str:
    """Return what a message on the rank of x ends in: why an array of integers has no axis I."""
    return f", as {x.dtype} stands for tokens; convert features to {spec.dtype}" if is_integer(x) else ""


def check_tokens(library: Library, name: str, spec: Spec, tokens: Array, valid: Any = True) -> Array:
    """Return tokens as contiguous int64; where not `valid` they may be anything."""
    values = library.values(tokens)
    if values is not None:
        for bad in int(values.min(initial=0, where=valid)), int(values.max(initial=0, where=valid)):
            if not 0 <= bad < spec.input_size:
                raise ValueError(
                    f"{name} holds the token {bad}; expected tokens from 0 to {spec.input_size - 1}"
                )
    return library.place(tokens, "int64")


def check_call(
    backend: Backend,
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
    library, array = check_x(backend, "x", spec, x)

    # Ranks.
    features = {} if is_integer(array) else {"I": spec.input_size}
    for layout in layouts:
        if len(layout.axes) + len(features) == array.ndim:
            break
    else:
        expected = " or ".join(
            describe_axes(known.sequence_axes(None, None, **features)) for known in layouts
        )
        raise ValueError(f"x has shape {array.shape}; expected {expected}{tokens_note(spec, array)}")

    # Shapes.
    expect_shape("x", array, layout.sequence_axes(None, batch, **features))
    shape = array.shape
    array = layout.to_kernel(array)
    steps, batch = array.shape[:2]
    if steps == 0:
        raise ValueError(f"x has shape {shape}; expected at least one step (T >= 1)")
    lengths = check_lengths(library, layout, steps, batch, lengths)
    if features:
        array = library.place_rows(array, spec.dtype)
    else:
        ends = None if lengths is None else library.values(lengths)
        valid = True if ends is None else np.arange(steps)[:, None] < ends
        array = check_tokens(library, "x", spec, array, valid)
    return Call(
        backend,
        spec,
        layout,
        library,
        array,
        check_state(library, "state", spec, layout, batch, state),
        None if lengths is None else library.place(lengths, "int64"),
        check_reset(library, layout, steps, batch, reset),
    )


def check_state(
    library: Library,
    name: str,
    spec: Spec,
    layout: Layout,
    batch: int,
    state: Any,
    dtypes: Sequence[str] | None = None,
) -> State | None:
    """Take h, or for LSTM the pair (h, c); of the network's dtype unless others are given."""
    if state is None:
        return None
    parts = state_parts(name, spec, state)
    return tuple(
        _state_array(library, part, value, dtype, layout, axes)
        for (part, value), dtype, axes in zip(
            parts.items(),
            dtypes or [spec.dtype] * len(parts),
            layout.state_axes(spec, batch),
            strict=True,
        )
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


def _state_array(
    library: Library, name: str, value: Any, dtype: str, layout: Layout, axes: Mapping[str, int | None]
) -> Array:
    array = library.take_float(name, value, dtype)
    expect_shape(name, array, axes)
    return library.place(layout.state_to_kernel(array), dtype)


def check_lengths(library: Library, layout: Layout, steps: int, batch: int, lengths: Any) -> Array | None:
    """Take (B,) integers from 0 to T; without a batch axis one integer."""
    if lengths is None:
        return None
    if "B" not in layout.axes and isinstance(lengths, int | np.integer):
        lengths = [lengths]
    array = library.take_listed("lengths", lengths, INTEGERS, "integers")
    if "B" not in layout.axes and array.ndim == 0:
        array = array[None]
    expect_shape("lengths", array, {"B": batch})
    values = library.values(array)
    if values is not None:
        bad = np.flatnonzero((values < 0) | (values > steps))
        if bad.size:
            raise ValueError(f"lengths[{bad[0]}] is {values[bad[0]]}; expected from 0 to T = {steps}")
    # On the host in a width in which to compute with them does not wrap around.
    return array.astype(np.int64, copy=False) if isinstance(array, np.ndarray) else array


def check_reset(library: Library, layout: Layout, steps: int, batch: int, reset: Any) -> Array | None:
    """Take bools, with the leading axes of x."""
    if reset is None:
        return None
    array = library.take_listed("reset", reset, BOOLS, "bool")
    expect_shape("reset", array, layout.sequence_axes(steps, batch))
    return library.place(layout.to_kernel(array), "bool")


# ----------------------------------------------------------------------------------------- weights


def check_parameters(
    library: Library,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Any,
    dtype: str,
    *,
    cast: bool = False,
) -> list[Array]:
    """Take arrays in the order of `shapes`; all names and shapes that do not match are listed.

    `cast` is for checkpoints: other float widths are converted, and tensors that require grad are
    taken without their graph.
    """
    if not isinstance(parameters, Mapping):
        hint = ", as its state_dict()" if hasattr(parameters, "state_dict") else ""
        raise TypeError(
            f"{name} has type {type(parameters).__name__}; expected a mapping of names to arrays{hint}"
        )
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
        array = library.convert(label, value, dtype) if cast else library.take_float(label, value, dtype)
        if array.shape != shape:
            problems.append(f"{key} has shape {array.shape}, expected {shape}")
        arrays.append(library.place(array, dtype))
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")
    return arrays


def check_num_layers(spec: Spec, arrays: Mapping[str, Array]) -> None:
    """Refuse more layers than a file has arrays, before a list of so many shapes is made."""
    if spec.num_layers > len(arrays):
        raise ValueError(f"num_layers is {spec.num_layers}, but there are {len(arrays)} arrays in all")


def check_checkpoint(checkpoint: Any) -> int | None:
    """Take the steps between kept states, which may be more than any sequence has; None keeps every step."""
    return None if checkpoint is None else integer("checkpoint", checkpoint, 1, 2**63 - 1)


class KernelMemory:
    """What holds memory of the kernels: it can be neither copied nor pickled."""

    __slots__ = ()
    _instead: ClassVar[str]

    def __reduce__(self) -> NoReturn:  # copy and deepcopy come here too
        raise TypeError(f"a {type(self).__name__} can be neither copied nor pickled; {self._instead}")


_MOST_INT8_PRODUCTS = (2**31 - 1) // (127 * 128)  # whose sum is exact in 32 bits


def check_quantize(name: str, backend: Backend, spec: Spec, chosen: str) -> str | None:
    """Return what `Packed` is told to make weights of this dtype; None for "float32"."""
    one_of(name, chosen, ("bfloat16", "int8", "float32"))
    if chosen == "float32":
        return None
    if backend is not CPU:
        raise TypeError(f"{name} is {chosen!r}, for {backend.name}; only networks on the CPU are quantised")
    if spec.dtype != "float32":
        raise TypeError(
            f"{name} is {chosen!r}, for a {spec.dtype} network; only float32 networks are quantised, since "
            f"the rest of the computation is in float32"
        )
    if chosen == "int8":
        longest = max(spec.input_size, spec.hidden_size, spec.output_size if spec.num_layers > 1 else 0)
        if longest > _MOST_INT8_PRODUCTS:
            raise ValueError(
                f"{name} is 'int8', for sums of {longest} products; expected at most {_MOST_INT8_PRODUCTS}, "
                f"which are exact in 32 bits"
            )
    return chosen


class Packed(KernelMemory):
    """Parameters packed once for the forward kernels, of the instruction set in force then.

    Made by `fastrnn.functional.pack`; immutable from outside, so any number of calls may share it.

    Attributes
    ----------
    spec : Spec
        What it was packed for.
    quantized : str or None
        "bfloat16" or "int8" if the packed copy has weights of that type.
    nbytes : int
        Memory that the packed copy takes.
    """

    _instead = "pack the parameters again"

    def __init__(
        self, backend: Backend, spec: Spec, arrays: Sequence[Array], quantized: str | None = None
    ) -> None:
        self.backend = backend
        self.spec = spec
        self.quantized = quantized
        self.network = backend.network(spec)
        # Only the CPU's take a second argument.
        self.weights = backend.core.Weights(self.network, *(() if quantized is None else (quantized,)))
        self.weights.pack(arrays)
        self.run_plain = backend.run_plain(self.weights)
        """`_core.Weights.run_plain`, which gives None where more has to be told apart."""

    @property
    def nbytes(self) -> int:
        """Memory that the packed copy takes."""
        return int(self.weights.nbytes)

    def __repr__(self) -> str:
        quantized = "" if self.quantized is None else f", quantized={self.quantized!r}"
        return f"Packed({self.spec}, nbytes={self.nbytes}{quantized})"


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
        direction, LSTM G+1, an Elman network none; with a checkpoint of k steps LSTM keeps one value per k
        steps (and b, unit, direction), GRU none.  In a stack the outputs of all layers but the last, which
        are the x of the layers above, are kept too and counted.
    """

    _instead = "run forward_train again"

    def __init__(self, call: Call, saved: Any, seed: int, number: int) -> None:
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
        return int(self.saved.nbytes)

    def __repr__(self) -> str:
        steps, batch = self.call.x.shape[:2]
        return f"Reserve(T={steps}, B={batch}, nbytes={self.nbytes})"


def _pair(state: Sequence[Array | None] | None) -> tuple[Array | None, Array | None]:
    """Return (h, c) for the kernels, None where there is none."""
    if state is None:
        return None, None
    return state[0], state[1] if len(state) == 2 else None


def _empty_state(call: Call) -> State:
    empty, dtype = call.library.empty, call.spec.dtype
    return tuple([empty(shape, dtype) for shape in call.spec.state_shapes(call.batch)])


def run_forward(
    packed: Packed,
    call: Call,
    y: Array | None = None,
    state_n: State | None = None,
    reserve: Reserve | None = None,
) -> tuple[Array, State]:
    """Return time-major y and final state, in new memory unless given; `reserve` makes it training."""
    if y is None:
        spec = call.spec
        y = call.layout.empty(call.library, (*call.x.shape[:2], spec.output_size), spec.dtype)
    if state_n is None:
        state_n = _empty_state(call)
    h_n, c_n = _pair(state_n)
    assert h_n is not None
    saved, seed, number = (None, 0, 0) if reserve is None else (reserve.saved, reserve.seed, reserve.number)
    packed.backend.core.forward(
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
    spec, layout, library = call.spec, call.layout, call.library
    if dy is not None:
        dy = library.take_float("dy", dy, spec.dtype)
        expect_shape("dy", dy, call.y_axes)
        dy = library.place_rows(layout.to_kernel(dy), spec.dtype)
    if dstate_n is None:
        return dy, None
    parts = state_parts("dstate_n", spec, dstate_n)
    return dy, [
        None if value is None else _state_array(library, part, value, spec.dtype, layout, axes)
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
    *,
    add: bool = False,
) -> tuple[Array | None, State]:
    """Return time-major dx (None for tokens) and dstate; overwrites `gradients`, or adds to them."""
    call = reserve.call
    if dx is None and not call.tokens:
        dx = call.layout.empty(call.library, call.x.shape, call.spec.dtype)
    if dstate is None:
        dstate = _empty_state(call)
    dh_0, dc_0 = _pair(dstate)
    assert dh_0 is not None
    assert reserve.y is not None
    call.backend.core.backward(
        call.backend.network(call.spec),
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
        add,
        reserve.seed,
        reserve.number,
    )
    return dx, dstate
