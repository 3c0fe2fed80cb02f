"""A layer with the affine readout o = V h + c, on every step, on the last, or from one input."""

from __future__ import annotations

from typing import Any

from ..info import Report
from ..training import Linear
from ._model import Model, PartStream, State


class ManyToMany(Model):
    """Outputs at every step: ``o_t = V h_t + c``.

    Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.2, equations 10.8 to 10.10.

    Parameters
    ----------
    layer
        A layer or a model; time-major.
    output_size
        O: width of o.
    seed
        Makes the initial V and c reproducible.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> model = ManyToMany(fastrnn.GRU(3, 4, seed=0), 2, seed=1)
    >>> o, h_n = model(np.ones((5, 6, 3), "float32"))
    >>> dx, dh = model.backward(np.ones_like(o))
    >>> o.shape, dx.shape, list(model.parameters)[-2:]
    ((5, 6, 2), (5, 6, 3), ['readout.weight', 'readout.bias'])
    """

    def __init__(self, layer: Any, output_size: int, *, seed: int | None = None) -> None:
        self.layer = layer
        self.readout = Linear(
            layer.output_size, output_size, dtype=layer.dtype, seed=seed, device=layer.device
        )
        self.output_size = self.readout.out_features
        super().__init__(layer=self.layer, readout=self.readout)

    def __call__(self, x: Any, state: State = None, **options: Any) -> tuple[Any, State]:
        """Run over x (T, B, I) or tokens (T, B); `options`, lengths and reset, are the layer's.

        Returns
        -------
        o : array (T, B, O)
        state_n : as the layer's
        """
        y, state_n = self.layer(x, state, **options)
        return self.readout(y), state_n

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call; returns ``(dx, dstate)`` as the layer does."""
        dy = None if do is None else self.readout.backward(do)
        dx, dstate = self.layer.backward(dy, dstate_n)
        return dx, dstate

    def stream(self, batch: int = 1) -> PartStream:
        """Return a stream of `batch` rows over the layer's, whose steps are fused; needs eval mode."""
        return PartStream(self.layer.stream(batch), lambda layer, x: self.readout(layer.step(x)))

    def explain(self, x: Any) -> Report:
        """Tell what runs the layer, as its own `explain` does, and what the readout."""
        product = "one product over all steps"
        return Report(self.layer.explain(x) | {"readout": product})
