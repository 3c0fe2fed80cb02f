"""What a recurrence remembers: powers of W where it is linear, squashed where it is not.

    h_t = W h_{t-1}  =>  h_t = W^t h_0,    |W^t| ~ |lambda_max|^t

The largest eigenvalue says how a start grows or fades; a complex pair r exp(+-i theta) turns it by theta
a step, so that it oscillates with period 2 pi / theta.  No training can make |lambda| both forget and
keep.  With an activation, h_t = f(w h_{t-1}): the sigmoid forgets where it started within a few steps,
tanh keeps the sign if w > 1, ReLU keeps a positive start exactly as the linear unit does, and drops a
negative one at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.diagnostics import recurrent_spectrum
from lecture import COLOURS, panels, parser, save

STEPS = 60


def turning(radius: float, theta: float) -> Any:
    """The 2 x 2 matrix with eigenvalues radius exp(+-i theta)."""
    return radius * np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])


MATRICES = {
    "1.05 and 0.5": np.array([[1.05, 0.4], [0.0, 0.5]]),
    "0.9 and -0.5": np.array([[0.9, 0.4], [0.0, -0.5]]),
    "0.98 exp(±iπ/6)": turning(0.98, np.pi / 6),
    "1.02 exp(±iπ/10)": turning(1.02, np.pi / 10),
}


def recursion(W: Any, starts: Any, nonlinearity: str = "identity") -> Any:
    """h_0 .. h_STEPS (T + 1, B, H) of h_t = f(W h_{t-1}), from each row of starts (B, H)."""
    H = len(W)
    layer = fastrnn.RNN(1, H, nonlinearity=nonlinearity, bias=False, dtype="float64")
    layer.parameters["weight_hh_l0"][...] = W
    y, _ = layer(np.zeros((STEPS, len(starts), 1)), starts[None])  # the input is zero throughout
    return np.concatenate([starts[None], y])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parser(__doc__).parse_args(argv)

    growth, expected, periods, finals = {}, {}, {}, {}
    figure, axes = panels(6, "Recurrences with no input", rows=2, height=3.2)
    for colour, (name, W) in zip(COLOURS, MATRICES.items(), strict=False):
        spectrum = recurrent_spectrum(W).matrices["W"]
        h = recursion(W, np.eye(2))  # column j of W^t is where the unit start j is after t steps
        size = np.linalg.norm(h, ord=2, axis=(1, 2))
        growth[name] = (size[-1] / size[-21]) ** (1 / 20)
        expected[name] = spectrum.radius
        print(
            f"eigenvalues {name:16} {spectrum.verdict}: |W^t| grows by {growth[name]:.4f}, |lambda|", end=" "
        )
        print(f"is {expected[name]:.4f}")
        axes[0].semilogy(size, color=colour, label=name)
        axes[0].semilogy(expected[name] ** np.arange(STEPS + 1.0), ":", color=colour)
        if spectrum.eigenvalues.imag.any():
            unit = h[:, 0, 0] / expected[name] ** np.arange(STEPS + 1)  # without its growth
            falls = np.flatnonzero((unit[:-1] > 0) & (unit[1:] <= 0))
            periods[name] = (np.diff(falls).mean(), spectrum.period)
            print(f"    turns with period {periods[name][0]:.1f}, 2 pi / theta is {periods[name][1]:.1f}")
            axes[1].plot(h[:, 0, 0], color=colour, label=name)
    axes[0].set(title="|W^t| (lines) and |λmax|^t (dots)", xlabel="t")
    axes[1].set(title="complex pairs: the first unit", xlabel="t")
    axes[0].legend(fontsize=7)
    axes[1].legend(fontsize=7)

    starts = np.array([[-1.0], [-0.5], [-0.1], [0.1], [0.5], [1.0]])
    for axis, (f, w) in zip(
        axes[2:], [("sigmoid", 1.5), ("tanh", 1.5), ("relu", 1.05), ("relu", 0.9)], strict=True
    ):
        h = recursion(np.array([[w]]), starts, f)[:, :, 0]
        finals[f, w] = h[-1]
        print(f"{f:8} w = {w:<5} from {starts.ravel()} to {np.round(h[-1], 3)}")
        for row, start in enumerate(starts.ravel()):
            axis.plot(h[:31, row], color=COLOURS[int(start < 0)])
        axis.set(title=f"{f}, w = {w}", xlabel="t")
        axis.set_ylabel("h from positive and negative starts", fontsize=8)
    save(figure, options.out, __file__)
    return {
        "growth": growth,
        "expected": expected,
        "periods": periods,
        "starts": starts.ravel(),
        "finals": finals,
    }


if __name__ == "__main__":
    main()
