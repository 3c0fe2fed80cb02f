"""``python -m fastrnn train``: train a character model before the user's eyes, then use it.

The loop is `training.fit`; the rest is what a person wants to see: samples on the way, a loss curve, and how
fast the kernels are.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import get_num_threads, reference
from .charmodel import CELLS, CharacterModel, Tokens, chunks, stream_count
from .corpus import Corpus
from .layouts import Cell, Spec
from .training import Adam, History, cosine_learning_rate, fit, softmax_cross_entropy

__all__ = ["Options", "run", "throughput"]

EVALUATIONS = 16
"""Intervals between the points of the held-out curve; the first point is the untrained model."""

SAMPLE_EVERY = 4
"""Evaluations from one sample shown on the way to the next."""

EXPLODED = 15.0
"""Times the loss of the untrained model, some 6 bits per character, from which on a training has diverged."""

QUICK_CHARACTERS = 100_000
"""Held-out characters that the curve is measured on; the final figure uses up to ten times as many."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for; see ``python -m fastrnn train --help``."""

    out: Path
    batch: int
    chunk: int
    learning_rate: float
    minutes: float | None
    steps: int | None
    prompt: str
    temperature: float
    seed: int


class Limit:
    """How far a training is: the larger part of its minutes and of its steps."""

    def __init__(self, minutes: float | None, steps: int | None) -> None:
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._steps = math.inf if steps is None else steps
        self._start = time.monotonic()

    def progress(self, steps: int) -> float:
        """Done part, 0 to 1."""
        elapsed = time.monotonic() - self._start
        return min(1.0, max(elapsed / self._seconds, steps / self._steps))


def run(corpus: Corpus, model: CharacterModel, options: Options) -> None:
    """Train a new model, save, reload, write some text and compare speeds.

    Raises
    ------
    FloatingPointError
        The training diverged; nothing is saved.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=options.out):  # fails before the training, not after it
        pass
    path = options.out / "model.safetensors"
    if not train_and_save(corpus, model, options, path):
        return
    model = CharacterModel.load(path)
    model.layer.eval()
    tokens = model.vocabulary.encode(corpus.held_out[: 10 * QUICK_CHARACTERS])
    bits = model.bits_per_character(tokens)
    print(f"\nread again, it has {bits:.3f} bits per character on {len(tokens):,} held-out characters,")
    print("and writes, through stream.step:\n")
    rate = write(model, options.prompt, 600, options.temperature, options.seed)
    print(f"\n({rate:,.0f} characters per second, one at a time)\n")
    print(throughput(model, min(options.batch, 64), min(options.chunk, 64)))


def train_and_save(corpus: Corpus, model: CharacterModel, options: Options, path: Path) -> bool:
    """Train, then save the model and the curves; returns False if Ctrl-C ended the training.

    Whatever else ends it, short of divergence, the model is saved.
    """
    vocabulary = model.vocabulary
    train_tokens, held_out = vocabulary.encode(corpus.train), vocabulary.encode(corpus.held_out)
    size = sum(p.size for module in (model.layer, model.output) for p in module.parameters.values())
    place, amount = corpus.source.split("\n")
    print(f"text    {place}\n        {amount}; {len(vocabulary)} different")
    print(f"model   {model.layer!r} + {model.output!r}, {size:,} parameters")
    print(f"threads {get_num_threads()}; stop early with Ctrl-C, the model is saved then too\n", flush=True)
    try:
        history = train(model, train_tokens, held_out[:QUICK_CHARACTERS], options)
    except FloatingPointError:
        raise  # these parameters are of no use: a model saved earlier stays
    except BaseException:
        model.save(path)
        raise
    model.save(path)
    if history.steps:
        picture = history.draw(
            unit=math.log(2),
            over_positions=True,
            xlabel="characters read (millions)",
            ylabel="bits per character",
            title="Next-character loss",
        )
        picture.savefig(path.with_name("loss.png"), dpi=150)
    interrupted = history.ending == "interrupted"
    ending = "interrupted after" if interrupted else "done,"
    print(f"\n{ending} {history.steps:,} steps; model saved as {path}, curves as loss.png beside it")
    return not interrupted


def write(model: CharacterModel, prompt: str, length: int, temperature: float, seed: int | None) -> float:
    """Print the prompt and what the model makes of it as it comes; returns characters per second."""
    sys.stdout.write(prompt)
    started = time.perf_counter()
    for character in model.generate(prompt, length, temperature=temperature, seed=seed):
        sys.stdout.write(character)
        sys.stdout.flush()
    seconds = time.perf_counter() - started
    print()
    return length / seconds


def train(model: CharacterModel, tokens: Tokens, held_out: Tokens, options: Options) -> History:
    """Train until the limit is reached or Ctrl-C is pressed, with samples on the way."""
    from tqdm import tqdm

    batch = stream_count(tokens, options.batch, options.chunk)
    limit = Limit(options.minutes, options.steps)
    steps = evaluations = 0

    def count(step: int, _: Any) -> None:
        nonlocal steps
        steps = step

    def evaluate(_: Any) -> float:
        nonlocal evaluations
        bits = model.bits_per_character(held_out)
        loss = bits * math.log(2)
        # An untrained model has some log(V); of what a function returns fit knows no bound.
        if steps and loss > EXPLODED * math.log(len(model.vocabulary)):
            raise FloatingPointError(f"after step {steps}: the evaluation's loss is {loss:.3g}")
        if evaluations % SAMPLE_EVERY == 0 and 0 < evaluations < EVALUATIONS:
            tqdm.write(f"\nafter {steps:,} steps, held out {bits:.3f} bits/char:\n{sample(model, options)}\n")
        evaluations += 1
        return loss

    def rate(step: int) -> float:
        peak = options.learning_rate
        return cosine_learning_rate(limit.progress(step), peak, final=0.05 * peak, warmup=0.02)

    return fit(
        model.model,
        lambda epoch: chunks(tokens, batch, options.chunk),
        loss=softmax_cross_entropy,
        optimizer=Adam([model.model]),
        limit=limit.progress,
        learning_rate=rate,
        clip=1.0,
        carry_state=True,
        evaluate=evaluate,
        evaluate_every=1 / EVALUATIONS,
        explode=EXPLODED,
        progress=speed,
        callbacks=[count],
    )


def speed(history: History) -> str:
    """Say, behind the bar, what the loss is and how fast it goes."""
    return (
        f"loss {history.losses[-1]:.3f}, {history.recent() / math.log(2):.3f} bits/char, "
        f"{history.positions[-1] / history.seconds:,.0f} char/s"
    )


def sample(model: CharacterModel, options: Options, length: int = 240) -> str:
    """Write a little text, indented."""
    text = options.prompt + "".join(
        model.generate(options.prompt, length, temperature=options.temperature, seed=options.seed)
    )
    return "\n".join("    " + line for line in text.splitlines()[:12])


def throughput(model: CharacterModel, batch: int, steps: int) -> str:
    """Tabulate the time of one forward and one training pass, here and elsewhere, same shapes.

    The stack is that of the model, with vectors of size H as input in place of characters.  The others
    are `fastrnn.reference`, which is a plain NumPy loop in float64, and torch.nn if it is installed.
    All run the same parameters on the same input, and agree before they are timed.
    """
    cell, hidden, layers = model.cell, model.layer.hidden_size, model.layer.num_layers
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch, hidden), dtype=np.float32)
    dy = rng.standard_normal((steps, batch, hidden), dtype=np.float32)
    layer = CELLS[cell](hidden, hidden, layers, seed=0)

    def fast_forward() -> Any:
        return layer(x)[0]

    def fast_training() -> None:
        layer.zero_grad()
        layer(x)
        layer.backward(dy)

    spec = Spec(cell, hidden, hidden, layers)

    def loop_forward() -> Any:
        return reference.forward(spec, layer.parameters, x)[0]

    def loop_training() -> None:
        reference.backward(spec, layer.parameters, reference.forward(spec, layer.parameters, x)[2], dy)

    contenders = [
        ("fastrnn", fast_forward, fast_training),
        ("NumPy loop (float64)", loop_forward, loop_training),
    ]
    try:
        contenders.append(_torch_contender(cell, layer, x, dy))
    except ImportError:
        note = "PyTorch is not installed, so it is not in the table."
    else:
        note = ""
    expected = loop_forward()
    lines = [
        f"One pass over T={steps} steps, B={batch} rows, I=H={hidden}, {layers} layer(s), "
        f"{get_num_threads()} thread(s), in milliseconds:",
        f"{'':24}{'forward':>10}{'forward + backward':>20}",
    ]
    for name, forward, training in contenders:
        layer.eval()
        if not np.allclose(forward(), expected, rtol=1e-3, atol=1e-4):
            raise ArithmeticError(f"{name} and the reference disagree")
        forward_ms = _milliseconds(forward)
        layer.train()
        lines.append(f"{name:24}{forward_ms:10.1f}{_milliseconds(training):20.1f}")
    return "\n".join([*lines, note])


def _torch_contender(
    cell: Cell, layer: Any, x: Any, dy: Any
) -> tuple[str, Callable[[], Any], Callable[[], None]]:
    import torch

    torch.set_num_threads(get_num_threads())
    peer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell](
        layer.input_size, layer.hidden_size, layer.num_layers
    )
    peer.load_state_dict({name: torch.from_numpy(a) for name, a in layer.state_dict().items()})
    x, dy = torch.from_numpy(x), torch.from_numpy(dy)

    def forward() -> Any:
        with torch.no_grad():
            return peer(x)[0].numpy()

    def training() -> None:
        peer.zero_grad()
        peer(x)[0].backward(dy)

    return f"PyTorch {torch.__version__}", forward, training


def _milliseconds(call: Callable[[], Any], seconds: float = 0.7) -> float:
    """Median over as many calls as fit into the time, at least one, after one to warm up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)
