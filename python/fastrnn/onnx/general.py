"""Any node's equations, as loops over NumPy arrays, for what the fused kernels do not have.

Arrays are as the operators have them, time-major, gates in ONNX's order; everything is computed in the
dtype of X.  Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .activations import Activation

Array = NDArray[Any]


@dataclass(frozen=True)
class Direction:
    """Weights and functions of one direction.

    Attributes
    ----------
    W, R : array (G*H, I), (G*H, H)
    Wb, Rb : array (G*H,)
        The two halves of B.
    P : array (3*H,) or None
        Peepholes, gates in the order i, o, f.
    activations : sequence of Activation
        f, g and h, as many as the cell has.
    clip : float or None
        Bound of the magnitude of what gates and candidate are functions of.  c, whose function h is, is
        not bounded, as in onnxruntime.
    linear_before_reset, input_forget : bool
        Attributes of GRU and of LSTM.
    """

    W: Array
    R: Array
    Wb: Array
    Rb: Array
    P: Array | None
    activations: Sequence[Activation]
    clip: float | None
    linear_before_reset: bool = False
    input_forget: bool = False

    def bound(self, a: Array) -> Array:
        """Apply clip."""
        return a if self.clip is None else np.clip(a, -self.clip, self.clip)


def rnn_step(d: Direction, xw: Array, h: Array) -> tuple[Array]:
    """H' = f(X W^T + Wb + H R^T + Rb)."""
    (f,) = d.activations
    return (f(d.bound(xw + h @ d.R.T + d.Rb)),)


def gru_step(d: Direction, xw: Array, h: Array) -> tuple[Array]:
    """H' = (1 - z) * n + z * H; linear_before_reset says on which side of the product r acts."""
    f, g = d.activations
    H = h.shape[1]
    gates = f(d.bound(xw[:, : 2 * H] + h @ d.R[: 2 * H].T + d.Rb[: 2 * H]))
    z, r = gates[:, :H], gates[:, H:]
    R, Rb, xn = d.R[2 * H :], d.Rb[2 * H :], xw[:, 2 * H :]
    n = g(d.bound(xn + (r * (h @ R.T + Rb) if d.linear_before_reset else (r * h) @ R.T + Rb)))
    return ((1 - z) * n + z * h,)


def lstm_step(d: Direction, xw: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """C' = F * C + i * g, H' = o * h(C'); input_forget couples F = 1 - i."""
    f, g, activate_c = d.activations
    i, o, forget, candidate = np.split(xw + h @ d.R.T + d.Rb, 4, axis=1)
    pi, po, pf = (0, 0, 0) if d.P is None else np.split(d.P, 3)
    i = f(d.bound(i + pi * c))
    forget = 1 - i if d.input_forget else f(d.bound(forget + pf * c))
    c = forget * c + i * g(d.bound(candidate))
    o = f(d.bound(o + po * c))
    return o * activate_c(c), c


STEPS: dict[str, Any] = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}


def run(
    cell: str, d: Direction, x: Array, state: tuple[Array, ...], lengths: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    """Run one direction from the start of x (T, B, I) with the state (B, H) of each kind.

    Returns
    -------
    y : array (T, B, H)
        0 past a row's length.
    state_n : tuple of array (B, H)
        Each row's at its own end.
    """
    step = STEPS[cell]
    y = np.zeros((*x.shape[:2], d.R.shape[1]), x.dtype)
    with np.errstate(all="ignore"):  # infinities are results, and padding may hold anything
        for t in range(len(x)):
            new = step(d, x[t] @ d.W.T + d.Wb, *state)
            if lengths is not None:
                active = (t < lengths)[:, None]
                new = tuple(np.where(active, a, b) for a, b in zip(new, state, strict=True))
                y[t] = np.where(active, new[0], 0)
            else:
                y[t] = new[0]
            state = new
    return y, state
