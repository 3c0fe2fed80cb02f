"""Do layers written as ONNX run in onnxruntime to the same numbers, and do exported models run here?"""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras, when imported, takes TensorFlow unless told

import fastrnn
import numpy as np
import onnx
import pytest
from fastrnn.models import ManyToMany, ManyToOne, OneToMany
from fastrnn.onnx import Stack, from_onnx, run_node, to_onnx
from onnx import TensorProto, helper, numpy_helper
from problems import flat
from tolerances import assert_close, assert_same_bits, chain

pytestmark = pytest.mark.frameworks

LAYERS: dict[str, Any] = {
    "lstm": lambda **o: fastrnn.LSTM(5, 6, seed=1, **o),
    "peephole": lambda **o: fastrnn.LSTM(5, 6, seed=1, peephole="diagonal", **o),
    "gru": lambda **o: fastrnn.GRU(5, 6, seed=1, **o),
    "gru_reset_before": lambda **o: fastrnn.GRU(5, 6, seed=1, reset_after=False, **o),
    "tanh": lambda **o: fastrnn.RNN(5, 6, seed=1, **o),
    "relu": lambda **o: fastrnn.RNN(5, 6, nonlinearity="relu", seed=1, **o),
    "sigmoid": lambda **o: fastrnn.RNN(5, 6, nonlinearity="sigmoid", seed=1, **o),
    "identity": lambda **o: fastrnn.RNN(5, 6, nonlinearity="identity", seed=1, **o),
}


def run_onnxruntime(model: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    """Run a model as onnxruntime does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = dict(zip([value.name for value in session.get_inputs()], inputs, strict=True))
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype("float32")


def compare(results: list[Any], expected: list[Any], n_products: int = 100) -> None:
    assert len(results) == len(expected)
    for i, (result, right) in enumerate(zip(results, expected, strict=True)):
        assert_close(result, right, n_products=n_products, what=f"output {i}")


# -------------------------------------------------------------------------------------- to_onnx


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("num_layers", "bias", "batch_first"), [(1, True, False), (3, False, True), (2, True, False)]
)
@pytest.mark.parametrize("extra", [False, True])
def test_onnxruntime_gives_the_layers_numbers(
    kind: str,
    bidirectional: bool,
    num_layers: int,
    bias: bool,
    batch_first: bool,
    extra: bool,
    rng: np.random.Generator,
) -> None:
    layer = LAYERS[kind](
        num_layers=num_layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional
    ).eval()
    model = to_onnx(layer, lengths=extra, state=extra)
    x, lengths, state = floats(rng, 3, 4, 5), None, None
    if batch_first:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    given = [x]
    if extra:
        lengths = np.array([3, 1, 2, 3], np.int32)
        states = [
            floats(rng, num_layers * (2 if bidirectional else 1), 4, 6) for _ in layer._spec.state_shapes(4)
        ]
        given += [lengths, *states]
        state = tuple(states) if len(states) == 2 else states[0]
    y, state_n = layer(x, state, lengths=lengths)
    right = [y, *flat(state_n)]
    compare(run_onnxruntime(model, *given), right, chain(layer._spec, 3))

    stack = from_onnx(model)
    assert stack.inputs == ("x", "lengths", "h_0", "c_0")[: len(given)]
    assert set(stack.explain().values()) == {"fused"}
    compare(stack(*given), right, chain(layer._spec, 3))


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("model", [ManyToMany, ManyToOne])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_models_with_a_readout(
    kind: str, bidirectional: bool, model: Any, num_layers: int, rng: np.random.Generator
) -> None:
    layer = LAYERS[kind](bidirectional=bidirectional, num_layers=num_layers)
    made = model(layer, 3, output="softmax", seed=2).eval()
    x, lengths = floats(rng, 4, 5, 5), np.array([4, 1, 3, 2, 4], np.int32)
    exported = to_onnx(made, lengths=True)
    o, state_n = made(x, lengths=lengths)
    compare(run_onnxruntime(exported, x, lengths), [o, *flat(state_n)], chain(layer._spec, 4))
    compare(from_onnx(exported)(x, lengths), [o, *flat(state_n)], chain(layer._spec, 4))


@pytest.mark.parametrize("opset", [13, 17, 22, onnx.defs.onnx_opset_version()])
def test_opsets_and_files(opset: int, tmp_path: Path, rng: np.random.Generator) -> None:
    layer = fastrnn.GRU(5, 6, num_layers=2, seed=0).eval()
    model = to_onnx(layer, tmp_path / "gru.onnx", opset=opset)
    assert model.opset_import[0].version == opset
    onnx.checker.check_model(str(tmp_path / "gru.onnx"), full_check=True)
    x = floats(rng, 3, 2, 5)
    for path in tmp_path / "gru.onnx", str(tmp_path / "gru.onnx"):
        y, h_n = from_onnx(path)(x)
        assert_same_bits(y, layer(x)[0])
        assert_same_bits(h_n, layer(x)[1])


def test_float64_goes_there_and_back(rng: np.random.Generator) -> None:
    layer = fastrnn.LSTM(5, 6, dtype="float64", seed=0).eval()
    x = rng.normal(size=(3, 2, 5))
    y, (h_n, c_n) = layer(x)
    for actual, right in zip(from_onnx(to_onnx(layer))(x), [y, h_n, c_n], strict=True):
        assert_same_bits(actual, right)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (
            lambda: fastrnn.LSTM(3, 4, proj_size=2),
            {},
            ValueError,
            "none with a projection, which no ONNX operator",
        ),
        (lambda: fastrnn.GRU(3, 4, zoneout=0.1), {}, ValueError, "none with zoneout, which no ONNX operator"),
        (lambda: fastrnn.LSTM(3, 4, peephole="full"), {}, ValueError, "none with a full peephole"),
        (lambda: fastrnn.GRUCell(3, 4), {}, TypeError, "expected an LSTM, GRU or RNN, or a ManyToMany"),
        (lambda: OneToMany(fastrnn.GRU(3, 4), 3, 3), {}, TypeError, "expected an LSTM, GRU or RNN, or"),
        (
            lambda: fastrnn.GRU(3, 4),
            {"opset": 12},
            ValueError,
            "opset is 12; expected an integer of at least 13",
        ),
        (
            lambda: fastrnn.GRU(3, 4),
            {"opset": 999},
            ValueError,
            "opset is 999; expected an integer of at most",
        ),
        (lambda: fastrnn.GRU(3, 4), {"state": 1}, TypeError, "state is 1"),
    ],
)
def test_what_cannot_be_written(make: Any, options: Any, error: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        to_onnx(make(), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ from_onnx


@pytest.mark.parametrize(("legacy", "dynamic"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True}),
        ("LSTM", {"bias": False}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
    ],
)
@pytest.mark.parametrize("head", ["all", "last"])
def test_models_of_torchs_exporter(
    cell: str, options: dict[str, Any], legacy: bool, dynamic: bool, batch_first: bool, head: str
) -> None:
    torch = pytest.importorskip("torch")
    if not legacy:
        pytest.importorskip("onnxscript")

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(torch.nn, cell)(4, 6, batch_first=batch_first, **options)
            self.readout = torch.nn.Linear(6 * (1 + self.rnn.bidirectional), 3)

        def forward(self, x: Any) -> Any:
            y, state_n = self.rnn(x)
            last = y[:, -1] if batch_first else y[-1]
            return torch.softmax(self.readout(y if head == "all" else last), -1), state_n

    torch.manual_seed(0)
    network = Network().eval()
    x = torch.randn(3, 5, 4)
    file = io.BytesIO()
    axes = ["batch", "time"] if batch_first else ["time", "batch"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if legacy:
            shapes: Any = {"x": dict(enumerate(axes))} if dynamic else None
            torch.onnx.export(network, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=shapes)
        else:
            # torch.export fixes the number of steps.
            free = ({axes.index("batch"): torch.export.Dim.DYNAMIC},) if dynamic else None
            torch.onnx.export(network, (x,), file, dynamo=True, verbose=False, dynamic_shapes=free)
    stack = from_onnx(onnx.load_from_string(file.getvalue()))
    if legacy or cell != "RNN":  # of which the new exporter makes products too
        assert set(stack.explain().values()) == {"fused"}
    if dynamic:
        sizes = {"batch": 7, "time": 9 if legacy else x.shape[axes.index("time")]}
        x = torch.randn(*(sizes[axis] for axis in axes), 4)
    with torch.no_grad():
        out, state_n = network(x)
    states = state_n if isinstance(state_n, tuple) else (state_n,)
    compare(stack(x.numpy()), [out.numpy(), *(s.numpy() for s in states)])


def graph_model(
    nodes: list[Any], x: np.ndarray, opset: int = 17, constants: dict[str, Any] | None = None, made: int = 0
) -> Any:
    """Make a model from x to y, which is of dtype `made` or that of x, of nodes and initializers."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", made or kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


NODE = helper.make_node


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


OPERATORS: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    # operator, opset, constants after x, attributes; x is (2, 3, 4), or (2, 3) for Gemm
    ("Transpose", 17, {}, {}),
    ("Transpose", 17, {}, {"perm": [1, 0, 2]}),
    ("Reshape", 17, {"s": ints(0, -1)}, {}),
    ("Reshape", 17, {"s": ints(4, 6)}, {"allowzero": 1}),
    ("Unsqueeze", 17, {"a": ints(0, -1)}, {}),
    ("Unsqueeze", 11, {}, {"axes": [1, 4]}),
    ("Concat", 17, {"b": np.ones((2, 1, 4), "f")}, {"axis": 1}),
    ("Slice", 17, {"s": ints(-1), "e": ints(-99), "a": ints(1), "t": ints(-1)}, {}),
    ("Slice", 17, {"s": ints(1, 0), "e": ints(2**62, 2)}, {}),
    ("Slice", 17, {"s": ints(3, -1), "e": ints(-5, 0), "a": ints(2, 1), "t": ints(-2, -1)}, {}),
    ("Slice", 17, {"s": ints(-4, 1), "e": ints(-1, 9), "a": ints(-1, 1)}, {}),
    ("Slice", 17, {"s": ints(-9), "e": ints(-99), "a": ints(2), "t": ints(-1)}, {}),
    ("Slice", 17, {"s": ints(-9, 9), "e": ints(9, -9), "a": ints(2, 1), "t": ints(-2, -2)}, {}),
    ("Slice", 17, {"s": ints(2, -9), "e": ints(1, 2), "a": ints(1, 2), "t": ints(1, 3)}, {}),
    ("Slice", 9, {}, {"starts": [1], "ends": [-1], "axes": [2]}),
    ("Slice", 9, {}, {"starts": [1, 0], "ends": [9, 1]}),
    ("MatMul", 17, {"b": np.linspace(-1, 1, 12, dtype="f").reshape(4, 3)}, {}),
    ("Gemm", 17, {"b": np.linspace(-1, 1, 6, dtype="f").reshape(3, 2), "c": np.ones(2, "f")}, {}),
    (
        "Gemm",
        17,
        {"b": np.linspace(-1, 1, 8, dtype="f").reshape(4, 2), "c": np.ones((3, 1), "f")},
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
    ),
    ("Gemm", 17, {"b": np.linspace(-1, 1, 6, dtype="f").reshape(3, 2)}, {}),
    ("Add", 17, {"b": np.ones((3, 1), "f")}, {}),
    ("Mul", 17, {"b": np.full((3, 1), 0.7, "f")}, {}),
    ("Softmax", 17, {}, {}),
    ("Softmax", 17, {}, {"axis": 1}),
    ("Softmax", 11, {}, {}),
    ("Softmax", 11, {}, {"axis": -1}),
    ("Relu", 17, {}, {}),
    ("Sigmoid", 17, {}, {}),
    ("Tanh", 17, {}, {}),
    ("Identity", 17, {}, {}),
    ("Cast", 17, {}, {"to": TensorProto.DOUBLE}),
    ("Shape", 17, {}, {}),
    ("Shape", 17, {}, {"start": 1, "end": -1}),
    ("Gather", 17, {"i": np.array(-1)}, {"axis": 1}),
    ("Gather", 17, {"i": ints(1, 0, 1)}, {}),
    ("Expand", 17, {"s": ints(5, 2, 1, 4)}, {}),
    ("Sub", 17, {"b": np.full((3, 1), 0.7, "f")}, {}),
    ("Div", 17, {"b": np.full((3, 1), 0.7, "f")}, {}),
    ("Greater", 17, {"b": np.zeros((3, 1), "f")}, {}),
    ("Less", 17, {"b": np.zeros((3, 1), "f")}, {}),
    ("ReduceMax", 17, {}, {"axes": [1, -1], "keepdims": 0}),
    ("ReduceMax", 20, {"a": ints(0)}, {}),
    ("ReduceMax", 20, {}, {}),
    ("ReduceMax", 20, {}, {"noop_with_empty_axes": 1}),
    ("ReverseSequence", 17, {"n": ints(2, 0, 1)}, {}),
    ("ReverseSequence", 17, {"n": ints(3, 1)}, {"time_axis": 1, "batch_axis": 0}),
]


@pytest.mark.parametrize(("op", "opset", "constants", "attributes"), OPERATORS)
def test_operators(
    op: str, opset: int, constants: dict[str, Any], attributes: dict[str, Any], rng: np.random.Generator
) -> None:
    x = floats(rng, *{"Gemm": (2, 3), "Expand": (2, 1, 4)}.get(op, (2, 3, 4)))
    made = {
        "Cast": TensorProto.DOUBLE,
        "Shape": TensorProto.INT64,
        "Greater": TensorProto.BOOL,
        "Less": TensorProto.BOOL,
    }.get(op, 0)
    node = helper.make_node(op, ["x", *constants], ["y"], **attributes)
    model = graph_model([node], x, opset, constants, made)
    (right,) = run_onnxruntime(model, x)
    (y,) = from_onnx(model)(x)
    assert y.dtype == right.dtype
    if y.dtype.kind in "ib":
        assert y.tolist() == right.tolist()
    else:
        assert_close(y, right, n_products=4)


@pytest.mark.parametrize(("opset", "axes"), [(11, [0, 2]), (17, [0, -2]), (17, None)])
def test_squeeze(opset: int, axes: list[int] | None, rng: np.random.Generator) -> None:
    x = floats(rng, 1, 3, 1, 4)
    constants = {"a": ints(*axes)} if axes and opset >= 13 else {}
    attributes = {"axes": axes} if axes and opset < 13 else {}
    model = graph_model(
        [helper.make_node("Squeeze", ["x", *constants], ["y"], **attributes)], x, opset, constants
    )
    assert_same_bits(from_onnx(model)(x)[0], run_onnxruntime(model, x)[0])


@pytest.mark.parametrize(
    ("shape", "wanted", "right"),
    [
        ((0, 3, 4), (0, -1), (0, 12)),
        ((0, 3, 4), (0, 0, -1), (0, 3, 4)),
        ((2, 0), (2, -1), (2, 0)),
        ((3, 0), (-1, 3), (0, 3)),
    ],
)
def test_reshape_of_nothing(shape: tuple[int, ...], wanted: tuple[int, ...], right: tuple[int, ...]) -> None:
    x = np.zeros(shape, "float32")
    model = graph_model([helper.make_node("Reshape", ["x", "s"], ["y"])], x, 17, {"s": ints(*wanted)})
    assert from_onnx(model)(x)[0].shape == right


def test_no_rows() -> None:
    layer = fastrnn.GRU(5, 6, num_layers=2, bidirectional=True)
    y, h_n = from_onnx(to_onnx(layer))(np.zeros((3, 0, 5), "float32"))
    assert y.shape == (3, 0, 12)
    assert h_n.shape == (4, 0, 6)


@pytest.mark.parametrize(
    "attributes",
    [
        {"value": numpy_helper.from_array(np.arange(6.0, dtype="f").reshape(1, 2, 3))},
        {"value_float": 2.5},
        {"value_floats": [1.0, 2.0, 3.0]},
    ],
)
def test_constants(attributes: dict[str, Any], rng: np.random.Generator) -> None:
    x = floats(rng, 4, 2, 3)
    nodes = [
        helper.make_node("Constant", [], ["k"], **attributes),
        helper.make_node("Add", ["x", "k"], ["y"]),
    ]
    model = graph_model(nodes, x)
    assert_same_bits(from_onnx(model)(x)[0], run_onnxruntime(model, x)[0])


def run_both(nodes: list[Any], x: np.ndarray, opset: int, **constants: Any) -> None:
    """Hold y against onnxruntime's, bit for bit."""
    model = graph_model(nodes, x, opset, constants)
    (y,) = from_onnx(model)(x)
    (right,) = run_onnxruntime(model, x)
    assert (y.dtype, y.tolist()) == (right.dtype, right.tolist())


@pytest.mark.parametrize(
    ("opset", "sizes", "attributes"),
    [
        (11, None, {"split": [3, 1, 1], "axis": 1}),
        (11, None, {"axis": -1}),
        (17, [1, 4], {"axis": 1}),
        (17, [0, 6], {"axis": 2}),
        (17, None, {"axis": 2}),
        (18, None, {"axis": 1, "num_outputs": 3}),
    ],
)
def test_split(
    opset: int, sizes: list[int] | None, attributes: dict[str, Any], rng: np.random.Generator
) -> None:
    count = len(sizes or attributes.get("split", "abc"))
    parts = [f"p{i}" for i in range(count)]
    nodes = [
        helper.make_node("Split", ["x", *(["s"] if sizes else [])], parts, **attributes),
        helper.make_node("Concat", parts[::-1], ["y"], axis=attributes["axis"]),
    ]
    run_both(nodes, floats(rng, 2, 5, 6), opset, **({"s": ints(*sizes)} if sizes else {}))


def test_where_and_division_of_integers() -> None:
    x = np.array([[7, -7, 8, -8, 0]], np.int64)
    run_both([NODE("Div", ["x", "d"], ["y"])], x, 17, d=ints(2, 2, -3, -3, 5))
    nodes = [NODE("Greater", ["x", "d"], ["c"]), NODE("Where", ["c", "x", "d"], ["y"])]
    run_both(nodes, x, 17, d=ints(0))


def keras_like(rng: np.random.Generator, opset: int) -> tuple[Any, np.ndarray]:
    """Make what a converter from Keras writes for LSTM with return_sequences, then GRU, then Dense."""
    x = floats(rng, 2, 5, 3)
    weights = {
        "W1": floats(rng, 1, 16, 3),
        "R1": floats(rng, 1, 16, 4),
        "B1": floats(rng, 1, 32),
        "W2": floats(rng, 1, 6, 4),
        "R2": floats(rng, 1, 6, 2),
        "B2": floats(rng, 1, 12),
        "dense": floats(rng, 2, 3),
        "bias": floats(rng, 3),
        "filling": np.zeros(1, "f"),
    }
    squeeze: dict[str, Any] = {}
    axes = {0: ["axis0"], 1: ["axis1"]}
    if opset >= 13:
        weights |= {"axis0": ints(0), "axis1": ints(1)}
    else:
        squeeze, axes = {"axes": [1]}, {0: [], 1: []}
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "W1", "R1", "B1"], ["y1", "", ""], hidden_size=4),
        helper.make_node("Squeeze", ["y1", *axes[1]], ["s1"], **squeeze),
        helper.make_node(
            "GRU",
            ["s1", "W2", "R2", "B2"],
            ["", "h2"],
            hidden_size=2,
            direction="reverse",
            linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["h2", *axes[0]], ["s2"], **({"axes": [0]} if squeeze else {})),
        helper.make_node("MatMul", ["s2", "dense"], ["d"]),
        helper.make_node("Add", ["d", "bias"], ["a"]),
        helper.make_node("Softmax", ["a"], ["y"], axis=1),
    ]
    return graph_model(nodes, x, opset, weights), x


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 22])
def test_models_as_written_from_keras(opset: int, rng: np.random.Generator) -> None:
    model, x = keras_like(rng, opset)
    compare(from_onnx(model)(x), run_onnxruntime(model, x))


def test_weights_that_the_model_computes(rng: np.random.Generator) -> None:
    # From initializers: once.  From inputs: in every call.
    x = floats(rng, 4, 2, 3)
    weights = {"w": floats(rng, 3, 5), "r": floats(rng, 1, 5, 5), "zero": ints(0)}
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"]),
        helper.make_node("Unsqueeze", ["wt", "zero"], ["W"]),
        helper.make_node("RNN", ["x", "W", "r"], ["y"]),
    ]
    stack = from_onnx(graph_model(nodes, x, 17, weights))
    assert len(stack._steps) == 1
    right = run_node(helper.make_node("RNN", ["x", "w", "r"], ["y"]), [x, weights["w"].T[None], weights["r"]])
    assert_same_bits(stack(x)[0], right[0])
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["R"]),
        helper.make_node("RNN", ["x", "W", "R"], ["y"]),
    ]
    square = floats(rng, 1, 3, 3)
    model = graph_model(nodes, square, 17, {"W": floats(rng, 1, 3, 3), "s": ints(1, 3, 3)})
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"])
    W = numpy_helper.to_array(model.graph.initializer[0])
    assert_same_bits(from_onnx(model)(square)[0], run_node(node, [square, W, square])[0])


def keras_export(rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    """Make what Keras's export writes, on TensorFlow, for a Bidirectional LSTM, batch and time free."""
    x = floats(rng, 2, 5, 3)
    weights = {
        "W": floats(rng, 2, 16, 3),
        "R": floats(rng, 2, 16, 4),
        "B": floats(rng, 2, 32),
        "H": ints(4),
        "zero": np.zeros((), "f"),
        "axes": ints(0),
        "starts": ints(0),
        "ends": ints(1),
        "far": ints(2**31 - 1),
        "first": ints(0),
        "second": ints(1),
        "axis1": ints(1),
    }
    nodes = [
        NODE("Shape", ["x"], ["shape"]),
        NODE("Cast", ["shape"], ["shape32"], to=TensorProto.INT32),
        NODE("Slice", ["shape32", "starts", "ends", "axes"], ["batch32"]),
        NODE("Cast", ["batch32"], ["batch"], to=TensorProto.INT64),
        NODE("Concat", ["batch", "H"], ["wanted"], axis=0),
        NODE("Expand", ["zero", "wanted"], ["h"]),
        NODE("Unsqueeze", ["h", "axes"], ["h_one"]),
        NODE("Concat", ["h_one", "h_one"], ["h_both"], axis=0),
        NODE("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        NODE(
            "LSTM",
            ["xt", "W", "R", "B", "", "h_both", "h_both"],
            ["Y", "", ""],
            direction="bidirectional",
            hidden_size=4,
        ),
        NODE("Slice", ["Y", "first", "second", "axis1"], ["forward"]),
        NODE("Slice", ["Y", "second", "far", "axis1"], ["backward"]),
        NODE("Squeeze", ["forward", "axis1"], ["f"]),
        NODE("Squeeze", ["backward", "axis1"], ["b"]),
        NODE("Concat", ["f", "b"], ["joined"], axis=2),
        NODE("Transpose", ["joined"], ["y"], perm=[1, 0, 2]),
    ]
    return graph_model(nodes, x, 15, weights), x


def test_models_as_keras_exports_them_on_tensorflow(rng: np.random.Generator) -> None:
    model, x = keras_export(rng)
    stack = from_onnx(model)
    assert list(stack.explain().values()) == ["fused"]
    compare(stack(x), run_onnxruntime(model, x))


@pytest.mark.parametrize(
    ("kind", "options", "bidirectional"),
    [
        ("LSTM", {"return_sequences": True}, False),
        ("LSTM", {}, True),
        ("LSTM", {"go_backwards": True}, False),
        ("GRU", {}, False),
        ("GRU", {"return_sequences": True}, True),
        ("GRU", {"reset_after": False, "return_sequences": True}, False),
        ("SimpleRNN", {"activation": "relu"}, False),
        ("SimpleRNN", {"return_sequences": True}, True),
    ],
)
def test_models_as_keras_exports_them_on_torch(
    kind: str, options: dict[str, Any], bidirectional: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs on something else")
    layer = getattr(keras.layers, kind)(4, **options)
    network = keras.Sequential(
        [
            keras.Input((5, 3)),
            keras.layers.Bidirectional(layer) if bidirectional else layer,
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    x = floats(rng, 6, 5, 3)
    right = network(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.export(tmp_path / "keras.onnx", format="onnx", verbose=False)
    stack = from_onnx(tmp_path / "keras.onnx")
    assert not stack.explain()  # it is written out step by step
    compare(stack(x), [right.detach().numpy()])


@pytest.mark.parametrize(
    ("make", "shared"),
    [
        (lambda: [NODE("Identity", ["x"], ["y"])], "x"),
        (lambda: [NODE("Transpose", ["x"], ["t"]), NODE("Transpose", ["t"], ["y"])], "x"),
        (lambda: [NODE("Identity", ["k"], ["y"])], "k"),
        (lambda: [NODE("Split", ["x"], ["y", "z"], axis=0)], "x"),
        (lambda: [NODE("Relu", ["x"], ["z"]), NODE("Squeeze", ["z"], ["y"])], "z"),
    ],
)
def test_outputs_have_memory_of_their_own(make: Any, shared: str, rng: np.random.Generator) -> None:
    x = floats(rng, 2, 3, 4)
    nodes = make()
    model = graph_model(nodes, x, 17, {"k": x})
    if any("z" in node.output for node in nodes):
        model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    stack = from_onnx(model)
    results = stack(x)
    first = [result.copy() for result in results]
    for result in results:
        result[...] = 5
    assert not (x == 5).any()
    for again, right in zip(stack(x), first, strict=True):
        assert_same_bits(again, right, shared)


def test_final_state_of_no_steps_is_no_view_of_the_initial_one() -> None:
    node = helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["y", "h_n"])
    x, w, r, h = (np.ones(s, "f") for s in [(0, 2, 3), (1, 12, 3), (1, 12, 4), (1, 2, 4)])
    _, h_n = run_node(node, [x, w, r, None, None, h])
    h_n[...] = 5
    assert (h == 1).all()


# --------------------------------------------------------------------------------------- errors


def broken(*nodes: Any, **constants: Any) -> Any:
    return graph_model(list(nodes), np.zeros((2, 3, 4), "f"), 17, constants)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (broken(NODE("Conv", ["x", "x"], ["y"], name="c")), "Conv node 'c': the operator Conv is not among"),
        (broken(NODE("Erf", ["x"], ["y"])), "Erf node that makes 'y': the operator Erf is not among"),
        (broken(NODE("Relu", ["x"], ["y"], domain="z")), "'y': the operator Relu of the domain 'z' is not"),
        (broken(NODE("LSTM", ["x"], ["y"], name="l")), "LSTM node 'l': the input W is missing"),
        (
            broken(NODE("Relu", ["z"], ["y"])),
            "Relu node that makes 'y': nothing before it makes its input 'z'",
        ),
        (broken(NODE("Relu", ["x"], ["z"])), "no node makes the output 'y' of the model"),
        (broken(NODE("Relu", ["x"], ["y"], slope=1)), "Relu node that makes 'y': the attribute slope is not"),
        (broken(NODE("Relu", ["x"], ["y", "z"])), "it has 2 outputs; expected 1"),
        (
            broken(NODE("Unsqueeze", ["x"], ["y"])),
            "Unsqueeze node that makes 'y': it has 1 inputs; expected 2",
        ),
        (broken(NODE("Add", ["x", "x", "x"], ["y"])), "Add node that makes 'y': it has 3 inputs; expected 2"),
        (broken(NODE("Mul", ["x", "x", "x"], ["y"])), "Mul node that makes 'y': it has 3 inputs; expected 2"),
        (broken(NODE("Concat", ["x"], ["y"])), "Concat node that makes 'y': the attribute axis is missing"),
        (broken(NODE("Concat", ["x"], ["y"], axis=1.5)), "the attribute axis is FLOAT; expected INT"),
        (broken(NODE("Constant", [], ["y"], value=3)), "the attribute value is INT; expected TENSOR"),
        (broken(NODE("Squeeze", ["x"], ["y"], axes=[0])), "unknown attribute 'axes'; expected of none"),
        (
            broken(NODE("Split", ["x"], ["y"], num_outputs=1)),
            "unknown attribute 'num_outputs'; expected of axis",
        ),
        (
            graph_model([NODE("Split", ["x"], ["y"], num_outputs=2)], np.zeros(2, "f"), 18),
            "num_outputs is 2, but it has 1 outputs",
        ),
        (broken(NODE("Slice", ["x"], ["y"])), "it has 1 inputs; expected from 3 to 5"),
        (broken(NODE("Relu", [""], ["y"], name="r")), "Relu node 'r': the input X is missing"),
        (broken(NODE("Concat", ["x", ""], ["y"], axis=0)), "the input inputs is missing"),
        (
            broken(NODE("Relu", ["x"], ["x"])),
            "Relu node that makes 'x': it makes 'x', which is there already",
        ),
        (
            graph_model([NODE("Expand", ["x", "x"], ["y"])], np.zeros(2, "f"), 7),
            "opset 7 does not have the operator Expand",
        ),
        (
            broken(
                NODE("RNN", ["x", "W", "R"], ["y"], name="r"),
                W=np.zeros((1, 5, 4), "f"),
                R=np.zeros((1, 4, 4), "f"),
            ),
            r"RNN node 'r': W has shape \(1, 5, 4\); expected",
        ),
    ],
)
def test_models_that_do_not_run(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (NODE("Reshape", ["x", "s"], ["y"], name="r"), "Reshape node 'r': cannot reshape array of size 24"),
        (NODE("MatMul", ["x", "x"], ["y"]), "MatMul node that makes 'y': "),
        (
            NODE("Add", ["x", "s"], ["y"]),
            "Add node that makes 'y': inputs are float32, int64; expected one dtype",
        ),
        (NODE("Split", ["x", "s"], ["y"]), r"'y': the parts are \[5, 5\]; expected 1 that make up 2"),
        (
            NODE("ReverseSequence", ["x", "s"], ["y"], name="r", time_axis=1, batch_axis=0),
            r"ReverseSequence node 'r': sequence_lens has 5; expected from 0 to T = 3",
        ),
        (
            NODE("ReverseSequence", ["x", "m"], ["y"], name="r", time_axis=1, batch_axis=0),
            r"ReverseSequence node 'r': sequence_lens has -1; expected from 0 to T = 3",
        ),
        (
            NODE("ReverseSequence", ["x", "s"], ["y"], name="r", time_axis=0, batch_axis=2),
            r"ReverseSequence node 'r': sequence_lens has shape \(2,\); expected \(B,\) = \(4,\)",
        ),
        (
            NODE("ReverseSequence", ["x", "one"], ["y"], name="r"),
            r"ReverseSequence node 'r': sequence_lens has shape \(1,\); expected \(B,\) = \(3,\)",
        ),
        (NODE("RNN", ["x", "w", "x"], ["y"], name="n"), r"RNN node 'n': R has shape \(2, 3, 4\); expected"),
    ],
)
def test_calls_that_name_the_node(node: Any, message: str) -> None:
    constants = {"s": ints(5, 5), "m": ints(2, -1), "one": ints(1), "w": np.zeros((1, 4, 4), "f")}
    stack = from_onnx(broken(node, **constants))
    with pytest.raises(ValueError, match=message):
        stack(np.zeros((2, 3, 4), "f"))


def test_calls_with_wrong_inputs() -> None:
    stack = from_onnx(to_onnx(fastrnn.GRU(3, 4), state=True))
    x, h = np.zeros((5, 2, 3), "f"), np.zeros((1, 2, 4), "f")
    with pytest.raises(TypeError, match="there are 1 inputs; expected 2: x, h_0"):
        stack(x)
    with pytest.raises(TypeError, match="x is float64; expected float32"):
        stack(x.astype("float64"), h)
    with pytest.raises(ValueError, match=r"x has shape \(5, 2, 4\); expected .* = \(d0, d1, 3\)"):
        stack(np.zeros((5, 2, 4), "f"), h)
    with pytest.raises(
        ValueError, match=r"GRU node 'l0': initial_h has shape \(1, 3, 4\); expected .* \(1, 2, 4\)"
    ):
        stack(x, np.zeros((1, 3, 4), "f"))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx is not an ONNX model"):
        from_onnx(tmp_path / "text.onnx")
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "none.onnx")
    with pytest.raises(TypeError, match="path has type int; expected a path or"):
        from_onnx(5)


@pytest.mark.parametrize(
    ("node", "opset", "message"),
    [
        (NODE("Split", ["x"], ["y", "z"]), 17, "axis 0 has 3 elements, which do not make 2 parts"),
        (
            NODE("Split", ["x"], [*"yzvw"], num_outputs=4),
            18,
            "axis 0 has 3 elements, which do not make 4 parts",
        ),
        (NODE("Softmax", ["x"], ["y"]), 12, "Softmax node that makes 'y': axis is 1; expected one of 1 axes"),
    ],
)
def test_sizes_that_do_not_fit(node: Any, opset: int, message: str) -> None:
    stack = from_onnx(graph_model([node], np.zeros(3, "f"), opset))
    with pytest.raises(ValueError, match=message):
        stack(np.zeros(3, "f"))


@pytest.mark.parametrize("shape", [(3, 2), (2, 1, 2), (1, 1, 2), (3,)])
def test_gemm_adds_nothing_larger_than_the_product(shape: tuple[int, ...]) -> None:
    node = NODE("Gemm", ["x", "b", "c"], ["y"], name="g")
    constants = {"b": np.ones((3, 2), "f"), "c": np.ones(shape, "f")}
    stack = from_onnx(graph_model([node], np.zeros((1, 3), "f"), 17, constants))
    message = rf"Gemm node 'g': C has shape {re.escape(str(shape))}; expected one that broadcasts to \(1, 2\)"
    with pytest.raises(ValueError, match=message):
        stack(np.zeros((1, 3), "f"))


def test_axes_that_are_no_attribute() -> None:
    model = graph_model([NODE("Unsqueeze", ["x"], ["y"])], np.zeros(2, "f"), 11)
    with pytest.raises(ValueError, match="Unsqueeze node that makes 'y': the attribute axes is missing"):
        from_onnx(model)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            helper.make_tensor_type_proto(0, [2]),
            "a tensor of no element type; expected a tensor of a known type",
        ),
        (helper.make_tensor_type_proto(999, [2]), "has the element type 999, which is unknown"),
        (
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])),
            "'x' of the model is sequence",
        ),
        (onnx.TypeProto(), "the input 'x' of the model is no type; expected a tensor"),
    ],
)
def test_inputs_of_unknown_types(kind: Any, message: str) -> None:
    model = broken(NODE("Relu", ["x"], ["y"]))
    model.graph.input[0].type.CopyFrom(kind)
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


def test_shapes_of_inputs() -> None:
    model = graph_model([NODE("Relu", ["x"], ["y"])], np.zeros((), "f"))
    with pytest.raises(ValueError, match=r"x has shape \(2,\); expected \(\)"):
        from_onnx(model)(np.zeros(2, "f"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert from_onnx(model)(np.zeros((2, 3), "f"))[0].shape == (2, 3)


def test_dtypes_of_weights_are_held_against_each_other() -> None:
    weights = {"w": np.zeros((1, 4, 4), "f"), "r": np.zeros((1, 4, 4))}
    with pytest.raises(ValueError, match="RNN node 'n': R is float64; expected float32, as W"):
        from_onnx(broken(NODE("RNN", ["x", "w", "r"], ["y"], name="n"), **weights))
    stack = from_onnx(
        graph_model([NODE("RNN", ["x", "w", "w"], ["y"], name="n")], np.zeros((2, 3, 4)), 17, weights)
    )
    with pytest.raises(ValueError, match="RNN node 'n': X is float64; expected float32, as W"):
        stack(np.zeros((2, 3, 4)))


def test_explain_numbers_nodes_of_one_name() -> None:
    nodes = [
        NODE("RNN", ["x", "w", "w"], ["a"], name="n"),
        NODE("RNN", ["x", "w", "w"], ["y"], name="n", clip=1.0),
    ]
    stack = from_onnx(broken(*nodes, w=np.zeros((1, 4, 4), "f")))
    assert dict(stack.explain()) == {"RNN node 'n'": "fused", "RNN node 'n' #2": "general: clip = 1"}


def test_opset_too_old() -> None:
    with pytest.raises(ValueError, match="the model has opset 6; expected 7 or newer"):
        from_onnx(graph_model([NODE("Relu", ["x"], ["y"])], np.zeros(2, "f"), 6))


def test_explain_says_why_not() -> None:
    node = NODE("RNN", ["x", "w", "r"], ["y"], name="n", activations=["Elu"])
    stack = from_onnx(broken(node, w=np.zeros((1, 4, 4), "f"), r=np.zeros((1, 4, 4), "f")))
    assert isinstance(stack, Stack)
    assert dict(stack.explain()) == {"RNN node 'n'": "general: activation Elu(alpha=1)"}
