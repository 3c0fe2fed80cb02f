"""Many to one: is what a sentence says good or bad?  The order of its words decides.

    h_t = GRU(word_t, h_{t-1}),    o = V h_T + c    of the last word only (many to one)

The sentences are generated: "the plot was not very good but the cast was brilliant".  "not" turns what
follows it; of two clauses joined by "but" the second decides, by "although" the first.  A bag of words, the
same words in any order, is the baseline: logistic regression on their counts, which cannot know what a
"not" belongs to (Pang, Lee & Vaithyanathan, "Thumbs up? Sentiment classification using machine learning
techniques", EMNLP 2002).  Sentences have different lengths: shorter ones are padded, and `lengths` says
where each ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.models import ManyToOne
from fastrnn.training import Adam, Batches, Linear, fit, softmax_cross_entropy
from lecture import COLOURS, panels, parser, save

THINGS = ["plot", "cast", "music", "script", "film", "ending", "book", "pace"]
GOOD = ["good", "brilliant", "moving", "funny", "charming", "clever"]
BAD = ["bad", "dull", "boring", "silly", "awful", "weak"]
WORDS = ["the", "was", "not", "very", "quite", "but", "although", "and", *THINGS, *GOOD, *BAD]
SHOWN = ["the", "plot", "was", "not", "good", "but", "the", "cast", "was", "not", "bad"]


def clause(rng: np.random.Generator) -> tuple[list[str], bool]:
    """A thing and what it was; whether that is good."""
    good, turned = rng.random(2) < 0.5
    words = ["the", str(rng.choice(THINGS)), "was"]
    words += ["not"] * bool(turned) + [str(rng.choice(["very", "quite"]))] * bool(rng.random() < 0.4)
    return [*words, str(rng.choice(GOOD if good else BAD))], bool(good != turned)


def sentence(rng: np.random.Generator) -> tuple[list[str], bool]:
    """One clause, or two that say different things, and which of them counts."""
    first, verdict = clause(rng)
    if rng.random() < 0.3:
        return first, verdict
    second, other = clause(rng)
    while other == verdict:
        second, other = clause(rng)
    joint = str(rng.choice(["but", "although"]))
    return [*first, joint, *second], other if joint == "but" else verdict


def data(rng: np.random.Generator, count: int) -> tuple[Any, Any, Any]:
    """Tokens (T, B), lengths (B,) and verdicts (B,) of so many sentences."""
    sentences = [sentence(rng) for _ in range(count)]
    lengths = np.array([len(words) for words, _ in sentences])
    tokens = np.zeros((lengths.max(), count), int)
    for b, (words, _) in enumerate(sentences):
        tokens[: len(words), b] = [WORDS.index(word) for word in words]
    return tokens, lengths, np.array([int(verdict) for _, verdict in sentences])


def counts(tokens: Any, lengths: Any) -> Any:
    """How often each word stands in each sentence (B, V)."""
    one_hot = np.eye(len(WORDS), dtype="float32")[tokens]
    one_hot[np.arange(len(tokens))[:, None] >= lengths] = 0
    return one_hot.sum(axis=0)


def bag_of_words(training: tuple[Any, Any, Any], test: tuple[Any, Any, Any]) -> float:
    """Accuracy of logistic regression on the counts."""
    model = Linear(len(WORDS), 2, seed=0)
    optimizer = Adam([model], 0.05)
    x = counts(*training[:2])
    for _ in range(300):
        _, do = softmax_cross_entropy(model(x), training[2])
        model.zero_grad()
        model.backward(do)
        optimizer.step()
    return float((model(counts(*test[:2])).argmax(axis=-1) == test[2]).mean())


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=int, default=15)
    options = arguments.parse_args(argv)

    rng = np.random.default_rng(0)
    training, test = data(rng, 2000), data(rng, 1000)
    tokens, lengths, verdicts = training
    model = ManyToOne(fastrnn.GRU(len(WORDS), 24, seed=0), 2, output="softmax", seed=1)
    history = fit(
        model,
        Batches(2000, 50, lambda rows: (tokens[:, rows], verdicts[rows], {"lengths": lengths[rows]}), seed=0),
        loss=softmax_cross_entropy,
        optimizer=Adam([model], 0.01),
        epochs=options.epochs,
        clip=1.0,
    )
    model.eval()
    right = float((model.predict(test[0], lengths=test[1]).argmax(axis=-1) == test[2]).mean())
    bag = bag_of_words(training, test)
    print(f"{history.steps} updates: {right:.1%} of 1000 new sentences right; bag of words: {bag:.1%}")

    # The verdict after each word: the same sentence cut short, all cuts as one batch.
    cuts = np.arange(1, len(SHOWN) + 1)
    shown = np.repeat([[WORDS.index(word)] for word in SHOWN], len(SHOWN), axis=1)
    verdict = model.predict(shown, lengths=cuts)[:, 1]
    print(" ".join(f"{word} {p:.2f}" for word, p in zip(SHOWN, verdict, strict=True)))

    figure, axes = panels(2, f"Many to one: {right:.1%} right, bag of words {bag:.1%}")
    axes[0].plot(history.losses, color=COLOURS[0], lw=0.8)
    axes[0].set(title="training", xlabel="update", ylabel="loss in nats")
    axes[1].plot(verdict, "o-", color=COLOURS[1])
    axes[1].axhline(0.5, color="0.6", lw=0.8)
    axes[1].set(title="P(good) after each word", ylim=(-0.05, 1.05))
    axes[1].set_xticks(range(len(SHOWN)), SHOWN, rotation=60)
    save(figure, options.out, __file__)
    return {"right": right, "bag_of_words": bag, "verdict": verdict}


if __name__ == "__main__":
    main()
