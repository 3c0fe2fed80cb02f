"""Models that NumPy computes: what a call is checked against, and a time loop for those that need one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from .._arrays import INTEGERS, expect_shape, take
from .._backends import CPU, Array
from .._calls import TIME_MAJOR, Call, check_call, check_state, check_tokens
from ..info import Report
from ..layouts import Spec, integer
from ..training import Module
from ._model import Model, State


def token_vectors(name: str, tokens: Any, size: int, dtype: Any, valid: Array | None) -> Array:
    """Check tokens (T, B) and return them as `one_hot`; those that are not valid may be anything."""
    array = CPU.own.take_listed(name, tokens, INTEGERS, "integers")
    array = check_tokens(CPU.own, name, Spec("rnn", size, 1), array, True if valid is None else valid)
    return one_hot(array if valid is None else np.where(valid, array, -1), size, dtype)


def one_hot(tokens: Array, size: int, dtype: Any) -> Array:
    """Return vectors (..., size) with a 1 where the token says, none for a token below 0."""
    vectors = np.zeros((*tokens.shape, size), dtype)
    np.put_along_axis(vectors, np.maximum(tokens, 0)[..., None], (tokens >= 0)[..., None], axis=-1)
    return vectors


class HostModel(Model):
    """A model over sequences whose formulas stand here in NumPy, not in the kernels; CPU only.

    Parameters
    ----------
    spec
        Of the layer that takes the same x and state: calls are checked against it.
    parts
        As of `Model`.
    """

    _by_numpy = True

    def __init__(self, spec: Spec, **parts: Module) -> None:
        self._spec = spec
        super().__init__(**parts)

    @property
    def input_size(self) -> int:
        """I: features of x, or the number of different tokens."""
        return self._spec.input_size

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the arrays of a state of `batch` rows."""
        return self._spec.state_shapes(batch)

    def _check_call(self, x: Any, state: State, lengths: Any, reset: Any) -> tuple[Call, Array, Array | None]:
        """Return the checked call, x (T, B, I) with zeros past the lengths, and what is not past them."""
        call = check_call(CPU, self._spec, (TIME_MAJOR,), take("x", x), state, lengths, reset)
        valid = None
        if call.lengths is not None:
            valid = np.arange(call.steps)[:, None] < call.lengths
        if call.tokens:
            tokens = call.x if valid is None else np.where(valid, call.x, -1)
            return call, one_hot(tokens, self._spec.input_size, self._spec.dtype), valid
        return call, call.x if valid is None else np.where(valid[:, :, None], call.x, 0), valid

    def _state(self, call: Call) -> tuple[Array, ...]:
        """Return the arrays of the initial state of a call."""
        if call.state is not None:
            return tuple(call.state)
        return tuple(np.zeros(shape, self._spec.dtype) for shape in self.state_shapes(call.batch))

    def _check_incoming(self, call: Call, do: Any, dstate_n: State) -> tuple[Array, tuple[Array, ...]]:
        """Return the gradients that come in, zeros where there are none."""
        shape = (call.steps, call.batch, self.output_size)
        if do is None:
            do = np.zeros(shape, self._spec.dtype)
        do = call.library.take_float("do", do, self._spec.dtype)
        expect_shape("do", do, dict(zip("TBO", shape, strict=True)))
        zeros = [np.zeros(shape, self._spec.dtype) for shape in self.state_shapes(call.batch)]
        if dstate_n is None:
            return do, tuple(zeros)
        if isinstance(dstate_n, tuple | list):
            filled = zip(dstate_n, zeros, strict=False)
            dstate_n = (*(zero if part is None else part for part, zero in filled), *dstate_n[len(zeros) :])
        checked = check_state(call.library, "dstate_n", self._spec, TIME_MAJOR, call.batch, dstate_n)
        assert checked is not None
        return do, tuple(checked)

    def _check_backward(self, do: Any, dstate_n: State) -> None:
        call, *_ = self._last_call()
        self._check_incoming(call, do, dstate_n)

    def explain(self, x: Any) -> Report:
        """Say that no kernel runs, and why; computes nothing."""
        return Report(kernel="none: NumPy, one product for all steps")


class Recursion(HostModel):
    """A model that goes through time step by step, in Python.

    A subclass gives four functions: what of a step depends on x alone, for all steps at once (`_drive`), the
    rest of one step (`_step`), and the gradients of both.  `lengths` and `reset` are seen to here.
    """

    @abstractmethod
    def _drive(self, x: Array) -> tuple[Array, Any]:
        """Return what all steps take from x (T, B, I), the first axis T, and what `_drive_backward` needs."""

    @abstractmethod
    def _drive_backward(self, ddrive: Array, saved: Any) -> Array:
        """Add to the gradients and return dx."""

    @abstractmethod
    def _step(self, drive: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], Any]:
        """Return y (B, O) and the next state of one step, and what `_step_backward` needs."""

    @abstractmethod
    def _step_backward(
        self, dy: Array, dstate_n: tuple[Array, ...], saved: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """Add to the gradients and return those in the drive and in the state."""

    def __call__(
        self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None
    ) -> tuple[Any, State]:
        """Run over x (T, B, I) or tokens (T, B); state, lengths and reset as of a layer.

        Returns
        -------
        y : array (T, B, O)
            0 past a row's length.
        state_n : as `state`

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong type, dtype, shape or value; nothing has changed then.
        """
        call, x, valid = self._check_call(x, state, lengths, reset)
        drive, saved_drive = self._drive(x)
        y = np.zeros((call.steps, call.batch, self.output_size), self._spec.dtype)
        training, arrays, steps = self.training, self._state(call), []
        for t in range(call.steps):
            entering = arrays
            if call.reset is not None:
                entering = _where(~call.reset[t], arrays, 0)
            y_t, leaving, saved = self._step(drive[t], entering)
            if valid is not None:
                y_t = np.where(valid[t, :, None], y_t, 0)
                leaving = _where(valid[t], leaving, arrays)
            y[t], arrays = y_t, leaving
            if training:
                steps.append(saved)
        self._saved = (call, valid, saved_drive, steps) if training else None
        # Backward may read the last step's state, which now belongs to the caller.
        return call.give(y), call.give_state(tuple(array.copy() for array in arrays))

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call, once, and add to `gradients`.

        Parameters
        ----------
        do : array of y's shape, optional
        dstate_n : as the final state, optional

        Returns
        -------
        dx : array of x's shape, or None for tokens
        dstate : as `state`

        Raises
        ------
        RuntimeError
            In eval mode, before any call, or a second time.
        TypeError, ValueError
            For an argument of the wrong type, dtype or shape; nothing has changed then.
        """
        call, valid, saved_drive, steps = self._last_call()
        do, dstate = self._check_incoming(call, do, dstate_n)
        self._saved = None
        drives = []
        for t in reversed(range(call.steps)):
            dy_t, dleaving = do[t], dstate
            if valid is not None:
                dy_t, dleaving = np.where(valid[t, :, None], dy_t, 0), _where(valid[t], dstate, 0)
            ddrive, dentering = self._step_backward(dy_t, dleaving, steps[t])
            if call.reset is not None:
                dentering = _where(~call.reset[t], dentering, 0)
            dstate = dentering if valid is None else _where(valid[t], dentering, dstate)
            drives.append(ddrive)
        dx = self._drive_backward(np.stack(drives[::-1]), saved_drive)
        return None if call.tokens else call.give(dx), call.give_state(dstate)

    def explain(self, x: Any) -> Report:
        """Say that no kernel runs, and why; computes nothing."""
        return Report(
            kernel="none: a Python loop over time, NumPy in each step",
            slower="than a layer, whose kernel does all of a step in one pass",
            because=f"there is no kernel for {type(self).__name__}",
        )


def _where(rows: Array, yes: tuple[Array, ...], no: Any) -> tuple[Array, ...]:
    """Choose by row between states (N, B, W), `no` may be 0."""
    others = no if isinstance(no, tuple) else (no,) * len(yes)
    return tuple(np.where(rows[:, None], a, b) for a, b in zip(yes, others, strict=True))


def seeds(seed: int | None, count: int) -> list[int | None]:
    """Return seeds for so many parts: one after another from `seed`, or None for all."""
    if seed is None:
        return [None] * count
    first = integer("seed", seed, 0)
    return [first + i for i in range(count)]
