"""Does the GPU probe compile, with its weights in registers, and say so where there is no GPU?"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "scripts/gpu_probe.cu"
NVCC = shutil.which("nvcc")


@pytest.mark.nvcc
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
def test_it_compiles_and_tells_what_it_found(tmp_path: Path) -> None:
    program, found = tmp_path / "gpu_probe", tmp_path / "found.json"
    command = [NVCC, "-O3", "-std=c++17", "-arch=sm_90", "-Xptxas=-v", "-Werror=all-warnings"]
    run = subprocess.run([*command, "-o", program, SOURCE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", run.stderr)
    assert len(spilled) > 15
    assert set(spilled) == {("0", "0")}

    run = subprocess.run([program, "--out", found, "limits"], capture_output=True, text=True, check=False)
    part = json.loads(found.read_text())["parts"]["limits"]
    if run.returncode == 2:
        assert part["error"].startswith("no CUDA device: ")
        assert part["rows"] == []
    else:
        assert run.returncode == 0, run.stderr
        assert part["rows"] or part["error"].startswith("unavailable: ")
