"""Do info() and the number of threads say what is so?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from typing import Any

import fastrnn
import pytest
from fastrnn import _core, _device
from fastrnn.info import Report


def test_info_tells_version_build_and_machine() -> None:
    report = fastrnn.info()
    assert report["version"] == fastrnn.__version__
    assert report["isa"] in report["isas_available"]
    assert set(report["isas_available"]) <= set(report["isas"])
    assert report["threads"] == fastrnn.get_num_threads()
    missing = _device.why_unavailable()
    assert bool(missing) == str(report["cuda"]).startswith("not available: ")
    assert missing in str(report["cuda"])
    for key in ("python", "numpy", "machine", "compiler", "build_type"):
        assert report[key]


def test_the_version_is_that_of_the_installed_package() -> None:
    assert fastrnn.__version__ == metadata.version("fastrnn")


def test_a_report_is_a_dict_that_prints_line_by_line() -> None:
    report = Report(kernel="gru", isas=["baseline", "avx2"], n=2)
    assert str(report) == "kernel: gru\nisas:   baseline, avx2\nn:      2"
    assert dict(report) == {"kernel": "gru", "isas": ["baseline", "avx2"], "n": 2}
    assert repr(Report()) == ""


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_can_be_set() -> None:
    for n in (1, 3, 2):
        fastrnn.set_num_threads(n)
        assert fastrnn.get_num_threads() == n
        assert fastrnn.info()["threads"] == n


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n is 0; expected an integer of at least 1"),
        (-2, ValueError, "n is -2; expected an integer of at least 1"),
        (10**20, ValueError, "expected an integer of at most 1024"),
        (2.0, TypeError, "n is 2.0 (float); expected an integer"),
        (True, TypeError, "n is True (bool); expected an integer"),
        ("2", TypeError, "n is '2' (str); expected an integer"),
        (None, TypeError, "n is None (NoneType); expected an integer"),
    ],
)
def test_a_bad_number_of_threads_changes_nothing(n: Any, error: type[Exception], message: str) -> None:
    fastrnn.set_num_threads(3)
    with pytest.raises(error, match=re.escape(message)):
        fastrnn.set_num_threads(n)
    assert fastrnn.get_num_threads() == 3


def run(program: str, **variables: str) -> str:
    environment = os.environ | variables
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def test_the_environment_sets_threads_and_instruction_set() -> None:
    assert run("import fastrnn; print(fastrnn.get_num_threads())", FASTRNN_NUM_THREADS="3") == "3"
    for isa in _core.available_isas():
        assert run("import fastrnn; print(fastrnn.info()['isa'])", FASTRNN_ISA=isa) == isa
