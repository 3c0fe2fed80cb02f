"""What all converters share: tensors taken by name and checked, and layers put together of their parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays
from .._backends import on_host
from ..layers import GRU, LSTM, RNN
from ..layouts import GATES, Cell, Spec

Array = NDArray[Any]
Part = dict[str, Array]
"""One direction of one layer: its parameters under fastrnn's names without the suffix."""

LAYERS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class Tensors:
    """Arrays by name, of one direction of one layer, taken one by one.

    Parameters
    ----------
    where : str
        In front of names in messages: "" or "layer 1, backward: ".
    tensors : mapping
        Nested or flat; names inside each other are joined by "/", and "." is taken for it.
    """

    def __init__(self, where: str, tensors: Mapping[str, Any]) -> None:
        self._where = where
        self._values = dict(_flat(tensors))
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def peek(self, name: str) -> Array:
        """Return an array whose shape is not yet known."""
        if name not in self._values:
            raise ValueError(
                f"{self._where}{name} is missing; there are {', '.join(sorted(self._values)) or 'no tensors'}"
            )
        self._taken.add(name)
        label = self._where + name
        array = _arrays.take(label, _arrays.plain(self._values[name]))
        if array.dtype.kind != "f":
            raise TypeError(f"{label} is {array.dtype}; expected floats")
        return array

    def take(self, name: str, axes: Mapping[str, int | None]) -> Array:
        """Return an array of this shape; ValueError names it and both shapes."""
        array = self.peek(name)
        self.expect(name, array, axes)
        return array

    def expect(self, name: str, array: Array, axes: Mapping[str, int | None]) -> None:
        """Check a shape."""
        _arrays.expect_shape(self._where + name, array, axes)

    def matrix(self, name: str) -> tuple[int, int]:
        """Return the shape of what has to be a matrix with elements."""
        array = self.peek(name)
        if array.ndim != 2 or not array.size:
            raise ValueError(f"{self._where}{name} has shape {array.shape}; expected a matrix")
        return array.shape

    def finish(self) -> None:
        """Raise ValueError if something was left over."""
        left = sorted(set(self._values) - self._taken)
        if left:
            shapes = ", ".join(f"{name} {np.shape(self._values[name])}" for name in left)
            raise ValueError(
                f"{self._where}unexpected {shapes}; expected {', '.join(sorted(self._taken))} alone"
            )

    def cell_of(self, name: str) -> Cell:
        """Tell from the columns of a recurrent kernel (H, G*H) which cell it is of."""
        H, columns = self.matrix(name)
        for cell in LAYERS:
            if columns == len(GATES[cell]) * H:
                return "lstm" if cell == "lstm" else "gru" if cell == "gru" else "rnn"
        raise ValueError(
            f"{self._where}{name} has shape {(H, columns)}; expected (H, 4*H), (H, 3*H) or (H, H) = "
            f"{(H, 4 * H)}, {(H, 3 * H)} or {(H, H)}"
        )


def check_agrees(name: str, given: object, found: object) -> None:
    """Raise ValueError for an option that was given beside a source that says otherwise."""
    if given is not None and given != found:
        raise ValueError(f"{name} is {given!r}, but that of source is {found!r}; expected the same or none")


def _flat(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", array) for inner, array in _flat(value))
        else:
            yield str(name).replace(".", "/"), value


def read_source(name: str, source: Any, prefix: str) -> Any:
    """Read a file of safetensors, and keep of a mapping what begins with `prefix`, without it."""
    if isinstance(source, str | bytes | os.PathLike):
        source = _read_file(Path(os.fsdecode(source)), prefix)
    if prefix:
        if not isinstance(source, Mapping):
            raise TypeError(f"prefix is {prefix!r} for a {type(source).__name__}; expected a mapping with it")
        chosen = _beginning_with(prefix, name, source)
        source = {key.removeprefix(prefix): source[key] for key in chosen}
    return source


def _beginning_with(prefix: str, where: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    chosen = [name for name in names if isinstance(name, str) and name.startswith(prefix)]
    if prefix and not chosen:
        have = ", ".join(map(str, names)) or "none"
        raise ValueError(f"no name in {where} begins with {prefix!r}; there are {have}")
    return chosen


def _read_file(path: Path, prefix: str) -> dict[str, Array]:
    """Read the tensors whose names begin with `prefix`; bfloat16, which NumPy does not have, as float32."""
    import safetensors

    with path.open("rb"):  # the system's own error if it cannot be read
        pass
    tensors, narrow = {}, []
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in _beginning_with(prefix, str(path), file.keys()):
                if file.get_slice(name).get_dtype() == "BF16":
                    narrow.append(name)
                else:
                    tensors[name] = file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if narrow:
        deserialize: Any = safetensors.deserialize
        entries = dict(deserialize(path.read_bytes()))
        for name in narrow:  # the upper half of a float32
            bits = np.frombuffer(entries[name]["data"], "<u2").astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(entries[name]["shape"])
    return tensors


def each_direction(name: str, source: Any, prefix: str = "") -> list[tuple[Tensors, ...]]:
    """Return the directions of each layer: of a mapping, a pair (forward, backward), or a list of such."""
    source = read_source(name, source, prefix)
    layers = source if isinstance(source, list) else [source]
    if not layers:
        raise ValueError(f"{name} is an empty list; expected at least one layer")
    result = []
    for index, entry in enumerate(layers):
        directions = entry if isinstance(entry, tuple) else (entry,)
        if len(directions) not in (1, 2) or not all(isinstance(part, Mapping) for part in directions):
            raise TypeError(
                f"{name} has type {type(source).__name__}; expected a mapping of names to arrays, a pair "
                f"(forward, backward) of them, or a list with one or a pair for each layer"
            )
        where = [f"layer {index}"] if len(layers) > 1 else []
        sides = ["forward", "backward"] if len(directions) == 2 else [""]
        labels = [", ".join([*where, side] if side else where) for side in sides]
        result.append(
            tuple(
                Tensors(f"{label}: " if label else "", part)
                for label, part in zip(labels, directions, strict=True)
            )
        )
    check_same_directions(name, [len(directions) for directions in result])
    return result


def check_same_directions(name: str, counts: list[int]) -> None:
    """Raise ValueError if some layers are bidirectional and others not."""
    if len(set(counts)) > 1:
        raise ValueError(f"the layers of {name} have {counts} directions; expected as many in each")


def dtype_of(arrays: Iterable[Any]) -> str:
    """Return "float64" if one of some arrays of any library is, else "float32": narrower ones are widened.

    What is no array is left to those who take it.
    """
    kinds = [str(getattr(array, "dtype", "")) for array in arrays]
    return "float64" if any(kind.endswith("float64") for kind in kinds) else "float32"


def assemble(cell: Cell, layers: list[tuple[Part, ...]], *, batch_first: bool = False, **options: Any) -> Any:
    """Make the layer."""
    G = len(GATES[cell])
    first = layers[0][0]
    arrays = [array for directions in layers for part in directions for array in part.values()]
    bias = any("bias_ih" in part or "bias_hh" in part for directions in layers for part in directions)
    H = first["weight_ih"].shape[0] // G
    layer = LAYERS[cell](
        first["weight_ih"].shape[1],
        H,
        num_layers=len(layers),
        bias=bias,
        batch_first=batch_first,
        bidirectional=len(layers[0]) == 2,
        dtype=dtype_of(arrays),
        seed=0,
        **options,
    )
    zeros = np.zeros(G * H, layer.dtype)
    state: Part = {}
    for suffix, part in zip(layer._spec.suffixes(), [p for d in layers for p in d], strict=True):
        biases = {"bias_ih": zeros, "bias_hh": zeros} if bias else {}
        state |= {name + suffix: array for name, array in (biases | part).items()}
    layer.load_state_dict(state)
    return layer


def take_apart(
    name: str, layer: Any, system: str, zoneout: bool = False
) -> tuple[Spec, list[tuple[Part, ...]]]:
    """Return the parts of a layer that `system` can have: no projection, no peephole.

    `zoneout` tells whether it has that of h; in inference too it is part of what a layer computes.
    """
    if not isinstance(layer, LSTM | GRU | RNN):
        raise TypeError(f"{name} has type {type(layer).__name__}; expected a fastrnn LSTM, GRU or RNN")
    spec: Spec = layer._spec
    for what, has in (
        ("projection", spec.proj_size),
        ("peephole", spec.peephole != "none"),
        ("zoneout of c" if zoneout else "zoneout", any(spec.zoneout_of[int(zoneout) :])),
    ):
        if has:
            raise ValueError(f"{name} is {layer!r}; expected no {what}, which {system} does not have")
    parameters = {key: on_host(array) for key, array in layer.parameters.items()}
    parts = [
        {
            key.removesuffix(suffix): array.copy()
            for key, array in parameters.items()
            if key[key.index("_l") :] == suffix
        }
        for suffix in spec.suffixes()
    ]
    D = spec.num_directions
    return spec, [tuple(parts[i : i + D]) for i in range(0, len(parts), D)]


def nest(layers: list[tuple[Any, ...]]) -> Any:
    """Undo `each_direction`: one mapping, a pair, or a list of them."""
    each = [directions[0] if len(directions) == 1 else directions for directions in layers]
    return each[0] if len(each) == 1 else each


def read_layers(
    layers: list[tuple[Tensors, ...]],
    cell_of: Callable[[Tensors], Cell],
    read: Callable[[Tensors, Cell, int | None, int | None], Part],
    cell: Cell | None = None,
) -> tuple[Cell, list[tuple[Part, ...]]]:
    """Return the cell, which `cell` says or the first tensors do, and the parts of all layers.

    `read(tensors, cell, I, H)` takes every tensor of a direction; I and H are those of what was read before
    it, None where it is the first to tell.
    """
    parts: list[tuple[Part, ...]] = []
    H: int | None = None
    for directions in layers:
        own = cell_of(directions[0])
        cell = cell or own
        if own != cell:
            raise ValueError(f"the layers of source are of the cells {cell!r} and {own!r}; expected one")
        width = None if H is None else len(directions) * H
        done: list[Part] = []
        for tensors in directions:
            part = read(tensors, cell, width, H)
            tensors.finish()
            done.append(part)
            width, H = part["weight_ih"].shape[1], part["weight_hh"].shape[1]
        parts.append(tuple(done))
    assert cell is not None
    return cell, parts
