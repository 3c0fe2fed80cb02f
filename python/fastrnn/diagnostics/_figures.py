"""Figures without pyplot, so that nothing is shown, kept or closed behind the caller's back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """Return an empty figure of so many inches; ImportError tells how to get matplotlib."""
    require("matplotlib", "drawing", "cli")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def figure_of(axes: Any, width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return the caller's axes and their figure, or new ones where there are none."""
    if axes is None:
        figure = new_figure(width, height)
        return figure, figure.add_subplot()
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure, axes
