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


def text_of(bench: Callable[[str], Any], row: dict[str, Any]) -> str:
    return bench("tables").compared(list(bench("results").rows_of({"rows": [row]})))


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
    rows = list(bench("results").rows_of({"rows": [row]}))
    text = tables.compared(rows).splitlines()
    assert "torch 2.00" in next(line for line in text if " fastrnn " in line)
    assert "cudnn 3.00" in next(line for line in text if " fastrnn-cuda " in line)
    assert any(" cudnn-graph " in line for line in text)
    counts = tables.throughput(rows).splitlines()[1].split()
    assert counts[-5:] == ["1,500", "750", "6,000", "2,000", "3,000"]


def test_a_peer_that_fails_is_named_and_the_others_measured(bench: Callable[[str], Any]) -> None:
    row = row_of(bench, {"fastrnn": Fake(0.001), "cudnn": Fake(0.001, fails=True)})
    assert list(row["peers"]) == ["fastrnn"]
    assert row["failed"] == {"cudnn": "RuntimeError: out of memory"}
    assert "cudnn failed: RuntimeError: out of memory" in text_of(bench, row)


@pytest.mark.parametrize(
    ("name", "dtype", "apart", "equal"),
    [
        ("torch", "float32", 1e-4, True),
        ("torch", "float32", 1e-3, False),
        ("cudnn-tf32", "float32", 5e-3, True),
        ("cudnn-tf32", "float32", 3e-2, False),
        ("cudnn", "bfloat16", 5e-2, True),
        ("cudnn", "bfloat16", 2e-1, False),
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
    assert "torch is left out of some rows: no resets" in text_of(bench, row)


def asked(peers: list[str], loads: list[Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a worker of one thread says of itself, and its rows."""
    lines = "".join(json.dumps([0.0, load.as_dict()]) + "\n" for load in loads)
    command = [sys.executable, str(BENCH / "worker.py"), "1", *peers]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    about, *rows = map(json.loads, done.stdout.splitlines())
    return about, rows


def test_all_peers_on_the_cpu_get_the_same_results(bench: Callable[[str], Any]) -> None:
    w = bench("workloads")
    loads = w.grid(["lstm", "gru", "rnn"], w.PASSES, ["float32"], [4], [2], [7], [3])
    loads += [w.Workload("lstm", "forward", 4, 2, 3, 5, num_layers=2, bidirectional=True)]
    loads += [w.Workload("lstm", "streaming", 1, 2, 3, 5, num_layers=2)]
    loads += [w.Workload("gru", "training", 4, 2, 3, 7, dtype="float64")]
    loads += [w.Workload("lstm", "training", 4, 2, 3, 7, tokens=True)]
    loads += [w.Workload("lstm", "training", 60, 2, 3, 7, resets=True)]
    about, rows = asked([*bench("peers").ON_HOST, *bench("peers").ROUNDED], loads)
    assert [row["workload"] for row in rows] == [load.as_dict() for load in loads]
    for row in rows:
        assert not row["failed"], row
        assert row["peers"].keys() | row["unable"].keys() == about["versions"].keys()
    assert rows[0]["peers"].keys() == about["versions"].keys(), "every peer runs a forward pass"
    if absent := about["absent"]:
        pytest.skip("compared without " + "; ".join(absent))


def test_run_writes_what_it_measured(tmp_path: Path) -> None:
    file = tmp_path / "new" / "out.json"
    options = ["--cells", "gru", "--passes", "forward", "streaming", "--batch", "2", "--hidden", "5"]
    options += ["--seconds", "0", "--peers", "fastrnn", "numpy", "--out", str(file)]
    command = [sys.executable, str(BENCH / "run.py"), *options]
    environment = os.environ | {"PATH": str(tmp_path)}  # where there is no compiler
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
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
    w = bench("workloads")
    # A single step reads W_ih and W_hh, 4 H^2 bytes each; a sequence begins
    # without a state, and each step after the second reads W_hh again.
    for H, level, rate in ((11, "L1", 100), (12, "L2", 50), (35, "L2", 50), (36, "memory", 10)):
        seconds, by = w.bound(w.Workload("rnn", "streaming", 1, 1, H, H), CEILING)
        assert (seconds, by) == (pytest.approx(8 * H * H / rate / 1e9), level)
    for H, level, both, rate in (
        (15, "L1", 50, 100),
        (16, "L2", 50, 50),
        (50, "L2", 10, 50),
        (51, "memory", 10, 10),
    ):
        seconds, by = w.bound(w.Workload("rnn", "forward", 10, 1, H, H), CEILING)
        assert (seconds, by) == (pytest.approx((8 / both + 8 * 4 / rate) * H * H / 1e9), level)
    stack = w.Workload("rnn", "streaming", 1, 1, 8, 8, num_layers=2, tokens=True)
    assert stack.reads == [(3 * 4 * 64, 3 * 4 * 64), (4 * 64, 0)]
    seconds, by = w.bound(w.Workload("rnn", "training", 10, 100, 16, 16), CEILING)
    assert (seconds, by) == (pytest.approx(3 * 100 * (10 + 9) * 2 * 16 * 16 / 200e9), "FMA")
    peers = {"fastrnn": Fake(1.0), "cudnn": Fake(1.0, rival="fastrnn-cuda")}
    (row,) = bench("results").rows_of({"rows": [row_of(bench, peers)], "ceilings": {"1": CEILING}})
    assert row.share("fastrnn") == w.bound(row.load, CEILING)
    assert row.share("cudnn") is None
    (row,) = bench("results").rows_of({"rows": [row_of(bench, peers)]})
    assert row.share("fastrnn") is None


def test_named_workloads_are_runnable(bench: Callable[[str], Any]) -> None:
    w = bench("workloads")
    assert set(w.NAMED) == {"wake-word", "speech", "character", "rl", "time-series", "elman"}
    for name, loads in w.NAMED.items():
        assert loads == w.one_step_streams(
            [w.Workload(**load.as_dict()) for load in loads if load.name == name]
        )


CEILING = {
    "gflops": {"float32": 200.0},
    "read": {
        "L1": {"bytes": 1000, "gb_s": 100.0},
        "L2": {"bytes": 10_000, "gb_s": 50.0},
        "memory": {"bytes": None, "gb_s": 10.0},
    },
}


def made_up(bench: Callable[[str], Any], **times: float) -> dict[str, Any]:
    """A result of run.py over some sizes, in which everybody takes the given time."""
    peers = {name: Fake(time, rival=None if name == "fastrnn" else "fastrnn") for name, time in times.items()}
    w = bench("workloads")
    loads = w.grid(["lstm", "gru"], ["forward"], ["float32"], [5], [1, 6], [2, 4])
    loads += w.grid(["gru"], ["forward"], ["float32"], [10, 20], [1], [2])
    loads += w.grid(["gru"], ["training", "streaming"], ["float32"], [5], [1], [2])
    loads.append(w.Workload("gru", "forward", 3, 1, 2, 4, name="elman"))
    rows = [bench("measure").run_one(load, threads, peers, 0.0) for load in loads for threads in (1, 2)]
    return {
        "commit": "abc",
        "machine": {"cpu": "a CPU"},
        "versions": dict.fromkeys(times, "1"),
        "absent": ["jax: absent (No module named 'jax')"],
        "ceilings": {"1": CEILING, "2": CEILING},
        "left_out": 0,
        "rows": json.loads(json.dumps(rows)),
    }


def test_markdown_says_who_wins(bench: Callable[[str], Any]) -> None:
    results, tables = bench("results"), bench("tables")
    result = made_up(bench, fastrnn=0.002, torch=0.004, openvino=0.001)
    text = tables.report([result], list(results.rows_of(result)))
    # Always half as fast as OpenVINO and twice as fast as PyTorch.
    assert "| LSTM forward | 1 | 4 | 0.50 | 2.00 | 0.50 | 0 | 0 | 0 | 4 |" in text
    assert "24 of 24 rows, 24 of them beyond the spread" in text
    assert "| H=2 | 0.50 openvino | 0.50 openvino |" in text
    assert "jax: absent" in text
    for heading in ("More threads", "Time against T", "Named workloads", "Single steps"):
        assert f"## {heading}: fastrnn" in text


@pytest.mark.parametrize(
    ("now", "peer_now", "options", "status", "word"),
    [
        (0.002, 0.004, [], 0, "SAME"),
        (0.003, 0.004, [], 1, "SLOWER"),
        (0.001, 0.004, [], 0, "FASTER"),
        (0.003, 0.006, [], 0, "SAME"),  # the machine is slower, not fastrnn
        (0.003, 0.006, ["--raw"], 1, "SLOWER"),
        (0.002, 0.002, [], 1, "SLOWER"),
    ],
)
def test_compare_judges_two_runs(
    bench: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    now: float,
    peer_now: float,
    options: list[str],
    status: int,
    word: str,
) -> None:
    for name, result in (
        ("old", made_up(bench, fastrnn=0.002, torch=0.004)),
        ("new", made_up(bench, fastrnn=now, torch=peer_now)),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    files = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    monkeypatch.setattr(sys, "argv", ["compare.py", *files, *options])
    with pytest.raises(SystemExit) as stopped:
        bench("compare").main()
    assert stopped.value.code == status
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(word) for line in lines) == len(lines) - 3
    assert lines[-1].startswith(f"{len(lines) - 3 if status else 0} of")


def test_compare_needs_something_in_common(bench: Callable[[str], Any]) -> None:
    old, new = made_up(bench, fastrnn=0.002), made_up(bench, fastrnn=0.002)
    old["rows"], new["rows"] = old["rows"][:3], new["rows"][3:]
    with pytest.raises(SystemExit, match="no workload in common"):
        bench("compare").compared(old, new, False)


def test_slower_within_the_spread_is_not_judged_slower(bench: Callable[[str], Any]) -> None:
    old, new = ({"median_s": m, "quartiles_s": q} for m, q in ((1.0, (0.9, 1.2)), (1.1, (1.0, 1.2))))
    ratio, low, high = bench("compare").change(old, new, 1.0)
    assert (ratio, low, high) == (pytest.approx(1 / 1.1), pytest.approx(0.9 / 1.2), pytest.approx(1.2))
    assert bench("results").verdict(low, high) == "UNCLEAR"


def test_every_picture_is_drawn(bench: Callable[[str], Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = made_up(bench, fastrnn=0.002, torch=0.004, openvino=0.001)
    point = {"peer": "fastrnn", "checkpoint": 0, "cell": "gru", "batch": 1, "hidden": 2, "kept_mb": 3}
    result["memory"] = [point | {"steps": T} for T in (10, 100)]
    files = bench("plot").draw([result], list(bench("results").rows_of(result)), tmp_path / "some")
    names = {file.name.removeprefix("some-").split("-")[0].removesuffix(".png") for file in files}
    assert names == {"speedup", "throughput", "steps", "growth", "roofline", "memory"}
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")
    assert (
        bench("plot").overview(result, list(bench("results").rows_of(result)), tmp_path / "one.png").exists()
    )


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


def test_memory_is_measured_in_processes_of_their_own(bench: Callable[[str], Any], tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    options = [
        "--cells",
        "gru",
        "--steps",
        "50",
        "100",
        "--batch",
        "2",
        "--hidden",
        "8",
        "--checkpoint",
        "0",
        "4",
    ]
    command = [sys.executable, str(BENCH / "memory.py"), *options, "--peers", "fastrnn", "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert [(point["steps"], point["checkpoint"]) for point in result["memory"]] == [
        (50, 0),
        (50, 4),
        (100, 0),
        (100, 4),
    ]
    for point in result["memory"]:
        assert "failed" not in point, point
        assert -1 <= point["kept_mb"] < point["peak_mb"]
    assert "OTHER BITS" not in done.stdout
    assert done.stdout.count("same bits") == 4
    assert bench("memory").table(result["memory"]) in bench("tables").report([result], [])


def test_a_memory_figure_that_failed_is_told(bench: Callable[[str], Any]) -> None:
    sizes = {"cell": "gru", "steps": 5, "batch": 1, "hidden": 2, "threads": 1}
    figures = {"peak_mb": 30, "kept_mb": 20, "seconds": 1.0, "bits": "a"}
    points = [
        {"peer": "fastrnn", "checkpoint": 0} | sizes | figures,
        {"peer": "fastrnn", "checkpoint": 8} | sizes | figures | {"kept_mb": 5, "seconds": 1.3, "bits": "b"},
        {"peer": "torch", "checkpoint": 0} | sizes | {"failed": "MemoryError: too much"},
    ]
    plain, other, failed = bench("memory").table(points).splitlines()[2:]
    assert plain.endswith("| 1.00 | 1.00 | same bits |")
    assert other.endswith("| 5 | 1.3 | 0.25 | 1.30 | OTHER BITS |")
    assert "torch | MemoryError: too much |" in failed
