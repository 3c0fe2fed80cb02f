"""States of layers and models: of what shapes they are, and how they are made from vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arrays import expect_shape, take
from .._backends import Array
from ..layouts import one_of
from ..training import Linear
from ._model import Model, State


def state_shapes(layer: Any, batch: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the arrays of a state of `batch` rows, of a layer or a model."""
    if isinstance(layer, Model):
        return layer.state_shapes(batch)
    shapes: tuple[tuple[int, ...], ...] = layer._spec.state_shapes(batch)
    return shapes


def state_arrays(state: State) -> tuple[Any, ...]:
    """Return the arrays of a state that is None, an array or a tuple of arrays."""
    if state is None:
        return ()
    return tuple(state) if isinstance(state, tuple | list) else (state,)


def check_dstate(layer: Any, dstate_n: State, batch: int) -> None:
    """Raise ValueError for what `layer.backward` will not take, before the readout adds its gradients."""
    if dstate_n is None:
        return
    try:
        shapes = state_shapes(layer, batch)
    except NotImplementedError:
        return
    found = tuple(None if a is None else np.shape(a) for a in state_arrays(dstate_n))
    if len(found) != len(shapes) or any(a not in (None, b) for a, b in zip(found, shapes, strict=True)):
        raise ValueError(f"dstate_n has arrays of shapes {found}; expected {shapes}")


def flat_state(state: State) -> Array:
    """Return the arrays (N, B, W) of a state as vectors (B, N*W + ...)."""
    arrays = [np.asarray(array).swapaxes(0, 1) for array in state_arrays(state)]
    return np.concatenate([a.reshape(len(a), a.shape[1] * a.shape[2]) for a in arrays], axis=1)


def state_of_flat(vectors: Array, shapes: Sequence[tuple[int, ...]]) -> State:
    """Undo `flat_state`."""
    widths = [n * width for n, _, width in shapes]
    parts = np.split(vectors, np.cumsum(widths)[:-1], axis=1)
    arrays = tuple(
        np.ascontiguousarray(part.reshape(len(vectors), n, width).swapaxes(0, 1))
        for part, (n, _, width) in zip(parts, shapes, strict=True)
    )
    return arrays if len(arrays) > 1 else arrays[0]


class Bridge(Model):
    """Vectors to the initial state of a layer: ``s_0 = f(W v + b)``.

    As ``s_0 = tanh(W_s h)`` in Bahdanau, Cho & Bengio, "Neural machine translation by jointly learning to
    align and translate", ICLR 2015, appendix A.2.2.  It has no outputs, only a final state.

    Parameters
    ----------
    input_size
        Width of v.
    layer
        The layer or model that is to start from s_0.
    nonlinearity
        f: "tanh" or "identity".
    seed
        Makes W and b reproducible.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models._states import Bridge
    >>> bridge = Bridge(3, fastrnn.LSTM(5, 4, num_layers=2))
    >>> _, (h, c) = bridge(np.ones((6, 3), "float32"))
    >>> dv, _ = bridge.backward(None, (h, c))
    >>> h.shape, c.shape, dv.shape
    ((2, 6, 4), (2, 6, 4), (6, 3))
    """

    def __init__(
        self, input_size: int, layer: Any, *, nonlinearity: str = "tanh", seed: int | None = None
    ) -> None:
        one_of("nonlinearity", nonlinearity, ("tanh", "identity"))
        self.nonlinearity = nonlinearity
        self._shapes = state_shapes(layer, 1)
        width = sum(n * width for n, _, width in self._shapes)
        self.affine = Linear(input_size, width, dtype=layer.dtype, seed=seed, device=layer.device)
        super().__init__(affine=self.affine)

    def __call__(self, x: Any, state: State = None) -> tuple[None, State]:
        """Map vectors (B, W) to ``(None, s_0)``."""
        vectors = take("x", x)
        expect_shape("x", vectors, {"B": None, "W": self.affine.in_features})
        flat = self.affine(vectors)
        if self.nonlinearity == "tanh":
            flat = np.tanh(flat)
        self._saved = flat if self.training else None
        return None, state_of_flat(flat, self._shapes)

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Array, None]:
        """Map the gradient in s_0 to ``(dx, None)``."""
        flat, dflat = self._last_call(), flat_state(dstate_n)
        if self.nonlinearity == "tanh":
            dflat = dflat * (1 - flat * flat)
        dx = self.affine.backward(dflat)
        self._saved = None
        return dx, None
