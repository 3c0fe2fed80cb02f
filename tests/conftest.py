"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

# Before NumPy is imported: on a busy machine its threads wait for each other, and for the kernels', a
# hundred times longer than the reference's small products take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from fastrnn import _core
from shapes import LANES


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name, so that a failure repeats alone and in any order."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(params=sorted({name for name, _ in LANES}))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once with each instruction set in force."""
    name: str = request.param
    if name not in _core.available_isas():
        pytest.skip(f"this CPU, or this build, does not have {name}")
    before = _core.isa()
    _core.set_isa(name)
    assert _core.isa() == name
    yield name
    _core.set_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back after the test."""
    before = _core.get_num_threads()
    yield
    _core.set_num_threads(before)
