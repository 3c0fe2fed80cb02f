"""Do the kernels compile for two generations of GPUs, without warnings, with their values in registers?"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/check_ptxas.py"

REPORT = """ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_80'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 384 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90'
ptxas info    : Function properties for _Z3badPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size
"""


LISTING = """
Fatbin elf code:
================
arch = sm_90
		Function : _Z10PersistentILi4EEv
        /*0000*/                   LDC R1, c[0x0][0x28] ;          /* 0x00000a00ff017b82 */
                                                                   /* 0x000ff00000000800 */
        /*12640*/             @!P0 HMMA.16816.F32.BF16 R148, R140, R160.reuse, RZ ; /* 0x000000a08c94723c */
		Function : _Z10PersistentILi3EEv
        /*0000*/                   FFMA R1, R1, R2, R3 ;           /* 0x00000a00ff017b82 */
		Function : _Z4stepv
        /*0000*/               @P1 LDL.64 R2, [R1] ;               /* 0x0000000001027983 */
        /*0010*/                   STL [R1+0x8], R4 ;              /* 0x0000080401007387 */
"""


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_ptxas", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_ptxas"] = module
    spec.loader.exec_module(module)
    return module


def test_reads_machine_code() -> None:
    assert script().wrong_instructions(LISTING) == [
        "_Z10PersistentILi3EEv has no HMMA: it does not use tensor cores",
        "_Z4stepv has LDL and STL: it uses local memory",
    ]
    assert script().wrong_instructions("") == []


def test_reads_the_report_of_the_assembler() -> None:
    good, bad = script().read_report(REPORT)
    assert (good.name, good.arch, good.registers) == ("_Z4goodPf", "sm_80", 40)
    assert (good.stack, good.spilled) == (0, 0)
    assert (bad.name, bad.arch, bad.registers) == ("_Z3badPf", "sm_90", 255)
    assert (bad.stack, bad.spilled) == (16, 20)


@pytest.mark.nvcc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_no_kernel_spills() -> None:
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("StreamStep<") == 8  # four element types, two architectures


@pytest.mark.nvcc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_no_kernel_of_whole_arrays_spills_on_later_devices() -> None:
    source = SCRIPT.parents[1] / "csrc/cuda/kernels/arrays.cu"
    command = [sys.executable, SCRIPT, "--arch", "100", "120", "--", source]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("AdamUpdate<") == 8


@pytest.mark.nvcc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_every_call_of_the_context_compiles() -> None:
    source = SCRIPT.parents[1] / "tests/cuda/every_primitive.cu"
    archs = ["80", "90", "100", "120"]
    command = [sys.executable, str(SCRIPT), "--arch", *archs, "--", str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("EveryPrimitive<") == 2 * len(archs)
