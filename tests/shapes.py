"""The networks and sizes that tests run over, each named by why it is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastrnn.layouts import Spec

VARIANTS: dict[str, dict[str, Any]] = {
    "lstm": {"cell": "lstm"},
    "lstm-proj": {"cell": "lstm", "proj_size": -1},
    "lstm-diagonal": {"cell": "lstm", "peephole": "diagonal"},
    "lstm-full": {"cell": "lstm", "peephole": "full"},
    "lstm-diagonal-proj": {"cell": "lstm", "peephole": "diagonal", "proj_size": -1},
    "lstm-full-proj": {"cell": "lstm", "peephole": "full", "proj_size": -1},
    "gru": {"cell": "gru"},
    "gru-reset-before": {"cell": "gru", "reset_after": False},
    "rnn-tanh": {"cell": "rnn", "nonlinearity": "tanh"},
    "rnn-relu": {"cell": "rnn", "nonlinearity": "relu"},
    "rnn-sigmoid": {"cell": "rnn", "nonlinearity": "sigmoid"},
    "rnn-identity": {"cell": "rnn", "nonlinearity": "identity"},
}
"""Every formula a cell can take.  A proj_size of -1 stands for one a little over half of H."""


NOISE: dict[str, dict[str, Any]] = {
    "recurrent dropout": {"recurrent_dropout": 0.4},
    "zoneout of h": {"zoneout": 0.3},
    "zoneout of c": {"zoneout": (0.0, 0.3)},
    "both": {"recurrent_dropout": 0.3, "zoneout": (0.25, 0.4)},
}
"""Recurrent dropout and zoneout.  Where there is no c, a pair stands for its first number."""


def make_spec(variant: str, input_size: int, hidden_size: int, **options: Any) -> Spec:
    """Return the `Spec` of a variant; one that projects needs H > 1 and does without at H = 1."""
    if VARIANTS[variant]["cell"] != "lstm" and isinstance(options.get("zoneout"), tuple):
        options["zoneout"] = options["zoneout"][0]
    fields = VARIANTS[variant] | {"input_size": input_size, "hidden_size": hidden_size} | options
    if fields.get("proj_size") == -1:
        fields["proj_size"] = (hidden_size + 1) // 2 if hidden_size > 1 else 0
    return Spec(**fields)


LANES = {
    ("baseline", "float32"): 4,
    ("baseline", "float64"): 2,
    ("avx2", "float32"): 8,
    ("avx2", "float64"): 4,
    ("avx512", "float32"): 16,
    ("avx512", "float64"): 8,
}
"""V: elements of one vector."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one call, T, B, I, H, where H is `vectors` * V + `units`."""

    name: str
    steps: int
    batch: int
    input_size: int
    vectors: int
    units: int = 0

    def hidden_size(self, lanes: int) -> int:
        """Return H for vectors of `lanes` elements."""
        return self.vectors * lanes + self.units


# A tile is some rows of the batch times some vectors of units.  Rows per tile are at most 8 and depend
# on cell and instruction set, so that the batches below run through every remainder.
SHAPES = [
    Shape("one of everything", 1, 1, 1, 0, 1),
    Shape("one unit, several steps", 5, 3, 2, 0, 1),
    Shape("one unit short of a vector", 3, 2, 5, 1, -1),
    Shape("one vector, one row", 5, 1, 3, 1),
    Shape("one vector, input of the same width", 2, 4, 16, 1),
    Shape("one unit past a vector", 4, 5, 1, 1, 1),
    Shape("one unit past two vectors, odd rows", 5, 7, 9, 2, 1),
    Shape("a full tile of rows", 3, 8, 7, 2),
    Shape("one row past a tile", 2, 9, 33, 3, -1),
    Shape("one unit past four vectors", 2, 3, 6, 4, 1),
    Shape("one row past two tiles, one step", 1, 17, 4, 4),
    Shape("nobody in the batch", 3, 0, 4, 1, 1),
]
