"""What the examples share: the flag --out, the figure that is saved there, and a plain training step."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastrnn.training import clip_by_global_norm, softmax_cross_entropy
from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#e09f3e", "#6a4c93")


def parser(doc: str) -> argparse.ArgumentParser:
    """Take the first line of a script's docstring for --help; every script has --out."""
    result = argparse.ArgumentParser(description=doc.splitlines()[0])
    result.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the picture")
    return result


def panels(count: int, title: str, *, rows: int = 1, height: float = 3.6) -> tuple[Figure, Any]:
    """A figure of `count` panels in `rows` rows, and its axes as a list."""
    columns = -(-count // rows)
    figure = Figure(figsize=(4.4 * columns if columns > 1 else 7, height * rows), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, folder: Path, script: str) -> None:
    """Write the picture under the name of the script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(script).stem}.png"
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


def training_step(model: Any, optimizer: Any, x: Any, targets: Any) -> float:
    """One update by the cross entropy of the model's outputs; returns the loss before it."""
    o, _ = model(x)
    loss, do = softmax_cross_entropy(o, targets)
    model.zero_grad()
    model.backward(do)
    clip_by_global_norm([model], 1.0)
    optimizer.step()
    return loss
