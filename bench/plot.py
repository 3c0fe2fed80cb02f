"""Draws what run.py measured: sequences per second over one size, a panel for each cell and pass.

python bench/plot.py bench/results/NAME.json     writes NAME.png beside it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIZES = {"hidden_size": "H", "batch": "B", "steps": "T"}
MARKERS = "osv^D*"


def swept(rows: list[dict[str, Any]]) -> str:
    """The size that takes most values: the x axis. The others tell lines apart."""
    return max(SIZES, key=lambda size: len({row["workload"][size] for row in rows}))


def others(row: dict[str, Any], axis: str) -> dict[str, str]:
    """What a row has beside cell, pass and the size on the axis."""
    workload = row["workload"]
    sizes = {size: f"{name}={workload[size]}" for size, name in SIZES.items() if size != axis}
    return sizes | {"dtype": workload.get("dtype", "float32"), "threads": f"CPU threads={row['threads']}"}


def lines(
    rows: list[dict[str, Any]], axis: str, several: list[str]
) -> dict[tuple[str, ...], list[tuple[int, float]]]:
    """The points of each (cell, pass, peer, value of what there are several of)."""
    found: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for row in rows:
        workload = row["workload"]
        rest = " ".join(others(row, axis)[key] for key in several)
        for peer, entry in row["peers"].items():
            points = found.setdefault((workload["cell"], workload["run"], peer, rest), [])
            points.append((workload[axis], workload["batch"] / entry["median_s"]))
    return {key: sorted(points) for key, points in found.items()}


def draw(result: dict[str, Any], file: Path) -> Path | None:
    """Write a PNG file; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in result["rows"] if row["peers"]]
    axis = swept(rows)
    common = others(rows[0], axis)
    several = [key for key in common if len({others(row, axis)[key] for row in rows}) > 1]
    found = lines(rows, axis, several)
    cells, passes, peers, rest = (list(dict.fromkeys(key[i] for key in found)) for i in range(4))
    names = list(dict.fromkeys(peer.removesuffix("-graph") for peer in peers))
    figure, axes = plt.subplots(
        len(passes),
        len(cells),
        squeeze=False,
        sharex=True,
        sharey="row",
        figsize=(4.2 * len(cells) + 2, 3.4 * len(passes)),
        layout="constrained",
    )
    figure.suptitle(", ".join(text for key, text in common.items() if key not in several), fontsize="medium")
    legend = {}
    for (cell, run, peer, other), points in found.items():
        panel = axes[passes.index(run)][cells.index(cell)]
        (line,) = panel.plot(
            *zip(*points, strict=True),
            color=f"C{names.index(peer.removesuffix('-graph')) % 10}",
            linestyle="--" if peer.endswith("-graph") else "-",
            marker=MARKERS[rest.index(other) % len(MARKERS)],
            markersize=5,
        )
        legend[f"{peer} {other}".strip()] = line
    for i, run in enumerate(passes):
        for j, cell in enumerate(cells):
            panel = axes[i][j]
            panel.set_visible(bool(panel.lines))
            panel.set_title(f"{cell.upper()}, {run}")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(sorted({row["workload"][axis] for row in rows}))
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.grid(alpha=0.3)
            if i == len(passes) - 1:
                panel.set_xlabel(SIZES[axis])
            if j == 0:
                panel.set_ylabel("sequences per second")
    figure.legend(legend.values(), legend.keys(), loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
