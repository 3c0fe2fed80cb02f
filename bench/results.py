"""Files of results: written by run.py, memory.py and survey.py, read by tables.py, compare.py and plot.py."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from peers import ROUNDED
from workloads import BASE, DTYPES, Workload, bound

TREE = Path(__file__).resolve().parents[1]
BINS_PER_DECADE = 40  # of the histogram of the times of single steps


@dataclass(frozen=True)
class Ratio:
    """Time of the fastest of some / fastrnn's: the median over turns, and the lowest of each one's quartiles.

    So `high` is under 1 if any of them is faster beyond its spread, and `low` over 1 if none comes near.
    """

    peer: str
    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return verdict(self.low, self.high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True, eq=False)
class Row:
    """One workload, and what everybody took for it."""

    load: Workload
    threads: int  # of the peers on the CPU
    peers: dict[str, dict[str, Any]]
    failed: dict[str, str]
    unable: dict[str, str]
    unsettled: dict[str, int]  # turns that began while other threads were still at work
    ceiling: dict[str, Any] | None

    @property
    def owns(self) -> list[str]:
        """fastrnn on the CPU, on a device, and there in a graph, as far as they were measured."""
        return [name for name in self.peers if name.startswith("fastrnn")]

    def rivals(self, own: str) -> dict[str, dict[str, Any]]:
        return {name: entry for name, entry in self.peers.items() if entry.get("rival") == own}

    def against(self, own: str = "fastrnn", peers: Collection[str] = ()) -> Ratio | None:
        """How the fastest of the rivals, or of those named, compares; None if none was measured."""
        some = {name: entry for name, entry in self.rivals(own).items() if not peers or name in peers}
        if not some:
            return None
        best = min(some, key=lambda name: some[name]["ratio"])
        low, high = (min(side) for side in zip(*(e["ratio_quartiles"] for e in some.values()), strict=True))
        return Ratio(best, some[best]["ratio"], low, high)

    def ratio(self, slow: str, fast: str) -> Ratio:
        """Time of the one / time of the other: turn by turn where the row has that, or of their quartiles."""
        entry, other = self.peers[slow], self.peers[fast]
        if entry.get("rival") == fast:
            return Ratio(slow, entry["ratio"], *entry["ratio_quartiles"])
        if slow in other.get("beside", {}):
            return Ratio(slow, *other["beside"][slow])
        return quotient(slow, entry, other)

    def gpu_gain(self) -> float | None:
        """fastrnn's time on the CPU / on the GPU, called from Python; None unless both were measured."""
        if {"fastrnn", "fastrnn-cuda"} <= self.peers.keys():
            return self.ratio("fastrnn", "fastrnn-cuda").median
        return None

    @property
    def broken(self) -> str:
        """Why fastrnn has no figure to trust: it failed, or differs from all whose results were compared.

        Its result is what the others are held against, and may be the wrong one.
        """
        for name, reason in self.failed.items():
            if name.startswith("fastrnn") or name == "all":
                return f"{name}: {reason}"
        apart = [f"{name}: {reason}" for name, reason in self.failed.items() if "disagree" in reason]
        agree = any("rival" in entry for entry in self.peers.values())
        return "" if agree else "; ".join(apart)

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

    def shared(self, peer: str) -> str:
        reached = self.share(peer)
        return f"{reached[0]:.0%} {reached[1]}" if reached else ""

    def part(self, wanted: Callable[[str], bool]) -> Row:
        """With those peers alone."""
        kept = ({k: v for k, v in found.items() if k == "all" or wanted(k)} for found in self.by_peer)
        peers, failed, unable, unsettled = kept
        return replace(self, peers=peers, failed=failed, unable=unable, unsettled=unsettled)

    @property
    def by_peer(self) -> tuple[dict[str, Any], ...]:
        return self.peers, self.failed, self.unable, self.unsettled


def quotient(slow: str, entry: dict[str, Any], other: dict[str, Any]) -> Ratio:
    """Of two times that were not taken in turn: of medians, and of the quartiles that are furthest apart."""
    (slow_low, slow_high), (low, high) = entry["quartiles_s"], other["quartiles_s"]
    return Ratio(slow, entry["median_s"] / other["median_s"], slow_low / high, slow_high / low)


def on_device(peer: str) -> bool:
    return "cud" in peer or peer.startswith("flashrnn")


def git(*command: str) -> str:
    """What it prints about this tree; nothing where there is no git, or this is no work tree of it."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", "-C", TREE, *command], capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""


def commit() -> str:
    """Commit of the tree that is measured, with a mark if documents or scripts have been changed since.

    SystemExit if what is installed is not the commit's: its sources have changed since, or it is older than
    they are. (Than their files: one that was built and then committed is what the commit has.)
    """
    label = git("describe", "--always", "--dirty", "--abbrev=12")
    if not label:
        return "unknown"
    sources = "csrc", "python", "cmake", "CMakeLists.txt", "pyproject.toml"
    if changed := git("status", "--porcelain", "--", *sources):
        raise SystemExit(f"{changed.split()[1]} is not as in commit {label}: commit it, and build again")
    found = importlib.util.find_spec("fastrnn._core")
    if found and found.origin:
        built = Path(found.origin).stat().st_mtime
        never_built = (
            (".md", ".py", ".pyi") if Path(found.origin).is_relative_to(TREE / "python") else (".md",)
        )
        for name in git("ls-files", "--", *sources).splitlines():
            if not name.endswith(never_built) and (TREE / name).stat().st_mtime > built:
                raise SystemExit(f"{found.origin} is older than {name} of commit {label}: build again")
    return label


def write(file: Path, head: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> None:
    """A JSON file with a line for each row. It is replaced at once, so that no moment finds half of it."""
    first = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    part = file.with_suffix(".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(f'{{{first}"{name}": [\n{lines}\n]}}\n')
    part.replace(file)


def rows_of(result: dict[str, Any]) -> Iterator[Row]:
    """In the file's order. What the file does not have, an older run.py did not write."""
    for row in result.get("rows", []):  # a file of memory.py has none
        ceiling = result.get("ceilings", {}).get(str(row["threads"]))
        by_peer = (row.get(key, {}) for key in ("peers", "failed", "unable", "unsettled"))
        yield Row(Workload(**row["workload"]), row["threads"], *by_peer, ceiling)


def all_rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """Of several files, each workload once: from the first that has most peers.

    A peer that only another file has comes from there, with the ratio that it had to fastrnn in its turns.
    Weights of fewer bits are a row of their own, with the float32 time beside which they were measured.
    """
    found: dict[Any, list[Row]] = {}
    for row in (row for result in results for row in rows_of(result)):
        names = {name for side in row.by_peer for name in side}
        if names.isdisjoint(ROUNDED):
            parts = [(False, row)]
        else:
            own = row.part(lambda name: name == "fastrnn" or name in ROUNDED)
            rest = row.part(lambda name: name not in ROUNDED)
            parts = [(True, own)] * (not ROUNDED.keys().isdisjoint(own.peers))
            parts += [(False, rest)] * (rest.peers.keys() != {"fastrnn"} or not parts)
        for rounded, part in parts:
            found.setdefault((part.load, part.threads, rounded), []).append(part)
    return [together(rows) for rows in found.values()]


def together(rows: list[Row]) -> Row:
    most = max(rows, key=lambda row: len(row.peers))
    if "fastrnn" not in most.peers:
        return most
    others = {name: entry for row in reversed(rows) for name, entry in row.rivals("fastrnn").items()}
    return replace(most, peers=most.peers | {k: v for k, v in others.items() if k not in most.peers})


def lacking(rows: Iterable[Row]) -> list[str]:
    """What a table cannot show: who failed and where, who was left out, whose turns began too early."""
    failed: dict[tuple[str, str], list[str]] = {}
    unable: Counter[tuple[str, str]] = Counter()
    unsettled: Counter[str] = Counter()
    for row in rows:
        for name, reason in row.failed.items():
            failed.setdefault((name, reason), []).append(f"{row.load}, {row.threads} thread(s)")
        unable.update(row.unable.items())
        unsettled.update(row.unsettled)
    return [
        *(f"{name} failed: {reason} ({'; '.join(where)})" for (name, reason), where in failed.items()),
        *(f"{name} is left out of {count} rows: {reason}" for (name, reason), count in unable.items()),
        *(f"{count} turns of {name} began while other threads worked" for name, count in unsettled.items()),
    ]


def not_measured(results: list[dict[str, Any]]) -> str:
    """In Markdown; nothing if all was."""
    left = sum(result.get("left_out", 0) for result in results)
    lines = [f"{left} rows not measured: the run was stopped"] * bool(left)
    lines += lacking(row for result in results for row in rows_of(result))
    for point in (point for result in results for point in result.get("memory", []) if "failed" in point):
        lines.append(f"memory: {point['peer']} failed: {point['failed']} ({point['cell']} T{point['steps']})")
    lines += [line for result in results for line in result.get("absent", [])]
    return "".join(f"- {line}.\n" for line in dict.fromkeys(lines))


def read(files: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """The files' contents by the CPU they were measured on, since figures of several say nothing together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        result = json.loads(file.read_text())
        found.setdefault(result["machine"]["cpu"].removeprefix("model name "), []).append(result)
    return found


@dataclass(frozen=True)
class Axis:
    """What of a workload varies (nothing: the threads), and the power of it that time should follow."""

    power: int
    fields: tuple[str, ...]

    def value(self, row: Row) -> int:
        return getattr(row.load, self.fields[0]) if self.fields else row.threads

    def passes(self, row: Row) -> bool:
        """Is the row one of those that differ from BASE in this alone?"""
        base = Workload(row.load.cell, row.load.run, **BASE)
        values = {name: self.value(row) for name in self.fields}
        return row.load == replace(base, **values) and (row.threads == 1 or not self.fields)


AXES = {
    "T": Axis(1, ("steps",)),
    "B": Axis(1, ("batch",)),
    "H = I": Axis(2, ("hidden_size", "input_size")),
    "layers": Axis(1, ("num_layers",)),
    "threads": Axis(-1, ()),
}
Line = list[Row]


def growth(results: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Line]]:
    """By cell and pass: for each axis, the rows through BASE that differ in it alone.

    Of the one file that has most such lines: what was measured together.
    """
    found = [lines_through_base(rows_of(result)) for result in results]
    return max(found, key=lambda panels: sum(map(len, panels.values())), default={})


def lines_through_base(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Line]]:
    """A cell and pass is there if it has all axes that one has."""
    panels: dict[tuple[str, str], dict[str, Line]] = {}
    for row, (name, axis) in product([row for row in rows if "fastrnn" in row.peers], AXES.items()):
        if row.load.run != "streaming" and axis.passes(row):
            panels.setdefault((row.load.cell, row.load.run), {}).setdefault(name, []).append(row)
    for key, found in panels.items():
        lines = {name: sorted(found[name], key=axis.value) for name, axis in AXES.items() if name in found}
        panels[key] = {
            name: line for name, line in lines.items() if len(line) > (2 if AXES[name].fields else 1)
        }
    most = max(map(tuple, panels.values()), key=len, default=())
    return {key: lines for key, lines in panels.items() if lines and tuple(lines) == most}


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
