"""Yesterday's and today's price: an unrolled network with three weights, by hand and by the layer.

    h_t = ReLU(w1 x_t + w2 h_{t-1}),    y = w3 h_T,        w1 = 1.8, w2 = -0.5, w3 = 1.1, no biases

The weights are the same at every step, so the network takes two days as well as three.  What that costs
is seen when it is unrolled further: x_1 reaches y through w2^(T-1), which explodes for w2 = 2 (2^50 after
50 steps) and vanishes for w2 = 1/2.  So do the gradients, which take the same way back (Bengio, Simard &
Frasconi, "Learning long-term dependencies with gradient descent is difficult", 1994).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.models import ManyToMany
from lecture import COLOURS, panels, parser, save

DAYS = [(0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (1.0, 0.5, 0.5)]


def network(w1: float, w2: float, w3: float) -> ManyToMany:
    """One hidden unit with ReLU and no biases."""
    layer = fastrnn.RNN(1, 1, nonlinearity="relu", bias=False, dtype="float64")
    model = ManyToMany(layer, 1)
    values = {"layer.weight_ih_l0": w1, "layer.weight_hh_l0": w2, "readout.weight": w3, "readout.bias": 0.0}
    for name, value in values.items():
        model.parameters[name][...] = value
    return model


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parser(__doc__).parse_args(argv)

    model = network(1.8, -0.5, 1.1)
    predictions = {}
    for days in DAYS:
        o, _ = model(np.array(days).reshape(-1, 1, 1))
        predictions[days] = o[-1, 0, 0]
        print(f"{days!s:16} -> {predictions[days]:.2f}")

    # A pulse of 1 at the first step, then zeros: forward it is w2^t, and so is the gradient on its way back.
    pulse = np.zeros((51, 1, 1))
    pulse[0] = 1
    responses, gradients = {}, {}
    for w2 in (2.0, 1.0, 0.5):
        model = network(1.0, w2, 1.0)
        o, _ = model(pulse)
        last = np.zeros_like(o)
        last[-1] = 1
        dx, _ = model.backward(last)
        responses[w2], gradients[w2] = o[:, 0, 0], dx[::-1, 0, 0]
        print(f"w2 = {w2}: after 50 steps the pulse is {o[-1, 0, 0]:.4g}, its gradient {dx[0, 0, 0]:.4g}")
    print(f"2^50 = {2.0**50:.4g}, 2^-50 = {2.0**-50:.4g}")

    figure, axes = panels(2, "One unit, unrolled")
    labels = [", ".join(f"{day:g}" for day in days) for days in DAYS]
    bars = axes[0].bar(labels, list(predictions.values()), color=COLOURS[0], width=0.5)
    axes[0].bar_label(bars, fmt="%.2f")
    axes[0].set(title="w1 = 1.8, w2 = -0.5, w3 = 1.1", xlabel="prices up to today", ylabel="price tomorrow")
    axes[0].margins(y=0.1)
    axes[0].grid(axis="x", visible=False)
    for colour, (w2, response) in zip(COLOURS, responses.items(), strict=False):
        axes[1].semilogy(response, color=colour, lw=2, label=f"w2 = {w2:g}")
        axes[1].semilogy(gradients[w2], "o", color=colour, ms=4, markevery=5)
    axes[1].set(title="a pulse (lines), its gradient (dots)", xlabel="steps after the pulse", ylabel="size")
    axes[1].legend()
    save(figure, options.out, __file__)
    return {"predictions": predictions, "responses": responses, "gradients": gradients}


if __name__ == "__main__":
    main()
