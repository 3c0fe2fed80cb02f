"""Does gpu_check.sh believe the CUDA driver about what there is, and leave few files behind?"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/gpu_check.sh"
COMPILER = shutil.which("cc")

# A libcuda of one device of compute capability 9.0, or, where STATUS is not 0, of none.
DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGetAttribute(int* value, int which, int device) { *value = which == 75 ? 9 : 0; return 0; }
int cuDeviceGetName(char* name, int length, int device) { strncpy(name, "a device", length); return 0; }
int cuDriverGetVersion(int* version) { *version = 13020; return 0; }
"""

# Python, but that torch is only said to be imported.
PYTHON = """#!/bin/sh
if [ "$*" = "-c import torch" ]; then touch "$WARMED"; else exec "$REAL_PYTHON" "$@"; fi
"""


def check(folder: Path, status: int) -> dict[str, Any]:
    """Run a part that needs a GPU; return what check.json says."""
    (folder / "driver.c").write_text(DRIVER)
    options = ["-shared", "-fPIC", f"-DSTATUS={status}"]
    library = folder / "libcuda.so.1"
    subprocess.run([COMPILER, *options, "-o", library, folder / "driver.c"], check=True)
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    out = folder / "out"
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(folder),
        "PYTHON": str(python),
        "REAL_PYTHON": sys.executable,
        "WARMED": str(folder / "warmed"),
    }
    run = subprocess.run(
        [SCRIPT, out, "sanitize"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (folder / "warmed").exists()
    assert sorted(file.name for file in out.iterdir()) == ["check.json", "log.txt"]
    found: dict[str, Any] = json.loads((out / "check.json").read_text())
    assert found["parts"]["sanitize"]["result"] == "unavailable"
    return found


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
def test_a_driver_without_a_device(tmp_path: Path) -> None:
    found = check(tmp_path, 100)
    assert found["device"] is None
    assert found["parts"]["sanitize"]["note"] == "no GPU"


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
def test_a_device_that_the_driver_knows(tmp_path: Path) -> None:
    found = check(tmp_path, 0)
    assert found["device"] == "a device, driver of CUDA 13.2"
    assert found["parts"]["sanitize"]["note"] != "no GPU"  # but that nothing runs on it


# A device whose second test faults, whose third never ends, and whose sixth leaves a kernel that faults. As
# in tests/conftest.py, a device that has faulted is one that cannot be had.
CONFTEST = """
import pytest
from fastrnn import _device

class Device:
    broken = False

    def why_unavailable(self):
        return "an illegal memory access" if self.broken else ""

    def synchronize(self, device, stream):
        if self.broken:
            raise RuntimeError("an illegal memory access")

device = Device()
_device._imported = lambda: (device, "")

@pytest.fixture(autouse=True)
def available():
    if reason := _device.why_unavailable():
        pytest.skip(reason)
"""
TESTS = """
import time
import pytest
from conftest import device

@pytest.mark.parametrize("k", range(12))
def test_call(k):
    device.synchronize(0, 1)
    if k == 1:
        device.broken = True
        device.synchronize(0, 1)
    while k == 2:
        time.sleep(1)
    assert k != 3, "a wrong result"
    device.broken = k == 5
"""


def test_a_fault_or_a_hang_takes_no_other_test_with_it(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_calls.py").write_text(TESTS)
    paths = [str(SCRIPT.parents[1] / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"FASTRNN_TEST_SECONDS": "5", "PYTHONPATH": os.pathsep.join(paths)}
    options = ["-p", "gpu_faults", "-p", "no:cacheprovider", "-n1", "--max-worker-restart=9", "-rfE", "-v"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    passed = set(re.findall(r"PASSED test_calls\.py::test_call\[(\d+)\]", run.stdout))
    assert passed == {str(k) for k in range(12)} - {"1", "2", "3"}, run.stdout + run.stderr
    assert run.returncode == 1
    assert "SKIPPED" not in run.stdout
    assert re.search(r"^FAILED test_calls.py::test_call\[1\] - RuntimeError: an illegal", run.stdout, re.M)
    assert "crashed while running 'test_calls.py::test_call[2]'" in run.stdout
    assert "crashed while running 'test_calls.py::test_call[5]'" in run.stdout  # though it had passed
    assert "Timeout" in run.stderr  # with the line that it waited in
    assert re.search(r"^FAILED test_calls.py::test_call\[3\] - AssertionError: a wrong", run.stdout, re.M)


def test_all_parts_leave_eight_files() -> None:
    text = SCRIPT.read_text()
    assert len(set(re.findall(r"\$out/([\w.]+)", text))) == 8
    # run.py draws more pictures than that.
    assert len(re.findall(r"bench/run\.py", text)) - 1 == text.count("--no-plots") == 2


def test_parts_by_default_end_within_nine_minutes() -> None:
    text = SCRIPT.read_text()
    limits = {name: int(seconds) for name, seconds in re.findall(r"\[(\w+)\]=(\d+)", text)}
    (every,) = re.findall(r"^all=\((.*)\)$", text, re.M)
    assert limits.keys() == set(every.split())
    defaults = every.split()[:6]
    assert "${all[@]:0:6}" in text
    assert not {"tune", "targets"} & set(defaults)
    assert sum(limits[name] for name in defaults) < 9 * 60
    for name, script in (("tune", "tune.py"), ("targets", "device_targets.py")):
        (own,) = re.findall(rf"bench/{script} --seconds (\d+)", text)
        assert int(own) + 20 <= limits[name], "it has to stop by itself, with what it has measured"
