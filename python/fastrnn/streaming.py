"""Step by step, with the state kept in place between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._arrays import BOOLS, INTEGERS, describe_axes, expect_shape, is_jax, take_listed
from ._backends import Array, Library, is_integer, on_host
from ._calls import TIME_MAJOR, KernelMemory, check_call, check_state, check_tokens, check_x, tokens_note
from .layouts import LARGEST_SIZE, integer

if TYPE_CHECKING:
    from .layers import _Layer

__all__ = ["Stream"]


class Stream(KernelMemory):
    """N independent streams of one layer, whose state lives in one buffer that every step updates.

    Made by ``layer.stream(batch=N)`` in eval mode.  Feeding a sequence step by step gives the same
    bits as one call of the layer.  A stream goes with the weights it was made with: after the layer
    has gone back to training or loaded other weights it raises RuntimeError, and a new one is needed.
    One thread at a time may use a stream; another one gets a RuntimeError.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        In eval mode, not bidirectional.
    batch : int
        N.

    Raises
    ------
    TypeError
        If it is no layer, or N no integer.
    RuntimeError
        If the layer is in training mode.
    ValueError
        If the layer is bidirectional, or N less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> layer = fastrnn.GRU(3, 4, seed=0).eval()
    >>> stream = layer.stream(batch=2)
    >>> x = np.ones((5, 2, 3), "float32")
    >>> steps = [stream.step(x[t]).copy() for t in range(5)]
    >>> bool((np.stack(steps) == layer(x)[0]).all())
    True
    >>> stream.reset(rows=[1])
    >>> bool((stream.state[:, 1] == 0).all())
    True
    """

    __slots__ = ("__weakref__", "_batch", "_core", "_layer", "_packed", "_run_plain")

    _instead = "make another with stream() and assign the state to it"

    def __init__(self, layer: _Layer, batch: int) -> None:
        from .layers import _Layer  # which imports this module

        if not isinstance(layer, _Layer):
            raise TypeError(f"layer has type {type(layer).__name__}; expected a fastrnn.LSTM, GRU or RNN")
        self._batch = integer("batch", batch, 1, LARGEST_SIZE)
        packed = layer._packed
        if packed is None:
            raise RuntimeError("a stream needs a layer in eval mode; call eval() first")
        if layer.bidirectional:
            raise ValueError("the layer is bidirectional; a stream cannot start from the end")
        self._layer = layer
        self._packed = packed
        self._core = packed.backend.core.Stream(packed.network, packed.weights, self._batch)
        self._run_plain = packed.backend.run_plain(self._core)

    @property
    def batch(self) -> int:
        """N: number of streams."""
        return self._batch

    def __repr__(self) -> str:
        return f"Stream({self._layer!r}, batch={self._batch})"

    def step(self, x: Any, rows: Any = None) -> Any:
        """Advance all streams, or some, by one step.

        Parameters
        ----------
        x : array (N, I), or (k, I) with `rows`
            Or integer tokens (N,) or (k,).
        rows : distinct integers (k,), optional
            The streams that x belongs to, in its order; the others stay as they are.  Those on a CUDA device
            are not looked at: out of range they count as the nearest stream, and must not name one twice.

        Returns
        -------
        array (N, R) or (k, R)
            The last layer's h, in one buffer that the next step overwrites; copy what is to stay.  JAX, whose
            arrays never change, is given new memory.

        Raises
        ------
        TypeError, ValueError
            For an argument of the wrong type, dtype, shape or value; no stream has moved then.
        RuntimeError
            If the layer's weights have changed, or another thread is in this stream.
        """
        if self._layer._packed is not self._packed:
            raise self._outdated()
        if rows is None:
            y = self._run_plain(x)
            if y is not None:
                return y
        return self._checked_step(x, rows)

    def _checked_step(self, x: Any, rows: Any) -> Any:
        spec = self._packed.spec
        library, array = check_x(self._packed.backend, "x", spec, x)
        features = {} if is_integer(array) else {"I": spec.input_size}
        indices = None if rows is None else self._row_indices(library, rows)
        axes = ({"N": self._batch} if indices is None else {"k": indices.size}) | features
        if array.ndim != len(axes):
            expected = describe_axes(axes)
            raise ValueError(f"x has shape {array.shape}; expected {expected}{tokens_note(spec, array)}")
        expect_shape("x", array, axes)
        array = library.place(array, spec.dtype) if features else check_tokens(library, "x", spec, array)
        known = None if indices is None else library.values(indices)
        if known is not None and np.unique(known).size != known.size:
            raise ValueError(f"rows is {known.tolist()}; expected each stream at most once")
        y = self._core.step(array, None if indices is None else library.place(indices, "int64"))
        return library.give(y.copy() if is_jax(x) else y)

    def _rows(self, rows: Any, kinds: str, expected: str) -> NDArray[Any]:
        """Take a list of rows to where it can be checked: the host, also from a device."""
        if isinstance(rows, list | tuple):
            return take_listed("rows", rows, kinds, expected)
        array = self._packed.backend.own.take_listed("rows", rows, kinds, expected)
        return on_host(array)

    def _row_indices(self, library: Library, rows: Any) -> Array:
        """Take numbers of rows, which are looked at where that does not mean to wait."""
        array = library.take_listed("rows", rows, INTEGERS, "integers")
        expect_shape("rows", array, {"k": None})
        known = library.values(array)
        if known is not None:
            bad = np.flatnonzero((known < 0) | (known >= self._batch))
            if bad.size:
                raise ValueError(f"rows[{bad[0]}] is {known[bad[0]]}; expected from 0 to {self._batch - 1}")
        return array

    def run(self, x: Any) -> Any:
        """Advance all streams by T steps.

        Parameters
        ----------
        x : array (T, N, I), with the layer's `batch_first` (N, T, I)
            Or integer tokens without the axis I.

        Returns
        -------
        y : array (T, N, R), in x's layout
            New memory; the layer's y for the same steps.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As for `step`.
        """
        if self._layer._packed is not self._packed:
            raise self._outdated()
        spec = self._packed.spec
        call = check_call(self._packed.backend, spec, self._layer._layouts()[:1], x, batch=self._batch)
        y = call.layout.empty(call.library, (call.steps, self._batch, spec.output_size), spec.dtype)
        self._core.run(call.x, y)
        return call.give(y)

    def reset(self, rows: Any = None) -> None:
        """Set the state of all streams, or some, to zero.

        Parameters
        ----------
        rows : integers (k,) or bool mask (N,), optional
            Which; all if None.

        Raises
        ------
        TypeError, ValueError
            For rows of the wrong type, shape or value; nothing has changed then.
        RuntimeError
            As for `step`.
        """
        chosen: Any = slice(None)
        if rows is not None:
            chosen = self._rows(rows, INTEGERS + BOOLS, "integers or a bool mask")
            if chosen.dtype.kind == BOOLS:
                expect_shape("rows", chosen, {"N": self._batch})
            else:
                chosen = self._row_indices(self._packed.backend.own, chosen).astype(np.int64, copy=False)
        with self._buffers() as buffers:
            for buffer in buffers:
                self._packed.backend.clear_rows(buffer, chosen)

    @property
    def state(self) -> Any:
        """Copies of the state: h (L, N, R), for LSTM the pair (h, c) with c (L, N, H); assign to set it.

        On a CUDA device they are arrays there; c of a 16-bit layer is float32.
        """
        with self._buffers() as buffers:
            copies = tuple(buffer.copy() for buffer in buffers)
        return copies if len(copies) == 2 else copies[0]

    @state.setter
    def state(self, value: Any) -> None:
        if value is None:
            raise TypeError("state is None; expected arrays, or call reset()")
        with self._buffers() as buffers:
            dtypes = [str(buffer.dtype) for buffer in buffers]
        own = self._packed.backend.own
        arrays = check_state(own, "state", self._packed.spec, TIME_MAJOR, self._batch, value, dtypes)
        assert arrays is not None
        with self._buffers() as buffers:
            for buffer, array in zip(buffers, arrays, strict=True):
                buffer[...] = array

    @contextmanager
    def _buffers(self) -> Iterator[tuple[Array, ...]]:
        """Give the live state, with other threads kept out."""
        if self._layer._packed is not self._packed:
            raise self._outdated()
        with self._core:
            c = self._core.c
            yield (self._core.h,) if c is None else (self._core.h, c)

    def _outdated(self) -> RuntimeError:
        return RuntimeError(
            "this stream was made with weights that its layer no longer has (train(), quantize() or "
            "load_state_dict() was called since); make a new one with stream()"
        )
