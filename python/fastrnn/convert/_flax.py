"""Flax's recurrent cells: of linen an array for each gate, of nnx their columns side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layouts import GATES, Cell, one_of
from ._parts import (
    Part,
    Tensors,
    assemble,
    check_agrees,
    each_direction,
    nest,
    read_layers,
    read_source,
    take_apart,
)

Array = NDArray[Any]

_SIDES = ("forward_rnn", "backward_rnn")
"""Of a Bidirectional."""

_IF = re.compile(r"^if_(?=$|[./])")  # also in front of a flat name: if_.kernel, if_/kernel


def from_flax(source: Any, *, prefix: str = "", nonlinearity: str | None = None) -> Any:
    """Make a fastrnn layer of the parameters of Flax cells.

    Parameters
    ----------
    source : mapping, pair of mappings, list of such, or path of a safetensors file of one mapping
        Parameters of an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell, of linen (``{"params": {"ii":
        {"kernel": ...}}}``, also inside an nn.RNN) or of nnx (``nnx.to_pure_dict(nnx.state(cell,
        nnx.Param))``), or of a Bidirectional; a pair is (forward, backward), a list the layers of a stack,
        the lowest first.
    prefix : str, optional
        Of a mapping or file, only the names that begin with it are used, without it.
    nonlinearity : str, optional
        activation_fn of a SimpleCell, which the parameters do not say; "tanh" if None.

    Returns
    -------
    LSTM, GRU or RNN
        In training mode.

    Raises
    ------
    TypeError
        `source` is something else.
    ValueError
        A tensor is missing, unexpected or of another shape than expected: the message names it and both
        shapes.  Or there is a `nonlinearity` other than tanh for cells that have no such choice.

    Notes
    -----
    Flax has one bias for each sum: the LSTM's becomes bias_hh, those of the other cells bias_ih, and the
    other is 0; the candidate of linen's GRUCell has both.  The carry of Flax's LSTM is (c, h), fastrnn's
    is (h, c).

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.convert import from_flax
    >>> cell = {"i": {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}, "h": {"kernel": np.zeros((4, 4))}}
    >>> from_flax({"params": cell})
    RNN(3, 4, dtype='float64')
    """
    source = read_source("source", source, prefix)
    source = [_inner(entry) for entry in source] if isinstance(source, list) else _inner(source)
    cell, parts = read_layers(each_direction("source", source), _cell_of, _read)
    if cell == "rnn":
        return assemble(cell, parts, nonlinearity=nonlinearity or "tanh")
    check_agrees("nonlinearity", nonlinearity, "tanh")
    return assemble(cell, parts)


def _inner(tensors: Any) -> Any:
    """Take a cell's own mapping, or a pair of them, out of those around; nnx calls the part "if" "if_"."""
    if isinstance(tensors, tuple):
        return tuple(map(_inner, tensors))
    while isinstance(tensors, Mapping) and len(tensors) == 1:
        (inner,) = tensors.values()
        if not isinstance(inner, Mapping):
            break
        tensors = inner
    if isinstance(tensors, Mapping):
        if {*tensors} == {*_SIDES}:
            return tuple(_inner(tensors[side]) for side in _SIDES)
        tensors = {_IF.sub("if", str(name)): value for name, value in tensors.items()}
    return tensors


def _cell_of(tensors: Tensors) -> Cell:
    if "dense_h/kernel" in tensors:
        return tensors.cell_of("dense_h/kernel")
    if "hf/kernel" in tensors:
        return "lstm"
    if "hr/kernel" in tensors:
        return "gru"
    tensors.peek("h/kernel")
    return "rnn"


def _names(cell: Cell) -> list[tuple[str, str]]:
    """Return the names of the two parts of each gate, in fastrnn's order."""
    return [("i", "h")] if cell == "rnn" else [("i" + gate, "h" + gate) for gate in GATES[cell]]


def _read(tensors: Tensors, cell: Cell, width: int | None, H: int | None) -> Part:
    read = _read_nnx if "dense_h/kernel" in tensors else _read_linen
    return read(tensors, cell, width, H)


def _read_linen(tensors: Tensors, cell: Cell, width: int | None, H: int | None) -> Part:
    names = _names(cell)
    if H is None:
        H = tensors.matrix(f"{names[0][1]}/kernel")[0]
    if width is None:
        width = tensors.matrix(f"{names[0][0]}/kernel")[0]

    def joined(kind: str, axes: dict[str, int | None], which: int) -> Array | None:
        there = [f"{pair[which]}/{kind}" in tensors for pair in names]
        if kind == "bias" and not any(there):
            return None
        arrays: list[Array] = []
        for pair, present in zip(names, there, strict=True):
            name = f"{pair[which]}/{kind}"
            # Of a GRU's recurrent parts only the candidate has a bias.
            if kind == "bias" and which == 1 and cell == "gru" and not present:
                arrays.append(np.zeros_like(arrays[0]) if arrays else np.zeros(axes["H"] or 0, np.float32))
            else:
                arrays.append(tensors.take(name, axes).T)
        return np.concatenate(arrays)

    part = {
        "weight_ih": joined("kernel", {"I": width, "H": H}, 0),
        "weight_hh": joined("kernel", {"H": H, "H'": H}, 1),
        "bias_ih": joined("bias", {"H": H}, 0),
        "bias_hh": joined("bias", {"H": H}, 1),
    }
    return {name: array for name, array in part.items() if array is not None}


def _read_nnx(tensors: Tensors, cell: Cell, width: int | None, H: int | None) -> Part:
    G = len(GATES[cell])
    if H is None:
        H = tensors.matrix("dense_h/kernel")[0]
    columns = {f"{G}*H": G * H}
    part = {
        "weight_ih": tensors.take("dense_i/kernel", {"I": width, **columns}).T,
        "weight_hh": tensors.take("dense_h/kernel", {"H": H, **columns}).T,
    }
    for name, own in (("dense_i/bias", "bias_ih"), ("dense_h/bias", "bias_hh")):
        if name in tensors:
            part[own] = tensors.take(name, columns)
    return part


def to_flax(layer: Any, *, api: str = "linen") -> Any:
    """Return a layer's parameters as Flax's cells have them.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        The cells are OptimizedLSTMCell (or LSTMCell), GRUCell and SimpleCell.
    api : "linen" or "nnx", optional
        ``{"params": {"ii": {"kernel": ...}, ...}}``, or ``{"dense_i": {"kernel": ...}, ...}``, which
        ``nnx.update(cell, ...)`` takes.

    Returns
    -------
    nested dict of arrays
        For two directions a pair, for several layers a list.

    Raises
    ------
    TypeError
        `layer` is something else.
    ValueError
        It has what Flax does not: a projection, a peephole, zoneout, reset_after=False, or with api="nnx" a
        candidate's bias_hh that is not 0.

    Notes
    -----
    Where Flax has one bias it is the sum of the two.  Without biases they are 0.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.convert import to_flax
    >>> cell = to_flax(fastrnn.GRU(3, 4))["params"]
    >>> sorted(cell), sorted(cell["hn"])
    (['hn', 'hr', 'hz', 'in', 'ir', 'iz'], ['bias', 'kernel'])
    """
    one_of("api", api, ("linen", "nnx"))
    spec, layers = take_apart("layer", layer, "Flax")
    if not spec.reset_after:
        raise ValueError(f"layer is {layer!r}; Flax has no reset_after=False")
    H = spec.hidden_size

    def written(suffix: str, part: Part) -> dict[str, Any]:
        zeros = np.zeros(len(part["weight_ih"]), part["weight_ih"].dtype)
        ih, hh = part.get("bias_ih", zeros), part.get("bias_hh", zeros)
        kept = ih + hh if spec.cell != "gru" else np.concatenate([ih[: 2 * H] + hh[: 2 * H], ih[2 * H :]])
        candidate = hh[2 * H :] if spec.cell == "gru" else zeros[:0]
        if api == "nnx":
            if candidate.any():
                raise ValueError(
                    f"bias_hh{suffix} of the candidate is not 0: nnx's GRUCell has none; expected zeros"
                )
            sides = {"dense_i": {"kernel": part["weight_ih"].T}, "dense_h": {"kernel": part["weight_hh"].T}}
            sides["dense_h" if spec.cell == "lstm" else "dense_i"]["bias"] = kept
            return {side: {k: np.ascontiguousarray(a) for k, a in own.items()} for side, own in sides.items()}
        cell: dict[str, dict[str, Array]] = {}
        for gate, (i, h) in enumerate(_names(spec.cell)):
            rows = slice(gate * H, (gate + 1) * H)
            cell[i] = {"kernel": np.ascontiguousarray(part["weight_ih"][rows].T)}
            cell[h] = {"kernel": np.ascontiguousarray(part["weight_hh"][rows].T)}
            cell[h if spec.cell == "lstm" else i]["bias"] = kept[rows].copy()
        if spec.cell == "gru":
            cell["hn"]["bias"] = candidate.copy()
        return {"params": cell}

    suffixes = iter(spec.suffixes())
    return nest([tuple(written(next(suffixes), part) for part in directions) for directions in layers])
