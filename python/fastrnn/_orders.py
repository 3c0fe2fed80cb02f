"""How other systems order the gates of their weights, and sequences that are walked from their ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layouts import GATES

Array = NDArray[Any]

# Gates under fastrnn's letters.  Flax has no order: every gate is an array of its own.
ORDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "fastrnn": GATES,
    "torch": GATES,
    "onnx": {"lstm": ("i", "o", "f", "g"), "gru": ("z", "r", "n"), "rnn": ("h",)},
    "keras": {"lstm": ("i", "f", "g", "o"), "gru": ("z", "r", "n"), "rnn": ("h",)},
    "haste": {"lstm": ("i", "g", "f", "o"), "gru": ("z", "r", "n")},
}
"""System to cell to gates, in the order of the rows (or columns) of a weight or bias."""

PEEPHOLE_ORDERS: dict[str, tuple[str, ...]] = {"fastrnn": ("i", "f", "o"), "onnx": ("i", "o", "f")}


def reorder(array: Array, given: tuple[str, ...], wanted: tuple[str, ...], axis: int = 0) -> Array:
    """Return a C-contiguous copy whose gates, equal parts of one axis, stand in another order."""
    parts = dict(zip(given, np.split(array, len(given), axis), strict=True))
    return np.concatenate([parts[gate] for gate in wanted], axis)


def from_the_end(sequence: Array, lengths: Array | None) -> Array:
    """Turn every row of a time-major (T, B, ...) sequence round within its own length; its own inverse."""
    if lengths is None:
        return sequence[::-1]
    steps = np.arange(len(sequence))[:, None]
    turned = np.where(steps < lengths, np.asarray(lengths, np.int64) - 1 - steps, steps)
    return np.asarray(sequence[turned, np.arange(sequence.shape[1])])
