"""Do the benchmark scripts compare what they say, and keep to their order? Nothing here takes times."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of bench, whose files import each other by bare names."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (BENCH / f"{name}.py").exists():
            del sys.modules[name]


class Fake:
    """A peer whose result and time are given."""

    version = "1"

    def __init__(self, time: float, rival: str | None = None, y: float = 1.0, fails: bool = False) -> None:
        self.time, self.rival, self.y, self.fails = time, rival, y, fails

    def runs(self, workload: Any) -> bool:
        return True

    def prepare(self, workload: Any, weights: Any, x: np.ndarray, threads: int) -> Callable[[], Any]:
        if self.fails:
            raise RuntimeError("out of memory\nlong explanation")
        return lambda: {"y": np.full(3, self.y)}

    def seconds(self, run: Callable[[], Any], repeat: int) -> float:
        return self.time


def row_of(bench: Callable[[str], Any], peers: dict[str, Fake], **sizes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"cell": "gru", "run": "forward", "steps": 3, "batch": 6, "input_size": 2}
    workload = bench("workloads").Workload(**(options | {"hidden_size": 4} | sizes))
    return bench("run").run_one(workload, 1, peers, 0.0)


def test_each_peer_is_compared_with_its_rival(bench: Callable[[str], Any]) -> None:
    peers = {
        "fastrnn": Fake(0.004),
        "torch": Fake(0.008, rival="fastrnn"),
        "fastrnn-cuda": Fake(0.001),
        "cudnn": Fake(0.003, rival="fastrnn-cuda"),
        "cudnn-graph": Fake(0.002, rival="fastrnn-cuda-graph"),
    }
    row = row_of(bench, peers)
    assert {name: entry.get("ratio") for name, entry in row["peers"].items()} == {
        "fastrnn": None,
        "torch": pytest.approx(2),
        "fastrnn-cuda": None,
        "cudnn": pytest.approx(3),
        "cudnn-graph": None,  # its rival is not there
    }
    assert row["peers"]["fastrnn-cuda"]["sequences_per_s"] == pytest.approx(6000)
    text = bench("run").compared([row], None).splitlines()
    assert "torch 2.00" in next(line for line in text if " fastrnn " in line)
    assert "cudnn 3.00" in next(line for line in text if " fastrnn-cuda " in line)
    assert any(" cudnn-graph " in line for line in text)
    counts = bench("run").throughput([row]).splitlines()[1].split()
    assert counts[-5:] == ["1,500", "750", "6,000", "2,000", "3,000"]


def test_a_peer_that_fails_is_named_and_the_others_measured(bench: Callable[[str], Any]) -> None:
    row = row_of(bench, {"fastrnn": Fake(0.001), "cudnn": Fake(0.001, fails=True)})
    assert list(row["peers"]) == ["fastrnn"]
    assert row["failed"] == {"cudnn": "RuntimeError: out of memory"}
    assert "cudnn failed: RuntimeError: out of memory" in bench("run").compared([row], None)


@pytest.mark.parametrize(
    ("name", "dtype", "apart", "equal"),
    [
        ("torch", "float32", 1e-3, True),
        ("torch", "float32", 1e-2, False),
        ("cudnn-tf32", "float32", 1e-2, True),
        ("cudnn-tf32", "float32", 1e-1, False),
        ("cudnn", "bfloat16", 1e-1, True),
        ("cudnn", "bfloat16", 3e-1, False),
        ("torch", "float64", 1e-11, False),
        ("torch", "float32", float("nan"), False),
    ],
)
def test_peers_that_compute_something_else_are_not_measured(
    bench: Callable[[str], Any], name: str, dtype: str, apart: float, equal: bool
) -> None:
    peers = {"fastrnn": Fake(0.001), name: Fake(0.001, y=1 + apart)}
    row = row_of(bench, peers, dtype=dtype)
    assert (name in row["peers"]) == equal
    assert "fastrnn" in row["peers"]
    if not equal:
        assert f"{name} and fastrnn disagree on y" in row["failed"][name]


def test_peers_that_cannot_run_give_their_reason(bench: Callable[[str], Any]) -> None:
    peers = bench("peers")

    def no_gpu() -> None:
        raise peers.AbsentError("no device")

    peers.ALL.update(a=no_gpu, b=no_gpu)
    found, absent = peers.available(["a", "fastrnn", "b"])
    assert list(found) == ["fastrnn"]
    assert absent == ["a, b: absent (no device)"]


@pytest.mark.usefixtures("threads")
def test_the_cpu_peers_get_the_same_results(bench: Callable[[str], Any]) -> None:
    peers = bench("peers")
    found, _ = peers.available(["fastrnn", "torch", "numpy"])
    workloads = bench("workloads")
    for workload in workloads.grid(
        ["lstm", "gru", "rnn"], ["forward", "training"], ["float32"], [5], [2], [7]
    ):
        weights, x = bench("run").data(workload)
        results = {
            name: bench("run").arrays(peer.prepare(workload, weights, x, 1)())
            for name, peer in found.items()
            if peer.runs(workload)
        }
        assert results["fastrnn"]["y"].shape == workload.output_shape
        for name in results:
            bench("run").check_equal((name, "fastrnn"), results[name], results["fastrnn"], 1e-5)


def test_the_plot_has_a_line_for_each_peer_and_size(bench: Callable[[str], Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = bench("plot")
    peers = {"fastrnn": Fake(0.002), "cudnn": Fake(0.001, rival="fastrnn")}
    rows = [
        row_of(bench, peers, hidden_size=H, batch=B, cell=cell)
        for H in (2, 4, 8)
        for B in (1, 6)
        for cell in ("lstm", "gru")
    ]
    assert plot.swept(rows) == "hidden_size"
    found = plot.lines(rows, "hidden_size", ["batch"])
    assert len(found) == 2 * 2 * 2
    assert found["gru", "forward", "cudnn", "B=6"] == [(H, pytest.approx(6000)) for H in (2, 4, 8)]
    file = plot.draw({"rows": rows}, tmp_path / "plot.png")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_cudnn_sizes_that_matter_most_come_first(bench: Callable[[str], Any]) -> None:
    pytest.importorskip("torch")
    cudnn = bench("cudnn")
    points = cudnn.points(["lstm"], ["forward"], ["fp32"], list(cudnn.HIDDEN), list(cudnn.BATCH))
    assert len(set(points)) == len(points) == 8 * 5
    first = {(point.hidden, point.batch) for point in points[:10]}
    assert first == {(H, B) for H in (256, 512, 768, 1024, 2048) for B in (16, 64)}


def test_cudnn_writes_what_it_measured(
    bench: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    cudnn = bench("cudnn")
    file = tmp_path / "cudnn.json"
    options = ["--device", "cpu", "--hidden", "3", "--batch", "2", "--steps", "2", "--point-seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["cudnn.py", *options, "--cells", "gru", "rnn", "--out", str(file)])
    monkeypatch.setattr(bench("progress").signal, "signal", lambda *_: None)
    cudnn.main()
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 2 * 2 * 4
    assert all(row["call"]["us_per_step"] > 0 for row in rows)
    assert "16 of 16 points, 0 failed" in capsys.readouterr().out


def test_cudnn_without_a_gpu_says_so(
    bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["cudnn.py"])
    with pytest.raises(SystemExit) as stopped:
        bench("cudnn").main()
    assert stopped.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_measuring_ends_with_its_time(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    progress = bench("progress")
    monkeypatch.setattr(progress.signal, "signal", lambda *_: None)
    assert list(progress.within(60, [1, 2, 3])) == [1, 2, 3]
    assert list(progress.within(-1, [1, 2, 3])) == []
