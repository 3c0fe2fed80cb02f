"""A layer that walks every sequence from its end, and masks turned into lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import BOOLS, take
from .._backends import CPU, Array
from .._calls import BATCH_FIRST, TIME_MAJOR, check_call
from .._orders import from_the_end
from ..info import Report


def lengths_from_mask(mask: Any) -> Array:
    """Return the lengths that a mask of valid steps stands for.

    Parameters
    ----------
    mask : bool array (B, T)
        True at valid steps, as Keras's layers take it; in each row the valid steps come first.

    Returns
    -------
    array of int64 (B,)
        For the `lengths` of a call.

    Raises
    ------
    TypeError
        It does not hold bools.
    ValueError
        It has other axes, or a valid step after one that is not: the message names the row.

    Examples
    --------
    >>> from fastrnn.convert import lengths_from_mask
    >>> lengths_from_mask([[True, True, False], [False, False, False]])
    array([2, 0])
    """
    array = CPU.own.take_listed("mask", mask, BOOLS, "bool")
    if array.ndim != 2:
        raise ValueError(f"mask has shape {array.shape}; expected (B, T)")
    lengths = array.sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero((array != (np.arange(array.shape[1]) < lengths[:, None])).any(axis=1))
    if wrong.size:
        raise ValueError(
            f"mask[{wrong[0]}] has a valid step after one that is not; expected the valid steps first, as "
            f"they are padded at the end"
        )
    return lengths


class Backwards:
    """A layer of one direction that reads every row from its own end to its start.

    Keras's ``go_backwards=True``: ``y[t]`` here is the output after the step that read ``x[t]``; Keras
    lists the outputs in the order in which they are made, which is ``y`` turned round in time.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        Of one direction.

    Raises
    ------
    ValueError
        The layer is bidirectional.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.convert import Backwards
    >>> layer = fastrnn.GRU(3, 4, seed=0).eval()
    >>> x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype("float32")
    >>> y, h_n = Backwards(layer)(x)
    >>> bool((y[0] == h_n[0]).all()), bool((y[::-1] == layer(x[::-1])[0]).all())
    (True, True)
    """

    def __init__(self, layer: Any) -> None:
        if layer.bidirectional:
            raise ValueError(f"layer is {layer!r}; expected one direction")
        self.layer = layer

    def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Any, Any]:
        """Run over x (T, B, I), or with `batch_first` (B, T, I); arguments and results as of the layer.

        Raises
        ------
        TypeError, ValueError
            As of the layer.
        """
        call = check_call(CPU, self.layer._spec, self._layouts(), x, state, lengths)
        y, state_n = self.layer(self._turned(take("x", x), call.lengths), state, lengths=lengths)
        return self._turned(y, call.lengths), state_n

    def _layouts(self) -> tuple[Any, ...]:
        return (BATCH_FIRST if self.layer.batch_first else TIME_MAJOR,)

    def _turned(self, sequence: Array, lengths: Array | None) -> Array:
        layout = self._layouts()[0]
        turned: Array = layout.from_kernel(from_the_end(layout.to_kernel(sequence), lengths))
        return turned

    def explain(self, x: Any) -> Report:
        """Tell what runs the layer, as its own `explain` does."""
        return Report(self.layer.explain(x))

    def __repr__(self) -> str:
        return f"Backwards({self.layer!r})"
