"""Measures how the memory of a training step grows with T: fastrnn, with checkpoints, and PyTorch.

    python bench/memory.py                                   T = 1000, 3000, 10 000, 30 000
    python bench/memory.py --cells lstm --steps 100000 --checkpoint 0 500 --peers fastrnn --turns 5

Each figure is of a process of its own, which makes the layer, x and dy, and takes a step; then those of one
size take `--turns` more, in turn. Its peak is what the kernel tells (ru_maxrss); kept is what the peak has
beyond the process before the steps, and beyond y and dx: all that forward saves for backward, and scratch.
The first step is given fresh memory, which the system clears; time is the median of the others. A checkpoint
of 0 is the plain way; with checkpoints the gradients must have the same bits.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from progress import within
from results import commit, markdown, write
from worker import Process, answering, keep_to, machine, thread_count
from workloads import Workload, estimate

HERE = Path(__file__).parent
SIZES = ("cell", "steps", "batch", "hidden", "threads")
Point = dict[str, Any]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def load_of(point: Point) -> Workload:
    hidden = point["hidden"]
    return Workload(point["cell"], "training", point["steps"], point["batch"], hidden, hidden)


def take_steps(point: Point) -> None:
    """In a process of its own: a step for each line on standard input, answered with its figures."""
    answer = answering()
    keep_to(point["threads"])  # before any library is loaded
    import fastrnn
    import numpy as np
    from measure import data, layer_of, one_line
    from peers import ALL, fastrnn_run

    try:
        load = load_of(point)
        given = data(load)
        if point["peer"] == "fastrnn":
            fastrnn.set_num_threads(point["threads"])
            layer = layer_of(fastrnn, load)
            layer.load_state_dict(given.weights)
            if point["checkpoint"]:
                layer.train(checkpoint=point["checkpoint"])
            run = fastrnn_run(layer, load, given.x, np.ones(load.output_shape, np.float32))
        else:
            run = ALL[point["peer"]]().prepare(load, given, point["threads"])
        before = resident_bytes()
        for count, _ in enumerate(sys.stdin):
            result = None  # what the step before returned is not kept beside the next
            start = time.perf_counter()
            result = run()
            figures: Point = {"seconds": round(time.perf_counter() - start, 4)}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            kept = peak - before - given.x.nbytes - 4 * math.prod(load.output_shape)
            figures |= {"peak_mb": round(peak / 1e6), "kept_mb": round(kept / 1e6)}
            if point["peer"] == "fastrnn" and not count:
                digest = hashlib.sha256(result["dx"])
                for gradient in layer.gradients.values():
                    digest.update(gradient)
                figures["bits"] = digest.hexdigest()[:12]
            answer(figures)
    except Exception as error:  # out of memory, most of all
        answer({"failed": one_line(error)})


def measured(points: list[Point], turns: int) -> list[Point]:
    """The figures of points of one size: a first step of each, then the others in turn."""
    rows = [dict(point) for point in points]
    processes: list[Process] = []
    times: list[list[float]] = [[] for _ in rows]
    try:
        for turn in range(turns + 1):
            for k, row in enumerate(rows):
                if not turn:
                    processes.append(Process(str(HERE / "memory.py"), "--point", json.dumps(points[k])))
                if "failed" in row:
                    continue
                try:
                    row |= processes[k].ask("")
                except ChildProcessError as error:
                    row["failed"] = str(error)
                if "failed" not in row:
                    times[k].append(row["seconds"])
    finally:
        for process in processes:
            process.stop()
    for row, own in zip(rows, times, strict=True):
        if "failed" not in row:
            row |= {"first_s": own[0], "seconds": round(statistics.median(own[1:]), 4), "turns_s": own[1:]}
    return rows


def versions(peers: list[str]) -> dict[str, str]:
    found = {"fastrnn": machine()["fastrnn"]["version"]}  # installed or on the path
    for peer in (peer for peer in peers if peer != "fastrnn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[peer] = metadata.version(peer)
    return found


def title(point: Point) -> str:
    options = f" checkpoint={point['checkpoint']}" if point["checkpoint"] else ""
    return point["peer"] + options


def size(point: Point) -> tuple[Any, ...]:
    return tuple(point[key] for key in SIZES)


def plain(points: list[Point]) -> dict[tuple[Any, ...], Point]:
    """What the others are compared with: fastrnn without checkpoints, by size."""
    return {size(point): point for point in points if title(point) == "fastrnn" and "failed" not in point}


def ratios(point: Point, own: Point) -> list[float]:
    """Of times, turn by turn."""
    return [a / b for a, b in zip(point["turns_s"], own["turns_s"], strict=True)]


def table(points: list[Point]) -> str:
    """In Markdown; `x` columns against plain fastrnn of the same size, with quartiles from 4 turns on."""
    head = ["", "T", "threads", "implementation", "peak MB", "kept MB", "first s", "s", "x kept", "x time"]
    lines = []
    references = plain(points)
    for point in points:
        layer = f"{point['cell'].upper()} B={point['batch']} H={point['hidden']}"
        line = [layer, point["steps"], point["threads"], title(point)]
        if "failed" in point:
            lines.append([*line, point["failed"], *[""] * 6])
            continue
        line += [point["peak_mb"], point["kept_mb"], f"{point['first_s']:.3g}", f"{point['seconds']:.3g}"]
        own = references.get(size(point))
        if own is None:
            lines.append([*line, "", "", ""])
            continue
        times = ratios(point, own)
        time_ratio = f"{statistics.median(times):.2f}"
        if len(times) > 3 and point is not own:
            low, _, high = statistics.quantiles(times, n=4)
            time_ratio += f" ({low:.2f}-{high:.2f})"
        bits = "" if "bits" not in point else "same bits" if point["bits"] == own["bits"] else "OTHER BITS"
        kept = point["kept_mb"] / max(own["kept_mb"], 1e-3)
        lines.append([*line, f"{kept:.2g}" if kept < 0.1 else f"{kept:.2f}", time_ratio, bits])
    return markdown([*head, "gradients"], lines)


def measure_all(
    groups: list[list[Point]], turns: int, file: Path, rows: list[Point], label: str, peers: list[str]
) -> None:
    """Those of each size, added to the rows that there are."""
    planned = len(rows) + sum(map(len, groups))
    head = {"commit": label, "versions": versions(peers), "machine": machine()}
    cost = partial(estimated, turns=turns)
    for points in within(math.inf, groups, cost):
        rows += measured(points, turns)
        write(file, head | {"left_out": planned - len(rows)}, "memory", rows)


def estimated(points: list[Point], turns: int) -> float:
    """About how many seconds `measured` takes."""
    return estimate(load_of(points[0]), len(points), 0.0, turns + 1)


def grouped(
    cells: Sequence[str],
    steps: Sequence[int],
    batch: int,
    hidden: int,
    threads: int,
    checkpoints: Sequence[int],
    peers: Sequence[str],
) -> list[list[Point]]:
    """The points, those of one size together."""
    ways = [(peer, k) for peer in peers for k in (checkpoints if peer == "fastrnn" else [0])]
    sizes = [
        dict(zip(SIZES, (cell, T, batch, hidden, threads), strict=True)) for cell in cells for T in steps
    ]
    return [[{"peer": peer, "checkpoint": k} | one for peer, k in ways] for one in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=("lstm", "gru", "rnn"), default=["lstm", "gru"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1000, 3000, 10_000, 30_000], help="T")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--checkpoint", nargs="+", type=int, default=[0, 500], help="0: plain")
    parser.add_argument(
        "--peers", nargs="+", choices=("fastrnn", "torch", "jax"), default=["fastrnn", "torch"]
    )
    parser.add_argument("--threads", type=thread_count, default=1)
    parser.add_argument("--turns", type=int, default=1, help="steps after the first, of all in turn")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/memory.json")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # of the process that measures it
    args = parser.parse_args()
    if args.point:
        take_steps(json.loads(args.point))
        return
    if args.turns < 1:
        parser.error(f"argument --turns: {args.turns}, but a time is that of a step after the first")
    sizes = (args.cells, args.steps, args.batch, args.hidden, args.threads)
    file = args.out or HERE / "results" / "memory.json"
    rows: list[Point] = []
    label = commit()
    try:
        groups = grouped(*sizes, args.checkpoint, args.peers)
        measure_all(groups, args.turns, file, rows, label, args.peers)
    except KeyboardInterrupt:
        print("stopped; what was measured is kept")
    print(table(rows) + f"\nwritten to {file}")


if __name__ == "__main__":
    main()
