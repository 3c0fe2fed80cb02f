"""Safetensors files with a JSON description of what the arrays belong to; never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHARACTER_MODEL", "LAYER", "MODEL", "TRAINING", "AnyPath", "load", "write"]

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """What a file may hold."""

    what: str
    key: str
    """Of its description in the metadata."""
    entries: tuple[str, ...]
    """What the description has, beside the format."""
    format: int
    loader: str
    advice: str
    """For who has a file without the key."""


LAYER = Kind(
    what="a layer",
    key="fastrnn",
    entries=("class", "arguments", "seed", "calls"),
    format=1,
    loader="fastrnn.load(path)",
    advice="build the layer and use load_state_dict(safetensors.numpy.load_file(path))",
)
CHARACTER_MODEL = Kind(
    what="a character model",
    key="fastrnn character model",
    entries=("cell", "hidden_size", "num_layers", "characters"),
    format=1,
    loader="fastrnn.charmodel.CharacterModel.load(path)",
    advice="python -m fastrnn train makes one that has it",
)
MODEL = Kind(
    what="a model",
    key="fastrnn model",
    entries=("class", "model"),
    format=1,
    loader="the load() of a model made in the same way",
    advice="build the model and use load_state_dict(safetensors.numpy.load_file(path))",
)

TRAINING = Kind(
    what="a training",
    key="fastrnn training",
    entries=("settings", "numbers", "seconds", "state", "generator", "calls"),
    format=1,
    loader="fit(..., checkpoint=path, resume=True)",
    advice="fit(..., checkpoint=path) makes one that has it",
)


def write(path: AnyPath, kind: Kind, arrays: Arrays, description: dict[str, Any]) -> None:
    """Write arrays, with their description in the metadata.

    The file appears complete or not at all: an existing one is replaced once the new one is written.
    A device or a pipe is written to.
    """
    import safetensors.numpy

    name = os.fsdecode(path)
    contents = safetensors.numpy.save(
        {name: np.asarray(array, order="C") for name, array in arrays.items()},
        {kind.key: json.dumps({"format": kind.format} | description)},
    )
    whole, partial = Path(name), Path(f"{name}.partial")
    try:
        # Replacing a device, /dev/null say, would take it from everybody.
        if whole.exists() and not (whole.is_file() or whole.is_dir()):
            whole.write_bytes(contents)
        else:
            partial.write_bytes(contents)
            partial.replace(whole)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, name) from None  # what the caller knows
    finally:
        partial.unlink(missing_ok=True)


def load(path: AnyPath, kind: Kind, make: Callable[[dict[str, Any], Arrays], T]) -> T:
    """Return what `make` makes of the description and the arrays in a file of `write`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no safetensors file, has a tensor that NumPy has no dtype for, holds something else, or
        something that `make` raises TypeError or ValueError for.
    """
    arrays, text = _read(path, kind)
    try:
        return make(_description(text, kind), arrays)
    except (RecursionError, TypeError, ValueError) as error:
        name = os.fsdecode(path)
        raise ValueError(f"{name} holds {kind.what} that cannot be read here: {error}") from error


def _read(path: AnyPath, kind: Kind) -> tuple[Arrays, str]:
    """Read the arrays and the description, still as JSON text."""
    import safetensors

    name = os.fsdecode(path)
    with Path(name).open("rb"):  # the system's own error if it cannot be read
        pass
    try:
        with safetensors.safe_open(name, framework="numpy") as file:
            metadata = file.metadata() or {}
            if kind.key not in metadata:
                for other in LAYER, CHARACTER_MODEL, MODEL, TRAINING:
                    if other.key in metadata:
                        raise ValueError(f"{name} holds {other.what}: read it with {other.loader}")
                raise ValueError(
                    f"{name} was not written by save(): its metadata has no {kind.key!r} entry; {kind.advice}"
                )
            arrays = {entry: _tensor(name, file, entry) for entry in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name} is not a safetensors file: {error}") from error
    return arrays, metadata[kind.key]


def _description(text: str, kind: Kind) -> dict[str, Any]:
    """Parse and check the description; without the format."""
    description = json.loads(text)
    expected = ("format", *kind.entries)
    if not isinstance(description, dict) or "format" not in description:
        raise ValueError(f"it is described by {description!r}; expected an object with {', '.join(expected)}")
    if description["format"] != kind.format:
        raise ValueError(f"it has format {description['format']!r}; expected {kind.format}")
    if set(description) != set(expected):
        raise ValueError(f"it is described by {', '.join(description)}; expected {', '.join(expected)}")
    return {entry: description[entry] for entry in kind.entries}


def _tensor(name: str, file: Any, entry: str) -> NDArray[Any]:
    kind = file.get_slice(entry).get_dtype()
    if kind not in ("F16", "F32", "F64"):
        raise ValueError(f"{name} holds {entry!r} as {kind}; expected F16, F32 or F64")
    return np.asarray(file.get_tensor(entry))
