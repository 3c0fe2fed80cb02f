"""Which gates stand open or shut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import reference
from .._backends import on_host
from ..models._model import State, map_state
from ..training._numbers import PROBABILITY, number
from ._figures import new_figure
from ._measuring import Numbers, check_time_major, spec_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGMOID_GATES = {"lstm": {"i": 3, "f": 4, "o": 6}, "gru": {"r": 2, "z": 3}}
"""Where the steps of `fastrnn.reference` keep each gate among what they save."""

MEANINGS = {"i": "input", "f": "forget", "o": "output", "r": "reset", "z": "update"}


@dataclass(frozen=True)
class GateSaturation:
    """What `gate_saturation` found."""

    left: Mapping[str, Numbers]
    """Gate ("i_l0", "f_l0", ...) to (H,): in which fraction of all steps a unit's gate is below `low`."""
    right: Mapping[str, Numbers]
    """The same, above `high`."""
    low: float
    high: float

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: {left.mean():.0%} below {self.low:g}, {self.right[name].mean():.0%} above {self.high:g}"
            for name, left in self.left.items()
        )

    def draw(self, axes: Any = None) -> Figure:
        """Draw one panel for each gate, a dot for each unit, a colour for each layer; needs matplotlib.

        A unit in the lower right is nearly always open, in the upper left nearly always shut; on the
        diagonal it is binary, near the origin it is never saturated.  `axes` is one for each gate.
        """
        gates = sorted({name.partition("_")[0] for name in self.left}, key="ifroz".index)
        if axes is None:
            figure = new_figure(2.7 * len(gates) + 0.7, 3.3)
            axes = figure.subplots(1, len(gates), sharex=True, sharey=True, squeeze=False)[0]
        else:
            axes = np.ravel(axes)
            if len(axes) != len(gates):
                raise ValueError(f"axes are {len(axes)}; expected {len(gates)}, one for each of {gates}")
            figure = axes[0].get_figure(root=True)
        layers = list(dict.fromkeys(name.partition("_")[2] for name in self.left))
        for gate, panel in zip(gates, axes, strict=True):
            panel.plot([0, 1], [1, 0], color="0.8", linewidth=0.8, zorder=0)
            for i, layer in enumerate(layers):
                name = f"{gate}_{layer}"
                right, left = self.right[name], self.left[name]
                panel.scatter(right, left, s=16, color=f"C{i % 10}", alpha=0.6, label=layer)
            panel.set(
                title=f"{MEANINGS[gate]} gate",
                xlabel=f"fraction above {self.high:g}",
                xlim=(-0.04, 1.04),
                ylim=(-0.04, 1.04),
                xticks=(0, 0.5, 1),
                yticks=(0, 0.5, 1),
                aspect="equal",
            )
        axes[0].set_ylabel(f"fraction below {self.low:g}")
        if len(layers) > 1:
            axes[-1].legend(loc="upper right", frameon=False, fontsize="small")
        return figure


def gate_saturation(
    layer: Any,
    x: Any,
    state: State = None,
    *,
    lengths: Any = None,
    low: float = 0.1,
    high: float = 0.9,
) -> GateSaturation:
    """Count how often each sigmoid gate of each unit is nearly shut or nearly open.

    Of every unit the fraction of steps, over all rows, at which its gate is below `low` (left-saturated) or
    above `high` (right-saturated), as in Karpathy, Johnson & Fei-Fei, "Visualizing and understanding
    recurrent networks", 2015, section 4.2.  A forget gate that is right-saturated remembers; a
    gate that is saturated at all steps passes no gradient on to its own weights.

    Parameters
    ----------
    layer
        An `fastrnn.LSTM` (gates i, f, o) or `fastrnn.GRU` (r, z), time-major; of a model that has one, the
        layer and its own input.
    x
        (T, B, I), or tokens (T, B); `state` and `lengths` as in a call of the layer.
    low, high
        0 <= low < high <= 1.

    Returns
    -------
    GateSaturation

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above, or there is no step to count.

    Notes
    -----
    The gates are those of `fastrnn.reference`, in float64 and in eval mode, from the parameters as they are.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.diagnostics import gate_saturation
    >>> layer = fastrnn.LSTM(2, 3, seed=0)
    >>> layer.parameters["bias_ih_l0"][3:6] = 5  # the forget gates
    >>> print(gate_saturation(layer, np.zeros((10, 1, 2))))
    i_l0: 0% below 0.1, 0% above 0.9
    f_l0: 0% below 0.1, 100% above 0.9
    o_l0: 0% below 0.1, 0% above 0.9
    """
    spec = spec_of(layer)
    if spec is None or spec.cell not in SIGMOID_GATES:
        raise TypeError(f"layer is {layer!r}; expected an LSTM or GRU, which have gates")
    check_time_major(layer)
    low, high = number("low", low, PROBABILITY), number("high", high, PROBABILITY)
    if low >= high:
        raise ValueError(f"low is {low} and high is {high}; expected low < high")
    parameters = {name: on_host(array) for name, array in layer.parameters.items()}
    _, _, cache = reference.forward(spec, parameters, x, map_state(np.asarray, state), lengths=lengths)
    if not cache.active.any():
        raise ValueError(f"x has shape {np.shape(x)}, lengths is {lengths}; expected a step of some row")
    left, right = {}, {}
    for saved, suffix in zip(cache.saved, spec.suffixes(), strict=True):
        for gate, place in SIGMOID_GATES[spec.cell].items():
            values = np.stack([step[place] for step in saved])[cache.active]  # (steps of all rows, H)
            left[gate + suffix] = (values < low).mean(axis=0)
            right[gate + suffix] = (values > high).mean(axis=0)
    return GateSaturation(left, right, low, high)
