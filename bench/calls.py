"""Measures single calls in inference, B = 1, T = 1: what each way of calling costs, kernels included.

    python bench/calls.py                                    LSTM, GRU and RNN, I = H = 16 and 64
    python bench/calls.py --rounds 3 --json OUT.json

One thread. A figure is the least of some rounds of many calls: the machine's other work can only add to it.
The last two kinds are not plain: they are checked in Python before they run.
"""

from __future__ import annotations

import argparse
import timeit
from pathlib import Path
from typing import Any

from results import commit, markdown, write
from worker import keep_to, machine

CELLS = ("LSTM", "GRU", "RNN")
HIDDEN = (16, 64)
CALLS = (
    "layer(x)",
    "layer(x, state)",
    "cell(x_t, state_t)",
    "forward(spec, packed, x)",
    "stream.step(x_t)",
    "layer(x, lengths=lengths)",
    "layer(tensor)",
)


def names(cell: str, hidden: int) -> dict[str, Any]:
    """What the calls are made of."""
    import fastrnn
    import numpy as np
    import torch
    from fastrnn.functional import Spec, forward, pack

    layer = getattr(fastrnn, cell)(hidden, hidden, seed=0).eval()
    spec = Spec(cell.lower(), hidden, hidden)
    x = np.random.default_rng(0).standard_normal((1, 1, hidden), dtype=np.float32)
    _, state = layer(x)
    return {
        "layer": layer,
        "cell": getattr(fastrnn, f"{cell}Cell")(hidden, hidden, seed=0).eval(),
        "forward": forward,
        "spec": spec,
        "packed": pack(spec, layer.state_dict()),
        "stream": layer.stream(batch=1),
        "x": x,
        "x_t": x[0],
        "state": state,
        "state_t": tuple(part[0] for part in state) if cell == "LSTM" else state[0],
        "lengths": np.array([1]),
        "tensor": torch.from_numpy(x),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds: a line for each call, a column for each size."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(f"`{row['call']}`", []).append(f"{1e6 * row['seconds']:.2f}")
    sizes = dict.fromkeys(f"{row['cell']}, H = {row['hidden']}" for row in rows)
    return markdown(["us", *sizes], ([call, *figures] for call, figures in lines.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    head: dict[str, Any] = {"commit": commit()}
    keep_to(1)
    import fastrnn

    fastrnn.set_num_threads(1)
    head |= {"machine": machine(), "calls": args.calls, "rounds": args.rounds}
    rows = []
    for cell in CELLS:
        for hidden in HIDDEN:
            given = names(cell, hidden)
            for call in CALLS:
                rounds = timeit.repeat(call, number=args.calls, repeat=args.rounds, globals=given)
                least = min(rounds) / args.calls
                rows.append({"call": call, "cell": cell, "hidden": hidden, "seconds": float(f"{least:.4g}")})
    print(table(rows))
    if args.json:
        write(args.json, head, "calls", rows)


if __name__ == "__main__":
    main()
