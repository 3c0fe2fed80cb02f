"""Fixtures shared by all tests."""

from __future__ import annotations

import functools
import importlib.util
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before NumPy is imported: on a busy machine its threads wait for each other, and for the kernels', a
# hundred times longer than the reference's small products take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from fastrnn import _core, _device
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


@functools.cache
def _emulated() -> Any:
    """Load the module `_cuda` over an emulated device, which is built for tests alone; None if it was not."""
    folder = Path(os.environ.get("FASTRNN_EMULATED", Path(__file__).resolve().parents[1] / "build/dev"))
    for path in sorted(folder.glob("_cuda_emulated*.so")):
        spec = importlib.util.spec_from_file_location("_cuda_emulated", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return None


@pytest.fixture(autouse=True)
def _cuda_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run tests marked cuda on a GPU, or where there is none on the emulated device."""
    if request.node.get_closest_marker("cuda") is None:
        return
    reason = _device.why_unavailable()
    if not reason:
        return
    module = _emulated()
    if module is None:
        pytest.skip(f"{reason}; and no emulated device was built (make test builds it)")
    monkeypatch.setattr(_device, "_imported", lambda: (module, ""))
