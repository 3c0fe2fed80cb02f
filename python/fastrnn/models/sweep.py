"""Recurrent layers over images."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import expect_shape, take
from .._backends import Array, is_integer
from ..info import Report
from ._model import Model, State, joined_reports
from ._states import check_backward, check_layer


class Sweep2D(Model):
    """Two layers swept over an image: one along every row, then one along every column of what that gave.

    ::

        v[r, :] = rows(x[r, :])         for every row r
        y[:, c] = columns(v[:, c])      for every column c

    With bidirectional layers every y[r, c] has seen the whole image (Visin et al., "ReNet: a recurrent
    neural network based alternative to convolutional networks", arXiv:1505.00393, 2015, which begins with
    the columns).  All rows of all images are one batch, and so are all columns: two calls of the layers'
    kernels.

    Parameters
    ----------
    rows, columns
        Layers, time-major; the input size of `columns` is the output size of `rows`.

    Raises
    ------
    ValueError
        The sizes do not fit.

    Examples
    --------
    Features of each pixel, then a class of each: `ManyToMany` over a sweep.

    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany, Sweep2D
    >>> sweep = Sweep2D(fastrnn.GRU(1, 4, bidirectional=True), fastrnn.GRU(8, 5, bidirectional=True))
    >>> images = np.ones((28, 20, 3, 1), "float32")  # rows, columns, batch, channels
    >>> ManyToMany(sweep, 7)(images)[0].shape
    (28, 20, 3, 7)
    """

    def __init__(self, rows: Any, columns: Any) -> None:
        check_layer("rows", rows)
        check_layer("columns", columns)
        if columns.input_size != rows.output_size:
            raise ValueError(
                f"columns has input_size {columns.input_size}; expected {rows.output_size}, the width of rows"
            )
        self.rows, self.columns = rows, columns
        self.output_size = columns.output_size
        super().__init__(rows=rows, columns=columns)

    @property
    def input_size(self) -> int:
        """I: channels."""
        return int(self.rows.input_size)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Return no shapes: there is no state."""
        return ()

    def __call__(self, x: Any, state: State = None) -> tuple[Any, None]:
        """Sweep over images.

        Parameters
        ----------
        x : array (R, C, B, I), or tokens (R, C, B)
            Images of R rows and C columns.
        state : None
            It has none: every sweep starts from zeros.

        Returns
        -------
        y : array (R, C, B, O)
        state_n : None

        Raises
        ------
        TypeError, ValueError
            x is of the wrong type, dtype or shape, or on a device, or there is a state.
        """
        if state is not None:
            raise ValueError("state is given; expected None: every sweep starts from zeros")
        x = self._check_x(x)
        along_rows, _ = self.rows(_turned(x))
        down, _ = self.columns(_merged(_turned_back(along_rows, x.shape)))
        self._saved = x.shape if self.training else None
        return down.reshape(*x.shape[:3], self.output_size), None

    def _check_x(self, x: Any) -> Array:
        x = take("x", x)
        axes = {"R": None, "C": None, "B": None}
        expect_shape("x", x, axes if is_integer(x) else axes | {"I": self.input_size})
        return x

    def explain(self, x: Any) -> Report:
        """Tell what runs each layer; computes nothing."""
        x = self._check_x(x)
        R, C, B = x.shape[:3]
        down = np.empty(
            (R, C * B, self.columns.input_size), "float32" if self.dtype == "bfloat16" else self.dtype
        )
        return joined_reports(rows=self.rows.explain(_turned(x)), columns=self.columns.explain(down))

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, None]:
        """Back-propagate through the last call; returns ``(dx, None)``, dx None for tokens.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As of a layer; nothing has changed then.
        """
        shape = self._last_call()
        check_backward(self.rows, None, None)
        if dstate_n is not None:
            raise ValueError("dstate_n is given; expected None: there is no final state")
        if do is not None:
            do = take("do", do)
            expect_shape("do", do, dict(zip("RCBO", (*shape[:3], self.output_size), strict=True)))
            do = _merged(do)
        dalong, _ = self.columns.backward(do)
        dx, _ = self.rows.backward(_turned(dalong.reshape(*shape[:3], dalong.shape[-1])))
        self._saved = None
        return None if dx is None else _turned_back(dx, shape), None

    def stream(self, batch: int = 1) -> Any:
        """Raise ValueError: the first output depends on the whole image."""
        raise ValueError("a sweep has no stream: its first output depends on the whole image")


def _merged(images: Array) -> Array:
    """View (R, C, B, ...) as a batch of C*B columns: (R, C*B, ...)."""
    R, C, B, *channels = images.shape
    return images.reshape(R, C * B, *channels)


def _turned(images: Array) -> Array:
    """Return (R, C, B, ...) as a batch of R*B rows: (C, R*B, ...)."""
    return np.ascontiguousarray(_merged(images.swapaxes(0, 1)))


def _turned_back(rows: Array, shape: tuple[int, ...]) -> Array:
    """Undo `_turned` for images of this shape."""
    R, C, B = shape[:3]
    return np.ascontiguousarray(rows.reshape(C, R, B, rows.shape[-1]).swapaxes(0, 1))
