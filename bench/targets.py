"""What was aimed at, and what was reached: each row of the results held against what was asked of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import memory
from peers import ROUNDED
from results import Ratio, Row, all_rows, geometric_mean, markdown, not_measured, quotient, rows_of
from workloads import GATES, Workload

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


def compared(aim: str, row: Row, found: Ratio, least: float, note: str = "") -> Found:
    return Found(aim, row.threads, str(row.load), found.median, found.high, least, note)


def own_time(aim: str, row: Row, seconds: float, least: float, note: str = "") -> Found:
    """So many seconds / fastrnn's time."""
    high = seconds / row.peers["fastrnn"]["quartiles_s"][0]
    return Found(aim, row.threads, str(row.load), seconds / row.seconds("fastrnn"), high, least, note)


def beside(row: Row, found: Ratio) -> str:
    """Who was the fastest peer, and how close that comes to the bound."""
    return ", ".join(filter(None, [found.peer, row.shared(found.peer)]))


def of_forward(row: Row) -> Iterator[Found]:
    load = row.load
    if best := row.against():
        aim = f"forward, T = {load.steps}{', no state' * (load.steps == 1)}: best peer / fastrnn"
        yield compared(aim, row, best, 1, beside(row, best))
    large = load.batch >= 16 and load.hidden_size >= 128 and load.cell != "rnn"
    if load.steps >= 100 and large and row.ceiling:
        peak = load.flop / (row.ceiling["gflops"][load.dtype] * 1e9)
        aim = "LSTM and GRU forward, T >= 100, B >= 16, H >= 128: part of the FMA peak"
        yield own_time(aim, row, peak, 0.9 if row.threads == 1 else 0.85)
    reached = row.share("fastrnn")
    if load.batch == 1 and load.hidden_size >= 512 and reached:
        seconds = reached[0] * row.seconds("fastrnn")
        yield own_time("forward, B = 1, H >= 512: part of the bound", row, seconds, 0.9, reached[1])


def of_training(row: Row) -> Iterator[Found]:
    load = row.load
    if best := row.against(peers=TRAINERS):
        note, reached = beside(row, best), row.share(best.peer)
        aim = f"training, T = {load.steps}"
        yield compared(f"{aim}: best of PyTorch and JAX / fastrnn", row, best, 1, note)
        if reached and reached[0] < 0.75:
            aim += ", where that peer is under 75 % of the bound: the same"
            yield compared(aim, row, best, 1.2, note)
    narrow = Workload("lstm", "training", 1000, 64, load.input_size, 128)
    if load == narrow and (torch := row.against(peers=["torch"])):
        yield compared("LSTM training, T = 1000, B = 64, H = 128: PyTorch / fastrnn", row, torch, 2)


def of_rounded(row: Row) -> Iterator[Found]:
    load, names = row.load, row.peers.keys()
    alone = load.batch == 1 and load.hidden_size >= 512
    if {"fastrnn", "fastrnn-bfloat16"} <= names and (load.batch >= 16 or alone):
        aim = "bfloat16, B >= 16, or B = 1 and H >= 512: float32 / bfloat16"
        yield compared(aim, row, row.ratio("fastrnn", "fastrnn-bfloat16"), 1.7)
    if {"openvino-bfloat16", "fastrnn-bfloat16"} <= names:
        found = row.ratio("openvino-bfloat16", "fastrnn-bfloat16")
        yield compared("bfloat16: OpenVINO's / fastrnn's", row, found, 1)
    if {"fastrnn-bfloat16", "fastrnn-int8"} <= names and alone:
        aim = "int8, B = 1, H >= 512: bfloat16 / int8"
        yield compared(aim, row, row.ratio("fastrnn-bfloat16", "fastrnn-int8"), 1.3)


def of_row(row: Row) -> Iterator[Found]:
    load = row.load
    if load.name or "fastrnn" not in row.peers:
        return
    if load.dtype == "float64":
        if torch := row.against(peers=["torch"]):
            least = 1.0 if load.cell == "lstm" else 1.5
            aim = f"float64, {'LSTM' if load.cell == 'lstm' else 'GRU and RNN'}: PyTorch / fastrnn"
            yield compared(aim, row, torch, least)
    elif load.dtype != "float32":
        return
    elif row.peers.keys() & ROUNDED.keys():
        yield from of_rounded(row)
    elif load.run == "forward":
        yield from of_forward(row)
    elif load.run == "training":
        yield from of_training(row)
    elif load.batch == 1 and load.hidden_size == 64:
        aim = "streaming step, B = 1, H = 64"
        yield own_time(f"{aim}: 3 us / its time", row, 3e-6, 1)
        if best := row.against():
            yield compared(f"{aim}: best peer / fastrnn", row, best, 2.5, best.peer)


def of_means(rows: list[Row]) -> Iterator[Found]:
    """Over the sizes of the grid that were measured: of one layer and one direction."""
    rows = [row for row in rows if row.load.dtype == "float32" and not row.load.beyond]
    for threads, (aim, run, cells, peer, least) in product(sorted({row.threads for row in rows}), MEANS):
        some = [row for row in rows if (row.threads, row.load.run) == (threads, run)]
        found = [row.against(peers=[peer] * bool(peer)) for row in some if row.load.cell in cells]
        ratios = [one.median for one in found if one]
        if ratios:
            value = geometric_mean(ratios)
            yield Found(aim, threads, f"mean of {len(ratios)} sizes", value, value, least)


def of_threads(rows: list[Row]) -> Iterator[Found]:
    rows = [row for row in rows if "fastrnn" in row.peers and ROUNDED.keys().isdisjoint(row.peers)]
    rows = [row for row in rows if row.load.num_layers * row.load.directions == 2]
    alone = {row.load: row for row in rows if row.threads == 1}
    for row in rows:
        if row.threads == 2 and row.load in alone:
            what = "layers" if row.load.num_layers > 1 else "directions"
            found = quotient("fastrnn", alone[row.load].peers["fastrnn"], row.peers["fastrnn"])
            yield compared(f"2 {what}, {row.load.run}: one core / two", row, found, 1.7)


def size_of(point: dict[str, Any]) -> str:
    size = f"{point['cell'].upper()} T{point['steps']} B{point['batch']} H{point['hidden']}"
    return f"{size} {memory.title(point)}"


def of_memory(points: list[dict[str, Any]]) -> Iterator[Found]:
    references = memory.plain(points)
    for point in points:
        own = references.get(memory.size(point))
        if own is None or "failed" in point or not point["checkpoint"] or point["steps"] < 100_000:
            continue
        what = size_of(point)
        kept = own["kept_mb"] / max(point["kept_mb"], 1)
        yield Found("checkpoint: memory kept without it / with it", point["threads"], what, kept, kept, 8)
        times = [1 / ratio for ratio in memory.ratios(point, own)]
        value = statistics.median(times)
        high = statistics.quantiles(times, n=4)[2] if len(times) > 1 else value
        aim = "checkpoint: time without it / with it"
        yield Found(aim, point["threads"], what, value, high, round(1 / 1.4, 3))
        same = float(point["bits"] == own["bits"])
        aim = "checkpoint: gradients of the same bits (1: yes)"
        yield Found(aim, point["threads"], what, same, same, 1)


def of_import(rows: list[dict[str, float]]) -> Iterator[Found]:
    if len(rows) > 1:
        low, middle, _ = statistics.quantiles((row["fastrnn_s"] for row in rows), n=4)
        numpy = statistics.median(row["numpy_s"] for row in rows)
        what = f"{1e3 * middle:.1f} ms beyond NumPy's {1e3 * numpy:.0f}"
        yield Found("import: 60 ms / its time", 1, what, 0.06 / middle, 0.06 / low, 1)


def broken(results: list[dict[str, Any]]) -> list[str]:
    """The rows, and the steps whose memory was measured, that have no figure of fastrnn to trust, and why."""
    rows = [row for result in results for row in rows_of(result)]
    points = [point for result in results for point in result.get("memory", []) if "failed" in point]
    lost = [f"{row.load}, {row.threads} thread(s): {row.broken}" for row in rows if row.broken]
    own = [point for point in points if point["peer"] == "fastrnn"]
    return lost + [f"memory of {size_of(point)}: {point['failed']}" for point in own]


def judged(results: list[dict[str, Any]]) -> list[Found]:
    rows = all_rows(results)
    found = [one for row in rows for one in of_row(row)]
    found += [*of_means(rows), *of_threads(rows)]
    found += of_memory([point for result in results for point in result.get("memory", [])])
    found += of_import([row for result in results for row in result.get("imports", [])])
    aim = "fastrnn runs, and no row has other results than all peers (1: yes)"
    return found + [Found(aim, 0, what, 0.0, 0.0, 1) for what in broken(results)]


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
    if lacking := not_measured(results):
        text += "\nNot measured:\n\n" + lacking
    return text
