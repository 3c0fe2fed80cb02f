"""Do the benchmark scripts compare what they say, and keep to their order? Nothing here takes times."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
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

    def unable(self, workload: Any) -> str:
        return "no resets" if workload.resets else ""

    def prepare(self, workload: Any, data: Any, threads: int) -> Callable[[], Any]:
        if self.fails:
            raise RuntimeError("out of memory\nlong explanation")
        return lambda: {"y": np.full(3, self.y)}

    def seconds(self, run: Callable[[], Any], repeat: int) -> float:
        return self.time


def row_of(bench: Callable[[str], Any], peers: dict[str, Fake], **sizes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"cell": "gru", "run": "forward", "steps": 3, "batch": 6, "input_size": 2}
    workload = bench("workloads").Workload(**(options | {"hidden_size": 4} | sizes))
    return bench("measure").run_one(workload, 1, peers, 0.0)


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
    tables = bench("tables")
    text = tables.compared([row], {}).splitlines()
    assert "torch 2.00" in next(line for line in text if " fastrnn " in line)
    assert "cudnn 3.00" in next(line for line in text if " fastrnn-cuda " in line)
    assert any(" cudnn-graph " in line for line in text)
    counts = tables.throughput([row]).splitlines()[1].split()
    assert counts[-5:] == ["1,500", "750", "6,000", "2,000", "3,000"]


def test_a_peer_that_fails_is_named_and_the_others_measured(bench: Callable[[str], Any]) -> None:
    row = row_of(bench, {"fastrnn": Fake(0.001), "cudnn": Fake(0.001, fails=True)})
    assert list(row["peers"]) == ["fastrnn"]
    assert row["failed"] == {"cudnn": "RuntimeError: out of memory"}
    assert "cudnn failed: RuntimeError: out of memory" in bench("tables").compared([row], {})


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


def test_a_peer_that_lacks_something_is_left_out_with_its_reason(bench: Callable[[str], Any]) -> None:
    row = row_of(bench, {"torch": Fake(0.001)}, resets=True)
    assert row["unable"] == {"torch": "no resets"}
    assert "torch is left out where there is no resets" in bench("tables").compared([row], {})


def asked(peers: list[str], loads: list[Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a worker of one thread says of itself, and its rows."""
    lines = "".join(json.dumps([0.0, load.as_dict()]) + "\n" for load in loads)
    command = [sys.executable, str(BENCH / "worker.py"), "1", *peers]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    about, *rows = map(json.loads, done.stdout.splitlines())
    return about, rows


def test_all_peers_on_the_cpu_get_the_same_results(bench: Callable[[str], Any]) -> None:
    w = bench("workloads")
    passes = ["forward", "training", "streaming"]
    loads = w.grid(["lstm", "gru", "rnn"], passes, ["float32"], [4], [2], [7], [3])
    loads += [w.Workload("lstm", run, 4, 2, 3, 5, num_layers=2, bidirectional=True) for run in passes[:2]]
    loads += [w.Workload("lstm", "streaming", 1, 2, 3, 5, num_layers=2)]
    loads += [w.Workload("gru", "training", 4, 2, 3, 7, dtype="float64")]
    loads += [w.Workload("lstm", run, 1, 2, 3, 7, tokens=True) for run in passes[1:]]
    loads += [w.Workload("lstm", "training", 60, 2, 3, 7, resets=True)]
    about, rows = asked(list(bench("peers").ON_HOST), loads)
    assert [row["workload"] for row in rows] == [load.as_dict() for load in loads]
    for row in rows:
        assert not row["failed"], row
        assert row["peers"].keys() | row["unable"].keys() == about["versions"].keys()
    everyone = rows[0]["peers"].keys()
    assert everyone == about["versions"].keys(), "every peer runs a forward pass"
    if absent := about["absent"]:
        pytest.skip("compared without " + "; ".join(absent))


def test_run_writes_what_it_measured(tmp_path: Path) -> None:
    file = tmp_path / "new" / "out.json"
    options = ["--cells", "gru", "--passes", "forward", "streaming", "--batch", "2", "--hidden", "5"]
    options += ["--seconds", "0", "--peers", "fastrnn", "numpy", "--out", str(file)]
    command = [sys.executable, str(BENCH / "run.py"), *options]
    environment = os.environ | {"PATH": str(tmp_path)}  # where there is no compiler
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "no ceiling, and no shares of it" in done.stdout
    result = json.loads(file.read_text())
    assert result["versions"].keys() == {"fastrnn", "numpy"}
    assert {"commit", "machine", "absent", "ceilings", "left_out"} <= result.keys()
    forward, streaming = result["rows"]
    assert forward["workload"]["steps"] == 100
    assert streaming["workload"]["steps"] == 1
    assert forward["threads"] == 1
    assert {"ratio", "ratio_quartiles", "verdict", "rival"} <= forward["peers"]["numpy"].keys()
    assert sum(streaming["peers"]["fastrnn"]["steps"]["counts"]) >= 300
    assert len(file.read_text().splitlines()) < 20, "one line a row"


def test_a_ceiling_sets_the_bound(bench: Callable[[str], Any]) -> None:
    w, tables = bench("workloads"), bench("tables")
    sizes = {"L1": 1000, "L2": 10_000, "memory": None}
    rates = {"L1": 100.0, "L2": 50.0, "memory": 10.0}
    ceiling = {
        "gflops": {"float32": 200.0},
        "read": {level: {"bytes": sizes[level], "gb_s": rates[level]} for level in sizes},
    }
    # One row of an RNN reads 4 H^2 bytes for 4 H^2 operations in a step.
    for H, level in ((15, "L1"), (16, "L2"), (50, "L2"), (51, "memory")):
        seconds, by = w.bound(w.Workload("rnn", "forward", 10, 1, H, H), ceiling)
        assert (seconds, by) == (pytest.approx(10 * 4 * H * H / rates[level] / 1e9), level)
    seconds, by = w.bound(w.Workload("rnn", "training", 10, 100, 16, 16), ceiling)
    assert (seconds, by) == (pytest.approx(3 * 10 * 100 * 4 * 16 * 16 / 200e9), "FMA")
    row = row_of(bench, {"fastrnn": Fake(1.0), "cudnn": Fake(1.0, rival="fastrnn-cuda")})
    load = w.Workload(**row["workload"])
    assert tables.share(row, "fastrnn", {"1": ceiling}) == w.bound(load, ceiling)
    assert tables.share(row, "cudnn", {"1": ceiling}) is None
    assert tables.share(row, "fastrnn", {}) is None


def test_named_workloads_are_runnable(bench: Callable[[str], Any]) -> None:
    w = bench("workloads")
    assert set(w.NAMED) == {"wake-word", "speech", "character", "rl", "time-series", "elman"}
    for name, loads in w.NAMED.items():
        assert loads == w.one_step_streams(
            [w.Workload(**load.as_dict()) for load in loads if load.name == name]
        )


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
