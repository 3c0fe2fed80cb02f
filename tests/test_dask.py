"""Does the example that runs over a data set on Dask give what one process gives?"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_same_bits

pytest.importorskip("distributed")

pytestmark = pytest.mark.frameworks
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.examples
def test_pieces_over_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of this machine: the bits of one call over all rows, whoever ran them."""
    monkeypatch.syspath_prepend(EXAMPLES)
    # Which workers, being processes of their own, find the module by.
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=":")
    example = importlib.import_module("dask_inference")
    found = example.main(["--pieces", "3"])
    expected = []
    for number in range(3):
        shape = (example.STEPS, example.ROWS, example.INPUT)
        x = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        expected.append(found["layer"](x)[1][-1])
    assert_same_bits(found["states"], np.concatenate(expected))
