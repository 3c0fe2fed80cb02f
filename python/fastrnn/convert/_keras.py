"""Keras 3's LSTM, GRU, SimpleRNN and Bidirectional.

Columns where fastrnn has rows, gates in the order i, f, c, o or z, r, h; one bias, or for a GRU with
reset_after two; batch first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from .._orders import ORDERS, reorder
from ..layouts import GATES, Cell, boolean, one_of
from ._parts import (
    Part,
    Tensors,
    assemble,
    check_agrees,
    check_same_directions,
    each_direction,
    nest,
    read_layers,
    take_apart,
)
from .backwards import Backwards

Array = NDArray[Any]

_KINDS: dict[str, Cell] = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}
_NONLINEARITIES = {"tanh": "tanh", "relu": "relu", "sigmoid": "sigmoid", "linear": "identity"}


def from_keras(
    source: Any,
    *,
    reset_after: bool | None = None,
    nonlinearity: str | None = None,
    go_backwards: bool | None = None,
) -> Any:
    """Make a fastrnn layer of a Keras layer, of a list of them, or of their weights.

    Parameters
    ----------
    source : keras.layers.LSTM, GRU, SimpleRNN or Bidirectional, or a list of such, one on top of the other
        Or mappings of the names "kernel", "recurrent_kernel" and "bias" to arrays, or pairs (forward,
        backward) of mappings, or a safetensors file of one mapping.
    reset_after : bool, optional
        Of a GRU given by arrays without bias, which cannot say; True if None, as in Keras.
    nonlinearity : str, optional
        Of a SimpleRNN given by arrays, which cannot say, by Keras's name or fastrnn's; "tanh" if None.
    go_backwards : bool, optional
        Of what is given by arrays, which cannot say; False if None.

    Returns
    -------
    LSTM, GRU or RNN, or a `Backwards` of one
        Batch first, in training mode.  A layer with ``go_backwards=True`` gives a `Backwards`, as does a list
        whose first, and no other, is one: the others read its outputs in the order in which they are made.

    Raises
    ------
    TypeError
        `source` or another argument is something else.
    ValueError
        A layer is not built, or computes what fastrnn does not: another activation, merge_mode or
        projection of its own; or a tensor is missing, unexpected or of another shape than expected: the
        message names it and both shapes; or another argument is not what `source` says.

    Notes
    -----
    The one bias becomes bias_ih; bias_hh is 0.  `lengths_from_mask` makes `lengths` of Keras's masks; y is
    then 0 past a row's length, as with zero_output_for_mask=True.  Keras's dropout acts on the inputs of
    layers, fastrnn's between layers: it is not taken over.  With ``return_sequences=False`` Keras returns
    the final state: ``h_n[-1]``, of two directions ``h_n[-2]`` and ``h_n[-1]`` side by side.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.convert import from_keras
    >>> shapes = {"kernel": (3, 12), "recurrent_kernel": (4, 12), "bias": (2, 12)}
    >>> from_keras({name: np.zeros(shape, "float32") for name, shape in shapes.items()})
    GRU(3, 4, batch_first=True)
    """
    if nonlinearity is not None:
        one_of("nonlinearity", nonlinearity, (*_NONLINEARITIES, "identity"))
        nonlinearity = _NONLINEARITIES.get(nonlinearity, nonlinearity)
    entries = source if isinstance(source, list) else [source]
    if not entries or isinstance(entries[0], Mapping | tuple | str) or hasattr(entries[0], "__fspath__"):
        made = _assemble(each_direction("source", source), nonlinearity, reset_after)
        backwards = go_backwards is not None and boolean("go_backwards", go_backwards)
        return Backwards(made) if backwards else made
    layers = [_Layer(index, entry, len(entries)) for index, entry in enumerate(entries)]
    check_same_directions("source", [len(layer.tensors) for layer in layers])
    for attribute in ("cell", "activation", "reset_after"):
        found = [getattr(layer, attribute) for layer in layers]
        if len(set(found)) > 1:
            raise ValueError(f"the layers of source have the {attribute} {found}; expected one for all")
    if any(layer.go_backwards for layer in layers[1:]):
        raise ValueError(
            "source is a list of layers with go_backwards=True; expected them one by one, or the first "
            "alone with it, whose outputs the others read in the order in which they are made"
        )
    first = layers[0]
    check_agrees("reset_after", reset_after, first.reset_after)
    check_agrees("nonlinearity", nonlinearity, first.activation)
    check_agrees("go_backwards", go_backwards, first.go_backwards)
    made = _assemble([layer.tensors for layer in layers], first.activation, first.reset_after, first.cell)
    return Backwards(made) if first.go_backwards else made


class _Layer:
    """What a Keras layer says of itself, checked."""

    def __init__(self, index: int, layer: Any, count: int) -> None:
        where = f"layer {index}: " if count > 1 else ""
        kind = type(layer).__name__
        sides = [("", layer)]
        if kind == "Bidirectional":
            if layer.merge_mode != "concat":
                raise ValueError(f"{where}merge_mode is {layer.merge_mode!r}; expected 'concat'")
            sides = [("forward: ", layer.forward_layer), ("backward: ", layer.backward_layer)]
        described = [self._describe(where + side, own) for side, own in sides]
        if described[0] != described[-1]:
            raise ValueError(
                f"{where}the two directions are {described[0]} and {described[1]}; expected them alike"
            )
        self.cell, self.activation, self.reset_after = described[0]
        ways = [bool(own.go_backwards) for _, own in sides]
        if ways not in ([False], [True], [False, True]):
            raise ValueError(f"{where}go_backwards is {ways}; expected [False, True] of two directions")
        self.go_backwards = ways == [True]
        self.tensors = tuple(
            Tensors(
                where + side, {v.path.rpartition("/")[2]: _array(v) for v in own.weights if _is_weight(v)}
            )
            for side, own in sides
        )

    def _describe(self, where: str, layer: Any) -> tuple[Cell, str, bool]:
        kind = type(layer).__name__
        if kind not in _KINDS:
            raise TypeError(
                f"{where}source has type {kind}; expected a Keras LSTM, GRU, SimpleRNN or Bidirectional, a "
                f"list of them, or mappings of names to arrays"
            )
        if not layer.built:
            raise ValueError(f"{where}the {kind} {layer.name!r} is not built; call it, or build() it, first")
        activation = _name(layer.activation)
        allowed = tuple(_NONLINEARITIES) if kind == "SimpleRNN" else ("tanh",)
        if activation not in allowed:
            raise ValueError(f"{where}activation is {activation!r}; expected {' or '.join(allowed)}")
        if kind != "SimpleRNN" and _name(layer.recurrent_activation) != "sigmoid":
            name = _name(layer.recurrent_activation)
            raise ValueError(f"{where}recurrent_activation is {name!r}; expected sigmoid")
        return _KINDS[kind], _NONLINEARITIES[activation], bool(getattr(layer, "reset_after", True))


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def _is_weight(variable: Any) -> bool:
    return variable.path.rpartition("/")[2] in ("kernel", "recurrent_kernel", "bias")


def _array(variable: Any) -> Any:
    """Return an array that can be taken, of the library that Keras runs on."""
    value = variable.value
    return value if hasattr(value, "__dlpack__") else np.asarray(value)


def _assemble(
    layers: list[tuple[Tensors, ...]],
    nonlinearity: str | None,
    reset_after: bool | None,
    cell: Cell | None = None,
) -> Any:
    """Make the layer; the cell, and whether a GRU resets after the product, may be left to the tensors."""
    given = reset_after

    def read(tensors: Tensors, cell: Cell, width: int | None, H: int | None) -> Part:
        nonlocal reset_after
        part, reset_after = _read(tensors, cell, width, H, reset_after)  # from here on it is known
        return part

    cell, parts = read_layers(layers, lambda tensors: tensors.cell_of("recurrent_kernel"), read, cell)
    options: dict[str, Any] = {}
    if cell == "gru":
        options["reset_after"] = reset_after
    else:
        check_agrees("reset_after", given, True)
    if cell == "rnn":
        options["nonlinearity"] = nonlinearity or "tanh"
    else:
        check_agrees("nonlinearity", nonlinearity, "tanh")
    return assemble(cell, parts, batch_first=True, **options)


def _read(
    tensors: Tensors,
    cell: Cell,
    width: int | None,
    H: int | None,
    reset_after: bool | None,
) -> tuple[Part, bool]:
    """Return one direction's parameters, and whether it resets after the product."""
    G = len(GATES[cell])
    if H is None:
        H = tensors.matrix("recurrent_kernel")[0]
    columns = {f"{G}*H": G * H}
    kernel = tensors.take("kernel", {"I": width, **columns})
    recurrent = tensors.take("recurrent_kernel", {"H": H, **columns})
    part = {"weight_ih": _rows(kernel, cell), "weight_hh": _rows(recurrent, cell)}
    after = True if reset_after is None else boolean("reset_after", reset_after)
    if "bias" in tensors:
        bias = tensors.peek("bias")
        if reset_after is None:
            after = bias.ndim == 2
        if cell == "gru" and after:
            tensors.expect("bias", bias, {"2": 2, **columns})
            part |= {"bias_ih": _rows(bias[0], cell), "bias_hh": _rows(bias[1], cell)}
        else:
            tensors.expect("bias", bias, columns)
            part["bias_ih"] = _rows(bias, cell)
    return part, after


def _rows(columns: Array, cell: Cell) -> Array:
    return reorder(columns.T, ORDERS["keras"][cell], ORDERS["fastrnn"][cell])


def keras_weights(layer: Any) -> Any:
    """Return a layer's parameters as Keras has them.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, or a `Backwards` of one

    Returns
    -------
    dict of str to array
        "kernel" (I, G*H), "recurrent_kernel" (H, G*H), "bias" (G*H,), for a GRU with reset_after (2, 3*H);
        for two directions a pair, for several layers a list.

    Raises
    ------
    TypeError, ValueError
        It is something else, or has a projection, peephole or zoneout, which Keras does not.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.convert import keras_weights
    >>> {name: array.shape for name, array in keras_weights(fastrnn.GRU(3, 4)).items()}
    {'kernel': (3, 12), 'recurrent_kernel': (4, 12), 'bias': (2, 12)}
    """
    spec, layers = take_apart("layer", layer.layer if isinstance(layer, Backwards) else layer, "Keras")

    def written(part: Part) -> dict[str, Array]:
        weights = {
            name: np.ascontiguousarray(_columns(part[own], spec.cell).T)
            for name, own in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh"))
        }
        if spec.bias:
            ih, hh = (_columns(part[name], spec.cell) for name in ("bias_ih", "bias_hh"))
            weights["bias"] = np.stack([ih, hh]) if spec.cell == "gru" and spec.reset_after else ih + hh
        return weights

    return nest([tuple(written(part) for part in directions) for directions in layers])


def _columns(rows: Array, cell: Cell) -> Array:
    return reorder(rows, ORDERS["fastrnn"][cell], ORDERS["keras"][cell])


def to_keras(layer: Any, **options: Any) -> Any:
    """Make the Keras layer with the parameters of a fastrnn layer.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, or a `Backwards` of one
        A `Backwards` becomes a layer with ``go_backwards=True``; of several the first alone is one, and the
        others read its outputs in the order in which they are made.
    **options
        Of the Keras layers, such as return_state.  return_sequences, of the last of them, is True unless
        given; of those below it it is True.

    Returns
    -------
    keras.layers.LSTM, GRU, SimpleRNN or Bidirectional
        Built, batch first; a list of them for several layers, the lowest first.

    Raises
    ------
    TypeError, ValueError
        `layer` is something else, or has a projection, peephole or zoneout, which Keras does not.

    Notes
    -----
    Dropouts are not taken over.  Where Keras has one bias it is the sum of the two.  A stack of a
    `Backwards` is for sequences without a mask, which Keras hands on in the order of the input.
    """
    require("keras", "to_keras")
    import keras

    weights = keras_weights(layer)
    own = layer.layer if isinstance(layer, Backwards) else layer
    spec = own._spec
    kind = getattr(keras.layers, next(name for name, cell in _KINDS.items() if cell == spec.cell))
    options = {"return_sequences": True, "use_bias": spec.bias, "dtype": spec.dtype} | options
    if spec.cell == "gru":
        options["reset_after"] = spec.reset_after
    if spec.cell == "rnn":
        options["activation"] = next(k for k, v in _NONLINEARITIES.items() if v == spec.nonlinearity)
    made = []
    for index, entry in enumerate(weights if isinstance(weights, list) else [weights]):
        of_place: dict[str, Any] = {}
        if isinstance(layer, Backwards) and index == 0:
            of_place["go_backwards"] = True
        if index < spec.num_layers - 1:
            of_place["return_sequences"] = True
        result = kind(spec.hidden_size, **options | of_place)
        if isinstance(entry, tuple):
            result = keras.layers.Bidirectional(result, merge_mode="concat", dtype=spec.dtype)
        result.build((None, None, spec.layer_input_size(index)))
        each = entry if isinstance(entry, tuple) else (entry,)
        result.set_weights([array for directions in each for array in directions.values()])
        made.append(result)
    return made if len(made) > 1 else made[0]
