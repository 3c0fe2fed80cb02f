"""Do the examples find what the lectures say they should?

Every script in examples/ runs here as it does by hand, its picture is written, and what its `main` returns
is held against the numbers of the lecture notes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastrnn import set_num_threads
from tolerances import tolerance

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.examples

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: None) -> Run:
    """Call the `main` of a script, and see that its picture is there."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    set_num_threads(1)  # the models are small, and other tests may run beside these

    def run(name: str, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = importlib.import_module(name).main(["--out", str(tmp_path), *arguments])
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return found

    return run


def test_every_example_is_run_here() -> None:
    tests = Path(__file__).read_text()
    elsewhere = {"torch_distributed", "dask_inference"}  # test_torch_distributed.py, test_dask.py
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"lecture"} - elsewhere
    assert {name for name in scripts if f'run("{name}"' in tests} == scripts


def test_two_characters(run: Run) -> None:
    found = run("two_characters")
    k_ln_2 = np.log(2) * np.arange(1, 5)
    np.testing.assert_allclose(found["untrained"], k_ln_2, rtol=0.01)
    np.testing.assert_allclose(found["untrained"], [0.697, 1.385, 2.083, 2.774], rtol=0.015)
    assert found["trained_total"] < 0.0003
    assert found["alternates"].any()
    assert found["worst_step"] < 0.01
    assert found["apart"] > 2 * found["spread"]


def test_stock_toy(run: Run) -> None:
    found = run("stock_toy")
    expected = {(0, 0): 0, (0, 0.5): 0.99, (1, 0.5): 0, (1, 1): 0.99, (1, 0.5, 0.5): 0.99}
    assert found["predictions"] == pytest.approx(expected, abs=tolerance(6, "float64", 1.8))
    for passes in (found["responses"], found["gradients"]):
        for w2, sizes in passes.items():
            np.testing.assert_array_equal(sizes, w2 ** np.arange(51.0))  # powers of two are exact


def test_gradient_paths(run: Run) -> None:
    found = run("gradient_paths")
    assert set(found["errors"]) == {"three paths", "chain", "V", "W", "U", "b", "c"}
    assert max(found["errors"].values()) < tolerance(100, "float64", 1.0)
    # Each path is needed: none is lost in the rounding of the others.
    assert min(np.linalg.norm(path) for path in found["paths"].values()) > 0.01


def test_linear_recursion(run: Run) -> None:
    found = run("linear_recursion")
    assert found["growth"] == pytest.approx(found["expected"], rel=1e-4)
    assert len(found["periods"]) == 2
    for seen, period in found["periods"].values():
        assert seen == pytest.approx(period, rel=0.02)
    positive = found["starts"] > 0
    sigmoid, tanh = found["finals"]["sigmoid", 1.5], found["finals"]["tanh", 1.5]
    assert np.ptp(sigmoid) < 1e-6  # where it started is forgotten
    np.testing.assert_array_equal(np.sign(tanh), np.where(positive, 1, -1))  # the sign is not, the size is
    assert np.ptp(np.abs(tanh)) < 1e-6
    for w in (1.05, 0.9):
        expected = np.where(positive, found["starts"] * w**60, 0)
        np.testing.assert_allclose(found["finals"]["relu", w], expected, rtol=tolerance(60, "float64", 1.0))


def test_counting_bits(run: Run) -> None:
    right = run("counting_bits")["right"]
    assert right["parity", 0.1, 0] == 1000
    assert right["addition", 0.1, 0] == 1000


def test_long_range(run: Run) -> None:
    right = run("long_range")["right"]
    for gap in (10, 50, 100, 200):
        for cell in ("GRU", "LSTM"):
            assert min(right[cell, gap]) == 1, f"{cell} over {gap} steps: {right[cell, gap]}"
    assert min(right["Elman", 10]) == 1  # so that it is the distance that it fails at
    assert max(right["Elman", 200]) < 0.6


def test_character_model(run: Run) -> None:
    pytest.importorskip("tqdm")
    found = run("character_model")
    assert found["bits"] < 3.2 < 0.6 * found["guess"]


def test_time_series(run: Run) -> None:
    pytest.importorskip("statsmodels", reason="the data set is statsmodels': pip install '.[examples]'")
    found = run("time_series")
    naive = min(error for name, error in found["one_year"].items() if name != "GRU")
    assert found["one_year"]["GRU"] < 0.7 * naive
    assert found["cycle"]["GRU"] < 0.7 * found["cycle"]["as this year"]
    assert 0.75 < found["inside"] <= 1


def test_digit_captions(run: Run) -> None:
    pytest.importorskip("sklearn", reason="the images are scikit-learn's: pip install '.[examples]'")
    found = run("digit_captions")
    assert found["right"] > 0.85
    assert found["spelt"] > 0.95


def test_sentiment(run: Run) -> None:
    found = run("sentiment")
    assert found["right"] > 0.99
    assert found["bag_of_words"] < 0.6
    # "the plot was not good but the cast was not bad": bad after "good", good at the end.
    assert found["verdict"][4] < 0.1
    assert found["verdict"][-1] > 0.9


def test_reversal(run: Run) -> None:
    right = run("reversal")["right"]
    assert min(right[length] for length in range(1, 9)) > 0.95
    assert right[11] < 0.5  # it has not been taught to read so much


def test_tagging(run: Run) -> None:
    right = run("tagging")["right"]
    assert min(right["bidirectional"]) > 0.99
    assert right["forward"][1] < 0.9
