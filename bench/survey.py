"""Measures all that docs/performance.md shows, a file for each set of sizes, and draws its figures.

    python bench/survey.py --plan                            the sets, and about how long each takes
    python bench/survey.py --out bench/results/NAME --figures docs/images/cpu
    python bench/survey.py --out bench/results/NAME --only growth memory

A set goes to NAME-<set>.json, row by row. One that is there is not measured again; one that was stopped
(Ctrl-C) goes on with what it lacks, if commit, CPU, peers and versions are the same. Absent peers are named
in the files. Exits with 1, and says where, if fastrnn failed or nobody had the same results.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memory
from peers import ALL, ROUNDED
from plot import draw
from progress import within
from results import commit, read, write
from run import HERE, Result, measure_all
from targets import broken
from worker import Process, cores, machine
from workloads import BASE, GATES, NAMED, Workload, estimate, grid

PEERS = ("fastrnn", "torch", "onnxruntime", "openvino", "jax")
TRAINERS = ("fastrnn", "torch", "jax")
HIDDEN = (16, 24, 64, 100, 128, 256, 300, 512, 1024)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
FIGURES = ("speedup-T100-1t", "roofline", "steps", "growth", "memory")  # what docs/performance.md shows


def key(row: dict[str, Any]) -> tuple[int, Workload]:
    return row["threads"], Workload(**row["workload"])


@dataclass(frozen=True)
class Rows:
    """A set of workloads that run.py measures."""

    what: str
    pairs: list[tuple[int, Workload]]  # with the number of threads
    peers: tuple[str, ...] = PEERS
    seconds: float = 0.5  # of a row, at the least

    def extra(self, before: dict[str, Any]) -> int:
        """How many rows the file has that are not of this set."""
        return len({key(row) for row in before.get("rows", [])} - set(self.pairs))

    def versions(self, allowed: Iterable[str]) -> dict[str, str]:
        """Of the peers that are here now, as the measuring process says."""
        process = Process(str(HERE / "worker.py"), "1", *(name for name in self.peers if name in allowed))
        try:
            return process.read()["versions"]
        finally:
            process.stop()

    def left(self, before: dict[str, Any]) -> list[tuple[int, Workload]]:
        done = set(map(key, before.get("rows", [])))
        return [pair for pair in self.pairs if pair not in done]

    def estimate(self, before: dict[str, Any]) -> float:
        pairs = self.left(before)
        teams = 6.0 * len({threads for threads, _ in pairs})  # libraries loaded, ceilings before and after
        return teams + sum(estimate(load, len(self.peers), self.seconds) for _, load in pairs)

    def measure(self, file: Path, before: dict[str, Any], allowed: Iterable[str], label: str) -> None:
        result = Result(file, len(self.pairs), label)
        if before:
            result.go_on(before)
        names = [name for name in self.peers if name in allowed]
        measure_all(self.left(before), names, self.seconds, math.inf, result)
        result.write()  # with the ceilings measured last


@dataclass(frozen=True)
class Memory:
    """A set of training steps whose memory memory.py measures."""

    what: str
    groups: list[list[memory.Point]]
    turns: int = 1

    def extra(self, before: dict[str, Any]) -> int:
        ours = {memory.size(points[0]) for points in self.groups}
        return len({memory.size(point) for point in before.get("memory", [])} - ours)

    def peers(self, allowed: Iterable[str]) -> list[str]:
        named = dict.fromkeys(point["peer"] for points in self.groups for point in points)
        return [name for name in named if name in allowed]

    def versions(self, allowed: Iterable[str]) -> dict[str, str]:
        return memory.versions(self.peers(allowed))

    def left(self, before: dict[str, Any]) -> list[list[memory.Point]]:
        done = {memory.size(point) for point in before.get("memory", [])}
        return [points for points in self.groups if memory.size(points[0]) not in done]

    def estimate(self, before: dict[str, Any]) -> float:
        return sum(memory.estimated(points, self.turns) for points in self.left(before))

    def measure(self, file: Path, before: dict[str, Any], allowed: Iterable[str], label: str) -> None:
        groups = [[point for point in points if point["peer"] in allowed] for points in self.left(before)]
        groups = [points for points in groups if points]
        rows = before.get("memory", [])
        memory.measure_all(groups, self.turns, file, rows, label, self.peers(allowed))


# Prints the seconds that each takes, the second what it takes beyond the first.
IMPORTS = """
from time import perf_counter
start = perf_counter()
import numpy
middle = perf_counter()
import fastrnn
print(middle - start, perf_counter() - middle)
"""


@dataclass(frozen=True)
class Imports:
    """How long `import fastrnn` takes after `import numpy`, in new processes."""

    what: str
    runs: int = 21

    def extra(self, before: dict[str, Any]) -> int:
        return 0

    def versions(self, allowed: Iterable[str]) -> dict[str, str]:
        return memory.versions(["fastrnn", "numpy"])

    def left(self, before: dict[str, Any]) -> range:
        return range(len(before.get("imports", [])), self.runs)

    def estimate(self, before: dict[str, Any]) -> float:
        return 0.5 * len(self.left(before))

    def measure(self, file: Path, before: dict[str, Any], allowed: Iterable[str], label: str) -> None:
        head = {"commit": label, "versions": self.versions(allowed), "machine": machine()}
        rows = list(before.get("imports", []))
        for _ in within(math.inf, self.left(before)):
            done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
            numpy_s, fastrnn_s = map(float, done.stdout.split())
            rows.append({"numpy_s": round(numpy_s, 5), "fastrnn_s": round(fastrnn_s, 5)})
            write(file, head | {"left_out": self.runs - len(rows)}, "imports", rows)


Set = Rows | Memory | Imports


def on(threads: Iterable[int], *lists: list[Workload]) -> list[tuple[int, Workload]]:
    return list(dict.fromkeys((count, load) for count in threads for loads in lists for load in loads))


def sets() -> dict[str, Set]:
    """What there is to measure here, in the order of the page."""
    most = len(cores())
    both = [count for count in (1, 2) if count <= most]
    doubling = sorted({most, *(2**k for k in range(most.bit_length()))} - {1})
    two, passes = ("lstm", "gru"), ("forward", "training")
    float32, small, middle = ("float32",), (64, 256), (64, 256, 512)

    def sizes(run: str, T: int, hidden: Iterable[int], batches: Iterable[int]) -> list[Workload]:
        return grid(GATES, (run,), float32, (T,), batches, hidden)

    def other_inputs(run: str, batches: Iterable[int]) -> list[Workload]:
        pairs = ((40, 128), (512, 256), (40, 512))
        return [
            load
            for inputs, H in pairs
            for load in grid(GATES, (run,), float32, (100,), batches, (H,), (inputs,))
        ]

    base: dict[str, Any] = {
        "steps": (BASE["steps"],),
        "batches": (BASE["batch"],),
        "hidden": (BASE["hidden_size"],),
    }
    axes: list[dict[str, Any]] = [
        {"steps": (1, 10, 100, 1000, 10_000)},
        {"batches": (1, 4, 64, 256)},
        {"hidden": (16, 64, 256, 512, 1024)},
        {"layers": (2, 4, 8)},
    ]
    varied = [grid(two, passes, float32, **base | axis) for axis in axes]
    return {
        "forward": Rows("T = 100, one thread", on((1,), sizes("forward", 100, HIDDEN, BATCHES))),
        "training": Rows(
            "T = 100, one thread; H = 1024 with B = 1 and 16 alone, B = 128 to H = 256",
            on((1,), sizes("training", 100, HIDDEN[:-1], BATCHES[:-1]))
            + on((1,), sizes("training", 100, HIDDEN[:6], BATCHES[-1:]))
            + on((1,), sizes("training", 100, HIDDEN[-1:], (1, 16))),
            TRAINERS,
        ),
        "forward-threads": Rows(
            "T = 100, all cores", on((most,), sizes("forward", 100, (64, 128, 256, 512), (1, 16, 64)))
        ),
        "training-threads": Rows(
            "T = 100, all cores", on((most,), sizes("training", 100, middle, (1, 16, 64))), TRAINERS
        ),
        "inputs": Rows(
            "I other than H, T = 100",
            on((1,), other_inputs("forward", (1, 16, 64)), other_inputs("training", (1, 16))),
        ),
        "one-step": Rows(
            "whole calls of T = 1", on((1,), sizes("forward", 1, (16, 64, 256, 512, 1024), (1, 16, 128)))
        ),
        "steps": Rows(
            "streams, B = 1", on((1,), grid(GATES, ("streaming",), float32, (1,), (1,), small)), seconds=2
        ),
        "long": Rows(
            "T = 1000; not with much work",
            on((1,), sizes("forward", 1000, small, (1, 16)), sizes("forward", 1000, (512,), (1,)))
            + on((1,), sizes("training", 1000, small, (1,)), sizes("training", 1000, (64,), (16,))),
        ),
        "narrow": Rows(
            "T = 1000, B = 64, H = 128",
            on(both, grid(("lstm",), ("training",), float32, (1000,), (64,), (128,))),
            TRAINERS,
            seconds=5,
        ),
        "layers": Rows(
            "2 layers on one core and two",
            on(both, grid(GATES, passes, float32, (100,), (1, 16), middle, layers=(2,))),
            ("fastrnn",),
        ),
        "directions": Rows(
            "2 directions on one core and two",
            on(both, grid(GATES, passes, float32, (100,), (1, 16), middle, directions=(2,))),
            ("fastrnn",),
        ),
        "float64": Rows(
            "beside PyTorch",
            on((1,), grid(GATES, passes, ("float64",), (100,), (1, 16, 64), small)),
            ("fastrnn", "torch"),
        ),
        "rounded": Rows(
            "weights of fewer bits",
            on((1,), sizes("forward", 100, (256, 512, 1024), (1, 16, 64))),
            ("fastrnn", *ROUNDED),
            seconds=1,
        ),
        "numpy": Rows(
            "a loop in NumPy, where it can be near: one product a step for many rows",
            on((1,), sizes("forward", 100, (256, 512), (16, 64))),
            ("fastrnn", "numpy"),
        ),
        "named": Rows("what people run", on((1,), *NAMED.values()), seconds=1),
        "growth": Rows(
            "LSTM and GRU against T, B, H, layers and threads, through T = 100, B = 16, H = 128",
            on((1,), *varied) + on(doubling, grid(two, passes, float32, **base)),
        ),
        "memory": Memory(
            "of a training step against T",
            memory.grouped(two, (1000, 3000, 10_000, 30_000), 8, 256, 1, (0, 500), ("fastrnn", "torch")),
        ),
        "checkpoint": Memory(
            "T = 100 000: memory, and time in turn",
            memory.grouped(two, (100_000,), 8, 256, both[-1], (0, 500), ("fastrnn",)),
            turns=4,
        ),
        "import": Imports("beyond NumPy's own"),
    }


def before(file: Path, one: Set, label: str, cpu: str, allowed: Iterable[str]) -> dict[str, Any]:
    """What the file has; an error if it cannot stand for the set, or cannot be gone on with."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    same = [("CPU", found["machine"]["cpu"], cpu), ("rows of other sets", one.extra(found), 0)]
    if one.left(found):
        same += [("commit", found["commit"], label), ("peers", found["versions"], one.versions(allowed))]
    for what, there, here in same:
        if there != here:
            raise SystemExit(f"{file}: {what}: {there}, and here {here}: give another --out")
    return found


def main() -> None:
    every = sets()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="how the files' names begin")
    parser.add_argument("--figures", type=Path, help="how those of the figures begin; default: as --out")
    parser.add_argument("--only", nargs="+", choices=every, default=list(every))
    parser.add_argument("--peers", nargs="+", choices=ALL, default=list(ALL), help="no others than these")
    parser.add_argument("--plan", action="store_true", help="say what would be measured, and end")
    args = parser.parse_args()
    if not (args.out or args.plan):
        parser.error("give --out, or --plan")
    chosen = {name: every[name] for name in args.only}
    files = {name: args.out.with_name(f"{args.out.name}-{name}.json") for name in chosen} if args.out else {}
    label, cpu = commit() if args.out else "", machine()["cpu"]
    found = {name: before(file, chosen[name], label, cpu, args.peers) for name, file in files.items()}
    todo = {}
    for name, one in chosen.items():
        there = found.get(name, {})
        count = len(one.left(there))
        if count:
            todo[name] = one.estimate(there) / 60
        counted = f"{count:4} to measure, about {todo[name]:4.1f} min" if count else "is there"
        print(f"{name:17} {counted:33} {one.what}")
    print(f"together about {sum(todo.values()):.0f} min")
    if args.plan:
        return
    try:
        for name in list(todo):
            print(f"{name}; from here on about {sum(todo.values()):.0f} min", flush=True)
            chosen[name].measure(files[name], found[name], args.peers, label)
            del todo[name]
    except KeyboardInterrupt:
        raise SystemExit("stopped; what was measured is kept, and the same command goes on") from None
    (results,) = read(files.values()).values()
    pictures = draw(results, args.figures or args.out, FIGURES)
    print("\n".join(map(str, pictures)) or "nothing drawn: no matplotlib")
    if failures := broken(results):
        raise SystemExit("\n".join(["not measured, or nobody had the same results:", *failures]))


if __name__ == "__main__":
    main()
