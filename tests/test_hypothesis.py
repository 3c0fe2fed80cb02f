"""Do kernels and reference agree on networks and calls that nobody thought of?"""

from __future__ import annotations

import numpy as np
from fastrnn import functional
from fastrnn.layouts import DTYPES, Spec
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import compare, flat, like_state, make_problem
from shapes import VARIANTS, make_spec
from tolerances import assert_same_bits

SIZES = st.integers(1, 40)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Draw any network of a few units, often one that is a unit off a multiple of the vector widths."""
    hidden = draw(st.one_of(SIZES, st.builds(lambda k, d: 8 * k + d, st.integers(1, 5), st.integers(-1, 1))))
    return make_spec(
        draw(st.sampled_from(sorted(VARIANTS))),
        draw(SIZES),
        hidden,
        num_layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.25, 1.0])),
        recurrent_dropout=draw(st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0])),
        zoneout=draw(st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0, (0.25, 0.5), (0.0, 0.5)])),
        dtype=draw(st.sampled_from(DTYPES)),
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    spec=specs(),
    steps=st.integers(1, 9),
    batch=st.integers(0, 20),
    options=st.fixed_dictionaries(dict.fromkeys(("tokens", "state", "lengths", "reset"), st.booleans())),
    keys=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    numbers=st.integers(0, 2**32 - 1),
)
def test_any_call(
    spec: Spec, steps: int, batch: int, options: dict[str, bool], keys: tuple[int, int], numbers: int
) -> None:
    """Outputs, states and every gradient of a training call; inference where dropout leaves it the same."""
    problem = make_problem(np.random.default_rng(numbers), spec, steps, batch, **options)
    *out, reserve = functional.forward_train(
        spec, problem.parameters, problem.x, problem.state, **problem.options, seed=keys[0], call=keys[1]
    )
    back = functional.backward(spec, problem.parameters, reserve, problem.dy, problem.dstate_n)
    compare((out, back), problem.reference(keys), problem)
    if spec.dropout == 0.0 and not spec.has_state_noise:
        y, _ = functional.forward(spec, problem.parameters, problem.x, problem.state, **problem.options)
        assert np.array_equal(y, out[0])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    spec=specs().filter(lambda spec: not spec.bidirectional),
    steps=st.integers(2, 9),
    batch=st.integers(1, 20),
    reset=st.booleans(),
    where=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    numbers=st.integers(0, 2**32 - 1),
)
def test_any_row_and_any_cut(
    spec: Spec, steps: int, batch: int, reset: bool, where: tuple[float, float], numbers: int
) -> None:
    """A row alone, its sequence cut in two calls, has the bits that it has in the batch and in one call."""
    problem = make_problem(np.random.default_rng(numbers), spec, steps, batch, reset=reset)
    weights = functional.pack(spec, problem.parameters)
    y, state_n = functional.forward(spec, weights, problem.x, problem.state, reset=problem.reset)
    row, cut = int(where[0] * batch), 1 + int(where[1] * (steps - 1))
    here = slice(row, row + 1)
    state = like_state(spec, (np.ascontiguousarray(s[:, here]) for s in flat(problem.state)))
    for piece in (slice(0, cut), slice(cut, steps)):
        part, state = functional.forward(
            spec,
            weights,
            problem.x[piece, here],
            state,
            reset=None if not reset else problem.reset[piece, here],
        )
        assert_same_bits(part, y[piece, here], "y")
    for after, whole in zip(flat(state), flat(state_n), strict=True):
        assert_same_bits(after, whole[:, here], "state_n")
