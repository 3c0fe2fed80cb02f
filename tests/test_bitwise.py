"""What is promised bit for bit: no result depends on the batch, the threads, or how the work is cut up."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastrnn import _core, functional
from fastrnn._backends import CPU
from fastrnn.layouts import DTYPES, Spec
from problems import Problem, apart, arrays_of, compare, flat, in_cuts, make_problem
from shapes import LANES, VARIANTS, make_spec
from tolerances import assert_same_bits

pytestmark = pytest.mark.kernels

STACK = {"bidirectional": True, "num_layers": 2}


def run(problem: Problem, **keys: int) -> tuple[Any, ...]:
    """Return ((y, state_n), (dx, dstate, gradients)) of the kernels."""
    spec, parameters = problem.spec, problem.parameters
    *out, reserve = functional.forward_train(
        spec, parameters, problem.x, problem.state, **problem.options, **keys
    )
    return out, functional.backward(spec, parameters, reserve, problem.dy, problem.dstate_n)


def assert_same_results(actual: Any, expected: Any, *, gradients: bool = True) -> None:
    """Compare every array; those of the parameters only where both sum in the same order."""
    wanted = arrays_of(expected)
    for name, array in arrays_of(actual).items():
        if array is not None and (gradients or not name.startswith("gradient")):
            assert_same_bits(array, wanted[name], name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masks", ["", "lengths", "reset", "lengths reset"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_its_rows_and_pieces_apart(
    variant: str, masks: str, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """Row by row, cut at resets and at its length: outputs, states and their gradients, both directions.

    Parameter gradients sum over rows and pieces, in another order when these are apart.
    """
    spec = make_spec(variant, 5, 2 * LANES[isa, dtype] + 1, dtype=dtype, **STACK)
    problem = make_problem(rng, spec, steps=5, batch=11, **dict.fromkeys(masks.split(), True))
    alone = {"state": None, "lengths": None, "reset": None}

    def run_piece(x: Any, state: Any, dy: Any, dstate_n: Any) -> Any:
        return run(
            dataclasses.replace(problem, **alone | {"x": x, "state": state, "dy": dy, "dstate_n": dstate_n})
        )

    whole, pieces = run(problem), apart(problem, run_piece)
    assert_same_results(whole, pieces, gradients=False)
    compare(whole, pieces, problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_and_chunks_equal_one_call(
    variant: str, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """Forward: any cut of T, down to single steps, with the state carried over."""
    spec = make_spec(variant, 5, 2 * LANES[isa, dtype] + 1, dtype=dtype, num_layers=2)
    problem = make_problem(rng, spec, steps=23, batch=3, reset=True)
    packed = functional.pack(spec, problem.parameters)
    y, state_n = functional.forward(spec, packed, problem.x, problem.state, reset=problem.reset)
    for cuts in (range(24), [0, 1, 7, 8, 20, 23]):
        got = in_cuts(problem, packed, cuts)
        for a, b in zip(got, (y, *flat(state_n)), strict=True):
            assert_same_bits(a, b, f"y or state_n, cut at {cuts}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_of_backward_add_up(variant: str, isa: str, rng: np.random.Generator) -> None:
    """Back-propagation chunk by chunk, the state's gradient handed back, is that of the whole."""
    spec = make_spec(variant, 5, 19, num_layers=2)
    problem = make_problem(rng, spec, steps=9, batch=3)
    state, reserves = problem.state, []
    chunks = [slice(0, 1), slice(1, 6), slice(6, 9)]
    for chunk in chunks:
        _, state, reserve = functional.forward_train(spec, problem.parameters, problem.x[chunk], state)
        reserves.append(reserve)
    dstate, dx, total = problem.dstate_n, np.empty_like(problem.x), {}
    for chunk, reserve in zip(chunks[::-1], reserves[::-1], strict=True):
        dx[chunk], dstate, gradients = functional.backward(
            spec, problem.parameters, reserve, problem.dy[chunk], dstate
        )
        total = {name: g + total.get(name, 0) for name, g in gradients.items()}
    whole = run(problem)
    compare((whole[0], (dx, dstate, total)), whole, problem)


BOTH: dict[str, Any] = {"bidirectional": True, "num_layers": 2, "dropout": 0.5}

# How four threads divide the work, as explain() puts it: H, T, B, network and call.
THREADED: dict[str, tuple[int, int, int, dict[str, Any], dict[str, bool]]] = {
    "rows of the batch: enough for a full tile each": (130, 3, 64, {}, {}),
    "rows of the batch: a step is too short for a barrier": (50, 60, 3, {}, {}),
    "hidden units": (650, 3, 1, {}, {}),
    "both directions side by side; within each: rows": (130, 4, 37, BOTH, {"lengths": True, "reset": True}),
    "both directions side by side; within each: hidden units": (330, 4, 3, BOTH, {}),
    "too little work to share": (7, 2, 3, {}, {}),
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("split", THREADED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_threads_changes_nothing(
    variant: str, split: str, isa: str, rng: np.random.Generator
) -> None:
    """Every output and every gradient, however the work is divided, dropout included."""
    hidden, steps, batch, options, masks = THREADED[split]
    spec = make_spec(variant, 70, hidden, **options)
    problem = make_problem(rng, spec, steps, batch, **masks)
    results = {}
    for threads in (1, 2, 3, 4):
        _core.set_num_threads(threads)
        assert _core.get_num_threads() == threads
        results[threads] = run(problem, seed=7, call=11)
    assert split in CPU.network(spec).explain(steps, batch, training=True, tokens=False)["split"]
    for threads in (2, 3, 4):
        assert_same_results(results[threads], results[1])


# Layers side by side: H, T, B, network, call, and how a layer is divided when there are four threads.
SIDE_BY_SIDE: dict[str, tuple[int, int, int, dict[str, Any], dict[str, bool], str]] = {
    "one row": (60, 200, 1, {"num_layers": 2}, {}, "one row, and a step too short for a barrier"),
    "one row, wide": (170, 300, 1, {"num_layers": 2, "dropout": 0.5}, {"reset": True}, "hidden units"),
    "few rows": (
        50,
        200,
        3,
        {"num_layers": 3, "dropout": 0.5},
        {"lengths": True, "reset": True},
        "one thread",
    ),
    "more layers than threads": (
        40,
        160,
        5,
        {"num_layers": 5},
        {"tokens": True, "lengths": True},
        "one thread",
    ),
    "full tiles": (33, 60, 37, {"num_layers": 2}, {"lengths": True}, "rows of the batch"),
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("case", SIDE_BY_SIDE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_side_by_side_change_nothing(
    variant: str, case: str, isa: str, rng: np.random.Generator
) -> None:
    """Training and inference, with any number of threads for the layers."""
    hidden, steps, batch, options, call, within = SIDE_BY_SIDE[case]
    spec = make_spec(variant, 30, hidden, **options)
    spec = dataclasses.replace(spec, input_size=spec.output_size)  # as much work for each layer
    problem = make_problem(rng, spec, steps, batch, **call)
    network = CPU.network(spec)
    packed = functional.pack(spec, problem.parameters)
    results, inferred = {}, {}
    for threads in (1, 2, 3, 4):
        _core.set_num_threads(threads)
        split = network.explain(steps, batch, training=True, tokens=call.get("tokens", False))["split"]
        # Three threads share the rows of full tiles better than two layers.
        assert ("layers side by side" in split) == (threads in (2, 4)) or threads == 3, split
        results[threads] = run(problem, seed=7, call=11)
        y, state_n = functional.forward(spec, packed, problem.x, problem.state, **problem.options)
        inferred[threads] = [y, *flat(state_n)]
    # An Elman step of one row is too short for a barrier.
    assert within in split or (variant.startswith("rnn") and within == "hidden units")
    for threads in (2, 3, 4):
        assert_same_results(results[threads], results[1])
        for got, wanted in zip(inferred[threads], inferred[1], strict=True):
            assert_same_bits(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_equal_one_hot_vectors(variant: str, dtype: str, isa: str, rng: np.random.Generator) -> None:
    """Outputs to the bit; gradients too, but for the sums over tokens that one-hot rows pad with zeros."""
    spec = make_spec(variant, 7, 2 * LANES[isa, dtype] + 1, dtype=dtype, **STACK)
    problem = make_problem(rng, spec, 4, 5, tokens=True, lengths=True, reset=True)
    one_hot = dataclasses.replace(problem, x=np.eye(7, dtype=dtype)[problem.x])
    out, (dx, dstate, gradients) = run(problem)
    expected_out, (_, expected_dstate, expected_gradients) = run(one_hot)
    assert dx is None
    assert_same_results(
        (out, (None, dstate, gradients)), (expected_out, (None, expected_dstate, expected_gradients))
    )


@pytest.mark.usefixtures("threads")
def test_calls_from_many_threads_do_not_mix(rng: np.random.Generator) -> None:
    """One caller gets the pool of threads, the others run on their own: the same bits for all."""
    _core.set_num_threads(2)
    spec = make_spec("gru", 70, 130, bidirectional=True, num_layers=2)
    problems = [make_problem(rng, spec, 4, 40, lengths=True) for _ in range(4)]
    expected = [run(problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for actual, wanted in zip(pool.map(run, problems), expected, strict=True):
                assert_same_results(actual, wanted)


def test_a_packed_network_is_a_value(rng: np.random.Generator) -> None:
    """Packing copies: parameters changed later change nothing, and two packs give the same bits."""
    problem = make_problem(rng, Spec("gru", 3, 5), 2, 2)
    packed = functional.pack(problem.spec, problem.parameters)
    before, _ = functional.forward(problem.spec, packed, problem.x)
    again, _ = functional.forward(problem.spec, problem.parameters, problem.x)
    problem.parameters["weight_ih_l0"][...] = 0
    after, _ = functional.forward(problem.spec, packed, problem.x)
    assert_same_bits(again, before)
    assert_same_bits(after, before)


def test_calls_with_another_key_draw_another_mask(rng: np.random.Generator) -> None:
    """Seed and call number both matter, and nothing else does."""
    problem = make_problem(rng, make_spec("gru", 3, 9, num_layers=2, dropout=0.5), 3, 2)
    first = run(problem, seed=1, call=2)
    assert_same_results(run(problem, seed=1, call=2), first)
    for keys in ({"seed": 1, "call": 3}, {"seed": 2, "call": 2}):
        assert not np.array_equal(run(problem, **keys)[0][0], first[0][0])
