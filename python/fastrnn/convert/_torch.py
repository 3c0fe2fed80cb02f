"""torch.nn's recurrent modules and their state_dicts, whose names, shapes and orders are fastrnn's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .. import _arrays
from .._backends import on_host
from ..layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from ..layouts import GATES, Spec
from ._parts import LAYERS, Tensors, dtype_of, read_source

_NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")
_CELLS = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell}
_OPTIONS = ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size", "nonlinearity")


def from_torch(
    source: Any, *, prefix: str = "", nonlinearity: str = "tanh", batch_first: bool = False, dtype: Any = None
) -> Any:
    """Make a fastrnn layer of a recurrent module of torch.nn, or of what it was saved as.

    Parameters
    ----------
    source : torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell, mapping, or path of a safetensors file
        A mapping of names to arrays is a state_dict: cell, sizes, layers, directions, bias and projection
        are found from names and shapes.
    prefix : str, optional
        Of a mapping or file, only the names that begin with it are used, without it: "encoder.rnn.".
    nonlinearity, batch_first : optional
        Of a mapping or file, which cannot say; a module says it itself.
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
        shapes.
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
    options: dict[str, Any]
    if isinstance(source, Mapping):
        tensors = source
        kind, options = _described("source", source)
        if kind in (RNN, RNNCell):
            options["nonlinearity"] = nonlinearity
        if kind in LAYERS.values():
            options["batch_first"] = batch_first
    else:
        tensors, kind, options = _of_module(source)
    if dtype is None:
        dtype = dtype_of(tensors.values())
    layer = kind(**options, dtype=dtype, seed=0)
    layer.load_state_dict(tensors)
    return layer


def _of_module(module: Any) -> tuple[Mapping[str, Any], Any, dict[str, Any]]:
    import torch

    classes: dict[str, Any] = {
        "LSTM": LSTM,
        "GRU": GRU,
        "RNN": RNN,
        "LSTMCell": LSTMCell,
        "GRUCell": GRUCell,
        "RNNCell": RNNCell,
    }
    for name, kind in classes.items():
        if isinstance(module, getattr(torch.nn, name)):
            options = {"input_size": module.input_size, "hidden_size": module.hidden_size}
            options |= {key: getattr(module, key) for key in _OPTIONS if key in kind._arguments}
            if kind in LAYERS.values() and module.num_layers == 1:
                options["dropout"] = 0.0  # which acts between layers
            return module.state_dict(), kind, options
    raise TypeError(
        f"source has type {type(module).__name__}; expected a recurrent module of torch.nn, a mapping of "
        f"names to arrays, or a path"
    )


def _described(name: str, tensors: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the class and options that a state_dict is of; `load_state_dict` then checks every shape."""
    layers, reverse, is_cell = 0, False, False
    for key in tensors:
        match = _NAME.fullmatch(key)
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
    module = getattr(torch.nn, kind.__name__)(
        layer.input_size, layer.hidden_size, **options, dtype=getattr(torch, layer.dtype)
    )
    state = {
        name: torch.from_numpy(_arrays.contiguous(on_host(a)).copy()) for name, a in layer.parameters.items()
    }
    module.load_state_dict(state)
    return module.train(layer.training)
