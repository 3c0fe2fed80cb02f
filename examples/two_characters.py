"""Two characters and three hidden units: the smallest language model, and what its hidden state holds.

    h_t = tanh(U x_t + W h_{t-1} + b),    o_t = V h_t + c,    p_t = softmax(o_t),    L = -sum_t log p_t[y_t]

Untrained, with small weights, both characters are as likely as each other: every step costs ln 2, and
the loss after k steps is k ln 2.  On 1, 0, 1, 0 the next character follows from the present one.  On
1, 1, 0, repeated, it does not: after a 1 comes a 1 or a 0, and only the hidden state can tell the first
1 from the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.models import ManyToMany
from fastrnn.training import Adam, softmax_cross_entropy
from lecture import COLOURS, panels, parser, save, training_step


def network(scale: float = 1.0) -> ManyToMany:
    """Two characters in and out, H = 3, in float64; the initial weights times `scale`."""
    model = ManyToMany(fastrnn.RNN(2, 3, dtype="float64", seed=1), 2, seed=2)
    for parameter in model.parameters.values():
        parameter *= scale
    return model


def running_loss(model: ManyToMany, x: Any, y: Any) -> Any:
    """The loss summed up to each step, in nats."""
    o, _ = model(x)
    return np.cumsum([softmax_cross_entropy(o[t], y[t])[0] for t in range(len(y))])


def train(model: ManyToMany, x: Any, y: Any, until: float) -> int:
    """Adam until the mean loss of a step is below `until`; returns the number of updates."""
    optimizer = Adam([model], learning_rate=0.02)
    updates = 1
    while training_step(model, optimizer, x, y) > until:
        updates += 1
        if updates > 20_000:
            raise ArithmeticError(f"the loss is not below {until} after {updates - 1} updates")
    return updates


def pairs(pattern: list[int], steps: int) -> tuple[Any, Any]:
    """Inputs and next characters (T, 1) of a repeated pattern."""
    text = np.resize(pattern, steps + 1)[:, None]
    return text[:-1], text[1:]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parser(__doc__).parse_args(argv)

    x, y = pairs([1, 0], 4)
    untrained = running_loss(network(scale=0.02), x, y)
    print("untrained, running loss ", np.round(untrained, 3), " k ln 2:", np.log(2) * np.arange(1, 5))

    alternating = network()
    updates = train(alternating, x, y, until=5e-5)
    trained = running_loss(alternating, x, y)
    h_10 = alternating.layer(x)[0][:, 0]
    alternates = (np.sign(h_10[1:]) == -np.sign(h_10[:-1])).all(axis=0)
    print(f"1,0: total of four steps {trained[-1]:.6f} after {updates} updates;")
    print(f"     units that alternate in sign: {np.flatnonzero(alternates).tolist()}")

    counting = network()
    x, y = pairs([1, 1, 0], 30)
    updates = train(counting, x, y, until=1e-3)
    per_step = np.diff(running_loss(counting, x, y), prepend=0.0)
    h_110 = counting.layer(x)[0][:, 0]
    first, second = h_110[0::3], h_110[1::3]  # at the first 1 of each 1,1,0 and at the second
    apart = np.linalg.norm(first[:, None] - second, axis=-1).min()
    spread = max(np.ptp(group, axis=0).max() for group in (first, second))
    print(f"1,1,0: worst step {per_step.max():.4f} after {updates} updates; the hidden state at the first 1")
    print(f"       is at least {apart:.2f} from that at the second, and moves by {spread:.2f} at most")

    figure, axes = panels(3, "Two characters, three hidden units")
    k = np.arange(1, 5)
    axes[0].plot(k, k * np.log(2), "--", color="0.6", label="k ln 2")
    axes[0].plot(k, untrained, "o", color=COLOURS[0], label="untrained")
    axes[0].plot(k, trained, "o-", color=COLOURS[1], label="trained")
    axes[0].set(xlabel="steps k", ylabel="running loss in nats", title="1, 0 repeated", xticks=range(1, 5))
    axes[0].legend()
    for axis, h, pattern, steps in ((axes[1], h_10, [1, 0], 4), (axes[2], h_110, [1, 1, 0], 9)):
        for unit in range(3):
            axis.plot(h[:steps, unit], "o-", color=COLOURS[unit], label=f"unit {unit}")
        axis.set(xticks=range(steps), ylabel="h", ylim=(-1.1, 1.1), xlabel="character read")
        axis.set_xticklabels(np.resize(pattern, steps))
        axis.set_title(f"hidden state on {', '.join(map(str, pattern))} repeated")
    for start in range(0, 9, 3):
        axes[2].axvspan(start - 0.3, start + 0.3, color=COLOURS[3], alpha=0.25, lw=0)
    axes[2].set_xlabel("character read (shaded: the first 1)")
    axes[1].legend(fontsize=8)
    save(figure, options.out, __file__)
    return {
        "untrained": untrained,
        "trained_total": trained[-1],
        "alternates": alternates,
        "worst_step": per_step.max(),
        "apart": apart,
        "spread": spread,
    }


if __name__ == "__main__":
    main()
