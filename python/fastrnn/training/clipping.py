"""Gradients kept from exploding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .. import _device
from .._backends import Array
from ._numbers import POSITIVE_OR_INFINITE, number
from .modules import Module, module_list


def clip_by_global_norm(modules: Sequence[Module], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most max_norm.

    Keeps the direction of the step where back-propagation through time explodes (Pascanu, Mikolov &
    Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1).

    Parameters
    ----------
    modules
        Whose gradients are scaled, in place.
    max_norm
        Greater than 0; infinity only measures.

    Returns
    -------
    norm
        Before scaling; worth logging.

    Raises
    ------
    FloatingPointError
        A gradient holds NaN or infinity; nothing is scaled.
    TypeError, ValueError
        modules is no list of layers, each once, or max_norm not greater than 0.

    Examples
    --------
    >>> from fastrnn.training import Linear, clip_by_global_norm
    >>> readout = Linear(1, 1)
    >>> readout.gradients["weight"][:] = 3
    >>> readout.gradients["bias"][:] = 4
    >>> clip_by_global_norm([readout], 1.0)
    5.0
    >>> readout.gradients["bias"]
    array([0.8], dtype=float32)
    """
    max_norm = number("max_norm", max_norm, POSITIVE_OR_INFINITE)
    gradients = [gradient for module in module_list(modules) for gradient in module.gradients.values()]
    norm = math.sqrt(sum(_sum_of_squares(gradient) for gradient in gradients))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the norm of the gradients is {norm}: one of them holds NaN or infinity")
    if norm > max_norm:
        for gradient in gradients:
            if isinstance(gradient, np.ndarray):
                gradient *= max_norm / norm
            else:
                _device.cuda_of_array(gradient).scale(gradient, max_norm / norm)
    return norm


def _sum_of_squares(array: Array) -> float:
    if isinstance(array, np.ndarray):
        return float(np.sum(np.square(array, dtype=np.float64)))
    return _device.cuda_of_array(array).sum_of_squares(array)


def clip_by_value(modules: Sequence[Module], max_value: float) -> None:
    """Hold every element of all gradients within -max_value and max_value.

    Changes the direction of the step, unlike `clip_by_global_norm` (Goodfellow, Bengio & Courville, "Deep
    Learning", 2016, section 10.11.1).

    Parameters
    ----------
    modules
        Whose gradients are clipped, in place.
    max_value
        Greater than 0.

    Raises
    ------
    FloatingPointError
        A gradient holds NaN; nothing is clipped.
    NotImplementedError
        A gradient is on a CUDA device.
    TypeError, ValueError
        modules is no list of layers, each once, or max_value not greater than 0.

    Examples
    --------
    >>> from fastrnn.training import Linear, clip_by_value
    >>> readout = Linear(1, 2)
    >>> readout.gradients["bias"][:] = -3, 0.5
    >>> clip_by_value([readout], 1.0)
    >>> readout.gradients["bias"]
    array([-1. ,  0.5], dtype=float32)
    """
    max_value = number("max_value", max_value, POSITIVE_OR_INFINITE)
    gradients = [gradient for module in module_list(modules) for gradient in module.gradients.values()]
    for gradient in gradients:
        if not isinstance(gradient, np.ndarray):
            raise NotImplementedError(f"a gradient is on {gradient.device}; clip_by_global_norm works there")
        if np.isnan(gradient).any():
            raise FloatingPointError("a gradient holds NaN")
    for gradient in gradients:
        np.clip(gradient, -max_value, max_value, out=gradient)
