"""Do the kernels compile for two generations of GPUs, without warnings, in few enough registers?"""

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
		Function : _Z6lostv
        /*0000*/                   LD.E R2, desc[UR4][R2.64] ;     /* 0x0000000402027980 */
        /*0010*/                   LDS R3, [R4] ;                  /* 0x0000000004037984 */
        /*0020*/                   ST.E desc[UR4][R4.64], R2 ;     /* 0x0000000204007985 */
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
        "_Z6lostv has LD and ST: it uses generic addresses",
    ]
    assert script().wrong_instructions("") == []


def test_reads_the_report_of_the_assembler() -> None:
    good, bad = script().read_report(REPORT)
    assert (good.name, good.arch, good.registers) == ("_Z4goodPf", "sm_80", 40)
    assert (good.stack, good.spilled) == (0, 0)
    assert (bad.name, bad.arch, bad.registers) == ("_Z3badPf", "sm_90", 255)
    assert (bad.stack, bad.spilled) == (16, 20)


def test_every_family_of_kernels_has_a_cap() -> None:
    module = script()
    for family in module.FAMILIES:
        assert family.threads * family.ctas * family.cap <= 65536
    caps = {
        "PersistentBackward<PersistentGruBackward, float, Tile<4, 4, 1> >": 255,
        "_ZN7fastrnn4cuda10run_kernelINS0_17PersistentForwardI": 255,
        "GemmFma<float>": 128,
        "GemmMma<half_t>": 128,
        "_ZN7fastrnn4cuda10run_kernelINS0_10StreamStepIdE": 168,
        "StreamStep<float>": 128,
        "LstmBackward<double>": 64,
    }
    for name, cap in caps.items():
        assert module.Kernel(name, "sm_90", cap, 0, 0).faults == []
        assert module.Kernel(name, "sm_90", cap + 1, 0, 0).faults == ["has 1 REGISTERS too many"]


def program(file: Path, text: str, to: str = "") -> str:
    """Write a program that prints a text, on standard error with `to` = ">&2"."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\ncat {to} <<'END'\n{text}END\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(("registers", "code"), [(64, 0), (65, 1)])
def test_a_kernel_over_its_cap_is_a_failure(
    registers: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = "".join(REPORT.splitlines(keepends=True)[:4]).replace("40 registers", f"{registers} registers")
    module = script()
    monkeypatch.setattr(module, "disassembler", lambda: None)
    assert module.main(["--nvcc", program(tmp_path / "nvcc", report, ">&2"), "any.cu"]) == code
    printed = capsys.readouterr().out
    assert ("1 REGISTERS too many" in printed) == (code == 1)
    assert "no machine code read: cuobjdump or nvdisasm is missing" in printed


@pytest.mark.parametrize(("functions", "code"), [(1, 0), (0, 1)])
def test_machine_code_that_is_not_listed_is_a_failure(
    functions: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nvcc = program(tmp_path / "nvcc", "".join(REPORT.splitlines(keepends=True)[:4]), ">&2")
    listing = program(tmp_path / "cuobjdump", "\t\tFunction : _Z4goodPf\n" * functions)
    module = script()
    monkeypatch.setattr(module, "disassembler", lambda: listing)
    assert module.main(["--nvcc", nvcc, "any.cu"]) == code
    printed = capsys.readouterr().out
    assert f"machine code of {functions} read" in printed
    assert ("cuobjdump lists 0 functions; the assembler reported 1 kernels" in printed) == (code == 1)


def test_the_disassembler_may_come_from_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert module.disassembler() is None
    cuobjdump = program(tmp_path / "nvidia/cu13/bin/cuobjdump", "")
    assert module.disassembler() is None  # which needs the other one
    program(tmp_path / "nvidia/cu13/bin/nvdisasm", "")
    assert module.disassembler() == cuobjdump


@pytest.mark.nvcc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_no_kernel_spills() -> None:
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("StreamStep<") == 8  # four element types, two architectures


@pytest.mark.nvcc
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.skipif(script().disassembler() is None, reason="there is no cuobjdump or no nvdisasm")
def test_machine_code_is_read_where_it_can_be() -> None:
    source = SCRIPT.parents[1] / "csrc/cuda/kernels/clusters.cu"
    run = subprocess.run([sys.executable, SCRIPT, source], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "machine code of 2 read" in run.stdout  # one kernel, two architectures


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
