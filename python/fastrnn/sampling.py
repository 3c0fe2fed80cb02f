"""What a trained model writes: drawn token by token, searched for with a beam, or forecast.

Everything works over streams, as ``model.stream(batch)`` and ``model.start(x)`` give them: objects with
``step(x) -> o`` and a `state`.  Every row of a stream is a sample of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arrays import INTEGERS
from ._backends import brought_to_host, on_host
from .layouts import integer
from .models import map_state
from .training._numbers import NOT_NEGATIVE, PROBABILITY, number
from .training.losses import below_largest, log_softmax

__all__ = ["Forecast", "Hypothesis", "beam_search", "distribution", "forecast", "generate", "generate_steps"]

Tokens = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCK = 64
"""Random numbers that a row draws at a time."""


def distribution(
    logits: Any,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    exclude: Collection[int] = (),
) -> Floats:
    """Probabilities that the next token is drawn with.

    ``p = softmax(logits / temperature)`` over the tokens that are left; temperature 0 puts everything on the
    likeliest.  top_k leaves the k likeliest (Fan, Lewis & Dauphin, "Hierarchical neural story generation",
    ACL 2018); top_p, after it, the fewest of the likeliest whose probabilities sum to top_p at least
    (Holtzman et al., "The curious case of neural text degeneration", ICLR 2020).  Of equals the smaller token
    is likelier.

    Parameters
    ----------
    logits
        (..., V).
    temperature
        At least 0.
    top_k
        At least 1; V or more leaves all.
    top_p
        0 < top_p <= 1.
    exclude
        Tokens that are never drawn.

    Returns
    -------
    p : float64 (..., V)

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above, or every token is excluded.
    FloatingPointError
        A logit is NaN, or the largest of a row is infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.sampling import distribution
    >>> logits = np.log([0.5, 0.25, 0.15, 0.1])
    >>> distribution(logits, top_k=2).round(3)
    array([0.667, 0.333, 0.   , 0.   ])
    >>> distribution(logits, top_p=0.8).round(3)
    array([0.556, 0.278, 0.167, 0.   ])
    >>> distribution(logits, temperature=0)
    array([1., 0., 0., 0.])
    """
    weights = _Draw(temperature, top_k, top_p, exclude).weights(logits)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


class _Draw:
    """How tokens are drawn, checked once for many draws."""

    def __init__(self, temperature: Any, top_k: Any, top_p: Any, exclude: Collection[int]) -> None:
        self._temperature = number("temperature", temperature, NOT_NEGATIVE)
        self._top_k = None if top_k is None else integer("top_k", top_k, 1)
        # All of them have a probability of 1, but summed one after another perhaps sooner.
        self._top_p = None if top_p is None or top_p == 1 else number("top_p", top_p, PROBABILITY)
        if self._top_p == 0:
            raise ValueError("top_p is 0; expected a number greater than 0 and at most 1")
        if self._temperature == 0:
            self._top_k = 1
        self._excluded = _excluded(exclude)

    def weights(self, logits: Any) -> Floats:
        """Return what the probabilities (..., V) are proportional to."""
        shifted = below_largest(_left(logits, self._excluded))
        if self._temperature > 0:
            with np.errstate(over="ignore"):
                shifted /= self._temperature
        weights: Floats = np.exp(shifted)
        if self._top_k is None and self._top_p is None:
            return weights
        # Ranks rather than thresholds: of equals exactly as many stay as are asked for.
        order = np.argsort(-shifted, axis=-1, kind="stable")
        if self._top_k is not None:
            np.put_along_axis(weights, order[..., self._top_k :], 0.0, axis=-1)
        if self._top_p is not None:
            falling = np.take_along_axis(weights, order, axis=-1)
            falling /= falling.sum(axis=-1, keepdims=True)
            before = np.cumsum(falling, axis=-1) - falling
            # What is less than top_p by the rounding of the sum alone is enough.
            least = self._top_p * (1 - falling.shape[-1] * np.finfo(np.float64).eps)
            np.put_along_axis(weights, order, np.where(before < least, falling, 0.0), axis=-1)
        return weights

    def tokens(self, logits: Any, uniform: Floats) -> Tokens:
        """Draw for each row of logits (B, V), where `uniform` (B,), 0 <= u < 1, meets the summed weights."""
        summed = np.cumsum(self.weights(logits), axis=-1)
        # u < 1, so the product is below the whole sum, and a token without weight is never met.
        tokens: Tokens = np.sum(summed <= (uniform * summed[:, -1])[:, None], axis=-1)
        return tokens


def _excluded(exclude: Collection[int]) -> list[int]:
    return _token_set("exclude", exclude)


def _stop_tokens(stop: int | Collection[int]) -> list[int]:
    return _token_set("stop", stop if np.iterable(stop) else [stop])


def _token_set(name: str, tokens: Any) -> list[int]:
    """Return tokens in order, each once."""
    return sorted({integer(f"a token in {name}", token, 0) for token in tokens})


def _check_known(name: str, tokens: list[int], size: int) -> None:
    """Raise ValueError unless all of these ordered tokens are less than V."""
    if tokens and tokens[-1] >= size:
        raise ValueError(f"a token in {name} is {tokens[-1]}; expected less than {size}")


def _left(logits: Any, excluded: list[int]) -> Floats:
    """Return logits, each row with a softmax, of which the excluded ones are -infinity."""
    left: Floats = np.array(logits, np.float64)
    if excluded:
        size = left.shape[-1]
        _check_known("exclude", excluded, size)
        if len(excluded) == size:
            raise ValueError(f"exclude has all {size} tokens; expected one to be left")
        left[..., excluded] = -np.inf
    if not np.isfinite(left.max(axis=-1)).all():
        raise FloatingPointError("the largest logit of a row is NaN or infinite: it has no softmax")
    return left


def draw(logits: Any, uniform: Floats, temperature: float) -> Tokens:
    """Draw a token for each row of logits (B, V), with these uniform numbers (B,)."""
    return _Draw(temperature, None, None, ()).tokens(logits, uniform)


def as_stream(source: Any, batch: int) -> Any:
    """Return a stream itself, and of a model a new one, of so many rows."""
    if isinstance(source, type) or not (hasattr(source, "step") or hasattr(source, "stream")):
        raise TypeError(f"source is {source!r}; expected a model or a stream")
    if not hasattr(source, "step"):
        return source.stream(batch)
    if source.batch != batch:
        raise ValueError(f"the stream has {source.batch} rows; expected {batch}")
    return source


def generate_steps(
    source: Any,
    prompt: Any,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Collection[int] = (),
    exclude: Collection[int] = (),
    seed: int | None = None,
    batch: int | None = None,
) -> Iterator[Tokens]:
    """Yield what `generate` returns as it comes: the next tokens (B,), -1 in rows that have stopped.

    Arguments and errors are those of `generate`.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.sampling import generate_steps
    >>> model = ManyToMany(fastrnn.GRU(5, 8, seed=0), 5, seed=1).eval()
    >>> len(list(generate_steps(model, [1, 2], 4, seed=0)))
    4
    """
    how = _Draw(temperature, top_k, top_p, exclude)
    length = integer("length", length, 0)
    prompt = _prompt(prompt, batch, source)
    stops, key = _stop_tokens(stop), _key(seed)
    return _steps(source, as_stream(source, prompt.shape[1]), prompt, length, how, stops, key)


def _steps(
    source: Any, stream: Any, prompt: Tokens, length: int, how: _Draw, stops: list[int], key: int
) -> Iterator[Tokens]:
    # A generator for each row: its draws do not depend on how many others there are.
    generators = [np.random.default_rng([key, row]) for row in range(prompt.shape[1])]
    live = np.ones(prompt.shape[1], bool)
    rows = np.flatnonzero(live)  # that the stream has
    o = _read_prompt(stream, prompt)
    _check_known("stop", stops, o.shape[-1])
    for t in range(length):
        if t % BLOCK == 0:
            uniform = np.array([generator.random(BLOCK) for generator in generators])
        tokens = how.tokens(o, uniform[rows, t % BLOCK])
        live[rows] &= ~np.isin(tokens, stops)
        if not live.any():
            return
        drawn = np.full(len(live), -1)
        drawn[rows] = np.where(live[rows], tokens, -1)
        yield drawn
        if t + 1 == length:
            return
        if stream is not source and 2 * np.count_nonzero(live) <= len(rows):
            kept = np.flatnonzero(live[rows])
            rows, tokens, state = rows[kept], tokens[kept], _rows_of(stream.state, kept)
            stream = source.stream(len(rows))
            stream.state = state
        o = _read_drawn(stream, tokens, o.shape[-1])


def _read_prompt(stream: Any, prompt: Tokens) -> Any:
    """Return the logits after a prompt (T, B)."""
    try:
        for tokens in prompt:
            o = stream.step(tokens)
    except ValueError as error:
        raise ValueError(f"prompt cannot be read: {error}") from error
    return np.asarray(o)


def _read_drawn(stream: Any, tokens: Tokens, size: int) -> Any:
    """Return the logits after tokens (B,), each the number of one of `size` logits."""
    try:
        return np.asarray(stream.step(tokens))
    except ValueError as error:
        raise ValueError(f"source gives {size} logits, but does not read as many tokens: {error}") from error


def _rows_of(state: Any, rows: NDArray[np.int64]) -> Any:
    """Return the state of some rows, in this order, or of one several times."""
    return map_state(lambda array: np.take(on_host(array), rows, axis=1), state)


def generate(
    source: Any,
    prompt: Any,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Collection[int] = (),
    exclude: Collection[int] = (),
    seed: int | None = None,
    batch: int | None = None,
) -> Any:
    """Read a prompt, then draw tokens, each given all before it (ancestral sampling).

    Parameters
    ----------
    source
        A model in eval mode, or a stream, which goes on from its state: ``model.start(x)``, say.  Its outputs
        are logits (B, V) for tokens (B,).
    prompt
        Tokens, at least one: (T,), or (T, B) with one for each row.
    length
        Tokens to draw at most.  Rows that have stopped leave the stream, half of it at a time; a given stream
        they stay in.
    temperature, top_k, top_p, exclude
        As of `distribution`; temperature 0 is greedy.
    stop
        A token, or several, that end a row.  They are not part of it.
    seed
        Makes the draws reproducible.  Row b's depend on seed and b alone, not on the other rows.
    batch
        B: samples of a prompt (T,).

    Returns
    -------
    tokens : int64 array, or list of arrays
        One array for a prompt (T,) without batch and a stream of one row; else B arrays.  A row that
        stopped is shorter than `length`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above, or does not fit the model.
    RuntimeError
        The model is in training mode.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.sampling import generate
    >>> model = ManyToMany(fastrnn.GRU(5, 8, seed=0), 5, seed=1).eval()
    >>> generate(model, [1, 2], 4, temperature=0).shape
    (4,)
    >>> samples = generate(model, [1, 2], 4, seed=0, batch=3, top_k=4, stop=0)
    >>> len(samples), all(len(sample) <= 4 and 0 not in sample for sample in samples)
    (3, True)
    """
    read = _prompt(prompt, batch, source)
    steps = generate_steps(
        source,
        read,
        length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
        exclude=exclude,
        seed=seed,
    )
    rows = read.shape[1]
    table = np.array([*steps, np.full(rows, -1)]).T
    samples = [row[: np.argmin(row)] for row in table]
    return samples[0] if np.ndim(prompt) == 1 and batch is None and rows == 1 else samples


def _prompt(prompt: Any, batch: int | None, source: Any) -> Tokens:
    """Return a prompt as (T, B)."""
    tokens = np.asarray(brought_to_host("prompt", prompt))
    if tokens.size == 0:
        raise ValueError(f"prompt has shape {tokens.shape}; expected at least one token to start from")
    if tokens.dtype.kind not in INTEGERS:
        raise TypeError(f"prompt is {tokens.dtype}; expected integers")
    if tokens.ndim == 1:
        own = source.batch if hasattr(source, "step") else 1
        rows = own if batch is None else integer("batch", batch, 1)
        tokens = np.repeat(tokens[:, None], rows, axis=1)
    elif tokens.ndim != 2:
        raise ValueError(f"prompt has shape {tokens.shape}; expected (T,) or (T, B)")
    elif batch is not None and batch != tokens.shape[1]:
        raise ValueError(f"batch is {batch}; expected {tokens.shape[1]}, from prompt")
    return tokens.astype(np.int64, copy=False)


def _key(seed: int | None) -> int:
    """Return the seed, or one of its own choice."""
    return int.from_bytes(os.urandom(8)) if seed is None else integer("seed", seed, 0)


# ------------------------------------------------------------------------------------- beam search


@dataclass(frozen=True)
class Hypothesis:
    """One of the sequences that `beam_search` found."""

    tokens: Tokens
    """Without the prompt and the stop token."""
    log_probability: float
    """Of the tokens, and of the stop token if it stopped, given the prompt; in nats."""
    score: float
    """log_probability over the length penalty."""
    stopped: bool
    """Whether it ended with a stop token."""


def beam_search(
    source: Any,
    prompt: Any,
    length: int,
    beams: int,
    *,
    length_penalty: float = 0.0,
    stop: int | Collection[int] = (),
    exclude: Collection[int] = (),
) -> list[Hypothesis]:
    """Search for the likeliest continuations, keeping the best `beams` prefixes at every step.

    A sequence Y of n tokens, the stop token counted, scores ``log P(Y) / ((5 + n) / 6)^alpha`` with alpha the
    length penalty (Wu et al., "Google's neural machine translation system", 2016, section 7).  All prefixes
    advance together as the rows of one stream, whose state is reordered.  With V^(length - 1) beams the
    search is exhaustive; with one and no stop token it is greedy.

    Parameters
    ----------
    source
        A model in eval mode, or a stream of `beams` rows, all in the same state, which is moved.
    prompt
        Tokens (T,), at least one.
    length
        Tokens at most, at least 1.
    beams
        At least 1.
    length_penalty
        alpha, at least 0: 0 compares probabilities, which favours short sequences.
    stop
        A token, or several, that end a sequence.  Without it all have `length`.
    exclude
        Tokens that are never taken.

    Returns
    -------
    hypotheses : list of Hypothesis
        The best `beams` found, or as many as there are, best first.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above, or does not fit the model.
    RuntimeError
        The model is in training mode.
    FloatingPointError
        An output is NaN.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.sampling import beam_search, generate
    >>> model = ManyToMany(fastrnn.GRU(5, 8, seed=0), 5, seed=1).eval()
    >>> found = beam_search(model, [1, 2], 4, beams=3, length_penalty=0.6, stop=0)
    >>> len(found), found[0].score >= found[1].score
    (3, True)
    >>> greedy = generate(model, [1, 2], 4, temperature=0)
    >>> bool((beam_search(model, [1, 2], 4, beams=1)[0].tokens == greedy).all())
    True
    """
    length, beams = integer("length", length, 1), integer("beams", beams, 1)
    alpha = number("length_penalty", length_penalty, NOT_NEGATIVE)
    if np.ndim(prompt) != 1:
        raise ValueError(f"prompt has shape {np.shape(prompt)}; expected (T,)")
    read, stops, excluded = _prompt(prompt, beams, source), _stop_tokens(stop), _excluded(exclude)
    stream = as_stream(source, beams)
    o = _read_prompt(stream, read)
    _check_known("stop", stops, o.shape[-1])

    def score(log_probability: float, count: int) -> float:
        return float(log_probability / ((5 + count) / 6) ** alpha)

    # At first all rows are the same prefix: one counts.
    totals = np.full(beams, -np.inf)
    totals[0] = 0.0
    written = np.empty((beams, 0), np.int64)
    ended: list[Hypothesis] = []
    for count in range(1, length + 1):
        following = totals[:, None] + log_softmax(_left(o, excluded))
        for token in stops:
            for row in np.flatnonzero(following[:, token] > -np.inf):
                total = float(following[row, token])
                ended.append(Hypothesis(written[row], total, score(total, count), True))
        following[:, stops] = -np.inf
        ended = sorted(ended, key=lambda found: -found.score)[:beams]
        best = np.argsort(-following, axis=None, kind="stable")[:beams]
        totals = following.flat[best]
        if totals[0] == -np.inf or (
            # What is added is never positive, and the penalty is largest at the end.
            len(ended) == beams and ended[-1].score >= score(float(totals[0]), length)
        ):
            return ended
        parents, tokens = np.divmod(best, o.shape[-1])
        written = np.column_stack([written[parents], tokens])
        if count < length:
            stream.state = _rows_of(stream.state, parents)
            o = _read_drawn(stream, tokens, o.shape[-1])
    ended += [
        Hypothesis(row, float(total), score(float(total), length), False)
        for row, total in zip(written, totals, strict=True)
        if total > -np.inf
    ]
    return sorted(ended, key=lambda found: -found.score)[:beams]


# ----------------------------------------------------------------------------------------- forecast


@dataclass(frozen=True)
class Forecast:
    """What `forecast` returns; T is the number of steps."""

    path: NDArray[Any]
    """(T, B, O): every output fed back as it is."""
    samples: NDArray[Any]
    """(S, T, B, O): runs with noise added to what is fed back."""
    quantiles: tuple[float, ...]
    intervals: NDArray[Any]
    """(Q, T, B, O): the quantiles of the samples at each step."""


def forecast(
    model: Any,
    history: Any,
    steps: int,
    *,
    samples: int = 0,
    noise: Any = None,
    quantiles: Collection[float] = (0.05, 0.95),
    seed: int | None = None,
) -> Forecast:
    """Go on with a real-valued sequence by feeding outputs back, with intervals from sampled runs.

    The model, trained to predict x_{t+1} from x_0..x_t, reads the history; then ``x_{t+1} = o_t``.  A sampled
    run has ``x_{t+1} = o_t + e_t`` with errors e_t drawn as `noise` says, which then go through the model, so
    that intervals widen as the errors spread (Hyndman & Athanasopoulos, "Forecasting: principles and
    practice", 2021, section 5.5; DeepAR draws its paths so, Salinas et al., 2020).

    Parameters
    ----------
    model
        In eval mode, with O = I.
    history
        (T, B, I), of the model's dtype: what is known.
    steps
        Steps to forecast, at least 1.
    samples
        S: runs; 0 for the path alone.
    noise
        A standard deviation, or one for each of the O outputs, of independent normal errors; or residuals
        (N, O), N > 1, of predictions one step ahead, of which a row is drawn at each step (bootstrap); or a
        function of a generator that returns errors (steps, O).
    quantiles
        Numbers from 0 to 1.
    seed
        Makes the runs reproducible.  The draws of row b in run s depend on seed, s and b alone.

    Returns
    -------
    Forecast

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above, or does not fit the model.
    RuntimeError
        The model is in training mode.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.sampling import forecast
    >>> model = ManyToMany(fastrnn.GRU(1, 8, seed=0), 1, seed=1).eval()
    >>> history = np.sin(np.arange(20, dtype="float32")).reshape(20, 1, 1)
    >>> found = forecast(model, history, 5, samples=100, noise=0.1, seed=0)
    >>> found.path.shape, found.samples.shape, found.intervals.shape
    ((5, 1, 1), (100, 5, 1, 1), (2, 5, 1, 1))
    """
    if isinstance(model, type) or not hasattr(model, "stream"):
        raise TypeError(f"model is {model!r}; expected a model")
    steps, samples = integer("steps", steps, 1), integer("samples", samples, 0)
    levels = tuple(number(f"quantiles[{i}]", q, PROBABILITY) for i, q in enumerate(quantiles))
    history = np.asarray(brought_to_host("history", history))
    if history.ndim != 3 or 0 in history.shape[:2]:
        raise ValueError(f"history has shape {history.shape}; expected (T, B, I) with T and B at least 1")
    if samples and noise is None:
        raise ValueError(f"samples is {samples} without noise; expected noise, or all runs would be the path")
    rows, size = history.shape[1:]
    errors = _errors(noise, steps, size, samples, rows, seed) if samples else None

    stream = model.stream(rows)
    for x in history:
        o = np.array(stream.step(x))
    if o.shape != history.shape[1:]:
        raise ValueError(f"outputs have shape {o.shape}; expected {history.shape[1:]}, to be fed back as x")
    start, first = stream.state, o
    path = _closed_loop(stream, o, np.zeros((steps, 1, 1), o.dtype))
    if errors is None:
        nothing = np.empty((0, *path.shape), o.dtype)
        return Forecast(path, nothing, (), nothing)
    runs = model.stream(samples * rows)
    runs.state = _rows_of(start, np.tile(np.arange(rows), samples))
    drawn = _closed_loop(runs, np.tile(first, (samples, 1)), errors.astype(o.dtype))
    drawn = np.ascontiguousarray(drawn.reshape(steps, samples, rows, size).swapaxes(0, 1))
    return Forecast(path, drawn, levels, np.quantile(drawn, levels, axis=0).astype(o.dtype))


def _closed_loop(stream: Any, o: NDArray[Any], errors: NDArray[Any]) -> NDArray[Any]:
    """Return the outputs, with their errors, each of which is the next input."""
    outputs = []
    for t, error in enumerate(errors):
        outputs.append(o + error)
        if t + 1 < len(errors):
            o = np.array(stream.step(outputs[-1]))
    return np.stack(outputs)


def _errors(noise: Any, steps: int, size: int, samples: int, rows: int, seed: int | None) -> Floats:
    """Draw the errors of all runs, (steps, samples * rows, size)."""
    draw_errors = noise if callable(noise) else _error_source(noise, steps, size)
    key = _key(seed)
    errors = np.empty((steps, samples * rows, size))
    for i in range(samples * rows):
        drawn = np.asarray(draw_errors(np.random.default_rng([key, *divmod(i, rows)])))
        if drawn.shape != (steps, size):
            raise ValueError(f"noise returned an array of shape {drawn.shape}; expected {(steps, size)}")
        errors[:, i] = drawn
    return errors


def _error_source(noise: Any, steps: int, size: int) -> Callable[[np.random.Generator], Floats]:
    values: Floats = np.asarray(noise, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("noise holds NaN or infinity; expected finite numbers")

    def residuals(rng: np.random.Generator) -> Floats:
        return values[rng.integers(len(values), size=steps)]

    def normal(rng: np.random.Generator) -> Floats:
        return values * rng.standard_normal((steps, size))

    if values.ndim == 2 and len(values) > 1 and values.shape[1] == size:
        return residuals
    if values.shape in ((), (size,)) and (values >= 0).all():
        return normal
    raise ValueError(
        f"noise has shape {values.shape}; expected a standard deviation of at least 0, ({size},) of them, "
        f"residuals (N, {size}) with N > 1, or a function"
    )
