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


def test_parts_by_default_leave_eight_files() -> None:
    written = set(re.findall(r"\$out/([\w.]+)", SCRIPT.read_text())) - {"tune.json", "targets.json"}
    plots = {re.sub("json$", "png", name) for name in written if name.startswith("bench_")}
    assert plots == {"bench_gpu.png", "bench_cpu_gpu.png"}
    assert len(written | plots) == 8


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
