"""What quantised weights cost trained models: bits per character, beside those of float64.

Takes folders that `python -m fastrnn train` wrote.  The speed is measured by run.py, with --rounded.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from fastrnn import corpus
from fastrnn.charmodel import CELLS, CharacterModel, chunks, stream_count
from results import commit, markdown, write
from worker import machine


def bits(layer: Any, model: CharacterModel, tokens: np.ndarray) -> tuple[float, np.ndarray]:
    """Bits per character, all but the layer in float64, and y of the first chunk."""
    weight, bias = (np.asarray(array, np.float64) for array in model.output.parameters.values())
    total, count, state, first = 0.0, 0, None, None
    for x, targets in chunks(tokens, stream_count(tokens, 32, 256), 256):
        y, state = layer(x, state)
        first = y if first is None else first
        logits = y @ weight.T + bias
        logits -= logits.max(axis=-1, keepdims=True)
        likely = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        total += float((np.log(np.exp(logits).sum(axis=-1)) - likely).sum())
        count += x.size
    assert first is not None
    return total / count / math.log(2), first


def measured(folder: Path, text: str) -> list[dict[str, Any]]:
    """A row for each type of weights of the model in a folder, float64 first."""
    model = CharacterModel.load(folder / "model.safetensors")
    tokens = model.vocabulary.encode(text)
    layer = model.layer.eval()
    exact = CELLS[model.cell](layer.input_size, layer.hidden_size, layer.num_layers, dtype="float64")
    exact.load_state_dict(layer.state_dict())
    expected, y_exact = bits(exact.eval(), model, tokens)
    what = {"cell": model.cell, "hidden": layer.hidden_size, "characters": len(tokens)}
    rows = [what | {"weights": "float64", "bits": expected}]
    for dtype in ("float32", "bfloat16", "int8"):
        found, y = bits(layer.quantize(dtype), model, tokens)
        error = np.abs(y - y_exact)
        errors = {"error_mean": float(error.mean()), "error_largest": float(error.max())}
        rows.append(what | {"weights": dtype, "bits": found, "more": found - expected} | errors)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        line = [f"{row['cell'].upper()} {row['hidden']}", row["weights"], f"{row['bits']:.5f}"]
        if "more" in row:
            line += [f"{row['more']:+.5f}", f"{row['error_mean']:.1e}", f"{row['error_largest']:.1e}"]
        lines.append([*line, *[""] * (6 - len(line))])
    head = ["", "weights", "bits per character", "more than float64", "error of h, mean", "largest"]
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="folders of trained character models")
    parser.add_argument("--characters", type=int, default=200_000, help="held out, that they are tried on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    head = {"commit": commit(), "machine": machine()}
    fastrnn.set_num_threads(args.threads)
    text = corpus.standard_library().held_out[: args.characters]
    rows = [row for folder in args.models for row in measured(folder, text)]
    print(table(rows))
    if args.json:
        write(args.json, head, "quantized", rows)


if __name__ == "__main__":
    main()
