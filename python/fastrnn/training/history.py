"""What happened in a training: curves, log file, picture."""

from __future__ import annotations

import csv
import json
import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .._extras import require
from .._files import AnyPath

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("step", "epoch", "positions", "loss", "learning_rate", "gradient_norm", "evaluation")
SUFFIXES = (".csv", ".json", ".jsonl")


@dataclass
class History:
    """The course of a training, as `fit` returns it; steps are updates of the parameters.

    Examples
    --------
    >>> from fastrnn.training import History
    >>> history = History(losses=[1.5, 1.25], evaluations=[(0, 1.75), (2, 1.0)])
    >>> history.best, history.recent()
    ((2, 1.0), 1.375)
    """

    losses: list[float] = field(default_factory=list)
    """Of each update: the mean over what was accumulated for it."""
    learning_rates: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    """Of all gradients together, before clipping by it."""
    epochs: list[int] = field(default_factory=list)
    """The epoch, from 1, of each update."""
    positions: list[int] = field(default_factory=list)
    """How many positions (symbols, steps of a row) the losses up to each update have scored."""
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    """Updates made, and the loss of the evaluation then."""
    ending: str = ""
    """Why it ended: "epochs", "steps", "limit", "early stop", "callback" or "interrupted"."""
    seconds: float = 0.0
    """Spent on training batches and callbacks; evaluations and files not counted."""

    @property
    def steps(self) -> int:
        """Updates made."""
        return len(self.losses)

    @property
    def best(self) -> tuple[int, float]:
        """The evaluation with the least loss, the first of equals; ValueError if there was none."""
        return min(self.evaluations, key=lambda point: point[1])

    def recent(self, steps: int = 50) -> float:
        """Mean loss of the last updates."""
        return float(np.mean(self.losses[-steps:]))

    def row(self, step: int) -> dict[str, Any] | None:
        """Line of a log for one step; step 0 has one if there was an evaluation before training."""
        index = bisect_left(self.evaluations, step, key=lambda point: point[0])
        evaluated = self.evaluations[index : index + 1]
        evaluation = evaluated[0][1] if evaluated and evaluated[0][0] == step else None
        if step == 0:
            return (
                None if evaluation is None else dict.fromkeys(COLUMNS) | {"step": 0, "evaluation": evaluation}
            )
        curves = (self.epochs, self.positions, self.losses, self.learning_rates, self.gradient_norms)
        return dict(zip(COLUMNS, (step, *(curve[step - 1] for curve in curves), evaluation), strict=True))

    def save(self, path: AnyPath) -> None:
        """Write a row for each step: .csv, .json (a list) or .jsonl (an object a line).

        Raises
        ------
        ValueError
            The path ends in something else.
        """
        with Log(path, self):
            pass

    def draw(
        self,
        *,
        unit: float = 1.0,
        over_positions: bool = False,
        xlabel: str | None = None,
        ylabel: str = "loss",
        title: str = "Training",
    ) -> Figure:
        """Draw the losses of training, averaged over up to 200 stretches, and of the evaluations.

        Parameters
        ----------
        unit
            One on the vertical axis in units of the loss: log(2) for bits in place of nats.
        over_positions
            The horizontal axis has millions of positions in place of steps.
        xlabel, ylabel, title
            Of the axes.

        Returns
        -------
        matplotlib.figure.Figure
            ``savefig(path)`` writes it.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        require("matplotlib", "a plot", "cli")
        from matplotlib.figure import Figure

        at = np.concatenate([[0.0], np.array(self.positions) / 1e6]) if over_positions else None
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        width = max(1, self.steps // 200)
        steps, losses = np.arange(1, self.steps + 1), np.array(self.losses)
        parts = [slice(i, i + width) for i in range(0, self.steps, width)]
        curves = [("training", "-", [(steps[part].mean(), losses[part].mean()) for part in parts])]
        if self.evaluations:
            curves.append(("evaluation", "o-", [(float(step), loss) for step, loss in self.evaluations]))
        for label, style, points in curves:
            x, y = np.array(points).reshape(-1, 2).T
            if at is not None:
                x = np.interp(x, np.arange(len(at)), at)
            axes.plot(x, y / unit, style, label=label, markersize=4)
        axes.set(
            xlabel=xlabel or ("positions (millions)" if over_positions else "step"),
            ylabel=ylabel,
            title=title,
        )
        axes.grid(alpha=0.3)
        axes.legend()
        return figure


class Log:
    """A file of the rows of a history, which grows with it.

    At the end the last row is written again, with the evaluation that came after it: not into a pipe.
    """

    def __init__(self, path: AnyPath, history: History) -> None:
        self._path = checked_log_path(path)
        self._history = history
        self._written = 0  # steps, of which 0 is one too
        self._file: IO[str] = self._path.open("w", newline="", encoding="utf-8")
        self._csv = csv.DictWriter(self._file, COLUMNS) if self._path.suffix == ".csv" else None
        if self._csv is not None:
            self._csv.writeheader()
        self._last_row: tuple[int, int] | None = None  # its step, and where it begins, if one can go back
        self._begin_row(0)

    def catch_up(self) -> None:
        """Write the rows that have come since; .json is written at the end."""
        if self._path.suffix == ".json":
            return
        for row in self._rows():
            self._begin_row(row["step"])
            if self._csv is not None:
                self._csv.writerow(row)
            else:
                self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _begin_row(self, step: int) -> None:
        if self._file.seekable():
            self._last_row = step, self._file.tell()

    def _rows(self) -> Iterable[dict[str, Any]]:
        start, self._written = self._written, self._history.steps + 1
        rows = (self._history.row(step) for step in range(start, self._written))
        return [row for row in rows if row is not None]

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            if self._path.suffix == ".json":
                json.dump(list(self._rows()), self._file, indent=1)
            else:
                if self._last_row is not None:
                    self._written, place = self._last_row  # which may have been evaluated since
                    self._file.seek(place)
                    self._file.truncate()
                self.catch_up()


def check_picture_path(path: AnyPath) -> None:
    """Raise ValueError for a kind of picture that matplotlib does not write; without a suffix it is a PNG."""
    from matplotlib.backend_bases import FigureCanvasBase

    suffix = Path(os.fsdecode(path)).suffix[1:].lower()
    kinds = FigureCanvasBase.get_supported_filetypes()
    if suffix and suffix not in kinds:
        expected = ", ".join(f".{kind}" for kind in kinds)
        raise ValueError(f"plot is {os.fsdecode(path)!r}; expected a path that ends in {expected}")


def checked_log_path(path: AnyPath) -> Path:
    """Return where a log goes; ValueError for a kind of file that there is not."""
    checked = Path(os.fsdecode(path))
    if checked.suffix not in SUFFIXES:
        raise ValueError(f"log is {str(checked)!r}; expected a path that ends in {', '.join(SUFFIXES)}")
    return checked
