"""Models of recurrent nodes and the few operators that exporters write around them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import expect_shape
from .._extras import require
from .._orders import from_the_end
from ..info import Report
from .nodes import (
    CELLS,
    INPUTS,
    BadNodeError,
    Bound,
    Recurrence,
    as_array,
    check_sequence_lens,
    dtype_of_x,
    is_own,
    node_label,
    plan,
    read_attributes,
    read_node,
)

Array = NDArray[Any]
Run = Callable[[list[Array | None]], Sequence[Array | None]]

OLDEST_OPSET = 7


def _axes(values: list[Any], attributes: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return axes: an attribute in older opsets, then the second input."""
    if len(values) > 1 and values[1] is not None:
        return tuple(int(axis) for axis in values[1])
    return tuple(attributes["axes"]) if "axes" in attributes else None


def _squeeze(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    return np.asarray(np.squeeze(values[0], _axes(values, attributes)))


def _unsqueeze(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    axes = _axes(values, attributes)
    assert axes is not None  # no opset leaves them out
    return np.expand_dims(values[0], axes)


def _reshape(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    array, wanted = values[0], [int(size) for size in values[1]]
    copied = [] if attributes.get("allowzero", 0) else [i for i, size in enumerate(wanted) if size == 0]
    shape = [array.shape[i] if i in copied else size for i, size in enumerate(wanted)]
    if -1 in shape and not array.size:  # what NumPy finds only where there are elements
        rest = math.prod(size for i, size in enumerate(array.shape) if i not in copied)
        known = math.prod(size for i, size in enumerate(wanted) if i not in copied and size != -1)
        if known:
            shape[shape.index(-1)] = rest // known
    return np.asarray(array.reshape(shape))


def _slice(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    if opset < 10:
        starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
    else:
        starts, ends, axes, steps = [*values[1:], None, None][:4]
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    chosen = [slice(None)] * values[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size, step = values[0].shape[int(axis)], int(step)
        start, end = (int(edge) + size if edge < 0 else int(edge) for edge in (start, end))
        # Going backwards, an end before the first element takes that too, where Python would count back.
        if step < 0:
            start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
            chosen[int(axis)] = slice(start, None if end < 0 else end, step) if size else slice(0)
        else:
            chosen[int(axis)] = slice(min(max(start, 0), size), min(max(end, 0), size), step)
    return np.asarray(values[0][tuple(chosen)])


def _split(values: list[Any], attributes: Mapping[str, Any], opset: int) -> list[Array]:
    axis, count = attributes.get("axis", 0), attributes["num_outputs"]
    size = values[0].shape[axis]
    parts = values[1] if len(values) > 1 else attributes.get("split")
    if parts is None:  # equal ones, from opset 18 on with a shorter last one
        each = -(-size // count)
        parts = [each] * (count - 1) + [size - each * (count - 1)]
        if parts[-1] != each and (opset < 18 or parts[-1] <= 0):
            raise ValueError(f"axis {axis} has {size} elements, which do not make {count} parts")
    if len(parts) != count or min(parts) < 0 or sum(parts) != size:
        raise ValueError(
            f"the parts are {[int(part) for part in parts]}; expected {count} that make up {size}"
        )
    return np.split(values[0], np.cumsum(parts)[:-1], axis)


def _divide(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    a, b = values
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)), a.dtype)  # towards 0


def _reverse_sequence(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    axes = attributes.get("time_axis", 0), attributes.get("batch_axis", 1)
    sequence = np.moveaxis(values[0], axes, (0, 1))
    check_sequence_lens(values[1], *sequence.shape[:2])
    return np.moveaxis(from_the_end(sequence, values[1]), (0, 1), axes)


def _softmax(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    x = values[0]
    axis = attributes.get("axis", 1 if opset < 13 else -1)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis is {axis}; expected one of {x.ndim} axes")
    if opset < 13:  # all axes from this one on are one
        axis %= x.ndim
        flat = x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))
        return _softmax([flat], {"axis": 1}, 13).reshape(x.shape)
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def _gemm(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    A = values[0].T if attributes.get("transA", 0) else values[0]
    B = values[1].T if attributes.get("transB", 0) else values[1]
    y = attributes.get("alpha", 1.0) * (A @ B)
    if len(values) > 2 and values[2] is not None:
        C = values[2]
        try:
            C = np.broadcast_to(C, y.shape)  # one way alone: it is not to enlarge the product
        except ValueError:
            raise ValueError(f"C has shape {C.shape}; expected one that broadcasts to {y.shape}") from None
        y = y + attributes.get("beta", 1.0) * C
    return np.asarray(y)


def _reduce_max(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    axes = _axes(values, attributes) or None
    nothing = axes is None and attributes.get("noop_with_empty_axes", 0)
    if (
        nothing or not values[0].ndim
    ):  # PyTorch's exporter writes an axis for scalars too, and onnxruntime takes it
        return np.asarray(values[0].copy())
    return np.asarray(np.max(values[0], axis=axes, keepdims=bool(attributes.get("keepdims", 1))))


def _shape(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    return np.array(values[0].shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _constant(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    ((name, value),) = attributes.items()
    if name == "value":
        return _tensor(value)
    return np.array(value, np.int64 if "int" in name else np.float32)


def _constant_of_shape(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    filling = _tensor(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.full(tuple(int(size) for size in values[0]), filling.item(), filling.dtype)


def _cast(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    from onnx.helper import tensor_dtype_to_np_dtype

    return np.asarray(values[0].astype(tensor_dtype_to_np_dtype(attributes["to"])))


def _expand(values: list[Any], attributes: Mapping[str, Any], opset: int) -> Array:
    wanted = tuple(int(size) for size in values[1])
    return np.broadcast_to(values[0], np.broadcast_shapes(values[0].shape, wanted)).copy()


def _tensor(tensor: Any) -> Array:
    from onnx.numpy_helper import to_array

    return np.asarray(to_array(tensor))


@dataclass(frozen=True)
class _Operator:
    """What an operator computes of inputs, attributes and opset.

    Attributes
    ----------
    attributes : tuple of str
        Those that it reads.
    view : bool
        Whether results may share memory with the first input.
    """

    compute: Callable[[list[Any], Mapping[str, Any], int], Array | list[Array]]
    attributes: tuple[str, ...] = ()
    view: bool = False


# https://onnx.ai/onnx/operators.  The second group makes zero states, shapes and single steps.
_OPERATORS: dict[str, _Operator] = {
    "Add": _Operator(lambda v, a, opset: np.add(*v)),
    "Concat": _Operator(lambda v, a, opset: np.concatenate(v, a["axis"]), ("axis",)),
    "Gemm": _Operator(_gemm, ("alpha", "beta", "transA", "transB")),
    "MatMul": _Operator(lambda v, a, opset: np.matmul(*v)),
    "Relu": _Operator(lambda v, a, opset: np.maximum(v[0], 0)),
    "Reshape": _Operator(_reshape, ("allowzero",), view=True),
    "Sigmoid": _Operator(lambda v, a, opset: 1 / (1 + np.exp(-v[0]))),
    "Slice": _Operator(_slice, ("starts", "ends", "axes"), view=True),
    "Softmax": _Operator(_softmax, ("axis",)),
    "Squeeze": _Operator(_squeeze, ("axes",), view=True),
    "Tanh": _Operator(lambda v, a, opset: np.tanh(v[0])),
    "Transpose": _Operator(lambda v, a, opset: np.transpose(v[0], a.get("perm")), ("perm",), view=True),
    "Unsqueeze": _Operator(_unsqueeze, ("axes",), view=True),
    #
    "Cast": _Operator(_cast, ("to", "saturate", "round_mode")),
    "Constant": _Operator(_constant, ("value", "value_float", "value_floats", "value_int", "value_ints")),
    "ConstantOfShape": _Operator(_constant_of_shape, ("value",)),
    "Div": _Operator(_divide),
    "Expand": _Operator(_expand),
    "Gather": _Operator(lambda v, a, opset: np.take(v[0], v[1], axis=a.get("axis", 0)), ("axis",)),
    "Greater": _Operator(lambda v, a, opset: np.greater(*v)),
    "Identity": _Operator(lambda v, a, opset: v[0], view=True),
    "Less": _Operator(lambda v, a, opset: np.less(*v)),
    "Mul": _Operator(lambda v, a, opset: np.multiply(*v)),
    "ReduceMax": _Operator(_reduce_max, ("axes", "keepdims", "noop_with_empty_axes")),
    "ReverseSequence": _Operator(_reverse_sequence, ("batch_axis", "time_axis")),
    "Shape": _Operator(_shape, ("start", "end")),
    "Split": _Operator(_split, ("axis", "num_outputs", "split"), view=True),
    "Sub": _Operator(lambda v, a, opset: np.subtract(*v)),
    "Where": _Operator(lambda v, a, opset: np.where(*v)),
}


@dataclass(frozen=True)
class _Step:
    """A node, ready to run; `view` as of an `_Operator`."""

    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Run
    recurrence: Recurrence | None = None
    view: bool = False

    def __call__(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the named outputs."""
        try:
            with np.errstate(all="ignore"):
                results = self.run([values[name] if name else None for name in self.inputs])
        except BadNodeError:  # which says where
            raise
        except (ValueError, IndexError, TypeError, KeyError) as error:
            raise ValueError(f"{self.label}: {error}") from error
        return {
            name: array
            for name, array in zip(self.outputs, results, strict=True)
            if name and array is not None
        }


def _plain_step(node: Any, opset: int) -> _Step:
    label = node_label(node)
    operator = _OPERATORS.get(node.op_type) if is_own(node) else None
    if operator is None:
        domain = "" if is_own(node) else f" of the domain {node.domain!r}"
        raise BadNodeError(
            f"{label}: the operator {node.op_type}{domain} is not among those that run here: "
            f"{', '.join([*CELLS, *_OPERATORS])}"
        )
    unknown = [a.name for a in node.attribute if a.name not in operator.attributes]
    if unknown:
        raise BadNodeError(f"{label}: the attribute {unknown[0]} is not one of those that are known here")
    attributes, alike = _read_by_schema(node, label, opset)
    count = len(node.output)
    if node.op_type == "Split" and attributes.setdefault("num_outputs", count) != count:
        raise BadNodeError(f"{label}: num_outputs is {attributes['num_outputs']}, but it has {count} outputs")

    def run(values: list[Array | None]) -> list[Array]:
        for places in alike:
            kinds = [str(v.dtype) for place in places if (v := values[place]) is not None]
            if len({*kinds}) > 1:
                raise ValueError(f"inputs are {', '.join(kinds)}; expected one dtype")
        results = operator.compute(values, attributes, opset)
        return results if isinstance(results, list) else [np.asarray(results)]

    return _Step(label, tuple(node.input), tuple(node.output), run, view=operator.view)


def _read_by_schema(node: Any, label: str, opset: int) -> tuple[dict[str, Any], list[list[int]]]:
    """Return the attributes, and which inputs have to be of one dtype.

    Raises BadNodeError where these, or the number of inputs or outputs, are not those of the operator.
    """
    from onnx.defs import OpSchema, SchemaError, get_schema

    try:
        schema = get_schema(node.op_type, opset, "")
    except SchemaError:
        raise BadNodeError(f"{label}: opset {opset} does not have the operator {node.op_type}") from None
    for what, names, least, most in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", node.output, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            expected = str(least) if least == most else f"from {least} to {most}"
            raise BadNodeError(f"{label}: it has {len(names)} {what}; expected {expected}")
    alike: dict[str, list[int]] = {}
    for place, name in enumerate(node.input):
        known = schema.inputs[min(place, len(schema.inputs) - 1)]  # the last one may stand for several
        if not name and known.option != OpSchema.FormalParameterOption.Optional:
            raise BadNodeError(f"{label}: the input {known.name} is missing")
        alike.setdefault(known.type_str, []).append(place)
    kinds = {name: int(attribute.type.value) for name, attribute in schema.attributes.items()}
    attributes = read_attributes(node, kinds, lambda text: BadNodeError(f"{label}: {text}"))
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in attributes:
            raise BadNodeError(f"{label}: the attribute {name} is missing")
    return attributes, [places for places in alike.values() if len(places) > 1]


def _recurrent_step(node: Any, constants: Mapping[str, Array]) -> _Step:
    recurrence = read_node(node)

    def aligned(values: list[Array | None]) -> dict[str, Array | None]:
        return dict.fromkeys(INPUTS) | dict(zip(INPUTS, values, strict=False))

    weights = [name for role, name in zip(INPUTS, recurrence.inputs, strict=False) if role in "WRBP" and name]
    bound = None
    if all(name in constants for name in weights):  # packed once
        given = aligned([constants.get(name) if name in weights else None for name in recurrence.inputs])
        assert given["W"] is not None
        bound = Bound(recurrence, given, str(given["W"].dtype))

    def run(values: list[Array | None]) -> list[Array | None]:
        roles = aligned(values)
        ready = bound or Bound(recurrence, roles, dtype_of_x(recurrence, roles))
        return ready.run(roles)

    return _Step(recurrence.label, recurrence.inputs, recurrence.outputs, run, recurrence)


class Stack:
    """A model made by `from_onnx`: call it with its inputs in order, get a list of its outputs.

    Attributes
    ----------
    inputs, outputs : tuple of str
        Names, in order.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.onnx import from_onnx, to_onnx
    >>> stack = from_onnx(to_onnx(fastrnn.GRU(3, 4)))
    >>> y, h_n = stack(np.ones((5, 2, 3), "float32"))
    >>> stack, y.shape, stack.explain()
    (Stack(x -> y, h_n), (5, 2, 4), GRU node 'l0': fused)
    """

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        opset = opsets[0] if opsets else 1
        if opset < OLDEST_OPSET:
            raise ValueError(f"the model has opset {opset}; expected {OLDEST_OPSET} or newer")
        graph = model.graph
        if graph.sparse_initializer:
            raise ValueError("the model has sparse initializers; expected dense ones")
        self._constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self._taken: dict[str, tuple[np.dtype[Any], list[int | None] | None]] = {}
        for value in graph.input:
            if value.name not in self._constants:
                self._taken[value.name] = _declared(value)
        self.inputs = tuple(self._taken)
        self.outputs = tuple(value.name for value in graph.output)

        self._steps: list[_Step] = []
        known = {*self._constants, *self.inputs}
        owner = {name: name for name in known}  # of the memory, which a view has from its first input
        for node in graph.node:
            if node.op_type in CELLS and is_own(node):
                step = _recurrent_step(node, self._constants)
            else:
                step = _plain_step(node, opset)
            unknown = [name for name in step.inputs if name and name not in known]
            if unknown:
                raise BadNodeError(f"{step.label}: nothing before it makes its input {unknown[0]!r}")
            again = [name for name in step.outputs if name and name in known]
            if again:
                raise BadNodeError(f"{step.label}: it makes {again[0]!r}, which is there already")
            if step.recurrence is None and all(name in self._constants for name in step.inputs if name):
                self._constants |= step(self._constants)
            else:
                self._steps.append(step)
            known |= {*step.outputs}
            owner |= {name: owner[step.inputs[0]] if step.view else name for name in step.outputs}
        missing = [name for name in self.outputs if name not in known]
        if missing:
            raise ValueError(f"no node makes the output {missing[0]!r} of the model")
        # Those that would share memory with a constant, an input or another output.
        taken = {*self._constants, *self.inputs}
        self._copied = set()
        for name in self.outputs:
            if owner[name] in taken:
                self._copied.add(name)
            taken.add(owner[name])

    def __call__(self, *inputs: Any) -> list[Array]:
        """Run the model.

        Parameters
        ----------
        *inputs : array
            In the order of `inputs`, of the dtypes and shapes that the model says.

        Returns
        -------
        list of array
            In the order of `outputs`; each has memory of its own.

        Raises
        ------
        TypeError, ValueError
            The number, a dtype or a shape of the inputs is wrong, or a node cannot take its own.
        """
        if len(inputs) != len(self.inputs):
            raise TypeError(
                f"there are {len(inputs)} inputs; expected {len(self.inputs)}: {', '.join(self.inputs)}"
            )
        values = dict(self._constants)
        for (name, (dtype, dims)), given in zip(self._taken.items(), inputs, strict=True):
            array = as_array(name, given)
            if array.dtype != dtype:
                raise TypeError(f"{name} is {array.dtype}; expected {dtype}")
            if dims is not None:
                expect_shape(name, array, {f"d{i}": size for i, size in enumerate(dims)})
            values[name] = array
        for step in self._steps:
            values |= step(values)
        return [values[name].copy() if name in self._copied else values[name] for name in self.outputs]

    def explain(self) -> Report:
        """Tell for each recurrent node whether the fused kernels run it, or why not.

        Nodes of one name are numbered.  There is nothing about a model without such nodes: NumPy runs it.
        """
        report = Report()
        for step in self._steps:
            if step.recurrence is not None:
                same = sum(label.partition(" #")[0] == step.label for label in report)
                label = f"{step.label} #{same + 1}" if same else step.label
                report[label] = _path(plan(step.recurrence))
        return report

    def __repr__(self) -> str:
        return f"Stack({', '.join(self.inputs)} -> {', '.join(self.outputs)})"


def _declared(value: Any) -> tuple[np.dtype[Any], list[int | None] | None]:
    """Return what a model says of an input: its dtype and its sizes, None for a free one or for all."""
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.elem_type:
        what = value.type.WhichOneof("value") or "no type"
        what = "a tensor of no element type" if what == "tensor_type" else what.removesuffix("_type")
        raise ValueError(
            f"the input {value.name!r} of the model is {what}; expected a tensor of a known type"
        )
    try:
        dtype = np.dtype(tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        raise ValueError(
            f"the input {value.name!r} of the model has the element type {kind.elem_type}, which is unknown"
        ) from None
    if not kind.HasField("shape"):
        return dtype, None
    return dtype, [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]


def _path(report: Report) -> str:
    return "fused" if report["path"] == "fused" else f"general: {', '.join(report['why'])}"


def from_onnx(path: Any) -> Stack:
    """Read a model of recurrent nodes, as PyTorch's and Keras's exporters write them.

    Parameters
    ----------
    path : str, path or onnx.ModelProto
        Of opset 7 or newer.

    Returns
    -------
    Stack
        To be called with the model's inputs.  Weights are packed once; what depends on constants alone is
        computed once.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no ONNX model, or a node is malformed or of an operator other than RNN, GRU, LSTM, Transpose,
        Squeeze, Unsqueeze, Reshape, Concat, Slice, MatMul, Gemm, Add, Softmax, Relu, Sigmoid, Tanh, and
        those that exporters make shapes, zero states and single steps with: Cast, Constant,
        ConstantOfShape, Div, Expand, Gather, Greater, Identity, Less, Mul, ReduceMax, ReverseSequence,
        Shape, Split, Sub, Where.  The message names the node.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.onnx import from_onnx, to_onnx
    >>> layer = fastrnn.LSTM(3, 4, seed=0).eval()
    >>> x = np.ones((5, 2, 3), "float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = to_onnx(layer, folder + "/lstm.onnx")
    ...     y, h_n, c_n = from_onnx(folder + "/lstm.onnx")(x)
    >>> bool((y == layer(x)[0]).all())
    True
    """
    if not isinstance(path, str | os.PathLike):
        if not hasattr(path, "graph"):
            raise TypeError(f"path has type {type(path).__name__}; expected a path or an onnx.ModelProto")
        return Stack(path)
    require("onnx", "from_onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(os.fspath(path))
    except DecodeError as error:
        raise ValueError(f"{os.fspath(path)} is not an ONNX model: {error}") from error
    return Stack(model)
