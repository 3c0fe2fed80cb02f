"""Gradient norms, layer by layer, while a model is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._backends import on_host
from ..layouts import integer
from ._figures import figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class GradientNorms:
    """Record the norm of every layer's gradients while training: call it after each backward.

    Or let `fastrnn.training.fit` do so, ``callbacks=[record]``: after clipping, if there is some.

    The norm of a layer is ``sqrt(sum of g^2)`` over its parameters.  Where that of the lowest layer is far
    below the others', gradients vanish on the way down; where one jumps by orders of magnitude, they explode
    (Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS
    2010, section 4.2; Pascanu, Mikolov & Bengio, ICML 2013, section 2).

    Parameters
    ----------
    every
        Record only steps that are multiples of it.

    Attributes
    ----------
    steps : list of int
        The steps that were recorded.
    norms : dict of str to list of float
        Layer ("l0", "l1_reverse", "layer.l0", "readout", ...) to its norms, one for each of `steps`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.diagnostics import GradientNorms
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.training import SGD
    >>> model = ManyToMany(fastrnn.GRU(2, 4, num_layers=2, seed=0), 1, seed=1)
    >>> record, optimizer = GradientNorms(), SGD([model], learning_rate=0.1)
    >>> for step in range(3):
    ...     o, _ = model(np.ones((5, 1, 2), "float32"))
    ...     model.zero_grad()
    ...     _ = model.backward(o)
    ...     record(step, model)
    ...     optimizer.step()
    >>> list(record.norms), record.steps
    (['layer.l0', 'layer.l1', 'readout'], [0, 1, 2])
    """

    def __init__(self, every: int = 1) -> None:
        self.every = integer("every", every, 1)
        self.steps: list[int] = []
        self.norms: dict[str, list[float]] = {}

    def __call__(self, step: int, model: Any) -> None:
        """Record the gradients of a layer or model as they are after this training step."""
        if not isinstance(getattr(model, "gradients", None), Mapping):
            raise TypeError(f"model is {model!r}; expected a layer or a model, with a dictionary gradients")
        if step % self.every:
            return
        squares: dict[str, float] = {}
        for name, gradient in model.gradients.items():
            layer = _layer_of(name)
            square = float(np.sum(np.square(on_host(gradient), dtype=np.float64)))
            squares[layer] = squares.get(layer, 0.0) + square
        if self.norms and list(squares) != list(self.norms):
            raise ValueError(f"model has the layers {list(squares)}; expected {list(self.norms)} as before")
        self.steps.append(step)
        for layer, square in squares.items():
            self.norms.setdefault(layer, []).append(square**0.5)

    def draw(self, axes: Any = None) -> Figure:
        """Draw the norms over the steps, logarithmically; needs matplotlib."""
        figure, axes = figure_of(axes)
        for layer, norms in self.norms.items():
            axes.plot(self.steps, np.where(np.array(norms) > 0, norms, np.nan), linewidth=1.1, label=layer)
        axes.set(yscale="log", xlabel="training step", ylabel="norm", title="Norm of the gradients by layer")
        axes.grid(alpha=0.3)
        if self.norms:
            axes.legend(frameon=False)
        return figure


def _layer_of(parameter: str) -> str:
    """Return the layer that a parameter belongs to: of "layer.weight_ih_l0" it is "layer.l0"."""
    part, _, name = parameter.rpartition(".")
    suffix = re.search(r"_(l\d+(_reverse)?)$", name)
    own = suffix[1] if suffix else ""
    return ".".join(filter(None, [part, own])) or name
