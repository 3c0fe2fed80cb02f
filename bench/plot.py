"""Draws what run.py measured, each picture as far as the files have what it needs.

    python bench/plot.py bench/results/NAME.json [OTHER.json ...] [--out FOLDER/NAME]

NAME-speedup-*.png     time of the best peer / fastrnn over H and B, a panel for each cell and pass
NAME-throughput-*.png  sequences per second against H and against B, CPU and GPU
NAME-steps.png         histogram of single streaming steps
NAME-growth.png        time against T, layers and threads
NAME-roofline.png      arithmetic per byte of weights against GFLOP/s, under the machine's ceilings
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from results import Row, on_device, read
from workloads import GATES, PASSES, level_of

# fastrnn stands out; a library has the same colour everywhere.
COLOURS = {
    "fastrnn": "#d62728",
    "torch": "#ff9d3b",
    "cudnn": "#76b900",
    "onnxruntime": "#5a6acf",
    "openvino": "#2ba5b8",
    "jax": "#9467bd",
    "numpy": "#8c8c8c",
}
LEVELS = {"L1": "#2ca02c", "L2": "#1f77b4", "L3": "#9467bd", "memory": "#8c564b"}
MARKERS = {"lstm": "o", "gru": "s", "rnn": "^"}


def style(peer: str) -> dict[str, Any]:
    library = peer.split("-")[0]
    line = ":" if peer.endswith("-graph") else "--" if on_device(peer) else "-"
    width = 2.4 if library == "fastrnn" else 1.3
    marker = {"tf32": "v"}.get(peer.removesuffix("-graph").rpartition("-")[2], "o")
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
    """Figures that go to files beside each other."""

    def __init__(self, stem: Path, title: str) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        self.plt, self.stem, self.title = pyplot, stem, title
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
            found.values(), found.keys(), loc="outside right upper", fontsize="small", frameon=False
        )

    def save(self, figure: Any, name: str, title: str) -> None:
        figure.suptitle(f"{title}\n{self.title}", fontsize="medium")
        file = self.stem.with_name(f"{self.stem.name}-{name}.png")
        figure.savefig(file, dpi=130)
        self.plt.close(figure)
        self.files.append(file)


def sizes_on(axis: Any, values: Iterable[int]) -> None:
    """A logarithmic axis with the sizes that were measured."""
    axis.set_ticks(sorted(set(values)))
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def speedup(pictures: Pictures, rows: list[Row], own: str) -> None:
    """A figure for each T and number of threads, a row of panels for each pass, a panel for each cell."""
    from matplotlib.colors import TwoSlopeNorm

    groups: dict[tuple[int, int, str], list[Row]] = {}
    for row in plain(rows):
        if row.best(own):
            groups.setdefault((row.load.steps, row.threads, row.load.dtype), []).append(row)
    for (T, threads, dtype), some in groups.items():
        hidden = sorted({row.load.hidden_size for row in some})
        batches = sorted({row.load.batch for row in some})
        if min(len(hidden), len(batches)) < 2:
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
                        ratio = row.peers[row.best(own)]["ratio"]
                        x, y = batches.index(row.load.batch), hidden.index(row.load.hidden_size)
                        grid[y][x] = math.log2(ratio)
                        strong = abs(grid[y][x]) > 1.4
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
        name = (
            f"speedup-T{T}-{threads}t" + f"-{dtype}" * (dtype != "float32") + f"-{own}" * (own != "fastrnn")
        )
        pictures.save(figure, name, f"Time of the best peer / {own}: {unit}; blue: {own} is faster")


def throughput(pictures: Pictures, rows: list[Row]) -> None:
    """A figure for each pass, T, threads and type: against H and against B, a panel for each cell."""
    groups: dict[tuple[str, int, int, str], list[Row]] = {}
    for row in plain(rows):
        groups.setdefault((row.load.run, row.load.steps, row.threads, row.load.dtype), []).append(row)
    for (run, T, threads, dtype), some in groups.items():
        hidden = sorted({row.load.hidden_size for row in some})
        batches = sorted({row.load.batch for row in some})
        # Lines at the smallest and the largest of the other size, and at one in the middle.
        lines: list[tuple[str, str, str, int]] = []
        if len(hidden) > 1:
            lines += [("hidden_size", "H = I", "batch", B) for B in dict.fromkeys((batches[0], batches[-1]))]
        if len(batches) > 1:
            lines += [("batch", "B", "hidden_size", min(hidden, key=lambda H: abs(H - 256)))]
        cells = [cell for cell in GATES if any(row.load.cell == cell for row in some)]
        if not lines:
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
        file = f"throughput-{run}-T{T}-{threads}t" + f"-{dtype}" * (dtype != "float32")
        pictures.save(figure, file, f"Throughput, {run}: {unit}")


def latency(pictures: Pictures, rows: list[Row]) -> None:
    """How long single steps take: a panel for each workload."""
    from measure import BINS_PER_DECADE

    streams = [row for row in rows if any("steps" in entry for entry in row.peers.values())][:12]
    if not streams:
        return
    columns = min(3, len(streams))
    figure, axes = pictures.panels(math.ceil(len(streams) / columns), columns, 4.0, 2.6)
    for panel in axes.flat[len(streams) :]:
        panel.set_visible(False)
    for panel, row in zip(axes.flat, streams, strict=False):
        for peer, entry in row.peers.items():
            if "steps" not in entry:
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
        panel.set_xlabel("us")
        panel.set_yticks([])
        panel.set_title(str(row.load) + f", {row.threads} thread" + "s" * (row.threads > 1), fontsize="small")
    pictures.legend(figure, axes)
    pictures.save(figure, "steps", "One streaming step called from Python; dotted: 99 % take less")


def growth(pictures: Pictures, rows: list[Row]) -> None:
    """Against T, layers and threads: a row of panels for each that varies, a panel for each workload."""
    axes_of: dict[str, tuple[str, Callable[[Row], int], Callable[[Row], Any]]] = {
        "T": ("ms", lambda row: row.load.steps, lambda row: (replace(row.load, steps=0), row.threads)),
        "layers": (
            "ms",
            lambda row: row.load.num_layers,
            lambda row: (replace(row.load, num_layers=0), row.threads),
        ),
        "threads": ("ms", lambda row: row.threads, lambda row: (row.load, 0)),
    }
    lines: list[tuple[str, list[Row]]] = []
    for name, (_, value, others) in axes_of.items():
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            groups.setdefault(others(row), []).append(row)
        enough = 2 if name == "threads" else 3
        found = [
            sorted(some, key=value) for some in groups.values() if len({value(row) for row in some}) >= enough
        ]
        # The most work first: small sizes tell little of growth.
        found.sort(key=lambda some: -some[-1].load.flop)
        chosen: dict[tuple[str, str], list[Row]] = {}
        for some in found:
            chosen.setdefault((some[0].load.run, some[0].load.cell), some)
        lines += [
            (name, some)
            for some in sorted(
                chosen.values(),
                key=lambda some: (PASSES.index(some[0].load.run), list(GATES).index(some[0].load.cell)),
            )
        ]
    if not lines:
        return
    names = list(dict.fromkeys(name for name, _ in lines))
    columns = max(sum(name == other for other, _ in lines) for name in names)
    figure, axes = pictures.panels(len(names), columns, 3.4, 2.7)
    for panel in axes.flat:
        panel.set_visible(False)
    for i, name in enumerate(names):
        for panel, some in zip(axes[i], (some for other, some in lines if other == name), strict=False):
            panel.set_visible(True)
            value = axes_of[name][1]
            for peer in dict.fromkeys(peer for row in some for peer in row.peers):
                mine = [row for row in some if peer in row.peers]
                panel.plot(
                    [value(row) for row in mine],
                    [row.seconds(peer) * 1e3 for row in mine],
                    label=label(peer),
                    **style(peer),
                )
            panel.set_xscale("log", base=2 if name != "T" else 10)
            panel.set_yscale("log")
            sizes_on(panel.xaxis, [value(row) for row in some])
            panel.grid(alpha=0.3)
            panel.set_xlabel(name)
            panel.set_ylabel("ms")
            load = some[0].load
            title = f"{load.cell.upper()} {load.run}, B={load.batch} H={load.hidden_size}"
            title += f" T={load.steps}" * (name != "T") + f" L={load.num_layers}" * (
                name != "layers" and load.num_layers > 1
            )
            panel.set_title(title, fontsize="small")
    pictures.legend(figure, axes)
    pictures.save(figure, "growth", "How time grows")


def roofline(pictures: Pictures, rows: list[Row]) -> None:
    """A panel for each number of threads: every float32 row of fastrnn, and its best peer."""
    measured = [row for row in rows if row.ceiling and row.load.dtype == "float32" and "fastrnn" in row.peers]
    counts = sorted({row.threads for row in measured})
    if not counts:
        return

    def intensity(row: Row) -> float:
        return row.load.flop / (row.load.recurrent_bytes * row.load.recurrent_reads)

    figure, axes = pictures.panels(1, len(counts), 6.0, 4.4, sharey="row")
    for panel, threads in zip(axes[0], counts, strict=True):
        some = [row for row in measured if row.threads == threads]
        ceiling = some[0].ceiling
        assert ceiling is not None
        peak = ceiling["gflops"]["float32"]
        low, high = min(map(intensity, some)) / 1.3, max(map(intensity, some)) * 1.3
        panel.axhline(peak, color="black", linewidth=1.2)
        panel.text(high / 1.05, peak * 1.05, f"{peak:.0f} GFLOP/s", ha="right", fontsize="small")
        for level, rate in ceiling["read"].items():
            colour, ridge = LEVELS[level], peak / rate["gb_s"]
            panel.plot([ridge / 1e4, ridge], [peak / 1e4, peak], color=colour, label=f"read from {level}")
            panel.text(
                ridge,
                peak / 1.05,
                f"{rate['gb_s']:.0f} GB/s",
                color=colour,
                ha="left",
                va="top",
                rotation=35,
                fontsize="x-small",
            )
        for row in some:
            if best := row.best():
                panel.plot(
                    intensity(row), row.gflops(best), ".", color="#c8c8c8", zorder=1, label="best peer"
                )
            colour = LEVELS[level_of(row.load, ceiling)]
            panel.plot(
                intensity(row),
                row.gflops("fastrnn"),
                MARKERS[row.load.cell],
                color=colour,
                markerfacecolor="none" if row.load.run == "training" else colour,
                markersize=5,
                label=f"{row.load.cell.upper()} {row.load.run}",
            )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlim(low, high)
        panel.set_ylim(max(peak / 300, min(row.gflops("fastrnn") for row in some) / 1.5), peak * 1.4)
        panel.grid(alpha=0.3)
        panel.set_xlabel("operations per byte of W_hh that is read")
        panel.set_title(f"{threads} thread" + "s" * (threads > 1), fontsize="medium")
    axes[0][0].set_ylabel("GFLOP/s")
    pictures.legend(figure, axes)
    pictures.save(figure, "roofline", "Roofline, float32; a colour is the cache that holds W_hh")


def draw(results: list[dict[str, Any]], rows: list[Row], stem: Path) -> list[Path]:
    """Write PNG files whose names begin with `stem`; none without matplotlib."""
    try:
        pictures = Pictures(stem, machine(results))
    except ImportError:
        return []
    rows = [row for row in rows if row.peers]
    for own in dict.fromkeys(own for row in rows for own in row.owns):
        speedup(pictures, rows, own)
    throughput(pictures, rows)
    latency(pictures, rows)
    growth(pictures, rows)
    roofline(pictures, rows)
    return pictures.files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="how the files' names begin; default: as the first result's")
    args = parser.parse_args()
    files = draw(*read(args.results), args.out or args.results[0].with_suffix(""))
    print("\n".join(map(str, files)) or "nothing drawn: no matplotlib")


if __name__ == "__main__":
    main()
