"""What is measured: sizes, and the work each of them is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
PASSES = ("forward", "training")
DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # bytes


@dataclass(frozen=True)
class Workload:
    """One layer of one size, run forward (inference) or forward and backward (training)."""

    cell: str
    run: str  # one of PASSES
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"  # one of DTYPES

    @property
    def flop(self) -> float:
        """Multiplications and additions of the products; backward counts as two forwards."""
        directions = 2 if self.bidirectional else 1
        total = 0.0
        for layer in range(self.num_layers):
            inputs = self.input_size if layer == 0 else directions * self.hidden_size
            total += directions * 2.0 * GATES[self.cell] * self.hidden_size * (inputs + self.hidden_size)
        return total * self.steps * self.batch * (3 if self.run == "training" else 1)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        return self.steps, self.batch, self.hidden_size * (2 if self.bidirectional else 1)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype]

    def __str__(self) -> str:
        extra = f" L{self.num_layers}" * (self.num_layers > 1) + " bi" * self.bidirectional
        extra += f" {self.dtype}" * (self.dtype != "float32")
        size = f"T{self.steps} B{self.batch} I{self.input_size} H{self.hidden_size}"
        return f"{self.cell.upper():4} {self.run:8} {size}{extra}"

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def floor() -> list[Workload]:
    """The sizes that a release must not be slow at, T = 100."""
    sizes = [
        ("lstm", "forward", 64, 256),
        ("gru", "forward", 64, 256),
        ("rnn", "forward", 64, 256),
        ("lstm", "forward", 1, 64),
        ("gru", "training", 1, 64),
        ("lstm", "training", 64, 256),
    ]
    return [Workload(cell, run, 100, batch, hidden, hidden) for cell, run, batch, hidden in sizes]


def grid(
    cells: list[str],
    runs: list[str],
    dtypes: list[str],
    steps: list[int],
    batches: list[int],
    hidden: list[int],
) -> list[Workload]:
    """Every combination, with I = H: all that is asked of one size before the next."""
    return [
        Workload(cell, run, T, B, H, H, dtype=dtype)
        for T in steps
        for H in hidden
        for B in batches
        for cell in cells
        for run in runs
        for dtype in dtypes
    ]
