"""Files of results: written by run.py and memory.py, read by tables.py, compare.py and plot.py."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from workloads import DTYPES, Workload, bound

BINS_PER_DECADE = 40  # of the histogram of the times of single steps


@dataclass(frozen=True, eq=False)
class Row:
    """One workload, and what everybody took for it."""

    load: Workload
    threads: int  # of the peers on the CPU
    peers: dict[str, dict[str, Any]]
    failed: dict[str, str]
    unable: dict[str, str]
    ceiling: dict[str, Any] | None

    @property
    def owns(self) -> list[str]:
        """fastrnn on the CPU, on a device, and there in a graph, as far as they were measured."""
        return [name for name in self.peers if name.startswith("fastrnn")]

    def rivals(self, own: str) -> dict[str, dict[str, Any]]:
        return {name: entry for name, entry in self.peers.items() if entry.get("rival") == own}

    def best(self, own: str = "fastrnn") -> str | None:
        """The rival that is fastest, by its ratio to ours."""
        rivals = self.rivals(own)
        return min(rivals, key=lambda name: rivals[name]["ratio"], default=None)

    def seconds(self, peer: str) -> float:
        return self.peers[peer]["median_s"]

    def throughput(self, peer: str) -> float:
        """Sequences per second; of streams, steps."""
        return self.load.batch / self.seconds(peer)

    def gflops(self, peer: str) -> float:
        return self.load.flop / self.seconds(peer) / 1e9

    def share(self, peer: str) -> tuple[float, str] | None:
        """Part of the bound that a peer on the CPU reaches, and what sets it; None without a ceiling."""
        rounded = peer.partition("-")[2]
        load = replace(self.load, dtype=rounded) if rounded in DTYPES else self.load
        unknown = rounded not in ("", load.dtype)  # int8
        if unknown or on_device(peer) or not self.ceiling or load.dtype not in self.ceiling["gflops"]:
            return None
        seconds, by = bound(load, self.ceiling)
        return seconds / self.seconds(peer), by


def on_device(peer: str) -> bool:
    return "cud" in peer


def commit() -> str:
    """Commit of the tree that is measured, with a mark if it has been changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):  # no git
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"


def write(file: Path, head: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> None:
    """A JSON file with a line for each row. It is replaced at once, so that no moment finds half of it."""
    first = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    part = file.with_suffix(".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(f'{{{first}"{name}": [\n{lines}\n]}}\n')
    part.replace(file)


def rows_of(result: dict[str, Any]) -> Iterator[Row]:
    for row in result.get("rows", []):  # a file of memory.py has none
        ceiling = result.get("ceilings", {}).get(str(row["threads"]))
        load = Workload(**row["workload"])
        yield Row(load, row["threads"], row["peers"], row["failed"], row.get("unable", {}), ceiling)


def read(files: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """The files' contents by the CPU they were measured on, since figures of several say nothing together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        result = json.loads(file.read_text())
        found.setdefault(result["machine"]["cpu"].removeprefix("model name "), []).append(result)
    return found


@dataclass(frozen=True)
class Axis:
    """How rows are alike but for one thing, what that is, and the power of it that time should follow."""

    power: int
    value: Callable[[Row], int]
    others: Callable[[Row], Any]
    least: int = 3  # values that make a line


AXES = {
    "T": Axis(1, lambda row: row.load.steps, lambda row: (replace(row.load, steps=0), row.threads)),
    "B": Axis(1, lambda row: row.load.batch, lambda row: (replace(row.load, batch=0), row.threads)),
    "H = I": Axis(
        2,
        lambda row: row.load.hidden_size,
        lambda row: (
            replace(row.load, hidden_size=0, input_size=row.load.input_size - row.load.hidden_size),
            row.threads,
        ),
    ),
    "layers": Axis(
        1, lambda row: row.load.num_layers, lambda row: (replace(row.load, num_layers=0), row.threads)
    ),
    "threads": Axis(-1, lambda row: row.threads, lambda row: row.load, 2),
}
Line = list[Row]


def growth(results: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Line]]:
    """By cell and pass: for each axis, rows that differ in it alone.

    Of the one file that has most such lines: what was measured together. All go through one size, and
    a cell and pass is there if it has a line for every axis that any has.
    """
    found = [lines_through_one_size(rows_of(result)) for result in results]
    return max(found, key=lambda panels: sum(map(len, panels.values())), default={})


def lines_through_one_size(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Line]]:
    groups: dict[tuple[str, Any], dict[int, Row]] = {}
    rows = [row for row in rows if row.load.run != "streaming" and "fastrnn" in row.peers]
    for row, (name, axis) in product(rows, AXES.items()):
        groups.setdefault((name, axis.others(row)), {})[axis.value(row)] = row

    def lines(row: Row) -> dict[str, Line]:
        found = {name: groups[name, axis.others(row)] for name, axis in AXES.items()}
        return {
            name: [line[value] for value in sorted(line)]
            for name, line in found.items()
            if len(line) >= AXES[name].least
        }

    through: dict[Any, dict[tuple[str, str], dict[str, Line]]] = {}
    for row in rows:
        size = replace(row.load, cell="", run=""), row.threads
        through.setdefault(size, {})[row.load.cell, row.load.run] = lines(row)

    def score(panels: dict[tuple[str, str], dict[str, Line]]) -> tuple[int, int]:
        every = [line for found in panels.values() for line in found.values()]
        return len(every), sum(map(len, every))

    best = max(through.values(), key=score, default={})
    names = {name for found in best.values() for name in found}
    return {key: found for key, found in best.items() if names and found.keys() == names}


def exponent(line: Line, name: str, peer: str) -> float:
    """The power of its larger half of values (3 at least) that a peer's time follows, by least squares."""
    points = [(AXES[name].value(row), row.seconds(peer)) for row in line if peer in row.peers]
    points = points[-max(3, math.ceil(len(points) / 2)) :]
    if len(points) < 2:
        return math.nan
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    return statistics.linear_regression(x, y).slope


def verdict(low: float, high: float) -> str:
    """Of a ratio, by its quartiles: how much faster than the other."""
    if low > 1.02:
        return "FASTER"
    if high < 0.98:
        return "SLOWER"
    return "SAME" if high - low < 0.1 else "UNCLEAR"


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def markdown(head: list[str], lines: Iterable[Iterable[Any]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *([str(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
