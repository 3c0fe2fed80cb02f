"""Numbers that are arguments: what range they may have, and the error if they are outside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

# What a number may be, as `number` takes it.
Range = tuple[Callable[[Any], bool], str]
ANY: Range = (lambda value: True, "a number")
FINITE: Range = (math.isfinite, "a finite number")
NOT_NEGATIVE: Range = (lambda value: 0 <= value < math.inf, "a finite number of at least 0")
AT_LEAST_ONE: Range = (lambda value: 1 <= value < math.inf, "a finite number of at least 1")
POSITIVE: Range = (lambda value: 0 < value < math.inf, "a finite number greater than 0")
POSITIVE_OR_INFINITE: Range = (lambda value: value > 0, "a number greater than 0")
PROBABILITY: Range = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
FRACTION: Range = (lambda value: 0 <= value < 1, "a number of at least 0 and less than 1")


def returned(name: str, value: Any) -> float:
    """Return what a function of that name returned, as a plain float."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} returned {value!r}; expected a number") from None


def number(name: str, value: Any, accepted: Range) -> float:
    """Return `value` as a plain float; bool is not a number here."""
    accept, expected = accepted
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}")
    if not accept(value):
        raise ValueError(f"{name} is {value}; expected {expected}")
    return float(value)
