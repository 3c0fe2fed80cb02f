"""Losses of outputs and targets, each with its gradient."""

from __future__ import annotations

import math
import sys
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._arrays import contiguous, empty
from .._backends import CPU, Array, Backend, Library, backend_of_arrays, brought_to_host, on_host
from ..layouts import DEVICE_DTYPES, DTYPES, integer, one_of
from ._numbers import ANY, number

Reduction = Literal["mean", "sum"]

_HOST_DTYPES = (*DTYPES, "float16")
"""What NumPy has of the outputs of layers, those of a CUDA device among them."""


def softmax(logits: Any) -> Any:
    """Probabilities ``exp(o_k) / sum_j exp(o_j)`` over the last axis.

    Goodfellow, Bengio & Courville, "Deep Learning", 2016, equation 6.29, with the largest logit subtracted
    first (6.33), so that no finite logit overflows.

    Parameters
    ----------
    logits
        (..., V), a NumPy array of float32, float64 or float16; or an array on a CUDA device, of any float
        type, which is copied to the host and the result back.  16 bits are computed in float32.

    Returns
    -------
    p
        (..., V), a new array of the dtype of logits, where they are.

    Raises
    ------
    TypeError, ValueError
        logits are no such array, or V is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import softmax
    >>> softmax(np.array([0.0, 0.0, -1e30]))
    array([0.5, 0.5, 0. ])
    """
    backend = backend_of_arrays([logits])
    if backend is not CPU:
        library, array = _taken_there("logits", backend, logits)
        return library.give(library.place(softmax(on_host(array)), array.dtype))
    logits = _checked_floats("logits", logits)
    if logits.dtype == np.float16:
        return softmax(logits.astype(np.float32)).astype(np.float16)
    below = below_largest(_checked_logits(logits))
    with np.errstate(under="ignore"):
        p = np.exp(below)
    p /= p.sum(axis=-1, keepdims=True)
    return p


def below_largest(logits: NDArray[Any]) -> NDArray[Any]:
    """Return logits less the largest of their row, which changes no softmax, and lets none overflow."""
    with np.errstate(over="ignore"):  # the difference of two finite logits may be infinite
        below: NDArray[Any] = logits - logits.max(axis=-1, keepdims=True)
    return below


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logarithms of `softmax`, in float64; logits may be -infinity, if not all of a row."""
    below = below_largest(logits.astype(np.float64))
    with np.errstate(under="ignore"):
        below -= np.log(np.exp(below).sum(axis=-1, keepdims=True))
    return below


def softmax_cross_entropy(
    logits: Any, targets: Any, mask: Any = None, *, reduction: Reduction = "mean"
) -> tuple[float, Any]:
    """Cross entropy of softmax(logits) with integer targets, and its gradient in the logits.

    It is the negative log-likelihood of the targets.  With p = softmax(logits), N scored positions and
    the one-hot target e, ``loss = -(1/N) sum log p[target]`` and ``dlogits = (p - e) / N`` (Bishop,
    "Pattern Recognition and Machine Learning", 2006, section 4.3.4; for a recurrent network Goodfellow,
    Bengio & Courville, "Deep Learning", 2016, equation 10.18); with reduction "sum" without the 1/N.  The
    largest logit of each row is subtracted first, so no finite logit overflows.

    Parameters
    ----------
    logits
        (..., V), float32, float64 or float16; or an array on a CUDA device, of any float type.  16 bits are
        computed in float32.
    targets
        (...), integers in 0..V-1.
    mask
        (...), bool: the positions that are scored, such as `valid_steps`.  Where it is False the target may
        be anything, the logits too (NaN included), and the gradient is 0.
    reduction
        "mean" over the scored positions, or their "sum".

    Returns
    -------
    loss
        In nats; see `bits_per_symbol` and `perplexity`.
    dlogits
        (..., V), a new array of the dtype of logits.

    Raises
    ------
    TypeError
        logits are not floating point, targets not integers, or mask not bool.
    ValueError
        Shapes do not agree, a scored target is out of range, no position is scored, or reduction is no such
        word.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> from fastrnn.training import softmax_cross_entropy
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 4)), [2])
    >>> round(loss / math.log(2), 6), dlogits
    (2.0, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    one_of("reduction", reduction, ("mean", "sum"))
    backend, library = backend_of_arrays([logits]), None
    if backend is not CPU:
        library, logits = _taken_there("logits", backend, logits)
    else:
        logits = _checked_floats("logits", logits)
        if logits.dtype == np.float16:
            wide = logits.astype(np.float32)
            loss, dlogits = softmax_cross_entropy(wide, targets, mask, reduction=reduction)
            return loss, dlogits.astype(np.float16)
    logits = _checked_logits(logits)
    target, scored, count = _checked_targets(logits.shape, targets, mask)
    weight = 1 / count if reduction == "mean" else 1.0

    if library is not None:
        logits = library.place(logits, logits.dtype)
        dlogits = library.empty(logits.shape, logits.dtype)
        numbers = library.place(np.where(scored, target, 0), "int64"), library.place(scored, "bool")
        loss = backend.core.softmax_cross_entropy(logits, *numbers, dlogits, weight, logits.stream)
        return float(loss) * weight, library.give(dlogits)

    dlogits = empty(logits.shape, logits.dtype)
    numbers = (
        contiguous(target.astype(np.int64, copy=False)).ravel(),
        None if mask is None else scored.ravel(),
    )
    rows = contiguous(logits).reshape(-1, logits.shape[-1]), dlogits.reshape(-1, logits.shape[-1])
    loss = _core.softmax_cross_entropy(rows[0], *numbers, rows[1], weight)
    return loss * weight, dlogits


def log_likelihood(logits: Any, targets: Any, mask: Any = None) -> NDArray[np.float64]:
    """Log-probability of each target sequence, ``sum_t log p[t, target_t]`` with p = softmax(logits).

    Goodfellow, Bengio & Courville, "Deep Learning", 2016, equations 10.12 to 10.14 without the sign.

    Parameters
    ----------
    logits
        (T, ..., V), a NumPy array of float32, float64 or float16, the outputs of a model; or an array on a
        CUDA device, of any float type, which is copied to the host.
    targets
        (T, ...), integers in 0..V-1.
    mask
        (T, ...), bool: the steps that count, such as `valid_steps`; a row without any has 0.

    Returns
    -------
    log_likelihood
        (...), float64, in nats, one for each row: (B,) for logits (T, B, V).

    Raises
    ------
    TypeError, ValueError
        As `softmax_cross_entropy`, but that a mask may leave nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import log_likelihood
    >>> log_likelihood(np.zeros((3, 2, 4)), np.zeros((3, 2), int)).round(4)  # 3 log(1/4)
    array([-4.1589, -4.1589])
    """
    backend = backend_of_arrays([logits])
    if backend is not CPU:
        logits = on_host(_taken_there("logits", backend, logits)[1])
    logits = _checked_logits(_checked_floats("logits", logits))
    if logits.ndim < 2:
        raise ValueError(f"logits have shape {logits.shape}; expected (T, ..., V)")
    target, scored, _ = _checked_targets(logits.shape, targets, mask, least=0)
    every = log_softmax(np.where(scored[..., None], logits, 0))
    terms = np.take_along_axis(every, np.where(scored, target, 0)[..., None], axis=-1)[..., 0]
    return cast("NDArray[np.float64]", np.where(scored, terms, 0).sum(axis=0))


def mean_squared_error(
    outputs: Any, targets: Any, mask: Any = None, *, reduction: Reduction = "mean"
) -> tuple[float, Any]:
    """Squared error of outputs, and its gradient in them.

    ``loss = (1/N) sum (o - y)^2`` and ``do = 2 (o - y) / N`` over the N scored numbers, as torch.nn.MSELoss
    (Goodfellow, Bengio & Courville, "Deep Learning", 2016, equation 5.4); with reduction "sum" without the
    1/N.

    Parameters
    ----------
    outputs
        (..., O), a NumPy array of float32, float64 or float16; or an array on a CUDA device, of any float
        type, which is copied to the host and the gradient back.  16 bits are computed in float32.
    targets
        (..., O), numbers.
    mask
        (...), bool: the positions that are scored, such as `valid_steps`.  Where it is False outputs and
        targets may be anything, NaN included, and the gradient is 0.
    reduction
        "mean" over the scored numbers, of which every position has O, or their "sum".

    Returns
    -------
    loss
        Summed in float64.
    doutputs
        (..., O), a new array of the dtype of outputs, where they are.

    Raises
    ------
    TypeError
        outputs are no such array, targets no numbers, or mask not bool.
    ValueError
        Shapes do not agree, nothing is scored, or reduction is no such word.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import mean_squared_error
    >>> mean_squared_error(np.array([[1.0, 2.0]]), [[1.0, 4.0]])
    (2.0, array([[ 0., -2.]]))
    """
    one_of("reduction", reduction, ("mean", "sum"))
    backend = backend_of_arrays([outputs])
    if backend is not CPU:
        library, array = _taken_there("outputs", backend, outputs)
        loss, error = mean_squared_error(on_host(array), targets, mask, reduction=reduction)
        return loss, library.give(library.place(error, array.dtype))
    outputs = _checked_floats("outputs", outputs)
    if outputs.dtype == np.float16:
        loss, error = mean_squared_error(outputs.astype(np.float32), targets, mask, reduction=reduction)
        return loss, error.astype(np.float16)
    if outputs.ndim == 0:
        raise ValueError("outputs have shape (); expected (..., O)")
    target = np.asarray(brought_to_host("targets", targets))
    if target.dtype.kind not in "iuf":
        raise TypeError(f"targets are {target.dtype}; expected numbers")
    if target.shape != outputs.shape:
        raise ValueError(f"targets have shape {target.shape}; expected {outputs.shape}")
    scored = _checked_mask(mask, outputs.shape[:-1])
    count = int(np.count_nonzero(scored)) * outputs.shape[-1]
    if count == 0:
        raise ValueError("no position is scored: the mean over none is undefined")
    error = np.zeros_like(outputs)
    weight = 1 / count if reduction == "mean" else 1.0
    with np.errstate(over="ignore"):  # an infinite loss tells by itself
        np.subtract(outputs, target, out=error, where=scored[..., None], casting="same_kind")
        loss = float(np.sum(np.square(error, dtype=np.float64))) * weight
        error *= 2 * weight
    return loss, error


def perplexity(loss: float) -> float:
    """Perplexity ``exp(loss)`` of a mean negative log-likelihood in nats.

    The number of equally likely symbols that would be as hard to predict (Jelinek, Mercer, Bahl & Baker,
    "Perplexity: a measure of the difficulty of speech recognition tasks", 1977); infinite where it overflows.

    Raises
    ------
    TypeError
        loss is no number.

    Examples
    --------
    >>> import math
    >>> from fastrnn.training import perplexity
    >>> round(perplexity(math.log(10)), 6)
    10.0
    """
    loss = number("loss", loss, ANY)
    return math.inf if loss > math.log(sys.float_info.max) else math.exp(loss)


def bits_per_symbol(loss: float) -> float:
    """Bits per symbol, ``loss / log 2``, of a mean negative log-likelihood in nats.

    What a coder driven by the model needs for each symbol (Shannon, "A Mathematical Theory of Communication",
    1948); of characters it is called bits per character.

    Raises
    ------
    TypeError
        loss is no number.

    Examples
    --------
    >>> import math
    >>> from fastrnn.training import bits_per_symbol
    >>> bits_per_symbol(3 * math.log(2))
    3.0
    """
    return number("loss", loss, ANY) / math.log(2)


def valid_steps(lengths: Any, steps: int) -> NDArray[np.bool_]:
    """Mask of the steps that sequences of these lengths have, for a loss: True where ``t < lengths[b]``.

    Parameters
    ----------
    lengths
        (B,), integers from 0 to T, as the layers take them.
    steps
        T.

    Returns
    -------
    mask
        (T, B), bool.

    Raises
    ------
    TypeError, ValueError
        lengths are no such integers, or steps is no integer of at least 1.

    Examples
    --------
    >>> from fastrnn.training import valid_steps
    >>> valid_steps([3, 1], 3).astype(int)
    array([[1, 1],
           [1, 0],
           [1, 0]])
    """
    steps = integer("steps", steps, 1)
    taken = np.asarray(brought_to_host("lengths", lengths))
    if taken.ndim != 1:
        raise ValueError(f"lengths have shape {taken.shape}; expected (B,)")
    if taken.size and taken.dtype.kind not in "iu":
        raise TypeError(f"lengths are {taken.dtype}; expected integers")
    if taken.size and (taken.min() < 0 or taken.max() > steps):
        raise ValueError(f"lengths range from {taken.min()} to {taken.max()}; expected 0..{steps}")
    return np.arange(steps)[:, None] < taken


def _checked_floats(name: str, values: Any) -> Any:
    if not isinstance(values, np.ndarray) or str(values.dtype) not in _HOST_DTYPES:
        came = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"{name} are {came}; expected a NumPy array of {' or '.join(_HOST_DTYPES)}")
    return values


def _taken_there(name: str, backend: Backend, values: Any) -> tuple[Library, Array]:
    """Take logits or outputs that are on a device."""
    library, array = backend.take_x(name, values)
    if str(array.dtype) not in DEVICE_DTYPES:
        raise TypeError(f"{name} are {array.dtype}; expected one of {', '.join(DEVICE_DTYPES)}")
    return library, array


def _checked_logits(logits: Any) -> Any:
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits have shape {logits.shape}; expected (..., V) with V > 0")
    return logits


def _checked_mask(mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    scored = np.ones(shape, bool) if mask is None else np.asarray(brought_to_host("mask", mask))
    if scored.dtype != np.bool_:
        raise TypeError(f"mask is {scored.dtype}; expected bool")
    if scored.shape != shape:
        raise ValueError(f"mask has shape {scored.shape}; expected {shape}")
    return scored


def _checked_targets(
    shape: tuple[int, ...], targets: Any, mask: Any, *, least: int = 1
) -> tuple[NDArray[Any], NDArray[np.bool_], int]:
    """Return targets for logits of this shape, where they are scored, and at how many positions."""
    target = np.asarray(brought_to_host("targets", targets))
    if not np.issubdtype(target.dtype, np.integer):
        raise TypeError(f"targets are {target.dtype}; expected integers")
    if target.shape != shape[:-1]:
        raise ValueError(f"targets have shape {target.shape}; expected {shape[:-1]}")
    scored = _checked_mask(mask, target.shape)
    chosen = target if mask is None else target[scored]
    if chosen.size < least:
        raise ValueError("no position is scored: the mean over none is undefined")
    if chosen.size and (chosen.min() < 0 or chosen.max() >= shape[-1]):
        raise ValueError(f"targets range from {chosen.min()} to {chosen.max()}; expected 0..{shape[-1] - 1}")
    return target, scored, chosen.size
