"""A short run of every cell with the package that is installed: forward, backward, stream, save and load.

Usage: smoke_test.py [FOLDER], FOLDER being where the package must have been imported from.
"""

import platform
import sys
import tempfile
from pathlib import Path

import fastrnn
import numpy as np


def check_cell(cell: type[fastrnn.LSTM | fastrnn.GRU | fastrnn.RNN]) -> None:
    """Train one step, then compare a stream, and a copy read from a file, with the whole sequence."""
    x = np.random.default_rng(0).standard_normal((7, 3, 5), dtype=np.float32)
    layer = cell(5, 6, seed=0)
    y, _ = layer(x)
    dx, _ = layer.backward(np.ones_like(y))
    assert np.isfinite(dx).all(), "dx is not finite"
    assert all(np.any(gradient != 0) for gradient in layer.gradients.values()), "a gradient is all zeros"

    layer.eval()
    stream = layer.stream(batch=3)
    steps = np.stack([stream.step(x_t).copy() for x_t in x])
    np.testing.assert_array_equal(steps, y)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.safetensors")
        layer.save(path)
        np.testing.assert_array_equal(fastrnn.load(path).eval()(x)[0], y)


def main(folder: str | None = None) -> None:
    """Check where the package comes from, what was compiled into it, and every cell."""
    print(fastrnn.info())
    if folder is not None:
        assert Path(fastrnn.__file__).is_relative_to(Path(folder).resolve()), fastrnn.__file__
    if platform.machine() == "x86_64":
        for isa in ("baseline", "avx2", "avx512"):
            assert isa in fastrnn.info()["isas"], f"no {isa} kernels"
    for cell in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN):
        check_cell(cell)
    print("smoke test passed")


if __name__ == "__main__":
    main(*sys.argv[1:])
