"""Learning rates over the course of a training."""

from __future__ import annotations

import math

from ._numbers import AT_LEAST_ONE, FINITE, FRACTION, NOT_NEGATIVE, number


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


def inverse_decay(step: float, initial: float) -> float:
    """Learning rate ``initial / k`` at step k = 1, 2, ...

    Its sum is infinite and that of its squares is not, which is what convergence asks for (Robbins & Monro,
    "A Stochastic Approximation Method", 1951).

    Parameters
    ----------
    step
        k, at least 1: the number of the step that is to be made, or of its epoch.
    initial
        The learning rate at k = 1.

    Raises
    ------
    TypeError, ValueError
        An argument is no number, or not in its range.

    Examples
    --------
    >>> from fastrnn.training import inverse_decay
    >>> [inverse_decay(k, 0.5) for k in (1, 2, 5)]
    [0.5, 0.25, 0.1]
    """
    return number("initial", initial, NOT_NEGATIVE) / number("step", step, AT_LEAST_ONE)


def inverse_sqrt_decay(step: float, initial: float) -> float:
    """Learning rate ``initial / sqrt(k + 1)`` at step k = 0, 1, ...

    The decay of online gradient descent (Zinkevich, "Online Convex Programming and Generalized Infinitesimal
    Gradient Ascent", ICML 2003).  `AdaGrad` contains it already: the root of its sum of squares grows as
    sqrt(k + 1).  Do not give it a second one.

    Parameters
    ----------
    step
        k, at least 0: how many steps, or epochs, were made.
    initial
        The learning rate at k = 0.

    Raises
    ------
    TypeError, ValueError
        An argument is no number, or not in its range.

    Examples
    --------
    >>> from fastrnn.training import inverse_sqrt_decay
    >>> [inverse_sqrt_decay(k, 1.0) for k in (0, 3, 24)]
    [1.0, 0.5, 0.2]
    """
    return number("initial", initial, NOT_NEGATIVE) / math.sqrt(number("step", step, NOT_NEGATIVE) + 1)


def linear_warmup(step: float, steps: float, peak: float) -> float:
    """Learning rate that rises to peak in equal parts: ``peak min(1, (k + 1) / steps)`` at step k = 0, 1, ...

    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 2.2.  It is a
    factor for any other schedule too: give that schedule's rate as the peak.

    Parameters
    ----------
    step
        k, at least 0: how many steps were made.
    steps
        How many steps the rise takes, at least 1.
    peak
        The learning rate after it.

    Raises
    ------
    TypeError, ValueError
        An argument is no number, or not in its range.

    Examples
    --------
    >>> from fastrnn.training import linear_warmup
    >>> [linear_warmup(k, 4, 1.0) for k in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    step, steps = number("step", step, NOT_NEGATIVE), number("steps", steps, AT_LEAST_ONE)
    return number("peak", peak, NOT_NEGATIVE) * min(1.0, (step + 1) / steps)
