"""Does `fastrnn.onnx.run_node` compute what onnxruntime does, on the path it says; what does it refuse?"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from fastrnn.onnx import plan_node, run_node
from onnx import helper
from tolerances import assert_close, assert_same_bits, size

pytestmark = pytest.mark.frameworks

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
ROLES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
FUNCTIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
ACTIVATIONS = [
    *("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu"),
    *("ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus"),
]
# Parameters each activation has, with values other than the defaults.
ALPHA = {
    "Affine": 0.7,
    "LeakyRelu": 0.2,
    "ThresholdedRelu": 0.3,
    "ScaledTanh": 1.2,
    "HardSigmoid": 0.3,
    "Elu": 0.8,
}
BETA = {"Affine": 0.1, "ScaledTanh": 0.6, "HardSigmoid": 0.4}


def make_case(
    rng: np.random.Generator,
    op: str,
    *,
    T: int = 4,
    B: int = 3,
    features: int = 5,
    H: int = 6,
    direction: str = "forward",
    given: tuple[str, ...] = ROLES,
    dtype: str = "float32",
    scale: float = 1.0,
    **attributes: Any,
) -> tuple[Any, list[Any]]:
    """Return a node and its inputs, those of `given` that the operator has."""
    G, D = GATES[op], 2 if direction == "bidirectional" else 1
    shapes = {
        "X": (T, B, features),
        "W": (D, G * H, features),
        "R": (D, G * H, H),
        "B": (D, 2 * G * H),
        "initial_h": (D, B, H),
        "initial_c": (D, B, H),
        "P": (D, 3 * H),
    }
    if attributes.get("layout"):
        shapes |= {"X": (B, T, features), "initial_h": (B, D, H), "initial_c": (B, D, H)}
    inputs: list[Any] = []
    for role in ROLES[: 8 if op == "LSTM" else 6]:
        if role not in given and role not in ("X", "W", "R"):
            inputs.append(None)
        elif role == "sequence_lens":
            # For rows of length 0 onnxruntime gives 0 in place of the initial state.
            inputs.append(
                rng.integers(1 if {"initial_h", "initial_c"} & {*given} else 0, T + 1, B, dtype=np.int32)
            )
        else:
            own = scale * H**-0.5 if role in ("W", "R") else scale
            inputs.append((own * rng.normal(size=shapes[role])).astype(dtype))
    names = [role if value is not None else "" for role, value in zip(ROLES, inputs, strict=False)]
    while names[-1] == "":
        names.pop(), inputs.pop()
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    attributes = {"hidden_size": H, "direction": direction} | attributes
    attributes = {name: value for name, value in attributes.items() if value is not None}
    return helper.make_node(op, names, outputs, name="n", **attributes), inputs


def model_of(node: Any, inputs: list[Any], opset: int = 14) -> Any:
    """Make a model of one node."""
    taken = [(name, value) for name, value in zip(node.input, inputs, strict=True) if name]
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in taken}
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in taken],
        [helper.make_tensor_value_info(name, kinds["X"], None) for name in node.output if name],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run_onnxruntime(node: Any, inputs: list[Any], opset: int = 14) -> list[np.ndarray]:
    """Run a node as onnxruntime does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model_of(node, inputs, opset)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def compare(
    results: list[Any], expected: list[Any], node: Any, inputs: list[Any], dtype: object = None
) -> None:
    """Compare up to rounding; unbounded activations make the largest value the scale."""
    T, features, H = max(inputs[0].shape[:2]), inputs[0].shape[2], inputs[2].shape[2]
    assert len(results) == len(expected)
    for name, result, right in zip(node.output, results, expected, strict=True):
        assert_close(
            result,
            right,
            n_products=T * (features + H + 2),
            dtype=dtype,
            scale=max(1.0, size(*expected)),
            what=name,
        )


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lbr", [0, 1])
@pytest.mark.parametrize(("T", "B", "features", "H"), [(1, 1, 1, 1), (5, 3, 4, 7), (9, 17, 3, 33)])
def test_common_nodes_run_on_the_kernels(
    op: str, direction: str, lbr: int, T: int, B: int, features: int, H: int, rng: np.random.Generator
) -> None:
    attributes = {"linear_before_reset": lbr} if op == "GRU" else {}
    node, inputs = make_case(rng, op, T=T, B=B, features=features, H=H, direction=direction, **attributes)
    assert plan_node(node)["path"] == "fused"
    assert "kernel" in plan_node(node, inputs)
    compare(run_node(node, inputs), run_onnxruntime(node, inputs), node, inputs)


def random_node(rng: np.random.Generator) -> tuple[Any, list[Any]]:
    op = str(rng.choice(list(GATES)))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    names = FUNCTIONS[op] * (2 if direction == "bidirectional" else 1)
    attributes: dict[str, Any] = {}
    scale = 1.0
    if rng.random() < 0.6:
        scale = 0.5  # onnxruntime's Softplus is infinite from 88 on
        names = [str(rng.choice(ACTIVATIONS)) for _ in names]
        alphas = [ALPHA[name] for name in names if name in ALPHA]
        betas = [BETA[name] for name in names if name in BETA]
        attributes = {"activations": names} | ({"activation_alpha": alphas} if alphas else {})
        attributes |= {"activation_beta": betas} if betas else {}
    if rng.random() < 0.4:
        attributes["clip"] = float(rng.uniform(0.1, 2))
    if op == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(2))
    if op == "LSTM":
        attributes["input_forget"] = int(rng.integers(2))
    given = tuple(str(role) for role in ROLES if rng.random() < 0.6)
    T, B, features, H = (int(rng.integers(1, most)) for most in (6, 5, 6, 8))
    return make_case(
        rng, op, T=T, B=B, features=features, H=H, direction=direction, given=given, scale=scale, **attributes
    )


@pytest.mark.parametrize("number", range(200))
def test_random_nodes_are_those_of_onnxruntime(number: int, rng: np.random.Generator) -> None:
    node, inputs = random_node(rng)
    expected = run_onnxruntime(node, inputs)
    results = run_node(node, inputs)
    compare(results, expected, node, inputs)

    # Float64, which onnxruntime does not have, on the same numbers.
    double = [a.astype("float64") if a is not None and a.dtype == np.float32 else a for a in inputs]
    results = run_node(node, double)
    assert {a.dtype for a in results} == {np.dtype("float64")}
    compare(results, expected, node, inputs, dtype="float32")

    # Batch first, which onnxruntime does not have either: the same bits in other places.
    batch_first = onnx.NodeProto()
    batch_first.CopyFrom(node)
    batch_first.attribute.append(helper.make_attribute("layout", 1))
    turned = list(double)
    for place, role in enumerate(ROLES[: len(turned)]):
        if role in ("X", "initial_h", "initial_c") and turned[place] is not None:
            turned[place] = turned[place].swapaxes(0, 1)
    for name, actual, right in zip(node.output, run_node(batch_first, turned), results, strict=True):
        right = right.transpose(2, 0, 1, 3) if name == "Y" else right.swapaxes(0, 1)
        assert_same_bits(actual, np.ascontiguousarray(right), name)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plain_nodes_are_those_of_the_reference_evaluator(
    op: str, layout: int, dtype: str, rng: np.random.Generator
) -> None:
    from onnx.reference import ReferenceEvaluator

    given = ("B", "initial_h", "initial_c", "P")
    node, inputs = make_case(rng, op, dtype=dtype, given=given, layout=layout)
    model = model_of(node, inputs)
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    compare(run_node(node, inputs), ReferenceEvaluator(model).run(None, feeds), node, inputs)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("given", [False, True])
def test_activations_are_their_formulas(name: str, given: bool) -> None:
    from math import exp, log, tanh

    defaults = {"Affine": 1, "LeakyRelu": 0.01, "ThresholdedRelu": 1, "ScaledTanh": 1, "HardSigmoid": 0.2}
    alpha = ALPHA.get(name) if given else (defaults | {"Elu": 1}).get(name)
    beta = BETA.get(name) if given else {"Affine": 0, "ScaledTanh": 1, "HardSigmoid": 0.5}.get(name)
    formulas: dict[str, Any] = {
        "Relu": lambda x: max(0, x),
        "Tanh": tanh,
        "Sigmoid": lambda x: 1 / (1 + exp(-x)),
        "Affine": lambda x: alpha * x + beta,
        "LeakyRelu": lambda x: x if x >= 0 else alpha * x,
        "ThresholdedRelu": lambda x: x if x >= alpha else 0,
        "ScaledTanh": lambda x: alpha * tanh(beta * x),
        "HardSigmoid": lambda x: min(max(alpha * x + beta, 0), 1),
        "Elu": lambda x: x if x >= 0 else alpha * (exp(x) - 1),
        "Softsign": lambda x: x / (1 + abs(x)),
        "Softplus": lambda x: log(1 + exp(x)),
    }
    attributes: dict[str, Any] = {"activations": [name]}
    if given and alpha is not None:
        attributes["activation_alpha"] = [alpha]
    if given and beta is not None:
        attributes["activation_beta"] = [beta]
    node = helper.make_node("RNN", ["X", "W", "R"], ["Y"], **attributes)
    x = np.array([-4.0, -1.0, -0.25, 0.0, 0.4, 0.9, 1.0, 3.5])
    y = run_node(node, [x.reshape(1, -1, 1), np.ones((1, 1, 1)), np.zeros((1, 1, 1))])[0].ravel()
    right = np.array([formulas[name](value) for value in x])
    # Attributes are float32.
    assert_close(y, right, n_products=1, dtype="float32" if name in ALPHA else None, scale=4.0)


def test_activations_are_named_in_any_case(rng: np.random.Generator) -> None:
    node, inputs = make_case(rng, "GRU", activations=["sigmoid", "TANH"])
    assert plan_node(node)["path"] == "fused"
    compare(run_node(node, inputs), run_onnxruntime(node, inputs), node, inputs)


@pytest.mark.parametrize(
    ("name", "kernel"), [("Tanh", True), ("Relu", True), ("Sigmoid", True), ("Elu", False)]
)
def test_plan_of_elman_networks(name: str, kernel: bool, rng: np.random.Generator) -> None:
    node, inputs = make_case(rng, "RNN", activations=[name])
    assert plan_node(node)["path"] == ("fused" if kernel else "general")
    compare(run_node(node, inputs), run_onnxruntime(node, inputs), node, inputs)


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("LSTM", {"clip": 2.5}, "clip = 2.5"),
        ("LSTM", {"input_forget": 1}, "input_forget = 1"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}, "activations Sigmoid, Tanh, Relu"),
        (
            "GRU",
            {"activations": ["HardSigmoid", "Tanh"]},
            "activations HardSigmoid(alpha=0.2, beta=0.5), Tanh",
        ),
        (
            "RNN",
            {"direction": "bidirectional", "activations": ["Tanh", "Relu"]},
            "another activation in each direction",
        ),
    ],
)
def test_plan_gives_the_reason(
    op: str, attributes: dict[str, Any], reason: str, rng: np.random.Generator
) -> None:
    node, inputs = make_case(rng, op, **attributes)
    for report in plan_node(node), plan_node(node, inputs):
        assert dict(report) == {"path": "general", "why": [reason]}
    compare(run_node(node, inputs), run_onnxruntime(node, inputs), node, inputs)


def test_infinite_clip_is_none(rng: np.random.Generator) -> None:
    node, _ = make_case(rng, "LSTM", clip=float("inf"))
    assert plan_node(node)["path"] == "fused"


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_missing_outputs_inputs_and_hidden_size(
    op: str, clip: float | None, rng: np.random.Generator
) -> None:
    node, inputs = make_case(rng, op, given=("initial_h",), clip=clip)
    full = run_node(node, inputs)
    for outputs in ([], ["y"], ["", "h"], ["y", "h"], ["", ""]):
        del node.output[:]
        node.output.extend(outputs)
        for attribute in [a for a in node.attribute if a.name == "hidden_size"]:
            node.attribute.remove(attribute)
        results = run_node(node, inputs)
        assert len(results) == len(outputs)
        for name, result, right in zip(outputs, results, full, strict=False):
            if name:
                assert_same_bits(result, right, name)
            else:
                assert result is None


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_padding_may_hold_anything(
    op: str, clip: float | None, direction: str, rng: np.random.Generator
) -> None:
    node, inputs = make_case(rng, op, B=5, direction=direction, clip=clip)
    inputs[4] = np.array([0, 1, 4, 2, 3], np.int32)
    results = run_node(node, inputs)
    inputs[0] = np.where(np.arange(4)[:, None, None] < inputs[4][:, None], inputs[0], np.nan)
    inputs[0] = inputs[0].astype("float32")
    y, *states = run_node(node, inputs)
    for actual, right in zip([y, *states], results, strict=True):
        assert_same_bits(actual, right)
    assert not y.transpose(0, 2, 1, 3)[:, 0, 0].any()
    for state, initial in zip(states, inputs[5:7], strict=False):
        assert_same_bits(state[:, 0], initial[:, 0], "state of a row of length 0")


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_no_steps_and_no_rows(op: str, clip: float | None, T: int, B: int, rng: np.random.Generator) -> None:
    node, inputs = make_case(rng, op, T=T, B=B, given=("initial_h", "initial_c"), clip=clip)
    y, h, *_ = run_node(node, inputs)
    assert y.shape == (T, 1, B, 6)
    assert_same_bits(h, inputs[5])
    assert plan_node(node, inputs)["path"] == ("general" if clip else "fused")


def changed(place: int, value: Any) -> Any:
    def change(node: Any, inputs: list[Any]) -> None:
        inputs[place] = value(inputs[place])

    return change


def with_attribute(**attributes: Any) -> Any:
    def change(node: Any, inputs: list[Any]) -> None:
        for name, value in attributes.items():
            for old in [a for a in node.attribute if a.name == name]:
                node.attribute.remove(old)
            node.attribute.append(helper.make_attribute(name, value))

    return change


def with_field(field: str, value: Any) -> Any:
    def change(node: Any, inputs: list[Any]) -> None:
        if field in ("input", "output"):
            del getattr(node, field)[:]
            getattr(node, field).extend(value)
        else:
            setattr(node, field, value)

    return change


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("LSTM", with_field("op_type", "Conv"), "the operator is 'Conv'; expected RNN, GRU or LSTM"),
        ("LSTM", with_field("domain", "com.x"), "'LSTM' of the domain 'com.x'"),
        ("LSTM", with_attribute(direction="sideways"), "direction is 'sideways'; expected one of forward"),
        ("LSTM", with_attribute(direction=1), "the attribute direction is INT; expected STRING"),
        ("LSTM", with_attribute(activations=["Tanh"]), "activations has 1 names; expected 3 for each of 1"),
        ("RNN", with_attribute(activations=["Swish"]), "activations has 'Swish'; expected of Relu"),
        (
            "RNN",
            with_attribute(activation_alpha=[1.0]),
            "activation_alpha has 1 values, but of the activations",
        ),
        (
            "RNN",
            with_attribute(activations=["Affine"], activation_beta=[1.0, 2.0]),
            "activation_beta has 2 values, but of the activations Affine only 1",
        ),
        ("GRU", with_attribute(clip=-1.0), "clip is -1.0; expected a bound of at least 0"),
        ("GRU", with_attribute(clip=float("nan")), "clip is nan"),
        ("GRU", with_attribute(hidden_size=0), "hidden_size is 0; expected at least 1"),
        ("GRU", with_attribute(hidden_size=7), r"R has shape \(1, 18, 6\); expected .* = \(1, 21, 7\)"),
        ("GRU", with_attribute(layout=2), "layout is 2; expected 0 or 1"),
        ("GRU", with_attribute(linear_before_reset=3), "linear_before_reset is 3; expected 0 or 1"),
        ("LSTM", with_attribute(linear_before_reset=1), "unknown attribute 'linear_before_reset'"),
        ("GRU", with_attribute(input_forget=1), "unknown attribute 'input_forget'"),
        ("RNN", with_attribute(output_sequence=1), "unknown attribute 'output_sequence'"),
        ("RNN", with_field("output", ["a", "b", "c"]), "it has 3 outputs; expected at most 2: Y, Y_h"),
        ("LSTM", with_field("output", ["a", "b", "c", "d"]), "it has 4 outputs; expected at most 3"),
        ("RNN", with_field("output", ["a", "a"]), "its outputs are a, a; expected different names"),
        ("RNN", with_field("input", ["a"] * 7), "it has 7 inputs; expected at most 6"),
        ("RNN", with_field("input", ["a", "b"]), "the input R is missing"),
        ("RNN", with_field("input", ["", "b", "c"]), "the input X is missing"),
        ("RNN", with_field("input", ["X", "W", "R"]), "there are 6 inputs; expected 3, aligned"),
        ("RNN", changed(0, lambda a: None), "the input X, 'X' in the node, is None; expected an array"),
        (
            "RNN",
            with_field("input", ["X", "W", "R", "", "l", "h"]),
            "the input B, '' in the node, is of type ndarray; expected None",
        ),
        ("RNN", changed(0, lambda a: [[1.0], [2.0, 3.0]]), "X has type list, which makes no array: setting"),
        ("RNN", changed(0, lambda a: a[0]), r"X has shape \(3, 5\); expected \(T, B, I\)"),
        ("RNN", changed(0, lambda a: a[..., :4]), r"X has shape \(4, 3, 4\); expected .* = \(T, B, 5\)"),
        ("RNN", changed(0, lambda a: a.astype("float64")), "W is float32; expected float64, as X"),
        ("RNN", changed(0, lambda a: a.astype("float16")), "X is float16; expected float32 or float64"),
        ("RNN", changed(0, lambda a: a.astype("int32")), "X is int32; expected float32 or float64"),
        ("LSTM", changed(1, lambda a: a[:, :-1]), r"W has shape \(1, 23, 5\); expected \(D, 4\*H, I\)"),
        ("LSTM", changed(1, lambda a: np.concatenate([a, a])), r"W has shape \(2, 24, 5\)"),
        ("LSTM", changed(2, lambda a: a[..., :-1]), r"R has shape \(1, 24, 5\); expected .* = \(1, 24, 6\)"),
        ("LSTM", changed(3, lambda a: a[:, ::2]), r"B has shape \(1, 24\); expected \(D, 8\*H\) = \(1, 48\)"),
        ("LSTM", changed(4, lambda a: a.astype("int64")), "sequence_lens is int64; expected int32"),
        ("LSTM", changed(4, lambda a: a[:2]), r"sequence_lens has shape \(2,\); expected \(B,\) = \(3,\)"),
        ("LSTM", changed(4, lambda a: a + 9), "sequence_lens has 1.; expected from 0 to T = 4"),
        ("LSTM", changed(4, lambda a: -a), "sequence_lens has -.; expected from 0 to T = 4"),
        (
            "LSTM",
            changed(5, lambda a: a[:, :2]),
            r"initial_h has shape \(1, 2, 6\); expected .* = \(1, 3, 6\)",
        ),
        ("LSTM", changed(6, lambda a: a[0]), r"initial_c has shape \(3, 6\); expected \(D, B, H\)"),
        ("LSTM", changed(6, lambda a: a.astype("float64")), "initial_c is float64; expected float32, as X"),
        ("LSTM", changed(7, lambda a: a[:, :6]), r"P has shape \(1, 6\); expected \(D, 3\*H\) = \(1, 18\)"),
    ],
)
def test_malformed(op: str, change: Any, message: str, rng: np.random.Generator) -> None:
    node, inputs = make_case(rng, op)
    change(node, inputs)
    with pytest.raises(ValueError, match=message) as caught:
        run_node(node, inputs)
    assert str(caught.value).startswith(f"{node.op_type} node 'n': ")


def test_inputs_of_other_libraries(rng: np.random.Generator) -> None:
    node, inputs = make_case(rng, "LSTM")
    expected = run_node(node, inputs)
    with pytest.raises(TypeError, match="R is a masked array, whose mask would be lost"):
        run_node(node, [*inputs[:2], np.ma.array(inputs[2]), *inputs[3:]])
    torch = pytest.importorskip("torch")
    for actual, right in zip(run_node(node, [torch.from_numpy(a) for a in inputs]), expected, strict=True):
        assert_same_bits(actual, right)
    with pytest.raises(TypeError, match="X requires grad"):
        run_node(node, [torch.from_numpy(inputs[0]).requires_grad_(), *inputs[1:]])


def test_attribute_given_twice(rng: np.random.Generator) -> None:
    node, inputs = make_case(rng, "RNN")
    node.attribute.append(helper.make_attribute("hidden_size", 6))
    with pytest.raises(ValueError, match="the attribute hidden_size is given twice"):
        run_node(node, inputs)


def test_hidden_size_of_weights_without_units() -> None:
    node = helper.make_node("RNN", ["X", "W", "R"], ["Y"])
    with pytest.raises(ValueError, match=r"R has shape \(1, 0, 0\); expected H of at least 1"):
        run_node(node, [np.zeros(s, "float32") for s in ((1, 1, 2), (1, 0, 2), (1, 0, 0))])


def test_weights_without_inputs() -> None:
    node = helper.make_node("RNN", ["X", "W", "R"], ["Y"])
    with pytest.raises(ValueError, match=r"W has shape \(1, 2, 0\); expected I of at least 1"):
        run_node(node, [np.zeros(s, "float32") for s in ((1, 1, 0), (1, 2, 0), (1, 2, 2))])


def test_what_is_no_node() -> None:
    with pytest.raises(TypeError, match=r"node has type dict; expected an onnx\.NodeProto"):
        run_node({}, [])
    with pytest.raises(TypeError, match="inputs has type dict; expected a list"):
        run_node(helper.make_node("RNN", ["x", "w", "r"], ["y"]), {})


@pytest.mark.parametrize("opset", [7, 13, 14, 21, 22])
def test_opsets(opset: int, rng: np.random.Generator) -> None:
    node, inputs = make_case(rng, "LSTM")
    compare(run_node(node, inputs), run_onnxruntime(node, inputs, opset), node, inputs)
