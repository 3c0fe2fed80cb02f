"""What single hidden units do while a text is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import INTEGERS
from ..layouts import integer
from ..models._model import State
from ._figures import figure_of
from ._measuring import Numbers, check_time_major, name_states, step_by_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW}"}
"""What stands for symbols that leave no mark."""


@dataclass(frozen=True)
class HiddenPicture:
    """What `hidden_picture` found."""

    states: Mapping[str, Numbers]
    """State ("h_l0", "c_l0", ...; see `gradient_reach`) to (T, H): its units after every symbol."""
    symbols: tuple[str, ...]
    """(T,): what was read."""

    def liveliest(self, name: str, count: int) -> list[int]:
        """Return the units of one state that vary most over the text, in falling order."""
        return [int(unit) for unit in np.argsort(-self._values(name).std(axis=0), kind="stable")[:count]]

    def draw(
        self,
        axes: Any = None,
        *,
        name: str | None = None,
        units: Sequence[int] | None = None,
        columns: int = 72,
    ) -> Figure:
        """Draw the text once for each unit, each symbol on the colour of its value; needs matplotlib.

        Parameters
        ----------
        axes
            To draw on; None makes a figure of the right size.
        name
            Which state; the last layer's h if None, or the first of those that a model makes itself.
        units
            Which units; the four liveliest if None.
        columns
            Symbols in a line at most; a line break ends a line too.

        Raises
        ------
        ValueError
            There is no such state or unit.
        """
        if name is None:
            of_layers = [known for known in self.states if known.rpartition(".")[2].startswith("h_")]
            name = of_layers[-1] if of_layers else next(iter(self.states))
        values = self._values(name)
        units = self.liveliest(name, 4) if units is None else list(units)
        if not units:
            raise ValueError("units is empty; expected at least one unit")
        columns = integer("columns", columns, 1)
        chosen = [integer("units", unit, 0, values.shape[1] - 1) for unit in units]
        rows, places = _wrapped(self.symbols, columns)
        # No wider than the text, but with room for the title.
        columns = min(columns, max(30, 1 + max(column for _, column in places)))
        height = (rows + 1) * len(chosen) - 1
        figure, axes = figure_of(axes, 0.7 + 0.105 * columns, 0.9 + 0.19 * height)
        picture = np.full((height, columns), np.nan)
        for i, unit in enumerate(chosen):
            for (row, column), symbol, value in zip(places, self.symbols, values[:, unit], strict=True):
                row += i * (rows + 1)
                picture[row, column] = value
                axes.text(
                    column,
                    row,
                    SHOWN.get(symbol, symbol),
                    ha="center",
                    va="center",
                    family="monospace",
                    fontsize=7.5,
                    parse_math=False,
                )
        largest = float(np.abs(values[:, chosen]).max()) or 1.0
        image = axes.imshow(picture, cmap="RdBu_r", vmin=-largest, vmax=largest, alpha=0.65, aspect="auto")
        figure.colorbar(image, ax=axes, label=name, pad=0.01, shrink=min(1.0, 2.5 / figure.get_figheight()))
        middles = [i * (rows + 1) + (rows - 1) / 2 for i in range(len(chosen))]
        axes.set_yticks(middles, [f"unit {unit}" for unit in chosen])
        axes.set_xticks([])
        axes.set_title("Hidden units after every symbol")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return figure

    def _values(self, name: str) -> Numbers:
        if name not in self.states:
            raise ValueError(f"name is {name!r}; expected one of {', '.join(self.states)}")
        return self.states[name]


def hidden_picture(
    model: Any, text: Any, symbols: Sequence[str] | None = None, *, state: State = None
) -> HiddenPicture:
    """Read a text and keep every hidden unit's value after every symbol.

    Some units of a trained model follow something that can be named, such as the place in a line or being
    inside quotes (Karpathy, Johnson & Fei-Fei, "Visualizing and understanding recurrent networks", 2015,
    section 4.2).

    Parameters
    ----------
    model
        A layer or a model with a state, of one direction, time-major; or a
        `fastrnn.charmodel.CharacterModel`.
    text
        Tokens (T,), or vectors (T, I); a string where the model has a vocabulary.
    symbols
        T strings to show; the string's characters, or the tokens' numbers if None.
    state
        Initial state, of one row.

    Returns
    -------
    HiddenPicture

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above.

    Examples
    --------
    >>> from fastrnn.charmodel import CharacterModel, Vocabulary
    >>> from fastrnn.diagnostics import hidden_picture
    >>> model = CharacterModel(Vocabulary("abc"), hidden_size=8, seed=0)
    >>> picture = hidden_picture(model, "abcab")
    >>> {name: values.shape for name, values in picture.states.items()}, picture.symbols
    ({'h_l0': (5, 8), 'c_l0': (5, 8)}, ('a', 'b', 'c', 'a', 'b'))
    """
    vocabulary = getattr(model, "vocabulary", None)
    if not hasattr(model, "backward"):
        model = getattr(model, "layer", model)
    check_time_major(model)
    if isinstance(text, str):
        if vocabulary is None:
            raise TypeError("text is a string, and the model has no vocabulary; expected tokens (T,)")
        symbols, text = list(text) if symbols is None else symbols, vocabulary.encode(text)
    x = np.asarray(text)
    if x.ndim != (1 if x.dtype.kind in INTEGERS else 2) or len(x) == 0:
        raise ValueError(
            f"text has shape {x.shape}; expected (T,) of tokens, or (T, I) of vectors, with T of at least 1"
        )
    symbols = [str(token) for token in x] if symbols is None and x.ndim == 1 else symbols
    symbols = [""] * len(x) if symbols is None else list(symbols)
    if len(symbols) != len(x):
        raise ValueError(f"symbols are {len(symbols)}; expected {len(x)}, one for each step")
    leaving, _ = step_by_step(model, x[:, None], state)
    steps = [dict(name_states(model, state_n)) for state_n in leaving]
    if not steps[0]:
        raise ValueError(f"model is {model!r}, which has no state; expected a recurrent one")
    states = {name: np.stack([step[name][0] for step in steps]).astype(np.float64) for name in steps[0]}
    return HiddenPicture(states, tuple(symbols))


def _wrapped(symbols: Sequence[str], columns: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of lines, and line and column of every symbol."""
    places, row, column = [], 0, 0
    for before, _ in zip(["", *symbols], symbols, strict=False):
        if column == columns or before == "\n":
            row, column = row + 1, 0
        places.append((row, column))
        column += 1
    return row + 1, places
