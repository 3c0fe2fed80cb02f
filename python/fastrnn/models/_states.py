"""States of layers and models: of what shapes they are, and how they are made from vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arrays import expect_shape, take
from .._backends import Array, backend_of_device, on_host
from ..layouts import one_of
from ..training import Linear
from ..training._modes import leaves
from ._model import Model, State, state_arrays


def state_shapes(layer: Any, batch: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the arrays of a state of `batch` rows, of a layer or a model."""
    if isinstance(layer, Model):
        return layer.state_shapes(batch)
    shapes: tuple[tuple[int, ...], ...] = layer._spec.state_shapes(batch)
    return shapes


def check_layer(name: str, layer: Any) -> None:
    """Raise TypeError for what is no layer or model over sequences."""
    attributes = "output_size", "parameters", "backward"
    if isinstance(layer, type) or not all(hasattr(layer, attribute) for attribute in attributes):
        raise TypeError(f"{name} is {layer!r}; expected a layer or a model, over sequences")


def check_backward(layer: Any, do: Any, dstate_n: State) -> None:
    """Raise what ``layer.backward(do, dstate_n)`` would, before another part adds to its gradients."""
    check = getattr(layer, "_check_backward", None)  # not every model can tell before
    if check is not None:
        check(do, dstate_n)


def check_one_direction(name: str, layer: Any, why: str) -> None:
    """Raise TypeError for what is no layer, ValueError for a bidirectional one, also inside of a model."""
    check_layer(name, layer)
    if any(getattr(leaf, "bidirectional", False) for _, leaf in leaves(layer)):
        raise ValueError(f"{name} is {layer!r}; expected one direction: {why}")


def flat_state(state: State, device: str) -> Array:
    """Return the arrays (N, B, W) of a state, on the host or on this device, as vectors (B, N*W + ...)."""
    library = backend_of_device(device).own
    arrays = [on_host(library.take("state", array)).swapaxes(0, 1) for array in state_arrays(state)]
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
        flat, dflat = self._last_call(), flat_state(dstate_n, self.device)
        if self.nonlinearity == "tanh":
            dflat = dflat * (1 - flat * flat)
        dx = self.affine.backward(dflat)
        self._saved = None
        return dx, None
