"""Learning rates over the course of a training."""

from __future__ import annotations

import math

from ._numbers import FINITE, FRACTION, NOT_NEGATIVE, number


def cosine_learning_rate(progress: float, peak: float, *, final: float = 0.0, warmup: float = 0.0) -> float:
    """Learning rate that rises linearly from 0 to peak, then falls to final along half a cosine.

    One cycle of Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR
    2017, equation 5, as a function of the fraction of the training that is done, so that it serves
    a limit in minutes as well as one in steps.

    Parameters
    ----------
    progress
        Done part of the training; held to 0..1.
    peak, final
        The learning rate after the warm-up and at the end.
    warmup
        The part of the training, 0 <= warmup < 1, in which the rate rises.

    Raises
    ------
    TypeError, ValueError
        An argument is no number, not finite, or a rate is negative.

    Examples
    --------
    >>> from fastrnn.training import cosine_learning_rate
    >>> [round(cosine_learning_rate(p, 1.0, warmup=0.2), 6) for p in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    progress = min(max(number("progress", progress, FINITE), 0.0), 1.0)
    peak = number("peak", peak, NOT_NEGATIVE)
    final = number("final", final, NOT_NEGATIVE)
    warmup = number("warmup", warmup, FRACTION)
    if progress < warmup:
        return peak * progress / warmup
    angle = math.pi * (progress - warmup) / (1 - warmup)
    return final + (peak - final) * (1 + math.cos(angle)) / 2
