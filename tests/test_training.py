"""Are the training tools right: output layer, loss, clipping, optimizers, schedule?"""

from __future__ import annotations

import math
from types import SimpleNamespace

import fastrnn
import numpy as np
import pytest
from fastrnn import _core
from fastrnn.models import ManyToMany
from fastrnn.training import (
    SGD,
    AdaGrad,
    Adam,
    Linear,
    clip_by_global_norm,
    clip_by_value,
    cosine_learning_rate,
    inverse_decay,
    inverse_sqrt_decay,
    linear_warmup,
    softmax_cross_entropy,
)
from tolerances import assert_close
from training_modules import finite_differences, module

FLOATS = ["float32", "float64"]


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


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 1, 1), (3, 15, 17), (7, 16, 33), (257, 17, 8), (600, 33, 32), (511, 64, 1), (2000, 40, 31)],
)
def test_linear_at_the_edges_of_tiles(rng, dtype, rows, inputs, outputs):
    layer = Linear(inputs, outputs, dtype=dtype, seed=0)
    x = rng.standard_normal((rows, inputs)).astype(dtype)
    dy = rng.standard_normal((rows, outputs)).astype(dtype)
    results = []
    for threads in 1, 3:
        _core.set_num_threads(threads)
        layer.zero_grad()
        y = layer(x)
        results.append([y, layer.backward(dy), *(g.copy() for g in layer.gradients.values())])
    np.testing.assert_array_equal(layer(x[rows // 2 :]), y[rows // 2 :])  # whatever rows stand beside
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)
    wide = {name: p.astype(np.float64) for name, p in layer.parameters.items()}
    wide_x, wide_dy = x.astype(np.float64), dy.astype(np.float64)
    y, dx, dweight, dbias = results[0]
    assert_close(y, wide_x @ wide["weight"].T + wide["bias"], n_products=inputs + 1)
    assert_close(dx, wide_dy @ wide["weight"], n_products=outputs)
    assert_close(dweight, wide_dy.T @ wide_x, n_products=rows)
    assert_close(dbias, wide_dy.sum(axis=0), n_products=rows)


def test_linear_takes_any_strides(rng):
    layer = Linear(6, 4, seed=0)
    x, dy = rng.standard_normal((5, 3, 12), np.float32), rng.standard_normal((3, 5, 4), np.float32)
    expected = layer(x[..., ::2].copy())
    expected_dx = layer.backward(dy.swapaxes(0, 1).copy())
    np.testing.assert_array_equal(layer(x[..., ::2]), expected)
    np.testing.assert_array_equal(layer.backward(dy.swapaxes(0, 1)), expected_dx)


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
        (
            lambda: Linear(3, 2).backward(np.zeros(2), name="do"),
            TypeError,
            "unexpected keyword argument 'name'",
        ),
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


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 15, 16, 17, 33, 100])
def test_cross_entropy_at_the_edges_of_vectors(rng, dtype, width):
    logits = (30 * rng.standard_normal((700, width))).astype(dtype)
    targets, mask = rng.integers(0, width, 700), rng.random(700) < 0.7
    logits[~mask], targets[~mask] = np.nan, -7
    results = []
    for threads in 1, 3:
        _core.set_num_threads(threads)
        results.append(softmax_cross_entropy(logits, targets, mask, reduction="sum"))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    exact = logits[mask].astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    chosen = targets[mask]
    loss, dlogits = results[0]
    assert_close(np.array(loss), -exact[np.arange(len(chosen)), chosen].sum(), n_products=700, dtype=dtype)
    assert_close(dlogits[mask], np.exp(exact) - np.eye(width)[chosen], n_products=width, scale=1.0)
    np.testing.assert_array_equal(dlogits[~mask], 0)


def test_cross_entropy_of_nan_is_nan():
    for column in 0, 20, 39:
        logits = np.zeros((2, 40), np.float32)
        logits[1, column] = np.nan
        loss, dlogits = softmax_cross_entropy(logits, [0, 1])
        assert math.isnan(loss)
        assert np.isfinite(dlogits[0]).all()


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


def test_clip_tells_of_gradients_that_are_too_large():
    with pytest.raises(FloatingPointError, match="is inf: one of them holds NaN or infinity, or too large a"):
        clip_by_global_norm([module([1e200])], 1.0)


def test_clip_by_infinity_only_measures():
    assert clip_by_global_norm([module([3.0, 4.0])], math.inf) == 5.0


def test_clip_by_value_cuts_each_element():
    first, second = module([3.0, -0.5]), module([[-4.0]], dtype="float32")
    assert clip_by_value([first, second], 1.5) == 4.0
    np.testing.assert_array_equal(first.gradients["p0"], [1.5, -0.5])
    np.testing.assert_array_equal(second.gradients["p0"], [[-1.5]])
    assert clip_by_value([first, second], math.inf) == 1.5
    assert clip_by_value([], 1.0) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clip_by_value_refuses_what_is_not_finite(bad):
    sick = module([1.0, bad], [7.0])
    with pytest.raises(FloatingPointError, match="one of them holds NaN or infinity"):
        clip_by_value([sick], 1.0)
    np.testing.assert_array_equal(sick.gradients["p1"], [7.0])


LAYER = Linear(1, 1)
MODEL = ManyToMany(fastrnn.GRU(1, 1, seed=0), 1, seed=1)


@pytest.mark.parametrize(
    "call", [SGD, Adam, clip_by_global_norm, clip_by_value], ids=["SGD", "Adam", "norm", "value"]
)
@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        (LAYER, TypeError, r"modules is Linear\(1, 1, bias=True\); expected a list of layers"),
        (None, TypeError, "modules is None; expected a list of layers"),
        ([LAYER, 3], TypeError, r"modules\[1\] is 3; expected a layer, with a dictionary parameters"),
        (LAYER.parameters.values(), TypeError, r"modules\[0\] is an array \(1, 1\); expected a layer, with"),
        (
            [SimpleNamespace(parameters={})],
            TypeError,
            r"modules\[0\] is namespace.*; expected a layer, with a dictionary gradients",
        ),
        ([LAYER, Linear(1, 1), LAYER], ValueError, r"modules\[2\] is modules\[0\] again, .* each layer once"),
        (
            [MODEL, LAYER, MODEL.layer],
            ValueError,
            r"modules\[2\] has weight_ih_l0 of modules\[0\]; expected each",
        ),
    ],
)
def test_what_is_no_list_of_layers(call, modules, error, message):
    with pytest.raises(error, match=message):
        call(modules, 0.1)


@pytest.mark.parametrize(
    ("max_norm", "error"), [(0, ValueError), (-1.0, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_clip_bad_limits(max_norm, error):
    with pytest.raises(error, match=r"max_value is .*; expected a number greater than 0"):
        clip_by_value([module([1.0])], max_norm)
    with pytest.raises(error, match=r"max_norm is .*; expected a number greater than 0"):
        clip_by_global_norm([module([1.0])], max_norm)


FRACTION = "a number of at least 0 and less than 1"

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


def test_decays():
    assert [inverse_decay(k, 6.0) for k in (1, 2, 3)] == [6, 3, 2]
    assert [inverse_sqrt_decay(k, 6.0) for k in (0, 3, 8)] == [6, 3, 2]
    assert [linear_warmup(k, 2, inverse_sqrt_decay(k, 6.0)) for k in (0, 3)] == [3, 3]


def test_adagrad_contains_the_decay_by_the_root():
    """With equal gradients its k-th step is the learning rate over sqrt(k + 1)."""
    trained = module([2.0])
    optimizer = AdaGrad([trained], 0.1)
    for k in range(5):
        before = trained.parameters["p0"].copy()
        optimizer.step()
        np.testing.assert_allclose(before - trained.parameters["p0"], inverse_sqrt_decay(k, 0.1), rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: inverse_decay(0, 1.0), ValueError, "step is 0; expected a finite number of at least 1"),
        (
            lambda: inverse_decay(1, -1.0),
            ValueError,
            "initial is -1.0; expected a finite",
        ),
        (
            lambda: inverse_sqrt_decay(-1, 1.0),
            ValueError,
            "step is -1; expected a finite number of",
        ),
        (lambda: inverse_sqrt_decay("1", 1.0), TypeError, r"step is '1' \(str\); expected a finite number"),
        (lambda: linear_warmup(0, 0, 1.0), ValueError, "steps is 0; expected a finite number of at least 1"),
        (
            lambda: linear_warmup(0, 1, math.inf),
            ValueError,
            "peak is inf; expected a finite number",
        ),
    ],
)
def test_decays_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
