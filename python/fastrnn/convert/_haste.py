"""Haste's LSTM and GRU, from their documented layout: columns, gates in the order i, g, f, o or z, r, g."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._orders import ORDERS, reorder
from ..layouts import GATES, Cell
from ._parts import Part, Tensors, assemble, each_direction, nest, read_layers, take_apart

Array = NDArray[Any]


def from_haste(source: Any, *, prefix: str = "", batch_first: bool = False, zoneout: float = 0.0) -> Any:
    """Make a fastrnn layer of the parameters of Haste's LSTM or GRU.

    Parameters
    ----------
    source : mapping, pair of mappings, list of such, or path of a safetensors file of one mapping
        "kernel" (I, G*H), "recurrent_kernel" (H, G*H), "bias" (G*H,), and for a GRU "recurrent_bias" (3*H,);
        a pair is (forward, backward), a list the layers of a stack, the lowest first.
    prefix : str, optional
        Of a mapping or file, only the names that begin with it are used, without it.
    batch_first, zoneout : optional
        Of the layer that is made; Haste's zoneout is that of h, too, and no tensor says it.

    Returns
    -------
    LSTM or GRU
        In training mode.

    Raises
    ------
    TypeError
        `source` is something else.
    ValueError
        A tensor is missing, unexpected (as those of layer normalisation) or of another shape than
        expected: the message names it and both shapes.

    Notes
    -----
    The LSTM's one bias becomes bias_ih; bias_hh is 0.  DropConnect, which acts in training, is not taken
    over.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.convert import from_haste
    >>> shapes = {"kernel": (3, 16), "recurrent_kernel": (4, 16), "bias": (16,)}
    >>> from_haste({name: np.zeros(shape, "float32") for name, shape in shapes.items()})
    LSTM(3, 4)
    """
    cell, parts = read_layers(each_direction("source", source, prefix), _cell_of, _read)
    return assemble(cell, parts, batch_first=batch_first, zoneout=zoneout)


def _cell_of(tensors: Tensors) -> Cell:
    cell = tensors.cell_of("recurrent_kernel")
    if cell == "rnn":
        raise ValueError(
            f"recurrent_kernel has shape {tensors.matrix('recurrent_kernel')}; expected (H, 4*H) of an "
            f"LSTM or (H, 3*H) of a GRU"
        )
    return cell


def _read(tensors: Tensors, cell: Cell, width: int | None, H: int | None) -> Part:
    G = len(GATES[cell])
    if H is None:
        H = tensors.matrix("recurrent_kernel")[0]
    columns = {f"{G}*H": G * H}
    taken = {
        "weight_ih": tensors.take("kernel", {"I": width, **columns}),
        "weight_hh": tensors.take("recurrent_kernel", {"H": H, **columns}),
        "bias_ih": tensors.take("bias", columns),
    }
    if cell == "gru":
        taken["bias_hh"] = tensors.take("recurrent_bias", columns)
    orders = ORDERS["haste"][cell], ORDERS["fastrnn"][cell]
    return {name: reorder(array.T, *orders) for name, array in taken.items()}


def to_haste(layer: Any) -> Any:
    """Return a layer's parameters as Haste has them.

    Parameters
    ----------
    layer : LSTM or GRU

    Returns
    -------
    dict of str to array
        "kernel", "recurrent_kernel", "bias", for a GRU "recurrent_bias"; for two directions a pair, for
        several layers a list.

    Raises
    ------
    TypeError
        `layer` is something else.
    ValueError
        It has what Haste does not: a projection, a peephole, zoneout of c, reset_after=False; or is an RNN.

    Notes
    -----
    The LSTM's one bias is the sum of the two.  Without biases they are 0.  A zoneout of h is to be given to
    Haste's constructor.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.convert import to_haste
    >>> {name: array.shape for name, array in to_haste(fastrnn.LSTM(3, 4)).items()}
    {'kernel': (3, 16), 'recurrent_kernel': (4, 16), 'bias': (16,)}
    """
    spec, layers = take_apart("layer", layer, "Haste", zoneout=True)
    if spec.cell == "rnn" or not spec.reset_after:
        what = "RNN" if spec.cell == "rnn" else "reset_after=False"
        raise ValueError(f"layer is {layer!r}; Haste has no {what}")
    orders = ORDERS["fastrnn"][spec.cell], ORDERS["haste"][spec.cell]

    def written(part: Part) -> dict[str, Array]:
        zeros = np.zeros(len(part["weight_ih"]), part["weight_ih"].dtype)
        ih, hh = part.get("bias_ih", zeros), part.get("bias_hh", zeros)
        own = {
            "kernel": part["weight_ih"],
            "recurrent_kernel": part["weight_hh"],
            "bias": ih if spec.cell == "gru" else ih + hh,
        }
        if spec.cell == "gru":
            own["recurrent_bias"] = hh
        return {name: np.ascontiguousarray(reorder(array, *orders).T) for name, array in own.items()}

    return nest([tuple(written(part) for part in directions) for directions in layers])
