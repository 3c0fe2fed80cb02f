"""Measures one step of each optimizer, by each instruction set, beside torch.optim, in turn.

    python bench/optimizers.py                                      1 and 2 threads
    python bench/optimizers.py --threads 1 --seconds 2 --json OUT.json

The parameters are those of the character model's LSTM (charmodel.py). PyTorch has the form that is fastest
there: fused=True, and for RMSprop, which has no such form, foreach=True. All begin with the same numbers, and
have to agree on the parameters after some steps before anything is timed. Each number of threads has a
process of its own. Steps follow each other, so most of what they read is in the caches. Figures are medians
over turns.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from by_threads import Point, run
from results import markdown

SYMBOLS, HIDDEN = 96, 256
CHECKED_STEPS = 5
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    # our name: what both are given, and what torch.optim's is given more
    "SGD": {"both": {"momentum": 0.9}, "torch": {"fused": True}},
    "AdaGrad": {"both": {}, "torch": {"fused": True}},
    "RMSprop": {"both": {}, "torch": {"foreach": True}},
    "Adam": {"both": {}, "torch": {"fused": True}},
}
RATE = 1e-3


def modules() -> tuple[list[Any], dict[str, Any]]:
    """Layer and readout with gradients, and all their arrays by name."""
    import fastrnn
    import numpy as np
    from fastrnn.training import Linear

    rng = np.random.default_rng(0)
    parts = [fastrnn.LSTM(SYMBOLS, HIDDEN, seed=0), Linear(HIDDEN, SYMBOLS, seed=1)]
    for part in parts:
        for gradient in part.gradients.values():
            gradient[...] = rng.standard_normal(gradient.shape)
    return parts, {f"{i}.{k}": p for i, part in enumerate(parts) for k, p in part.parameters.items()}


def torch_step(name: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A step, and the parameters that it changes, which are the arrays of modules of its own."""
    import torch

    parts, named = modules()
    tensors = [torch.from_numpy(array) for array in named.values()]
    gradients = [gradient for part in parts for gradient in part.gradients.values()]
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = torch.from_numpy(gradient)
    optimizer = getattr(torch.optim, {"AdaGrad": "Adagrad"}.get(name, name))
    return optimizer(tensors, RATE, **OPTIONS[name]["both"], **OPTIONS[name]["torch"]).step, named


def measured(point: Point, threads: int, seconds: float) -> Point:
    """The point with everybody's times; RuntimeError if somebody computes something else."""
    import fastrnn
    import torch
    from fastrnn import _core, training
    from measure import LIMITS, WARM, check_equal, measure, rounded, spread
    from peers import OnHost

    class By(OnHost):
        """Runs with one of our instruction sets."""

        def __init__(self, isa: str) -> None:
            self.isa = isa

        def seconds(self, run: Callable[[], Any], repeat: int) -> float:
            _core.set_isa(self.isa)
            return super().seconds(run, repeat)

    fastrnn.set_num_threads(threads)
    torch.set_num_threads(threads)
    name = point["optimizer"]
    step, expected = torch_step(name)
    runs: dict[str, Any] = {"torch": (OnHost(), step)}
    OnHost().seconds(step, CHECKED_STEPS)
    widest, *others = reversed(_core.available_isas())
    for isa in (widest, *others):
        parts, named = modules()
        runs[isa] = By(isa), getattr(training, name)(parts, RATE, **OPTIONS[name]["both"]).step
        By(isa).seconds(runs[isa][1], CHECKED_STEPS)
        check_equal((isa, "torch"), named, expected, LIMITS["float32"])
    row = point | {"threads": threads, "parameters": sum(array.size for array in expected.values())}
    row |= {"failed": {}, "unsettled": {}}
    times, _ = measure(runs, seconds, {}, WARM[threads > 1], row)
    ratios = [a / b for a, b in zip(times["torch"], times[widest], strict=True)]
    return row | {
        "seconds": {who: rounded(statistics.median(values)) for who, values in times.items()},
        "turns": len(ratios),
        "ratio": rounded(statistics.median(ratios)),
        "ratio_quartiles": [rounded(value) for value in spread(ratios)],
    }


def table(rows: list[Point]) -> str:
    isas = [who for who in rows[0]["seconds"] if who != "torch"]
    head = ["", "threads", *(f"{isa} us" for isa in isas), "torch us", f"torch / {isas[0]}", "quartiles"]
    lines = []
    for row in rows:
        figures = [f"{1e6 * row['seconds'][who]:.0f}" for who in (*isas, "torch")]
        low, high = row["ratio_quartiles"]
        lines.append(
            [row["optimizer"], row["threads"], *figures, f"{row['ratio']:.2f}", f"{low:.2f}-{high:.2f}"]
        )
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    run(__file__, parser, lambda args: [{"optimizer": name} for name in OPTIONS], measured, table)


if __name__ == "__main__":
    main()
