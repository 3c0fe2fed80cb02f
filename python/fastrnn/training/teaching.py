"""What a decoder reads while it is trained: the targets, its own outputs, or a mixture that changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._backends import is_integer
from ..layouts import integer
from ._modes import evaluating
from ._numbers import FRACTION, NOT_NEGATIVE, POSITIVE, PROBABILITY, number
from .bptt import Batch, parts_of


def teacher_forced(targets: Any, first: Any) -> NDArray[Any]:
    """Return what a decoder reads that is told the right outputs: ``first, targets[0], ..., targets[T-2]``.

    Williams & Zipser, "A learning algorithm for continually running fully recurrent neural networks", Neural
    Computation, 1989; Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.2.1.

    Parameters
    ----------
    targets
        NumPy's: tokens (T, B) or vectors (T, B, O).
    first
        What stands before them: a token, a number, or an array that `targets[0]` could be.

    Raises
    ------
    ValueError
        targets have no step, or first has a shape that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import teacher_forced
    >>> teacher_forced(np.array([[5, 6], [7, 8], [9, 9]]), 0).tolist()
    [[0, 0], [5, 6], [7, 8]]
    """
    inputs: NDArray[Any] = np.empty_like(targets)
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"targets have shape {inputs.shape}; expected (T, B) or (T, B, O), T at least 1")
    try:
        inputs[0] = first
    except ValueError:
        shape = inputs.shape[1:]
        raise ValueError(f"first has shape {np.shape(first)}; expected {shape}, or a single value") from None
    inputs[1:] = targets[:-1]
    return inputs


def scheduled_inputs(
    source: Any,
    targets: Any,
    first: Any,
    epsilon: float,
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
) -> NDArray[Any]:
    """Return inputs that are, each with probability epsilon, the target before, else the model's own output.

    Scheduled sampling (Bengio, Vinyals, Jaitly & Shazeer, "Scheduled sampling for sequence prediction with
    recurrent neural networks", NeurIPS 2015): epsilon = 1 is teacher forcing, 0 is running free.  The choice
    is made for every step and row.  The inputs are made step by step without gradients; then the model is
    trained on them as on any.  So no gradient flows through an output that was fed back, drawn or not.

    Parameters
    ----------
    source
        A model, which starts from a zero state, or a stream, as of ``model.start(x)``, which is moved.
    targets
        Tokens (T, B), for which tokens are drawn from softmax(o / temperature), or vectors (T, B, O), for
        which o itself is fed back.
    first
        What stands before the targets, as for `teacher_forced`.
    epsilon
        0 <= epsilon <= 1, of `linear_decay`, `exponential_decay` or `inverse_sigmoid_decay`, say.
    rng
        Draws the choices and the tokens.
    temperature
        At least 0; 0 feeds back the likeliest token.

    Returns
    -------
    inputs : array of the shape and dtype of targets

    Raises
    ------
    TypeError, ValueError
        epsilon, temperature or first is not what is said above, or targets have no step.

    Notes
    -----
    The steps are taken in eval mode, so without dropout and with the expectation of zoneout; a model in
    training mode is put back into it.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.training import scheduled_inputs
    >>> model = ManyToMany(fastrnn.GRU(5, 8, seed=0), 5, seed=1)
    >>> targets = np.arange(12).reshape(6, 2) % 5
    >>> inputs = scheduled_inputs(model, targets, 0, 0.5, np.random.default_rng(0))
    >>> inputs.shape, inputs[0].tolist()
    ((6, 2), [0, 0])
    """
    from ..sampling import as_stream  # which imports this package

    epsilon = number("epsilon", epsilon, PROBABILITY)
    temperature = number("temperature", temperature, NOT_NEGATIVE)
    targets = np.asarray(targets)
    inputs = teacher_forced(targets, first)
    if epsilon == 1 or len(targets) == 1:
        return inputs
    if hasattr(source, "step"):
        _feed_back(source, inputs, epsilon, rng, temperature)
    else:
        with evaluating(source):
            _feed_back(as_stream(source, targets.shape[1]), inputs, epsilon, rng, temperature)
    return inputs


def _feed_back(
    stream: Any, inputs: NDArray[Any], epsilon: float, rng: np.random.Generator, temperature: float
) -> None:
    """Replace, in place, the inputs that are the model's own outputs."""
    from ..sampling import draw

    for t in range(len(inputs) - 1):
        o = np.asarray(stream.step(inputs[t]))
        own = rng.random(inputs.shape[1]) >= epsilon
        if is_integer(inputs):
            o = draw(o, rng.random(len(o)), temperature)
        elif o.shape != inputs[t].shape:
            raise ValueError(f"outputs have shape {o.shape}; expected {inputs[t].shape} as of the targets")
        inputs[t + 1, own] = o[own]


def free_running(
    source: Any, first: Any, steps: int, rng: np.random.Generator, *, temperature: float = 1.0
) -> NDArray[Any]:
    """Return inputs that are the model's own outputs: `scheduled_inputs` with epsilon = 0, without targets.

    Parameters
    ----------
    source, rng, temperature
        As for `scheduled_inputs`.
    first
        Tokens (B,), or vectors (B, O).
    steps
        T.

    Returns
    -------
    inputs : array (T, B) or (T, B, O)
    """
    first = np.asarray(first)
    if first.ndim not in (1, 2):
        raise ValueError(f"first has shape {first.shape}; expected tokens (B,) or vectors (B, O)")
    targets = np.broadcast_to(first, (integer("steps", steps, 1), *first.shape))
    return scheduled_inputs(source, targets, first, 0.0, rng, temperature=temperature)


class ScheduledSampling:
    """`scheduled_inputs` for every batch of a training: the option `prepare` of `fit`.

    Parameters
    ----------
    epsilon
        A function of k, the updates made; or a number: 1 is teacher forcing, 0 running free.
    first, temperature
        As for `scheduled_inputs`.

    Notes
    -----
    A model with ``start``, such as `models.EncoderDecoder`, is started from x, and gets the inputs as its
    option `inputs`.  For any other the inputs take the place of x, from a zero state.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.training import Adam, ScheduledSampling, fit, linear_decay, softmax_cross_entropy
    >>> model = ManyToMany(fastrnn.GRU(5, 8, seed=0), 5, seed=1)
    >>> targets = np.arange(60).reshape(15, 4, order="F") % 5
    >>> history = fit(
    ...     model,
    ...     [(targets, targets)],
    ...     loss=softmax_cross_entropy,
    ...     optimizer=Adam([model], 0.02),
    ...     epochs=20,
    ...     prepare=ScheduledSampling(lambda k: linear_decay(k, 0.05), first=0),
    ... )
    >>> history.losses[-1] < history.losses[0]
    True
    """

    def __init__(
        self, epsilon: Callable[[int], float] | float, first: Any, *, temperature: float = 1.0
    ) -> None:
        self.epsilon = epsilon if callable(epsilon) else number("epsilon", epsilon, PROBABILITY)
        self.first = first
        self.temperature = number("temperature", temperature, NOT_NEGATIVE)

    def __call__(self, model: Any, batch: Batch, k: int, rng: np.random.Generator) -> Batch:
        """Return the batch with inputs in place of the targets; k updates have been made."""
        x, targets, options = parts_of(batch)
        epsilon = self.epsilon(k) if callable(self.epsilon) else self.epsilon
        with evaluating(model):
            decoder = hasattr(model, "start")
            started = {"lengths": options["lengths"]} if "lengths" in options else {}
            source = model.start(x, **started) if decoder else model
            inputs = scheduled_inputs(source, targets, self.first, epsilon, rng, temperature=self.temperature)
        return (x, targets, {**options, "inputs": inputs}) if decoder else (inputs, targets, options)


def linear_decay(k: int, slope: float, *, start: float = 1.0, end: float = 0.0) -> float:
    """``epsilon_k = max(end, start - slope k)`` (Bengio et al., 2015, section 2.4).

    Examples
    --------
    >>> from fastrnn.training import linear_decay
    >>> [linear_decay(k, 0.25) for k in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    start, end = number("start", start, PROBABILITY), number("end", end, PROBABILITY)
    return max(end, start - number("slope", slope, NOT_NEGATIVE) * integer("k", k, 0))


def exponential_decay(k: int, base: float) -> float:
    """``epsilon_k = base^k`` with 0 <= base < 1 (Bengio et al., 2015, section 2.4).

    Examples
    --------
    >>> from fastrnn.training import exponential_decay
    >>> [exponential_decay(k, 0.5) for k in (0, 1, 2)]
    [1.0, 0.5, 0.25]
    """
    return float(number("base", base, FRACTION) ** integer("k", k, 0))


def inverse_sigmoid_decay(k: int, kappa: float) -> float:
    """``epsilon_k = kappa / (kappa + exp(k / kappa))``, kappa being greater than 0 (Bengio et al., 2015).

    It is near 1 for k much less than ``kappa log(kappa)`` and falls to 0 beyond.

    Examples
    --------
    >>> from fastrnn.training import inverse_sigmoid_decay
    >>> [round(inverse_sigmoid_decay(k, 100.0), 3) for k in (0, 460, 1000)]
    [0.99, 0.501, 0.005]
    """
    kappa = number("kappa", kappa, POSITIVE)
    # With exp(-k / kappa) nothing overflows, however large k is.
    falling = math.exp(-integer("k", k, 0) / kappa)
    return kappa * falling / (kappa * falling + 1)
