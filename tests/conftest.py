"""Fixtures shared by all tests."""

from __future__ import annotations

import zlib

import numpy as np
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks (unknown ones are errors)."""
    config.addinivalue_line("markers", "kernels: compares compiled kernels, for every instruction set")
    config.addinivalue_line("markers", "slow: takes seconds rather than milliseconds")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name, so that a failure repeats alone and in any order."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
