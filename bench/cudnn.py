"""Measures torch's recurrent layers, which on a CUDA device are cuDNN's: the baseline of the GPU kernels.

    python bench/cudnn.py --seconds 240 --out cudnn.json

A grid over cell, pass, number format, H and B, the sizes that matter most first, until the time is used up.
Each point is timed by events around a call, and around the replay of a CUDA graph that holds the call, which
leaves out what the CPU costs. The input product is part of both. Needs torch alone; --device cpu tries the
script out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from progress import within

try:
    import torch
    from torch_calls import LAYERS, Call, captured, layer_call, seconds_on_device, versions
except ImportError:
    sys.exit("bench/cudnn.py needs torch, which is not installed")

PASSES = ("forward", "training")
MODES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_HIDDEN = (512, 1024, 256, 768, 2048)
FIRST_BATCH = (16, 64)
HIDDEN = (*FIRST_HIDDEN, 128, 64, 192)
BATCH = (*FIRST_BATCH, 1, 128, 256)


@dataclass(frozen=True)
class Point:
    cell: str
    run: str  # one of PASSES
    mode: str  # one of MODES
    hidden: int  # the input size too
    batch: int


def points(
    cells: list[str], passes: list[str], modes: list[str], hidden: list[int], batch: list[int]
) -> list[Point]:
    """Every combination, the sizes that matter most first."""
    grid = [
        Point(cell, run, mode, H, B)
        for H in hidden
        for B in batch
        for cell in cells
        for run in passes
        for mode in modes
    ]
    return sorted(
        grid, key=lambda point: (point.hidden not in FIRST_HIDDEN) + (point.batch not in FIRST_BATCH)
    )


def prepare(point: Point, steps: int, device: str) -> Call:
    torch.manual_seed(0)
    dtype = MODES[point.mode]
    layer = LAYERS[point.cell](point.hidden, point.hidden, device=device, dtype=dtype)
    x = torch.randn(steps, point.batch, point.hidden, device=device, dtype=dtype)
    return layer_call(layer, x, training=point.run == "training", tf32=point.mode == "tf32")


def seconds_on_host(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def times(
    call: Callable[[], object], clock: Callable[[Callable[[], object]], float], seconds: float
) -> list[float]:
    """At least 5 times, at most 200."""
    values: list[float] = []
    end = time.perf_counter() + seconds
    while len(values) < 5 or (time.perf_counter() < end and len(values) < 200):
        values.append(clock(call))
    return values


def summary(values: list[float], steps: int) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4)
    median = statistics.median(values)
    return {
        "median_s": median,
        "quartiles_s": (low, high),
        "runs": len(values),
        "us_per_step": median / steps * 1e6,
    }


def measure(point: Point, steps: int, device: str, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {**asdict(point), "steps": steps}
    clock = seconds_on_host if device == "cpu" else seconds_on_device
    try:
        call = prepare(point, steps, device)
        for name, value in call().items():
            if not torch.isfinite(value).all():
                raise FloatingPointError(f"{name} is not finite")
        call()
        row["call"] = summary(times(call, clock, seconds), steps)
    except (RuntimeError, FloatingPointError) as error:  # out of memory is a RuntimeError
        row["error"] = str(error).splitlines()[0]
        return row
    if device == "cpu":
        return row
    try:
        replay = captured(call)
        replay()
        row["graph"] = summary(times(replay, clock, seconds), steps)
    except RuntimeError as error:
        row["graph_error"] = str(error).splitlines()[0]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds per step: by a call / by replay of a graph."""
    batches = sorted({row["batch"] for row in rows})
    lines = [f"{'us per step, call/graph':28}" + "".join(f"{f'B={B}':>16}" for B in batches)]
    cells: dict[tuple[str, str, str, int], dict[int, str]] = {}
    for row in rows:
        values = [row[kind]["us_per_step"] if kind in row else math.nan for kind in ("call", "graph")]
        line = cells.setdefault((row["cell"], row["run"], row["mode"], row["hidden"]), {})
        line[row["batch"]] = "failed" if "error" in row else f"{values[0]:.2f}/{values[1]:.2f}"
    for (cell, run, mode, H), line in sorted(cells.items()):
        head = f"{cell:4} {run:8} {mode:4} H={H}"
        lines.append(f"{head:28}" + "".join(f"{line.get(B, ''):>16}" for B in batches))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240.0, help="time for everything")
    parser.add_argument("--point-seconds", type=float, default=0.06, help="time for the runs of one point")
    parser.add_argument("--cells", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--hidden", nargs="+", type=int, default=list(HIDDEN), help="H (and I)")
    parser.add_argument("--batch", nargs="+", type=int, default=list(BATCH), help="B")
    parser.add_argument("--steps", type=int, default=512, help="T")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device: nothing measured", file=sys.stderr)
        sys.exit(2)
    warnings.simplefilter("ignore")  # of weights in several pieces, of names that torch will change

    todo = points(args.cells, args.passes, args.modes, args.hidden, args.batch)
    rows: list[dict[str, Any]] = []
    try:
        for point in within(args.seconds, todo):
            rows.append(measure(point, args.steps, args.device, args.point_seconds))
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
    if args.out:
        result = {"versions": versions(), "left_out": len(todo) - len(rows), "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))
    print(f"{len(rows)} of {len(todo)} points, {sum('error' in row for row in rows)} failed")
    if all("error" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
