"""Do ONNX's own backend tests of its recurrent operators pass?"""

from __future__ import annotations

import unittest
import warnings
from typing import Any

import fastrnn
import numpy as np
import onnx.backend.test
import pytest
from fastrnn.onnx import Backend, to_onnx
from onnx import helper

pytestmark = pytest.mark.frameworks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it makes the data of the tests of all operators
    SUITE = onnx.backend.test.BackendTest(Backend, __name__)
SUITE.include(r"^test_(simple_rnn|rnn|gru|lstm)_.*_cpu$")
CASES = [
    (kind, name)
    for kind, case in sorted(SUITE.test_cases.items())
    for name in sorted(unittest.TestLoader().getTestCaseNames(case))
]


def run(name: str) -> unittest.TestResult:
    """Run one test of the suite."""
    kinds = [case for case in SUITE.test_cases.values() if hasattr(case, name)]
    result = unittest.TestResult()
    kinds[0](name).run(result)
    return result


def recurrent() -> list[str]:
    return [
        name
        for _, name in CASES
        if name.removeprefix("test_").split("_")[0] in ("simple", "rnn", "gru", "lstm")
    ]


def test_all_three_operators_are_there() -> None:
    assert len(recurrent()) >= 12
    assert {name.split("_")[1] for name in recurrent()} == {"simple", "rnn", "gru", "lstm"}


@pytest.mark.parametrize("name", [name for name in recurrent() if name.endswith("_cpu")])
@pytest.mark.filterwarnings("ignore")
def test_node_tests_of_onnx(name: str) -> None:
    result = run(name)
    assert result.testsRun == 1
    assert not result.skipped
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]


def test_run_node_and_run_model() -> None:
    x, w, r = (np.ones(shape, "float32") for shape in ((5, 2, 3), (1, 4, 3), (1, 4, 4)))
    node = helper.make_node("RNN", ["x", "w", "r"], ["", "h"])
    outputs = Backend.run_node(node, [x, w, r])
    assert outputs.h.shape == (1, 2, 4)
    y, h_n = Backend.run_model(to_onnx(fastrnn.RNN(3, 4)), [x])
    assert y.shape == (5, 2, 4)
    assert h_n.shape == (1, 2, 4)


def test_devices_and_compatibility() -> None:
    model: Any = to_onnx(fastrnn.RNN(3, 4))
    assert Backend.supports_device("CPU")
    assert not Backend.supports_device("CUDA:0")
    assert Backend.is_compatible(model)
    model.graph.node[0].op_type = "Conv"
    assert not Backend.is_compatible(model)
    with pytest.raises(ValueError, match="device is 'CUDA'; expected 'CPU'"):
        Backend.prepare(model, "CUDA")
    with pytest.raises(ValueError, match="device is 'CUDA'; expected 'CPU'"):
        Backend.run_node(model.graph.node[0], [], "CUDA")
