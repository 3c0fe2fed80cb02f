"""A sequence from a sequence: strings written backwards by an encoder and a decoder.

    encoder:  s_t = LSTM(x_t, s_{t-1})            the string, to its end
    decoder:  d_0 = s_T,  d_t = LSTM(y_{t-1}, d_{t-1}),  o_t = V d_t + c

The whole string has to pass through the state between them (Cho et al., "Learning phrase representations
using RNN encoder-decoder for statistical machine translation", and Sutskever, Vinyals & Le, "Sequence to
sequence learning with neural networks", both 2014).  Trained on strings of 1 to 8 letters, with the right
letters fed to the decoder (teacher forcing); tested on new ones, feeding back what it wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.models import EncoderDecoder
from fastrnn.sampling import generate
from fastrnn.training import (
    Adam,
    cosine_learning_rate,
    fit,
    softmax_cross_entropy,
    teacher_forced,
)
from lecture import COLOURS, panels, parser, save

LETTERS = "abcdefghijklmnop"
END, START = len(LETTERS), len(LETTERS) + 1
SYMBOLS = len(LETTERS) + 2
LONGEST = 8


def strings(rng: np.random.Generator, lengths: Any) -> tuple[Any, Any]:
    """Random strings of these lengths (T, B), and what to write (T + 1, B): each backwards, then the end."""
    T, B = lengths.max(), len(lengths)
    x = rng.integers(len(LETTERS), size=(T, B))
    targets = np.full((T + 1, B), END)
    for b, length in enumerate(lengths):
        targets[:length, b] = x[:length, b][::-1]
    return x, targets


def batch(rng: np.random.Generator, size: int) -> tuple[Any, Any, dict[str, Any]]:
    lengths = rng.integers(1, LONGEST + 1, size)
    x, targets = strings(rng, lengths)
    inputs = teacher_forced(targets, START)
    return x, targets, {"inputs": inputs, "lengths": lengths, "target_lengths": lengths + 1}


def text(tokens: Any) -> str:
    return "".join((LETTERS + "._")[token] for token in tokens)


def write(model: EncoderDecoder, x: Any, lengths: Any) -> list[Any]:
    stream = model.start(x, lengths=lengths)
    start = np.full((1, x.shape[1]), START)
    return generate(stream, start, length=len(x) + 1, temperature=0, stop=END)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=2500, help="updates")
    options = arguments.parse_args(argv)

    encoder, decoder = (fastrnn.LSTM(SYMBOLS, 96, seed=seed) for seed in (0, 1))
    model = EncoderDecoder(encoder, decoder, SYMBOLS, seed=2)
    rng = np.random.default_rng(0)
    history = fit(
        model,
        lambda epoch: (batch(rng, 64) for _ in range(100)),
        loss=softmax_cross_entropy,
        optimizer=Adam([model]),
        steps=options.steps,
        learning_rate=lambda k: cosine_learning_rate(k / options.steps, 0.005),
        clip=1.0,
    )
    model.eval()
    rng = np.random.default_rng(1)
    right = {}
    for length in range(1, LONGEST + 4):
        lengths = np.full(500, length)
        x, targets = strings(rng, lengths)
        written = write(model, x, lengths)
        fits = [np.array_equal(*pair) for pair in zip(written, targets[:-1].T, strict=True)]
        right[length] = float(np.mean(fits))
        print(f"{length:2} letters: {right[length]:6.1%} right, {text(x[:, 0])} -> {text(written[0])}")
    figure, axes = panels(2, "Strings written backwards")
    axes[0].semilogy(history.losses, color=COLOURS[0], lw=0.8)
    axes[0].set(title="training", xlabel="update", ylabel="loss of a letter in nats")
    inside = [length <= LONGEST for length in right]
    axes[1].bar(list(right), list(right.values()), color=[COLOURS[0] if i else COLOURS[3] for i in inside])
    axes[1].set(title="whole strings right", xlabel="letters (yellow: longer than any trained on)")
    save(figure, options.out, __file__)
    return {"right": right}


if __name__ == "__main__":
    main()
