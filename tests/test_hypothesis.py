"""Do kernels and reference agree on networks and calls that nobody thought of?"""

from __future__ import annotations

import numpy as np
from fastrnn import functional
from fastrnn.layouts import DTYPES, Spec
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import compare, make_problem
from shapes import VARIANTS, make_spec

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
        dtype=draw(st.sampled_from(DTYPES)),
    )


@settings(max_examples=400, deadline=None, derandomize=True)
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
    if spec.dropout == 0.0:
        y, _ = functional.forward(spec, problem.parameters, problem.x, problem.state, **problem.options)
        assert np.array_equal(y, out[0])
