"""``python -m fastrnn train``: train a character model before the user's eyes, then use it.

The loop is an ordinary one (chunk, loss, gradients, clip, optimizer step); the rest is what a person
wants to see: a progress bar, samples, a loss curve, and how fast the kernels are.
"""

from __future__ import annotations

import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import get_num_threads, reference
from .charmodel import CELLS, CellName, CharacterModel, Tokens, chunks, streams
from .corpus import Corpus
from .layouts import Spec
from .training import Adam, clip_by_global_norm, cosine_learning_rate

__all__ = ["Options", "run", "throughput"]

EVALUATIONS = 16
"""Intervals between the points of the held-out curve; the first point is the untrained model."""

SAMPLE_EVERY = 4
"""Evaluations from one sample shown on the way to the next."""

ABSURD_BITS = 100.0
"""Bits per character from which on a training has diverged: an even guess among all of Unicode takes 21."""

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


@dataclass
class History:
    """The curves: (characters read, bits per character)."""

    training: list[tuple[int, float]] = field(default_factory=list)
    """One point a step."""
    held_out: list[tuple[int, float]] = field(default_factory=list)

    @property
    def characters(self) -> int:
        """Read so far."""
        return self.training[-1][0] if self.training else 0

    def recent(self, steps: int = 50) -> float:
        """Mean of the last steps of training."""
        return float(np.mean([bits for _, bits in self.training[-steps:]]))


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
    from threadpoolctl import threadpool_limits

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=options.out):  # fails before the training, not after it
        pass
    path = options.out / "model.safetensors"
    # NumPy's matrix products get one thread: they are a tenth of the work, and the idle threads of their
    # library busy-wait, on the cores that the kernels' threads need.
    with threadpool_limits(1, user_api="blas"):
        finished = train_and_save(corpus, model, options, path)
        if finished:
            model = CharacterModel.load(path)
            model.layer.eval()
            tokens = model.vocabulary.encode(corpus.held_out[: 10 * QUICK_CHARACTERS])
            bits = model.bits_per_character(tokens)
            print(
                f"\nread again, it has {bits:.3f} bits per character on {len(tokens):,} held-out characters,"
            )
            print("and writes, through stream.step:\n")
            rate = write(model, options.prompt, 600, options.temperature, options.seed)
            print(f"\n({rate:,.0f} characters per second, one at a time)\n")
    if finished:
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
    history = History()
    with interruptible() as stop:
        try:
            train(model, train_tokens, held_out[:QUICK_CHARACTERS], options, history, stop)
        except FloatingPointError:
            raise  # these parameters are of no use: a model saved earlier stays
        except BaseException:
            model.save(path)
            raise
        model.save(path)
        if history.training:
            plot(history, path.with_name("loss.png"))
    ending = "interrupted after" if stop() else "done,"
    print(f"\n{ending} {len(history.training):,} steps; model saved as {path}, curves as loss.png beside it")
    return not stop()


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


def train(
    model: CharacterModel,
    tokens: Tokens,
    held_out: Tokens,
    options: Options,
    history: History,
    stop: Callable[[], bool],
) -> None:
    """Train until the limit is reached or stop() is true, reporting on the way."""
    from tqdm import tqdm

    batch = streams(tokens, options.batch, options.chunk)
    modules = [model.layer, model.output]
    optimizer = Adam(modules)
    limit = Limit(options.minutes, options.steps)
    seconds = 0.0
    state: Any = None
    with tqdm(
        total=100.0,
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        mininterval=0.2 if sys.stderr.isatty() else 5,
        dynamic_ncols=True,
    ) as bar:
        for x, targets, first in epochs(tokens, batch, options.chunk):
            step = len(history.training)
            progress = limit.progress(step)
            bar.update(100 * progress - bar.n)
            due = len(history.held_out)
            if due <= EVALUATIONS * progress:
                model.layer.eval()
                history.held_out.append((history.characters, sane(model.bits_per_character(held_out))))
                if due % SAMPLE_EVERY == 0 and 0 < due < EVALUATIONS:
                    bar.write(sample(model, history, options))
                model.layer.train()
            if progress >= 1 or stop():
                break
            started = time.perf_counter()
            optimizer.learning_rate = cosine_learning_rate(
                progress, options.learning_rate, final=0.05 * options.learning_rate, warmup=0.02
            )
            optimizer.zero_grad()
            loss, state = model.loss_and_gradients(x, targets, None if first else state)
            bits = sane(loss / math.log(2))
            clip_by_global_norm(modules, 1.0)
            optimizer.step()
            seconds += time.perf_counter() - started
            history.training.append((history.characters + x.size, bits))
            bar.set_postfix_str(
                f"loss {loss:.3f}, {history.recent():.3f} bits/char, "
                f"{history.characters / seconds:,.0f} char/s",
                refresh=False,
            )


def sane(bits: float) -> float:
    """Return the bits per character; FloatingPointError if they show that the training diverged."""
    if not bits <= ABSURD_BITS:
        raise FloatingPointError(f"the loss is {bits:.3g} bits per character")
    return bits


def epochs(tokens: Tokens, batch: int, steps: int) -> Iterator[tuple[Tokens, Tokens, bool]]:
    """Endlessly the chunks of a text, and whether a chunk is the first of a pass (zero state)."""
    while True:
        for index, (x, targets) in enumerate(chunks(tokens, batch, steps)):
            yield x, targets, index == 0


def sample(model: CharacterModel, history: History, options: Options, length: int = 240) -> str:
    """Write a little text, indented, below the latest held-out figure."""
    _, bits = history.held_out[-1]
    text = options.prompt + "".join(
        model.generate(options.prompt, length, temperature=options.temperature, seed=options.seed)
    )
    lines = "\n".join("    " + line for line in text.splitlines()[:12])
    return f"\nafter {len(history.training):,} steps, held out {bits:.3f} bits/char:\n{lines}\n"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that a training step is never cut in half.

    A second Ctrl-C interrupts at once, as usual.
    """
    stopped = False

    def note(signum: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, previous)


def plot(history: History, path: Path) -> None:
    """Draw both curves over the characters read."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    width = max(1, len(history.training) // 200)
    bins = [history.training[i : i + width] for i in range(0, len(history.training), width)]
    curves = [("training", "-", [np.mean(b, axis=0) for b in bins]), ("held out", "o-", history.held_out)]
    for label, style, points in curves:
        characters, bits = np.array(points).T
        axes.plot(characters / 1e6, bits, style, label=label)
    axes.set(xlabel="characters read (millions)", ylabel="bits per character", title="Next-character loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


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
    cell: CellName, layer: Any, x: Any, dy: Any
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
    while sum(times) < seconds:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)
