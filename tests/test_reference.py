"""Is the float64 reference right?  Finite differences, torch.nn, and facts that need no second program."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from fastrnn import reference
from fastrnn.layouts import Spec
from problems import Problem, apart, compare, flat, like_state, make_problem
from shapes import NOISE, VARIANTS, make_spec
from tolerances import assert_close, chain

DROPOUT_KEY = (2**63 + 12345, 7)
STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "no bias": {"bias": False, "num_layers": 2},
    "both directions, two layers": {"bidirectional": True, "num_layers": 2, "dropout": 0.4},
    "recurrent dropout and zoneout": {"bidirectional": True, "num_layers": 2, **NOISE["both"]},
}


# ---- Gradients against finite differences ---------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "lengths and resets"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_the_slopes_of_the_outputs(
    variant: str, stack: str, masked: bool, rng: np.random.Generator
) -> None:
    """Move every input array along a random direction: the loss moves as the gradient says.

    A central difference over 2h is wrong by O(h^2) and by eps/h of rounding; h = 1e-5 makes both about
    1e-10 of the loss.  Random directions weigh every element, so no wrong one can hide.
    """
    spec = make_spec(variant, 3, 5, dtype="float64", **STACKS[stack])
    problem = make_problem(rng, spec, steps=4, batch=3, lengths=masked, reset=masked)
    dy = np.nan_to_num(problem.dy, nan=0.0)

    def loss(p: Problem) -> float:
        y, state_n, _ = reference.forward(
            spec, p.parameters, p.x, p.state, **p.options, dropout_key=DROPOUT_KEY
        )
        total = (y * dy).sum()
        return float(total + sum((s * d).sum() for s, d in zip(flat(state_n), flat(p.dstate_n), strict=True)))

    _, (dx, dstate, gradients) = problem.reference(DROPOUT_KEY)

    def moved(kind: str, which: Any, step: np.ndarray) -> Problem:
        if kind == "x":
            return dataclasses.replace(problem, x=problem.x + step)
        if kind == "state":
            state = [s + step if i == which else s for i, s in enumerate(flat(problem.state))]
            return dataclasses.replace(problem, state=like_state(spec, state))
        parameters = problem.parameters | {which: problem.parameters[which] + step}
        return dataclasses.replace(problem, parameters=parameters)

    slopes = [("x", None, dx)]
    slopes += [("state", i, d) for i, d in enumerate(flat(dstate))]
    slopes += [("parameter", name, g) for name, g in gradients.items()]
    h = 1e-5
    for kind, which, gradient in slopes:
        direction = rng.standard_normal(gradient.shape)
        slope = (loss(moved(kind, which, h * direction)) - loss(moved(kind, which, -h * direction))) / (2 * h)
        expected = (gradient * direction).sum()
        bound = 1e-8 * np.abs(gradient * direction).sum() + 1e-9
        assert abs(slope - expected) < bound, f"{kind} {which}: slope {slope}, gradient says {expected}"


def test_a_missing_incoming_gradient_is_zero(rng: np.random.Generator) -> None:
    """None stands for zeros, for dy, for dstate_n as a whole, and for one of its arrays."""
    problem = make_problem(rng, make_spec("lstm", 2, 3, dtype="float64"), 3, 2)
    spec, parameters = problem.spec, problem.parameters
    dh_n, dc_n = problem.dstate_n
    *_, cache = reference.forward(spec, parameters, problem.x, problem.state)
    for missing, zeros in [
        ((None, (dh_n, dc_n)), (np.zeros_like(problem.dy), (dh_n, dc_n))),
        ((problem.dy, None), (problem.dy, (np.zeros_like(dh_n), np.zeros_like(dc_n)))),
        ((problem.dy, (None, dc_n)), (problem.dy, (np.zeros_like(dh_n), dc_n))),
    ]:
        got, expected = (reference.backward(spec, parameters, cache, *g) for g in (missing, zeros))
        assert np.array_equal(got[0], expected[0])
        for name in parameters:
            assert np.array_equal(got[2][name], expected[2][name])


def test_the_slope_of_relu_at_zero_is_zero() -> None:
    """With all weights 0 every pre-activation is exactly 0."""
    spec = Spec("rnn", 2, 3, nonlinearity="relu", dtype="float64")
    parameters = {name: np.zeros(shape) for name, shape in spec.parameter_shapes().items()}
    *_, cache = reference.forward(spec, parameters, np.ones((2, 1, 2)))
    *_, gradients = reference.backward(spec, parameters, cache, np.ones((2, 1, 3)))
    assert not any(g.any() for g in gradients.values())


# ---- The meaning of lengths, resets and tokens ----------------------------------------------------


@pytest.mark.parametrize(
    "masks", [{"lengths": True}, {"reset": True}, {"lengths": True, "reset": True}], ids="-".join
)
@pytest.mark.parametrize("variant", ["lstm-diagonal-proj", "gru", "rnn-tanh"])
def test_lengths_and_resets_equal_the_pieces_apart(
    variant: str, masks: dict[str, bool], rng: np.random.Generator
) -> None:
    """Both directions and two layers, outputs and all gradients; NaN in the padding goes nowhere."""
    spec = make_spec(variant, 3, 4, dtype="float64", bidirectional=True, num_layers=2)
    problem = make_problem(rng, spec, steps=6, batch=5, **masks)

    def run(x: Any, state: Any, dy: Any, dstate_n: Any) -> Any:
        *out, cache = reference.forward(spec, problem.parameters, x, state)
        return out, reference.backward(spec, problem.parameters, cache, dy, dstate_n)

    compare(problem.reference(), apart(problem, run), problem)


def test_a_row_of_length_zero_keeps_its_state(rng: np.random.Generator) -> None:
    """Whatever resets say."""
    problem = make_problem(rng, make_spec("lstm", 2, 3, dtype="float64", bidirectional=True), 2, 2)
    problem = dataclasses.replace(problem, lengths=np.array([0, 2]), reset=np.ones((2, 2), dtype=bool))
    (y, state_n), (dx, dstate, _) = problem.reference()
    assert not y[:, 0].any()
    assert not dx[:, 0].any()
    for after, before in zip(
        flat(state_n) + flat(dstate), flat(problem.state) + flat(problem.dstate_n), strict=True
    ):
        assert np.array_equal(after[:, 0], before[:, 0])


def test_tokens_are_one_hot_vectors(rng: np.random.Generator) -> None:
    """The same numbers, and no dx."""
    problem = make_problem(rng, make_spec("gru", 5, 3, dtype="float64"), 4, 3, tokens=True, lengths=True)
    one_hot = dataclasses.replace(problem, x=np.eye(5)[problem.x])
    out, (dx, dstate, gradients) = problem.reference()
    expected_out, (_, *expected) = one_hot.reference()
    assert dx is None
    compare((out, (None, dstate, gradients)), (expected_out, (None, *expected)), problem)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("x", np.zeros((3, 2, 5)), r"x has shape \(3, 2, 5\); expected \(3, 2, 4\)"),
        ("x", np.zeros(3), r"x has shape \(3,\); expected \(T, B, I\)"),
        ("x", np.zeros((0, 2, 4)), "with T of at least 1"),
        ("x", np.array([[0, 4]]), "x holds tokens from 0 to 4; expected 0 to 3"),
        ("state", np.zeros((1, 2, 3)), r"state has 1 entries; expected the pair \(h, c\)"),
        ("state", [np.zeros((1, 2, 3))] * 2, r"state\[0\] has shape \(1, 2, 3\); expected \(1, 2, 5\)"),
        ("lengths", [1, 2, 3], r"lengths has shape \(3,\); expected \(2,\)"),
        ("lengths", [4, 2], r"lengths is \[4, 2\]; expected lengths from 0 to 3"),
        ("reset", np.zeros((2, 3), bool), r"reset has shape \(2, 3\); expected \(3, 2\)"),
    ],
)
def test_bad_arguments_are_named(argument: str, value: Any, message: str) -> None:
    spec = Spec("lstm", 4, 5, dtype="float64")
    arguments = {"x": np.zeros((3, 2, 4))} | {argument: value}
    with pytest.raises(ValueError, match=message):
        reference.forward(spec, _ones(spec), **arguments)


# ---- Facts known without a second program ---------------------------------------------------------


def test_the_identity_network_is_a_linear_recursion(rng: np.random.Generator) -> None:
    """y_t = R^(t+1) h_0 + the sum over s <= t of R^(t-s) (W x_s + b + d)."""
    problem = make_problem(rng, make_spec("rnn-identity", 3, 4, dtype="float64"), 6, 1)
    p = problem.parameters
    power = np.linalg.matrix_power
    drive = problem.x[:, 0] @ p["weight_ih_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"]
    r = p["weight_hh_l0"]
    expected = [
        power(r, t + 1) @ problem.state[0, 0] + sum(power(r, t - s) @ drive[s] for s in range(t + 1))
        for t in range(6)
    ]
    (y, _), _ = problem.reference()
    assert_close(y[:, 0], np.array(expected), n_products=chain(problem.spec, 6))


@pytest.mark.parametrize(
    ("variant", "gate", "value"), [("lstm", 1, 50.0), ("gru", 1, 50.0), ("gru-reset-before", 1, 50.0)]
)
def test_an_open_gate_keeps_the_state(
    variant: str, gate: int, value: float, rng: np.random.Generator
) -> None:
    """f = 1 and i = 0 keep c; z = 1 keeps h: the orders of the gates and the sense of z."""
    problem = make_problem(rng, make_spec(variant, 2, 3, dtype="float64"), 5, 2)
    bias = problem.parameters["bias_ih_l0"]
    bias[gate * 3 : (gate + 1) * 3] = value
    if variant == "lstm":
        bias[0:3] = -value
    (_, state_n), _ = problem.reference()
    assert_close(flat(state_n)[-1], flat(problem.state)[-1], n_products=chain(problem.spec, 5))


def test_sigmoid_at_its_ends() -> None:
    """No overflow, no lost digits, NaN stays."""
    a = np.array([-np.inf, -800.0, -700.0, -40.0, 0.0, 40.0, 800.0, np.inf, np.nan])
    expected = [0.0, 0.0, np.exp(-700.0), np.exp(-40.0), 0.5, 1.0, 1.0, 1.0, np.nan]
    with np.errstate(over="raise", divide="raise", under="ignore"):
        np.testing.assert_allclose(reference.sigmoid(a), expected, rtol=1e-14)


# ---- Dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_numbers(counter: str, key: str, expected: str) -> None:
    """The known answers of Philox4x32-10."""
    words = [np.array([int(word, 16) for word in text.split()]) for text in (counter, key, expected)]
    assert np.array_equal(reference.philox4x32(words[0], words[1]), words[2])


def test_dropout_scale_follows_its_definition() -> None:
    """One element at a time, with Python's integers."""
    spec = Spec("rnn", 2, 6, num_layers=3, bidirectional=True, dropout=0.3, dtype="float64")
    seed, call = DROPOUT_KEY
    scale = reference.dropout_scale(spec, 1, 3, 2, DROPOUT_KEY).reshape(3, 2, 2, 6)
    k = (seed + call * 0x9E3779B97F4A7C15) % 2**64
    for t, b, direction, unit in np.ndindex(scale.shape):
        draws = reference.philox4x32([unit // 4, b, t, 2 + direction], [k % 2**32, k // 2**32])
        kept = int(draws[unit % 4]) < int(0.7 * 2**32)
        assert scale[t, b, direction, unit] == (1 / 0.7 if kept else 0.0)


def test_masks_on_the_state_follow_their_definition() -> None:
    """Each kind has its own counters; recurrent dropout has one step; without a key there is no chance."""
    spec = Spec("lstm", 2, 6, 2, bidirectional=True, recurrent_dropout=0.3, zoneout=(0.2, 0.6), proj_size=5)
    seed, call = DROPOUT_KEY
    k = (seed + call * 0x9E3779B97F4A7C15) % 2**64
    scale = reference.recurrent_dropout_scale(spec, 1, 2, DROPOUT_KEY)
    keep_h, keep_c = reference.zoneout_keep(spec, 1, 3, 2, DROPOUT_KEY)
    assert (scale.shape, keep_h.shape, keep_c.shape) == ((2, 2, 5), (3, 2, 2, 5), (3, 2, 2, 6))

    def draw(kind: int, t: int, b: int, direction: int, unit: int) -> int:
        counter = [unit // 4 + kind * 2**29, b, t, 2 + direction]
        return int(reference.philox4x32(counter, [k % 2**32, k // 2**32])[unit % 4])

    for d, b, unit in np.ndindex(scale.shape):
        assert scale[d, b, unit] == (1 / 0.7 if draw(1, 0, b, d, unit) < int(0.7 * 2**32) else 0.0)
    for kind, keep, p in ((2, keep_h, 0.2), (3, keep_c, 0.6)):
        for t, b, d, unit in np.ndindex(keep.shape):
            assert keep[t, b, d, unit] == float(draw(kind, t, b, d, unit) >= int((1 - p) * 2**32))
    assert (reference.recurrent_dropout_scale(spec, 1, 2, None) == 1).all()
    for keep, p in zip(reference.zoneout_keep(spec, 1, 3, 2, None), (0.2, 0.6), strict=True):
        assert (keep == p).all()


def test_zoneout_in_inference_is_a_mean(rng: np.random.Generator) -> None:
    """One unit of the linear network, by hand: h' = p h + (1 - p) (w x + r h)."""
    spec = Spec("rnn", 1, 1, bias=False, nonlinearity="identity", zoneout=0.25, dtype="float64")
    weights = {"weight_ih_l0": [[2.0]], "weight_hh_l0": [[0.5]]}
    y, *_ = reference.forward(spec, weights, np.array([[[1.0]], [[3.0]]]), np.array([[[4.0]]]))
    first = 0.25 * 4 + 0.75 * (2 + 2)
    assert y.ravel().tolist() == [first, 0.25 * first + 0.75 * (6 + 0.5 * first)]


def test_dropout_keeps_its_share_and_spares_the_last_layer() -> None:
    """A binomial share of the elements between layers; with p = 1 the second layer sees zeros."""
    spec = Spec("rnn", 2, 32, num_layers=2, dropout=0.25, dtype="float64")
    scale = reference.dropout_scale(spec, 0, 40, 20, DROPOUT_KEY)
    kept = (scale > 0).mean()
    assert abs(kept - 0.75) < 5 * np.sqrt(0.25 * 0.75 / scale.size)
    *_, cache = reference.forward(spec, _ones(spec), np.ones((4, 2, 2)), dropout_key=DROPOUT_KEY)
    assert cache.scales[0] is not None
    assert cache.scales[1] is None

    nothing = dataclasses.replace(spec, dropout=1.0)
    y, *_ = reference.forward(nothing, _ones(nothing), np.ones((4, 2, 2)), dropout_key=DROPOUT_KEY)
    no_input = dataclasses.replace(spec, input_size=32, num_layers=1, dropout=0.0)
    second = {name.replace("_l1", "_l0"): p for name, p in _ones(nothing).items() if "_l1" in name}
    expected, *_ = reference.forward(no_input, second, np.zeros((4, 2, 32)))
    assert np.array_equal(y, expected)


def _ones(spec: Spec) -> dict[str, np.ndarray]:
    return {name: np.full(shape, 0.1) for name, shape in spec.parameter_shapes().items()}


# ---- Other programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "y", "last"),
    [
        (
            "gru-reset-before",  # linear_before_reset=0
            [-0.077948, 0.914021, -0.081972, 0.911007, 0.846977, 0.577756],
            [0.846977, 0.577756],
        ),
        (
            "lstm-diagonal",  # with the input P
            [-0.26174, 0.037735, -0.122655, 0.094862, 0.560721, 0.243153],
            [0.760632, 0.320114],
        ),
    ],
)
def test_onnx_runtime_agrees(variant: str, y: list[float], last: list[float]) -> None:
    """Cells that torch.nn does not have: what ONNX Runtime 1.31 gave for y and the final h or c."""

    def wave(shape: tuple[int, ...], phase: int) -> np.ndarray:
        return np.sin(np.arange(np.prod(shape)) + phase).reshape(shape)

    spec = make_spec(variant, 2, 2, dtype="float64")
    parameters = {name: wave(shape, i) for i, (name, shape) in enumerate(spec.parameter_shapes().items())}
    state = like_state(spec, (wave(shape, 20 + i) for i, shape in enumerate(spec.state_shapes(1))))
    got_y, state_n, _ = reference.forward(spec, parameters, wave((3, 1, 2), 10), state)
    np.testing.assert_allclose(got_y.ravel(), y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(flat(state_n)[-1].ravel(), last, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("variant", ["lstm", "lstm-proj", "gru", "rnn-tanh", "rnn-relu"])
def test_torch_agrees(
    variant: str, bias: bool, bidirectional: bool, layers: int, lengths: bool, rng: np.random.Generator
) -> None:
    """Outputs, final states and every gradient, in float64."""
    pytest.importorskip("torch")
    from torch_oracle import run_torch

    spec = make_spec(
        variant, 3, 5, dtype="float64", bias=bias, bidirectional=bidirectional, num_layers=layers
    )
    problem = make_problem(rng, spec, steps=6, batch=4, lengths=lengths)
    if problem.lengths is not None:
        x, dy = np.nan_to_num(problem.x), np.nan_to_num(problem.dy)
        problem = dataclasses.replace(problem, x=x, dy=dy, lengths=np.maximum(problem.lengths, 1))
    compare(problem.reference(), run_torch(problem), problem)
