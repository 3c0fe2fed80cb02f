"""Safetensors files with a JSON description of what the arrays belong to; never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AnyPath", "read", "write"]

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Arrays = Mapping[str, NDArray[Any]]

_LOADERS = {
    "fastrnn": "a layer: read it with fastrnn.load(path)",
    "fastrnn character model": "a character model: read it with fastrnn.charmodel.CharacterModel.load(path)",
}
"""What a file with this key in its metadata holds."""


def write(path: AnyPath, arrays: Arrays, key: str, description: dict[str, Any]) -> None:
    """Write arrays, with their description under one key of the metadata.

    The file appears complete or not at all: an existing one is replaced once the new one is written.
    """
    import safetensors.numpy

    name = os.fsdecode(path)
    contents = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, {key: json.dumps(description)}
    )
    partial = Path(f"{name}.partial")
    try:
        partial.write_bytes(contents)
        partial.replace(name)
    finally:
        partial.unlink(missing_ok=True)


def read(path: AnyPath, key: str, advice: str) -> tuple[dict[str, NDArray[Any]], str]:
    """Read the arrays and the description, still as JSON text, that `write` wrote under the same key.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no safetensors file, has a tensor that NumPy has no dtype for, or has no such description;
        then the message says what else it holds, or ends in the advice.
    """
    import safetensors

    name = os.fsdecode(path)
    with Path(name).open("rb"):  # the system's own error if it cannot be read
        pass
    try:
        with safetensors.safe_open(name, framework="numpy") as file:
            metadata = file.metadata() or {}
            other = next((what for known, what in _LOADERS.items() if known in metadata), None)
            if key not in metadata and other is not None:
                raise ValueError(f"{name} holds {other}")
            if key not in metadata:
                raise ValueError(
                    f"{name} was not written by save(): its metadata has no {key!r} entry; {advice}"
                )
            arrays = {entry: _tensor(name, file, entry) for entry in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name} is not a safetensors file: {error}") from error
    return arrays, metadata[key]


def _tensor(name: str, file: Any, entry: str) -> NDArray[Any]:
    kind = file.get_slice(entry).get_dtype()
    if kind not in ("F16", "F32", "F64"):
        raise ValueError(f"{name} holds {entry!r} as {kind}; expected F16, F32 or F64")
    return np.asarray(file.get_tensor(entry))
