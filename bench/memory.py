"""Measures how the memory of a training step grows with T: fastrnn, with checkpoints, and PyTorch.

    python bench/memory.py                                   T = 1000, 3000, 10 000, 30 000
    python bench/memory.py --cells lstm --steps 100000 --batch 8 --checkpoint 0 500 --peers fastrnn

Each figure is of a process of its own, which makes the layer, x and dy, and takes two steps. Its peak is what
the kernel tells (ru_maxrss); kept is what the peak has beyond the process before the steps, and beyond y and
dx: all that forward saves for backward, and scratch. Time is of the second step: the first one is given fresh
memory, which the system clears. A checkpoint of 0 is the plain way; with checkpoints the gradients must have
the same bits.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from progress import within
from results import commit, write
from worker import keep_to, machine

HERE = Path(__file__).parent


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def take_two_steps(point: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the figures of one point."""
    keep_to(point["threads"])  # before any library is loaded
    import fastrnn
    import numpy as np
    from measure import data, layer_of
    from peers import ALL, fastrnn_run
    from workloads import Workload

    load = Workload(point["cell"], "training", point["steps"], point["batch"], *[point["hidden"]] * 2)
    given = data(load)
    if point["peer"] == "fastrnn":
        fastrnn.set_num_threads(point["threads"])
        layer = layer_of(fastrnn, load)
        layer.load_state_dict(given.weights)
        if point["checkpoint"]:
            layer.train(checkpoint=point["checkpoint"])
        run = fastrnn_run(layer, load, given.x, None, np.ones(load.output_shape, np.float32))
    else:
        run = ALL[point["peer"]]().prepare(load, given, point["threads"])
    before = resident_bytes()
    for _ in range(2):
        result = None  # what the step before returned is not kept beside the next
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kept = peak - before - given.x.nbytes - 4 * math.prod(load.output_shape)
    figures = {"peak_mb": round(peak / 1e6), "kept_mb": round(kept / 1e6), "seconds": round(seconds, 4)}
    if point["peer"] == "fastrnn":
        digest = hashlib.sha256(result["dx"])
        for gradient in layer.gradients.values():
            digest.update(gradient)
        figures["bits"] = digest.hexdigest()[:12]
    return figures


def measured(point: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "memory.py"), "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return point | {"failed": lines[-1] if lines else f"ended with status {done.returncode}"}
    return point | json.loads(done.stdout)


def versions(peers: list[str]) -> dict[str, str]:
    found = {}
    for peer in peers:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[peer] = metadata.version(peer)
    return found


def title(point: dict[str, Any]) -> str:
    options = f" checkpoint={point['checkpoint']}" if point["checkpoint"] else ""
    return point["peer"] + options


def table(points: list[dict[str, Any]]) -> str:
    """In Markdown; `x` columns against plain fastrnn of the same size."""
    lines = ["| | T | implementation | peak MB | kept MB | s | x kept | x time | gradients |"]
    lines.append("| --- " * 9 + "|")
    sizes = ("cell", "steps", "batch", "hidden", "threads")
    plain = {tuple(p[k] for k in sizes): p for p in points if title(p) == "fastrnn" and "failed" not in p}
    for point in points:
        layer = f"{point['cell'].upper()} B={point['batch']} H={point['hidden']}"
        head = f"| {layer} | {point['steps']} | {title(point)} |"
        if "failed" in point:
            lines.append(f"{head} {point['failed']} |" + " |" * 5)
            continue
        own = plain.get(tuple(point[k] for k in sizes))
        figures = f" {point['peak_mb']} | {point['kept_mb']} | {point['seconds']:.3g} |"
        against = " | | |"
        if own:
            same = (
                "" if "bits" not in point else "same bits" if point["bits"] == own["bits"] else "OTHER BITS"
            )
            ratios = (point[key] / max(own[key], 1e-3) for key in ("kept_mb", "seconds"))
            against = "".join(f" {ratio:.2f} |" for ratio in ratios) + f" {same} |"
        lines.append(head + figures + against)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=("lstm", "gru", "rnn"), default=["lstm", "gru"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1000, 3000, 10_000, 30_000], help="T")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--checkpoint", nargs="+", type=int, default=[0, 256], help="0: plain")
    parser.add_argument(
        "--peers", nargs="+", choices=("fastrnn", "torch", "jax"), default=["fastrnn", "torch"]
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/memory.json")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # of the process that measures it
    args = parser.parse_args()
    if args.point:
        print(json.dumps(take_two_steps(json.loads(args.point))))
        return
    sizes = {"batch": args.batch, "hidden": args.hidden, "threads": args.threads}
    points = [
        {"peer": peer, "checkpoint": k, "cell": cell, "steps": steps} | sizes
        for cell in args.cells
        for steps in args.steps
        for peer in args.peers
        for k in (args.checkpoint if peer == "fastrnn" else [0])
    ]
    head = {"commit": commit(), "versions": versions(args.peers), "machine": machine()}
    file = args.out or HERE / "results" / "memory.json"
    rows: list[dict[str, Any]] = []
    try:
        for point in within(math.inf, points):
            rows.append(measured(point))
            write(file, head, "memory", rows)
    except KeyboardInterrupt:
        print("stopped; what was measured is kept")
    print(table(rows) + f"\nwritten to {file}")


if __name__ == "__main__":
    main()
