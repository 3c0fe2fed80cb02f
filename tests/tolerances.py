"""How far a result may stand from the float64 reference.  Derived once, here; no test has numbers of its own.

A chain of n multiply-adds rounds n times.  Each rounding is at most eps/2 of the partial sum it
rounds, and the signs are as good as random, so the errors add up like a random walk: about
0.3 * eps * sqrt(n) times the size of the sums, and the worst of the 10^5 elements that a test looks at
is within 4.5 of that, 1.3 * eps * sqrt(n).  FACTOR = 4 leaves as much for partial sums larger than
the result they end in, and again for the nonlinearities and state updates at every step, each of which
is wrong by an ulp or two.  Errors that are not rounding, a swapped gate or a lost step, are orders of
magnitude larger.

n is the longest chain that an element hangs on: the products of one step, times the steps, times the
layers (`chain`); a weight gradient adds the sum over steps and batch.
"""

from __future__ import annotations

import numpy as np
from fastrnn.layouts import Spec

FACTOR = 4.0


def chain(spec: Spec, steps: int, batch: int = 0) -> int:
    """Return the products that one element may hang on: a forward pass, or with `batch` its gradients.

    Each step and layer does the products of its input, its recurrence and its peepholes or projection,
    and one for the state update.  A gradient hangs on the forward chain, walks as far again with G
    gates in each product, and ends in a sum over steps and rows.
    """
    step = spec.recurrent_size + spec.hidden_size + 1
    forward = sum(steps * (spec.layer_input_size(layer) + step) for layer in range(spec.num_layers))
    return forward if batch == 0 else (1 + spec.num_gates) * forward + steps * batch


def tolerance(n_products: int, dtype: object, scale: float) -> float:
    """Return the largest error allowed in results of size `scale`."""
    limits = np.finfo(np.dtype(dtype))
    return float(FACTOR * limits.eps * np.sqrt(n_products) * scale + limits.tiny)


def size(*arrays: np.ndarray) -> float:
    """Return the largest finite magnitude in some arrays, which may be empty."""
    return max(float(np.abs(a, where=np.isfinite(a), out=np.zeros(a.shape)).max(initial=0.0)) for a in arrays)


def assert_close(
    actual: np.ndarray,
    reference: np.ndarray,
    *,
    n_products: int,
    dtype: object = None,
    scale: float | None = None,
    what: str = "result",
) -> None:
    """Fail, naming the worst place, unless `actual` is `reference` up to rounding.

    `dtype` is the precision of the computation, by default that of `actual`.  `scale` is the size of
    the sums that were rounded, by default the largest magnitude in `reference`; pass that of a whole
    family of arrays (all weight gradients, say) where one small array may owe its size to cancellation.
    NaN must meet NaN and an infinity itself.
    """
    actual, reference = np.asarray(actual), np.asarray(reference)
    assert actual.shape == reference.shape, f"{what}: shape {actual.shape}, expected {reference.shape}"
    finite = np.isfinite(reference)
    special = ~finite & ~((actual == reference) | (np.isnan(actual) & np.isnan(reference)))
    assert not special.any(), (
        f"{what}: {actual[special][0]} at {np.argwhere(special)[0]}, not {reference[special][0]}"
    )
    error = np.where(finite, np.abs(np.where(finite, actual, 0.0) - np.where(finite, reference, 0.0)), 0.0)
    if scale is None:
        scale = size(reference)
    allowed = tolerance(n_products, dtype or actual.dtype, scale)
    if not (error <= allowed).all():
        worst = np.unravel_index(np.where(np.isnan(error), np.inf, error).argmax(), error.shape)
        place = tuple(int(i) for i in worst)
        raise AssertionError(
            f"{what}: {actual[place]!r} at {place}, reference {reference[place]!r}: "
            f"error {error[place]:.3g} is {error[place] / allowed:.3g} times the {allowed:.3g} allowed; "
            f"{int((~(error <= allowed)).sum())} of {error.size} elements are off"
        )


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, what: str = "result") -> None:
    """Fail, naming the first place, unless every bit is equal; NaN and the sign of 0 count."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    different = bits(actual) != bits(expected)
    if different.any():
        places = np.argwhere(different)
        first = tuple(int(i) for i in places[0])
        raise AssertionError(
            f"{what} differs in {len(places)} of {actual.size} elements, "
            f"the first at {first}: {actual[first]!r}, expected {expected[first]!r}"
        )


def bits(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy of a float array, seen as integers."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")
