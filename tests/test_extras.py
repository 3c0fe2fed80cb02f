"""Does a part whose package is not installed say how to get it?"""

from __future__ import annotations

import subprocess
import sys

import pytest

MISSING = [
    ("torch", "import fastrnn.torch", "fastrnn.torch needs torch"),
    ("torch", "fastrnn.torch", "fastrnn.torch needs torch"),
    ("torch", "fastrnn.to_torch(fastrnn.GRU(3, 4))", "to_torch needs torch"),
    ("jax", "import fastrnn.jax", "fastrnn.jax needs jax"),
    ("onnx", "fastrnn.onnx.from_onnx('model.onnx')", "from_onnx needs onnx"),
    ("onnx", "fastrnn.onnx.to_onnx(fastrnn.GRU(3, 4))", "to_onnx needs onnx"),
    ("onnx", "fastrnn.onnx.Backend", "fastrnn.onnx.Backend needs onnx"),
    ("keras", "fastrnn.to_keras(fastrnn.GRU(3, 4))", "to_keras needs keras"),
]


@pytest.mark.frameworks
@pytest.mark.parametrize(("package", "code", "message"), MISSING)
def test_a_missing_package_is_named_with_its_extra(package: str, code: str, message: str) -> None:
    program = f"import sys, fastrnn; sys.modules[{package!r}] = None; {code}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stderr.endswith(f"ModuleNotFoundError: {message}: pip install 'fastrnn[{package}]'\n")


def test_parts_that_need_no_package_go_without() -> None:
    program = """
import sys
for package in ("torch", "jax", "onnx", "keras", "flax", "tqdm", "matplotlib"):
    sys.modules[package] = None
import fastrnn.convert, fastrnn.diagnostics, fastrnn.models, fastrnn.onnx, fastrnn.sampling, fastrnn.training
fastrnn.to_flax(fastrnn.GRU(3, 4))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
