"""Do the kernels compute what the float64 reference computes?  Every cell, dtype, instruction set, option."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from fastrnn import functional
from fastrnn.layouts import DTYPES
from problems import Guarded, Problem, arrays_of, compare, flat, like_state, make_problem
from shapes import LANES, SHAPES, VARIANTS, Shape, make_spec
from tolerances import assert_same_bits

pytestmark = pytest.mark.kernels

SEED, CALL = 2**64 - 3, 5  # seed + call * constant wraps around 2^64


def run(problem: Problem, *, strided: bool = False) -> tuple[Any, ...]:
    """Return ((y, state_n), (dx, dstate, gradients)) of the kernels, from guarded memory.

    Without dropout, inference must have given the same bits as training.
    """
    spec, guarded = problem.spec, Guarded(problem.spec.dtype)

    def outputs() -> tuple[Any, Any]:
        y = guarded.array((problem.steps, problem.batch, spec.output_size), strided=strided)
        return y, like_state(spec, (guarded.array(shape) for shape in spec.state_shapes(problem.batch)))

    out = outputs()
    y, state_n, reserve = functional.forward_train(
        spec, problem.parameters, problem.x, problem.state, **problem.options, out=out, seed=SEED, call=CALL
    )
    if spec.dropout == 0.0:
        inferred = outputs()
        functional.forward(
            spec, problem.parameters, problem.x, problem.state, **problem.options, out=inferred
        )
        for a, b in zip((inferred[0], *flat(inferred[1])), (y, *flat(state_n)), strict=True):
            assert_same_bits(a, b, "inference, compared with training,")
    dx = None if problem.x.ndim == 2 else guarded.array(problem.x.shape, strided=strided)
    dstate = like_state(spec, (guarded.array(shape) for shape in spec.state_shapes(problem.batch)))
    gradients = {name: guarded.array(shape) for name, shape in spec.parameter_shapes().items()}
    back = functional.backward(
        spec, problem.parameters, reserve, problem.dy, problem.dstate_n, out=(dx, dstate, gradients)
    )
    guarded.check()
    return (y, state_n), back


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cell_at_every_shape(
    variant: str, shape: Shape, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """Full batches, and batches thinned out by lengths and resets."""
    hidden = shape.hidden_size(LANES[isa, dtype])
    spec = make_spec(variant, shape.input_size, hidden, dtype=dtype)
    for masked in (False, True):
        problem = make_problem(rng, spec, shape.steps, shape.batch, lengths=masked, reset=masked)
        compare(run(problem), problem.reference(), problem)


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no bias": ({"bias": False}, {}),
    "reverse": ({"bidirectional": True}, {}),
    "three layers": ({"num_layers": 3}, {"lengths": True}),
    "two layers, both directions, no bias": ({"num_layers": 2, "bidirectional": True, "bias": False}, {}),
    "two layers, both directions, masked": (
        {"num_layers": 2, "bidirectional": True},
        {"lengths": True, "reset": True},
    ),
    "dropout": (
        {"num_layers": 3, "bidirectional": True, "dropout": 0.4},
        {"lengths": True, "reset": True},
    ),
    "dropout of everything": ({"num_layers": 2, "dropout": 1.0}, {}),
    "no initial state": ({"bidirectional": True}, {"state": False, "reset": True}),
    "lengths": ({"bidirectional": True}, {"lengths": True}),
    "tokens": ({}, {"tokens": True}),
    "tokens, no bias, masked": (
        {"bidirectional": True, "num_layers": 2, "bias": False},
        {"tokens": True, "lengths": True, "reset": True},
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cell_with_every_option(
    variant: str, option: str, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """At a shape with a tail in units and in rows; outputs are rows of larger arrays."""
    options, call = OPTIONS[option]
    spec = make_spec(variant, 6, LANES[isa, dtype] + 1, dtype=dtype, **options)
    problem = make_problem(rng, spec, steps=4, batch=7, **call)
    key = (SEED, CALL) if spec.dropout else None
    compare(run(problem, strided=True), problem.reference(key), problem)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({}, False), ({}, True), ({"num_layers": 2, "dropout": 0.3}, False)],
    ids=["plain", "tokens", "dropout"],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_many_steps(
    variant: str, options: dict[str, Any], tokens: bool, isa: str, rng: np.random.Generator
) -> None:
    """What is handed from one block of steps to the next arrives, both directions.

    Forward, a block is 256 KB of pre-activations; backward, it is 128 to 512 rows.  This is several
    blocks of each, for every cell and instruction set.
    """
    hidden = 4 * LANES[isa, "float32"] + 3
    spec = make_spec(variant, 21, hidden, bidirectional=True, **options)
    problem = make_problem(rng, spec, steps=67, batch=64, tokens=tokens, lengths=True, reset=True)
    assert problem.steps * problem.batch * hidden * spec.num_gates * 4 > 256 * 1024
    key = (SEED, CALL) if spec.dropout else None
    compare(run(problem), problem.reference(key), problem)


@pytest.mark.parametrize("variant", ["lstm-full", "gru", "rnn-tanh"])
def test_a_missing_incoming_gradient_is_zero(variant: str, isa: str, rng: np.random.Generator) -> None:
    """None for dy, for dstate_n, for either of its arrays, for all: the same bits as zeros."""
    problem = make_problem(rng, make_spec(variant, 3, 9, num_layers=2), 4, 3)
    spec, parameters = problem.spec, problem.parameters
    *_, reserve = functional.forward_train(spec, parameters, problem.x, problem.state)
    given = (problem.dy, *flat(problem.dstate_n))
    for present in range(2 ** len(given)):
        keep = [bool(present >> i & 1) for i in range(len(given))]
        missing = [a if k else None for a, k in zip(given, keep, strict=True)]
        zeros = [a if k else np.zeros_like(a) for a, k in zip(given, keep, strict=True)]
        dstate_n = like_state(spec, missing[1:]) if any(keep[1:]) else None
        dx, dstate, gradients = functional.backward(spec, parameters, reserve, missing[0], dstate_n)
        expected = functional.backward(spec, parameters, reserve, zeros[0], like_state(spec, zeros[1:]))
        for a, e in zip(
            (dx, *flat(dstate), *gradients.values()),
            (expected[0], *flat(expected[1]), *expected[2].values()),
            strict=True,
        ):
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("variant", ["lstm-proj", "gru-reset-before", "rnn-relu"])
def test_strides_make_no_difference(variant: str, isa: str, rng: np.random.Generator) -> None:
    """Batch-first, reversed, and every-other-row memory of x and dy."""
    problem = make_problem(rng, make_spec(variant, 5, 11), 4, 3)
    expected = run(problem)
    views = [
        lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
        lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
        lambda a: np.repeat(np.repeat(a, 2, axis=0), 2, axis=1)[::2, ::2],
        lambda a: np.repeat(a, 2, axis=2)[..., ::2],
    ]
    for view in views:
        strided = dataclasses.replace(problem, x=view(problem.x), dy=view(problem.dy))
        actual = run(strided)
        for name, array in arrays_of(actual).items():
            assert_same_bits(array, arrays_of(expected)[name], name)


def test_backward_twice_gives_the_same(isa: str, rng: np.random.Generator) -> None:
    """Backward reads the reserve and writes nothing into it."""
    spec = make_spec("lstm", 3, 9, num_layers=2, dropout=0.5)
    problem = make_problem(rng, spec, 5, 3)
    *_, reserve = functional.forward_train(spec, problem.parameters, problem.x, problem.state, seed=SEED)
    first, second = (functional.backward(spec, problem.parameters, reserve, problem.dy) for _ in range(2))
    assert_same_bits(second[0], first[0], "dx")
    for name, gradient in first[2].items():
        assert_same_bits(second[2][name], gradient, name)
