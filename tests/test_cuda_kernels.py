"""Do the kernels of a device compute what the reference does, at every edge and with every option?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastrnn import _device, functional
from problems import Problem, compare, flat, like_state, make_problem
from shapes import VARIANTS, make_spec
from test_kernels import CALL, OPTIONS, SEED

pytestmark = pytest.mark.cuda

# T, B, I, H: none, one, and one more or less than what tiles of products, warps and packs are made of.
SIZES = [(1, 1, 1, 1), (3, 0, 4, 5), (16, 2, 3, 31), (2, 17, 33, 16), (3, 5, 65, 64), (2, 33, 5, 9)]


def there(array: Any) -> Any:
    """Return an array, or None, on the device."""
    return None if array is None else _device.module().from_host(np.asarray(array), array.dtype.name, 0, 1)


def run(problem: Problem) -> Any:
    """Return what `Problem.reference` does, computed on the device from arrays there."""
    spec = problem.spec
    parameters = {name: there(array) for name, array in problem.parameters.items()}
    state = None if problem.state is None else like_state(spec, map(there, flat(problem.state)))
    options = {name: there(array) for name, array in problem.options.items()}
    x = there(problem.x)
    y, state_n, reserve = functional.forward_train(
        spec, parameters, x, state, **options, seed=SEED, call=CALL
    )
    if spec.dropout == 0.0:
        inferred = functional.forward(spec, parameters, x, state, **options)
        for one, other in zip((inferred[0], *flat(inferred[1])), (y, *flat(state_n)), strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy(), "inference, compared with training")
    dstate_n = like_state(spec, map(there, flat(problem.dstate_n)))
    dx, dstate, gradients = functional.backward(spec, parameters, reserve, there(problem.dy), dstate_n)
    return (
        (y.numpy(), like_state(spec, (a.numpy() for a in flat(state_n)))),
        (
            None if dx is None else dx.numpy(),
            like_state(spec, (a.numpy() for a in flat(dstate))),
            {name: array.numpy() for name, array in gradients.items()},
        ),
    )


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "T{}-B{}-I{}-H{}".format(*sizes))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cell_at_every_size(
    variant: str, sizes: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    steps, batch, inputs, hidden = sizes
    spec = make_spec(variant, inputs, hidden)
    problem = make_problem(rng, spec, steps, batch, lengths=True, reset=True)
    compare(run(problem), problem.reference(), problem)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("variant", ["lstm-full-proj", "gru", "gru-reset-before", "rnn-relu"])
def test_options(variant: str, option: str, rng: np.random.Generator) -> None:
    options, call = OPTIONS[option]
    spec = make_spec(variant, 6, 11, dtype="float64", **options)
    problem = make_problem(rng, spec, steps=4, batch=5, **call)
    compare(run(problem), problem.reference((SEED, CALL) if spec.dropout else None), problem)
