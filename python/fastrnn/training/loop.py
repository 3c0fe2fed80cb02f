"""The training loop."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from .._files import AnyPath
from ..layouts import boolean, integer
from ._modes import evaluating
from ._numbers import POSITIVE, POSITIVE_OR_INFINITE, number, returned
from .bptt import (
    Batch,
    LossFunction,
    Pass,
    check_carried,
    check_truncation,
    divide_gradients,
    evaluated,
    gradients,
    parts_of,
    windows,
)
from .checkpoint import Checkpoint, copies, write_arrays
from .clipping import clip_by_global_norm, clip_by_value
from .divergence import where_it_began
from .history import History, Log, check_picture_path, checked_log_path

Data = Iterable[Batch] | Callable[[int], Iterable[Batch]]

ROUNDING = 1e-9
"""By how much less than whole a number may come out of a division: 0.3 / 0.1 is 2.9999999999999996."""


class Batches:
    """Mini-batches of a data set, in an order of its own in every epoch.

    As `data` of `fit` it can be resumed: the order hangs on seed and epoch alone.  Iterating over it gives
    the rows in their own order, for an evaluation.

    Parameters
    ----------
    rows
        How many there are.
    size
        Of a mini-batch; the last one may be smaller.
    take
        Makes a batch, ``(x, targets)`` or ``(x, targets, options)``, of an array of row numbers.
    seed
        Of the order; None keeps the rows in theirs.

    Raises
    ------
    TypeError, ValueError
        A number is not an integer of at least 1, the seed none of at least 0, or take no function.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import Batches
    >>> x, targets = np.zeros((5, 100, 3), "float32"), np.zeros((5, 100), int)
    >>> batches = Batches(100, 32, lambda rows: (x[:, rows], targets[:, rows]), seed=0)
    >>> len(batches), [x.shape[1] for x, targets in batches(epoch=0)]
    (4, [32, 32, 32, 4])
    """

    def __init__(
        self, rows: int, size: int, take: Callable[[NDArray[np.int64]], Batch], *, seed: int | None = None
    ) -> None:
        self.rows, self.size = integer("rows", rows, 1), integer("size", size, 1)
        _check_function("take", take)
        self.take = take
        self.seed = None if seed is None else integer("seed", seed, 0)

    def __repr__(self) -> str:
        return f"Batches(rows={self.rows}, size={self.size}, seed={self.seed})"

    def __len__(self) -> int:
        """Mini-batches of an epoch."""
        return -(-self.rows // self.size)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Go through the mini-batches of an epoch."""
        if self.seed is None:
            return iter(self)
        return self._cut(np.random.default_rng([self.seed, epoch]).permutation(self.rows))

    def __iter__(self) -> Iterator[Batch]:
        return self._cut(np.arange(self.rows))

    def _cut(self, order: NDArray[np.int64]) -> Iterator[Batch]:
        return (self.take(order[i : i + self.size]) for i in range(0, self.rows, self.size))


def mean_loss(
    model: Any, batches: Iterable[Batch], loss: LossFunction, *, carry_state: bool = False
) -> float:
    """Mean loss over batches, in eval mode; each batch counts as many times as it has scored positions.

    Parameters
    ----------
    model
        A layer or model; if it is in training mode it is put back into it.
    batches
        ``(x, targets)`` or ``(x, targets, options)``, as for `fit`.
    loss
        ``loss, do = loss(o, targets, mask=None)``, a mean over positions; do is not read, and may be None.
    carry_state
        Each batch starts from the final state of the one before.

    Raises
    ------
    ValueError
        There is no batch, or the state of a bidirectional model is to be carried.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.training import mean_loss, softmax_cross_entropy
    >>> model = ManyToMany(fastrnn.GRU(4, 8, seed=0), 4, seed=1)
    >>> tokens = np.arange(12).reshape(6, 2) % 4
    >>> round(mean_loss(model, [(tokens, tokens)], softmax_cross_entropy), 1)  # log(4), nearly
    1.4
    """
    if carry_state:
        check_carried("model", model)
    total, count, state = 0.0, 0, None
    with evaluating(model):
        for batch in batches:
            x, targets, options = parts_of(batch)
            value, positions, _, state_n = evaluated(model, x, targets, loss, state, options)
            total += value * positions
            count += positions
            state = state_n if carry_state else None
    if count == 0:
        raise ValueError("batches is empty; expected at least one to take the mean over")
    return total / count


def fit(
    model: Any,
    data: Data,
    *,
    loss: LossFunction,
    optimizer: Any,
    epochs: int | None = None,
    steps: int | None = None,
    limit: Callable[[int], float] | None = None,
    learning_rate: Callable[[int], float] | None = None,
    clip: float | None = None,
    clip_value: float | None = None,
    accumulate: int = 1,
    carry_state: bool = False,
    truncate: tuple[int, int] | None = None,
    prepare: Callable[[Any, Batch, int, np.random.Generator], Batch] | None = None,
    seed: int = 0,
    generator: np.random.Generator | None = None,
    evaluate: Iterable[Batch] | Callable[[Any], float] | None = None,
    evaluate_every: int | float | None = None,
    patience: int | None = None,
    explode: float = 1000.0,
    checkpoint: AnyPath | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    log: AnyPath | None = None,
    plot: AnyPath | None = None,
    progress: bool | Callable[[History], str] = False,
    callbacks: Sequence[Callable[[int, Any], object]] = (),
) -> History:
    """Train a model: forward, loss, backward, clipping and a step of the optimizer, for every batch.

    Resumed from a checkpoint, a training gives the same numbers, bit for bit, as one that was never
    interrupted, if `data` gives the same batches again: dropout, shuffling and scheduled sampling included.

    Parameters
    ----------
    model
        A layer, or a model of `fastrnn.models`, time-major.  It is put into training mode, and stays in it.
    data
        Batches ``(x, targets)`` or ``(x, targets, options)``: what can be iterated over once an epoch, a list
        say, or a function of the epoch (0, 1, ...) that returns that, as `Batches`.  Options are those of
        `full_bptt`.
    loss
        ``loss, do = loss(o, targets, mask=None)``, such as `softmax_cross_entropy`.
    optimizer
        Of the model's parameters, or some of them.
    epochs, steps, limit
        When to end: passes over the data, updates, or when a function of the updates made returns 1, the done
        part of the training; at least one.  It ends with the batch in which that is reached.
    learning_rate
        A function of the updates made, such as ``lambda k: cosine_learning_rate(k / 1000, 1e-3)``; None
        leaves the optimizer's.
    clip, clip_value
        `clip_by_global_norm` to this norm; `clip_by_value`, before it.
    accumulate
        M: one update for the average of the gradients of M batches (fewer at the end of an epoch).
    carry_state
        Each batch starts from the final state of the one before (zero at the start of an epoch).  No gradient
        goes back.  Not for bidirectional models.
    truncate
        (k1, k2) of `truncated_bptt`, with an update each window; full BPTT over a batch's steps if None.
    prepare
        ``prepare(model, batch, k, rng)`` returns the batch to train on instead: `ScheduledSampling`.  rng
        hangs on seed, epoch and batch.
    seed
        Of rng.
    generator
        That `data` draws from, if it does: a checkpoint has its state.  Where all hangs on the epoch, as in
        `Batches`, there is no need of it.
    evaluate
        Validation data, for `mean_loss`, which can be iterated over each time; or a function of the model.
        None: no evaluation.
    evaluate_every
        Updates from one to the next; or the part of the whole training, less than 1; an epoch if None.  The
        first is before any training, none between the batches of an update that is made.  Where `epochs`
        alone ends the training and data has no length, parts are counted in whole epochs.
    patience
        Stop early after so many evaluations without a lower loss.  However the training ends, the parameters
        are then those of the best evaluation; a checkpoint has the last ones too, to go on from.  A training
        resumed with patience, but begun without, compares from there on.
    explode
        Times the first loss, or 1 if that is less, at which a loss has exploded; what a function that
        evaluates returns has only to be finite.
    checkpoint
        A .safetensors file, written at the end, except after divergence, and on the way.
    checkpoint_every
        Updates from one to the next; an epoch if None.
    resume
        Go on from the checkpoint if that file is there; a log is written anew, whole.
    log
        A row for each update: .csv, .jsonl, or .json at the end.  A pipe will do; the last row of its .csv
        or .jsonl then lacks an evaluation that came after it.
    plot
        Picture of the losses, by `History.draw`, at the end.
    progress
        Show a bar; a function of the history says what stands behind it.
    callbacks
        Called as ``callback(step, model)`` after every update, while the gradients are still there.  One that
        returns True ends the training with this batch.

    Returns
    -------
    History

    Raises
    ------
    FloatingPointError
        A loss or gradient is not finite, or the loss exploded.  The message says in which epoch, batch and
        step, the last good loss, and which layer was first.  Parameters are those before the update.
    ImportError
        progress needs tqdm, plot needs matplotlib.
    TypeError, ValueError, OSError
        An argument is not what is said above, or from the model, the loss or a file.

    Notes
    -----
    The first Ctrl-C ends the training after the batch, as if it were done; a second one interrupts at once.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.training import Adam, Batches, fit, softmax_cross_entropy
    >>> x = np.random.default_rng(0).integers(2, size=(8, 64))
    >>> targets = np.cumsum(x, axis=0) % 2  # parity so far
    >>> model = ManyToMany(fastrnn.GRU(2, 16, seed=0), 2, seed=1)
    >>> history = fit(
    ...     model,
    ...     Batches(64, 16, lambda rows: (x[:, rows], targets[:, rows]), seed=0),
    ...     loss=softmax_cross_entropy,
    ...     optimizer=Adam([model], 0.02),
    ...     epochs=60,
    ...     clip=1.0,
    ... )
    >>> history.steps, history.losses[-1] < 0.1 < history.losses[0]
    (240, True)
    """
    return _Training(**locals()).run()


def _check_optimizer(optimizer: Any, model: Any) -> None:
    """Raise unless the optimizer steps by gradients, and by those of the model."""
    if not all(hasattr(optimizer, name) for name in ("modules", "learning_rate", "step", "state_dict")):
        raise TypeError(
            f"optimizer is {optimizer!r}; expected one that steps by gradients, such as Adam([model])"
        )
    if not optimizer.modules:
        raise ValueError("optimizer.modules is empty; expected the model, or parts of it")
    own = {id(parameter) for parameter in model.parameters.values()}
    for i, module in enumerate(optimizer.modules):
        if not own.issuperset(map(id, module.parameters.values())):
            raise ValueError(f"optimizer.modules[{i}] is {module!r}; expected the model, or parts of it")


def _check_function(name: str, value: object, expected: str = "a function") -> None:
    if not callable(value):
        raise TypeError(f"{name} is {value!r}; expected {expected}")


def _truncation(truncate: Any) -> tuple[int, int] | None:
    if truncate is None:
        return None
    try:
        k1, k2 = truncate
    except (TypeError, ValueError) as error:
        raise type(error)(f"truncate is {truncate!r}; expected (k1, k2)") from None
    return check_truncation(k1, k2)


def _interval(every: Any) -> int | float | None:
    """Return what `fit` was given as `evaluate_every`."""
    if every is None or (isinstance(every, float) and 0 < every < 1):
        return every
    try:
        return integer("evaluate_every", every, 1)
    except TypeError as error:
        raise TypeError(f"{error}, or a part of the training, less than 1") from None


@dataclass(kw_only=True)
class _Training:
    """What `fit` was asked for, under the names of its arguments, and how far it is."""

    model: Any
    data: Data
    loss: LossFunction
    optimizer: Any
    epochs: int | None
    steps: int | None
    limit: Callable[[int], float] | None
    learning_rate: Callable[[int], float] | None
    clip: float | None
    clip_value: float | None
    accumulate: int
    carry_state: bool
    truncate: tuple[int, int] | None
    prepare: Callable[[Any, Batch, int, np.random.Generator], Batch] | None
    seed: int
    generator: np.random.Generator | None
    evaluate: Iterable[Batch] | Callable[[Any], float] | None
    evaluate_every: int | float | None
    patience: int | None
    explode: float
    checkpoint: AnyPath | None
    checkpoint_every: int | None
    resume: bool
    log: AnyPath | None
    plot: AnyPath | None
    progress: bool | Callable[[History], str]
    callbacks: Sequence[Callable[[int, Any], object]]

    at: Checkpoint = field(default_factory=Checkpoint)
    saved: int = 0
    """Checkpoints that have been due."""
    ended_by_callback: bool = False
    epoch_batches: Iterator[Batch] | None = None
    next_batch: Batch | None = None
    drawn_from: dict[str, Any] | None = None
    """State of the generator at the start of the epoch, from which its batches can be drawn again."""

    def __post_init__(self) -> None:
        """Check everything before anything is changed; numbers become plain ones."""
        model, data, evaluate = self.model, self.data, self.evaluate
        parts = "parameters", "gradients", "backward", "train"
        if isinstance(model, type) or not all(hasattr(model, name) for name in parts):
            raise TypeError(f"model is {model!r}; expected a layer or a model")
        if getattr(model, "batch_first", False):
            raise ValueError("the model has batch_first=True; expected a time-major one")
        if self.epochs is None and self.steps is None and self.limit is None:
            raise ValueError("epochs, steps and limit are None; expected at least one, to end the training")
        for name in ("checkpoint", "log", "plot"):
            path = getattr(self, name)
            if path is not None and not Path(os.fsdecode(path)).absolute().parent.is_dir():
                raise FileNotFoundError(f"{name} is {os.fsdecode(path)!r}, in a folder that does not exist")
        if self.log is not None:
            checked_log_path(self.log)
        if self.plot is not None:
            require("matplotlib", "plot", "cli")
            check_picture_path(self.plot)
        if self.progress:
            require("tqdm", "progress", "cli")
        if boolean("resume", self.resume) and self.checkpoint is None:
            raise ValueError("resume is True without a checkpoint; expected its path")
        generator = self.generator
        if generator is not None and not (
            isinstance(generator, np.random.Generator)
            and isinstance(generator.bit_generator, np.random.PCG64)
        ):
            raise TypeError(f"generator is {generator!r}; expected one of np.random.default_rng")
        if self.patience is not None and evaluate is None:
            raise ValueError(f"patience is {self.patience} without evaluate; expected validation data")
        _check_optimizer(self.optimizer, model)
        _check_function("loss", self.loss)
        for name in ("limit", "learning_rate", "prepare"):
            if getattr(self, name) is not None:
                _check_function(name, getattr(self, name))
        if not isinstance(self.callbacks, Iterable):
            raise TypeError(f"callbacks is {self.callbacks!r}; expected a list of functions")
        self.callbacks = tuple(self.callbacks)
        for i, callback in enumerate(self.callbacks):
            _check_function(f"callbacks[{i}]", callback)
        if not isinstance(data, Iterable):
            _check_function("data", data, "batches, or a function")
        if evaluate is not None and not isinstance(evaluate, Iterable):
            _check_function("evaluate", evaluate, "batches, or a function")
        if isinstance(evaluate, Iterator):
            raise ValueError(
                "evaluate can be gone through only once; expected a list, say, or a function of the model, "
                "but no generator, which one evaluation uses up"
            )
        if boolean("carry_state", self.carry_state) or self.truncate is not None:
            check_carried("model", model)
        for name in ("epochs", "steps", "accumulate", "patience", "checkpoint_every"):
            if getattr(self, name) is not None:
                setattr(self, name, integer(name, getattr(self, name), 1))
        if self.clip is not None:
            self.clip = number("clip", self.clip, POSITIVE_OR_INFINITE)
        if self.clip_value is not None:
            self.clip_value = number("clip_value", self.clip_value, POSITIVE)
        self.truncate = _truncation(self.truncate)
        self.seed = integer("seed", self.seed, 0)
        self.evaluate_every = _interval(self.evaluate_every)
        self.explode = number("explode", self.explode, POSITIVE_OR_INFINITE)

    @property
    def history(self) -> History:
        return self.at.history

    def settings(self) -> dict[str, Any]:
        """Return what a resumed training must have in common with the one it goes on with."""
        return {
            "optimizer": type(self.optimizer).__name__,
            "accumulate": self.accumulate,
            "carry_state": self.carry_state,
            "truncate": None if self.truncate is None else list(self.truncate),
            "seed": self.seed,
            "generator": None if self.generator is None else type(self.generator.bit_generator).__name__,
        }

    def _begin(self) -> None:
        """Start from nothing, or take everything from the checkpoint."""
        if not self.model.training:
            self.model.train()
        if not self.resume or self.checkpoint is None or not Path(os.fsdecode(self.checkpoint)).exists():
            self.model.zero_grad()
            return
        self.at = Checkpoint.load(self.checkpoint, self.model, self.optimizer, self.settings())
        if self.generator is not None and self.at.generator is not None:
            self.generator.bit_generator.state = self.at.generator
        if not self.at.pending:
            self.model.zero_grad()
        self._resume_evaluations()

    def _resume_evaluations(self) -> None:
        """Fit what the checkpoint says of evaluations to what is asked for now, which may differ."""
        at, evaluations = self.at, self.history.evaluations
        here = bool(evaluations) and evaluations[-1][0] == self.history.steps
        due = self._due(self.evaluate_every, self._part_done(self._limit()))
        # In another unit fewer may be due by now: none would be until their number is that of the checkpoint.
        at.evaluated = due if here else min(at.evaluated, due)
        if self.patience is None:
            at.best = {}
        elif not at.best:
            # The best parameters so far are gone: these are the first to compare with.
            at.waited, at.compared = 0, len(evaluations) - here
            if here:
                at.best = copies(self.model.parameters)
            else:
                at.evaluated = due - 1

    def run(self) -> History:
        """Train to the end."""
        self._begin()
        with ExitStack() as stack:
            interrupted = stack.enter_context(interruptible())
            log = None if self.log is None else stack.enter_context(Log(self.log, self.history))
            bar = stack.enter_context(_Bar(self.progress)) if self.progress else None
            self.saved = self._due(self.checkpoint_every, 0.0)
            while True:
                limit = self._limit()
                part = self._part_done(limit)
                if bar is not None:
                    bar.show(part, self.history)
                self._evaluate_if_due(part)
                if log is not None:
                    log.catch_up()
                ending = "interrupted" if interrupted() else self._ending(limit)
                if ending:
                    break
                self._save_if_due(part)
                started = time.perf_counter()
                self._train_on_next_batch()
                self.history.seconds += time.perf_counter() - started
            if self.checkpoint is not None:
                self._save()
            # After the checkpoint, since a training that goes on evaluates after the update that is begun.
            self._evaluate_if_due(part, begun=True)
        write_arrays(self.model.parameters, self.at.best)
        self.history.ending = ending
        if self.plot is not None:
            self.history.draw().savefig(os.fsdecode(self.plot), dpi=150)
        return self.history

    # -------------------------------------------------------------------------------- how far it is

    def _limit(self) -> float:
        return 0.0 if self.limit is None else returned("limit", self.limit(self.history.steps))

    def _part_done(self, limit: float) -> float:
        """Return the done part of the training, 0 to 1; `limit` is what the function of that name says."""
        parts = [limit]
        if self.steps is not None:
            parts.append(self.history.steps / self.steps)
        if self.epochs is not None:
            batches = len(self.data) if isinstance(self.data, Sized) else 0
            within = min(1.0, self.at.batch / batches) if batches else 0.0
            parts.append((self.at.epoch + within) / self.epochs)
        return min(1.0, max(parts))

    def _ending(self, limit: float) -> str:
        """Say why the training ends now; nothing if it goes on."""
        endings = {
            "early stop": self.patience is not None and self.at.waited >= self.patience,
            "callback": self.ended_by_callback,
            "epochs": self.epochs is not None and self.at.epoch >= self.epochs,
            "steps": self.steps is not None and self.history.steps >= self.steps,
            "limit": limit >= 1,
        }
        return next((name for name, reached in endings.items() if reached), "")

    def _due(self, every: int | float | None, part: float) -> int:
        """Return how many times something has been due that is due at the start, then every so often."""
        if every is None:
            return self.at.epoch + 1
        if isinstance(every, int):
            return self.history.steps // every + 1
        return int(part / every + ROUNDING) + 1

    def _evaluate_if_due(self, part: float, *, begun: bool = False) -> None:
        """Evaluate, but in the middle of an update that is `begun` only if it is not going to be made."""
        due = self._due(self.evaluate_every, part)
        if self.evaluate is None or due <= self.at.evaluated or bool(self.at.pending) != begun:
            return
        if begun and self.history.evaluations[-1:] and self.history.evaluations[-1][0] == self.history.steps:
            return  # of the parameters as they are
        self.at.evaluated = due
        if isinstance(self.evaluate, Iterable):
            value = mean_loss(self.model, self.evaluate, self.loss, carry_state=self.carry_state)
            bad = self._is_bad(value)
        else:
            with evaluating(self.model):
                value = returned("evaluate", self.evaluate(self.model))
            bad = not math.isfinite(value)  # it need not be of the size of the training's losses
        if bad:
            raise FloatingPointError(f"after step {self.history.steps}: the evaluation's loss is {value:.3g}")
        best = all(value < before for _, before in self.history.evaluations[self.at.compared :])
        self.history.evaluations.append((self.history.steps, value))
        self.at.waited = 0 if best else self.at.waited + 1
        if best and self.patience is not None:
            self.at.best = copies(self.model.parameters)

    def _save_if_due(self, part: float) -> None:
        due = self._due(self.checkpoint_every, part)
        if self.checkpoint is not None and due > self.saved:
            self.saved = due
            self._save()

    def _save(self) -> None:
        assert self.checkpoint is not None
        begun = self.epoch_batches is not None
        self.at.generator = self.drawn_from if begun else self._generator_state()
        self.at.save(self.checkpoint, self.model, self.optimizer, self.settings())

    def _generator_state(self) -> dict[str, Any] | None:
        return None if self.generator is None else dict(self.generator.bit_generator.state)

    # ----------------------------------------------------------------------------------- one batch

    def _train_on_next_batch(self) -> None:
        at = self.at
        if self.epoch_batches is None:
            self._begin_epoch()
        batch = self.next_batch
        assert batch is not None
        assert self.epoch_batches is not None
        if self.prepare is not None:
            rng = np.random.default_rng([self.seed, at.epoch, at.batch])
            batch = self.prepare(self.model, batch, self.history.steps, rng)
        x, _, _ = parts_of(batch)
        for (value, positions, state_n), run in self._passes(batch):
            at.state = state_n if self.carry_state else None
            if positions == 0:
                continue
            again = run
            self._check(value, x, again)
            at.pending.append(value)
            at.scored += positions
            if len(at.pending) == self.accumulate:
                self._update(x, again)
        at.batch += 1
        self.next_batch = next(self.epoch_batches, None)
        if self.next_batch is None:
            if at.pending:
                self._update(x, again)
            at.epoch, at.batch, at.state, self.epoch_batches = at.epoch + 1, 0, None, None

    def _begin_epoch(self) -> None:
        at = self.at
        self.drawn_from = self._generator_state()
        batches = self.data(at.epoch) if callable(self.data) else self.data
        self.epoch_batches = islice(iter(batches), at.batch, None)
        self.next_batch = next(self.epoch_batches, None)
        if self.next_batch is None:
            done = f" after the {at.batch} that are done" if at.batch else ""
            raise ValueError(
                f"data has no batch in epoch {at.epoch + 1}{done}; expected a list, or a function of the "
                "epoch, but no generator, which one epoch uses up"
            )

    def _passes(self, batch: Batch) -> Iterator[tuple[Pass, Callable[[], Pass]]]:
        """Make the passes over a batch: one, or one a window."""
        x, targets, options = parts_of(batch)
        if self.truncate is not None:
            yield from windows(self.model, x, targets, self.loss, *self.truncate, self.at.state, options)
            return
        run = partial(gradients, self.model, x, targets, self.loss, self.at.state, options)
        yield run(), run

    def _update(self, x: Any, again: Callable[[], object]) -> None:
        """Change the parameters by the average of the gradients that have been added up."""
        at, history, modules = self.at, self.history, self.optimizer.modules
        divide_gradients(modules, len(at.pending))
        if self.learning_rate is not None:
            self.optimizer.learning_rate = self.learning_rate(history.steps)
        try:
            if self.clip_value is not None:
                clip_by_value(modules, self.clip_value)
            norm = clip_by_global_norm(modules, math.inf if self.clip is None else self.clip)
        except FloatingPointError as error:
            raise FloatingPointError(self._diagnosis(str(error), x, again)) from error
        self.optimizer.step()
        history.losses.append(sum(at.pending) / len(at.pending))
        history.learning_rates.append(self.optimizer.learning_rate)
        history.gradient_norms.append(norm)
        history.epochs.append(at.epoch + 1)
        history.positions.append(at.scored)
        at.pending.clear()
        for callback in self.callbacks:
            if callback(history.steps, self.model) is True:
                self.ended_by_callback = True
        self.model.zero_grad()

    # ---------------------------------------------------------------------------------- divergence

    def _is_bad(self, value: float) -> bool:
        first = abs(self.history.losses[0]) if self.history.losses else abs(value)
        return not abs(value) <= self.explode * max(1.0, first) or math.isinf(value)

    def _check(self, value: float, x: Any, again: Callable[[], object]) -> None:
        if self._is_bad(value):
            raise FloatingPointError(self._diagnosis(f"the loss is {value:.3g}", x, again))

    def _diagnosis(self, what: str, x: Any, again: Callable[[], object]) -> str:
        history = self.history
        before = f", after {history.losses[-1]:.3g} at step {history.steps}" if history.losses else ""
        return f"{self._place()}: {what}{before}; {where_it_began(self.model, x, again)}"

    def _place(self) -> str:
        return f"epoch {self.at.epoch + 1}, batch {self.at.batch + 1}, step {self.history.steps + 1}"


class _Bar:
    """A progress bar in percent, with what is known of the loss behind it."""

    def __init__(self, text: bool | Callable[[History], str]) -> None:
        from tqdm import tqdm

        self._text = text if callable(text) else self._losses
        self._bar = tqdm(
            total=100.0,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=0.2 if sys.stderr.isatty() else 5,
            dynamic_ncols=True,
        )

    @staticmethod
    def _losses(history: History) -> str:
        text = f"step {history.steps:,}, loss {history.recent(10):.4g}"
        return f"{text}, evaluation {history.evaluations[-1][1]:.4g}" if history.evaluations else text

    def show(self, part: float, history: History) -> None:
        """Show the done part, and behind it what the history says once there is one."""
        if history.steps:
            self._bar.set_postfix_str(self._text(history), refresh=False)
        self._bar.update(100 * part - self._bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that a training step is never cut in half.

    A second Ctrl-C interrupts at once, as usual.  In a thread other than the main one there is no Ctrl-C.
    """
    stopped = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: stopped
        return

    def note(signum: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, previous)
