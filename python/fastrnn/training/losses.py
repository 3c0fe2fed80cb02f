"""Losses of outputs and targets, each with its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import is_on_device
from .._backends import CPU, Library, backend_of_arrays, on_host
from ..layouts import DEVICE_DTYPES


def _on_host(library: Library, name: str, value: Any) -> Any:
    """Return an array of a device as NumPy's; lists and None as they are."""
    return on_host(library.take(name, value)) if is_on_device(value) else value


def softmax_cross_entropy(logits: Any, targets: Any, mask: Any = None) -> tuple[float, Any]:
    """Mean cross entropy of softmax(logits) with integer targets, and its gradient in the logits.

    With p = softmax(logits), N scored positions and the one-hot target e,
    ``loss = -(1/N) sum log p[target]`` and ``dlogits = (p - e) / N`` (Bishop, "Pattern Recognition and
    Machine Learning", 2006, section 4.3.4).  The largest logit of each row is subtracted first, so no
    finite logit overflows.

    Parameters
    ----------
    logits
        (..., V), float32 or float64; or an array on a CUDA device, of any float type.
    targets
        (...), integers in 0..V-1.
    mask
        (...), bool: the positions that are scored.  Where it is False the target may be anything, the
        logits too (NaN included), and the gradient is 0.

    Returns
    -------
    loss
        In nats; divide by log(2) for bits.
    dlogits
        (..., V), a new array of the dtype of logits.

    Raises
    ------
    TypeError
        logits are not floating point, targets not integers, or mask not bool.
    ValueError
        Shapes do not agree, a scored target is out of range, or no position is scored.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> from fastrnn.training import softmax_cross_entropy
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 4)), [2])
    >>> round(loss / math.log(2), 6), dlogits
    (2.0, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    backend, library = backend_of_arrays([logits]), None
    if backend is not CPU:
        library, logits = backend.take_x("logits", logits)
        targets, mask = (_on_host(library, name, a) for name, a in (("targets", targets), ("mask", mask)))
        if str(logits.dtype) not in DEVICE_DTYPES:
            raise TypeError(f"logits are {logits.dtype}; expected one of {', '.join(DEVICE_DTYPES)}")
    elif not isinstance(logits, np.ndarray) or logits.dtype not in (np.float32, np.float64):
        came = getattr(logits, "dtype", type(logits).__name__)
        raise TypeError(f"logits are {came}; expected a NumPy array of float32 or float64")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits have shape {logits.shape}; expected (..., V) with V > 0")
    target = np.asarray(targets)
    if not np.issubdtype(target.dtype, np.integer):
        raise TypeError(f"targets are {target.dtype}; expected integers")
    if target.shape != logits.shape[:-1]:
        raise ValueError(f"targets have shape {target.shape}; expected {logits.shape[:-1]}")
    size = logits.shape[-1]
    scored = np.ones(target.shape, bool) if mask is None else np.asarray(mask)
    if scored.dtype != np.bool_:
        raise TypeError(f"mask is {scored.dtype}; expected bool")
    if scored.shape != target.shape:
        raise ValueError(f"mask has shape {scored.shape}; expected {target.shape}")
    chosen = target[scored]
    if chosen.size == 0:
        raise ValueError("no position is scored: the mean over none is undefined")
    if chosen.min() < 0 or chosen.max() >= size:
        raise ValueError(f"targets range from {chosen.min()} to {chosen.max()}; expected 0..{size - 1}")

    if library is not None:
        logits = library.place(logits, logits.dtype)
        dlogits = library.empty(logits.shape, logits.dtype)
        numbers = library.place(np.where(scored, target, 0), "int64"), library.place(scored, "bool")
        loss = backend.core.softmax_cross_entropy(logits, *numbers, dlogits, 1 / chosen.size, logits.stream)
        return float(loss) / chosen.size, library.give(dlogits)

    rows = np.arange(chosen.size)
    p = logits[scored]  # a copy (N, V), which becomes the gradient in place
    p -= p.max(axis=-1, keepdims=True)
    target_logits = p[rows, chosen]
    np.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - target_logits, dtype=np.float64))
    p /= total
    p[rows, chosen] -= 1
    p /= chosen.size
    if mask is None:
        return loss, p.reshape(logits.shape)
    dlogits = np.zeros_like(logits)
    dlogits[scored] = p
    return loss, dlogits


def valid_steps(lengths: Any, steps: int) -> NDArray[np.bool_]:
    """Return which steps of each row count, (T, B): those before its length; a mask for the losses.

    Parameters
    ----------
    lengths
        (B,), integers from 0 to T.
    steps
        T.

    Raises
    ------
    TypeError, ValueError
        lengths are not what is said above.

    Examples
    --------
    >>> from fastrnn.training import valid_steps
    >>> valid_steps([2, 0, 3], 3).astype(int)
    array([[1, 0, 1],
           [1, 0, 1],
           [0, 0, 1]])
    """
    ends = np.asarray(on_host(lengths) if is_on_device(lengths) else lengths)
    if not np.issubdtype(ends.dtype, np.integer):
        raise TypeError(f"lengths are {ends.dtype}; expected integers")
    if ends.ndim != 1:
        raise ValueError(f"lengths have shape {ends.shape}; expected (B,)")
    if ends.size and not (ends.min() >= 0 and ends.max() <= steps):
        raise ValueError(f"lengths range from {ends.min()} to {ends.max()}; expected 0..{steps}")
    return np.arange(steps)[:, None] < ends
