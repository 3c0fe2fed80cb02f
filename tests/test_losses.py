"""Are the losses, and what is said in other units, those of the textbooks?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastrnn.training import (
    bits_per_symbol,
    log_likelihood,
    mean_squared_error,
    perplexity,
    softmax,
    softmax_cross_entropy,
    valid_steps,
)
from tolerances import assert_close
from training_modules import finite_differences

FLOATS = ["float32", "float64"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_equal_torch(rng, dtype):
    torch = pytest.importorskip("torch")
    o = rng.standard_normal((5, 3, 7)).astype(dtype)
    classes, numbers = rng.integers(0, 7, (5, 3)), rng.standard_normal((5, 3, 7)).astype(dtype)
    for reduction in "mean", "sum":
        for ours, theirs, targets, flat in (
            (softmax_cross_entropy, torch.nn.functional.cross_entropy, classes, (15,)),
            (mean_squared_error, torch.nn.functional.mse_loss, numbers, (15, 7)),
        ):
            peer = torch.from_numpy(o.copy()).requires_grad_()
            expected = theirs(
                peer.reshape(15, 7), torch.from_numpy(targets.reshape(flat)), reduction=reduction
            )
            expected.backward()
            loss, do = ours(o, targets, reduction=reduction)
            assert_close(np.array(loss), expected.detach().numpy(), n_products=105, dtype=dtype)
            assert_close(do, peer.grad.numpy(), n_products=8)
            assert do.dtype == o.dtype


def test_mean_squared_error_gradient_is_that_of_finite_differences(rng):
    outputs, targets = rng.standard_normal((4, 3, 2)), rng.standard_normal((4, 3, 2))
    mask = valid_steps([4, 2, 1], 4)
    expected = finite_differences(lambda: mean_squared_error(outputs, targets, mask)[0], outputs)
    np.testing.assert_allclose(mean_squared_error(outputs, targets, mask)[1], expected, atol=1e-8)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_what_a_mask_leaves_out_does_not_matter(rng, reduction):
    mask = valid_steps([5, 0, 2], 5)
    outputs, targets = rng.standard_normal((5, 3, 4)), rng.standard_normal((5, 3, 4))
    expected, kept = mean_squared_error(outputs[mask], targets[mask], reduction=reduction)
    outputs[~mask], targets[~mask] = np.nan, np.inf
    loss, do = mean_squared_error(outputs, targets, mask, reduction=reduction)
    assert math.isclose(loss, expected, rel_tol=1e-14)
    np.testing.assert_array_equal(do[mask], kept)
    np.testing.assert_array_equal(do[~mask], 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_huge_logits_stay_finite(dtype):
    logits = np.array([[1e30, -1e30, 0], [-1e30, -1e30, -1e30], [1e30, 1e30, -1e30]], dtype)
    expected = [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-6)
    loss, dlogits = softmax_cross_entropy(logits, [1, 0, 2], reduction="sum")
    assert math.isclose(loss, 4e30, rel_tol=1e-6)
    np.testing.assert_allclose(dlogits, np.array(expected) - np.eye(3)[[1, 0, 2]], rtol=1e-6)
    likelihood = log_likelihood(logits[:, None], np.array([[0], [1], [0]]))
    np.testing.assert_allclose(likelihood, [-math.log(3) - math.log(2)], rtol=1e-6)


def test_the_farthest_logits_do_not_overflow():
    most = np.finfo(np.float32).max
    logits = np.array([[most, -most]], np.float32)
    loss, dlogits = softmax_cross_entropy(logits, [1])
    assert math.isclose(loss, 2 * float(most), rel_tol=1e-6)
    np.testing.assert_array_equal(dlogits, [[1, -1]])
    np.testing.assert_array_equal(softmax(logits), [[1, 0]])
    most = np.finfo(np.float64).max  # the difference itself is infinite
    logits = np.array([[[most, -most], [-most, most]]])
    np.testing.assert_array_equal(log_likelihood(logits, [[0, 0]]), [0, -math.inf])
    np.testing.assert_array_equal(softmax(logits), [np.eye(2)])
    loss, do = mean_squared_error(logits[0], -logits[0])
    assert loss == math.inf
    np.testing.assert_array_equal(do, math.inf * np.sign(logits[0]))


def test_log_likelihood_is_minus_the_summed_cross_entropy_of_each_row(rng):
    logits, targets = rng.standard_normal((6, 4, 5), np.float32), rng.integers(0, 5, (6, 4))
    mask = valid_steps([6, 3, 1, 0], 6)
    logits[~mask], targets[~mask] = np.nan, -1
    rows = log_likelihood(logits, targets, mask)
    for b in range(3):
        loss, _ = softmax_cross_entropy(logits[:, b], targets[:, b], mask[:, b], reduction="sum")
        assert math.isclose(rows[b], -loss, rel_tol=1e-6)
    assert rows[3] == 0
    assert rows.dtype == np.float64


def test_softmax_equals_torch(rng):
    torch = pytest.importorskip("torch")
    logits = 10 * rng.standard_normal((4, 3, 9))
    assert_close(softmax(logits), torch.softmax(torch.from_numpy(logits), -1).numpy(), n_products=9)


def test_units():
    assert math.isclose(perplexity(math.log(27)), 27)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert bits_per_symbol(math.log(2)) == 1
    loss, _ = softmax_cross_entropy(np.zeros((3, 8)), [0, 1, 2])
    assert math.isclose(bits_per_symbol(loss), 3)


def test_valid_steps():
    np.testing.assert_array_equal(valid_steps([0, 2, 3], 3).T, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
    assert valid_steps([], 3).shape == (3, 0)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, mean_squared_error])
def test_half_precision_is_computed_in_float32(loss):
    """As a float16 layer on a device gives it to NumPy."""
    rng = np.random.default_rng(0)
    outputs = (4 * rng.standard_normal((5, 3, 7))).astype("float16")
    targets = rng.integers(0, 7, (5, 3)) if loss is softmax_cross_entropy else rng.standard_normal((5, 3, 7))
    mask = rng.random((5, 3)) < 0.7
    for reduction in "mean", "sum":
        value, gradient = loss(outputs, targets, mask, reduction=reduction)
        wide, expected = loss(outputs.astype("float32"), targets, mask, reduction=reduction)
        assert value == wide
        np.testing.assert_array_equal(gradient, expected.astype("float16"), strict=True)
    np.testing.assert_array_equal(
        log_likelihood(outputs, np.zeros((5, 3), int)),
        log_likelihood(outputs.astype("float64"), np.zeros((5, 3), int)),
    )


PLAIN = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: softmax([1.0]), TypeError, "logits are list; expected a NumPy array of float32 or"),
        (
            lambda: softmax(PLAIN.astype(int)),
            TypeError,
            "^logits are int64; expected a NumPy array of float32 or float64 or float16$",
        ),
        (
            lambda: softmax_cross_entropy(PLAIN.astype("longdouble"), [0, 1]),
            TypeError,
            "^logits are float128; expected a NumPy array of float32 or float64 or float16$",
        ),
        (lambda: softmax(np.zeros((2, 0))), ValueError, r"logits have shape \(2, 0\); expected \(..., V\)"),
        (
            lambda: softmax_cross_entropy(PLAIN, [0, 1], reduction="none"),
            ValueError,
            "reduction is 'none'; expected one of 'mean', 'sum'",
        ),
        (
            lambda: mean_squared_error(PLAIN, PLAIN, reduction=1),
            TypeError,
            r"reduction is 1 \(int\); expected one of",
        ),
        (lambda: mean_squared_error([1.0], [1.0]), TypeError, "outputs are list; expected a NumPy array"),
        (lambda: mean_squared_error(np.float64(1), 1), TypeError, "outputs are float64; expected a NumPy"),
        (
            lambda: mean_squared_error(np.array(1.0), 1),
            ValueError,
            r"outputs have shape \(\); expected",
        ),
        (lambda: mean_squared_error(PLAIN, [["a"] * 3] * 2), TypeError, "targets are <U1; expected numbers"),
        (
            lambda: mean_squared_error(PLAIN, PLAIN[0]),
            ValueError,
            r"targets have shape \(3,\); expected \(2, 3\)",
        ),
        (lambda: mean_squared_error(PLAIN, PLAIN, [1, 0]), TypeError, "mask is int64; expected bool"),
        (
            lambda: mean_squared_error(PLAIN, PLAIN, [True]),
            ValueError,
            r"mask has shape \(1,\); expected \(2,\)",
        ),
        (lambda: mean_squared_error(PLAIN, PLAIN, [False] * 2), ValueError, "no position is scored"),
        (
            lambda: log_likelihood(PLAIN[0], 1),
            ValueError,
            r"logits have shape \(3,\); expected \(T, ..., V\)",
        ),
        (lambda: log_likelihood(PLAIN, [0, 3]), ValueError, "targets range from 0 to 3; expected 0..2"),
        (lambda: perplexity("1"), TypeError, r"loss is '1' \(str\); expected a number"),
        (lambda: bits_per_symbol(None), TypeError, r"loss is None \(NoneType\); expected a number"),
        (lambda: valid_steps([[1]], 2), ValueError, r"lengths have shape \(1, 1\); expected \(B,\)"),
        (lambda: valid_steps([1.0], 2), TypeError, "lengths are float64; expected integers"),
        (lambda: valid_steps([1, 3], 2), ValueError, r"lengths range from 1 to 3; expected 0\.\.2"),
        (lambda: valid_steps([1], 0), ValueError, "steps is 0; expected an integer of at least 1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
