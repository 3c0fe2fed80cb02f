"""Measures fastrnn against its peers: results compared first, runs interleaved, medians and quartiles.

    python bench/run.py            the sizes that a release must not be slow at, on one thread
    python bench/run.py --cells lstm gru --batch 1 16 --hidden 64 256 --steps 100 --threads 1 2

Prints a table and writes it, with machine, versions and commit, to bench/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers as peers_module
from peers import FastRNN, Peer, Result
from tqdm import tqdm
from workloads import GATES, PASSES, Workload, floor, grid

HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = ("model name", "cpu family", "model")
        found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        model = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    fastrnn_info = dict(peers_module.ALL["fastrnn"]().library.info())
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "fastrnn": {str(k): str(v) for k, v in fastrnn_info.items()},
    }


def ceiling() -> float | None:
    """GFLOP/s that one core can do (bench/ceiling.cpp), None without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ceiling"
        command = ["g++", "-O2", "-march=native", str(HERE / "ceiling.cpp"), "-o", str(program)]
        try:
            subprocess.run(command, check=True, capture_output=True)
            return float(subprocess.run([program], check=True, capture_output=True, text=True).stdout)
        except (OSError, subprocess.CalledProcessError):
            return None


def commit() -> str:
    """Commit of the tree that is measured, with a mark if it has been changed."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def data(workload: Workload, library: FastRNN) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same weights and input for every peer."""
    weights = library.layer(workload).state_dict()
    shape = (workload.steps, workload.batch, workload.input_size)
    return weights, np.random.default_rng(1).standard_normal(shape).astype(workload.dtype)


def check_equal(name: str, result: Result, reference: Result) -> None:
    """Exit unless two peers computed the same: rounding of chains of a few thousand products apart."""
    for key in result.keys() & reference.keys():
        scale = float(np.abs(reference[key]).max()) or 1.0
        error = float(np.abs(result[key] - reference[key]).max()) / scale
        limit = 2e4 * float(np.finfo(reference[key].dtype).eps)
        if not error < limit:
            sys.exit(
                f"{name} and fastrnn disagree on {key}: {error:.1e} of its size, at most {limit:.1e} allowed"
            )


def measure(runs: dict[str, Callable[[], Result]], seconds: float) -> dict[str, list[float]]:
    """Times of each, taken in turn: whatever disturbs the machine disturbs all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeat = {}
    for name, run in runs.items():
        start = time.perf_counter()
        run()
        # Short calls are timed several at once, so that the clock's own cost does not count.
        repeat[name] = max(1, int(2e-3 / max(time.perf_counter() - start, 1e-7)))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeat[name]):
                run()
            times[name].append((time.perf_counter() - start) / repeat[name])
    return times


def spread(values: list[float]) -> tuple[float, float]:
    """First and third quartile."""
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def verdict(low: float, high: float) -> str:
    """Of a ratio peer/fastrnn, by its quartiles."""
    if low > 1.02:
        return "FASTER"
    if high < 0.98:
        return "SLOWER"
    return "SAME" if high - low < 0.1 else "UNCLEAR"


def run_one(workload: Workload, threads: int, all_peers: dict[str, Peer], seconds: float) -> dict[str, Any]:
    library = all_peers["fastrnn"]
    assert isinstance(library, FastRNN)
    weights, x = data(workload, library)
    runs = {
        name: peer.prepare(workload, weights, x, threads)
        for name, peer in all_peers.items()
        if peer.runs(workload)
    }
    reference = {key: np.array(value) for key, value in runs["fastrnn"]().items()}
    for name, run in runs.items():
        check_equal(name, run(), reference)
    times = measure(runs, seconds)
    row: dict[str, Any] = {
        "workload": workload.as_dict(),
        "threads": threads,
        "flop": workload.flop,
        "peers": {},
    }
    for name, values in times.items():
        median = statistics.median(values)
        entry: dict[str, Any] = {
            "median_s": median,
            "quartiles_s": spread(values),
            "best_s": min(values),
            "runs": len(values),
            "gflops": workload.flop / median / 1e9,
        }
        if name != "fastrnn":
            ratios = [peer / own for peer, own in zip(values, times["fastrnn"], strict=True)]
            entry["ratio"] = statistics.median(ratios)
            entry["ratio_quartiles"] = spread(ratios)
            entry["verdict"] = verdict(*spread(ratios))
        row["peers"][name] = entry
    return row


def table(rows: list[dict[str, Any]], peak: float | None) -> str:
    lines = [f"{'':38}threads  fastrnn ms  GFLOP/s  of peak   time of a peer / fastrnn (quartiles)"]
    for row in rows:
        own = row["peers"]["fastrnn"]
        share = f"{own['gflops'] / (peak * row['threads']):.0%}" if peak else "?"
        others = []
        for name, entry in row["peers"].items():
            if name != "fastrnn":
                low, high = entry["ratio_quartiles"]
                others.append(f"{name} {entry['ratio']:.2f} ({low:.2f}-{high:.2f}) {entry['verdict']}")
        size = f"{Workload(**row['workload'])!s:38}{row['threads']:>7}"
        speed = f"{own['median_s'] * 1e3:>10.3f}  {own['gflops']:>7.1f}  {share:>7}"
        lines.append(f"{size}  {speed}   {'   '.join(others)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--steps", nargs="+", type=int, default=[100], help="T")
    parser.add_argument("--batch", nargs="+", type=int, help="B; without it and --hidden: the floor sizes")
    parser.add_argument("--hidden", nargs="+", type=int, help="H (and I)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--peers", nargs="+", choices=peers_module.ALL, default=list(peers_module.ALL))
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on each row")
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/<date>.json")
    args = parser.parse_args()

    if args.batch or args.hidden:
        workloads = grid(args.cells, args.passes, args.steps, args.batch or [1, 64], args.hidden or [64, 256])
    else:
        workloads = floor()
    names = ["fastrnn", *(name for name in args.peers if name != "fastrnn")]
    found, absent = peers_module.available(names)
    for line in absent:
        print(line)
    rows: list[dict[str, Any]] = []
    pairs = [(workload, threads) for threads in args.threads for workload in workloads]
    try:
        for workload, threads in tqdm(pairs, unit="row", disable=None):
            rows.append(run_one(workload, threads, found, args.seconds))
    except KeyboardInterrupt:
        print("stopped; what was measured is kept")
    peak = ceiling()
    print(table(rows, peak))
    if rows:
        out = args.out or HERE / "results" / f"{datetime.date.today().isoformat()}.json"
        out.parent.mkdir(exist_ok=True)
        result = {
            "machine": machine(),
            "peak_gflops_of_a_core": peak,
            "commit": commit(),
            "versions": {name: peer.version for name, peer in found.items()},
            "absent": absent,
            "rows": rows,
        }
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {out}")


if __name__ == "__main__":
    main()
