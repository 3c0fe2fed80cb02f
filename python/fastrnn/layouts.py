"""What a recurrent network looks like from outside: options, parameter names, shapes, orders.

Everything that must agree between the layers, the functional form, the reference and the compiled
kernels about *which* arrays there are stands here, once.  Letters: T steps, B batch, I input size,
H hidden size, P projection size, R recurrent size (P if there is a projection, else H), G gates,
L layers, D directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cell = Literal["lstm", "gru", "rnn"]
DType = Literal["float32", "float64"]
Peephole = Literal["none", "diagonal", "full"]
Nonlinearity = Literal["tanh", "relu", "sigmoid", "identity"]

GATES: dict[str, tuple[str, ...]] = {
    "lstm": ("i", "f", "g", "o"),
    "gru": ("r", "z", "n"),
    "rnn": ("h",),
}
"""Gate order of the rows of every weight and bias, the one of torch.nn."""

DTYPES: tuple[DType, ...] = ("float32", "float64")
NONLINEARITIES: tuple[Nonlinearity, ...] = ("tanh", "relu", "sigmoid", "identity")
PEEPHOLES: tuple[Peephole, ...] = ("none", "diagonal", "full")


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
        n = self.num_layers * self.num_directions
        h = (n, batch, self.recurrent_size)
        return (h, (n, batch, self.hidden_size)) if self.cell == "lstm" else (h,)
