"""Tables of what run.py and memory.py measured, in Markdown, as docs/performance.md has them.

    python bench/tables.py bench/results/NAME-*.json
    python bench/tables.py --targets bench/results/NAME-*.json     what was aimed at, and what was reached

Files of several CPUs make a report for each of them.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import memory
import targets
from peers import ROUNDED
from results import (
    AXES,
    Row,
    all_rows,
    exponent,
    geometric_mean,
    growth,
    lacking,
    markdown,
    not_measured,
    on_device,
    read,
)
from workloads import BASE, GATES, PASSES

WORST = 10  # rows of each kind that are listed one by one
# What a size is told by at a glance: within each of these, ratios are alike.
BATCHES = {"B to 4": (1, 4), "B above 4": (5, math.inf)}
HIDDEN = {"H to 64": (1, 64), "H to 300": (65, 300), "H above 300": (301, math.inf)}

Key = TypeVar("Key", bound=tuple[Any, ...])


# In text, at the end of a run.


def title(row: Row) -> str:
    return f"{row.load!s:42}{row.threads:>3}"


def compared(rows: list[Row]) -> str:
    """Time and rate of fastrnn, on the CPU and on the GPU, each with its peers' times divided by it."""
    lines = [f"{'':38}threads{'':20}{'ms':>10}  GFLOP/s    of bound   time of a peer / this (quartiles)"]
    for row in rows:
        alone = [name for name, entry in row.peers.items() if entry.get("rival") not in row.peers]
        for own in alone:
            others = [
                f"{name} {entry['ratio']:.2f} ({low:.2f}-{high:.2f}) {entry['verdict']}"
                for name, entry in row.rivals(own).items()
                for low, high in [entry["ratio_quartiles"]]
            ]
            speed = f"{row.seconds(own) * 1e3:>10.4g}  {row.gflops(own):>7.1f}  {row.shared(own):>10}"
            lines.append(f"{title(row)}  {own:18}{speed}   {'   '.join(others)}".rstrip())
    return "\n".join([*lines, *lacking(rows)])


# In Markdown.


def grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """In the order of the keys."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {key: groups[key] for key in sorted(groups)}


def machines(results: list[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
        lines.append(f"{result['machine']['cpu']}; commit {result['commit']}; {versions}.")
        for threads, ceiling in result.get("ceilings", {}).items():
            peaks = ", ".join(f"{kind} {rate:.0f}" for kind, rate in ceiling["gflops"].items())
            reads = ", ".join(f"{level} {read['gb_s']:.0f}" for level, read in ceiling["read"].items())
            lines.append(f"{threads} thread(s): GFLOP/s at most {peaks}; GB/s read from {reads}.")
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines)) + "\n"


class Kind(NamedTuple):
    """What is summed up together, and stands in one table: sizes that differ in B, H and I."""

    run: int  # of PASSES
    threads: int
    dtype: str
    cell: str
    steps: int
    layers: int
    directions: int
    other_input: bool
    beyond: bool

    def __str__(self) -> str:
        run = PASSES[self.run]
        parts = [f"{self.cell.upper()} {run}", f"T={self.steps}" * (run != "streaming")]
        parts += [f"{self.layers} layers" * (self.layers > 1), "both directions" * (self.directions > 1)]
        plain = self.layers * self.directions == 1
        parts += ["I other than H" * self.other_input, "beyond the grid" * (self.beyond and plain)]
        return ", ".join(part for part in [*parts, self.dtype * (self.dtype != "float32")] if part)


def kind(row: Row) -> Kind:
    load = row.load
    size = load.steps, load.num_layers, load.directions, load.input_size != load.hidden_size
    return Kind(PASSES.index(load.run), row.threads, load.dtype, load.cell, *size, load.beyond)


def summary(rows: list[Row], own: str) -> str:
    """Over B and H: means against the best peer of each row and against PyTorch."""
    reference = "cudnn" if on_device(own) else "torch"
    lines = []
    for what, some in grouped(rows, kind).items():
        best = [found for row in some if (found := row.against(own))]
        torch = geometric_mean(found.median for row in some if (found := row.against(own, [reference])))
        judged = [found.verdict for found in best]
        shares = [reached[0] for row in some if (reached := row.share(own))]
        lines.append(
            [
                what,
                what.threads,
                len(best),
                f"{geometric_mean(found.median for found in best):.2f}",
                "" if math.isnan(torch) else f"{torch:.2f}",
                f"{min(found.median for found in best):.2f}",
                *(judged.count(word) for word in ("FASTER", "SAME", "UNCLEAR", "SLOWER")),
                f"{statistics.median(shares):.0%} (to {max(shares):.0%})" if shares else "",
            ]
        )
    head = ["", "threads", "sizes", "x best peer", f"x {reference}", "worst"]
    return markdown([*head, "faster", "same", "unclear", "slower", "median of bound"], lines)


def glance(rows: list[Row], own: str) -> str:
    """For who asks about one size: each peer's time / ours, mean and least, where it was measured in all."""
    plain = {"threads": 1, "dtype": "float32", "steps": BASE["steps"], "layers": 1, "directions": 1}
    lines = []
    for what, some in grouped(rows, kind).items():
        if what != what._replace(**plain, other_input=False, beyond=False):
            continue
        for peer in dict.fromkeys(name for row in some for name in row.rivals(own)):
            cells = [
                [
                    found.median
                    for row in some
                    if fewest <= row.load.batch <= most and least <= row.load.hidden_size <= largest
                    if (found := row.against(own, [peer]))
                ]
                for (fewest, most), (least, largest) in product(BATCHES.values(), HIDDEN.values())
            ]
            if all(cells):
                figures = (f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" for ratios in cells)
                lines.append([peer, f"{what.cell.upper()} {PASSES[what.run]}", *figures])
    order = list(dict.fromkeys(name for row in rows for name in row.rivals(own)))
    lines.sort(key=lambda line: order.index(line[0]))
    return markdown(["", "", *map(", ".join, product(BATCHES, HIDDEN))], lines) if lines else ""


def grids(rows: list[Row], own: str) -> str:
    """For each kind a table over H and B: the best peer's time / ours, and who that is."""
    text = []
    for what, some in grouped(rows, kind).items():
        if len(some) < 4:
            continue
        batches = sorted({row.load.batch for row in some})
        lines = []
        for (H, inputs), line in grouped(
            some, lambda row: (row.load.hidden_size, row.load.input_size)
        ).items():
            found = {row.load.batch: row.against(own) for row in line}
            marks = (f"{best.median:.2f} {best.peer}" if (best := found.get(B)) else "" for B in batches)
            lines.append([f"H={H}" + f" I={inputs}" * what.other_input, *marks])
        text.append(f"**{what}, {what.threads} thread" + "s" * (what.threads > 1) + "**\n")
        text.append(markdown(["", *(f"B={B}" for B in batches)], lines))
    return "\n".join(text)


def losses(rows: list[Row], own: str) -> str:
    """The rows in which a peer's median is better, worst first."""
    best = {row: found for row in rows if (found := row.against(own))}
    lost = sorted((row for row in best if best[row].median < 1), key=lambda row: best[row].median)
    clear = sum(best[row].verdict == "SLOWER" for row in best)
    lines = [
        [row.load, row.threads, best[row], best[row].peer, best[row].verdict, row.shared(own)]
        for row in lost[:WORST]
    ]
    text = f"{len(lost)} of {len(best)} rows, {clear} of them beyond the spread; the worst first.\n"
    head = ["", "threads", "ratio", "peer", "verdict", "of bound"]
    return text + "\n" * bool(lines) + (markdown(head, lines) if lines else "")


def one_by_one(rows: list[Row], own: str) -> str:
    """A line for each row: the named workloads."""
    names = list(dict.fromkeys(name for row in rows for name in row.rivals(own)))
    lines = []
    for row in rows:
        line = [row.load, row.threads, f"{row.seconds(own) * 1e3:.4g}", f"{row.gflops(own):.0f}"]
        ratios = (f"{row.peers[name]['ratio']:.2f}" if name in row.peers else "" for name in names)
        lines.append([*line, row.shared(own), *ratios])
    return markdown(
        ["", "threads", f"{own} ms", "GFLOP/s", "of bound", *(f"x {name}" for name in names)], lines
    )


def rounded(rows: list[Row]) -> str:
    """What weights of fewer bits gain, and how OpenVINO's bfloat16 compares: times, and their ratios."""
    short, peer = "fastrnn-bfloat16", "openvino-bfloat16"
    ratios = [("fastrnn", short), ("fastrnn", "fastrnn-int8"), (short, "fastrnn-int8"), (peer, short)]
    lines = []
    for row in sorted(rows, key=lambda r: (list(GATES).index(r.load.cell), r.load.batch, r.load.hidden_size)):
        found = [f"{row.ratio(*pair).median:.2f}" if row.peers.keys() >= set(pair) else "" for pair in ratios]
        theirs = f"{row.seconds(peer) * 1e3:.3g}" if peer in row.peers else ""
        load, threads = row.load, f" {row.threads} threads" * (row.threads > 1)
        what = f"{load.cell.upper()} B={load.batch} H={load.hidden_size}"
        what += f" T={load.steps}" * (load.steps != BASE["steps"]) + threads
        own = f"{row.seconds('fastrnn') * 1e3:.3g}"
        lines.append([what, own, *found[:3], theirs, found[3]])
    head = ["", "float32 ms", "float32 / bfloat16", "float32 / int8", "bfloat16 / int8"]
    return markdown([*head, "OpenVINO bf16 ms", "OpenVINO / bfloat16"], lines)


def steps(rows: list[Row]) -> str:
    """Microseconds of single streaming steps, median and 99th percentile."""
    names = list(dict.fromkeys(name for row in rows for name in row.peers if "steps" in row.peers[name]))
    lines = []
    for row in rows:
        percentiles = (
            row.peers[name]["steps"]["percentiles_s"] if name in row.peers else None for name in names
        )
        cells = (f"{1e6 * p['50']:.2f} / {1e6 * p['99']:.2f}" if p else "" for p in percentiles)
        lines.append([row.load, row.threads, *cells])
    return markdown(["us, median / 99 %", "threads", *names], lines)


def gains(rows: list[Row], own: str) -> str:
    """Time on one thread / time on n, for what was measured with both."""
    alone = {row.load: row for row in rows if row.threads == 1}
    several = [row for row in rows if row.threads > 1 and row.load in alone]
    lines = []
    for what, some in grouped(several, kind).items():
        ratios = [alone[row.load].seconds(own) / row.seconds(own) for row in some]
        mean = f"{geometric_mean(ratios):.2f}"
        lines.append([what, what.threads, len(some), mean, f"{min(ratios):.2f}", f"{max(ratios):.2f}"])
    return markdown(["", "threads", "sizes", "x one thread", "least", "most"], lines) if lines else ""


def crossovers(rows: list[Row]) -> str:
    """By H, the least B that was measured from which on the GPU is faster, with the ratio there."""
    hidden = sorted({row.load.hidden_size for row in rows})
    lines = []
    for what, some in grouped(rows, kind).items():
        by_hidden = grouped(some, lambda row: (row.load.hidden_size,))
        cells = []
        for H in hidden:
            gains = {row.load.batch: row.gpu_gain() or 0.0 for row in by_hidden.get((H,), [])}
            lost = max((B for B, gain in gains.items() if gain <= 1), default=0)
            won = min((B for B in gains if lost < B), default=None)
            never = f"not to B={lost}: {gains[lost]:.2f}" if lost else ""
            cells.append(never if won is None else f"B={won}: {gains[won]:.2f}")
        lines.append([what, what.threads, *cells])
    return markdown(["", "threads", *(f"H={H}" for H in hidden)], lines)


def times(results: list[dict[str, Any]]) -> str:
    """Milliseconds against each axis, and the power of it that each implementation's time follows."""
    lines = growth(results)
    text = []
    for name, axis in AXES.items():
        mine = {key: found[name] for key, found in lines.items() if name in found}
        if not mine:
            continue
        values = sorted({axis.value(row) for line in mine.values() for row in line})
        peers = list(dict.fromkeys(peer for line in mine.values() for row in line for peer in row.peers))
        cells = []
        for (cell, run), line in mine.items():
            seconds = {axis.value(row): row.seconds("fastrnn") for row in line}
            powers = [exponent(line, name, peer) for peer in peers]
            cells.append(
                [f"{cell.upper()} {run}"]
                + [f"{seconds[value] * 1e3:.4g}" if value in seconds else "" for value in values]
                + ["" if math.isnan(power) else f"{power:.2f}" for power in powers]
            )
        head = [f"ms; power of {name}, expected {axis.power}", *(f"{name.split()[0]}={v}" for v in values)]
        text.append(markdown([*head, *(f"power: {peer}" for peer in peers)], cells))
    return "\n".join(text)


def report(results: list[dict[str, Any]]) -> str:
    rows = all_rows(results)
    parts = [("What was measured", machines(results)), ("What was not measured", not_measured(results))]
    for own in dict.fromkeys(own for row in rows for own in row.owns):
        both = [row for row in rows if own in row.peers]
        mine = [row for row in both if own in ROUNDED or row.peers.keys().isdisjoint(ROUNDED)]
        named = [row for row in mine if row.load.name]
        sizes = [row for row in mine if not row.load.name]
        if judged := [row for row in sizes if row.rivals(own)]:
            parts.append((f"At a glance: time of a peer / {own}, mean and least", glance(judged, own)))
            parts.append((f"Time of a peer / {own}, geometric means over B and H", summary(judged, own)))
            parts.append((f"Where a peer is faster than {own}", losses(judged, own)))
            parts.append((f"Time of the best peer / {own}", grids(judged, own)))
        parts.append((f"More threads: {own}", gains(sizes, own)))
        parts.append((f"Named workloads: {own}", one_by_one(named, own) if named else ""))
        streams = [row for row in mine if "steps" in row.peers[own]]
        parts.append((f"Single steps: {own}", steps(streams) if streams else ""))
    both = [row for row in rows if row.gpu_gain() and not row.load.name]
    parts.append(
        ("From which B on the GPU is faster: time on the CPU / there", crossovers(both) if both else "")
    )
    parts.append(("How time grows", times(results)))
    both = [row for row in rows if "fastrnn" in row.peers and row.peers.keys() & ROUNDED.keys()]
    parts.append(("Weights of fewer bits", rounded(both) if both else ""))
    points = [point for result in results for point in result.get("memory", [])]
    parts.append(("Memory of a training step", memory.table(points) if points else ""))
    return "\n".join(f"## {title}\n\n{text}" for title, text in parts if text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--targets", action="store_true", help="what was aimed at, and what was reached")
    args = parser.parse_args()
    cpus = read(args.results)
    for cpu, results in cpus.items():
        text = targets.table(results) if args.targets else report(results)
        print(f"# {cpu}\n\n{text}" if len(cpus) > 1 else text)


if __name__ == "__main__":
    main()
