"""Do the kernels of a device compute what the reference does, at every edge and with every option?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from devices import device_array
from fastrnn import functional, reference
from fastrnn.layouts import Spec
from problems import Problem, arrays_of, compare, flat, like_state, make_problem
from shapes import NOISE, VARIANTS, make_spec
from test_kernels import CALL, OPTIONS, SEED
from test_state_noise import KEY
from test_state_noise import OPTIONS as NOISE_OPTIONS
from tolerances import assert_same_bits

pytestmark = pytest.mark.cuda

# T, B, I, H: none, one, and one more or less than what tiles of products, warps and packs are made of.
SIZES = [(1, 1, 1, 1), (3, 0, 4, 5), (16, 2, 3, 31), (2, 17, 33, 16), (3, 5, 65, 64), (2, 33, 5, 9)]


def there(array: Any) -> Any:
    """Return an array, or None, on the device."""
    return None if array is None else device_array(np.asarray(array))


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
    if spec.dropout == 0.0 and not spec.has_state_noise:
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


@pytest.mark.parametrize("noise", [{}, NOISE["both"]], ids=["plain", "noise"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "T{}-B{}-I{}-H{}".format(*sizes))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cell_at_every_size(
    variant: str, sizes: tuple[int, int, int, int], noise: dict[str, Any], rng: np.random.Generator
) -> None:
    steps, batch, inputs, hidden = sizes
    spec = make_spec(variant, inputs, hidden, **noise)
    problem = make_problem(rng, spec, steps, batch, lengths=True, reset=True)
    compare(run(problem), problem.reference(KEY if noise else None), problem)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("variant", ["lstm-full-proj", "gru", "gru-reset-before", "rnn-relu"])
def test_options(variant: str, option: str, rng: np.random.Generator) -> None:
    options, call = OPTIONS[option]
    spec = make_spec(variant, 6, 11, dtype="float64", **options)
    problem = make_problem(rng, spec, steps=4, batch=5, **call)
    compare(run(problem), problem.reference((SEED, CALL) if spec.dropout else None), problem)


@pytest.mark.parametrize("option", NOISE_OPTIONS)
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_recurrent_dropout_and_zoneout(
    variant: str, noise: str, option: str, rng: np.random.Generator
) -> None:
    """Each alone and both, with all that a network and a call may have beside them; the same bits again."""
    network, call = NOISE_OPTIONS[option]
    spec = make_spec(variant, 6, 11, dtype="float64", **network, **NOISE[noise])
    problem = make_problem(rng, spec, steps=4, batch=5, **call)
    results = run(problem)
    compare(results, problem.reference(KEY), problem)
    again = arrays_of(run(problem))
    for name, array in arrays_of(results).items():
        if array is not None:
            assert_same_bits(again[name], array, name)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_given_up_leaves_no_trace(dtype: str, value: float) -> None:
    """Even where it is not finite: a value that zoneout gives up, the gradient of one, a dropped h."""
    width = 35
    spec = Spec("rnn", 1, width, bias=False, nonlinearity="identity", dtype=dtype, zoneout=0.5)
    keep = reference.zoneout_keep(spec, 0, 1, 2, KEY)[0][0, :, 0] == 1
    start = np.linspace(1, 2, 2 * width, dtype=dtype).reshape(1, 2, width)
    x = there(np.ones((1, 2, 1), dtype))
    parameters = {
        "weight_ih_l0": there(np.full((width, 1), value, dtype)),
        "weight_hh_l0": there(np.eye(width, dtype=dtype)),
    }
    y, _, reserve = functional.forward_train(spec, parameters, x, there(start), seed=SEED, call=CALL)
    np.testing.assert_array_equal(y.numpy()[0], np.where(keep, start[0], value))
    dy = np.where(keep, value, 1).astype(dtype)[None]
    _, dstate, _ = functional.backward(spec, parameters, reserve, there(dy))
    np.testing.assert_array_equal(dstate.numpy(), dy)

    spec = Spec("rnn", 1, width, bias=False, nonlinearity="identity", dtype=dtype, recurrent_dropout=0.5)
    mask = reference.recurrent_dropout_scale(spec, 0, 2, KEY)[0]
    parameters["weight_ih_l0"][...] = 0.0
    start = np.where(mask == 0, value, 1).astype(dtype)[None]
    y, _, reserve = functional.forward_train(spec, parameters, x, there(start), seed=SEED, call=CALL)
    np.testing.assert_array_equal(y.numpy()[0], mask)
    _, dstate, gradients = functional.backward(spec, parameters, reserve, there(np.ones_like(start)))
    np.testing.assert_array_equal(dstate.numpy()[0], mask)
    np.testing.assert_array_equal(gradients["weight_hh_l0"].numpy(), np.ones((width, 1)) * mask.sum(axis=0))
