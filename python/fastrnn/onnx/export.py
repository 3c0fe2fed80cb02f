"""Layers and models with a readout written as ONNX models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._backends import on_host
from .._extras import require
from .._orders import ORDERS, PEEPHOLE_ORDERS, reorder
from ..layers import GRU, LSTM, RNN
from ..layouts import Spec, boolean, integer
from ..models import ManyToMany, ManyToOne

Array = NDArray[Any]

_OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid", "identity": "Affine"}
_OLDEST_OPSET = 13  # Squeeze's axes are an input from there on


class _Graph:
    """Nodes and initializers as they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, inputs: Sequence[str], outputs: Sequence[str] | str, **attributes: Any) -> str:
        """Add a node; returns its first output."""
        from onnx import helper

        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=attributes.pop("name", names[0]), **attributes)
        )
        return names[0]


def node_weights(spec: Spec, parameters: Any, layer: int) -> dict[str, Array]:
    """Return W, R, and B and P where there are such, of one layer as ONNX has them."""
    directions = range(layer * spec.num_directions, (layer + 1) * spec.num_directions)
    suffixes = [spec.suffixes()[index] for index in directions]
    given, wanted = ORDERS["fastrnn"][spec.cell], ORDERS["onnx"][spec.cell]

    def of(name: str, orders: tuple[tuple[str, ...], tuple[str, ...]] = (given, wanted)) -> Array:
        return np.stack([reorder(on_host(parameters[name + suffix]), *orders) for suffix in suffixes])

    weights = {"W": of("weight_ih"), "R": of("weight_hh")}
    if spec.bias:
        weights["B"] = np.concatenate([of("bias_ih"), of("bias_hh")], axis=1)
    if spec.peephole == "diagonal":
        weights["P"] = of("weight_ch", (PEEPHOLE_ORDERS["fastrnn"], PEEPHOLE_ORDERS["onnx"]))
    return weights


def _add_layers(
    graph: _Graph, layer: Any, x: str, y: str, lengths: bool, state: bool
) -> tuple[str, list[str]]:
    """Add a stack of layers over the time-major `x`; returns the names of y (T, B, D*H) and of the states."""
    spec: Spec = layer._spec
    parts = ["h", "c"] if spec.cell == "lstm" else ["h"]
    keep = graph.constant("keep", np.array([0, 0, -1], np.int64))  # T and B as they are, D*H one axis
    attributes: dict[str, Any] = {
        "hidden_size": spec.hidden_size,
        "direction": "bidirectional" if spec.bidirectional else "forward",
    }
    if spec.cell == "gru":
        attributes["linear_before_reset"] = int(spec.reset_after)
    if spec.cell == "rnn":
        attributes["activations"] = [_ACTIVATIONS[spec.nonlinearity]] * spec.num_directions
        if spec.nonlinearity == "identity":
            attributes["activation_alpha"] = [1.0] * spec.num_directions
            attributes["activation_beta"] = [0.0] * spec.num_directions
    last: dict[str, list[str]] = {part: [] for part in parts}
    for index in range(spec.num_layers):
        prefix = f"l{index}"
        weights = node_weights(spec, layer.parameters, index)
        inputs = [x]
        inputs += [graph.constant(f"{prefix}_{k}", weights[k]) if k in weights else "" for k in "WRB"]
        inputs.append("lengths" if lengths else "")
        for part in parts:
            name = ""
            if state:
                name = f"{part}_0"
                if spec.num_layers > 1:
                    edges = [index * spec.num_directions, (index + 1) * spec.num_directions]
                    bounds = [
                        graph.constant(f"{prefix}_{part}_{end}", np.array([edge], np.int64))
                        for end, edge in zip(("start", "end"), edges, strict=True)
                    ]
                    axis = graph.constant(f"{prefix}_{part}_axis", np.array([0], np.int64))
                    name = graph.add("Slice", [name, *bounds, axis], f"{prefix}_{part}_0")
            inputs.append(name)
        if "P" in weights:
            inputs.append(graph.constant(f"{prefix}_P", weights["P"]))
        while inputs[-1] == "":
            inputs.pop()
        only = spec.num_layers == 1
        outputs = [f"{prefix}_y"]
        for part in parts:
            outputs.append(f"{part}_n" if only else f"{prefix}_{part}_n")
            last[part].append(outputs[-1])
        graph.add(_OPERATORS[spec.cell], inputs, outputs, name=prefix, **attributes)
        turned = graph.add("Transpose", [outputs[0]], f"{prefix}_turned", perm=[0, 2, 1, 3])
        final = index == spec.num_layers - 1
        x = graph.add("Reshape", [turned, keep], y if final else f"{prefix}_joined")
    if spec.num_layers > 1:
        for part in parts:
            graph.add("Concat", last[part], f"{part}_n", axis=0)
    return x, [f"{part}_n" for part in parts]


def to_onnx(
    model: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    lengths: bool = False,
    state: bool = False,
    opset: int = 17,
) -> Any:
    """Write a layer, or a layer with a readout, as an ONNX model, in inference mode.

    Parameters
    ----------
    model : LSTM, GRU, RNN, models.ManyToMany or models.ManyToOne
        Of float32 or float64 (which onnxruntime does not run).
    path : str or path, optional
        Where to write it too.
    lengths, state : bool, optional
        Whether the model has the inputs `lengths`, int32 (B,), and `h_0`, for LSTM also `c_0`.
    opset : int, optional
        13 or newer.

    Returns
    -------
    onnx.ModelProto
        Inputs x, and lengths, h_0, c_0 where asked for; outputs y, or with a readout o, then h_n, for LSTM
        also c_n; all of the shapes that a call of `model` has, T and B free.  o are logits, as in a call.

    Raises
    ------
    TypeError, ValueError
        Something is not as stated, or the model has what no ONNX operator has: a projection, a full
        peephole, or zoneout.

    Notes
    -----
    For a row of length 0 with an initial state onnxruntime gives a final state of 0, not the initial one.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.onnx import to_onnx
    >>> model = ManyToMany(fastrnn.LSTM(3, 4, num_layers=2), 5)
    >>> [output.name for output in to_onnx(model).graph.output]
    ['o', 'h_n', 'c_n']
    """
    require("onnx", "to_onnx")
    import onnx
    from onnx import helper

    lengths, state = boolean("lengths", lengths), boolean("state", state)
    opset = integer("opset", opset, _OLDEST_OPSET, onnx.defs.onnx_opset_version())
    layer = model.layer if isinstance(model, ManyToMany | ManyToOne) else model
    if not isinstance(layer, LSTM | GRU | RNN):
        raise TypeError(
            f"model is {model!r}; expected an LSTM, GRU or RNN, or a ManyToMany or ManyToOne of one of them"
        )
    spec = layer._spec
    for what, has in (
        ("a projection", spec.proj_size),
        ("a full peephole", spec.peephole == "full"),
        ("zoneout", any(spec.zoneout_of)),  # whose expectation is part of inference
    ):
        if has:
            raise ValueError(f"model is {model!r}; expected none with {what}, which no ONNX operator has")
    if spec.dtype not in ("float32", "float64"):
        raise ValueError(f"model is {spec.dtype}; expected float32 or float64")

    graph = _Graph()
    batch_first = layer.batch_first
    plain = layer is model and not batch_first
    x = graph.add("Transpose", ["x"], "x_turned", perm=[1, 0, 2]) if batch_first else "x"
    y, states = _add_layers(graph, layer, x, "y" if plain else "y_joined", lengths, state)
    axes: list[Any] = ["B", "T"] if batch_first else ["T", "B"]
    out, last_axes = "y", [*axes, spec.output_size]
    if batch_first:
        graph.add("Transpose", [y], "y", perm=[1, 0, 2])
    elif layer is not model:
        out, last_axes = "o", [*axes, model.output_size]
        if isinstance(model, ManyToOne):
            y, last_axes = _add_last(graph, spec), ["B", model.output_size]
        weight, bias = (on_host(model.readout.parameters[name]) for name in ("weight", "bias"))
        product = graph.add("MatMul", [y, graph.constant("V", weight.T)], "product")
        graph.add("Add", [product, graph.constant("c", bias)], "o")

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    state_axes = [spec.num_layers * spec.num_directions, "B", spec.hidden_size]
    inputs = [helper.make_tensor_value_info("x", kind, [*axes, spec.input_size])]
    if lengths:
        inputs.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, ["B"]))
    if state:
        names = [name.replace("_n", "_0") for name in states]
        inputs += [helper.make_tensor_value_info(name, kind, state_axes) for name in names]
    outputs = [helper.make_tensor_value_info(out, kind, last_axes)]
    outputs += [helper.make_tensor_value_info(name, kind, state_axes) for name in states]
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(
        helper.make_graph(graph.nodes, type(model).__name__, inputs, outputs, graph.initializers),
        opset_imports=opsets,
        producer_name="fastrnn",
        ir_version=helper.find_min_ir_version_for(opsets),
    )
    onnx.checker.check_model(made)
    if path is not None:
        onnx.save(made, os.fspath(path))
    return made


def _add_last(graph: _Graph, spec: Spec) -> str:
    """Add what takes h after the last step of the last layer's directions, side by side (B, D*H)."""
    name = "h_n" if spec.num_layers == 1 else f"l{spec.num_layers - 1}_h_n"
    turned = graph.add("Transpose", [name], "h_turned", perm=[1, 0, 2])
    return graph.add("Reshape", [turned, graph.constant("join", np.array([0, -1], np.int64))], "h_joined")
