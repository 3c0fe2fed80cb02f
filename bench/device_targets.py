"""What was aimed at on a GPU: measures each case, and says which were reached.

    python bench/device_targets.py --seconds 300 --out bench/results/NAME-device.json     on a GPU
    python bench/device_targets.py --show bench/results/*-device.json                     the table alone

T = 512, I = H, the product with x on both sides, both replayed from graphs, in turn; results compared first.
A case is reached if its worst size is. The streaming step is device time: a graph of many steps, replayed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from measure import LIMITS, TURN, arrays, check_equal, data, one_line, rounded, spread
from on_gpu import arguments, replayed
from peers import FastRNNCuda
from results import Row, commit, markdown, not_measured, rows_of
from run import Result, measure_all
from workloads import Workload, grid

OWN, CUDNN, FLASHRNN = "fastrnn-cuda-graph", "cudnn-graph", "flashrnn-graph"
TWO, BOTH = ("lstm", "gru"), ("forward", "training")
STEPS = 512


@dataclass(frozen=True)
class Aim:
    """`rival`'s time / `own`'s is to be `least`, in each of the sizes."""

    case: str
    least: float
    loads: tuple[Workload, ...]
    rival: str = CUDNN
    own: str = OWN


def sized(
    cells: Iterable[str], runs: Iterable[str], dtype: str, hidden: Iterable[int], batches: Iterable[int]
) -> tuple[Workload, ...]:
    return tuple(grid(cells, runs, (dtype,), (STEPS,), batches, hidden))


def ragged(loads: Iterable[Workload]) -> tuple[Workload, ...]:
    return tuple(replace(load, num_layers=2, bidirectional=True, ragged=True) for load in loads)


SMALL, FP32 = (256, 512), sized(TWO, BOTH, "float32", (256, 512), (16, 64))
NARROW = sized(TWO, BOTH, "float32", (128,), (16, 128))
AIMS = (
    Aim(
        "bf16 LSTM and GRU forward, H = 256, 512, B <= 64",
        3,
        sized(TWO, BOTH[:1], "bfloat16", SMALL, (1, 16, 64)),
    ),
    Aim("bf16 forward, H = 768", 1.8, sized(TWO, BOTH[:1], "bfloat16", (768,), (1, 16, 64))),
    Aim("bf16 training step, H <= 512", 2, sized(TWO, BOTH[1:], "bfloat16", SMALL, (16, 64))),
    Aim("bf16 training step, H = 768", 1.3, sized(TWO, BOTH[1:], "bfloat16", (768,), (16, 64))),
    Aim("fp32, H <= 512, beside cuDNN without TF32", 2, FP32),
    Aim("fp32, H <= 512, beside cuDNN with TF32", 1.2, FP32, "cudnn-tf32-graph"),
    Aim("bf16, H = 128, B <= 128", 2, sized(TWO, BOTH, "bfloat16", (128,), (16, 128))),
    Aim("fp32, H = 128, B <= 128, in one CTA", 1.3, NARROW, own="fastrnn-cuda-cta-graph"),
    Aim("fp32, H = 128, B <= 128, in a cluster", 2, NARROW, own="fastrnn-cuda-cluster-graph"),
    Aim(
        "bf16, both directions, 2 layers, lengths, H <= 512",
        2.5,
        ragged(sized(TWO, BOTH, "bfloat16", SMALL, (16, 64))),
    ),
    Aim("fp16 LSTM, H = 768", 1, sized(TWO[:1], BOTH, "float16", (768,), (16, 64))),
    Aim(
        "bf16 LSTM beside FlashRNN's fused kernels, one head, H = 128 to 768, B = 1, 16, 64",
        1.3,
        sized(TWO[:1], BOTH, "bfloat16", (128, 256, 512, 768), (1, 16, 64)),
        FLASHRNN,
    ),
)
STREAM = Workload("lstm", "streaming", 1, 1, 512, 512)
STREAM_CASE, STREAM_SECONDS = "one streaming step, LSTM, B = 1, H = 512, float32", 6e-6


def groups() -> dict[tuple[str, ...], list[Workload]]:
    """What to measure, by the peers that take part; FlashRNN, which compiles for each size, is last."""
    peers: dict[tuple[bool, Workload], dict[str, None]] = {}
    for aim in AIMS:
        for load in aim.loads:
            names = peers.setdefault((aim.rival == FLASHRNN, load), {OWN: None})
            names |= {aim.own: None, aim.rival: None}
    found: dict[tuple[str, ...], list[Workload]] = {}
    for (_, load), names in sorted(peers.items(), key=lambda one: one[0][0]):
        found.setdefault(tuple(names), []).append(load)
    return found


def stream_step(peer: FastRNNCuda) -> dict[str, Any]:
    """Device time of STREAM, from replays of a graph of many steps; its last output as of one sequence."""
    given = data(replace(STREAM, run="forward", steps=STEPS))
    layer, x = peer.layer(STREAM, given)
    sequence, _ = layer.eval()(x)
    stream = layer.stream(batch=STREAM.batch)

    def steps() -> Any:
        for t in range(STEPS):
            y = stream.step(x[t])
        return y

    replay = peer.calls.captured(steps)
    stream.reset()  # of the steps before the capture
    result, expected = arrays(replay()), arrays(sequence[-1])
    check_equal(("the stream", "a sequence"), result, expected, LIMITS[STREAM.dtype])
    repeat = max(1, math.ceil(TURN / peer.seconds(replay, 1)))
    times = [peer.seconds(replay, repeat) / STEPS for _ in range(20)]
    quartiles = [rounded(value) for value in spread(times)]
    return {"median_s": rounded(statistics.median(times)), "quartiles_s": quartiles, "turns": len(times)}


def judged(aim: Aim, rows: list[Row], missing: str) -> list[str]:
    """Cells of the table: the median ratios of the sizes, and the verdict; `missing` if there is none."""
    pairs = [
        (row.load, row.ratio(aim.rival, aim.own)) for row in rows if {aim.rival, aim.own} <= row.peers.keys()
    ]
    if not pairs:
        return ["", "", missing]
    load, worst = min(pairs, key=lambda pair: pair[1].median)
    medians = [ratio.median for _, ratio in pairs]
    verdict = "pass" if worst.median >= aim.least else "miss"
    if len(pairs) < len(aim.loads):
        verdict += f", {len(aim.loads) - len(pairs)} of {len(aim.loads)} sizes not run"
    reached = f"{min(medians):.2f} - {max(medians):.2f}, median {statistics.median(medians):.2f}"
    return [reached, f"{load}: {worst}", verdict]


def table(results: list[dict[str, Any]]) -> str:
    """In Markdown: each case with its target, and what was reached."""
    rows = [row for result in results for row in rows_of(result)]
    missing = "not run" if results else "open: no GPU was at hand"
    lines = []
    for aim in AIMS:
        mine = [row for row in rows if row.load in aim.loads]
        lines.append([aim.case, aim.rival, f">= {aim.least:g} x", *judged(aim, mine, missing)])
    found = [result["stream"] for result in results if "stream" in result]
    cells = ["", "", missing]
    if times := [one for one in found if "median_s" in one]:
        best = min(times, key=lambda one: one["median_s"])
        low, high = (1e6 * value for value in best["quartiles_s"])
        verdict = "pass" if best["median_s"] <= STREAM_SECONDS else "miss"
        cells = [f"{1e6 * best['median_s']:.2f} us ({low:.2f}-{high:.2f})", "", verdict]
    elif found:
        cells[2] += f": {found[0]['failed']}"
    lines.append([STREAM_CASE, "", f"<= {1e6 * STREAM_SECONDS:g} us", *cells])
    return markdown(["case", "beside", "target", "reached", "worst size (quartiles)", ""], lines)


def main() -> None:
    args = arguments(__doc__, "show", "the table of such files; none: of what is open")
    if args.show is not None:
        print(table([json.loads(file.read_text()) for file in args.show]), end="")
        return
    peer = replayed()
    try:
        stream = stream_step(peer)
    except RuntimeError as error:
        stream = {"failed": one_line(error)}
    parts = groups()
    result = Result(args.out, sum(map(len, parts.values())), commit())
    result.head["stream"] = stream
    end = time.perf_counter() + args.seconds
    for names, loads in parts.items():
        if FLASHRNN in names and importlib.util.find_spec("flashrnn") is None:
            result.head["absent"].append(f"{FLASHRNN}: absent (no module named flashrnn)")
            continue
        pairs = [(1, load) for load in loads]
        try:
            measure_all(pairs, list(names), args.row_seconds, end - time.perf_counter(), result)
        except KeyboardInterrupt:
            print("stopped; what was measured is kept", file=sys.stderr)
            break
    result.write()
    found = result.head | {"rows": result.rows}
    text = table([found])
    print(text, not_measured([found]), sep="\n")
    print(f"{len(result.rows)} of {result.planned} rows; {text.count('| pass |')} cases reached")
    if not result.rows:
        sys.exit(1)


if __name__ == "__main__":
    main()
