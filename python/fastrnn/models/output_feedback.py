"""A network whose only memory is its own last output."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import expect_shape
from .._backends import Array, is_integer
from ..info import Report
from ..layouts import Nonlinearity, Spec, integer, one_of
from ..reference import nonlinearity, nonlinearity_slope
from ..training import Linear, softmax
from ._host import HostModel, Recursion, seeds, token_vectors
from ._model import State


class OutputFeedback(Recursion):
    """Recurrence only from the last output to the hidden units.

    ::

        h_t = f(U x_t + W y_{t-1} + b)
        o_t = V h_t + c
        y_t = o_t, or softmax(o_t)

    Jordan, "Serial order: a parallel distributed processing approach", 1986; Goodfellow, Bengio & Courville,
    "Deep Learning", 2016, section 10.2.1 and figure 10.4.  *Teacher forcing*: called with the targets, it
    is fed these in place of its own y_{t-1}.  No step then depends on another, and all are computed as one
    product over all t, without a loop over time; in backward too.  *Closed loop*: called without, it is fed
    its own outputs step by step, and backward goes back through time.

    Parameters
    ----------
    input_size, hidden_size, output_size
        I, H and O.
    nonlinearity
        f: "tanh", "relu", "sigmoid" or "identity".
    output
        y: "linear" or "softmax".
    dtype
        float32 or float64.
    seed
        Makes the initial weights reproducible: ``input`` (U, b), ``feedback`` (W) and ``readout`` (V, c).

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.models import OutputFeedback
    >>> model = OutputFeedback(3, 8, 2, dtype="float64", seed=0)
    >>> x = np.ones((5, 6, 3))
    >>> free, _ = model(x)
    >>> forced, _ = model(x, targets=free)  # the same, as the targets are what it would have fed itself
    >>> bool(abs(forced - free).max() < 1e-12)
    True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        nonlinearity: Nonlinearity = "tanh",
        output: str = "linear",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        one_of("output", output, ("linear", "softmax"))
        self.output = output
        hidden_size = integer("hidden_size", hidden_size, 1)
        self.output_size = integer("output_size", output_size, 1)
        spec = Spec("rnn", input_size, self.output_size, nonlinearity=nonlinearity, dtype=dtype)
        first, second, third = seeds(seed, 3)
        self.input = Linear(spec.input_size, hidden_size, dtype=spec.dtype, seed=first)
        self.feedback = Linear(spec.hidden_size, hidden_size, False, dtype=spec.dtype, seed=second)
        self.readout = Linear(hidden_size, spec.hidden_size, dtype=spec.dtype, seed=third)
        self.nonlinearity = spec.nonlinearity
        self._forced = False  # whether the last call was fed targets
        super().__init__(spec, input=self.input, feedback=self.feedback, readout=self.readout)

    def __call__(
        self, x: Any, state: State = None, *, targets: Any = None, lengths: Any = None, reset: Any = None
    ) -> tuple[Any, State]:
        """Run over x (T, B, I) or tokens (T, B), fed its own outputs, or the targets if there are some.

        Parameters
        ----------
        x, lengths, reset
            As of a layer.
        state : array (1, B, O), optional
            The y that is fed at the first step; zeros if None.
        targets : array (T, B, O) of y, or tokens (T, B), optional
            Teacher forcing.  The last one is fed nowhere: it is the final state.

        Returns
        -------
        o : array (T, B, O)
            0 past a row's length.
        state_n : array (1, B, O)
            What the next step is to be fed.

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong type, dtype, shape or value; nothing has changed then.
        """
        if targets is None:
            results = super().__call__(x, state, lengths=lengths, reset=reset)
            self._forced = False
            return results
        call, x, valid = self._check_call(x, state, lengths, reset)
        fed = call.library.take("targets", targets)
        axes: dict[str, int | None] = {"T": call.steps, "B": call.batch}
        if is_integer(fed):
            expect_shape("targets", fed, axes)
            fed = token_vectors("targets", fed, self.output_size, self._spec.dtype, valid)
        else:
            fed = call.library.check_float("targets", fed, self._spec.dtype, targets)
            expect_shape("targets", fed, axes | {"O": self.output_size})
        (first,) = self._state(call)
        fed = np.concatenate([first, fed])
        if valid is not None:
            fed[1:][~valid] = 0
        last = fed[-1:] if call.lengths is None else fed[call.lengths, np.arange(call.batch)][None]
        fed = fed[:-1]
        if call.reset is not None:
            fed[call.reset] = 0
        h = nonlinearity(self._spec.nonlinearity, self.input(x) + self.feedback(fed))
        o = self.readout(h)
        if valid is not None:
            o = np.where(valid[:, :, None], o, 0)
        self._saved = (call, valid, h) if self.training else None
        self._forced = True
        return call.give(o), call.give(last)

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call, once; returns dx (None for tokens) and dstate.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As of a layer; nothing has changed then.
        """
        saved = self._last_call()
        if not self._forced:
            return super().backward(do, dstate_n)
        call, valid, h = saved
        do, (dlast,) = self._check_incoming(call, do, dstate_n)
        self._saved = None
        if valid is not None:
            do = np.where(valid[:, :, None], do, 0)
        dsum = self.readout.backward(do) * nonlinearity_slope(self._spec.nonlinearity, h)
        dx, dfirst = self.input.backward(dsum), self.feedback.backward(dsum)[:1]
        if call.reset is not None:
            dfirst = np.where(call.reset[0, :, None], 0, dfirst)
        if call.lengths is not None:  # the final state of a row without steps is its initial one
            dfirst = dfirst + np.where(call.lengths[:, None] == 0, dlast, 0)
        return None if call.tokens else call.give(dx), call.give(dfirst)

    def explain(self, x: Any, *, targets: Any = None) -> Report:
        """Say that no kernel runs, and why: for teacher forcing with targets, else for the closed loop."""
        return super().explain(x) if targets is None else HostModel.explain(self, x)

    # The closed loop, step by step; a stream runs it as well.

    def _drive(self, x: Array) -> tuple[Array, Any]:
        return self.input(x), x

    def _drive_backward(self, ddrive: Array, saved: Any) -> Array:
        return self.input.backward_from(saved, ddrive)

    def _step(self, drive: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], Any]:
        ((fed,),) = state
        h = nonlinearity(self._spec.nonlinearity, drive + self.feedback(fed))
        o = self.readout(h)
        y = softmax(o) if self.output == "softmax" else o
        return o, (y[None],), (fed, h, y)

    def _step_backward(
        self, dy: Array, dstate_n: tuple[Array, ...], saved: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        fed, h, y = saved
        ((dfed_n,),) = dstate_n
        if self.output == "softmax":
            dfed_n = y * (dfed_n - (dfed_n * y).sum(axis=-1, keepdims=True))
        dh = self.readout.backward_from(h, dy + dfed_n)
        dsum = dh * nonlinearity_slope(self._spec.nonlinearity, h)
        return dsum, (self.feedback.backward_from(fed, dsum)[None],)
