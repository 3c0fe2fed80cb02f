"""Files of results: written by run.py and memory.py, read by tables.py, compare.py and plot.py."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workloads import DTYPES, Workload, bound


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


def read(files: Iterable[Path]) -> tuple[list[dict[str, Any]], list[Row]]:
    """The files' contents, and the rows of all."""
    results = [json.loads(file.read_text()) for file in files]
    return results, [row for result in results for row in rows_of(result)]


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
