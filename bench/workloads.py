"""What is measured: sizes, the work each of them is, and how fast a machine could do it at best."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
PASSES = ("forward", "training", "streaming")
DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # bytes


@dataclass(frozen=True)
class Workload:
    """A layer, or a stack, and what is done with it.

    forward: inference over T steps. training: forward and backward. streaming: one step from Python, T = 1,
    the state carried from call to call.
    """

    cell: str
    run: str  # one of PASSES
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"  # one of DTYPES
    tokens: bool = False  # x is integers; who takes only vectors gets them as one-hot vectors, made before
    resets: bool = False  # a few rows start anew at every step
    ragged: bool = False  # every row has a length of its own, one of them T
    name: str = ""  # one of NAMED

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def beyond(self) -> bool:
        """Is it outside the grid that means are taken over?"""
        steps = (1, 100, 1000) if self.run == "forward" else (1,) if self.run == "streaming" else (100, 1000)
        other = (
            self.num_layers * self.directions > 1 or self.tokens or self.resets or self.ragged or self.name
        )
        inside = self.steps in steps and 1 <= self.batch <= 128 and 16 <= self.hidden_size <= 1024
        return bool(other) or not inside

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes [G H, I] and [G H, H] of the weights that are multiplied; tokens gather columns."""
        rows, found = GATES[self.cell] * self.hidden_size, []
        for layer in range(self.num_layers):
            inputs = self.input_size if layer == 0 else self.directions * self.hidden_size
            both = (
                [(rows, self.hidden_size)]
                if self.tokens and layer == 0
                else [(rows, inputs), (rows, self.hidden_size)]
            )
            found += both * self.directions
        return found

    @property
    def passes(self) -> int:
        return 2 if self.run == "training" else 1

    @property
    def elements(self) -> tuple[int, int]:
        """Of all matrices that x, or the layer below, is multiplied by, and of all W_hh."""
        recurrent = GATES[self.cell] * self.hidden_size**2 * self.num_layers * self.directions
        return sum(rows * columns for rows, columns in self.matrices) - recurrent, recurrent

    @property
    def recurrent_steps(self) -> int:
        """Steps that have a state to multiply by W_hh: a sequence begins without one."""
        return self.steps - (self.run != "streaming")

    @property
    def flop(self) -> float:
        """Multiplications and additions of the products; backward counts as two forwards."""
        inputs, recurrent = self.elements
        total = 2.0 * (inputs * self.steps + recurrent * self.recurrent_steps)
        return total * self.batch * (3 if self.run == "training" else 1)

    @property
    def reads(self) -> list[tuple[int, int]]:
        """Weights that must be read, (bytes that are read in turn, bytes read in a run), at the least.

        All that are multiplied once in each pass, and at every further step each W_hh.
        """
        inputs, recurrent = (count * self.itemsize for count in self.elements)
        once = inputs + recurrent * min(self.recurrent_steps, 1)
        again = recurrent * max(self.recurrent_steps - 1, 0)
        one = recurrent // (self.num_layers * self.directions)
        return [(once, self.passes * once), (one, self.passes * again)]

    @property
    def output_shape(self) -> tuple[int, int, int]:
        return self.steps, self.batch, self.hidden_size * self.directions

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype]

    def __str__(self) -> str:
        extra = f" L{self.num_layers}" * (self.num_layers > 1) + " bi" * self.bidirectional
        extra += " tokens" * self.tokens + " resets" * self.resets + " ragged" * self.ragged
        extra += f" {self.dtype}" * (self.dtype != "float32") + f" ({self.name})" * bool(self.name)
        size = f"T{self.steps} B{self.batch} I{self.input_size} H{self.hidden_size}"
        return f"{self.cell.upper():4} {self.run:9} {size}{extra}"

    def as_dict(self) -> dict[str, Any]:
        """Without what is as by default."""
        defaults = {key: field.default for key, field in self.__dataclass_fields__.items()}
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}


def level_of(size: int, ceiling: dict[str, Any]) -> str:
    """The smallest cache that is larger than so many bytes, or memory."""
    return next(name for name, rate in ceiling["read"].items() if size < (rate["bytes"] or math.inf))


def bound(workload: Workload, ceiling: dict[str, Any]) -> tuple[float, str]:
    """The least time that a run can take on this machine, in seconds, and what sets it: a simple roofline.

    The larger of two times. Arithmetic: `flop` at the peak rate of multiply-adds. Reading: `reads`, mostly
    W_hh, which every step needs whole, each at the rate of the smallest cache larger than what is read in
    turn (each thread has an L1 and an L2 of its own, so n threads hold n times as much). What is left out
    (activations, x, y, gates that training saves, waiting for other threads) can only add to it. Where they
    are little larger than a cache, part of them may still be there from the step before, and a run may reach
    over 100 %.
    """
    arithmetic = workload.flop / (ceiling["gflops"][workload.dtype] * 1e9)
    rates = [ceiling["read"][level_of(size, ceiling)]["gb_s"] * 1e9 for size, _ in workload.reads]
    reading = sum(read / rate for (_, read), rate in zip(workload.reads, rates, strict=True))
    return (arithmetic, "FMA") if arithmetic >= reading else (reading, level(workload, ceiling))


def level(workload: Workload, ceiling: dict[str, Any]) -> str:
    """From where most of `reads` come."""
    size, _ = max(workload.reads, key=lambda read: read[1])
    return level_of(size, ceiling)


# The size at which one thing after the other is varied, to see how time grows.
BASE = {"steps": 100, "batch": 16, "input_size": 128, "hidden_size": 128}

# Of `estimate`: seconds to make a peer's network and compare its result (three times that for training), the
# rate that peers reach on average where a run is long, and how many runs the three turns of such a row take.
PREPARED, RATE, RUNS = 0.05, 120e9, 6


def estimate(workload: Workload, peers: int, seconds: float, runs: int = RUNS) -> float:
    """About how long it takes to measure so many peers, each row for so many seconds or so many long runs."""
    made = PREPARED * (3 if workload.run == "training" else 1)
    return peers * made + max(seconds, peers * runs * workload.flop / RATE)


def floor() -> list[Workload]:
    """The sizes that a release must not be slow at, T = 100."""
    sizes = [
        ("lstm", "forward", 64, 256),
        ("gru", "forward", 64, 256),
        ("rnn", "forward", 64, 256),
        ("lstm", "forward", 1, 64),
        ("gru", "training", 1, 64),
        ("lstm", "training", 64, 256),
    ]
    return [Workload(cell, run, 100, batch, hidden, hidden) for cell, run, batch, hidden in sizes]


# What people use such layers for: sizes of the kind that the sources have, not their models.
USES = {
    # A GRU that listens all the time, one second of 40 mel bands every 10 ms (the recurrent models of "Hello
    # Edge: Keyword Spotting on Microcontrollers", Zhang et al. 2017, are of this kind).
    "wake-word": [Workload("gru", run, 100, 1, 40, 128) for run in ("forward", "streaming")],
    # Acoustic model: 5 layers of 512, 80 mel bands, 3 s (stacked LSTMs as in "Speech Recognition with Deep
    # Recurrent Neural Networks", Graves et al. 2013).
    "speech": [
        Workload("lstm", run, 300, batch, 80, 512, num_layers=5)
        for run, batch in (("forward", 1), ("forward", 16), ("training", 16), ("streaming", 1))
    ],
    # Next character from tokens: what `python -m fastrnn train` trains, with 96 printable characters.
    "character": [
        Workload("lstm", run, 64, batch, 96, 256, tokens=True)
        for run, batch in (("training", 16), ("forward", 16), ("streaming", 1))
    ],
    # On-policy reinforcement learning: 256 environments, 32 steps each, episodes that end anywhere.
    "rl": [Workload("lstm", run, 32, 256, 64, 128, resets=True) for run in ("forward", "training")],
    # One long multivariate series, as in forecasting and the monitoring of sensors.
    "time-series": [Workload("lstm", run, 1000, 1, 8, 64) for run in ("forward", "training")],
    # A stream of letters: "Finding Structure in Time", Elman 1990, has 5 inputs and 20 hidden units for them.
    "elman": [Workload("rnn", run, 100, 1, 5, 20) for run in ("forward", "training", "streaming")],
}


def grid(
    cells: Iterable[str],
    runs: Iterable[str],
    dtypes: Iterable[str],
    steps: Iterable[int],
    batches: Iterable[int],
    hidden: Iterable[int],
    inputs: Iterable[int | None] = (None,),
    layers: Iterable[int] = (1,),
    directions: Iterable[int] = (1,),
) -> list[Workload]:
    """Every combination, I = H where `inputs` has None: all that is asked of one size before the next."""
    sizes = product(steps, hidden, batches, inputs, layers, directions, cells, runs, dtypes)
    return one_step_streams(
        Workload(cell, run, T, B, inputs or H, H, L, D == 2, dtype)
        for T, H, B, inputs, L, D, cell, run, dtype in sizes
    )


def one_step_streams(workloads: Iterable[Workload]) -> list[Workload]:
    """Streaming with T = 1, whatever was asked, each once, and in one direction."""
    one = (replace(load, steps=1) if load.run == "streaming" else load for load in workloads)
    return list(dict.fromkeys(load for load in one if load.run != "streaming" or not load.bidirectional))


NAMED = {name: one_step_streams(replace(load, name=name) for load in loads) for name, loads in USES.items()}
