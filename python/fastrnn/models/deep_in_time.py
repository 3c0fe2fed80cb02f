"""Several steps of a layer for each step of the sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import expect_shape, take
from .._backends import CPU, Array, is_integer
from .._calls import TIME_MAJOR, check_lengths, check_reset
from ..info import Report
from ..layouts import LARGEST_SIZE, integer
from ._model import Model, PartStream, State
from ._states import check_backward, check_one_direction, state_shapes


class DeepInTime(Model):
    """A layer that takes k pseudo-steps, with the same weights, for every real step.

    ::

        h_{t,0} = h_{t-1,k}
        h_{t,j} = cell(x_t, h_{t,j-1}),   j = 1 ... k
        y_t     = h_{t,k}

    The transition from h_{t-1} to h_t is k layers deep (Pascanu, Gulcehre, Cho & Bengio, "How to construct
    deep recurrent neural networks", ICLR 2014, with weights that are shared; Graves, "Adaptive computation
    time for recurrent neural networks", 2016, with a fixed number of steps).  It runs as one call of the
    layer over T*k steps, with the layer's kernels.

    Parameters
    ----------
    layer
        A layer or a model of one direction; time-major.
    pseudo_steps
        k.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import DeepInTime
    >>> model = DeepInTime(fastrnn.GRU(3, 4, seed=0), pseudo_steps=3)
    >>> y, h_n = model(np.ones((5, 6, 3), "float32"))
    >>> y.shape, h_n.shape
    ((5, 6, 4), (1, 6, 4))
    """

    def __init__(self, layer: Any, pseudo_steps: int) -> None:
        check_one_direction("layer", layer, "only the last pseudo-step counts")
        self.layer = layer
        self.pseudo_steps = integer("pseudo_steps", pseudo_steps, 1, LARGEST_SIZE)
        self.output_size = layer.output_size
        super().__init__(layer=layer)

    def __repr__(self) -> str:
        return f"DeepInTime({self.layer!r}, pseudo_steps={self.pseudo_steps})"

    @property
    def input_size(self) -> int:
        """I: the layer's."""
        return int(self.layer.input_size)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the arrays of a state of `batch` rows."""
        return state_shapes(self.layer, batch)

    def __call__(
        self, x: Any, state: State = None, *, lengths: Any = None, reset: Any = None
    ) -> tuple[Any, State]:
        """Run over x (T, B, I) or tokens (T, B); state, lengths and reset as of a layer.

        Returns
        -------
        y : array (T, B, R)
        state_n : as the layer's

        Raises
        ------
        TypeError, ValueError
            As of the layer, or x is on a device; nothing has changed then.
        """
        x, k = take("x", x), self.pseudo_steps
        expect_shape("x", x, {"T": None, "B": None} | ({} if is_integer(x) else {"I": self.input_size}))
        T, B = x.shape[:2]
        options: dict[str, Array] = {}
        ends = check_lengths(CPU.own, TIME_MAJOR, T, B, lengths)
        if ends is not None:
            options["lengths"] = ends * k
        if reset is not None:
            options["reset"] = np.zeros((T * k, B), bool)
            options["reset"][::k] = check_reset(CPU.own, TIME_MAJOR, T, B, reset)
        y, state_n = self.layer(np.repeat(x, k, axis=0), state, **options)
        self._saved = y.shape if self.training else None
        return y[k - 1 :: k], state_n

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call; returns ``(dx, dstate)`` as the layer does."""
        (steps, *rest), k = self._last_call(), self.pseudo_steps
        dy = None
        if do is not None:
            do = take("do", do)
            expect_shape("do", do, dict(zip("TBO", (steps // k, *rest), strict=True)))
            dy = np.zeros((steps, *rest), do.dtype)
            dy[k - 1 :: k] = do
        dx, dstate = self.layer.backward(dy, dstate_n)
        self._saved = None
        return None if dx is None else dx.reshape(steps // k, k, *dx.shape[1:]).sum(axis=1), dstate

    def _check_backward(self, do: Any, dstate_n: State) -> None:
        self._last_call()
        check_backward(self.layer, None, dstate_n)

    def stream(self, batch: int = 1) -> PartStream:
        """Return a stream of `batch` rows over the layer's, k fused steps for each; needs eval mode."""

        def step(layer: Any, x: Any) -> Any:
            for _ in range(self.pseudo_steps):
                y = layer.step(x)
            return y

        return PartStream(self.layer.stream(batch), step)

    def explain(self, x: Any) -> Report:
        """Tell what runs the layer over the T*k steps."""
        return Report(
            self.layer.explain(np.repeat(take("x", x), self.pseudo_steps, axis=0))
            | {"pseudo-steps": self.pseudo_steps}
        )
