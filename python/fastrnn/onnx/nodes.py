"""One RNN, GRU or LSTM node: what its attributes say, which path runs it, and running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import functional
from .._arrays import expect_shape, take
from .._backends import CPU
from .._orders import ORDERS, PEEPHOLE_ORDERS, from_the_end, reorder
from ..info import Report
from ..layouts import GATES, Cell, Nonlinearity, Spec
from . import general
from .activations import Activation, make_activations

Array = NDArray[Any]

CELLS: dict[str, Cell] = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
"""Operator to cell."""

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
"""Of LSTM; the others have the first six."""

_OUTPUTS = ("Y", "Y_h", "Y_c")
_DIRECTIONS = ("forward", "reverse", "bidirectional")
_DEFAULT_ACTIVATIONS = {"rnn": ["Tanh"], "gru": ["Sigmoid", "Tanh"], "lstm": ["Sigmoid", "Tanh", "Tanh"]}
_STATES = {"rnn": 1, "gru": 1, "lstm": 2}

# What the fused kernels compute.
_FUSED_ACTIVATIONS = {cell: tuple(map(Activation, names)) for cell, names in _DEFAULT_ACTIVATIONS.items()}
_NONLINEARITIES: dict[Activation, Nonlinearity] = {
    Activation("Tanh"): "tanh",
    Activation("Relu"): "relu",
    Activation("Sigmoid"): "sigmoid",
    Activation("Affine", 1.0, 0.0): "identity",
}


class BadNodeError(ValueError):
    """A node, or its inputs, are not what the operator's specification allows."""


@dataclass(frozen=True)
class Recurrence:
    """What a node says, checked; it holds no arrays.

    Attributes
    ----------
    label : str
        For messages: operator and name.
    inputs, outputs : tuple of str
        As in the node; "" for those left out.
    activations : tuple of tuple of Activation
        For each direction its f, or f and g, or f, g and h.
    """

    label: str
    cell: Cell
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    direction: str
    activations: tuple[tuple[Activation, ...], ...]
    hidden_size: int | None
    clip: float | None
    layout: int
    linear_before_reset: bool
    input_forget: bool

    def why_general(self) -> list[str]:
        """Tell what the fused kernels do not have; nothing if they run it."""
        reasons = []
        if self.clip is not None:
            reasons.append(f"clip = {self.clip:g}")
        if self.input_forget:
            reasons.append("input_forget = 1")
        for own in dict.fromkeys(self.activations):
            if self.cell == "rnn":
                if own[0] not in _NONLINEARITIES:
                    reasons.append(f"activation {own[0]}")
            elif own != _FUSED_ACTIVATIONS[self.cell]:
                reasons.append(f"activations {', '.join(map(str, own))}")
        if not reasons and len(set(self.activations)) > 1:
            reasons.append("another activation in each direction")
        return reasons

    def error(self, text: str) -> BadNodeError:
        """Make an error that says which node it is about."""
        return _error(self.label, text)


def node_label(node: Any) -> str:
    """Say which node is meant: by its name, or where it has none by what it makes."""
    made = next((name for name in node.output if name), None)
    if node.name or made is None:
        return f"{node.op_type} node {node.name!r}"
    return f"{node.op_type} node that makes {made!r}"


def is_own(node: Any) -> bool:
    """Tell whether the operator is one of ONNX's own, or of another domain."""
    return node.domain in ("", "ai.onnx")


def read_node(node: Any) -> Recurrence:
    """Check everything about a node that does not need its inputs' values."""
    op_type = getattr(node, "op_type", None)
    if op_type is None:
        raise TypeError(f"node has type {type(node).__name__}; expected an onnx.NodeProto")
    label = node_label(node)

    bad = partial(_error, label)
    if not is_own(node) or op_type not in CELLS:
        where = "" if is_own(node) else f" of the domain {node.domain!r}"
        raise bad(f"the operator is {op_type!r}{where}; expected RNN, GRU or LSTM of ai.onnx")
    cell = CELLS[op_type]
    values = _attributes(node, cell, bad)

    direction = values.get("direction", "forward")
    if direction not in _DIRECTIONS:
        raise bad(f"direction is {direction!r}; expected one of {', '.join(_DIRECTIONS)}")
    count = 2 if direction == "bidirectional" else 1
    each = len(_DEFAULT_ACTIVATIONS[cell])
    names = values.get("activations") or _DEFAULT_ACTIVATIONS[cell] * count
    if len(names) != count * each:
        raise bad(f"activations has {len(names)} names; expected {each} for each of {count} directions")
    try:
        made = make_activations(
            names, list(values.get("activation_alpha", ())), list(values.get("activation_beta", ()))
        )
    except ValueError as error:
        raise bad(str(error)) from None
    clip = values.get("clip")
    if clip is not None and not clip >= 0:
        raise bad(f"clip is {clip}; expected a bound of at least 0")
    hidden_size = values.get("hidden_size")
    if hidden_size is not None and hidden_size < 1:
        raise bad(f"hidden_size is {hidden_size}; expected at least 1")
    for flag in ("layout", "linear_before_reset", "input_forget"):
        if values.get(flag, 0) not in (0, 1):
            raise bad(f"{flag} is {values[flag]}; expected 0 or 1")

    known = _known_inputs(cell)
    if len(node.input) > len(known):
        raise bad(f"it has {len(node.input)} inputs; expected at most {len(known)}: {', '.join(known)}")
    for place, role in enumerate(known[:3]):
        if len(node.input) <= place or not node.input[place]:
            raise bad(f"the input {role} is missing; expected {', '.join(known[:3])} at least")
    outputs = _OUTPUTS[: 1 + _STATES[cell]]
    if len(node.output) > len(outputs):
        raise bad(f"it has {len(node.output)} outputs; expected at most {len(outputs)}: {', '.join(outputs)}")
    made_names = [name for name in node.output if name]
    if len({*made_names}) < len(made_names):
        raise bad(f"its outputs are {', '.join(made_names)}; expected different names")
    return Recurrence(
        label=label,
        cell=cell,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        direction=direction,
        activations=tuple(tuple(made[i : i + each]) for i in range(0, len(made), each)),
        hidden_size=hidden_size,
        clip=None if clip is None or math.isinf(clip) else clip,
        layout=values.get("layout", 0),
        linear_before_reset=bool(values.get("linear_before_reset", 0)),
        input_forget=bool(values.get("input_forget", 0)),
    )


def _error(label: str, text: str) -> BadNodeError:
    return BadNodeError(f"{label}: {text}")


def _known_inputs(cell: str) -> tuple[str, ...]:
    return INPUTS if cell == "lstm" else INPUTS[:6]


def _attributes(node: Any, cell: Cell, bad: Callable[[str], BadNodeError]) -> dict[str, Any]:
    from onnx import AttributeProto

    kinds = AttributeProto.AttributeType
    expected: dict[str, Any] = {
        "activation_alpha": kinds.FLOATS,
        "activation_beta": kinds.FLOATS,
        "activations": kinds.STRINGS,
        "clip": kinds.FLOAT,
        "direction": kinds.STRING,
        "hidden_size": kinds.INT,
        "layout": kinds.INT,
    }
    expected |= {"gru": {"linear_before_reset": kinds.INT}, "lstm": {"input_forget": kinds.INT}}.get(cell, {})
    return read_attributes(node, expected, bad)


def read_attributes(
    node: Any, expected: Mapping[str, int], bad: Callable[[str], BadNodeError]
) -> dict[str, Any]:
    """Return the attributes as Python values; `expected` are the kinds of those that there may be."""
    from onnx import AttributeProto
    from onnx.helper import get_attribute_value

    kinds = AttributeProto.AttributeType
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        name = attribute.name
        if name not in expected:
            raise bad(f"unknown attribute {name!r}; expected of {', '.join(expected) or 'none'}")
        if name in values:
            raise bad(f"the attribute {name} is given twice")
        if attribute.ref_attr_name or attribute.type != expected[name]:
            kind = "a reference" if attribute.ref_attr_name else kinds.Name(attribute.type)
            raise bad(f"the attribute {name} is {kind}; expected {kinds.Name(expected[name])}")
        value = get_attribute_value(attribute)
        if attribute.type == kinds.STRING:
            value = value.decode(errors="replace")
        elif attribute.type == kinds.STRINGS:
            value = [text.decode(errors="replace") for text in value]
        values[name] = value
    return values


# ---------------------------------------------------------------------------------------- arrays


def align(recurrence: Recurrence, inputs: Sequence[Any]) -> dict[str, Array | None]:
    """Return the inputs by their roles, X, W and so on; None for those left out."""
    if not isinstance(inputs, list | tuple):
        raise TypeError(f"inputs has type {type(inputs).__name__}; expected a list aligned with node.input")
    if len(inputs) != len(recurrence.inputs):
        raise recurrence.error(
            f"there are {len(inputs)} inputs; expected {len(recurrence.inputs)}, aligned with node.input"
        )
    known = _known_inputs(recurrence.cell)
    values: dict[str, Array | None] = dict.fromkeys(known)
    for role, name, value in zip(known, recurrence.inputs, inputs, strict=False):
        if (value is None) != (name == ""):
            have = "None" if value is None else f"of type {type(value).__name__}"
            expected = "an array" if name else "None, as the node leaves it out"
            raise recurrence.error(f"the input {role}, {name!r} in the node, is {have}; expected {expected}")
        try:
            values[role] = None if value is None else as_array(role, value)
        except ValueError as error:
            raise recurrence.error(str(error)) from None
    return values


def as_array(name: str, value: Any) -> Array:
    """Take an array of any library, or what NumPy makes one of."""
    if hasattr(value, "__dlpack__"):
        return take(name, value)
    try:
        return np.asarray(value)
    except ValueError as error:  # ragged
        raise ValueError(f"{name} has type {type(value).__name__}, which makes no array: {error}") from None


@dataclass(frozen=True)
class _Sizes:
    D: int
    H: int
    input: int
    dtype: str


def _check_weights(recurrence: Recurrence, values: dict[str, Array | None], dtype: str) -> _Sizes:
    """Check W, R, B and P against each other; `dtype` is that of X, or where X is not there yet of W."""
    W, R = values["W"], values["R"]
    assert W is not None
    assert R is not None
    G = len(GATES[recurrence.cell])
    for role in ("W", "R", "B", "P"):
        _check_float(recurrence, role, values.get(role), dtype, "W" if values["X"] is None else "X")
    H = recurrence.hidden_size
    if H is None:
        _expect(recurrence, "R", R, {"D": None, f"{G}*H": None, "H": None})
        H = R.shape[2]
        if H < 1:
            raise recurrence.error(f"R has shape {R.shape}; expected H of at least 1")
    D = len(recurrence.activations)
    rows: dict[str, int | None] = {"D": D, f"{G}*H": G * H}
    _expect(recurrence, "R", R, rows | {"H": H})
    _expect(recurrence, "W", W, rows | {"I": None})
    if W.shape[2] < 1:
        raise recurrence.error(f"W has shape {W.shape}; expected I of at least 1")
    _expect(recurrence, "B", values.get("B"), {"D": D, f"{2 * G}*H": 2 * G * H})
    _expect(recurrence, "P", values.get("P"), {"D": D, "3*H": 3 * H})
    return _Sizes(D, H, W.shape[2], dtype)


def _check_float(
    recurrence: Recurrence, role: str, array: Array | None, dtype: str | None = None, like: str = "W"
) -> None:
    if array is not None and array.dtype != (dtype or array.dtype):
        raise recurrence.error(f"{role} is {array.dtype}; expected {dtype}, as {like}")
    if array is not None and array.dtype not in (np.float32, np.float64):
        raise recurrence.error(f"{role} is {array.dtype}; expected float32 or float64")


def check_sequence_lens(lengths: Array, steps: int, batch: int) -> None:
    """Raise ValueError unless there are B lengths from 0 to T."""
    expect_shape("sequence_lens", lengths, {"B": batch})
    wrong = lengths[(lengths < 0) | (lengths > steps)]
    if wrong.size:
        raise ValueError(f"sequence_lens has {wrong[0]}; expected from 0 to T = {steps}")


def _expect(recurrence: Recurrence, role: str, array: Array | None, axes: Mapping[str, int | None]) -> None:
    if array is not None:
        try:
            expect_shape(role, array, axes)
        except ValueError as error:
            raise recurrence.error(str(error)) from None


class Bound:
    """A node with its weights, packed for the path that runs it."""

    def __init__(self, recurrence: Recurrence, values: dict[str, Array | None], dtype: str) -> None:
        self.recurrence = recurrence
        self.sizes = _check_weights(recurrence, values, dtype)
        W, R, B, P = (values.get(role) for role in ("W", "R", "B", "P"))
        assert W is not None
        assert R is not None
        self.packed: functional.Packed | None = None
        self.directions: list[general.Direction] = []
        if recurrence.why_general():
            zeros = np.zeros(W.shape[1], dtype)
            for d, activations in enumerate(recurrence.activations):
                Wb, Rb = (zeros, zeros) if B is None else np.split(B[d], 2)
                self.directions.append(
                    general.Direction(
                        W[d],
                        R[d],
                        Wb,
                        Rb,
                        None if P is None else P[d],
                        activations,
                        recurrence.clip,
                        recurrence.linear_before_reset,
                        recurrence.input_forget,
                    )
                )
        else:
            spec, parameters = fused_parameters(recurrence, self.sizes, W, R, B, P)
            self.packed = functional.pack(spec, parameters)

    def run(self, values: dict[str, Array | None]) -> list[Array | None]:
        """Return the outputs, aligned with the node's, None for those left out."""
        x, state, lengths = self._check(values)
        recurrence, sizes = self.recurrence, self.sizes
        steps, batch = x.shape[:2]
        if steps == 0:
            y = np.zeros((0, batch, sizes.D, sizes.H), sizes.dtype)
            state = tuple(part.copy() for part in state)
        elif self.packed is None:
            y, state = self._run_general(x, state, lengths)
        else:
            y, state = self._run_fused(self.packed, x, state, lengths)
        # (T, B, D, H) and (D, B, H) as the layout has them.
        y = y.transpose(1, 0, 2, 3) if recurrence.layout else y.transpose(0, 2, 1, 3)
        if recurrence.layout:
            state = tuple(s.swapaxes(0, 1) for s in state)
        results = [np.ascontiguousarray(a) for a in (y, *state)]
        return [a if name else None for name, a in zip(recurrence.outputs, results, strict=False)]

    def _check(self, values: dict[str, Array | None]) -> tuple[Array, tuple[Array, ...], Array | None]:
        """Return x time-major, the initial state (D, B, H) of each kind, and the lengths."""
        recurrence, sizes = self.recurrence, self.sizes
        x = values["X"]
        assert x is not None
        _check_float(recurrence, "X", x, sizes.dtype)
        for role in ("initial_h", "initial_c"):
            _check_float(recurrence, role, values.get(role), sizes.dtype, "X")
        layout = recurrence.layout
        _expect(recurrence, "X", x, dict.fromkeys("BT" if layout else "TB") | {"I": sizes.input})
        x = x.swapaxes(0, 1) if layout else x
        steps, batch = x.shape[:2]

        lengths = values.get("sequence_lens")
        if lengths is not None:
            if lengths.dtype != np.int32:
                raise recurrence.error(f"sequence_lens is {lengths.dtype}; expected int32")
            try:
                check_sequence_lens(lengths, steps, batch)
            except ValueError as error:
                raise recurrence.error(str(error)) from None

        state = []
        for role in ("initial_h", "initial_c")[: _STATES[recurrence.cell]]:
            value = values.get(role)
            axes = {"B": batch, "D": sizes.D} if layout else {"D": sizes.D, "B": batch}
            _expect(recurrence, role, value, axes | {"H": sizes.H})
            if value is None:
                value = np.zeros((sizes.D, batch, sizes.H), sizes.dtype)
            elif layout:
                value = value.swapaxes(0, 1)
            state.append(value)
        return x, tuple(state), lengths

    def _run_fused(
        self, packed: functional.Packed, x: Array, state: tuple[Array, ...], lengths: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        turned = self.recurrence.direction == "reverse"
        y, state_n = functional.forward(
            packed.spec,
            packed,
            from_the_end(x, lengths) if turned else x,
            state if len(state) == 2 else state[0],
            lengths=lengths,
        )
        y = from_the_end(y, lengths) if turned else y
        return y.reshape(*y.shape[:2], self.sizes.D, self.sizes.H), (
            state_n if len(state) == 2 else (state_n,)
        )

    def _run_general(
        self, x: Array, state: tuple[Array, ...], lengths: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        recurrence = self.recurrence
        ys, states = [], []
        for d, direction in enumerate(self.directions):
            turned = recurrence.direction == "reverse" or d == 1
            own = from_the_end(x, lengths) if turned else x
            y, state_n = general.run(recurrence.cell, direction, own, tuple(s[d] for s in state), lengths)
            ys.append(from_the_end(y, lengths) if turned else y)
            states.append(state_n)
        return np.stack(ys, axis=2), tuple(np.stack(parts) for parts in zip(*states, strict=True))


def fused_parameters(
    recurrence: Recurrence, sizes: _Sizes, W: Array, R: Array, B: Array | None, P: Array | None
) -> tuple[Spec, dict[str, Array]]:
    """Return a one-layer network and its parameters; a node in reverse becomes one that runs forward."""
    cell = recurrence.cell
    spec = Spec(
        cell,
        sizes.input,
        sizes.H,
        bias=B is not None,
        bidirectional=recurrence.direction == "bidirectional",
        dtype="float32" if sizes.dtype == "float32" else "float64",
    )
    if cell == "lstm" and P is not None:
        spec = replace(spec, peephole="diagonal")
    if cell == "gru":
        spec = replace(spec, reset_after=recurrence.linear_before_reset)
    if cell == "rnn":
        spec = replace(spec, nonlinearity=_NONLINEARITIES[recurrence.activations[0][0]])

    given, wanted = ORDERS["onnx"][cell], ORDERS["fastrnn"][cell]
    parameters = {}
    for d, suffix in enumerate(spec.suffixes()):
        parameters["weight_ih" + suffix] = reorder(W[d], given, wanted)
        parameters["weight_hh" + suffix] = reorder(R[d], given, wanted)
        if B is not None:
            Wb, Rb = np.split(B[d], 2)
            parameters["bias_ih" + suffix] = reorder(Wb, given, wanted)
            parameters["bias_hh" + suffix] = reorder(Rb, given, wanted)
        if P is not None:
            peepholes = PEEPHOLE_ORDERS["onnx"], PEEPHOLE_ORDERS["fastrnn"]
            parameters["weight_ch" + suffix] = reorder(P[d], *peepholes)
    return spec, parameters


def dtype_of_x(recurrence: Recurrence, values: dict[str, Array | None]) -> str:
    """Return the dtype of X, which is that of all floats of a node."""
    _check_float(recurrence, "X", values["X"])
    assert values["X"] is not None
    return str(values["X"].dtype)


def run_node(node: Any, inputs: Sequence[Any]) -> list[Array | None]:
    """Run one RNN, GRU or LSTM node of opset 7 to the newest.

    Parameters
    ----------
    node : onnx.NodeProto
        Every attribute counts: direction, activations with alpha and beta, clip, layout, hidden_size (which
        may be missing), linear_before_reset, input_forget.
    inputs : list of array or None
        Aligned with ``node.input``; None where that has "".  With layout=0: X (T, B, I), W (D, G*H, I),
        R (D, G*H, H), B (D, 2*G*H), sequence_lens int32 (B,), initial_h and initial_c (D, B, H),
        P (D, 3*H); floats all float32 or all float64.

    Returns
    -------
    list of array or None
        Aligned with ``node.output``; None where that has "".  With layout=0: Y (T, D, B, H), 0 past a row's
        length; Y_h and Y_c (D, B, H), those of a row's own end.

    Raises
    ------
    TypeError
        `node` is no node, or `inputs` no list.
    ValueError
        The node is malformed, or its inputs do not fit: the message says what is wrong.

    Notes
    -----
    `plan_node` tells whether the fused kernels run it.  Where the specification says nothing: clip does not
    bound c where the activation h is applied to it, as in onnxruntime; a row of length 0 ends in its initial
    state, where onnxruntime gives 0; ScaledTanh without alpha and beta is tanh.

    References
    ----------
    https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import helper
    >>> from fastrnn.onnx import run_node
    >>> node = helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["", "h_n"], hidden_size=4)
    >>> x, w, r, h = (np.ones(s, "float32") for s in [(5, 2, 3), (1, 12, 3), (1, 12, 4), (1, 2, 4)])
    >>> y, h_n = run_node(node, [x, w, r, None, None, h])
    >>> y, h_n.shape
    (None, (1, 2, 4))
    """
    recurrence = read_node(node)
    values = align(recurrence, inputs)
    return Bound(recurrence, values, dtype_of_x(recurrence, values)).run(values)


def plan_node(node: Any, inputs: Sequence[Any] | None = None) -> Report:
    """Tell which path runs a node, and why; computes nothing.

    Parameters
    ----------
    node : onnx.NodeProto
    inputs : list, optional
        As for `run_node`: then the kernel is named too.

    Returns
    -------
    Report
        ``path`` is "fused", the compiled kernels, or "general", loops over NumPy arrays; ``why`` lists what
        the kernels do not have.

    Raises
    ------
    TypeError, ValueError
        As `run_node`.

    Examples
    --------
    >>> from onnx import helper
    >>> from fastrnn.onnx import plan_node
    >>> plan_node(helper.make_node("LSTM", ["x", "w", "r"], ["y"], clip=3.0))
    path: general
    why:  clip = 3
    """
    recurrence = read_node(node)
    if inputs is None:
        return plan(recurrence)
    values = align(recurrence, inputs)
    bound = Bound(recurrence, values, dtype_of_x(recurrence, values))
    x, _, _ = bound._check(values)
    report = plan(recurrence)
    if bound.packed is not None and len(x):
        report.update(CPU.network(bound.packed.spec).explain(*x.shape[:2], False, False))
    return report


def plan(recurrence: Recurrence) -> Report:
    """Return the report of `plan_node` without the kernel."""
    reasons = recurrence.why_general()
    if not reasons:
        return Report(path="fused", why="all of it is what the kernels compute")
    return Report(path="general", why=reasons)
