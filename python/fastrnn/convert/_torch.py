"""Recurrent modules of torch.nn and fastrnn.torch, and their state_dicts: names and orders are fastrnn's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .. import _arrays
from .._backends import on_host
from .._extras import require
from ..layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from ..layouts import GATES, Spec
from ._parts import LAYERS, Tensors, check_agrees, dtype_of, read_source

_NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|weight_ch|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")
_CELLS = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell}
_OPTIONS = (
    *("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"),
    *("proj_size", "nonlinearity", "peephole", "reset_after"),
)
_CELL_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_DEFAULTS = {"nonlinearity": "tanh", "batch_first": False, "reset_after": True}
"""Of what names and shapes do not tell."""


def from_torch(
    source: Any,
    *,
    prefix: str = "",
    nonlinearity: str | None = None,
    batch_first: bool | None = None,
    reset_after: bool | None = None,
    dtype: Any = None,
) -> Any:
    """Make a fastrnn layer of a recurrent module of torch.nn, or of what it was saved as.

    Parameters
    ----------
    source : torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell, mapping, or path of a safetensors file
        Or one of `fastrnn.torch`, with its peepholes and reset_after.  A mapping of names to arrays is a
        state_dict: cell, sizes, layers, directions, bias, projection and peepholes are found from names and
        shapes.
    prefix : str, optional
        Of a mapping or file, only the names that begin with it are used, without it: "encoder.rnn.".
    nonlinearity, batch_first, reset_after : optional
        Of a mapping or file, which cannot say: "tanh", False and True if None.  A module says it itself.
    dtype : str, optional
        "float32" or "float64"; if None float64 for arrays of it, else float32.

    Returns
    -------
    LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell
        In training mode, as every new layer, with copies of the parameters.

    Raises
    ------
    TypeError
        `source` is something else, or holds what are no floats.
    ValueError
        A tensor is missing, unexpected or of another shape than expected: the message names it and both
        shapes.  Or an argument is not what `source` says, or it is a cell with peepholes, which
        `fastrnn.LSTMCell` does not have.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.convert import from_torch
    >>> saved = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True).state_dict()
    >>> from_torch({"rnn." + name: array for name, array in saved.items()}, prefix="rnn.")
    LSTM(3, 4, num_layers=2, bidirectional=True)
    """
    source = read_source("source", source, prefix)
    of_module = not isinstance(source, Mapping)
    tensors, kind, options = _of_module(source) if of_module else (source, *_described("source", source))
    given = {"nonlinearity": nonlinearity, "batch_first": batch_first, "reset_after": reset_after}
    for name, value in given.items():
        if of_module or name not in kind._arguments:
            check_agrees(name, value, options.get(name, _DEFAULTS[name]))
        else:
            options[name] = _DEFAULTS[name] if value is None else value
    if dtype is None:
        dtype = dtype_of(tensors.values())
    layer = kind(**options, dtype=dtype, seed=0)
    layer.load_state_dict(tensors)
    return layer


def _of_module(module: Any) -> tuple[Mapping[str, Any], Any, dict[str, Any]]:
    require("torch", "from_torch of a module")
    import torch

    modes: dict[str, Any] = {"LSTM": LSTM, "GRU": GRU, "RNN_TANH": RNN, "RNN_RELU": RNN}
    cells = {getattr(torch.nn, own.__name__): own for own in _CELLS.values()}
    if isinstance(module, torch.nn.RNNBase):  # and, of fastrnn.torch, no torch.nn.LSTM and so on
        kind = modes.get(module.mode)
    else:
        kind = next((own for base, own in cells.items() if isinstance(module, base)), None)
    if kind is None:
        raise TypeError(
            f"source has type {type(module).__name__}; expected a recurrent module of torch.nn, a mapping of "
            f"names to arrays, or a path"
        )
    found = {key: getattr(module, key) for key in _OPTIONS if hasattr(module, key)}
    if found.get("peephole") and "peephole" not in kind._arguments:
        raise ValueError(
            f"source is {module!r}; expected no peephole, which fastrnn.{kind.__name__} does not have"
        )
    if kind is RNN:
        found["nonlinearity"] = module.mode.removeprefix("RNN_").lower()
    if found.get("num_layers") == 1:
        found["dropout"] = 0.0  # which acts between layers
    options = {key: value for key, value in found.items() if key in kind._arguments}
    names = module._flat_weights_names if kind in LAYERS.values() else _CELL_NAMES[: 4 if module.bias else 2]
    # As attributes, which parametrizations compute from what a state_dict has in place of them.
    return {name: getattr(module, name) for name in names}, kind, options


def _described(name: str, tensors: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the class and options that a state_dict is of; `load_state_dict` then checks every shape."""
    layers, reverse, is_cell = 0, False, False
    for key in tensors:
        match = _NAME.fullmatch(str(key))
        if match is None:
            raise ValueError(
                f"{name} has the tensor {key!r}; expected weight_ih_l0, weight_hh_l0 and so on alone; "
                f"`prefix` chooses those of one module"
            )
        is_cell = is_cell or match[2] is None
        layers = max(layers, int(match[2] or 0) + 1)
        reverse = reverse or match[3] is not None
    suffix = "" if is_cell else "_l0"
    first = Tensors(f"{name}: ", tensors)
    rows, width = first.matrix("weight_ih" + suffix)
    _, R = first.matrix("weight_hh" + suffix)
    projected = "weight_hr" + suffix in tensors
    H = first.matrix("weight_hr" + suffix)[1] if projected else R
    cell = next((cell for cell in LAYERS if len(GATES[cell]) * H == rows), None)
    if cell is None:
        raise ValueError(
            f"{name}: weight_ih{suffix} has shape {(rows, width)}; expected (4*H, I), (3*H, I) or (H, I) "
            f"with H = {H}, the {'projection' if projected else 'weight_hh' + suffix}'s"
        )
    options: dict[str, Any] = {"input_size": width, "hidden_size": H, "bias": "bias_ih" + suffix in tensors}
    if is_cell:
        return _CELLS[cell], options
    options |= {"num_layers": layers, "bidirectional": reverse}
    if projected:
        options["proj_size"] = R
    if "weight_ch" + suffix in tensors:
        options["peephole"] = "diagonal" if first.peek("weight_ch" + suffix).ndim == 1 else "full"
    return LAYERS[cell], options


def to_torch(layer: Any) -> Any:
    """Make the torch.nn module with the options and parameters of a fastrnn layer or cell.

    Parameters
    ----------
    layer : LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell

    Returns
    -------
    torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell
        On the CPU, in the layer's mode, with copies of the parameters.

    Raises
    ------
    TypeError
        `layer` is something else.
    ValueError
        It has what torch.nn does not: a peephole, zoneout, recurrent_dropout, reset_after=False, another
        nonlinearity than tanh or relu.
    """
    require("torch", "to_torch")
    import torch

    kinds = (*LAYERS.values(), *_CELLS.values())
    if not isinstance(layer, kinds):
        raise TypeError(f"layer has type {type(layer).__name__}; expected a fastrnn layer or cell")
    spec: Spec = layer._spec
    for what, has in (
        ("peephole", spec.peephole != "none"),
        ("zoneout", any(spec.zoneout_of)),
        ("recurrent_dropout", spec.recurrent_dropout > 0),
        ("reset_after=False", not spec.reset_after),
        (f"nonlinearity={spec.nonlinearity!r}", spec.nonlinearity not in ("tanh", "relu")),
    ):
        if has:
            raise ValueError(f"layer is {layer!r}; torch.nn has no {what}")
    kind = next(kind for kind in kinds if isinstance(layer, kind))
    options = {key: getattr(layer, key) for key in _OPTIONS if key in kind._arguments}
    for own in ("peephole", "reset_after"):  # which torch.nn's constructors do not have
        options.pop(own, None)
    module = getattr(torch.nn, kind.__name__)(**options, dtype=getattr(torch, layer.dtype))
    state = {
        name: torch.from_numpy(_arrays.contiguous(on_host(a)).copy()) for name, a in layer.parameters.items()
    }
    module.load_state_dict(state)
    return module.train(layer.training)
