"""Putting fastrnn's modules where a model has torch.nn's."""

from __future__ import annotations

from typing import Any

import torch

from ..info import Report
from ._modules import GRU, LSTM, RNN

_SWAPS = {torch.nn.LSTM: LSTM, torch.nn.GRU: GRU, torch.nn.RNN: RNN}


def replace(model: Any) -> Report:
    """Swap every torch.nn.LSTM, GRU and RNN of a model, itself included, for fastrnn's.

    The modules stay the objects that they are and only change their class, so that parameters, optimizers,
    hooks, parametrizations, shared modules and references from elsewhere go on as before.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    Report
        A dict, which prints one line per entry: name in the model (``""`` is the model itself) to what it now
        is, or to why it was left alone: a subclass of torch.nn's with a forward of its own, a module scripted
        or of a dtype without kernels.

    Raises
    ------
    TypeError
        If `model` is no module.

    Examples
    --------
    >>> import torch
    >>> import fastrnn.torch
    >>> model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
    >>> fastrnn.torch.replace(model)
    0: swapped, LSTM(3, 4)
    >>> type(model[0]).__module__.startswith("fastrnn")
    True
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model has type {type(model).__name__}; expected a torch.nn.Module")
    report = Report()
    for name, module in model.named_modules():
        for theirs, ours in _SWAPS.items():
            if isinstance(module, theirs):
                report[name] = _swap(module, theirs, ours)
    return report


def _swap(module: Any, theirs: Any, ours: Any) -> str:
    dtype = next(module.parameters()).dtype
    device = next(module.parameters()).device
    if device.type != "cuda" and dtype not in (torch.float32, torch.float64):
        return f"left alone: there are no kernels for {dtype} on {device}"
    kind = type(module)
    if kind is theirs:
        module.__class__ = ours
    elif kind.__bases__ == (theirs,) and torch.nn.utils.parametrize.is_parametrized(module):
        own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, (ours,), own)
    else:
        return f"left alone: {kind.__name__} is a subclass of torch.nn.{theirs.__name__}"
    return f"swapped, {module}"
