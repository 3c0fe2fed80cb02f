"""What the tests of training share: a module of any gradients, and finite differences."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np


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
