"""Measures fastrnn against its peers: results compared first, runs interleaved, medians and quartiles.

    python bench/run.py            the sizes that a release must not be slow at, on one thread
    python bench/run.py --cells lstm gru --batch 1 16 --hidden 64 256 --steps 100 --threads 1 2
    python bench/run.py --hidden 256 512 1024 --batch 16 64 --steps 512 --threads 8

CPU and GPU peers run side by side where there is a GPU. Prints tables, and writes them with machine, versions
and commit to bench/results/, and a plot beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import peers as peers_module
from peers import Peer, Run, as_array, layer_of
from plot import draw
from progress import within
from workloads import DTYPES, GATES, PASSES, Workload, floor, grid

HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = ("model name", "cpu family", "model")
        found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        model = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "fastrnn": {str(k): str(v) for k, v in fastrnn.info().items()},
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
    with contextlib.suppress(OSError):  # no git
        return (
            subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
        )
    return "unknown"


# How far apart two results may be, as part of the largest value: roundings of a chain of a few thousand
# products (float64, float32), fifty times the rounding of the formats that round more.
LIMITS = {"float64": 4e-12, "float32": 2.4e-3, "tf32": 2.4e-2, "float16": 2.4e-2, "bfloat16": 0.2}


def data(workload: Workload) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same weights and input for every peer; for 16-bit formats, float32 numbers that they round."""
    dtype = workload.dtype if workload.itemsize >= 4 else "float32"
    weights = layer_of(fastrnn, workload, dtype=dtype, seed=0).state_dict()
    shape = (workload.steps, workload.batch, workload.input_size)
    return weights, np.random.default_rng(1).standard_normal(shape).astype(dtype)


def arrays(result: dict[str, Any]) -> dict[str, np.ndarray]:
    return {key: np.array(as_array(value)) for key, value in result.items()}


def check_equal(
    names: tuple[str, str], result: dict[str, np.ndarray], reference: dict[str, np.ndarray], limit: float
) -> None:
    """Raise RuntimeError unless two peers computed the same."""
    for key in result.keys() & reference.keys():
        scale = float(np.abs(reference[key]).max()) or 1.0
        error = float(np.abs(result[key] - reference[key]).max()) / scale
        if not error < limit:
            raise RuntimeError(
                f"{names[0]} and {names[1]} disagree on {key}: {error:.1e} of its size, "
                f"at most {limit:.1e} allowed"
            )


def measure(runs: dict[str, tuple[Peer, Run]], seconds: float) -> dict[str, list[float]]:
    """Times of each, taken in turn: whatever disturbs the machine disturbs all of them."""
    # Short calls are timed several at once, so that the clock's own cost does not count.
    repeat = {name: max(1, int(2e-3 / max(peer.seconds(run, 1), 1e-7))) for name, (peer, run) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, (peer, run) in runs.items():
            times[name].append(peer.seconds(run, repeat[name]))
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
    weights, x = data(workload)
    row: dict[str, Any] = {
        "workload": workload.as_dict(),
        "threads": threads,
        "flop": workload.flop,
        "peers": {},
        "failed": {},
    }
    runs: dict[str, tuple[Peer, Run]] = {}
    reference: tuple[str, dict[str, np.ndarray]] | None = None
    for name, peer in all_peers.items():
        if not peer.runs(workload):
            continue
        try:
            run = peer.prepare(workload, weights, x, threads)
            result = arrays(run())
            if reference is None:
                reference = name, result
            limit = LIMITS["tf32" if "tf32" in name else workload.dtype]
            check_equal((name, reference[0]), result, reference[1], limit)
        except Exception as error:  # out of memory, nothing for a graph, a wrong result: the others go on
            row["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        runs[name] = peer, run
    if not runs:
        return row
    try:
        times = measure(runs, seconds)
    except Exception as error:
        row["failed"]["all"] = f"{type(error).__name__}: {error}".splitlines()[0]
        return row
    for name, values in times.items():
        median = statistics.median(values)
        entry: dict[str, Any] = {
            "median_s": median,
            "quartiles_s": spread(values),
            "best_s": min(values),
            "runs": len(values),
            "sequences_per_s": workload.batch / median,
            "gflops": workload.flop / median / 1e9,
        }
        rival = runs[name][0].rival
        if rival in times:
            ratios = [peer / own for peer, own in zip(values, times[rival], strict=True)]
            entry["rival"] = rival
            entry["ratio"] = statistics.median(ratios)
            entry["ratio_quartiles"] = spread(ratios)
            entry["verdict"] = verdict(*spread(ratios))
        row["peers"][name] = entry
    return row


def compared(rows: list[dict[str, Any]], peak: float | None) -> str:
    """Time and rate of fastrnn, on the CPU and on the GPU, each with its peers' times divided by it."""
    head = f"{'':38}threads  {'':18}{'ms':>10}  GFLOP/s  of peak   time of a peer / this (quartiles)"
    lines = [head]
    for row in rows:
        for own, entry in row["peers"].items():
            if "rival" in entry:
                continue
            share = f"{entry['gflops'] / (peak * row['threads']):.0%}" if peak and own == "fastrnn" else ""
            others = []
            for name, other in row["peers"].items():
                if other.get("rival") == own:
                    low, high = other["ratio_quartiles"]
                    others.append(f"{name} {other['ratio']:.2f} ({low:.2f}-{high:.2f}) {other['verdict']}")
            head = f"{Workload(**row['workload'])!s:38}{row['threads']:>7}  {own:18}"
            speed = f"{entry['median_s'] * 1e3:>10.3f}  {entry['gflops']:>7.1f}  {share:>7}"
            lines.append(f"{head}{speed}   {'   '.join(others)}".rstrip())
        for name, reason in row["failed"].items():
            lines.append(f"{Workload(**row['workload'])!s:38} {name} failed: {reason}")
    return "\n".join(lines)


def throughput(rows: list[dict[str, Any]]) -> str:
    """Sequences per second, a column for each peer."""
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    width = max([12, *(len(name) + 2 for name in names)])
    lines = [f"{'sequences per second':38}threads" + "".join(f"{name:>{width}}" for name in names)]
    for row in rows:
        values = (row["peers"][name]["sequences_per_s"] if name in row["peers"] else None for name in names)
        cells = "".join(f"{'' if value is None else format(value, ',.0f'):>{width}}" for value in values)
        lines.append(f"{Workload(**row['workload'])!s:38}{row['threads']:>7}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--steps", nargs="+", type=int, default=[100], help="T")
    parser.add_argument("--batch", nargs="+", type=int, help="B; without it and --hidden: the floor sizes")
    parser.add_argument("--hidden", nargs="+", type=int, help="H (and I)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="of the CPU peers")
    parser.add_argument("--peers", nargs="+", choices=peers_module.ALL, help="default: all that can run here")
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on each row")
    parser.add_argument("--total", type=float, default=math.inf, help="stop when this time is used up")
    parser.add_argument(
        "--out", type=Path, help="JSON file, the plot beside it; default bench/results/<date>.json"
    )
    args = parser.parse_args()

    if args.batch or args.hidden:
        sizes = (args.steps, args.batch or [1, 64], args.hidden or [64, 256])
        workloads = grid(args.cells, args.passes, args.dtypes, *sizes)
    else:
        workloads = floor()
    found, absent = peers_module.available(args.peers or list(peers_module.ALL))
    for line in absent:
        print(line)
    if not any(isinstance(peer, peers_module.OnDevice) for peer in found.values()):
        print("no peer can use a GPU here: these are the figures of the CPU")
    if not found:
        sys.exit("nothing to measure")
    rows: list[dict[str, Any]] = []
    pairs = [(workload, threads) for threads in args.threads for workload in workloads]
    try:
        for workload, threads in within(args.total, pairs):
            rows.append(run_one(workload, threads, found, args.seconds))
    except KeyboardInterrupt:
        print("stopped; what was measured is kept")
    peak = ceiling()
    print(compared(rows, peak))
    print(throughput(rows))
    if rows:
        out = args.out or HERE / "results" / f"{datetime.date.today().isoformat()}.json"
        out.parent.mkdir(exist_ok=True)
        result = {
            "machine": machine(),
            "peak_gflops_of_a_core": peak,
            "commit": commit(),
            "versions": {name: peer.version for name, peer in found.items()},
            "absent": absent,
            "left_out": len(pairs) - len(rows),
            "rows": rows,
        }
        out.write_text(json.dumps(result, indent=1) + "\n")
        picture = draw(result, out.with_suffix(".png"))
        print(f"written to {out}" + (f" and {picture}" if picture else "; no plot without matplotlib"))
    failed = [f"{name}: {reason}" for row in rows for name, reason in row["failed"].items()]
    if failed or (args.peers and absent):
        sys.exit("not measured: " + "; ".join(failed + absent))


if __name__ == "__main__":
    main()
