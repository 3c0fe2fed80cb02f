"""A mark at the start decides the last symbol: who still knows it 200 steps later?

The first symbol is A or B, then come `gap` symbols that say nothing, and the answer is asked for by a
question mark.  Only that last step is scored.  The gradient that would teach the Elman network is a product
of `gap` factors diag(1 - h^2) W and vanishes (Bengio, Simard & Frasconi, "Learning long-term dependencies
with gradient descent is difficult", 1994).  The gated cells carry their state past a step by a sum,
c' = f c + i g, with a factor f near 1 where the gate is open (Hochreiter & Schmidhuber, "Long short-term
memory", 1997).  Biases of their gates let them start out remembering for about as long as the gap:
b_f = log u with u uniform in 1..gap-1, b_i = -b_f, and b_z = log u for GRU (Tallec & Ollivier, "Can
recurrent neural networks warp time?", ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.diagnostics import gradient_reach
from fastrnn.models import ManyToOne
from fastrnn.training import Adam, fit, initialisers, softmax_cross_entropy
from lecture import COLOURS, panels, parser, save

H = 16
GAPS = (10, 50, 100, 200)
QUESTION, FIRST_FILLER, SYMBOLS = 2, 3, 8  # A is 0 and B is 1
SEEDS = range(3)
CELLS = (fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM)


def sequences(rng: np.random.Generator, gap: int, batch: int) -> tuple[Any, Any]:
    """Tokens (gap + 2, B), and for each (B,) whether it began with A or B."""
    x = rng.integers(FIRST_FILLER, SYMBOLS, (gap + 2, batch))
    x[0] = rng.integers(0, 2, batch)
    x[-1] = QUESTION
    return x, x[0]


def network(cell: type, gap: int, seed: int) -> ManyToOne:
    layer = cell(SYMBOLS, H, seed=seed)
    if cell is not fastrnn.RNN:
        initialisers.chrono(layer, gap, seed=seed)
    return ManyToOne(layer, 2, seed=seed + 1)


def train(model: ManyToOne, gap: int, steps: int, seed: int) -> list[float]:
    """Returns the loss of every update."""
    rng = np.random.default_rng(seed)
    batches = [sequences(rng, gap, 32) for _ in range(steps)]
    optimizer = Adam([model], 0.003)
    return fit(model, batches, loss=softmax_cross_entropy, optimizer=optimizer, epochs=1, clip=1.0).losses


def accuracy(model: ManyToOne, gap: int) -> float:
    """Fraction of 1000 new sequences answered rightly."""
    x, mark = sequences(np.random.default_rng(12345), gap, 1000)
    o, _ = model.eval()(x)
    return float((o.argmax(axis=-1) == mark).mean())


def reach(model: ManyToOne, gap: int) -> Any:
    """|dL/dh_t| at every step, the last one first, relative to it."""
    x, _ = sequences(np.random.default_rng(1), gap, 32)
    norms = gradient_reach(model, x).total[::-1]
    return norms / norms[0]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parser(__doc__)
    arguments.add_argument("--long", action="store_true", help="also 1000 steps; three times the updates")
    arguments.add_argument("--steps", type=int, default=300, help="updates for each network")
    options = arguments.parse_args(argv)
    steps = options.steps * (3 if options.long else 1)

    gaps = (*GAPS, 1000) if options.long else GAPS
    right = {}
    figure, axes = panels(3, "A mark at the start decides the last symbol")
    for colour, style, cell in zip(COLOURS, ("-", "-", "--"), CELLS, strict=False):
        name = {"RNN": "Elman"}.get(cell.__name__, cell.__name__)
        norms = reach(network(cell, gaps[-1], seed=0), gaps[-1])
        axes[0].semilogy(norms, style, color=colour, label=name)
        for gap in gaps:
            answers, losses = [], []
            for seed in SEEDS:
                model = network(cell, gap, seed)
                losses = train(model, gap, steps, seed)
                answers.append(accuracy(model, gap))
            right[name, gap] = answers
            print(f"{name:5} {gap:5} steps between:", *(f"{answer:6.1%}" for answer in answers), "right")
        axes[1].plot(losses, color=colour, lw=0.9)
        axes[2].plot(range(len(gaps)), [np.mean(right[name, gap]) for gap in gaps], style, color=colour)
        for seed in SEEDS:
            axes[2].plot(range(len(gaps)), [right[name, gap][seed] for gap in gaps], "o", color=colour)
    axes[0].set(title="untrained: how far the gradient reaches", xlabel="steps back", ylabel="|dL/dh|")
    axes[0].set_ylim(1e-12, 10)
    axes[0].legend()
    axes[1].axhline(np.log(2), color="0.6", ls=":", lw=1)
    axes[1].set(title=f"training with {gaps[-1]} steps between", xlabel="update")
    axes[1].set_ylabel("loss in nats (dotted: ln 2, a guess)")
    axes[2].set(title="after training (dots: each seed)", xlabel="steps between", ylim=(0.4, 1.03))
    axes[2].set_ylabel("part of right answers")
    axes[2].set_xticks(range(len(gaps)), map(str, gaps))
    save(figure, options.out, __file__)
    return {"right": right}


if __name__ == "__main__":
    main()
