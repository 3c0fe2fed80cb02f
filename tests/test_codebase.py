"""Does the source tree keep its own rules: who includes whom, which words, what the kernel objects export?"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cuh", ".cu"})
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)

# The layers that a layer may include: its own, and those below.
ALLOWED = {
    "core": {"core"},
    "cells": {"cells", "core"},
    "cpu": {"cpu", "cells", "core"},
    "cuda": {"cuda", "cells", "core"},
    "ops": {"ops", "cpu", "cells", "core"},
    "bind": {"bind", "ops", "cpu", "cuda", "cells", "core"},
}

# Headers that only some files may see: (header, files).
RESERVED = [
    (r".*intrin\.h|arm_neon\.h|arm_sve\.h", r"cpu/vec_\w+\.h"),
    (r"pybind11/.*|Python\.h|numpy/.*", r"bind/.*"),
    (r"cuda.*|cublas.*|nv.*", r"cuda/(runtime_cuda\.cpp|cublas\.cpp|.*\.cuh)"),
]

# What only CUDA's compiler understands; only CudaContext, and the launch of it, may say it.
CUDA_WORDS = re.compile(r"\basm\b|\b(thread|block)(Idx|Dim)\b|__sync\w+|__shared__|__global__|<<<")

# All that a unit compiled with wider instructions may see of the standard library: types, no functions. A
# shared inline function could be the copy that the linker keeps for the whole program.
TYPE_HEADERS = {"cstddef", "cstdint"}


def includes(path: Path) -> list[tuple[str, str]]:
    """The (quote, header) pairs of a file."""
    return INCLUDE.findall(path.read_text())


def name(path: Path) -> str:
    return path.relative_to(CSRC).as_posix()


def test_there_are_sources() -> None:
    assert len(SOURCES) > 10


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_includes_point_downwards(path: Path) -> None:
    layer = path.relative_to(CSRC).parts[0]
    for quote, header in includes(path):
        if quote == '"':
            assert (CSRC / header).is_file(), f"{name(path)} includes {header}, which is not below csrc"
            assert header.split("/")[0] in ALLOWED[layer], f"{name(path)} includes {header}"
        for pattern, users in RESERVED:
            if quote == "<" and re.fullmatch(pattern, header):
                assert re.fullmatch(users, name(path)), f"{name(path)} includes <{header}>"


@pytest.mark.parametrize("path", [p for p in SOURCES if "cuda" in p.parts], ids=name)
def test_kernels_run_on_any_context(path: Path) -> None:
    if path.suffix != ".cuh":
        code = re.sub(r"//.*", "", path.read_text())
        assert not CUDA_WORDS.search(code), f"{name(path)} says {CUDA_WORDS.findall(code)}"
    if path.suffix not in {".cu", ".cuh"}:
        assert not [header for _, header in includes(path) if header.endswith(".cuh")], name(path)


def test_kernel_units_see_no_library_functions() -> None:
    waiting, seen = [CSRC / "cpu/kernels_unit.cpp", CSRC / "cpu/quantized_unit.cpp"], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for quote, header in includes(path):
            if quote == '"':
                waiting.append(CSRC / header)
            elif not re.fullmatch(RESERVED[0][0], header):
                assert header in TYPE_HEADERS, f"{name(path)}, part of a kernel unit, includes <{header}>"


@pytest.mark.parametrize(
    ("kind", "isa", "real"),
    [("kernels", isa, real) for isa in ("baseline", "avx2", "avx512") for real in ("float", "double")]
    + [("quantized", isa, "bfloat16") for isa in ("baseline", "avx2", "avx512", "avx512_bf16")]
    + [("quantized", isa, "int8") for isa in ("baseline", "avx2", "avx2_vnni", "avx512", "avx512_vnni")],
)
def test_kernel_units_export_only_names_of_their_instruction_set(kind: str, isa: str, real: str) -> None:
    unit = ROOT / f"build/dev/CMakeFiles/{kind}_{isa}_{real}.dir/csrc/cpu/{kind}_unit.cpp.o"
    if not unit.exists():
        pytest.skip(f"no {unit.relative_to(ROOT)}; 'make test' builds it where the compiler knows {isa}")
    command = ["nm", "--demangle", "--defined-only", "--extern-only", unit]
    exported = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert any(f"{isa}::{real}_kernels" in line for line in exported), exported
    shared = [line for line in exported if f"fastrnn::cpu::{isa}::" not in line]
    assert not shared, "the linker may keep this copy for CPUs that cannot run it:\n" + "\n".join(shared)


def test_the_word_that_means_two_things_is_absent() -> None:
    word = "work" + "space"
    for path in [*SOURCES, *(ROOT / "python").rglob("*.py*")]:
        if path.suffix != ".pyc":
            text = path.read_text().lower().replace(f"cublasset{word}", "")  # whose name we did not choose
            assert word not in text, f"{path}: say scratch or reserve"
