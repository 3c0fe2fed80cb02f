"""Times every launch of the persistent kernels that is possible, beside a kernel for every step.

    python bench/tune.py --seconds 170 --out bench/results/NAME-tune.json     on a GPU
    python bench/tune.py --table bench/results/*-tune.json                    writes csrc/cuda/tuned.h

The sizes that are wanted most first, until the time is used up: T = 512, and I = 16, so that next to nothing
but the steps is timed. Results are compared with those of a kernel for every step, then replays of graphs are
timed in turn. A training row is the whole training step, whose backward insists on the launch. `bound` is the
model's estimate of a step / the time measured. The table has the fastest launch of each size.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from typing import Any

from measure import LIMITS, arrays, check_equal, data, measure, one_line, rounded, spread
from on_gpu import arguments, replayed
from peers import FastRNNCuda, Peer, Run, insist, wished
from progress import within
from results import TREE, commit, markdown, write
from workloads import Workload, grid

TABLE = TREE / "csrc/cuda/tuned.h"
STEPS, INPUTS = 512, (16,)
SIZES: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    # cells, types, H, B
    (("lstm", "gru"), ("bfloat16",), (512, 256, 768), (64, 16)),
    (("lstm", "gru"), ("float32",), (512, 256, 128), (64, 16)),
    (("lstm", "gru"), ("bfloat16",), (128,), (64, 16)),
    (("lstm", "gru"), ("bfloat16",), (512, 256, 768, 128), (1, 4, 32, 128)),
    (("lstm", "gru"), ("float32",), (512, 256, 128), (1, 4, 32, 128)),
    (("lstm",), ("float16",), (512, 256, 768), (64, 16)),
    (("rnn",), ("bfloat16",), (512, 256, 1024), (64, 16, 1)),
    (("lstm", "gru"), ("bfloat16",), (64, 192, 384, 640), (64, 16)),
)
STEP = {"strategy": "step"}


def sizes() -> list[Workload]:
    found = [
        load
        for cells, types, hidden, batches in SIZES
        for load in grid(cells, ("forward", "training"), types, (STEPS,), batches, hidden, INPUTS)
    ]
    return list(dict.fromkeys(found))


def wish(launch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in launch.items() if key != "estimate"}


def label(launch: dict[str, Any]) -> str:
    """`cluster 8x16 wide`: 8 CTAs for 16 rows of the batch."""
    if launch["strategy"] == "step":
        return "step"
    return f"{launch['strategy']} {launch['ranks']}x{launch['columns']} {launch['tile']}"


def tune(peer: FastRNNCuda, load: Workload, seconds: float) -> dict[str, Any]:
    """A row: what each launch takes, or why not."""
    row: dict[str, Any] = {"workload": load.as_dict(), "launches": [], "failed": {}, "unsettled": {}}
    launches: dict[str, dict[str, Any]] = {}
    runs: dict[str, tuple[Peer, Run]] = {}
    reference: dict[str, Any] = {}
    given = data(load)
    layer, x = peer.layer(load, given)
    backward = load.run == "training"
    layer.train(backward)
    call = peer.call(layer, load, given, x)
    for launch in [STEP, *peer.launches(layer, load)]:
        name = label(launch)
        print(f"{load}, {name}", file=sys.stderr)  # or nobody knows which one never ended
        try:
            with wished(**wish(launch), backward=backward):
                insist(layer, x, launch["strategy"], backward)
                run = peer.finish(call)
            result = arrays(run())
            reference = reference or result
            check_equal((name, "step"), result, reference, LIMITS[load.dtype])
        except RuntimeError as error:  # also of the device and of its memory; the others go on
            row["failed"][name] = one_line(error)
            continue
        launches[name], runs[name] = launch, (peer, run)
    times, _ = measure(runs, seconds, {}, 0.0, row)
    for name, values in times.items():
        entry = {"median_s": rounded(statistics.median(values)), "turns": len(values)}
        entry["quartiles_s"] = [rounded(value) for value in spread(values)]
        row["launches"].append(launches[name] | entry)
    return row


def a_step(load: Workload, launch: dict[str, Any]) -> float:
    return launch["median_s"] / load.steps


def best(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The fastest launch and a kernel for every step; None if one of them was not measured."""
    steps = [launch for launch in row["launches"] if launch["strategy"] == "step"]
    others = [launch for launch in row["launches"] if launch["strategy"] != "step"]
    if not steps or not others:
        return None
    return min(others, key=lambda launch: launch["median_s"]), steps[0]


def report(rows: Iterable[dict[str, Any]]) -> str:
    """In Markdown, microseconds a step."""
    lines = []
    for row in rows:
        load, found = Workload(**row["workload"]), best(row)
        if found is None:
            lines.append([load, *[""] * 6])
            continue
        launch, step = found
        others = [other for other in row["launches"] if other["strategy"] != "step"]
        modelled = min(others, key=lambda other: other["estimate"])
        low, high = (1e6 * value / load.steps for value in launch["quartiles_s"])
        lines.append(
            [
                load,
                f"{1e6 * a_step(load, step):.2f}",
                label(launch),
                f"{1e6 * a_step(load, launch):.2f} ({low:.2f}-{high:.2f})",
                f"{step['median_s'] / launch['median_s']:.2f}",
                f"{launch['estimate'] / a_step(load, launch):.0%}",
                f"{label(modelled)}: {1e6 * a_step(load, modelled):.2f}",
            ]
        )
    head = ["us a step", "step", "fastest launch", "its time", "step / it", "bound", "the model's choice"]
    return markdown(head, lines)


HEADER = """\
// What was measured on GPUs, with which `plan` decides on such devices. Written by bench/tune.py --table from
// its results; change nothing by hand.
#pragma once

#include <array>

#include "cuda/plan.h"

namespace fastrnn::cuda {{

{body}

}}  // namespace fastrnn::cuda
"""


def header(results: list[dict[str, Any]]) -> str:
    """The text of TABLE."""
    sources, lines = [], []
    for result in results:
        device = result["versions"]
        major, minor = device["compute_capability"].split(".")
        text = json.dumps(f"measured on {device['device']}, commit {result['commit']}")
        found = [(Workload(**row["workload"]), pair) for row in result["rows"] if (pair := best(row))]
        if found:
            sources.append(f"constexpr char kSource{len(sources)}[] = {text};")
        for load, (launch, step) in found:
            fields = [
                f"{10 * int(major) + int(minor)}",
                f"{device['multiprocessors']}",
                f"kSource{len(sources) - 1}",
                f"Cell::{load.cell}",
                f"DType::{load.dtype}",
                "true" if load.run == "training" else "false",
                f"{load.hidden_size}",
                f"{load.batch}",
                f"{{{launch['ranks']}, {launch['columns']}, TileKind::{launch['tile']}}}",
                f"{a_step(load, launch):.3g}",
                f"{a_step(load, step):.3g}",
            ]
            lines.append(f"    {{{', '.join(fields)}}},")
    if not lines:
        return HEADER.format(body="// Nothing has been measured.\nconstexpr std::array<Tuned, 0> kTuned{};")
    rows = [f"constexpr std::array<Tuned, {len(lines)}> kTuned{{{{", *lines, "}};"]
    return HEADER.format(body="\n".join(["// clang-format off", *sources, "", *rows, "// clang-format on"]))


def main() -> None:
    args = arguments(__doc__, "table", "write csrc/cuda/tuned.h from such files")
    if args.table is not None:
        TABLE.write_text(header([json.loads(file.read_text()) for file in args.table]))
        return
    peer = replayed()
    head = {"commit": commit(), "versions": peer.calls.versions()}
    todo = sizes()
    rows: list[dict[str, Any]] = []
    try:
        for load in within(args.seconds, todo):
            rows.append(tune(peer, load, args.row_seconds))
            write(args.out, head | {"left_out": len(todo) - len(rows)}, "rows", rows)
            if rows[-1]["failed"] and peer.calls.device_lost():
                print("a launch faulted: this process can measure no more")
                break
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
    print(report(rows))
    for row in rows:
        for name, reason in row["failed"].items():
            print(f"{Workload(**row['workload'])}, {name}: {reason}")
    failed = sum(bool(row["failed"]) for row in rows)
    print(f"{len(rows)} of {len(todo)} sizes, something failed in {failed}")
    if failed or not rows:
        sys.exit(1)


if __name__ == "__main__":
    main()
