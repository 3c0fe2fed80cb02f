"""Text to train on: a file, a folder, or the source of Python's standard library.

The held-out part is made of whole files where there are enough small ones, so that it measures how a
model does on files it has never seen; otherwise it is the end of the text.
"""

from __future__ import annotations

import codecs
import os
import random
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Corpus", "CorpusError", "read", "standard_library"]

HELD_OUT = 0.05
"""The part of the characters that is held out."""

MIN_CHARACTERS = 100
MAX_BYTES = 32 << 20
"""Reading stops here: hours of training would not see more."""

EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data"}
"""Folders of the standard library left out: code of others, and long generated tables."""


class CorpusError(ValueError):
    """There is no text to train on; the message says why."""


@dataclass(frozen=True)
class Corpus:
    """Text for training and text to measure on."""

    train: str
    held_out: str
    source: str
    """Where it comes from and how much it is, on two lines."""


def standard_library() -> Corpus:
    """Read the Python source of the running interpreter's standard library, less `EXCLUDED`."""
    root = Path(sysconfig.get_path("stdlib"))
    try:
        return _read_folder(root, lambda name: name not in EXCLUDED, lambda name: name.endswith(".py"))
    except CorpusError as error:
        raise CorpusError(f"this Python comes without its source ({error}); name a file or folder") from None


def read(path: Path) -> Corpus:
    """Read one UTF-8 file, or all UTF-8 files of a folder and its subfolders, less hidden ones.

    Raises
    ------
    CorpusError
        path does not exist, is empty, or holds no UTF-8 text or too little of it.
    OSError
        A file cannot be read.
    """
    if path.is_dir():
        return _read_folder(path, _is_visible, _is_visible)
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder")
    if not path.is_file():
        raise CorpusError(f"{path} is neither a file nor a folder")
    text = _text(path, MAX_BYTES)
    if text is None:
        raise CorpusError(f"{path} is not a text file in UTF-8")
    if not text:
        raise CorpusError(f"{path} is empty")
    return _split(path, text)


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _read_folder(root: Path, enter: Callable[[str], bool], take: Callable[[str], bool]) -> Corpus:
    paths = [path for path in _walk(root, enter) if take(path.name)]
    # Shuffled, so that training and held-out text are alike; always in the same way, so that runs with
    # different seeds can be compared.
    random.Random(0).shuffle(paths)
    texts: list[str] = []
    room = MAX_BYTES
    for path in paths:
        text = _text(path, room)
        if text:
            texts.append(text)
            room -= len(text)
        if room <= 0:
            break
    if not texts:
        raise CorpusError(f"{root} holds no text file in UTF-8")
    train: list[str] = []
    held_out: list[str] = []
    total = sum(map(len, texts))
    _check_size(root, total)
    allowance = HELD_OUT * total
    for text in texts:
        if len(text) <= allowance:
            held_out.append(text)
            allowance -= len(text)
        else:
            train.append(text)
    if allowance > HELD_OUT * total / 2:  # too few small files to measure on
        return _split(root, "\n".join(texts))
    return Corpus(
        "\n".join(train),
        "\n".join(held_out),
        f"{root}\n{_amount(train)} in {len(train)} files; held out: {_amount(held_out)} in {len(held_out)}",
    )


def _split(path: Path, text: str) -> Corpus:
    """Hold out the end of a text."""
    _check_size(path, len(text))
    cut = round(len(text) * (1 - HELD_OUT))
    train, held_out = text[:cut], text[cut:]
    return Corpus(train, held_out, f"{path}\n{_amount([train])}; held out: the last {_amount([held_out])}")


def _walk(root: Path, enter: Callable[[str], bool]) -> Iterator[Path]:
    """Every regular file below root, in one order on every machine."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(filter(enter, folders))
        yield from (path for name in sorted(files) if (path := Path(folder, name)).is_file())


def _text(path: Path, limit: int) -> str | None:
    """At most limit bytes of a file as text with Unix line ends; None if it is not UTF-8 text."""
    with path.open("rb") as file:
        data = file.read(limit)
    if b"\0" in data:
        return None
    try:
        # A character cut by the limit is left out, one cut by the end of the file is an error.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=len(data) < limit)
    except UnicodeDecodeError:
        return None
    return text.replace("\r\n", "\n")


def _check_size(path: Path, characters: int) -> None:
    if characters < MIN_CHARACTERS:
        raise CorpusError(f"{path} has {characters} characters; training needs at least {MIN_CHARACTERS}")


def _amount(texts: Iterable[str]) -> str:
    return f"{sum(map(len, texts)):,} characters"
