"""Safetensors files with a JSON description of what the arrays belong to; never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read", "write"]

Arrays = Mapping[str, NDArray[Any]]


def write(path: str | os.PathLike[str], arrays: Arrays, key: str, description: dict[str, Any]) -> None:
    """Write arrays, with their description under one key of the metadata.

    The file appears complete or not at all: an existing one is replaced once the new one is written.
    """
    import safetensors.numpy

    contents = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, {key: json.dumps(description)}
    )
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        partial.write_bytes(contents)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], key: str, advice: str) -> tuple[dict[str, NDArray[Any]], str]:
    """Read the arrays and the description, still as JSON text, that `write` wrote under the same key.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no safetensors file, or has no such description; then the message ends in the advice.
    """
    import safetensors

    name = os.fspath(path)
    with Path(path).open("rb"):  # the system's own error if it cannot be read
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {entry: file.get_tensor(entry) for entry in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name} is not a safetensors file: {error}") from error
    if key not in metadata:
        raise ValueError(f"{name} was not written by save(): its metadata has no {key!r} entry; {advice}")
    return arrays, metadata[key]
