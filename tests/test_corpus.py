"""Does the corpus hold the text that is there, split by files, and refuse what is no text?"""

from __future__ import annotations

import os

import pytest
from fastrnn import corpus
from fastrnn.corpus import CorpusError

LINE = "It was a dark and stormy night; the rain fell in torrents.\n"


def test_standard_library_is_megabytes_of_python():
    text = corpus.standard_library()
    assert len(text.train) > 2_000_000
    assert 0.03 < len(text.held_out) / len(text.train) < 0.06
    assert "def " in text.held_out


def test_one_file_holds_out_its_end(tmp_path):
    path = tmp_path / "text"
    path.write_text("\ufeff" + LINE * 100, encoding="utf-8", newline="\r\n")
    text = corpus.read(path)
    assert text.train + text.held_out == LINE * 100
    assert len(text.held_out) == round(0.05 * len(LINE * 100))


def test_folder_holds_out_whole_files(tmp_path):
    for index in range(40):
        path = tmp_path / f"part{index % 4}" / f"{index}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{index}: " + LINE * 5)
    text = corpus.read(tmp_path)
    numbers = [
        {line.split(":")[0] for line in t.splitlines() if ":" in line} for t in (text.train, text.held_out)
    ]
    assert numbers[0] | numbers[1] == {str(index) for index in range(40)}
    assert not numbers[0] & numbers[1]
    assert len(numbers[1]) in (1, 2)
    assert text == corpus.read(tmp_path)


@pytest.mark.parametrize("sizes", [(3000, 2000), (20_000, 6)])
def test_folder_without_enough_small_files_holds_out_the_end(tmp_path, sizes):
    for index, size in enumerate(sizes):
        (tmp_path / str(index)).write_text(str(index) * size)
    text = corpus.read(tmp_path)
    parts = sorted((text.train + text.held_out).split("\n"))
    assert parts == [str(index) * size for index, size in enumerate(sizes)]
    assert len(text.held_out) == round(0.05 * (sum(sizes) + 1))


def test_folder_of_many_files_but_little_text(tmp_path):
    for index in range(30):
        (tmp_path / str(index)).write_text("abc")
    with pytest.raises(CorpusError, match="has 90 characters; training needs at least 100"):
        corpus.read(tmp_path)


def test_folder_leaves_out_what_is_hidden_empty_or_no_text(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "empty").touch()
    (tmp_path / "image").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin1").write_bytes(b"caf\xe9 " * 100)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text(LINE * 10)
    text = corpus.read(tmp_path)
    assert text.train + text.held_out == LINE * 10


def test_reading_stops_at_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_text("é" * 400)
    monkeypatch.setattr(corpus, "MAX_BYTES", 301)  # in the middle of a character
    text = corpus.read(path)
    assert text.train + text.held_out == "é" * 150


def make(tmp_path, kind):
    path = tmp_path / kind
    match kind:
        case "empty":
            path.touch()
        case "zeros":
            path.write_bytes(b"text\0text" * 100)
        case "latin1":
            path.write_bytes(b"caf\xe9 " * 100)
        case "cut":
            path.write_bytes(("text" * 100 + "é").encode()[:-1])
        case "short":
            path.write_text("too short")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            (path / "image").write_bytes(b"\x89PNG\0")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "missing: no such file or folder"),
        ("empty", "empty is empty"),
        ("zeros", "zeros is not a text file in UTF-8"),
        ("latin1", "latin1 is not a text file in UTF-8"),
        ("cut", "cut is not a text file in UTF-8"),
        ("short", "short has 9 characters; training needs at least 100"),
        ("pipe", "pipe is neither a file nor a folder"),
        ("folder", "folder holds no text file in UTF-8"),
    ],
)
def test_no_text(tmp_path, kind, message):
    with pytest.raises(CorpusError, match=message):
        corpus.read(make(tmp_path, kind))


def test_standard_library_without_source(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(CorpusError, match=r"this Python comes without its source .* name a file or folder"):
        corpus.standard_library()
