"""Does Newton's step solve (H + damping I) d = -g, with the Hessian that the loss has?"""

from __future__ import annotations

import math

import fastrnn
import numpy as np
import pytest
from fastrnn.models import ManyToMany
from fastrnn.training import Linear, Newton, mean_squared_error, softmax_cross_entropy


def linear_problem(rng):
    """Least squares, whose Hessian is 2/N of the moments of the inputs, one beside them for the bias."""
    model, x = Linear(3, 1, dtype="float64", seed=0), rng.standard_normal((20, 3))
    targets = rng.standard_normal((20, 1))

    def closure():
        model.zero_grad()
        loss, do = mean_squared_error(model(x), targets)
        model.backward(do)
        return loss

    inputs = np.hstack([x, np.ones((20, 1))])
    return model, closure, 2 / 20 * inputs.T @ inputs, np.linalg.lstsq(inputs, targets, rcond=None)[0]


def flat(arrays):
    return np.concatenate([array.ravel() for array in arrays.values()])


def test_one_step_solves_least_squares(rng):
    model, closure, hessian, solution = linear_problem(rng)
    newton = Newton(model, closure, damping=0.0)
    np.testing.assert_allclose(newton.hessian(), hessian, rtol=1e-8, atol=1e-9)
    before = closure()
    assert newton.step() == before
    np.testing.assert_allclose(flat(model.parameters), solution.ravel(), rtol=1e-7)
    closure()
    assert np.abs(flat(model.gradients)).max() < 1e-8


@pytest.mark.parametrize("damping", [0.1, 1e6])
def test_damping_is_added_to_the_diagonal(rng, damping):
    model, closure, hessian, _ = linear_problem(rng)
    closure()
    start, gradient = flat(model.parameters), flat(model.gradients)
    Newton([model], closure, damping, learning_rate=0.5).step()
    step = -0.5 * np.linalg.solve(hessian + damping * np.eye(4), gradient)
    np.testing.assert_allclose(flat(model.parameters) - start, step, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(flat(model.gradients), gradient)


def recurrent_problem(dtype="float64"):
    model = ManyToMany(fastrnn.RNN(2, 3, dtype=dtype, seed=0), 2, seed=1)
    x = np.array([[1], [0], [1], [0]])
    targets = 1 - x

    def closure():
        model.zero_grad()
        o, _ = model(x)
        loss, do = softmax_cross_entropy(o, targets)
        model.backward(do)
        return loss

    return model, closure


def test_hessian_of_a_recurrent_model_is_that_of_second_differences():
    model, closure = recurrent_problem()
    hessian = Newton(model, closure).hessian()
    rng, step = np.random.default_rng(0), 1e-4
    for _ in range(5):
        direction = rng.standard_normal(len(hessian))
        losses = []
        for at in (-step, 0, step):
            begin = 0
            before = [p.copy() for p in model.parameters.values()]
            for p in model.parameters.values():
                p += at * direction[begin : begin + p.size].reshape(p.shape)
                begin += p.size
            losses.append(closure())
            for p, kept in zip(model.parameters.values(), before, strict=True):
                p[...] = kept
        second = (losses[0] - 2 * losses[1] + losses[2]) / step**2
        assert math.isclose(direction @ hessian @ direction, second, rel_tol=1e-4, abs_tol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_few_steps_train_a_recurrent_model(dtype):
    model, closure = recurrent_problem(dtype)
    # More than the Hessian's most negative eigenvalue, or a step may climb and rounding decides where to.
    newton = Newton(model, closure, damping=1.0)
    losses = [newton.step() for _ in range(40)]
    assert losses[0] > 0.5
    assert closure() < 0.01


def test_a_closure_that_fails_leaves_the_parameters_alone(rng):
    model, closure, _, _ = linear_problem(rng)
    calls = []

    def failing():
        calls.append(0)
        if len(calls) > 4:
            raise KeyError("data")
        return closure()

    before = flat(model.parameters)
    with pytest.raises(KeyError):
        Newton(model, failing).step()
    np.testing.assert_array_equal(flat(model.parameters), before)


def test_what_is_not_finite_or_singular_moves_nothing(rng):
    model, closure, _, _ = linear_problem(rng)
    before = flat(model.parameters)

    def infinite():
        loss = closure()
        model.gradients["bias"][...] = np.inf
        return loss

    with pytest.raises(FloatingPointError, match="holds NaN or infinity"):
        Newton(model, infinite).step()

    def constant():
        model.zero_grad()
        return 0.0

    with pytest.raises(ValueError, match=r"damping is 0.0, with which H \+ damping I is singular"):
        Newton(model, constant, damping=0.0).step()
    np.testing.assert_array_equal(flat(model.parameters), before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_direction_without_curvature_needs_damping(rng, dtype):
    """A softmax does not change with a number added to all logits, so the Hessian is singular."""
    model, closure = recurrent_problem(dtype)
    newton, before = Newton(model, closure, damping=0.0), flat(model.parameters)
    with pytest.raises(ValueError, match=r"singular to rounding: the sizes of its eigenvalues range from "):
        newton.step()
    np.testing.assert_array_equal(flat(model.parameters), before)
    newton.damping = 1.0
    before = newton.step()
    assert closure() < before


def test_eval_mode_is_refused():
    model, closure = recurrent_problem()
    newton = Newton(model, closure)
    model.eval()
    with pytest.raises(RuntimeError, match=r"modules\[0\], .* is in eval mode: call train\(\) before step"):
        newton.step()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Linear(50, 20), float), ValueError, "model has 1020 parameters; expected at most 1000"),
        ((3, float), TypeError, "modules is 3; expected a list of layers"),
        ((Linear(1, 1), 3), TypeError, "closure is 3; expected a function that returns the loss"),
        ((Linear(1, 1), float, -1.0), ValueError, "damping is -1.0; expected a finite number of at least 0"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        Newton(*arguments)
    with pytest.raises(ValueError, match=r"learning_rate is 0; expected a finite number greater than 0"):
        Newton(Linear(1, 1), float, learning_rate=0)
