"""What a recurrent network looks like from outside: options, parameter names, shapes, orders.

Everything that must agree between the layers, the functional form, the reference and the compiled
kernels about *which* arrays there are stands here, once.  Letters: T steps, B batch, I input size,
H hidden size, P projection size, R recurrent size (P if there is a projection, else H), G gates,
L layers, D directions.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import numpy as np

Cell = Literal["lstm", "gru", "rnn"]
DType = Literal["float32", "float64", "float16", "bfloat16"]
Peephole = Literal["none", "diagonal", "full"]
Nonlinearity = Literal["tanh", "relu", "sigmoid", "identity"]

GATES: dict[str, tuple[str, ...]] = {
    "lstm": ("i", "f", "g", "o"),
    "gru": ("r", "z", "n"),
    "rnn": ("h",),
}
"""Gate order of the rows of every weight and bias, the one of torch.nn."""

LARGEST_SIZE = 2**31 - 1
"""Of any single size; products of sizes, which offsets are, may go far beyond."""

MOST_ELEMENTS = 2**60 - 1
"""Of one array, so that its bytes can be counted in 63 bits."""

DTYPES: tuple[DType, ...] = ("float32", "float64")
DEVICE_DTYPES: tuple[DType, ...] = (*DTYPES, "float16", "bfloat16")
"""Of weights and sequences: on the CPU, and on a CUDA device."""
NONLINEARITIES: tuple[Nonlinearity, ...] = ("tanh", "relu", "sigmoid", "identity")
PEEPHOLES: tuple[Peephole, ...] = ("none", "diagonal", "full")


def integer(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return `value` as a plain int of at least `least` (and at most `most`); bool is not an integer here."""
    try:
        number = operator.index(value) if isinstance(value, SupportsIndex) else None
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected an integer")
    if number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if number < least else f"of at most {most}"
        raise ValueError(f"{name} is {number}; expected an integer {bounds}")
    return number


def boolean(name: str, value: object) -> bool:
    """Return `value` as a plain bool; 0 and 1 are refused, since they are usually a misplaced argument."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected True or False")
    return bool(value)


def _probability(name: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected a number from 0 to 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a probability from 0 to 1")
    return float(value)


def _zoneout(value: Any) -> float | tuple[float, float]:
    if not isinstance(value, tuple | list):
        return _probability("zoneout", value)
    if len(value) != 2:
        raise ValueError(f"zoneout has {len(value)} entries; expected one number, or the pair for (h, c)")
    return _probability("zoneout[0] (h)", value[0]), _probability("zoneout[1] (c)", value[1])


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise TypeError or ValueError for something other than one of these strings."""
    expected = ", ".join(repr(choice) for choice in choices)
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected one of {expected}")
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {expected}")


def checked_dtype(value: Any) -> DType:
    """Name of a dtype given as a string, a NumPy dtype or a NumPy scalar type."""
    if isinstance(value, str) and value == "bfloat16":  # which NumPy does not have
        return "bfloat16"
    try:
        name = "" if value is None else str(np.dtype(value))  # np.dtype(None) would be float64
    except TypeError:
        name = ""
    for known in DEVICE_DTYPES:
        if name == known:
            return known
    raise TypeError(
        f"dtype is {value!r}; expected 'float32' or 'float64', with CUDA also 'float16' or 'bfloat16'"
    )


@dataclass(frozen=True)
class Spec:
    """Shape and options of a stack of recurrent layers.  Holds no arrays.

    The constructor checks every field (`TypeError` or `ValueError` naming it), so code that is
    handed a `Spec` may trust it.

    Examples
    --------
    >>> from fastrnn.layouts import Spec
    >>> spec = Spec("gru", input_size=3, hidden_size=5)
    >>> spec.parameter_shapes()["weight_hh_l0"]
    (15, 5)
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    peephole: Peephole = "none"
    reset_after: bool = True
    nonlinearity: Nonlinearity = "tanh"
    dtype: DType = "float32"
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, float] = 0.0

    def __post_init__(self) -> None:
        # Fields of one kind each; NumPy integers, floats and dtypes become plain Python values.
        one_of("cell", self.cell, tuple(GATES))
        for name, least in (("input_size", 1), ("hidden_size", 1), ("num_layers", 1), ("proj_size", 0)):
            self._set(name, integer(name, getattr(self, name), least, LARGEST_SIZE))
        for name in ("bias", "bidirectional", "reset_after"):
            self._set(name, boolean(name, getattr(self, name)))
        for name in ("dropout", "recurrent_dropout"):
            self._set(name, _probability(name, getattr(self, name)))
        self._set("zoneout", _zoneout(self.zoneout))
        one_of("peephole", self.peephole, PEEPHOLES)
        one_of("nonlinearity", self.nonlinearity, NONLINEARITIES)
        self._set("dtype", checked_dtype(self.dtype))
        widest = max(self.input_size, self.hidden_size * self.num_directions)
        if self.num_gates * self.hidden_size * widest > MOST_ELEMENTS:
            raise ValueError(
                f"input_size is {self.input_size} and hidden_size is {self.hidden_size}; expected weights of "
                f"at most {MOST_ELEMENTS} elements"
            )

        # Options that only one cell has.
        if self.proj_size and self.cell != "lstm":
            raise ValueError(f"proj_size is {self.proj_size} for cell {self.cell!r}; only 'lstm' has one")
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size is {self.proj_size}; expected less than hidden_size = {self.hidden_size}"
            )
        if self.peephole != "none" and self.cell != "lstm":
            raise ValueError(f"peephole is {self.peephole!r} for cell {self.cell!r}; only 'lstm' has it")
        if not self.reset_after and self.cell != "gru":
            raise ValueError(f"reset_after is False for cell {self.cell!r}; only 'gru' has that choice")
        if self.nonlinearity != "tanh" and self.cell != "rnn":
            raise ValueError(
                f"nonlinearity is {self.nonlinearity!r} for cell {self.cell!r}; only 'rnn' has that choice"
            )
        if isinstance(self.zoneout, tuple) and self.cell != "lstm":
            raise ValueError(f"zoneout is {self.zoneout} for cell {self.cell!r}; expected one number, for h")
        if self.cell == "lstm":  # one spelling of each, so that equal layers have equal Specs
            self._set("zoneout", self.zoneout_of if any(self.zoneout_of) else 0.0)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def zoneout_of(self) -> tuple[float, ...]:
        """Probability for each state array, h or, for LSTM, (h, c): a single number is that of h."""
        both = self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout, 0.0)
        return both if self.cell == "lstm" else both[:1]

    @property
    def has_state_noise(self) -> bool:
        """Whether training differs from inference inside the layers: recurrent dropout, zoneout."""
        return self.recurrent_dropout > 0 or any(self.zoneout_of)

    @property
    def num_gates(self) -> int:
        """G: gates per hidden unit."""
        return len(GATES[self.cell])

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def recurrent_size(self) -> int:
        """R: width of one direction's h; the projection size if there is one, else H."""
        return self.proj_size or self.hidden_size

    @property
    def output_size(self) -> int:
        """Width of y: D * R."""
        return self.num_directions * self.recurrent_size

    def layer_input_size(self, layer: int) -> int:
        """Width of the input of one layer of the stack: I for layer 0, else D * R."""
        return self.input_size if layer == 0 else self.output_size

    def suffixes(self) -> list[str]:
        """Parameter-name suffixes (``_l0``, ``_l0_reverse``, ...) in state order (layer, direction)."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{d}" for layer in range(self.num_layers) for d in directions]

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every parameter, in the one order used throughout.

        Per (layer, direction): weight_ih (G*H, I), weight_hh (G*H, R), bias_ih and bias_hh (G*H,),
        weight_hr (P, H), weight_ch: (3*H,) diagonal or (3*H, H) full, gates in the order i, f, o.
        """
        rows = self.num_gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for index, suffix in enumerate(self.suffixes()):
            layer = index // self.num_directions
            shapes["weight_ih" + suffix] = (rows, self.layer_input_size(layer))
            shapes["weight_hh" + suffix] = (rows, self.recurrent_size)
            if self.bias:
                shapes["bias_ih" + suffix] = (rows,)
                shapes["bias_hh" + suffix] = (rows,)
            if self.proj_size:
                shapes["weight_hr" + suffix] = (self.proj_size, self.hidden_size)
            if self.peephole == "diagonal":
                shapes["weight_ch" + suffix] = (3 * self.hidden_size,)
            elif self.peephole == "full":
                shapes["weight_ch" + suffix] = (3 * self.hidden_size, self.hidden_size)
        return shapes

    def state_shapes(self, batch: int) -> tuple[tuple[int, int, int], ...]:
        """Shapes of the state arrays: (h,) or, for LSTM, (h, c); each (L*D, B, R or H)."""
        n, H = self.num_layers * self.num_directions, self.hidden_size
        h = (n, batch, self.proj_size or H)
        return (h, (n, batch, H)) if self.cell == "lstm" else (h,)
