"""Measures a whole training step of the character model: fastrnn, and the same model in PyTorch, in turn.

    python bench/charmodel.py                                LSTM and GRU, 1 and 2 threads
    python bench/charmodel.py --cells gru --batch 32 --threads 1 --seconds 20 --json OUT.json

Tokens in; one layer, output layer, softmax cross-entropy, back-propagation, a step of Adam. PyTorch has the
forms that are fastest there: rows of an identity matrix for tokens, cross_entropy, Adam(fused=True), no
gradient of x. Both begin with the same weights, and their losses over some steps have to agree before
anything is timed. Each number of threads has a process of its own; PyTorch's time / fastrnn's is the median
over turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from by_threads import Point, run
from results import markdown

CHECKED_STEPS = 5
RATE = 1e-3
Step = Callable[[], float]


def fastrnn_step(point: Point, x: Any, targets: Any) -> tuple[Step, dict[str, Any]]:
    """A training step, and the initial parameters, under torch's names."""
    import fastrnn
    from fastrnn.training import Adam, Linear, softmax_cross_entropy

    fastrnn.set_num_threads(point["threads"])
    layer = getattr(fastrnn, point["cell"].upper())(point["symbols"], point["hidden"], seed=0)
    readout = Linear(point["hidden"], point["symbols"], seed=1)
    optimizer = Adam([layer, readout], RATE)

    def step() -> float:
        y, _ = layer(x)
        loss, do = softmax_cross_entropy(readout(y), targets)
        optimizer.zero_grad()
        layer.backward(readout.backward(do))
        optimizer.step()
        return loss

    parts = {"layer": layer, "readout": readout}
    return step, {f"{k}.{name}": p.copy() for k, part in parts.items() for name, p in part.parameters.items()}


def torch_step(point: Point, x: Any, targets: Any, weights: dict[str, Any]) -> Step:
    import torch

    torch.set_num_threads(point["threads"])
    symbols, hidden = point["symbols"], point["hidden"]
    layer = getattr(torch.nn, point["cell"].upper())(symbols, hidden)
    readout = torch.nn.Linear(hidden, symbols)
    model = torch.nn.ModuleDict({"layer": layer, "readout": readout})
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    one_hot, tokens, classes = torch.eye(symbols), torch.from_numpy(x), torch.from_numpy(targets).ravel()

    def step() -> float:
        y, _ = layer(torch.nn.functional.embedding(tokens, one_hot))
        loss = torch.nn.functional.cross_entropy(readout(y).reshape(-1, symbols), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def measured(point: Point, threads: int, seconds: float) -> Point:
    """The point with its times, or with why there are none."""
    import numpy as np
    from measure import WARM, rounded, settle, spread

    point = point | {"threads": threads}
    rng = np.random.default_rng(1)
    x, targets = rng.integers(point["symbols"], size=(2, point["steps"], point["batch"]))
    own, weights = fastrnn_step(point, x, targets)
    steps = {"fastrnn": own, "torch": torch_step(point, x, targets, weights)}
    for _ in range(CHECKED_STEPS):
        losses = [step() for step in steps.values()]
        if not math.isclose(*losses, rel_tol=1e-4):
            return point | {"failed": f"the losses disagree: {losses}"}
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["torch"]) < 3:
        for name, step in steps.items():
            settle()
            until = time.perf_counter() + WARM[threads > 1]
            while True:  # one step at least is not timed
                step()
                if time.perf_counter() >= until:
                    break
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["torch"], times["fastrnn"], strict=True)]
    return point | {
        "turns": len(ratios),
        **{f"{name}_s": rounded(statistics.median(values)) for name, values in times.items()},
        "ratio": rounded(statistics.median(ratios)),
        "ratio_quartiles": [rounded(value) for value in spread(ratios)],
    }


def table(points: list[Point]) -> str:
    head = ["", "T", "B", "H", "V", "threads", "fastrnn ms", "torch ms", "x torch", "quartiles"]
    lines = []
    for p in points:
        sizes = [p["cell"].upper(), p["steps"], p["batch"], p["hidden"], p["symbols"], p["threads"]]
        if "failed" in p:
            lines.append([*sizes, p["failed"], "", "", ""])
            continue
        low, high = p["ratio_quartiles"]
        figures = [f"{1000 * p[key]:.2f}" for key in ("fastrnn_s", "torch_s")]
        lines.append([*sizes, *figures, f"{p['ratio']:.2f}", f"{low:.2f}-{high:.2f}"])
    return markdown(head, lines)


def points(args: argparse.Namespace) -> list[Point]:
    sizes = {name: getattr(args, name) for name in ("steps", "hidden", "symbols")}
    return [{"cell": cell, "batch": batch, **sizes} for cell in args.cells for batch in args.batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["lstm", "gru"], choices=["lstm", "gru"])
    parser.add_argument("--batch", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--symbols", type=int, default=96)
    run(__file__, parser, points, measured, table)


if __name__ == "__main__":
    main()
