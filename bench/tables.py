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
from pathlib import Path
from typing import Any, TypeVar

import memory
import targets
from peers import ROUNDED
from results import AXES, Row, exponent, geometric_mean, growth, markdown, on_device, read, rows_of
from workloads import PASSES

WORST = 10  # rows of each kind that are listed one by one

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
            reached = row.share(own)
            part = f"{reached[0]:.0%} {reached[1]}" if reached else ""
            others = [
                f"{name} {entry['ratio']:.2f} ({low:.2f}-{high:.2f}) {entry['verdict']}"
                for name, entry in row.rivals(own).items()
                for low, high in [entry["ratio_quartiles"]]
            ]
            speed = f"{row.seconds(own) * 1e3:>10.4g}  {row.gflops(own):>7.1f}  {part:>10}"
            lines.append(f"{title(row)}  {own:18}{speed}   {'   '.join(others)}".rstrip())
        lines += [f"{title(row)}  {name} failed: {reason}" for name, reason in row.failed.items()]
    unable = {(name, reason): None for row in rows for name, reason in row.unable.items()}
    lines += [f"{name} is left out of some rows: {reason}" for name, reason in unable]
    return "\n".join(lines)


def throughput(rows: list[Row]) -> str:
    """Sequences per second (steps for streaming), a column for each peer."""
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    width = max([12, *(len(name) + 2 for name in names)])
    lines = [f"{'sequences per second':38}threads" + "".join(f"{name:>{width}}" for name in names)]
    for row in rows:
        values = (f"{row.throughput(name):,.0f}" if name in row.peers else "" for name in names)
        lines.append(title(row) + "".join(f"{value:>{width}}" for value in values))
    return "\n".join(lines)


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
        lines += [f"{absent}." for absent in result.get("absent", [])]
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines)) + "\n"


def kind(row: Row) -> tuple[int, int, str, str]:
    """What a line of the summary holds."""
    load = row.load
    return PASSES.index(load.run), row.threads, load.dtype, load.cell


def summary(rows: list[Row], own: str) -> str:
    """Over all sizes of a pass and cell: means against the best peer of each row and against PyTorch."""
    reference = "cudnn" if on_device(own) else "torch"
    lines = []
    for (run, threads, dtype, cell), some in grouped(rows, kind).items():
        best = [row.peers[name] for row in some if (name := row.best(own))]
        if not best:
            continue
        judged = [entry["verdict"] for entry in best]
        torch = geometric_mean(row.peers[reference]["ratio"] for row in some if reference in row.rivals(own))
        shares = [reached[0] for row in some if (reached := row.share(own))]
        lines.append(
            [
                f"{cell.upper()} {PASSES[run]}" + f", {dtype}" * (dtype != "float32"),
                threads,
                len(best),
                f"{geometric_mean(entry['ratio'] for entry in best):.2f}",
                "" if math.isnan(torch) else f"{torch:.2f}",
                f"{min(entry['ratio'] for entry in best):.2f}",
                *(judged.count(word) for word in ("FASTER", "SAME", "UNCLEAR", "SLOWER")),
                f"{statistics.median(shares):.0%} (to {max(shares):.0%})" if shares else "",
            ]
        )
    head = [
        "",
        "threads",
        "sizes",
        "x best peer",
        f"x {reference}",
        "worst",
        "faster",
        "same",
        "unclear",
        "slower",
    ]
    return markdown([*head, "median of bound"], lines)


def grids(rows: list[Row], own: str) -> str:
    """For each kind, T and shape a table over H and B: the best peer's time / ours, and who that is."""
    text = []

    def table(row: Row) -> tuple[Any, ...]:
        load = row.load
        return (
            *kind(row),
            load.steps,
            load.num_layers,
            load.bidirectional,
            load.input_size != load.hidden_size,
        )

    for key, some in grouped(rows, table).items():
        run, threads, dtype, cell, T, layers, both, other_input = key
        batches = sorted({row.load.batch for row in some})
        if len(some) < 4 or any(row.load.name for row in some):
            continue
        lines = []
        for (H, inputs), line in grouped(
            some, lambda row: (row.load.hidden_size, row.load.input_size)
        ).items():
            cells = {row.load.batch: row for row in line}
            marks = []
            for B in batches:
                name = cells[B].best(own) if B in cells else None
                marks.append(f"{cells[B].peers[name]['ratio']:.2f} {name}" if name else "")
            lines.append([f"H={H}" + f" I={inputs}" * other_input, *marks])
        parts = [f"{cell.upper()} {PASSES[run]}", f"T={T}" * (PASSES[run] != "streaming")]
        parts += [f"{layers} layers" * (layers > 1), "both directions" * both, dtype * (dtype != "float32")]
        parts += [f"{threads} thread" + "s" * (threads > 1)]
        text.append(f"**{', '.join(part for part in parts if part)}**\n")
        text.append(markdown(["", *(f"B={B}" for B in batches)], lines))
    return "\n".join(text)


def losses(rows: list[Row], own: str) -> str:
    """The rows in which a peer's median is better, worst first."""
    best = {row: row.peers[name] | {"name": name} for row in rows if (name := row.best(own))}
    lost = sorted((row for row in best if best[row]["ratio"] < 1), key=lambda row: best[row]["ratio"])
    clear = sum(best[row]["verdict"] == "SLOWER" for row in lost)
    lines = []
    for row in lost[:WORST]:
        low, high = best[row]["ratio_quartiles"]
        ratio = f"{best[row]['ratio']:.2f} ({low:.2f}-{high:.2f})"
        reached = row.share(own)
        part = f"{reached[0]:.0%} {reached[1]}" if reached else ""
        lines.append([row.load, row.threads, ratio, best[row]["name"], best[row]["verdict"], part])
    text = f"{len(lost)} of {len(best)} rows, {clear} of them beyond the spread; the worst first.\n"
    head = ["", "threads", "ratio", "peer", "verdict", "of bound"]
    return text + "\n" * bool(lines) + (markdown(head, lines) if lines else "")


def one_by_one(rows: list[Row], own: str) -> str:
    """A line for each row: the named workloads."""
    names = list(dict.fromkeys(name for row in rows for name in row.rivals(own)))
    lines = []
    for row in rows:
        reached = row.share(own)
        line = [row.load, row.threads, f"{row.seconds(own) * 1e3:.4g}", f"{row.gflops(own):.0f}"]
        line.append(f"{reached[0]:.0%} {reached[1]}" if reached else "")
        lines.append(
            [*line, *(f"{row.peers[name]['ratio']:.2f}" if name in row.peers else "" for name in names)]
        )
    return markdown(
        ["", "threads", f"{own} ms", "GFLOP/s", "of bound", *(f"x {name}" for name in names)], lines
    )


def rounded(rows: list[Row]) -> str:
    """What weights of fewer bits gain: our float32 time / time with them."""
    names = [name for name in ROUNDED if any(name in row.peers for row in rows)]
    lines = []
    for row in rows:
        own = row.seconds("fastrnn")
        cells = (f"{own / row.seconds(name):.2f}" if name in row.peers else "" for name in names)
        lines.append([row.load, row.threads, f"{own * 1e3:.4g}", *cells])
    return markdown(["", "threads", "float32 ms", *(f"x with {name}" for name in names)], lines)


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

    def stack(row: Row) -> tuple[Any, ...]:
        return *kind(row), row.load.num_layers, row.load.bidirectional

    lines = []
    for (run, threads, dtype, cell, layers, both), some in grouped(several, stack).items():
        ratios = [alone[row.load].seconds(own) / row.seconds(own) for row in some]
        what = f"{cell.upper()} {PASSES[run]}" + f", {dtype}" * (dtype != "float32")
        what += f", {layers} layers" * (layers > 1) + ", both directions" * both
        mean = f"{geometric_mean(ratios):.2f}"
        lines.append([what, threads, len(some), mean, f"{min(ratios):.2f}", f"{max(ratios):.2f}"])
    return markdown(["", "threads", "sizes", "x one thread", "least", "most"], lines) if lines else ""


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
    rows = [row for result in results for row in rows_of(result)]
    parts = [("What was measured", machines(results))]
    for own in dict.fromkeys(own for row in rows for own in row.owns):
        mine = [row for row in rows if own in row.peers]
        named = [row for row in mine if row.load.name]
        sizes = [row for row in mine if not row.load.name]
        if judged := [row for row in sizes if row.best(own)]:
            parts.append((f"Time of a peer / {own}, geometric means over all sizes", summary(judged, own)))
            parts.append((f"Where a peer is faster than {own}", losses(judged, own)))
            parts.append((f"Time of the best peer / {own}", grids(judged, own)))
        parts.append((f"More threads: {own}", gains(sizes, own)))
        parts.append((f"Named workloads: {own}", one_by_one(named, own) if named else ""))
        streams = [row for row in mine if "steps" in row.peers[own]]
        parts.append((f"Single steps: {own}", steps(streams) if streams else ""))
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
