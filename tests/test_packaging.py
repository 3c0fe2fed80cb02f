"""Is the installed package what pyproject.toml says, and how does it meet its environment?"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import fastrnn
import pytest
from fastrnn import _core, _device

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE = Path(fastrnn.__file__).parent


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, away from the source tree."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )


def test_one_version() -> None:
    assert fastrnn.__version__ == PROJECT["version"]
    assert importlib.metadata.version("fastrnn") == PROJECT["version"]
    assert _core.build_info()["version"] == PROJECT["version"]


def test_runtime_requirements() -> None:
    requirements = importlib.metadata.requires("fastrnn") or []
    needed = {line.split(">")[0] for line in requirements if "extra ==" not in line}
    assert needed == {"numpy", "safetensors"}


def test_typing_files_are_installed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_core.pyi").is_file()
    assert (PACKAGE / "_cuda.pyi").is_file()


def check_stub(stub_file: str, module: Any) -> None:
    tree = ast.parse((PACKAGE / stub_file).read_text())
    stub = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert set(stub) == {name for name in vars(module) if not name.startswith("_")}
    for name, node in stub.items():
        if isinstance(node, ast.ClassDef):
            members = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            members |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
            there = set(vars(getattr(module, name)))
            assert members <= there, name
            assert {member for member in there if not member.startswith("_")} <= members, name


def test_the_stub_names_what_the_module_has() -> None:
    check_stub("_core.pyi", _core)


@pytest.mark.cuda
def test_the_stub_names_what_the_cuda_module_has() -> None:
    check_stub("_cuda.pyi", _device.module())


def test_the_emulated_device_is_not_installed() -> None:
    assert not list(PACKAGE.glob("_cuda_emulated*"))


def test_import_needs_numpy_and_safetensors_alone() -> None:
    result = run("import sys, fastrnn; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert not loaded & {"torch", "tqdm", "matplotlib", "hypothesis", "pytest"}


def test_import_leaves_cuda_alone() -> None:
    code = "import fastrnn; fastrnn.GRU(2, 3); print(open('/proc/self/maps').read())"
    loaded = run(code).stdout
    assert "_core" in loaded
    assert "_cuda" not in loaded
    assert "libcuda" not in loaded


def test_a_device_that_cannot_be_had_is_an_error_with_the_reason() -> None:
    code = "import fastrnn; print(fastrnn.info()['cuda']); fastrnn.GRU(2, 3, device='cuda')"
    result = run(code, CUDA_VISIBLE_DEVICES="")
    reason = result.stdout.strip().removeprefix("not available: ")
    assert f"RuntimeError: device='cuda' is not available: {reason}" in result.stderr
    assert re.search("no CUDA driver|driver shows no device|driver is made for|no CUDA kernels", reason)


def test_the_cpu_works_in_a_child_after_cuda_was_asked_for() -> None:
    code = """
import os, sys, fastrnn, numpy as np
fastrnn.info()
child = os.fork()
if child == 0:
    fastrnn.GRU(2, 3)(np.ones((4, 1, 2), "float32"))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).returncode == 0


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake")
@pytest.mark.skipif(shutil.which("ninja") is None, reason="there is no ninja")
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_nvcc_of_wheels_is_found_when_pip_builds_in_isolation(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    nvcc = site / "nvidia/cu13/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 1\n")  # that it does not compile says that it was tried
    nvcc.chmod(0o755)
    # pip leaves the Python its prefix, and takes the environment's packages from its path.
    isolation = f"import sys\nsys.path[:] = [path for path in sys.path if path != {str(site)!r}]\n"
    (tmp_path / "sitecustomize.py").write_text(isolation)
    project = f"cmake_minimum_required(VERSION 3.25)\nproject(p CXX)\ninclude({ROOT}/cmake/cuda.cmake)\n"
    (tmp_path / "CMakeLists.txt").write_text(project)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CUDA")}
    result = subprocess.run(
        [
            *("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja"),
            # Whatever else this machine has is not looked for.
            *("-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DCMAKE_CXX_COMPILER={shutil.which('c++')}",
            f"-DPython_EXECUTABLE={tmp_path / 'venv/bin/python'}",
        ],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert f"CUDA: {nvcc} does not compile" in result.stdout


def test_import_starts_no_thread() -> None:
    # OpenBLAS, which NumPy loads, starts its own unless told not to.
    code = "import os, fastrnn; print(len(os.listdir('/proc/self/task')))"
    assert run(code, OPENBLAS_NUM_THREADS="1").stdout.strip() == "1"


@pytest.mark.parametrize("isa", _core.available_isas())
def test_environment_forces_the_instruction_set(isa: str) -> None:
    assert run("import fastrnn; print(fastrnn.info()['isa'])", FASTRNN_ISA=isa).stdout.strip() == isa


def test_environment_with_an_unknown_instruction_set() -> None:
    error = run("import fastrnn; fastrnn.info()", FASTRNN_ISA="sse9").stderr
    assert "ValueError: FASTRNN_ISA is 'sse9'; expected" in error
    assert all(isa in error for isa in _core.available_isas())


def test_environment_sets_the_number_of_threads() -> None:
    code = "import fastrnn; print(fastrnn.get_num_threads())"
    assert run(code, FASTRNN_NUM_THREADS="3").stdout.strip() == "3"


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_environment_with_a_bad_number_of_threads(value: str) -> None:
    error = run("import fastrnn; fastrnn.get_num_threads()", FASTRNN_NUM_THREADS=value).stderr
    assert f"ValueError: FASTRNN_NUM_THREADS is '{value}'; expected" in error
