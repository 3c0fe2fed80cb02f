"""A plugin (`pytest -p gpu_faults -n 8`): on a GPU, a test that faults or never ends takes no other with it.

After a fault every later call of the process fails, and nothing but the end of its process stops a kernel
that waits for ever. So a process of pytest-xdist that meets either ends itself: another one takes its place,
the test is told as the one that was running, and the rest goes on.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator

import pytest
from fastrnn import _device

SECONDS = float(os.environ.get("FASTRNN_TEST_SECONDS", "20"))
STDERR = os.dup(2)  # before pytest captures it

_has_device = False


def pytest_configure(config: pytest.Config) -> None:
    global _has_device
    _has_device = not _device.why_unavailable()  # of a device that faulted it may say that it cannot be had
    if not config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        raise pytest.UsageError("gpu_faults ends processes: it needs those of pytest-xdist (-n 8)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)  # what the test came to has been told by then
def pytest_runtest_logfinish() -> None:
    # After every test: a kernel may fault after its test has passed, and the next ones would be skipped.
    if "PYTEST_XDIST_WORKER" in os.environ and _is_broken():
        os._exit(1)


def _is_broken() -> bool:
    """Wait for a device: does it fail whatever it is asked?"""
    if not _has_device:
        return False
    try:
        _device.module().synchronize(0, _device.LEGACY_STREAM)
        # That does not wait for the streams that torch makes; torch can for all of the device.
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
