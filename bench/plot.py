"""Draws what run.py measured, each picture as far as the files have what it needs.

    python bench/plot.py bench/results/NAME.json [OTHER.json ...] [--out FOLDER/NAME]

NAME-speedup-*.png     time of the best peer / fastrnn over H and B, a panel for each cell and pass
NAME-crossover-*.png   time of fastrnn on the CPU / on the GPU, in the same way
NAME-throughput-*.png  sequences per second against H and against B, CPU and GPU
NAME-steps.png         histogram of single streaming steps
NAME-growth.png        time against T, B, H, layers and threads
NAME-memory.png        memory of a training step against T, from a file of memory.py
NAME-roofline.png      arithmetic per byte of weights against GFLOP/s, under the machine's ceilings
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import memory
from peers import ROUNDED
from results import AXES, BINS_PER_DECADE, Row, all_rows, growth, on_device, read
from workloads import BASE, GATES, PASSES, level

# fastrnn stands out; a library has the same colour everywhere.
COLOURS = {
    "fastrnn": "#d62728",
    "torch": "#ff9d3b",
    "cudnn": "#76b900",
    "flashrnn": "#17658c",
    "onnxruntime": "#5a6acf",
    "openvino": "#2ba5b8",
    "jax": "#9467bd",
    "numpy": "#8c8c8c",
}
LEVELS = {"L1": "#2ca02c", "L2": "#1f77b4", "L3": "#9467bd", "memory": "#8c564b"}
MARKERS = {"lstm": "o", "gru": "s", "rnn": "^"}
PLAIN = "float32", "fastrnn"  # not in a file's name
FILLS = {"forward": "full", "training": "none", "streaming": "left"}


def style(peer: str) -> dict[str, Any]:
    library = peer.split("-")[0]
    line = ":" if peer.endswith("-graph") else "--" if on_device(peer) else "-." if "-" in peer else "-"
    width = 2.4 if library == "fastrnn" else 1.3
    marker = {"tf32": "v", "bfloat16": "s", "int8": "D"}.get(
        peer.removesuffix("-graph").rpartition("-")[2], "o"
    )
    return {
        "color": COLOURS[library],
        "linestyle": line,
        "linewidth": width,
        "marker": marker,
        "markersize": 4,
        "zorder": 3 if library == "fastrnn" else 2,
    }


def label(peer: str) -> str:
    return peer if on_device(peer) else f"{peer} (CPU)"


def machine(results: list[dict[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(result["machine"]["cpu"] for result in results))


def plain(rows: Iterable[Row]) -> list[Row]:
    """One layer, one direction, I = H: what is drawn over sizes."""
    return [
        row
        for row in rows
        if row.load.num_layers == 1
        and not row.load.bidirectional
        and row.load.input_size == row.load.hidden_size
        and not row.load.name
    ]


class Pictures:
    """Figures that go to files beside each other; `only` those of these names, where there are any."""

    def __init__(self, stem: Path, title: str, only: Collection[str] = ()) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        self.plt, self.stem, self.title, self.only = pyplot, stem, title, only
        self.files: list[Path] = []

    def panels(
        self, rows: int, columns: int, width: float = 4.0, height: float = 3.2, **options: Any
    ) -> tuple[Any, Any]:
        size = (width * columns + 1.5, height * rows + 0.6)
        return self.plt.subplots(rows, columns, squeeze=False, figsize=size, layout="constrained", **options)

    def legend(self, figure: Any, axes: Any) -> None:
        found: dict[str, Any] = {}
        for panel in axes.flat:
            for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
                found.setdefault(name, handle)
        figure.legend(
            found.values(), found.keys(), loc="outside right center", fontsize="small", frameon=False
        )

    def wanted(self, name: str) -> bool:
        return not self.only or name in self.only

    def save(self, figure: Any, name: str, title: str) -> None:
        figure.suptitle(f"{title}\n{self.title}", fontsize="medium")
        file = self.stem.with_name(f"{self.stem.name}-{name}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130)
        self.plt.close(figure)
        self.files.append(file)


def sizes_on(axis: Any, values: Iterable[int]) -> None:
    """A logarithmic axis with the sizes that were measured; of two that are close, the power of two."""
    every = set(values)
    powers = [value for value in every if value & (value - 1) == 0]
    close = {value for value in every if any(2 / 3 < value / other < 3 / 2 for other in powers)}
    axis.set_ticks(sorted((every - close) | set(powers)))
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def numbers_on(axis: Any) -> None:
    """A logarithmic axis with plain numbers, as many as there is room for."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1,) if high / low > 50 else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def filling(rows: list[Row]) -> list[Row]:
    """Without an H or B that was measured with one of the other alone, where there are others."""
    sizes = {(row.load.hidden_size, row.load.batch) for row in rows}
    hidden, batches = (Counter(size[k] for size in sizes) for k in (0, 1))
    kept = [row for row in rows if hidden[row.load.hidden_size] > 1 and batches[row.load.batch] > 1]
    return kept or rows


def speedup(pictures: Pictures, rows: list[Row], own: str) -> None:
    def best(row: Row) -> float | None:
        found = row.against(own)
        return found.median if found else None

    over_sizes(pictures, rows, "speedup", own, best, f"Time of the best peer / {own}", f"{own} is faster")


def crossover(pictures: Pictures, rows: list[Row]) -> None:
    what, end = "Time on the CPU / on the GPU", "the GPU is faster"
    over_sizes(pictures, rows, "crossover", "fastrnn", Row.gpu_gain, what, end)


def over_sizes(
    pictures: Pictures,
    rows: list[Row],
    kind: str,
    own: str,
    ratio_of: Callable[[Row], float | None],
    what: str,
    blue: str,
) -> None:
    """Ratios over H and B: a figure for each T, type and threads, a panel for each pass and cell."""
    from matplotlib.colors import TwoSlopeNorm

    groups: dict[tuple[int, int, str], list[Row]] = {}
    for row in plain(rows):
        if ratio_of(row) is not None:
            groups.setdefault((row.load.steps, row.threads, row.load.dtype), []).append(row)
    for (T, threads, dtype), some in groups.items():
        name = f"{kind}-T{T}-{threads}t" + "".join(f"-{k}" for k in (dtype, own) if k not in PLAIN)
        some = filling(some)
        hidden = sorted({row.load.hidden_size for row in some})
        batches = sorted({row.load.batch for row in some})
        if min(len(hidden), len(batches)) < 2 or not pictures.wanted(name):
            continue
        cells = [cell for cell in GATES if any(row.load.cell == cell for row in some)]
        passes = [name for name in PASSES if any(row.load.run == name for row in some)]
        figure, axes = pictures.panels(
            len(passes), len(cells), 0.62 * len(batches) + 0.8, 0.36 * len(hidden) + 0.8
        )
        image = None
        for i, run in enumerate(passes):
            for j, cell in enumerate(cells):
                panel = axes[i][j]
                grid = [[math.nan] * len(batches) for _ in hidden]
                for row in some:
                    if (row.load.run, row.load.cell) == (run, cell):
                        ratio = ratio_of(row)
                        assert ratio is not None
                        x, y = batches.index(row.load.batch), hidden.index(row.load.hidden_size)
                        grid[y][x] = math.log2(ratio)
                        strong = abs(grid[y][x]) > 1.2
                        panel.text(
                            x,
                            y,
                            f"{ratio:.2g}" if ratio >= 9.95 else f"{ratio:.2f}",
                            ha="center",
                            va="center",
                            fontsize=7,
                            color="white" if strong else "black",
                        )
                image = panel.imshow(
                    grid, aspect="auto", cmap="RdBu", norm=TwoSlopeNorm(0, -2, 2), origin="lower"
                )
                panel.set_title(f"{cell.upper()}, {run}", fontsize="medium")
                panel.set_xticks(range(len(batches)), batches)
                panel.set_yticks(range(len(hidden)), hidden)
                panel.set_xlabel("B" if i == len(passes) - 1 else "")
                panel.set_ylabel("H = I" if j == 0 else "")
        bar = figure.colorbar(image, ax=axes, shrink=0.7, extend="both")
        bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4", "1/2", "1", "2", "4"])
        unit = f"T = {T}, {threads} thread" + "s" * (threads > 1) + f", {dtype}"
        pictures.save(figure, name, f"{what}: {unit}; blue: {blue}")


def throughput(pictures: Pictures, rows: list[Row]) -> None:
    """A figure for each pass, T, threads and type: against H and against B, a panel for each cell."""
    groups: dict[tuple[str, int, int, str], list[Row]] = {}
    for row in plain(rows):
        groups.setdefault((row.load.run, row.load.steps, row.threads, row.load.dtype), []).append(row)
    for (run, T, threads, dtype), some in groups.items():
        file = f"throughput-{run}-T{T}-{threads}t" + f"-{dtype}" * (dtype != "float32")
        some = filling(some)
        hidden = sorted({row.load.hidden_size for row in some})
        batches = sorted({row.load.batch for row in some})
        # Lines at the smallest and the largest of the other size, and at one in the middle.
        lines: list[tuple[str, str, str, int]] = []
        if len(hidden) > 1:
            lines += [("hidden_size", "H = I", "batch", B) for B in dict.fromkeys((batches[0], batches[-1]))]
        if len(batches) > 1:
            lines += [("batch", "B", "hidden_size", min(hidden, key=lambda H: abs(H - 256)))]
        cells = [cell for cell in GATES if any(row.load.cell == cell for row in some)]
        if not lines or not pictures.wanted(file):
            continue
        figure, axes = pictures.panels(len(lines), len(cells), 3.6, 2.7, sharey="row")
        for i, (axis, name, other, value) in enumerate(lines):
            for j, cell in enumerate(cells):
                panel = axes[i][j]
                points = [row for row in some if row.load.cell == cell and getattr(row.load, other) == value]
                points.sort(key=lambda row: getattr(row.load, axis))
                for peer in dict.fromkeys(peer for row in points for peer in row.peers):
                    mine = [row for row in points if peer in row.peers]
                    x = [getattr(row.load, axis) for row in mine]
                    y = [row.throughput(peer) for row in mine]
                    panel.plot(x, y, label=label(peer), **style(peer))
                panel.set_xscale("log", base=2)
                panel.set_yscale("log")
                sizes_on(panel.xaxis, hidden if axis == "hidden_size" else batches)
                panel.tick_params(axis="x", labelsize="small")
                panel.grid(alpha=0.3)
                panel.set_title(
                    f"{cell.upper()}, {'B' if other == 'batch' else 'H'} = {value}", fontsize="medium"
                )
                panel.set_xlabel(name)
            axes[i][0].set_ylabel("sequences per second")
        pictures.legend(figure, axes)
        unit = f"T = {T}, {threads} CPU thread" + "s" * (threads > 1) + f", {dtype}"
        pictures.save(figure, file, f"Throughput, {run}: {unit}")


def latency(pictures: Pictures, rows: list[Row]) -> None:
    """How long single steps take: a panel for each workload."""
    streams = [row for row in rows if any("steps" in entry for entry in row.peers.values())]
    streams = ([row for row in streams if not row.load.name] or streams)[:12]
    if not streams or not pictures.wanted("steps"):
        return
    columns = min(3, len(streams))
    figure, axes = pictures.panels(math.ceil(len(streams) / columns), columns, 4.0, 2.6)
    for panel in axes.flat[len(streams) :]:
        panel.set_visible(False)
    for panel, row in zip(axes.flat, streams, strict=False):
        for peer, entry in row.peers.items():
            if "steps" not in entry or peer in ROUNDED:
                continue
            counts, first = entry["steps"]["counts"], entry["steps"]["first_bin"]
            edges = [1e-1 * 10 ** ((first + k) / BINS_PER_DECADE) for k in range(len(counts) + 1)]
            shares = [count / sum(counts) for count in counts]
            look = style(peer)
            panel.stairs(shares, edges, fill=True, alpha=0.35, color=look["color"])
            panel.stairs(
                shares, edges, color=look["color"], linewidth=look["linewidth"] / 2, label=label(peer)
            )
            panel.axvline(
                1e6 * entry["steps"]["percentiles_s"]["99"], color=look["color"], linestyle=":", linewidth=1
            )
        panel.set_xscale("log")
        numbers_on(panel.xaxis)
        panel.set_xlabel("us")
        panel.set_yticks([])
        panel.set_title(str(row.load) + f", {row.threads} thread" + "s" * (row.threads > 1), fontsize="small")
    pictures.legend(figure, axes)
    pictures.save(figure, "steps", "One streaming step called from Python; dotted: 99 % take less")


def growing(pictures: Pictures, results: list[dict[str, Any]]) -> None:
    """A panel for each axis and each cell and pass, through one size; thin: the power that is expected."""
    panels = growth(results)
    if not panels or not pictures.wanted("growth"):
        return
    names = list(next(iter(panels.values())))
    figure, axes = pictures.panels(len(panels), len(names), 2.7, 2.1, sharex="col")
    for i, ((cell, run), lines) in enumerate(panels.items()):
        for panel, name in zip(axes[i], names, strict=True):
            line, axis = lines[name], AXES[name]
            for peer in dict.fromkeys(peer for row in line for peer in row.peers):
                points = [(axis.value(row), row.seconds(peer) * 1e3) for row in line if peer in row.peers]
                panel.plot(*zip(*points, strict=True), label=label(peer), **style(peer))
            # From our time at the largest size, where what a call costs beside its work is least.
            end = line[0 if axis.power < 0 else -1]
            values = [axis.value(row) for row in line]
            ideal = [end.seconds("fastrnn") * 1e3 * (x / axis.value(end)) ** axis.power for x in values]
            panel.plot(values, ideal, color="black", linewidth=0.8, zorder=4, label="expected")
            panel.set_xscale("log", base=10 if name == "T" else 2)
            panel.set_yscale("log")
            sizes_on(panel.xaxis, values)
            numbers_on(panel.yaxis)
            panel.tick_params(labelsize="x-small")
            panel.grid(alpha=0.3)
            if i == 0:
                power = {1: "", 2: "\u00b2", -1: "\u207b\u00b9"}[axis.power]
                panel.set_title(f"against {name}; expected: ~ {name.split()[0]}{power}", fontsize="small")
            if i == len(panels) - 1:
                panel.set_xlabel(name)
        axes[i][0].set_ylabel(f"{cell.upper()} {run}, ms")
    text = f"T = {BASE['steps']}, B = {BASE['batch']}, H = I = {BASE['hidden_size']}, 1 thread"
    pictures.legend(figure, axes)
    pictures.save(figure, "growth", f"How time grows when one of these changes: {text}")


def roofline(pictures: Pictures, rows: list[Row]) -> None:
    """A panel for each number of threads: every float32 row of fastrnn, and its best peer."""
    measured = [row for row in rows if row.ceiling and row.load.dtype == "float32" and "fastrnn" in row.peers]
    counts = sorted({row.threads for row in measured})
    if not counts or not pictures.wanted("roofline"):
        return

    def intensity(row: Row) -> float:
        return row.load.flop / sum(read for _, read in row.load.reads)

    figure, axes = pictures.panels(1, len(counts), 6.0, 4.4, sharey="row")
    slowest = min(row.gflops("fastrnn") for row in measured)
    for panel, threads in zip(axes[0], counts, strict=True):
        some = [row for row in measured if row.threads == threads]
        ceiling = some[0].ceiling
        assert ceiling is not None
        peak = ceiling["gflops"]["float32"]
        panel.axhline(peak, color="black", linewidth=1.2, label="peak of multiply-adds")
        for name, rate in ceiling["read"].items():
            ridge = peak / rate["gb_s"]
            panel.plot(
                [ridge / 1e4, ridge], [peak / 1e4, peak], color=LEVELS[name], label=f"read from {name}"
            )
        for row in some:
            if best := row.against():
                rate = row.gflops(best.peer)
                panel.plot(intensity(row), rate, ".", color="#c8c8c8", zorder=1, label="best peer")
            colour = LEVELS[level(row.load, ceiling)]
            panel.plot(
                intensity(row),
                row.gflops("fastrnn"),
                MARKERS[row.load.cell],
                color=colour,
                fillstyle=FILLS[row.load.run],
                markersize=5,
                label=f"{row.load.cell.upper()} {row.load.run}",
            )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlim(min(map(intensity, some)) / 1.3, max(map(intensity, some)) * 1.3)
        panel.set_ylim(max(peak / 300, slowest / 1.5), peak * 1.4)
        numbers_on(panel.xaxis)
        numbers_on(panel.yaxis)
        panel.grid(alpha=0.3)
        panel.set_xlabel("operations per byte of weights that is read")
        rates = ", ".join(f"{name} {rate['gb_s']:.0f}" for name, rate in ceiling["read"].items())
        unit = f"{threads} thread" + "s" * (threads > 1)
        panel.set_title(f"{unit}: {peak:.0f} GFLOP/s; GB/s from {rates}", fontsize="medium")
    axes[0][0].set_ylabel("GFLOP/s")
    pictures.legend(figure, axes)
    pictures.save(figure, "roofline", "Roofline, float32; a colour is the cache that holds the weights")


def memory_growth(pictures: Pictures, points: list[dict[str, Any]]) -> None:
    """A panel for each cell: what a step keeps, and scratch, against T."""
    points = [point for point in points if "failed" not in point]
    cells = list(dict.fromkeys(point["cell"] for point in points))
    if not cells or not pictures.wanted("memory"):
        return
    figure, axes = pictures.panels(1, len(cells), 4.2, 3.2, sharey="row")
    for panel, cell in zip(axes[0], cells, strict=True):
        mine = [point for point in points if point["cell"] == cell]
        for name in dict.fromkeys(memory.title(point) for point in mine):
            line = sorted((p["steps"], max(p["kept_mb"], 1)) for p in mine if memory.title(p) == name)
            look = style(name.split()[0]) | ({"linestyle": "--", "marker": "s"} if " " in name else {})
            panel.plot(*zip(*line, strict=True), label=name, **look)
        panel.set_xscale("log")
        panel.set_yscale("log")
        sizes_on(panel.xaxis, [point["steps"] for point in mine])
        panel.grid(alpha=0.3)
        panel.set_xlabel("T")
        numbers_on(panel.yaxis)
        panel.set_title(f"{cell.upper()}, B={mine[0]['batch']} H={mine[0]['hidden']}", fontsize="medium")
    axes[0][0].set_ylabel("MB")
    pictures.legend(figure, axes)
    pictures.save(figure, "memory", "Peak memory of a training step, beyond x, y, dy, dx and the process")


def draw(results: list[dict[str, Any]], stem: Path, only: Collection[str] = ()) -> list[Path]:
    """Write PNG files whose names begin with `stem`, all or `only` some; none without matplotlib."""
    try:
        pictures = Pictures(stem, machine(results), only)
    except ImportError:
        return []
    rows = [row for row in all_rows(results) if row.peers]
    for own in dict.fromkeys(own for row in rows for own in row.owns):
        speedup(pictures, rows, own)
    crossover(pictures, rows)
    throughput(pictures, rows)
    latency(pictures, rows)
    growing(pictures, results)
    roofline(pictures, rows)
    memory_growth(pictures, [point for result in results for point in result.get("memory", [])])
    return pictures.files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="how the files' names begin; default: as the first result's")
    args = parser.parse_args()
    machines = read(args.results)
    if len(machines) > 1:
        parser.error(f"files of {len(machines)} CPUs, but a picture is of one: {'; '.join(machines)}")
    (results,) = machines.values()
    files = draw(results, args.out or args.results[0].with_suffix(""))
    print("\n".join(map(str, files)) or "nothing drawn: no matplotlib")


if __name__ == "__main__":
    main()
