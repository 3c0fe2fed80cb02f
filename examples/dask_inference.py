"""Runs a trained layer over a data set larger than memory, on several machines: Dask's distributed scheduler.

    python examples/dask_inference.py                        a cluster of two processes on this machine
    python examples/dask_inference.py --scheduler HOST:8786 --folder SHARED
                                                             workers elsewhere, which see the same folder

The data set is a folder of .npy files, each a piece of the sequences (T, B, I). A worker maps one file at a
time, runs the layer over some rows after the other, and writes the last hidden states beside it: neither the
scheduler nor any worker ever holds the data set, and what travels is the weights, once, and file names.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
from distributed import Client, LocalCluster

STEPS, ROWS, INPUT, HIDDEN = 50, 200, 8, 32
ROWS_AT_ONCE = 64


def write_data(folder: Path, pieces: int) -> list[Path]:
    """Make up a data set, one piece at a time."""
    files = [folder / f"piece{number}.npy" for number in range(pieces)]
    for number, file in enumerate(files):
        np.save(file, np.random.default_rng(number).normal(size=(STEPS, ROWS, INPUT)).astype(np.float32))
    return files


def embed(layer: Any, file: Path) -> Path:
    """Write the last hidden state of every row of one file; runs on a worker."""
    fastrnn.set_num_threads(1)  # Dask runs a task on each core
    x = np.load(file, mmap_mode="r")
    last = np.empty((x.shape[1], HIDDEN), np.float32)
    for first in range(0, x.shape[1], ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        _, h_n = layer(np.ascontiguousarray(x[:, rows]))
        last[rows] = h_n[-1]
    out = file.with_suffix(".h.npy")
    np.save(out, last)
    return out


def run(client: Client, layer: Any, files: list[Path]) -> list[Path]:
    """Return the files of results, in the order of `files`."""
    everywhere = client.scatter(layer, broadcast=True)  # a layer pickles as its parameters
    results: list[Path] = client.gather(client.map(embed, [everywhere] * len(files), files))
    return results


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheduler", help="address of a scheduler that is running")
    parser.add_argument("--folder", type=Path, help="where to put the data, which all workers have to see")
    parser.add_argument("--pieces", type=int, default=6)
    args = parser.parse_args(arguments)
    if args.scheduler and not args.folder:
        parser.error(
            "--scheduler requires --folder: workers elsewhere see no temporary folder of this machine"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        files = write_data(folder, args.pieces)
        layer = fastrnn.GRU(INPUT, HIDDEN, seed=0).eval()
        if args.scheduler:
            with Client(args.scheduler) as client:
                results = run(client, layer, files)
        else:
            with (
                LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
                Client(cluster) as client,
            ):
                results = run(client, layer, files)
        states = np.concatenate([np.load(file) for file in results])
    print(f"{len(files)} pieces, {len(states)} rows")
    return {"states": states, "layer": layer}


if __name__ == "__main__":
    main()
