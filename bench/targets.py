"""What was aimed at, and what was reached: each row of the results held against what was asked of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import memory
from peers import ROUNDED
from results import Row, geometric_mean, markdown, rows_of
from workloads import GATES

TRAINERS = ("torch", "jax")
# Of geometric means: the pass, the cells, the peer (best where it is empty), and the least.
MEANS = (
    ("forward, mean: best peer / fastrnn", "forward", tuple(GATES), "", 1.5),
    ("forward, mean: PyTorch / fastrnn", "forward", tuple(GATES), "torch", 2.5),
    ("training, mean: PyTorch / fastrnn", "training", tuple(GATES), "torch", 2.5),
    ("training, mean of LSTM: PyTorch / fastrnn", "training", ("lstm",), "torch", 1.4),
    ("training, mean of GRU: PyTorch / fastrnn", "training", ("gru",), "torch", 4.0),
    ("training, mean of RNN: PyTorch / fastrnn", "training", ("rnn",), "torch", 4.0),
)


@dataclass(frozen=True)
class Found:
    """A figure of a row, or of several, how high it is within the spread, and the least it should be."""

    aim: str
    threads: int
    what: str
    value: float
    high: float
    least: float
    note: str = ""  # whom it is compared with


def quotient(row: Row, slow: str, other: Row, fast: str) -> tuple[float, float]:
    """Time of the one / time of the other, of the medians, and of the quartiles that are furthest apart."""
    high = row.peers[slow]["quartiles_s"][1] / other.peers[fast]["quartiles_s"][0]
    return row.seconds(slow) / other.seconds(fast), high


def against(row: Row, peer: str) -> tuple[float, float]:
    return row.peers[peer]["ratio"], row.peers[peer]["ratio_quartiles"][1]


def own_time(row: Row, seconds: float) -> tuple[float, float]:
    """So many seconds / fastrnn's time."""
    return seconds / row.seconds("fastrnn"), seconds / row.peers["fastrnn"]["quartiles_s"][0]


def share(row: Row, peer: str) -> str:
    reached = row.share(peer)
    return f", {reached[0]:.0%} {reached[1]}" if reached else ""


def of_forward(row: Row, best: str | None) -> Iterator[Found]:
    load, threads, what = row.load, row.threads, str(row.load)
    if best:
        aim = f"forward, T = {load.steps}: best peer / fastrnn"
        yield Found(aim, threads, what, *against(row, best), 1, best + share(row, best))
    large = load.batch >= 16 and load.hidden_size >= 128 and load.cell != "rnn"
    if load.steps >= 100 and large and row.ceiling:
        peak = load.flop / (row.ceiling["gflops"][load.dtype] * 1e9)
        aim = "LSTM and GRU forward, T >= 100, B >= 16, H >= 128: part of the FMA peak"
        yield Found(aim, threads, what, *own_time(row, peak), 0.9 if threads == 1 else 0.85)
    reached = row.share("fastrnn")
    if load.steps >= 100 and load.batch == 1 and load.hidden_size >= 512 and reached:
        seconds = reached[0] * row.seconds("fastrnn")
        aim = "forward, B = 1, H >= 512: part of the bound"
        yield Found(aim, threads, what, *own_time(row, seconds), 0.9, reached[1])


def of_training(row: Row) -> Iterator[Found]:
    load, threads, what = row.load, row.threads, str(row.load)
    trainers = [name for name in TRAINERS if name in row.rivals("fastrnn")]
    if trainers:
        best = min(trainers, key=lambda name: row.peers[name]["ratio"])
        figures, note, reached = against(row, best), best + share(row, best), row.share(best)
        yield Found("training: best of PyTorch and JAX / fastrnn", threads, what, *figures, 1, note)
        if reached and reached[0] < 0.75:
            aim = "training, where that peer is under 75 % of the bound: the same"
            yield Found(aim, threads, what, *figures, 1.2, note)
    if "torch" in trainers and load == replace(load, cell="lstm", steps=1000, batch=64, hidden_size=128):
        aim = "LSTM training, T = 1000, B = 64, H = 128: PyTorch / fastrnn"
        yield Found(aim, threads, what, *against(row, "torch"), 2)


def of_rounded(row: Row) -> Iterator[Found]:
    load, names = row.load, row.peers.keys()
    alone = load.batch == 1 and load.hidden_size >= 512

    def found(aim: str, values: tuple[float, float], least: float) -> Found:
        return Found(aim, row.threads, str(load), *values, least)

    if {"fastrnn", "fastrnn-bfloat16"} <= names and (load.batch >= 16 or alone):
        aim = "bfloat16, B >= 16, or B = 1 and H >= 512: float32 / bfloat16"
        yield found(aim, quotient(row, "fastrnn", row, "fastrnn-bfloat16"), 1.7)
    if {"openvino-bfloat16", "fastrnn-bfloat16"} <= names:
        yield found("bfloat16: OpenVINO's / fastrnn's", against(row, "openvino-bfloat16"), 1)
    if {"fastrnn-bfloat16", "fastrnn-int8"} <= names and alone:
        aim = "int8, B = 1, H >= 512: bfloat16 / int8"
        yield found(aim, quotient(row, "fastrnn-bfloat16", row, "fastrnn-int8"), 1.3)


def of_row(row: Row) -> Iterator[Found]:
    load, best = row.load, row.best()
    if load.name or "fastrnn" not in row.peers:
        return
    if load.dtype == "float64" and "torch" in row.rivals("fastrnn"):
        least = 1.0 if load.cell == "lstm" else 1.5
        aim = f"float64, {'LSTM' if load.cell == 'lstm' else 'GRU and RNN'}: PyTorch / fastrnn"
        yield Found(aim, row.threads, str(load), *against(row, "torch"), least)
    elif load.dtype != "float32":
        return
    elif row.peers.keys() & ROUNDED.keys():
        yield from of_rounded(row)
    elif load.run == "forward":
        yield from of_forward(row, best)
    elif load.run == "training":
        yield from of_training(row)
    elif load.batch == 1 and load.hidden_size == 64:
        aim = "streaming step, B = 1, H = 64"
        yield Found(f"{aim}: 3 us / its time", row.threads, str(load), *own_time(row, 3e-6), 1)
        if best:
            yield Found(f"{aim}: best peer / fastrnn", row.threads, str(load), *against(row, best), 2.5, best)


def of_means(rows: list[Row]) -> Iterator[Found]:
    """Over sizes of one layer and one direction."""
    plain = (row for row in rows if row.load.num_layers * row.load.directions == 1 and not row.load.name)
    rows = [row for row in plain if row.load.dtype == "float32" and row.best()]
    for threads, (aim, run, cells, peer, least) in product(sorted({row.threads for row in rows}), MEANS):
        ratios = [
            row.peers[name]["ratio"]
            for row in rows
            if (row.threads, row.load.run) == (threads, run) and row.load.cell in cells
            if (name := peer or row.best()) in row.rivals("fastrnn")
        ]
        if ratios:
            value = geometric_mean(ratios)
            yield Found(aim, threads, f"mean of {len(ratios)} sizes", value, value, least)


def of_threads(rows: list[Row]) -> Iterator[Found]:
    rows = [row for row in rows if "fastrnn" in row.peers and row.load.num_layers * row.load.directions == 2]
    alone = {row.load: row for row in rows if row.threads == 1}
    for row in rows:
        if row.threads == 2 and row.load in alone:
            what = "layers" if row.load.num_layers > 1 else "directions"
            figures = quotient(alone[row.load], "fastrnn", row, "fastrnn")
            yield Found(f"2 {what}, {row.load.run}: one core / two", 2, str(row.load), *figures, 1.7)


def of_memory(points: list[dict[str, Any]]) -> Iterator[Found]:
    references = memory.plain(points)
    for point in points:
        own = references.get(memory.size(point))
        if own is None or "failed" in point or not point["checkpoint"] or point["steps"] < 100_000:
            continue
        what = f"{point['cell'].upper()} T{point['steps']} B{point['batch']} H{point['hidden']}"
        what += f" {memory.title(point)}"
        kept = own["kept_mb"] / max(point["kept_mb"], 1)
        yield Found("checkpoint: memory kept without it / with it", point["threads"], what, kept, kept, 8)
        times = [1 / ratio for ratio in memory.ratios(point, own)]
        value = statistics.median(times)
        high = statistics.quantiles(times, n=4)[2] if len(times) > 1 else value
        bits = "same bits" if point["bits"] == own["bits"] else "OTHER BITS"
        aim = "checkpoint: time without it / with it"
        yield Found(aim, point["threads"], what, value, high, round(1 / 1.4, 3), bits)


def judged(results: list[dict[str, Any]]) -> list[Found]:
    """A row that several files have counts once: the first with the most peers."""
    every: dict[Any, Row] = {}
    for row in (row for result in results for row in rows_of(result)):
        rounded = any(peer in ROUNDED for peer in row.peers)
        before = every.setdefault((row.load, row.threads, rounded), row)
        if len(row.peers) > len(before.peers):
            every[row.load, row.threads, rounded] = row
    rows = list(every.values())
    found = [one for row in rows for one in of_row(row)]
    found += [*of_means(rows), *of_threads(rows)]
    return found + list(of_memory([point for result in results for point in result.get("memory", [])]))


def table(results: list[dict[str, Any]]) -> str:
    """In Markdown: each aim with how many rows reach it, and every row that does not."""
    groups: dict[tuple[str, int, float], list[Found]] = {}
    for one in judged(results):
        groups.setdefault((one.aim, one.threads, one.least), []).append(one)
    head = ["aim", "threads", "at least", "sizes", "reached", "within the spread", "least", "median", "most"]
    lines, missed = [], []
    for (aim, threads, least), some in sorted(groups.items()):
        values = [one.value for one in some]
        counts = sum(one.value >= least for one in some), sum(one.high >= least for one in some)
        figures = (min(values), statistics.median(values), max(values))
        lines.append([aim, threads, f"{least:g}", len(some), *counts, *(f"{value:.3g}" for value in figures)])
        short = sorted((one for one in some if one.value < least), key=lambda one: one.value)
        for one in short:
            reached = f"{one.value:.3g} (to {one.high:.3g})"
            missed.append([one.what, threads, reached, f"{least:g}", one.note, aim])
    text = markdown(head, lines) if lines else "nothing that an aim speaks of\n"
    if missed:
        text += "\nMissed:\n\n" + markdown(["", "threads", "reached", "at least", "beside", "aim"], missed)
    return text
