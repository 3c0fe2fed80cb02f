"""Do the commands do what they say, and explain what is wrong otherwise?"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

import fastrnn
import numpy as np
import pytest
import safetensors.numpy
from fastrnn import cli
from fastrnn.charmodel import CharacterModel

TEXT = "The quick brown fox jumps over the lazy dog, and the naïve \N{SNOWMAN} melts.\n"
SMALL = ["--hidden", "16", "--batch", "4", "--chunk", "16", "--threads", "1"]


def command(*arguments):
    return [sys.executable, "-m", "fastrnn", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, encoding="utf-8", timeout=60)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(TEXT * 40, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(text):
    out = text.parent / "out"
    return run("train", text, *SMALL, "--steps", 12, "--out", out), out


def test_info():
    result = run("info")
    assert result.returncode == 0
    assert fastrnn.__version__ in result.stdout


def test_train_shows_saves_and_writes(trained):
    result, out = trained
    assert result.returncode == 0, result.stderr
    for expected in ("100%", "bits/char", "char/s"):
        assert expected in result.stderr
    for expected in ("after ", "bits per character", "stream.step", "NumPy loop"):
        assert expected in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["loss.png", "model.safetensors"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "model.safetensors").stat().st_size < 100_000


def test_training_is_reproducible(trained, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastrnn.demo.throughput", lambda *shape: "")
    before = fastrnn.get_num_threads()
    assert cli.main(["train", str(text), *SMALL, "--steps", "12", "--out", str(tmp_path)]) == 0
    fastrnn.set_num_threads(before)
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (trained[1] / name).read_bytes()
    assert "bits per character" in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["GRU", "RNN"])
def test_train_other_cells(cell, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastrnn.demo.throughput", lambda *shape: "")
    arguments = ["train", str(text), *SMALL[:-2], "--cell", cell, "--steps", "2", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert CharacterModel.load(tmp_path / "model.safetensors").cell == cell.lower()
    assert cell in capsys.readouterr().out


def test_sample_is_deterministic_for_a_seed(trained):
    model = trained[1] / "model.safetensors"
    first = run("sample", model, "--prompt", "Thé ", "--length", 50, "--seed", 4)
    assert first.returncode == 0, first.stderr
    assert len(first.stdout) == len("Thé ") + 50 + 1
    assert first.stdout.startswith("Thé ")
    assert run("sample", trained[1], "--prompt", "Thé ", "--length", 50, "--seed", 4).stdout == first.stdout
    assert run("sample", model, "--prompt", "Thé ", "--length", 50, "--seed", 5).stdout != first.stdout


def test_sample_survives_a_closed_pipe(trained):
    writer = subprocess.Popen(
        command("sample", trained[1], "--length", 100_000), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    writer.stdout.read(10)
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait(timeout=60) == 0


def test_ctrl_c_saves_and_exits(text, tmp_path):
    process = subprocess.Popen(
        command("train", text, *SMALL, "--minutes", 5, "--out", tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    output = ""
    while "%|" not in output and process.poll() is None:
        output += os.read(process.stdout.fileno(), 4096).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    output += process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "interrupted after" in output
    assert f"model saved as {tmp_path / 'model.safetensors'}" in output
    assert "Traceback" not in output
    assert run("sample", tmp_path, "--length", 20).returncode == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such file or folder"),
        ("empty", b"", "is empty"),
        ("binary", bytes(range(256)), "is not a text file in UTF-8"),
    ],
)
def test_train_without_text(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = run("train", path, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr == f"fastrnn: error: {path}{':' if content is None else ''} {message}\n"
    assert not (tmp_path / "out").exists()


def test_train_on_a_folder_without_text(tmp_path, capsys):
    assert cli.main(["train", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"fastrnn: error: {tmp_path} holds no text file in UTF-8\n"


def test_train_into_a_file(text, capsys):
    assert cli.main(["train", str(text), "--out", str(text), "--steps", "1"]) == 2
    assert f"{text}: File exists" in capsys.readouterr().err


def test_train_without_its_requirements(text, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["train", str(text)]) == 2
    assert "train needs tqdm: pip install 'fastrnn[cli]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--hidden", str(10**12)], ["--threads", str(10**6)]])
def test_train_too_large(text, arguments, tmp_path, capsys):
    assert cli.main(["train", str(text), *arguments, "--steps", "1", "--out", str(tmp_path / "out")]) == 2
    assert arguments[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_train_into_a_folder_that_takes_no_files(text, capsys):
    assert cli.main(["train", str(text), "--out", "/proc", "--steps", "1"]) == 2
    assert "fastrnn: error: /proc/" in capsys.readouterr().err


@pytest.mark.parametrize("content", [TEXT[:50] * 2, TEXT * 6])
def test_train_on_a_short_text(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastrnn.demo.throughput", lambda *shape: "")
    path = tmp_path / "short.txt"
    path.write_text(content, encoding="utf-8")
    assert cli.main(["train", str(path), "--hidden", "8", "--steps", "3", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "model.safetensors").exists()
    assert "held-out characters" in capsys.readouterr().out


def fail(error):
    def call(*arguments, **options):
        raise error

    return call


@pytest.mark.parametrize(
    ("function", "replacement", "message"),
    [
        (
            "training.loop.clip_by_global_norm",
            fail(FloatingPointError("the norm is nan")),
            "epoch 1, batch 1, step 1: the norm is nan; no output and no gradient",
        ),
        (
            "demo.softmax_cross_entropy",
            lambda logits, targets: (math.nan, np.zeros_like(logits)),
            "epoch 1, batch 1, step 1: the loss is nan; no output and no gradient",
        ),
        (
            "charmodel.CharacterModel.bits_per_character",
            lambda *arguments: 1234.0,
            "after step 4: the evaluation's loss is 855",
        ),
    ],
)
def test_train_that_diverges(function, replacement, message, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(f"fastrnn.{function}", replacement)
    assert cli.main(["train", str(text), *SMALL[:-2], "--steps", "50", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"fastrnn: training diverged ({message}")
    assert told.endswith(") and nothing is saved; try a smaller --learning-rate")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_ends_a_training_early_leaves_a_model(error, text, tmp_path, monkeypatch):
    monkeypatch.setattr("fastrnn.demo.sample", fail(error))
    arguments = ["train", str(text), *SMALL[:-2], "--steps", "20", "--out", str(tmp_path)]
    if error is KeyboardInterrupt:
        assert cli.main(arguments) == 130
    else:
        with pytest.raises(error):
            cli.main(arguments)
    assert CharacterModel.load(tmp_path / "model.safetensors").layer.hidden_size == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model.safetensors: No such file or directory"),
        (b"no tensors", "is not a safetensors file"),
        (
            safetensors.numpy.save({"a": np.zeros(1)}, {"fastrnn character model": "[" * 100_000}),
            "holds a character model that cannot be read here: maximum recursion depth",
        ),
    ],
    ids=["missing", "other", "nested"],
)
def test_sample_without_a_model(tmp_path, content, message, capsys):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["sample", str(path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_sample_from_what_is_no_file(tmp_path, kind, capsys):
    path = tmp_path / "model.safetensors"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"fastrnn: error: {path} is not a file\n"


@pytest.mark.parametrize(
    "arguments", [["--version"], ["info", "--help"], ["train", "--help"], ["sample", "--help"]]
)
def test_version_and_help(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown == f"fastrnn {fastrnn.__version__}\n" if len(arguments) == 1 else "usage" in shown
    assert "None" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["train", ""], "argument PATH: ''; expected a path"),
        (["train", "--out", ""], "argument --out: ''; expected a path"),
        (["sample", ""], "argument MODEL: ''; expected a path"),
        (["train", "--cell", "mgu"], "argument --cell: invalid choice: 'mgu'"),
        (["train", "--hidden", "0"], "argument --hidden: '0'; expected a whole number greater than 0"),
        (["train", "--steps", "1.5"], "argument --steps: '1.5'; expected a whole number greater than 0"),
        (["train", "--minutes", "nan"], "argument --minutes: 'nan'; expected a number greater than 0"),
        (
            ["sample", "m", "--temperature", "-1"],
            "argument --temperature: '-1'; expected a number, 0 or more",
        ),
        (["sample", "m", "--seed", "-1"], "argument --seed: '-1'; expected a whole number, 0 or more"),
        (["sample", "m", "--prompt", ""], "argument --prompt: ''; expected at least one character"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
