"""Measures fastrnn.torch beside torch.nn, through autograd, and beside fastrnn's own layers.

    python bench/torch_adapter.py                            small calls and large ones, 1 thread
    python bench/torch_adapter.py --threads 2 --seconds 1 --json OUT.json

Small calls (T of 1 to 8, B = 1, H = 16) show what a call costs beside the kernels, in microseconds; large
ones what is left of the layers' speed. Everybody has the same weights and x and takes turns; a call is
inference without gradients, forward with a graph, or forward and backward to the weights (the bare layer's
backward makes dx too), of cells without and with a state. A figure is the median over turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from results import commit, markdown, write
from worker import keep_to, machine, thread_count

SMALL = [(cell, steps, 1, 16) for cell in ("RNN", "GRU", "LSTM") for steps in (1, 8)]
CELLS = [(f"{cell}Cell", 1, 1, 16) for cell in ("RNN", "GRU", "LSTM")]
LARGE = [
    (cell, steps, batch, hidden)
    for cell in ("RNN", "GRU", "LSTM")
    for steps, batch, hidden in ((100, 32, 128), (50, 64, 256))
]
TURNS = 15
Calls = dict[str, Callable[[], Any]]


def prepared(cell: str, steps: int, batch: int, hidden: int) -> dict[str, Calls]:
    """The calls of each kind, by who makes them."""
    import fastrnn
    import fastrnn.torch
    import torch

    theirs = getattr(torch.nn, cell)(hidden, hidden)
    mine = getattr(fastrnn.torch, cell)(hidden, hidden)
    bare = getattr(fastrnn, cell)(hidden, hidden)
    mine.load_state_dict(theirs.state_dict())
    bare.load_state_dict(theirs.state_dict())
    x = torch.randn(*(() if cell.endswith("Cell") else (steps,)), batch, hidden)
    array = x.numpy()
    first = cell == "LSTMCell" or not cell.endswith("Cell")
    dy = torch.ones_like(theirs(x)[0] if first else theirs(x))
    inputs = {"": (x,)}
    if cell.endswith("Cell"):
        h, c = torch.randn(2, *dy.shape)
        inputs[", state given"] = (x, (h, c) if first else h)
    kinds: dict[str, Calls] = {}
    for name, module in (("torch", theirs), ("adapter", mine)):
        parameters = list(module.parameters())
        for what, given in inputs.items():

            def infer(module: Any = module, given: Any = given) -> Any:
                with torch.no_grad():
                    return module(*given)

            def grow(module: Any = module, given: Any = given) -> Any:
                return module(*given)

            def train(module: Any = module, given: Any = given, parameters: Any = parameters) -> Any:
                y = module(*given)
                return torch.autograd.grad(y[0] if first else y, parameters, dy)

            for call, run in (("inference", infer), ("with a graph", grow), ("training", train)):
                kinds.setdefault(call + what, {})[name] = run
    closed = getattr(fastrnn, cell)(hidden, hidden).eval()
    closed.load_state_dict(theirs.state_dict())
    kinds["inference"]["bare"] = lambda: closed(array)
    if not cell.endswith("Cell"):
        dy_array = dy.numpy()

        def train_bare() -> Any:
            bare(array)
            return bare.backward(dy_array)

        kinds["training"]["bare"] = train_bare
    for a, e in zip(kinds["training"]["adapter"](), kinds["training"]["torch"](), strict=True):
        assert torch.allclose(a, e, rtol=1e-3, atol=1e-3 * float(e.abs().max()))
    return kinds


def measured(calls: Calls, seconds: float) -> dict[str, Any]:
    """Medians over turns: each one's time, and torch's and the bare layer's over the adapter's."""
    counts = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        for _ in range(3):
            call()
        each = (time.perf_counter() - start) / 3
        counts[name] = max(1, int(seconds / (TURNS * len(calls) * each)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            times[name].append((time.perf_counter() - start) / counts[name])
    found: dict[str, Any] = {f"{name}_s": float(f"{statistics.median(t):.4g}") for name, t in times.items()}
    for name in ("torch", "bare"):
        if name in times:
            ratios = [a / b for a, b in zip(times[name], times["adapter"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            found[name] = {"ratio": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    return found


def table(points: list[dict[str, Any]]) -> str:
    head = [
        "",
        "T",
        "B",
        "H",
        "call",
        "threads",
        "torch.nn us",
        "fastrnn.torch us",
        "x torch",
        "bare us",
        "of bare",
    ]
    lines = []
    for p in points:
        bare = [f"{1e6 * p['bare_s']:.1f}", f"{p['bare']['ratio']:.2f}"] if "bare" in p else ["", ""]
        lines.append(
            [p["cell"], p["steps"], p["batch"], p["hidden"], p["call"], p["threads"]]
            + [f"{1e6 * p[key]:.1f}" for key in ("torch_s", "adapter_s")]
            + [f"{p['torch']['ratio']:.2f}", *bare]
        )
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=thread_count, default=1)
    parser.add_argument("--seconds", type=float, default=1, help="for each row")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    label = commit()
    keep_to(args.threads)
    import fastrnn
    import torch

    torch.set_num_threads(args.threads)
    fastrnn.set_num_threads(args.threads)
    points = []
    for cell, steps, batch, hidden in [*SMALL, *CELLS, *LARGE]:
        for call, calls in prepared(cell, steps, batch, hidden).items():
            sizes = {"cell": cell, "steps": steps, "batch": batch, "hidden": hidden}
            points.append({**sizes, "call": call, "threads": args.threads, **measured(calls, args.seconds)})
    print(table(points))
    if args.json:
        head = {"commit": label, "versions": {"torch": metadata.version("torch")}, "machine": machine()}
        write(args.json, head, "torch_adapter", points)


if __name__ == "__main__":
    main()
