"""Results of calls, tuples within tuples, as flat lists of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from tolerances import assert_same_bits


def arrays(results: Any) -> list[np.ndarray]:
    """Flatten (y, h), (y, (h, c)) and the like, or the values of a mapping; None is left out."""
    if results is None:
        return []
    if isinstance(results, tuple):
        return [array for part in results for array in arrays(part)]
    return list(results.values()) if hasattr(results, "values") else [results]


def assert_equal(one: Any, other: Any) -> None:
    """Assert that two results of the same structure have the same bits."""
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert_same_bits(a, b)
