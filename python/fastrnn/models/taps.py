"""Models that look back over several steps: at their own states, or at their inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._backends import Array
from ..layouts import LARGEST_SIZE, Nonlinearity, Spec, integer
from ..reference import nonlinearity, nonlinearity_slope
from ..training import Linear
from ._host import HostModel, Recursion, seeds
from ._model import State


class MultiTap(Recursion):
    """Recurrence over the last K states: ``h_t = f(W x_t + b + U_1 h_{t-1} + ... + U_K h_{t-K})``.

    Lin, Horne, Tino & Giles, "Learning long-term dependencies in NARX recurrent neural networks", IEEE
    Transactions on Neural Networks 7(6), 1996: a gradient reaches K times as far in as many steps.
    Computed in NumPy, step by step, as `explain` says.

    Parameters
    ----------
    input_size, hidden_size
        I and H.
    taps
        K.  The state is (K, B, H), the last h first.
    nonlinearity
        f: "tanh", "relu", "sigmoid" or "identity".
    dtype
        float32 or float64.
    seed
        Makes the initial weights reproducible: ``input`` (W, b) and ``taps`` (H, K*H), U_1 first.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.models import MultiTap
    >>> layer = MultiTap(3, 4, taps=2, seed=0)
    >>> y, state_n = layer(np.ones((5, 6, 3), "float32"))
    >>> y.shape, bool((state_n == y[:-3:-1]).all())
    ((5, 6, 4), True)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        taps: int,
        *,
        nonlinearity: Nonlinearity = "tanh",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        count = integer("taps", taps, 1, LARGEST_SIZE)
        spec = Spec("rnn", input_size, hidden_size, num_layers=count, nonlinearity=nonlinearity, dtype=dtype)
        self.hidden_size = self.output_size = H = spec.hidden_size
        self.nonlinearity = spec.nonlinearity
        first, second = seeds(seed, 2)
        self.input = Linear(spec.input_size, H, dtype=spec.dtype, seed=first)
        self.taps = Linear(count * H, H, False, dtype=spec.dtype, seed=second)
        super().__init__(spec, input=self.input, taps=self.taps)

    def _drive(self, x: Array) -> tuple[Array, Any]:
        return self.input(x), x

    def _drive_backward(self, ddrive: Array, saved: Any) -> Array:
        return self.input.backward_from(saved, ddrive)

    def _step(self, drive: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], Any]:
        (past,) = state
        side_by_side = past.swapaxes(0, 1).reshape(len(drive), self.taps.in_features)
        h = nonlinearity(self._spec.nonlinearity, drive + self.taps(side_by_side))
        return h, (np.concatenate([h[None], past[:-1]]),), (side_by_side, h)

    def _step_backward(
        self, dy: Array, dstate_n: tuple[Array, ...], saved: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        side_by_side, h = saved
        (dpast_n,) = dstate_n
        dsum = (dy + dpast_n[0]) * nonlinearity_slope(self._spec.nonlinearity, h)
        dpast = self.taps.backward_from(side_by_side, dsum).reshape(len(dy), *dpast_n.shape[::2])
        dpast = dpast.swapaxes(0, 1).copy()
        dpast[:-1] += dpast_n[1:]
        return dsum, (dpast,)


class TimeDelay(HostModel):
    """No recurrence: ``Y_t = V f(W_0 x_t + ... + W_K x_{t-K} + b) + c``, the baseline for what memory buys.

    Waibel, Hanazawa, Hinton, Shikano & Lang, "Phoneme recognition using time-delay neural networks", IEEE
    Transactions on Acoustics, Speech and Signal Processing 37(3), 1989, with one hidden layer.  What lies
    more than K steps back does not exist for it.

    Parameters
    ----------
    input_size, hidden_size, output_size
        I, H and O.
    delays
        K, at least 1.  The state is the last K inputs, (K, B, I), the last one first.
    nonlinearity
        f: "tanh", "relu", "sigmoid" or "identity".
    dtype
        float32 or float64.
    seed
        Makes the initial weights reproducible: ``input`` (W (H, (K+1)*I) with W_0 first, b) and ``readout``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.models import TimeDelay
    >>> model = TimeDelay(1, 8, 1, delays=3, seed=0)
    >>> o, last = model(np.ones((10, 2, 1), "float32"))
    >>> o.shape, last.shape
    ((10, 2, 1), (3, 2, 1))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        delays: int,
        *,
        nonlinearity: Nonlinearity = "tanh",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        self.delays = integer("delays", delays, 1, LARGEST_SIZE)
        hidden_size = integer("hidden_size", hidden_size, 1)
        self.output_size = integer("output_size", output_size, 1)
        spec = Spec(
            "rnn", input_size, input_size, num_layers=self.delays, nonlinearity=nonlinearity, dtype=dtype
        )
        first, second = seeds(seed, 2)
        self.input = Linear((self.delays + 1) * spec.input_size, hidden_size, dtype=spec.dtype, seed=first)
        self.readout = Linear(hidden_size, self.output_size, dtype=spec.dtype, seed=second)
        self.nonlinearity = spec.nonlinearity
        super().__init__(spec, input=self.input, readout=self.readout)

    def __call__(self, x: Any, state: State = None, *, lengths: Any = None) -> tuple[Any, State]:
        """Run over x (T, B, I) or tokens (T, B), all steps at once.

        Returns
        -------
        o : array (T, B, O)
            0 past a row's length.
        state_n : array (K, B, I)
            The last inputs of each row.

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong type, dtype, shape or value; nothing has changed then.
        """
        call, x, valid = self._check_call(x, state, lengths, None)
        K, T = self.delays, call.steps
        (past,) = self._state(call)
        inputs = np.concatenate([past[::-1], x])
        windows = np.concatenate([inputs[K - k : K - k + T] for k in range(K + 1)], axis=-1)
        h = nonlinearity(self._spec.nonlinearity, self.input(windows))
        o = self.readout(h)
        if valid is not None:
            o = np.where(valid[:, :, None], o, 0)
        ends = np.arange(K)[::-1, None] + (T if call.lengths is None else call.lengths)
        last = ends, np.arange(call.batch)
        self._saved = (call, valid, h, last) if self.training else None
        return call.give(o), call.give(inputs[last])

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call, once; returns dx (None for tokens) and dstate.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As of a layer; nothing has changed then.
        """
        call, valid, h, last = self._last_call()
        do, (dlast,) = self._check_incoming(call, do, dstate_n)
        self._saved = None
        if valid is not None:
            do = np.where(valid[:, :, None], do, 0)
        dsum = self.readout.backward(do) * nonlinearity_slope(self._spec.nonlinearity, h)
        dwindows = self.input.backward(dsum)
        K, T = self.delays, call.steps
        dinputs = np.zeros((K + T, call.batch, self.input_size), self._spec.dtype)
        dinputs[last] = dlast
        for k, part in enumerate(np.split(dwindows, K + 1, axis=-1)):
            dinputs[K - k : K - k + T] += part
        dx, dpast = dinputs[K:], dinputs[:K][::-1]
        return None if call.tokens else call.give(dx), call.give(np.ascontiguousarray(dpast))
