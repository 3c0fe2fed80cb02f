"""Are the training tools right: output layer, loss, clipping, optimizers, schedule?"""

from __future__ import annotations

import math
from types import SimpleNamespace

import fastrnn
import numpy as np
import pytest
from fastrnn.training import (
    SGD,
    Adam,
    Linear,
    clip_by_global_norm,
    cosine_learning_rate,
    softmax_cross_entropy,
)
from tolerances import assert_close

FLOATS = ["float32", "float64"]


def module(*gradients, dtype="float64"):
    """Anything with the two dictionaries is a module; the parameters are all 1."""
    named = {f"p{i}": np.array(g, dtype) for i, g in enumerate(gradients)}
    return SimpleNamespace(parameters={k: np.ones_like(g) for k, g in named.items()}, gradients=named)


def finite_differences(loss, array, step=1e-6):
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = loss()
        array[index] = kept - step
        gradient[index] = (above - loss()) / (2 * step)
        array[index] = kept
    return gradient


# ---- Linear -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (5,), (4, 3), (0, 3)])
def test_linear_gradients_are_those_of_finite_differences(rng, bias, leading):
    layer = Linear(3, 2, bias, dtype="float64", seed=0)
    x, dy = rng.standard_normal((*leading, 3)), rng.standard_normal((*leading, 2))

    def loss():
        return float(np.sum(layer(x) * dy))

    assert layer(x).shape == (*leading, 2)
    arrays = {"x": x, **layer.parameters}
    expected = {name: finite_differences(loss, array) for name, array in arrays.items()}
    layer(x)
    gradients = {"x": layer.backward(dy), **layer.gradients}
    assert gradients.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(gradients[name], expected[name], atol=1e-8, err_msg=name)


@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_equals_torch(rng, dtype):
    torch = pytest.importorskip("torch")
    layer = Linear(17, 5, dtype=dtype, seed=0)
    peer = torch.nn.Linear(17, 5, dtype=getattr(torch, dtype))
    peer.load_state_dict({name: torch.from_numpy(p) for name, p in layer.parameters.items()})
    x = rng.standard_normal((6, 3, 17)).astype(dtype)
    dy = rng.standard_normal((6, 3, 5)).astype(dtype)
    y, x_peer = layer(x), torch.from_numpy(x).requires_grad_()
    y_peer = peer(x_peer)
    y_peer.backward(torch.from_numpy(dy))
    assert_close(y, y_peer.detach().numpy(), n_products=18)
    assert_close(layer.backward(dy), x_peer.grad.numpy(), n_products=5)
    assert_close(layer.gradients["weight"], peer.weight.grad.numpy(), n_products=18)
    assert_close(layer.gradients["bias"], peer.bias.grad.numpy(), n_products=18)


def test_linear_gradients_accumulate_until_zeroed(rng):
    layer = Linear(3, 2, seed=0)
    x, dy = rng.standard_normal((4, 3), np.float32), rng.standard_normal((4, 2), np.float32)
    layer(x)
    layer.backward(dy)
    once = {name: g.copy() for name, g in layer.gradients.items()}
    layer(x)
    layer.backward(dy)
    for name, gradient in layer.gradients.items():
        np.testing.assert_array_equal(gradient, 2 * once[name])
    layer.zero_grad()
    assert not any(g.any() for g in layer.gradients.values())


def test_linear_seed_makes_the_initial_values_reproducible():
    first, same, other = Linear(9, 4, seed=1), Linear(9, 4, seed=1), Linear(9, 4, seed=2)
    for name, parameter in first.parameters.items():
        np.testing.assert_array_equal(parameter, same.parameters[name])
        assert (parameter != other.parameters[name]).any()
        assert np.abs(parameter).max() <= 1 / 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Linear(0, 1), ValueError, "in_features is 0; expected an integer of at least 1"),
        (lambda: Linear(1, -2), ValueError, "out_features is -2; expected an integer of at least 1"),
        *[
            (lambda bad=bad: Linear(1, 1, dtype=bad), TypeError, f"dtype is {bad!r}; expected 'float32' or")
            for bad in ("int32", "foo", None)
        ],
        (lambda: Linear(1, 1, dtype="float16"), TypeError, "dtype is 'float16'; expected .* 'float64'"),
        (lambda: Linear(1, 1, dtype="bfloat16"), TypeError, "dtype is 'bfloat16'; expected .* 'float64'"),
        (lambda: Linear(1, 1, seed="a"), TypeError, r"seed is 'a' \(str\); expected an integer"),
        (lambda: Linear(1, 1, seed=-1), ValueError, "seed is -1; expected an integer of at least 0"),
        (
            lambda: Linear(3, 2)(np.zeros((4, 3))),
            TypeError,
            "x is float64; expected a NumPy array of float32",
        ),
        (lambda: Linear(3, 2)([1.0, 2.0, 3.0]), TypeError, "x is list; expected a NumPy array"),
        (
            lambda: Linear(3, 2)(np.zeros(4, np.float32)),
            ValueError,
            r"x has shape \(4,\); expected \(..., 3\)",
        ),
        (lambda: Linear(3, 2).backward(np.zeros(2, np.float32)), RuntimeError, "needs a forward call"),
    ],
)
def test_linear_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_linear_backward_checks_dy_and_leaves_the_gradients_alone():
    layer = Linear(3, 2)
    layer(np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"dy has shape \(5, 2\); expected \(4, 2\)"):
        layer.backward(np.ones((5, 2), np.float32))
    assert not layer.gradients["bias"].any()
    layer.backward(np.ones((4, 2), np.float32))
    with pytest.raises(RuntimeError, match="one for each backward"):
        layer.backward(np.ones((4, 2), np.float32))


# ---- Cross entropy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("leading", [(), (7,), (5, 3)])
def test_cross_entropy_is_the_textbook_formula(rng, dtype, leading):
    logits = rng.standard_normal((*leading, 11)).astype(dtype)
    targets = rng.integers(0, 11, leading)
    exact = logits.astype(np.float64)
    p = np.exp(exact) / np.exp(exact).sum(axis=-1, keepdims=True)
    one_hot = np.eye(11)[targets]
    loss, dlogits = softmax_cross_entropy(logits, targets)
    n = math.prod(leading)
    assert_close(np.array(loss), -np.sum(np.log(p) * one_hot) / n, n_products=11 + n, dtype=dtype)
    assert dlogits.dtype == logits.dtype
    assert_close(dlogits, (p - one_hot) / n, n_products=11)


def test_cross_entropy_gradient_is_that_of_finite_differences(rng):
    logits, targets = rng.standard_normal((4, 3, 5)), rng.integers(0, 5, (4, 3))
    mask = rng.random((4, 3)) < 0.6
    expected = finite_differences(lambda: softmax_cross_entropy(logits, targets, mask)[0], logits)
    np.testing.assert_allclose(softmax_cross_entropy(logits, targets, mask)[1], expected, atol=1e-8)


@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_of_huge_logits_is_finite(dtype):
    huge = np.finfo(dtype).max / 4
    logits = np.array([[huge, 0, -huge], [huge, huge, 0], [-huge, -huge, -huge]], dtype)
    loss, dlogits = softmax_cross_entropy(logits, [0, 0, 2])
    assert math.isclose(loss, (0 + math.log(2) + math.log(3)) / 3, rel_tol=1e-6)
    expected = np.array([[0, 0, 0], [-1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, -2 / 3]]) / 3
    np.testing.assert_allclose(dlogits, expected, rtol=1e-6)


def test_cross_entropy_mask_equals_leaving_out(rng):
    logits = rng.standard_normal((6, 4), np.float32)
    targets = rng.integers(0, 4, 6)
    mask = np.array([True, False, True, True, False, True])
    expected_loss, expected = softmax_cross_entropy(logits[mask], targets[mask])
    logits[~mask], targets[~mask] = np.nan, -100
    loss, dlogits = softmax_cross_entropy(logits, targets, mask)
    assert loss == expected_loss
    np.testing.assert_array_equal(dlogits[mask], expected)
    np.testing.assert_array_equal(dlogits[~mask], 0)


def test_cross_entropy_leaves_its_arguments_alone(rng):
    logits = rng.standard_normal((3, 4))
    before = logits.copy()
    _, dlogits = softmax_cross_entropy(logits, [0, 1, 2])
    np.testing.assert_array_equal(logits, before)
    assert not np.shares_memory(logits, dlogits)


ZEROS = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0, 2.0]], [0]), TypeError, "logits are list; expected a NumPy array"),
        (
            (np.zeros((2, 3), int), [0, 0]),
            TypeError,
            "logits are int64; expected a NumPy array of float32 or",
        ),
        (
            (np.zeros((2, 0)), [0, 0]),
            ValueError,
            r"logits have shape \(2, 0\); expected \(..., V\) with V > 0",
        ),
        ((ZEROS, [0.0, 1.0]), TypeError, "targets are float64; expected integers"),
        ((ZEROS, [0, 1, 2]), ValueError, r"targets have shape \(3,\); expected \(2,\)"),
        ((ZEROS, [0, 3]), ValueError, "targets range from 0 to 3; expected 0..2"),
        ((ZEROS, [-1, 0]), ValueError, "targets range from -1 to 0; expected 0..2"),
        ((ZEROS, [0, 1], [1, 0]), TypeError, "mask is int64; expected bool"),
        ((ZEROS, [0, 1], [True]), ValueError, r"mask has shape \(1,\); expected \(2,\)"),
        ((ZEROS, [0, 1], [False, False]), ValueError, "no position is scored"),
    ],
)
def test_cross_entropy_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        softmax_cross_entropy(*arguments)


# ---- Clipping ---------------------------------------------------------------------------------------


def test_clip_scales_all_modules_by_one_factor():
    first, second = module([3.0, 0.0]), module([[0.0, 4.0]], [12.0])
    assert clip_by_global_norm([first, second], 6.5) == 13.0
    np.testing.assert_allclose(first.gradients["p0"], [1.5, 0])
    np.testing.assert_allclose(second.gradients["p0"], [[0, 2]])
    np.testing.assert_allclose(second.gradients["p1"], [6])


@pytest.mark.parametrize("gradient", [[3.0, 4.0], [0.0, 0.0]])
def test_clip_leaves_small_gradients_alone(gradient):
    small = module(gradient)
    assert clip_by_global_norm([small], 5.0) == np.linalg.norm(gradient)
    np.testing.assert_array_equal(small.gradients["p0"], gradient)


def test_clip_norm_does_not_overflow_in_float32():
    large = module([3e30, 4e30], dtype="float32")
    assert math.isclose(clip_by_global_norm([large], 1.0), 5e30, rel_tol=1e-6)
    np.testing.assert_allclose(large.gradients["p0"], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clip_refuses_what_is_not_finite(bad):
    sick = module([1.0, bad], [7.0])
    with pytest.raises(FloatingPointError, match="one of them holds NaN or infinity"):
        clip_by_global_norm([sick], 1.0)
    np.testing.assert_array_equal(sick.gradients["p1"], [7.0])


def test_clip_by_infinity_only_measures():
    assert clip_by_global_norm([module([3.0, 4.0])], math.inf) == 5.0


LAYER = Linear(1, 1)


@pytest.mark.parametrize(
    "call", [SGD, Adam, lambda modules, rate: clip_by_global_norm(modules, rate)], ids=["SGD", "Adam", "clip"]
)
@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        (LAYER, TypeError, r"modules is Linear\(1, 1, bias=True\); expected a list of layers"),
        (None, TypeError, "modules is None; expected a list of layers"),
        ([LAYER, 3], TypeError, r"modules\[1\] is 3; expected a layer, with a dictionary parameters"),
        (
            [SimpleNamespace(parameters={})],
            TypeError,
            r"modules\[0\] is namespace.*; expected a layer, with a dictionary gradients",
        ),
        ([LAYER, Linear(1, 1), LAYER], ValueError, r"modules\[2\] is modules\[0\] again, .* each layer once"),
    ],
)
def test_what_is_no_list_of_layers(call, modules, error, message):
    with pytest.raises(error, match=message):
        call(modules, 0.1)


@pytest.mark.parametrize(
    ("max_norm", "error"), [(0, ValueError), (-1.0, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_clip_bad_norm(max_norm, error):
    with pytest.raises(error, match=r"max_norm is .*; expected a number greater than 0"):
        clip_by_global_norm([module([1.0])], max_norm)


# ---- Optimizers -------------------------------------------------------------------------------------


def test_sgd_by_hand():
    trained = module([2.0])
    optimizer = SGD([trained], 0.1, momentum=0.5)
    expected = 1.0
    for velocity in (2.0, 3.0, 3.5):
        optimizer.step()
        expected -= 0.1 * velocity
        np.testing.assert_allclose(trained.parameters["p0"], [expected], rtol=1e-15)


def test_adam_by_hand():
    trained = module([0.0])
    optimizer = Adam([trained], 0.1, betas=(0.5, 0.75), eps=1.0)
    trained.gradients["p0"][:] = 2
    optimizer.step()  # m = 1, v = 1; m / (1 - 0.5) = 2, v / (1 - 0.75) = 4
    np.testing.assert_allclose(trained.parameters["p0"], [1 - 0.1 * 2 / (2 + 1)], rtol=1e-15)
    trained.gradients["p0"][:] = 0
    optimizer.step()  # m = 0.5, v = 0.75; m / (1 - 0.25) = 2/3, v / (1 - 0.5625) = 12/7
    step = 0.1 * (2 / 3) / (math.sqrt(12 / 7) + 1)
    np.testing.assert_allclose(trained.parameters["p0"], [1 - 0.1 * 2 / 3 - step], rtol=1e-15)


OPTIMIZERS = {
    "SGD": (lambda m, rate: SGD(m, rate), lambda torch, p, rate: torch.optim.SGD(p, rate)),
    "SGD with momentum": (
        lambda m, rate: SGD(m, rate, momentum=0.9),
        lambda torch, p, rate: torch.optim.SGD(p, rate, momentum=0.9),
    ),
    "Adam": (lambda m, rate: Adam(m, rate), lambda torch, p, rate: torch.optim.Adam(p, rate)),
    "Adam with other betas": (
        lambda m, rate: Adam(m, rate, betas=(0.8, 0.99), eps=1e-3),
        lambda torch, p, rate: torch.optim.Adam(p, rate, betas=(0.8, 0.99), eps=1e-3),
    ),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_equal_torch(rng, name, dtype):
    torch = pytest.importorskip("torch")
    ours, theirs = OPTIMIZERS[name]
    shapes = [(4, 3), (5,)]
    trained = module(*(np.zeros(shape) for shape in shapes), dtype=dtype)
    peers = [torch.ones(shape, dtype=getattr(torch, dtype)) for shape in shapes]
    optimizer, peer = ours([trained], 0.01), theirs(torch, peers, 0.01)
    for step in range(20):
        for gradient, p in zip(trained.gradients.values(), peers, strict=True):
            gradient[...] = rng.standard_normal(gradient.shape)
            p.grad = torch.from_numpy(gradient.copy())
        optimizer.learning_rate = peer.param_groups[0]["lr"] = 0.01 / (1 + step)
        optimizer.step()
        peer.step()
        for parameter, p in zip(trained.parameters.values(), peers, strict=True):
            assert_close(parameter, p.numpy(), n_products=4 * (step + 1), what=f"step {step}")


def test_optimizers_write_in_place_and_zero_all_gradients():
    first, second = module([1.0]), module([[2.0]])
    arrays = [first.parameters["p0"], second.parameters["p0"]]
    optimizer = Adam([first, second])
    optimizer.step()
    assert first.parameters["p0"] is arrays[0]
    assert second.parameters["p0"] is arrays[1]
    assert all((array != 1).all() for array in arrays)
    optimizer.zero_grad()
    assert not first.gradients["p0"].any()
    assert not second.gradients["p0"].any()


@pytest.mark.parametrize("make", [lambda m: SGD(m, 0.1, momentum=0.9), Adam], ids=["SGD", "Adam"])
def test_optimizers_leave_all_as_it_is_in_eval_mode(make):
    layers = [[fastrnn.GRU(2, 3, seed=0), Linear(3, 1, seed=1)] for _ in range(2)]
    for modules in layers:
        for gradient in (g for m in modules for g in m.gradients.values()):
            gradient[...] = 0.5
    interrupted, plain = map(make, layers)
    interrupted.step()
    layers[0][0].eval()
    with pytest.raises(RuntimeError, match=r"modules\[0\], GRU\(2, 3\), is in eval mode: call train\(\)"):
        interrupted.step()
    layers[0][0].train()
    interrupted.step()
    plain.step()
    plain.step()
    for modules in zip(*layers, strict=True):
        for name, parameter in modules[0].parameters.items():
            np.testing.assert_array_equal(parameter, modules[1].parameters[name])


FRACTION = "a number of at least 0 and less than 1"
POSITIVE = "a finite number greater than 0"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *[
            (
                lambda make=make, bad=bad: make([], bad),
                ValueError,
                f"learning_rate is {bad}; expected {POSITIVE}",
            )
            for make in (SGD, Adam)
            for bad in (0.0, -1, math.nan, math.inf)
        ],
        (lambda: SGD([], "a"), TypeError, rf"learning_rate is 'a' \(str\); expected {POSITIVE}"),
        (lambda: SGD([], True), TypeError, rf"learning_rate is True \(bool\); expected {POSITIVE}"),
        (lambda: SGD([], 0.1, momentum=1.0), ValueError, f"momentum is 1.0; expected {FRACTION}"),
        (
            lambda: SGD([], 0.1, momentum=None),
            TypeError,
            rf"momentum is None \(NoneType\); expected {FRACTION}",
        ),
        (lambda: Adam([], betas=(0.9, 1.0)), ValueError, rf"betas\[1\] is 1.0; expected {FRACTION}"),
        (lambda: Adam([], betas=(-0.1, 0.9)), ValueError, rf"betas\[0\] is -0.1; expected {FRACTION}"),
        (lambda: Adam([], betas="12"), TypeError, rf"betas\[0\] is '1' \(str\); expected {FRACTION}"),
        (lambda: Adam([], betas=0.9), TypeError, "betas is 0.9; expected two numbers"),
        (lambda: Adam([], betas=(0.9,)), ValueError, r"betas is \(0.9,\); expected two numbers"),
        (lambda: Adam([], eps=0.0), ValueError, f"eps is 0.0; expected {POSITIVE}"),
    ],
)
def test_optimizers_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_assigned_learning_rate_is_checked_before_a_step():
    trained = module([1.0])
    optimizer = SGD([trained], 0.1)
    optimizer.learning_rate = math.nan
    with pytest.raises(ValueError, match="learning_rate is nan; expected a finite number of at least 0"):
        optimizer.step()
    optimizer.learning_rate = 0.0  # where a schedule starts
    optimizer.step()
    assert trained.parameters["p0"] == [1.0]


# ---- Schedule ---------------------------------------------------------------------------------------


def test_cosine_schedule():
    def rate(progress):
        return cosine_learning_rate(progress, 2.0, final=1.0, warmup=0.1)

    assert rate(0) == 0
    assert math.isclose(rate(0.05), 1.0)
    assert math.isclose(rate(0.1), 2.0)
    assert math.isclose(rate(0.55), 1.5)
    assert rate(1) == rate(7) == 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"progress": math.nan}, ValueError, "progress is nan; expected a finite number"),
        ({"progress": None}, TypeError, r"progress is None \(NoneType\); expected a finite number"),
        ({"peak": math.inf}, ValueError, "peak is inf; expected a finite number of at least 0"),
        ({"final": -1.0}, ValueError, "final is -1.0; expected a finite number of at least 0"),
        ({"warmup": 1}, ValueError, f"warmup is 1; expected {FRACTION}"),
    ],
)
def test_cosine_schedule_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        cosine_learning_rate(**{"progress": 0.5, "peak": 1.0, **arguments})
