"""One to many: an image of a digit is written out as a word, letter by letter.

    s_0 = tanh(W x + b)   of the 64 pixels x,      s_t = GRU(letter_{t-1}, s_{t-1}),      o_t = V s_t + c

The image sets the initial state and is not seen again; each letter is read when the next is written, "."
ends the word (Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.2.4; Vinyals et al., "Show
and tell", CVPR 2015).  The images are scikit-learn's 1797 of 8 x 8 pixels; the last 450 are for testing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.models import OneToMany
from fastrnn.sampling import generate
from fastrnn.training import Adam, Batches, fit, softmax_cross_entropy, teacher_forced
from lecture import COLOURS, panels, parser, save

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LETTERS = ".^" + "".join(sorted(set("".join(WORDS))))  # the end, the start
END, START = 0, 1
TEST = 450


def captions(digits: Any) -> tuple[Any, Any]:
    """Tokens of the words with their end (T, B), and their lengths (B,)."""
    texts = [WORDS[digit] + "." for digit in digits]
    tokens = np.full((6, len(texts)), END)
    for b, text in enumerate(texts):
        tokens[: len(text), b] = [LETTERS.index(letter) for letter in text]
    return tokens, np.array([len(text) for text in texts])


def write(model: OneToMany, images: Any) -> list[str]:
    """The likeliest letter at each step, until the end; all images at once, one a row."""
    start = np.full((1, len(images)), START)
    words = generate(model.start(images), start, length=8, temperature=0, stop=END)
    return ["".join(LETTERS[token] for token in word) for word in words]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=int, default=30)
    options = arguments.parse_args(argv)
    from sklearn.datasets import load_digits

    data = load_digits()
    images, digits = (data.data / 16).astype("float32"), data.target

    def batch(rows: Any) -> tuple[Any, Any, dict[str, Any]]:
        targets, lengths = captions(digits[rows])
        return images[rows], targets, {"inputs": teacher_forced(targets, START), "target_lengths": lengths}

    model = OneToMany(fastrnn.GRU(len(LETTERS), 64, seed=0), len(LETTERS), input_size=64, seed=1)
    history = fit(
        model,
        Batches(len(images) - TEST, 64, batch, seed=0),
        loss=softmax_cross_entropy,
        optimizer=Adam([model], 0.005),
        epochs=options.epochs,
        clip=1.0,
    )
    unseen = images[-TEST:]
    written = write(model.eval(), unseen)
    truth = [WORDS[digit] for digit in digits[-TEST:]]
    fits = np.array(written) == truth
    wrong = np.flatnonzero(~fits)
    right, spelt = float(fits.mean()), float(np.isin(written, WORDS).mean())
    print(f"{history.steps} updates: {right:.1%} of {TEST} test images named, {spelt:.1%} written as a word")
    print("wrong:", ", ".join(f"{written[i]} for {truth[i]}" for i in wrong[:10]))

    figure, axes = panels(20, f"{right:.1%} right; the last row: some that are not", rows=4, height=1.5)
    figure.set_size_inches(8, 7)
    for axis, i in zip(axes, [*np.flatnonzero(fits)[:15], *wrong[:5]], strict=False):
        axis.imshow(unseen[i].reshape(8, 8), cmap="gray_r")
        axis.set_title(written[i], color=COLOURS[0 if fits[i] else 1])
        axis.set_axis_off()
    for axis in axes[15 + len(wrong[:5]) :]:
        axis.set_axis_off()
    save(figure, options.out, __file__)
    return {"right": right, "spelt": spelt}


if __name__ == "__main__":
    main()
