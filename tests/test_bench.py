"""Do the benchmark scripts compare what they say, and keep to their order? Nothing here takes times."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastrnn
import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
Bench = Callable[[str], Any]  # the fixtures below
Script = Callable[..., str]
Patch, Capture = pytest.MonkeyPatch, pytest.CaptureFixture[str]


@pytest.fixture
def bench(monkeypatch: Patch) -> Iterator[Bench]:
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

    def __init__(
        self,
        time: float,
        rival: str | None = None,
        y: float = 1.0,
        fails: bool = False,
        runs: float = math.inf,
    ) -> None:
        self.time, self.rival, self.y, self.fails, self.runs = time, rival, y, fails, runs

    def unable(self, workload: Any) -> str:
        return "no resets" if workload.resets else ""

    def prepare(self, workload: Any, data: Any, threads: int) -> Callable[[], Any]:
        if self.fails:
            raise RuntimeError("out of memory\nlong explanation")
        return lambda: {"y": np.full(3, self.y)}

    def seconds(self, run: Callable[[], Any], repeat: int) -> float:
        self.runs -= 1
        if self.runs < 0:
            raise RuntimeError("lost its device")
        return self.time


def measured(bench: Bench, load: Any, threads: int, peers: dict[str, Fake]) -> dict[str, Any]:
    measure = bench("measure")
    measure.WARM = 0.0, 0.0  # of times that are given
    return measure.run_one(load, threads, peers, 0.0)


def row_of(bench: Bench, peers: dict[str, Fake], **sizes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"cell": "gru", "run": "forward", "steps": 3, "batch": 6, "input_size": 2}
    workload = bench("workloads").Workload(**(options | {"hidden_size": 4} | sizes))
    return measured(bench, workload, 1, peers)


def text_of(bench: Bench, row: dict[str, Any]) -> str:
    return bench("tables").compared(list(bench("results").rows_of({"rows": [row]})))


def test_each_peer_is_compared_with_its_rival(bench: Bench) -> None:
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
    text = text_of(bench, row).splitlines()
    assert "torch 2.00" in next(line for line in text if " fastrnn " in line)
    assert "cudnn 3.00" in next(line for line in text if " fastrnn-cuda " in line)
    assert any(" cudnn-graph " in line for line in text)


def test_a_peer_that_fails_is_named_and_the_others_measured(bench: Bench) -> None:
    row = row_of(bench, {"fastrnn": Fake(0.001), "cudnn": Fake(0.001, fails=True)})
    assert list(row["peers"]) == ["fastrnn"]
    assert row["failed"] == {"cudnn": "RuntimeError: out of memory"}
    assert "cudnn failed: RuntimeError: out of memory" in text_of(bench, row)


@pytest.mark.parametrize("runs", [0, 4])
def test_a_peer_that_fails_while_it_is_timed_leaves_the_row(bench: Bench, runs: int) -> None:
    peers = {"fastrnn": Fake(1.0), "torch": Fake(2.0, "fastrnn", runs=runs), "jax": Fake(3.0, "fastrnn")}
    row = row_of(bench, peers)
    assert {name: entry.get("ratio") for name, entry in row["peers"].items()} == {"fastrnn": None, "jax": 3}
    assert row["failed"] == {"torch": "RuntimeError: lost its device"}
    row = row_of(bench, {"fastrnn": Fake(1.0, runs=runs), "jax": Fake(3.0, "fastrnn")})
    assert row["peers"].keys() == {"jax"}
    assert "ratio" not in row["peers"]["jax"], "nobody to compare it with"
    assert row["failed"].keys() == {"fastrnn"}
    assert not row_of(bench, {"fastrnn": Fake(1.0, runs=runs)})["peers"]


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
    bench: Bench, name: str, dtype: str, apart: float, equal: bool
) -> None:
    peers = {"fastrnn": Fake(0.001), name: Fake(0.001, y=1 + apart)}
    row = row_of(bench, peers, dtype=dtype)
    assert (name in row["peers"]) == equal
    assert "fastrnn" in row["peers"]
    if not equal:
        assert f"{name} and fastrnn disagree on y" in row["failed"][name]


def test_peers_that_cannot_run_give_their_reason(bench: Bench) -> None:
    peers = bench("peers")

    def no_gpu() -> None:
        raise peers.AbsentError("no device")

    peers.ALL.update(a=no_gpu, b=no_gpu)
    found, absent = peers.available(["a", "fastrnn", "b"])
    assert list(found) == ["fastrnn"]
    assert absent == ["a, b: absent (no device)"]


def test_a_peer_that_lacks_something_is_left_out_with_its_reason(bench: Bench) -> None:
    row = row_of(bench, {"torch": Fake(0.001)}, resets=True)
    assert row["unable"] == {"torch": "no resets"}
    assert "torch is left out of 1 rows: no resets" in text_of(bench, row)


def test_a_turn_beside_others_work_is_told(bench: Bench, monkeypatch: Patch) -> None:
    answers = iter([True, False, True, False, True, True])
    monkeypatch.setattr(bench("measure"), "settle", lambda: next(answers))
    row = row_of(bench, {"fastrnn": Fake(1.0), "torch": Fake(2.0, "fastrnn")})
    assert row["unsettled"] == {"torch": 2}
    assert "2 turns of torch began while other threads worked" in text_of(bench, row)


def asked(peers: list[str], loads: list[Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a worker of one thread says of itself, and its rows."""
    lines = "".join(json.dumps([0.0, load.as_dict()]) + "\n" for load in loads)
    command = [sys.executable, str(BENCH / "worker.py"), "1", *peers]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    about, *rows = map(json.loads, done.stdout.splitlines())
    return about, rows


def test_all_peers_on_the_cpu_get_the_same_results(bench: Bench) -> None:
    w = bench("workloads")
    loads = w.grid(["lstm", "gru", "rnn"], w.PASSES, ["float32"], [4], [2], [7], [3])
    loads += [w.Workload("lstm", "forward", 4, 2, 3, 5, num_layers=2, bidirectional=True)]
    loads += [w.Workload("lstm", "streaming", 1, 2, 3, 5, num_layers=2)]
    loads += [w.Workload("gru", "training", 4, 2, 3, 7, dtype="float64")]
    loads += [w.Workload("lstm", "training", 4, 2, 3, 7, tokens=True)]
    loads += [w.Workload("lstm", "training", 60, 2, 3, 7, resets=True)]
    loads += [
        w.Workload("gru", run, 9, 5, 3, 7, num_layers=2, bidirectional=True, ragged=True)
        for run in ("forward", "training")
    ]
    about, rows = asked([*bench("peers").ON_HOST, *bench("peers").ROUNDED], loads)
    assert [row["workload"] for row in rows] == [load.as_dict() for load in loads]
    for row in rows:
        assert not row["failed"], row
        assert row["peers"].keys() | row["unable"].keys() == about["versions"].keys()
    assert rows[0]["peers"].keys() == about["versions"].keys(), "every peer runs a forward pass"
    if absent := about["absent"]:
        pytest.skip("compared without " + "; ".join(absent))


@pytest.fixture
def script(bench: Bench, monkeypatch: Patch, capsys: Capture, tmp_path: Path) -> Script:
    """Call main() of a module, of no commit and where there is no compiler; what it prints."""

    def call(name: str, *options: object) -> str:
        module = bench(name)
        monkeypatch.setattr(module, "commit", lambda: "abc", raising=False)
        monkeypatch.setattr(bench("results"), "commit", lambda: "abc")
        monkeypatch.setattr(bench("progress").signal, "signal", lambda *_: None)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        module.main()
        return capsys.readouterr().out

    return call


def test_run_writes_what_it_measured(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "new" / "out.json"
    options = ["--cells", "gru", "--passes", "forward", "streaming", "--batch", 2, "--hidden", 5]
    printed = script("run", *options, "--seconds", 0, "--peers", "fastrnn", "numpy", "--out", file)
    assert "no ceiling, and no shares of it" in printed
    result = json.loads(file.read_text())
    assert result["commit"] == "abc"
    assert result["versions"].keys() == {"fastrnn", "numpy"}
    assert {"machine", "absent", "ceilings", "left_out"} <= result.keys()
    forward, streaming = result["rows"]
    assert forward["workload"]["steps"] == 100
    assert streaming["workload"]["steps"] == 1
    assert forward["threads"] == 1
    assert {"ratio", "ratio_quartiles", "verdict", "rival"} <= forward["peers"]["numpy"].keys()
    assert sum(streaming["peers"]["fastrnn"]["steps"]["counts"]) >= 300
    assert len(file.read_text().splitlines()) < 20, "one line a row"


def test_what_is_installed_must_be_of_the_commit(bench: Bench, monkeypatch: Patch, tmp_path: Path) -> None:
    results = bench("results")
    module, source = tmp_path / "_core.so", tmp_path / "csrc" / "a.h"
    source.parent.mkdir()
    for file, when in ((module, 2000), (source, 1000)):
        file.touch()
        os.utime(file, (when, when))
    answers = {"describe": "1234", "status": "", "ls-files": "csrc/a.h"}
    monkeypatch.setattr(results, "git", lambda command, *_: answers[command])
    monkeypatch.setattr(results, "TREE", tmp_path)
    spec = importlib.util.spec_from_file_location("fastrnn._core", module)
    monkeypatch.setattr(results.importlib.util, "find_spec", lambda name: spec)
    assert results.commit() == "1234"
    os.utime(source, (3000, 3000))
    with pytest.raises(SystemExit, match=r"_core.so is older than csrc/a.h of commit 1234: build again"):
        results.commit()
    answers["status"] = "M csrc/b.h"
    with pytest.raises(SystemExit, match=r"csrc/b.h is not as in commit 1234: commit it"):
        results.commit()


def test_a_device_that_is_lost_to_a_process_gets_another_one(bench: Bench, monkeypatch: Patch) -> None:
    module, started, ended = bench("run"), [], []

    class Measuring:
        def __init__(self, *command: str) -> None:
            started.append(command)

        def read(self) -> dict[str, Any]:
            return {"versions": {}}

        def ask(self, question: str) -> Any:
            row = {"failed": {"fastrnn-cuda": "RuntimeError: a fault"}}
            return row | ({"lost": True} if len(started) == 1 else {})

        def stop(self) -> None:
            ended.append(self)

    monkeypatch.setattr(module, "Process", Measuring)
    worker = module.Worker(0, ["fastrnn-cuda"])
    load = bench("workloads").Workload("gru", "forward", 3, 2, 4, 4)
    for _ in range(2):
        assert worker.row(load, 0.0) == {"failed": {"fastrnn-cuda": "RuntimeError: a fault"}}
    assert (len(started), len(ended)) == (2, 1)
    assert started[0] == started[1]


def test_a_device_is_lost_after_a_fault(bench: Bench, monkeypatch: Patch) -> None:
    pytest.importorskip("torch")
    calls = bench("torch_calls")

    def fault() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    for synchronize, lost in ((fault, True), (lambda: None, False)):
        monkeypatch.setattr(calls.torch.cuda, "synchronize", synchronize)
        assert calls.device_lost() == lost


def test_a_ceiling_sets_the_bound(bench: Bench) -> None:
    w = bench("workloads")
    # A single step reads W_ih and W_hh, 4 H^2 bytes each; a sequence begins
    # without a state, and each step after the second reads W_hh again.
    for H, level, rate in ((11, "L1", 100), (12, "L2", 50), (35, "L2", 50), (36, "memory", 10)):
        seconds, by = w.bound(w.Workload("rnn", "streaming", 1, 1, H, H), CEILING)
        assert (seconds, by) == (pytest.approx(8 * H * H / rate / 1e9), level)
    for H, level, both, rate in (
        (15, "L1", 50, 100),
        (16, "L2", 50, 50),
        (49, "L2", 10, 50),
        (50, "memory", 10, 10),  # exactly as large as the cache
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


def test_a_cpu_without_a_model_name_is_named(bench: Bench, monkeypatch: Patch, tmp_path: Path) -> None:
    worker, info = bench("worker"), tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    monkeypatch.setattr(worker, "Path", lambda _: info)
    assert worker.machine()["cpu"] == "CPU implementer 0x41, CPU part 0xd40"
    info.write_text("")
    assert worker.machine()["cpu"]


def test_torch_on_the_cpu_leaves_cudnn_alone(bench: Bench, monkeypatch: Patch) -> None:
    torch = pytest.importorskip("torch")
    layer, x = torch.nn.GRU(3, 4), torch.ones(2, 1, 3)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for training in (True, False):
        bench("torch_calls").layer_call(layer, x, training, tf32=False)()
        assert torch.backends.cudnn.allow_tf32


def test_named_workloads_are_runnable(bench: Bench) -> None:
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


def made_up(bench: Bench, **times: float) -> dict[str, Any]:
    """A result of run.py over some sizes, in which everybody takes the given time."""
    peers = {name: Fake(time, rival=None if name == "fastrnn" else "fastrnn") for name, time in times.items()}
    w = bench("workloads")
    loads = w.grid(["lstm", "gru"], ["forward"], ["float32"], [5], [1, 6], [2, 4])
    loads += w.grid(["gru"], ["forward"], ["float32"], [10, 20], [1], [2])
    loads += w.grid(["gru"], ["training", "streaming"], ["float32"], [5], [1], [2])
    loads.append(w.Workload("gru", "forward", 3, 1, 2, 4, name="elman"))
    rows = [measured(bench, load, threads, peers) for load in loads for threads in (1, 2)]
    return {
        "commit": "abc",
        "machine": {"cpu": "a CPU"},
        "versions": dict.fromkeys(times, "1"),
        "absent": ["jax: absent (No module named 'jax')"],
        "ceilings": {"1": CEILING, "2": CEILING},
        "left_out": 0,
        "rows": json.loads(json.dumps(rows)),
    }


def test_markdown_says_who_wins(bench: Bench) -> None:
    result = made_up(bench, fastrnn=0.002, torch=0.004, openvino=0.001)
    text = bench("tables").report([result])
    # Always half as fast as OpenVINO and twice as fast as PyTorch.
    assert "| LSTM forward, T=5, beyond the grid | 1 | 4 | 0.50 | 2.00 | 0.50 | 0 | 0 | 0 | 4 |" in text
    assert "24 of 24 rows, 24 of them beyond the spread" in text
    assert "| H=2 | 0.50 openvino | 0.50 openvino |" in text
    assert "jax: absent" in text
    for heading in ("More threads: fastrnn", "Named workloads: fastrnn", "Single steps: fastrnn"):
        assert f"## {heading}\n" in text


def with_times(bench: Bench, loads: list[tuple[int, Any]], **times: Callable[..., float]) -> Any:
    """A result in which each takes the time that a function of workload and threads gives."""
    rows = []
    for threads, load in loads:
        names = {
            name: Fake(time(load, threads), None if name.startswith("fastrnn") else "fastrnn")
            for name, time in times.items()
        }
        rows.append(measured(bench, load, threads, names))
    ceilings = {"1": CEILING, "2": CEILING}
    return {"commit": "abc", "machine": {"cpu": "a CPU"}, "versions": {}, "ceilings": ceilings, "rows": rows}


def test_growth_is_told_by_its_power(bench: Bench) -> None:
    w, results = bench("workloads"), bench("results")
    base = {"steps": [100], "batches": [16], "hidden": [128]}
    axes = [{"steps": [100, 200, 400]}, {"batches": [1, 2, 16]}, {"hidden": [32, 64]}, {"layers": [2, 4]}]
    loads = [(1, load) for axis in axes for load in w.grid(["gru"], ["forward"], ["float32"], **base | axis)]
    loads += [(2, loads[0][1])]
    loads += [
        (1, w.Workload("rnn", "forward", 100, batch, 128, 128)) for batch in (1, 2, 3)
    ]  # not every axis
    loads += [(1, w.Workload("gru", "forward", 100, 16, 64, 128))]

    def seconds(load: Any, threads: int) -> float:
        return load.steps / 100 * load.batch / 16 * load.num_layers * (load.hidden_size / 128) ** 2 / threads

    result = with_times(
        bench,
        list(dict.fromkeys(loads)),
        fastrnn=seconds,
        torch=lambda load, n: 1e-4 * load.steps**1.5 if load.steps > 200 else 9.0,
    )
    lines = results.growth([result, result | {"rows": result["rows"][:5]}])
    assert lines.keys() == {("gru", "forward")}
    values = {
        name: [results.AXES[name].value(row) for row in line]
        for name, line in lines["gru", "forward"].items()
    }
    assert values == {
        "T": [100, 200, 400],
        "B": [1, 2, 16],
        "H = I": [32, 64, 128],
        "layers": [1, 2, 4],
        "threads": [1, 2],
    }
    for name, line in lines["gru", "forward"].items():
        assert results.exponent(line, name, "fastrnn") == pytest.approx(results.AXES[name].power)
    text = bench("tables").report([result])
    assert "| GRU forward | 1000 | 2000 | 4000 | 1.00 |" in text
    assert "| ms; power of H = I, expected 2 | H=32 | H=64 | H=128 | power: fastrnn | power: torch |" in text


def test_a_row_of_several_files_counts_once(bench: Bench) -> None:
    w, results = bench("workloads"), bench("results")
    load = w.Workload("gru", "forward", 100, 16, 128, 128)
    own, peer = (lambda load, n: 1.0), (lambda load, n: 2.0)
    short = {"fastrnn-bfloat16": lambda load, n: 0.5, "fastrnn-int8": lambda load, n: 0.2}
    files = [
        with_times(bench, [(1, load)], fastrnn=own, numpy=lambda load, n: 3.0),
        with_times(bench, [(1, load)], fastrnn=own, torch=peer, jax=peer),
        with_times(bench, [(1, load)], fastrnn=lambda load, n: 1.1, **short),
    ]
    both, rounded = results.all_rows(files)
    assert both.peers.keys() == {"fastrnn", "torch", "jax", "numpy"}
    assert both.against().peer == "torch"
    assert rounded.peers.keys() == {"fastrnn", *short}
    text = bench("tables").report(files)
    assert "| GRU forward, T=100 | 1 | 1 | 2.00 | 2.00 | 2.00 | 1 |" in text
    assert "| GRU B=16 H=128 | 1.1e+03 | 2.20 | 5.50 | 2.50 |  |  |" in text
    aims = [one.aim for one in bench("targets").judged([*files, *files])]
    assert len(aims) == len(set(aims))
    # One run with everybody is both rows.
    (whole,) = with_times(bench, [(1, load)], fastrnn=own, torch=peer, **short)["rows"]
    assert [row.peers.keys() for row in results.all_rows([{"rows": [whole]}])] == [
        {"fastrnn", *short},
        {"fastrnn", "torch"},
    ]


def test_a_row_is_slower_if_any_peer_is(bench: Bench) -> None:
    near = {"rival": "fastrnn", "ratio": 0.94, "ratio_quartiles": [0.8, 1.1], "verdict": "UNCLEAR"}
    sure = {"rival": "fastrnn", "ratio": 0.96, "ratio_quartiles": [0.95, 0.97], "verdict": "SLOWER"}
    load = bench("workloads").Workload("gru", "forward", 100, 1, 64, 64).as_dict()
    times = {"median_s": 1.0, "quartiles_s": [0.9, 1.1]}
    peers = {"fastrnn": times, "torch": near | times, "jax": sure | times}
    result = {"rows": [{"workload": load, "threads": 1, "peers": peers, "failed": {}}]}
    (row,) = bench("results").all_rows([result])
    assert (row.against().peer, row.against().verdict) == ("torch", "SLOWER")
    assert row.against(peers=["torch"]).verdict == "UNCLEAR"
    (found,) = bench("targets").of_row(row)
    assert (found.value, found.high) == (0.94, 0.97)


def test_times_of_one_row_are_compared_turn_by_turn(bench: Bench) -> None:
    class Drifting(Fake):
        def seconds(self, run: Callable[[], Any], repeat: int) -> float:
            self.time *= 1.5
            return self.time

    peers = {"fastrnn": Drifting(2.0), "fastrnn-int8": Drifting(0.5), "torch": Drifting(8.0, "fastrnn")}
    (row,) = bench("results").rows_of({"rows": [row_of(bench, peers)]})
    found = row.ratio("fastrnn", "fastrnn-int8")
    assert (found.median, found.low, found.high) == (4, 4, 4)
    assert row.ratio("torch", "fastrnn").high == 4
    assert row.ratio("torch", "fastrnn-int8").high > 20, "of quartiles that are far apart"


def test_what_failed_is_a_miss_and_is_told(bench: Bench) -> None:
    w, targets = bench("workloads"), bench("targets")
    load = w.Workload("gru", "forward", 100, 1, 4, 4)
    rows = [
        measured(bench, load, 1, peers)
        for peers in (
            {"fastrnn": Fake(1.0), "torch": Fake(2.0, "fastrnn"), "jax": Fake(2.0, "fastrnn", y=2.0)},
            {"fastrnn": Fake(1.0), "torch": Fake(2.0, "fastrnn", y=2.0), "jax": Fake(2.0, "fastrnn", y=2.0)},
            {"fastrnn": Fake(1.0, fails=True), "torch": Fake(2.0, "fastrnn")},
        )
    ]
    rows.append(rows[0] | {"peers": {}, "failed": {"all": "ended with status -9"}})
    sizes = {"cell": "gru", "steps": 5, "batch": 1, "hidden": 2, "threads": 1}
    point = {"peer": "fastrnn", "checkpoint": 0} | sizes
    results = [
        {"rows": rows, "left_out": 7, "absent": ["openvino: absent (no module)"]},
        {"memory": [point | {"failed": "MemoryError"}, point | {"peer": "torch", "failed": "MemoryError"}]},
    ]
    apart, failed, died, memory = targets.broken(results)
    assert apart.startswith(f"{load}, 1 thread(s): torch: RuntimeError: torch and fastrnn disagree on y")
    assert failed.endswith("fastrnn: RuntimeError: out of memory")
    assert died.endswith("all: ended with status -9")
    assert memory == "memory of GRU T5 B1 H2 fastrnn: MemoryError"
    assert (
        sum(one.value < one.least for one in targets.judged(results) if one.aim.startswith("fastrnn runs"))
        == 4
    )
    for text in (targets.table(results), bench("results").not_measured(results)):
        assert "- 7 rows not measured: the run was stopped.\n" in text
        assert f"- fastrnn failed: RuntimeError: out of memory ({load}, 1 thread(s)).\n" in text
        assert "- jax failed: RuntimeError: jax and fastrnn disagree on y" in text
        assert "- memory: torch failed: MemoryError (gru T5).\n" in text
        assert "- openvino: absent (no module).\n" in text


def test_means_are_over_the_grid(bench: Bench) -> None:
    w = bench("workloads")
    inside = w.grid(["lstm"], ["forward"], ["float32"], [1, 100], [1, 128], [16])
    outside = w.grid(["lstm"], ["forward"], ["float32"], [10], [1], [16])
    outside += w.grid(["lstm"], ["forward"], ["float32"], [1], [256, 1], [16], layers=[2])
    result = with_times(
        bench,
        [(1, load) for load in inside + outside],
        fastrnn=lambda load, n: 1.0,
        torch=lambda load, n: 2.0 if load in inside else 9.0,
    )
    found = {one.aim: one for one in bench("targets").judged([result])}
    mean = found["forward, mean: PyTorch / fastrnn"]
    assert (mean.what, mean.value) == ("mean of 4 sizes", pytest.approx(2))
    assert [load.beyond for load in inside + outside] == [False] * 4 + [True] * 3


def test_targets_hold_rows_against_what_was_asked(bench: Bench) -> None:
    w, targets = bench("workloads"), bench("targets")
    # At the peak rate a training step of these takes so long; and so far the peers' times are from it.
    sizes = [w.Workload("gru", "training", 100, batch, 16, 16) for batch in (100, 101, 102, 103)]
    least = {load: w.bound(load, CEILING)[0] for load in sizes}
    beside = dict(zip(sizes, (1 / 0.74, 1 / 0.74, 1 / 0.76, 1 / 0.76), strict=True))
    ratios = dict(zip(sizes, (1.25, 1.15, 1.15, 0.95), strict=True))
    forward = w.Workload("lstm", "forward", 100, 16, 128, 128)
    peak = forward.flop / 200e9
    result = with_times(
        bench,
        [(1, load) for load in [*sizes, forward]] + [(2, forward)],
        fastrnn=lambda load, n: least[load] * beside[load] / ratios[load] if load in least else peak / 0.87,
        torch=lambda load, n: least[load] * beside[load] if load in least else peak / 0.8,
        jax=lambda load, n: 9.0,
    )
    counts = {
        (line.split(" | ")[0], line.split(" | ")[1]): line.split(" | ")[3:5]
        for line in targets.table([result, result]).split("Missed")[0].splitlines()[2:-1]
    }
    aim = "| LSTM and GRU forward, T >= 100, B >= 16, H >= 128: part of the FMA peak"
    assert counts["| training, T = 100: best of PyTorch and JAX / fastrnn", "1"] == ["4", "3"]
    assert counts["| training, T = 100, where that peer is under 75 % of the bound: the same", "1"] == [
        "2",
        "1",
    ]
    assert (counts[aim, "1"], counts[aim, "2"]) == (["1", "0"], ["1", "1"])
    missed = targets.table([result]).split("Missed")[1].splitlines()
    assert sum("B101" in line and "torch, 74% FMA" in line and "| 1.2 |" in line for line in missed) == 1


def test_what_was_asked_of_pairs_of_rows_and_of_memory(bench: Bench) -> None:
    w = bench("workloads")
    load = w.Workload("lstm", "forward", 5, 1, 2, 2, num_layers=2)
    stream = w.Workload("rnn", "streaming", 1, 1, 64, 64)
    result = with_times(
        bench,
        [(1, load), (2, load), (1, stream)],
        fastrnn=lambda load, n: 4e-6 if load == stream else 2.0 - 0.5 * (n - 1),
        torch=lambda load, n: 1.6e-5,
    )
    point = {
        "peer": "fastrnn",
        "cell": "gru",
        "steps": 100_000,
        "batch": 1,
        "hidden": 2,
        "threads": 1,
        "bits": "a",
    }
    result["memory"] = [
        point | {"checkpoint": 0, "kept_mb": 900, "turns_s": [1.0, 1.0, 2.0]},
        point | {"checkpoint": 9, "kept_mb": 100, "turns_s": [1.5, 1.5, 1.0], "bits": "b"},
    ]
    result["imports"] = [{"numpy_s": 0.1, "fastrnn_s": seconds} for seconds in (0.05, 0.04, 0.9)]
    found = {one.aim: (one.value, one.value >= one.least) for one in bench("targets").judged([result])}
    assert found["2 layers, forward: one core / two"] == (pytest.approx(2 / 1.5), False)
    assert found["streaming step, B = 1, H = 64: 3 us / its time"] == (pytest.approx(0.75), False)
    assert found["streaming step, B = 1, H = 64: best peer / fastrnn"] == (pytest.approx(4), True)
    assert found["checkpoint: memory kept without it / with it"] == (9, True)
    assert found["checkpoint: time without it / with it"] == (pytest.approx(1 / 1.5), False)
    assert found["checkpoint: gradients of the same bits (1: yes)"] == (0, False)
    assert found["import: 60 ms / its time"] == (pytest.approx(1.2), True)


def test_figures_of_two_cpus_do_not_mix(
    bench: Bench, monkeypatch: Patch, tmp_path: Path, capsys: Capture
) -> None:
    files = [tmp_path / name for name in ("a.json", "b.json")]
    result = made_up(bench, fastrnn=0.002, torch=0.004)
    small = [row for row in result["rows"] if row["workload"]["hidden_size"] == 2]
    for file, cpu, rows in zip(files, ("this CPU", "that CPU"), (result["rows"], small), strict=True):
        file.write_text(json.dumps(result | {"machine": {"cpu": cpu}, "rows": rows}))
    monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, files)])
    bench("tables").main()
    this, that = capsys.readouterr().out.split("# that CPU\n")
    assert "| LSTM forward, T=5, beyond the grid | 1 | 4 | 2.00 |" in this.removeprefix("# this CPU\n")
    assert "| LSTM forward, T=5, beyond the grid | 1 | 2 | 2.00 |" in that
    monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, files)])
    with pytest.raises(SystemExit) as stopped:
        bench("plot").main()
    assert stopped.value.code == 2
    assert "files of 2 CPUs, but a picture is of one: this CPU; that CPU" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["run", "memory"])
def test_more_threads_than_cpus_are_refused(
    bench: Bench, monkeypatch: Patch, capsys: Capture, script: str
) -> None:
    count = len(os.sched_getaffinity(0))
    for threads in (0, count + 1):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", "--threads", str(threads)])
        with pytest.raises(SystemExit) as stopped:
            bench(script).main()
        assert stopped.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.endswith(f"{threads}, but a thread needs a CPU and this process may use {count}")


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
    bench: Bench,
    monkeypatch: Patch,
    tmp_path: Path,
    capsys: Capture,
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


def test_compare_needs_something_in_common(bench: Bench) -> None:
    old, new = made_up(bench, fastrnn=0.002), made_up(bench, fastrnn=0.002)
    old["rows"], new["rows"] = old["rows"][:3], new["rows"][3:]
    with pytest.raises(SystemExit, match="no workload in common"):
        bench("compare").compared(old, new, False)
    with pytest.raises(SystemExit, match="two CPUs: a CPU; another"):
        bench("compare").compared(old, new | {"machine": {"cpu": "another"}}, False)


def test_compare_counts_failures(bench: Bench) -> None:
    old, new = made_up(bench, fastrnn=0.002), made_up(bench, fastrnn=0.002)
    new["rows"][0] |= {"peers": {}, "failed": {"fastrnn": "MemoryError"}}
    old["rows"][1] |= {"peers": {}, "failed": {"all": "ended"}}
    text, worse = bench("compare").compared(old, new, False)
    assert worse == 1
    assert "FAILED: MemoryError" in text
    assert "FAILED in the old run: ended" in text
    assert text.splitlines()[-1] == f"0 of {len(old['rows'])} times are slower beyond the spread, 1 failed"


def test_slower_within_the_spread_is_not_judged_slower(bench: Bench) -> None:
    old, new = ({"median_s": m, "quartiles_s": q} for m, q in ((1.0, (0.9, 1.2)), (1.1, (1.0, 1.2))))
    found = bench("results").quotient("fastrnn", old, new)
    assert found.median == pytest.approx(1 / 1.1)
    assert (found.low, found.high) == (pytest.approx(0.9 / 1.2), pytest.approx(1.2))
    assert found.verdict == "UNCLEAR"


def test_every_picture_is_drawn(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = made_up(bench, fastrnn=0.002, torch=0.004, openvino=0.001)
    w = bench("workloads")
    lines = [(1, w.Workload("gru", "forward", T, 16, 128, 128)) for T in (10, 100, 200)]
    result["rows"] += with_times(bench, lines, fastrnn=lambda load, n: 1.0)["rows"]
    point = {"peer": "fastrnn", "checkpoint": 0, "cell": "gru", "batch": 1, "hidden": 2, "kept_mb": 3}
    result["memory"] = [point | {"steps": T} for T in (10, 100)]
    plot = bench("plot")
    files = plot.draw([result], tmp_path / "some")
    names = {file.name.removeprefix("some-").split("-")[0].removesuffix(".png") for file in files}
    assert names == {"speedup", "throughput", "steps", "growth", "roofline", "memory"}, "no GPU, no crossover"
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")
    rows = bench("results").all_rows([result])
    assert {row.load.hidden_size for row in plot.filling(plot.plain(rows))} == {2, 4}, "without a lone size"
    assert plot.draw([result], tmp_path / "few", ["steps"]) == [tmp_path / "few-steps.png"]


def beside_a_gpu(bench: Bench) -> dict[str, Any]:
    """A result in which the CPU takes B H / 250 of what the GPU does."""
    w = bench("workloads")
    loads = w.grid(["lstm"], ["forward"], ["float32"], [100], [1, 8, 64], [16, 64, 500])
    return with_times(
        bench,
        [(1, load) for load in loads],
        **{
            "fastrnn": lambda load, n: load.batch * load.hidden_size / 250,
            "fastrnn-cuda": lambda load, n: 1.0,
        },
    )


def test_from_where_the_gpu_is_faster(bench: Bench) -> None:
    text = bench("tables").report([beside_a_gpu(bench)])
    assert "| LSTM forward, T=100 | 1 | B=64: 4.10 | B=8: 2.05 | B=1: 2.00 |" in text
    result = beside_a_gpu(bench)
    result["rows"] = [row for row in result["rows"] if row["workload"]["batch"] < 64]
    assert "| not to B=8: 0.51 | B=8: 2.05 | B=1: 2.00 |" in bench("tables").report([result])
    assert "the GPU is faster" not in bench("tables").report([made_up(bench, fastrnn=1.0, torch=2.0)])


def test_the_picture_of_where_the_gpu_is_faster(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = bench("plot").draw([beside_a_gpu(bench)], tmp_path / "some")
    assert tmp_path / "some-crossover-T100-1t.png" in files


def device_rows(bench: Bench, seconds: Callable[[Any, str], float | None]) -> dict[str, Any]:
    """A result of device_targets.py in which each peer takes the given time, or has not run."""
    rows = []
    for names, loads in bench("device_targets").groups().items():
        for load in loads:
            given = {name: seconds(load, name) for name in names}
            peers = {
                name: {"median_s": time, "quartiles_s": [time, time]}
                for name, time in given.items()
                if time is not None
            }
            rows.append({"workload": load.as_dict(), "threads": 1, "peers": peers})
    return {"rows": rows}


def verdicts(text: str) -> list[str]:
    return [line.split(" | ")[-1].removesuffix(" |") for line in text.splitlines()[2:]]


def test_device_targets_say_what_was_reached(bench: Bench) -> None:
    module = bench("device_targets")
    assert set(verdicts(module.table([]))) == {"open: no GPU was at hand"}
    results = [json.loads(file.read_text()) for file in sorted((BENCH / "results").glob("*-device.json"))]
    assert module.table(results) in (BENCH.parent / "docs/gpu.md").read_text(), "--show prints it"
    assert set(verdicts(module.table([{"rows": []}]))) == {"not run"}

    def all_reached(load: Any, name: str) -> float:
        return 1.0 if name.startswith("fastrnn") else 3.0

    stream = {"median_s": 6e-6, "quartiles_s": [5e-6, 7e-6], "turns": 20}
    text = module.table([device_rows(bench, all_reached) | {"stream": stream}])
    assert verdicts(text) == ["pass"] * (len(module.AIMS) + 1)
    assert "| >= 3 x | 3.00 - 3.00, median 3.00 |" in text
    assert "| <= 6 us | 6.00 us (5.00-7.00) |" in text

    def one_misses(load: Any, name: str) -> float | None:
        if name == module.FLASHRNN:
            return None
        slow = (load.cell, load.dtype, load.batch, load.hidden_size) == ("gru", "bfloat16", 64, 512)
        return 1.0 if name.startswith("fastrnn") else 2.9 if slow else 3.5

    text = module.table([device_rows(bench, one_misses) | {"stream": stream | {"median_s": 6.1e-6}}])
    first, *others = verdicts(text)
    assert first == "miss"
    assert "GRU  forward   T512 B64 I512 H512 bfloat16: 2.90 (2.90-2.90)" in text.splitlines()[2]
    assert others == ["pass"] * (len(module.AIMS) - 2) + ["not run", "miss"]

    def some_failed(load: Any, name: str) -> float | None:
        return None if load.batch == 64 and name == module.CUDNN else all_reached(load, name)

    text = module.table([device_rows(bench, some_failed) | {"stream": {"failed": "no memory"}}])
    assert verdicts(text)[0] == "pass, 4 of 12 sizes not run"
    assert verdicts(text)[-1] == "not run: no memory"


def test_device_targets_measure_every_case(bench: Bench) -> None:
    module = bench("device_targets")
    together = [(set(names), load) for names, loads in module.groups().items() for load in loads]
    for aim in module.AIMS:
        assert aim.loads
        for load in aim.loads:
            assert load.steps == 512
            assert load.input_size == load.hidden_size
            assert any({aim.rival, aim.own} <= names and one == load for names, one in together), aim.case
    assert {name for names, _ in together for name in names} <= bench("peers").ALL.keys()


def test_device_targets_are_measured_and_written(
    bench: Bench, script: Script, monkeypatch: Patch, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    module, w = bench("device_targets"), bench("workloads")
    if importlib.util.find_spec("flashrnn"):
        pytest.skip("FlashRNN is installed, and would be measured")
    load, file = w.Workload("gru", "forward", 3, 2, 4, 4), tmp_path / "out.json"
    aims = (module.Aim("a case", 1e-9, (load,), "torch"), module.Aim("another", 1, (load,), module.FLASHRNN))
    monkeypatch.setattr(module, "AIMS", tuple(replace(aim, own="fastrnn") for aim in aims))
    monkeypatch.setattr(module, "OWN", "fastrnn")
    monkeypatch.setattr(module, "replayed", lambda: None)
    stream = {"median_s": 5e-6, "quartiles_s": [5e-6, 5e-6], "turns": 20}
    monkeypatch.setattr(module, "stream_step", lambda peer: stream)
    printed = script("device_targets", "--out", file, "--row-seconds", 0)
    result = json.loads(file.read_text())
    assert verdicts(module.table([result])) == ["pass", "not run", "pass"]
    assert result["absent"] == ["flashrnn-graph: absent (no module named flashrnn)"]
    assert "flashrnn-graph: absent" in printed
    assert printed.endswith("1 of 2 rows; 2 cases reached\n")


@pytest.mark.parametrize("name", ["tune", "device_targets"])
def test_what_needs_a_gpu_says_what_is_missing(
    bench: Bench, script: Script, monkeypatch: Patch, tmp_path: Path, capsys: Capture, name: str
) -> None:
    def no_gpu(graph: bool) -> None:
        raise bench("peers").AbsentError("no device")

    monkeypatch.setattr(bench("on_gpu"), "FastRNNCuda", no_gpu)
    for options, message in (([], "--out is missing"), (["--out", tmp_path / "a"], "no device: nothing")):
        with pytest.raises(SystemExit) as stopped:
            script(name, *options)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class FakeDevice:
    """As FastRNNCuda, but that its layers are on the CPU, and the times of its launches are given."""

    def __init__(self, times: dict[str, float], wrong: str = "") -> None:
        self.times, self.wrong, self.calls, self.wish = times, wrong, self, "step"
        self.reports: dict[str, str] = {}

    def layer(self, load: Any, given: Any) -> tuple[Any, Any]:
        layer = getattr(fastrnn, load.cell.upper())(load.input_size, load.hidden_size)
        layer.load_state_dict(given.weights)
        return layer, given.x

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        call()
        return call

    def seconds(self, run: Any, repeat: int) -> float:
        return self.times[run.wish] if isinstance(run, FakeReplay) else 1e-3

    def launches(self, layer: Any, load: Any) -> list[dict[str, Any]]:
        common = {"columns": 16, "tile": "wide", "estimate": 1e-6}
        return [{"strategy": "cta", "ranks": 1} | common, {"strategy": "cluster", "ranks": 8} | common]

    def call(self, layer: Any, load: Any, given: Any, x: Any) -> Callable[[], Any]:
        return lambda: {"y": np.full(3, 2.0 if self.wish == self.wrong else 1.0)}

    def finish(self, call: Callable[[], Any]) -> FakeReplay:
        return FakeReplay(self.wish, call())


@dataclass
class FakeReplay:
    wish: str  # that it was captured with
    result: Any

    def __call__(self) -> Any:
        return self.result


def test_a_stream_is_timed_on_the_device(bench: Bench, monkeypatch: Patch) -> None:
    module, workloads = bench("device_targets"), bench("workloads")
    monkeypatch.setattr(module, "STEPS", 3)
    monkeypatch.setattr(module, "STREAM", workloads.Workload("lstm", "streaming", 1, 1, 5, 5))
    found = module.stream_step(FakeDevice({}))
    assert found["median_s"] == pytest.approx(1e-3 / 3, rel=1e-3)
    monkeypatch.setattr("fastrnn.Stream.reset", lambda stream: None)
    with pytest.raises(RuntimeError, match="the stream and a sequence disagree"):
        module.stream_step(FakeDevice({}))


@pytest.fixture
def tuned(bench: Bench, monkeypatch: Patch) -> Callable[..., dict[str, Any]]:
    """Tune one size on a device whose times are given: the row."""
    module, workloads = bench("tune"), bench("workloads")

    def tune(device: FakeDevice, load: Any = None, refused: str = "") -> dict[str, Any]:
        def insist(layer: Any, x: Any, strategy: str, backward: bool) -> None:
            device.wish = strategy
            if strategy == refused:
                raise RuntimeError("it does not fit")

        monkeypatch.setattr(module, "insist", insist)
        monkeypatch.setattr(module, "wished", lambda **wish: nullcontext())
        found: dict[str, Any] = module.tune(
            device, load or workloads.Workload("gru", "forward", 512, 64, 16, 256), 0.0
        )
        return found

    return tune


def test_tuning_times_every_launch_beside_steps(
    bench: Bench, tuned: Callable[..., dict[str, Any]], capsys: Capture
) -> None:
    module = bench("tune")
    times = {"step": 512 * 4e-6, "cta": 512 * 2e-6, "cluster": 512 * 1.5e-6}
    row = tuned(FakeDevice(times))
    began = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[2] for line in began] == ["step", "cta 1x16 wide", "cluster 8x16 wide"]
    assert [launch["median_s"] for launch in row["launches"]] == pytest.approx(list(times.values()), rel=1e-3)
    assert not row["failed"]
    text = module.report([row])
    assert "| 4.00 | cluster 8x16 wide | 1.50 (1.50-1.50) | 2.67 | 67% | cta 1x16 wide: 2.00 |" in text
    row = tuned(FakeDevice(times, wrong="cluster"))
    assert "cluster 8x16 wide and step disagree on y" in row["failed"]["cluster 8x16 wide"]
    assert "| cta 1x16 wide | 2.00" in module.report([row])
    row = tuned(FakeDevice(times), refused="cta")
    assert row["failed"] == {"cta 1x16 wide": "RuntimeError: it does not fit"}
    assert module.best(tuned(FakeDevice(times), refused="step")) is None, "nothing to compare it with"


def test_the_table_of_launches_is_what_was_measured(
    bench: Bench, tuned: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    module, workloads = bench("tune"), bench("workloads")
    folder = BENCH / "results"
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*-tune.json"))]
    assert module.TABLE.read_text() == module.header(results), "bench/tune.py --table writes it"
    device = FakeDevice({"step": 512 * 4e-6, "cta": 512 * 2e-6, "cluster": 512 * 1.5e-6})
    training = workloads.Workload("lstm", "training", 512, 1, 16, 512, dtype="bfloat16")
    versions = {"device": "NVIDIA H200", "compute_capability": "9.0", "multiprocessors": 132}
    rows = [tuned(device), tuned(device, refused="step"), tuned(device, training)]
    text = module.header([{"commit": "abc", "versions": versions, "rows": rows}])
    assert 'constexpr char kSource0[] = "measured on NVIDIA H200, commit abc";' in text
    times = "{8, 16, TileKind::wide}, 1.5e-06, 4e-06},"
    assert f"{{90, 132, kSource0, Cell::gru, DType::float32, false, 256, 64, {times}" in text
    assert f"Cell::lstm, DType::bfloat16, true, 512, 1, {times}" in text
    assert "std::array<Tuned, 2>" in text
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("compared without compiling it: there is no compiler")
    (tmp_path / "tuned.h").write_text(text)
    (tmp_path / "use.cpp").write_text(
        '#include "tuned.h"\nstatic_assert(fastrnn::cuda::kTuned[1].batch == 1);\n'
    )
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-I", BENCH.parent / "csrc"]
    subprocess.run([*command, tmp_path / "use.cpp"], check=True)


def test_tuning_ends_where_a_launch_faults(
    bench: Bench, script: Script, monkeypatch: Patch, tmp_path: Path, capsys: Capture
) -> None:
    module, file = bench("tune"), tmp_path / "tune.json"
    lost = iter([False, True])
    calls = SimpleNamespace(versions=dict, device_lost=lambda: next(lost))
    monkeypatch.setattr(module, "replayed", lambda: SimpleNamespace(calls=calls))

    def row(peer: Any, load: Any, seconds: float) -> dict[str, Any]:
        return {"workload": load.as_dict(), "launches": [], "failed": {"cluster 8x16 tall": "RuntimeError"}}

    monkeypatch.setattr(module, "tune", row)
    with pytest.raises(SystemExit) as stopped:
        script("tune", "--out", file)
    assert stopped.value.code == 1
    assert len(json.loads(file.read_text())["rows"]) == 2
    assert "a launch faulted: this process can measure no more" in capsys.readouterr().out


def test_tuning_begins_with_what_is_wanted_most(bench: Bench) -> None:
    sizes = bench("tune").sizes()
    assert len(set(sizes)) == len(sizes)
    assert {(load.cell, load.dtype, load.steps) for load in sizes[:24]} == {
        (cell, "bfloat16", 512) for cell in ("lstm", "gru")
    }
    assert {load.hidden_size for load in sizes[:24]} == {256, 512, 768}


def test_flashrnn_is_absent_or_unable_for_a_reason(bench: Bench, monkeypatch: Patch) -> None:
    w = bench("workloads")
    peer = object.__new__(bench("flashrnn_peer").FlashRNN)
    able = w.Workload("lstm", "training", 512, 16, 256, 256, dtype="bfloat16")
    assert not peer.unable(able)
    for change, reason in (
        ({"cell": "gru"}, "no fused GRU"),
        ({"dtype": "float32"}, "float32 is rounded"),
        ({"bidirectional": True}, "one direction"),
        ({"ragged": True}, "no lengths"),
        ({"resets": True}, "no resets"),
        ({"run": "streaming"}, "no stream"),
    ):
        assert reason in peer.unable(replace(able, **change))


def test_cudnn_sizes_that_matter_most_come_first(bench: Bench) -> None:
    pytest.importorskip("torch")
    cudnn = bench("cudnn")
    points = cudnn.points(["lstm"], ["forward"], ["fp32"], list(cudnn.HIDDEN), list(cudnn.BATCH))
    assert len(set(points)) == len(points) == 8 * 5
    first = {(point.hidden, point.batch) for point in points[:10]}
    assert first == {(H, B) for H in (256, 512, 768, 1024, 2048) for B in (16, 64)}


def test_cudnn_writes_what_it_measured(
    bench: Bench, monkeypatch: Patch, tmp_path: Path, capsys: Capture
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


def test_cudnn_without_a_gpu_says_so(bench: Bench, monkeypatch: Patch, capsys: Capture) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["cudnn.py"])
    with pytest.raises(SystemExit) as stopped:
        bench("cudnn").main()
    assert stopped.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_measuring_ends_with_its_time(bench: Bench, monkeypatch: Patch) -> None:
    progress = bench("progress")
    monkeypatch.setattr(progress.signal, "signal", lambda *_: None)
    for cost in (lambda item: 1.0, lambda item: item / 7):
        assert list(progress.within(60, [1, 2, 3], cost)) == [1, 2, 3]
        assert list(progress.within(-1, [1, 2, 3], cost)) == []


def test_memory_is_measured_in_processes_of_their_own(bench: Bench, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    options = ["--cells", "gru", "--steps", 50, 100, "--batch", 2, "--hidden", 8, "--checkpoint", 0, 4]
    printed = script("memory", *options, "--turns", 2, "--peers", "fastrnn", "--out", file)
    result = json.loads(file.read_text())
    steps = [(point["steps"], point["checkpoint"]) for point in result["memory"]]
    assert steps == [(50, 0), (50, 4), (100, 0), (100, 4)]
    for point in result["memory"]:
        assert "failed" not in point, point
        assert -1 <= point["kept_mb"] < point["peak_mb"]
        assert len(point["turns_s"]) == 2
    assert "OTHER BITS" not in printed
    assert printed.count("same bits") == 4
    assert bench("memory").table(result["memory"]) in bench("tables").report([result])


def test_a_memory_figure_that_failed_is_told(bench: Bench) -> None:
    sizes = {"cell": "gru", "steps": 5, "batch": 1, "hidden": 2, "threads": 1}
    figures = {
        "peak_mb": 30,
        "kept_mb": 20,
        "first_s": 2.0,
        "seconds": 1.0,
        "turns_s": [1.0] * 4,
        "bits": "a",
    }
    slower = {"kept_mb": 5, "seconds": 1.3, "turns_s": [1.1, 1.2, 1.4, 1.6], "bits": "b"}
    points = [
        {"peer": "fastrnn", "checkpoint": 0} | sizes | figures,
        {"peer": "fastrnn", "checkpoint": 8} | sizes | figures | slower,
        {"peer": "torch", "checkpoint": 0} | sizes | {"failed": "MemoryError: too much"},
    ]
    plain, other, failed = bench("memory").table(points).splitlines()[2:]
    assert plain.endswith("| 1.00 | 1.00 | same bits |")
    assert other.endswith("| 5 | 2 | 1.3 | 0.25 | 1.30 (1.12-1.55) | OTHER BITS |")
    assert "torch | MemoryError: too much |" in failed


def test_a_memory_process_that_fails_says_why(bench: Bench) -> None:
    sizes = {"cell": "gru", "steps": 5, "batch": 1, "hidden": 2, "threads": 1}
    good, bad = bench("memory").measured(
        [{"peer": "fastrnn", "checkpoint": 0} | sizes, {"peer": "fastrnn", "checkpoint": -3} | sizes], 1
    )
    assert good["seconds"] > 0
    assert "checkpoint" in bad["failed"]
    assert "seconds" not in bad


@pytest.fixture
def survey(bench: Bench, monkeypatch: Patch) -> Any:
    """The module, with small sets."""
    module, w, memory = bench("survey"), bench("workloads"), bench("memory")
    streams = w.grid(["gru"], ["streaming"], ["float32"], [1], [1, 2], [3, 4])
    peers = "fastrnn", "numpy"
    sets = {
        "rows": module.Rows("forward", [(1, w.Workload("gru", "forward", 5, 2, 3, 3))], peers, 0.0),
        "steps": module.Rows("streams", [(1, load) for load in streams], peers, 0.0),
        "memory": module.Memory("T", memory.grouped(["gru"], [8], 2, 4, 1, (0, 4), ("fastrnn",))),
        "import": module.Imports("beyond NumPy's own", 3),
    }
    monkeypatch.setattr(module, "sets", lambda: sets)
    return module


def test_a_survey_measures_what_is_not_there(survey: Any, script: Script, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "some"]
    script("survey", *out)
    files = {name: tmp_path / f"some-{name}.json" for name in ("rows", "steps", "memory", "import")}
    results = {name: json.loads(file.read_text()) for name, file in files.items()}
    assert all(result["left_out"] == 0 and result["commit"] == "abc" for result in results.values())
    assert all(row["fastrnn_s"] > 0 for row in results["import"]["imports"])
    # A set that was stopped goes on; one that is whole stays, whoever measured it.
    stopped = results["steps"] | {"left_out": 2, "rows": results["steps"]["rows"][:2]}
    files["steps"].write_text(json.dumps(stopped))
    files["rows"].write_text(json.dumps(results["rows"] | {"commit": "another", "versions": {}}))
    before = {name: file.read_bytes() for name, file in files.items() if name != "steps"}
    assert script("survey", *out).count("is there") == 3
    assert before == {name: file.read_bytes() for name, file in files.items() if name != "steps"}
    again = json.loads(files["steps"].read_text())["rows"]
    assert again[:2] == stopped["rows"]
    assert [row["workload"] for row in again] == [row["workload"] for row in results["steps"]["rows"]]
    # Nothing that differs is mixed in one file.
    for changed, message in (
        ({"commit": "another"}, "commit: another, and here abc"),
        ({"versions": {"fastrnn": "0", "numpy": "0"}}, "peers: {'fastrnn': '0'"),
        ({"versions": {}}, "peers: {}, and here"),
        ({"machine": {"cpu": "another"}}, "CPU: another, and here"),
        ({"rows": [*stopped["rows"], results["rows"]["rows"][0]]}, "rows of other sets: 1, and here 0"),
    ):
        files["steps"].write_text(json.dumps(stopped | changed))
        with pytest.raises(SystemExit) as refused:
            script("survey", *out)
        assert str(refused.value).startswith(f"{files['steps']}: {message}")


def test_a_survey_in_which_fastrnn_failed_says_so(survey: Any, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "some-rows.json"
    script("survey", "--only", "rows", "--out", tmp_path / "some")
    result = json.loads(file.read_text())
    result["rows"][0] |= {"peers": {}, "failed": {"fastrnn": "MemoryError"}}
    file.write_text(json.dumps(result))
    with pytest.raises(SystemExit, match=r"GRU .*, 1 thread\(s\): fastrnn: MemoryError"):
        script("survey", "--only", "rows", "--out", tmp_path / "some")


def test_a_survey_says_what_it_would_measure(bench: Bench, script: Script) -> None:
    sets = bench("survey").sets()
    assert [line.split()[0] for line in script("survey", "--plan").splitlines()] == [*sets, "together"]


def test_the_first_tables_of_the_performance_page_are_what_was_measured(bench: Bench) -> None:
    text = (BENCH.parent / "docs/performance.md").read_text()
    names = "forward", "training", "forward-threads", "training-threads"
    files = {name: json.loads((BENCH / f"results/zen5-{name}.json").read_text()) for name in names}
    rows = bench("results").all_rows(files.values())
    tables = bench("tables")
    for make in tables.glance, tables.summary, tables.losses:
        assert make(rows, "fastrnn") in text
    ratios = [
        row["peers"]["torch"]["ratio"]
        for row in files["forward"]["rows"]
        if row["workload"]["cell"] == "gru"
        and row["workload"]["batch"] <= 4
        and 64 < row["workload"]["hidden_size"] <= 300
    ]
    heads, _, *lines = (line.split(" | ") for line in tables.glance(rows, "fastrnn").splitlines())
    (line,) = (line for line in lines if line[0].endswith("torch") and line[1] == "GRU forward")
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    assert line[heads.index("B to 4, H to 300")] == f"{mean:.2f} ({min(ratios):.2f})"


@pytest.mark.parametrize("name", ["calls", "charmodel", "memory", "optimizers", "quantized"])
def test_tables_of_the_performance_page_are_what_was_measured(bench: Bench, name: str) -> None:
    text = (BENCH.parent / "docs/performance.md").read_text()
    result = json.loads((BENCH / f"results/zen5-{name}.json").read_text())
    assert f"`zen5-{name}.json`" in text
    assert bench(name).table(result[name]) in text, f"bench/{name}.py prints it"


def test_optimizers_are_measured_beside_torch(script: Script, bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "out.json"
    printed = script("optimizers", "--threads", 1, "--seconds", 0, "--json", file)
    rows = json.loads(file.read_text())["optimizers"]
    assert [row["optimizer"] for row in rows] == ["SGD", "AdaGrad", "RMSprop", "Adam"]
    assert bench("optimizers").table(rows) in printed
    for row in rows:
        assert row["seconds"].keys() == {"torch", *fastrnn.info()["isas_available"]}
        assert min(row["seconds"].values()) > 0


def test_single_calls_are_measured(
    script: Script, bench: Bench, monkeypatch: Patch, threads: None, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "out.json"
    monkeypatch.setattr(bench("calls"), "keep_to", lambda count: None)
    printed = script("calls", "--calls", 2, "--rounds", 1, "--json", file)
    rows = json.loads(file.read_text())["calls"]
    assert {(row["cell"], row["hidden"]) for row in rows} == set(product(["LSTM", "GRU", "RNN"], [16, 64]))
    assert all(row["seconds"] > 0 for row in rows)
    head, _, *lines = bench("calls").table(rows).splitlines()
    assert head.count("|") == 8
    assert len(lines) == len({row["call"] for row in rows})
    assert f"| {1e6 * rows[0]['seconds']:.2f} |" in lines[0]
    assert bench("calls").table(rows) in printed


def test_the_bits_of_quantised_models_are_measured(
    script: Script, bench: Bench, monkeypatch: Patch, tmp_path: Path
) -> None:
    from fastrnn import corpus
    from fastrnn.charmodel import CharacterModel, Vocabulary

    text = "a tale of two cities " * 100
    monkeypatch.setattr(corpus, "standard_library", lambda: corpus.Corpus(text, text, ""))
    CharacterModel(Vocabulary.from_text(text), "gru", 32, seed=0).save(tmp_path / "model.safetensors")
    file = tmp_path / "out.json"
    printed = script("quantized", tmp_path, "--json", file)
    rows = json.loads(file.read_text())["quantized"]
    assert [row["weights"] for row in rows] == ["float64", "float32", "bfloat16", "int8"]
    assert bench("quantized").table(rows) in printed
    exact, *others = rows
    errors = [row["error_mean"] for row in others]
    assert 0 < errors[0] < 1e-6 < errors[1] < errors[2] < 0.1
    for row in others:
        assert row["more"] == pytest.approx(row["bits"] - exact["bits"])
