"""Gradients kept from exploding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .. import _core, _device
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
        A gradient holds NaN, infinity, or a number whose square is infinite in float64; nothing is scaled.
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
    here = [gradient for gradient in gradients if isinstance(gradient, np.ndarray)]
    there = [gradient for gradient in gradients if not isinstance(gradient, np.ndarray)]
    squares = _core.sum_of_squares(here)
    norm = math.sqrt(squares + sum(_device.cuda_of_array(g).sum_of_squares(g) for g in there))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the norm of the gradients is {norm}: one of them holds NaN or infinity, or too large a number"
        )
    if norm > max_norm:
        _core.scale(here, max_norm / norm)
        for gradient in there:
            _device.cuda_of_array(gradient).scale(gradient, max_norm / norm)
    return norm


def clip_by_value(modules: Sequence[Module], max_value: float) -> float:
    """Cut every element of the gradients to -max_value..max_value.

    Simpler than `clip_by_global_norm`, and may turn the step (Mikolov, "Statistical Language Models Based on
    Neural Networks", 2012, section 3.2.2).

    Parameters
    ----------
    modules
        Whose gradients are cut, in place; on the CPU.
    max_value
        Greater than 0; infinity only measures.

    Returns
    -------
    largest
        The largest magnitude before; worth logging.

    Raises
    ------
    FloatingPointError
        A gradient holds NaN or infinity; nothing is cut.
    NotImplementedError
        A gradient is on a CUDA device, for which there is `clip_by_global_norm`.
    TypeError, ValueError
        modules is no list of layers, each once, or max_value not greater than 0.

    Examples
    --------
    >>> from fastrnn.training import Linear, clip_by_value
    >>> readout = Linear(1, 1)
    >>> readout.gradients["weight"][:] = -3
    >>> clip_by_value([readout], 0.5)
    3.0
    >>> readout.gradients["weight"]
    array([[-0.5]], dtype=float32)
    """
    max_value = number("max_value", max_value, POSITIVE_OR_INFINITE)
    gradients = [gradient for module in module_list(modules) for gradient in module.gradients.values()]
    for gradient in gradients:
        if not isinstance(gradient, np.ndarray):
            raise NotImplementedError(
                f"a gradient is on {gradient.device}; expected the CPU, or use clip_by_global_norm"
            )
    # The maximum of NaN and a number is NaN, in any order.
    largest = float(np.max([np.abs(gradient).max(initial=0) for gradient in gradients], initial=0))
    if not math.isfinite(largest):
        raise FloatingPointError(f"the largest gradient is {largest}: one of them holds NaN or infinity")
    if largest > max_value:
        for gradient in gradients:
            np.clip(gradient, -max_value, max_value, out=gradient)
    return largest
