"""How long a model remembers: its response to an impulse, and how far back gradients reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layouts import integer
from ..models._model import State, map_state
from ..training._modes import leaves
from ..training._numbers import FINITE, number
from ._figures import figure_of
from ._measuring import (
    Numbers,
    check_loss,
    check_time_major,
    name_states,
    spec_of,
    step_by_step,
    undisturbed,
    walk,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ImpulseResponse:
    """What `impulse_response` found."""

    response: Numbers
    """(T, O): outputs with the impulse less outputs without."""
    at: int
    """The step of the impulse."""

    @property
    def norms(self) -> Numbers:
        """(T,): Euclidean norm of the response at every step."""
        return np.asarray(np.linalg.norm(self.response, axis=1))

    def draw(self, axes: Any = None) -> Figure:
        """Draw every output and the norm over time; needs matplotlib."""
        figure, axes = figure_of(axes)
        lines = axes.plot(self.response, linewidth=0.9, alpha=0.7)
        if len(lines) > 1:
            lines[0].set_label("each output")
        axes.plot(self.norms, color="black", linewidth=1.6, label="norm")
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.set(xlabel="step t", ylabel="change of output", title=f"Response to an impulse at t = {self.at}")
        axes.legend(frameon=False)
        return figure


def impulse_response(
    model: Any,
    steps: int | None = None,
    *,
    x: Any = None,
    at: int = 0,
    feature: int = 0,
    size: float = 1.0,
    state: State = None,
) -> ImpulseResponse:
    """Measure how the outputs change, step by step, when the input changes at one step.

    ``response_t = o_t(x + impulse) - o_t(x)``, in eval mode.  Of the linear recursion
    ``h_t = W h_(t-1) + U x_t`` it is ``W^(t - at) U e``, which follows the largest eigenvalue of W
    (Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.7); that of a nonlinear layer depends
    on where it is, on x, `state` and `size`.

    Parameters
    ----------
    model
        A layer or a model with o at every step, time-major.  A bidirectional one responds both ways.
    steps
        T, if there is no x: 50 if None.
    x
        (T, 1, I): the input without the impulse; zeros if None.  Not tokens: the impulse of a token is that
        of its feature.
    at, feature, size
        ``size`` is added to ``x[at, 0, feature]``.
    state
        Initial state, of one row.

    Returns
    -------
    ImpulseResponse

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above.

    Notes
    -----
    Both runs are rows of one batch.  What is smaller than the rounding of an output cannot be seen:
    float64 sees further than float32.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.diagnostics import impulse_response, memory_length
    >>> layer = fastrnn.RNN(1, 1, bias=False, nonlinearity="identity", dtype="float64")
    >>> layer.parameters["weight_ih_l0"][...] = 1
    >>> layer.parameters["weight_hh_l0"][...] = -0.5
    >>> impulse_response(layer, 4).response.ravel().tolist()
    [1.0, -0.5, 0.25, -0.125]
    >>> memory_length(impulse_response(layer, 20), fraction=0.01)
    7
    """
    check_time_major(model)
    size = number("size", size, FINITE)
    if x is None:
        width = getattr(model, "input_size", None)
        if width is None:
            raise ValueError("x is None for a model that has no input_size; expected an array (T, 1, I)")
        dtype = np.float64 if str(model.dtype) == "float64" else np.float32
        x = np.zeros((50 if steps is None else integer("steps", steps, 1), 1, width), dtype)
    elif steps is not None:
        raise ValueError(f"steps is {steps} beside an x, which has its own; expected one of the two")
    x = np.asarray(x)
    if x.dtype.kind != "f":
        raise TypeError(f"x is {x.dtype}; expected floats, which an impulse can be added to")
    if x.ndim != 3 or x.shape[1] != 1:
        raise ValueError(f"x has shape {x.shape}; expected (T, 1, I)")
    at = integer("at", at, 0, len(x) - 1)
    feature = integer("feature", feature, 0, x.shape[2] - 1)
    both = np.repeat(x, 2, axis=1)
    both[at, 1, feature] += size
    with undisturbed(model, training=False):
        o, _ = model(both, map_state(lambda array: np.repeat(array, 2, axis=1), state))
        o = np.asarray(o, np.float64)
    if o.ndim != 3 or o.shape[:2] != both.shape[:2]:
        raise ValueError(f"the model's o has shape {o.shape}; expected one at every step, ({len(x)}, 2, O)")
    return ImpulseResponse(o[:, 1] - o[:, 0], at)


@dataclass(frozen=True)
class GradientReach:
    """What `gradient_reach` found."""

    norms: Mapping[str, Numbers]
    """State ("h_l0", "c_l0", ...) to (T,): norm of the gradient in that state as it enters step t."""

    @property
    def total(self) -> Numbers:
        """(T,): norm of the gradient in all states together."""
        return np.asarray(np.linalg.norm(list(self.norms.values()), axis=0))

    def draw(self, axes: Any = None) -> Figure:
        """Draw the norms over time, logarithmically; needs matplotlib."""
        figure, axes = figure_of(axes)
        for name, norms in self.norms.items():
            axes.plot(np.where(norms > 0, norms, np.nan), linewidth=1.1, label=name)
        if len(self.norms) > 1:
            total = np.where(self.total > 0, self.total, np.nan)
            axes.plot(total, color="black", linewidth=1.6, linestyle="--", label="together")
        axes.set(
            yscale="log",
            xlabel="step t",
            ylabel="norm of dL/dh",
            title="Gradient in the state that enters step t",
        )
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        return figure


def gradient_reach(
    model: Any,
    x: Any,
    targets: Any = None,
    *,
    loss: Callable[[Any, Any], tuple[float, Any]] | None = None,
    state: State = None,
) -> GradientReach:
    """Measure how far back the gradient reaches: the norm of dL/dh at every step, exactly.

    h is the state that enters step t, of every layer, for an LSTM with c: all of the past goes through it,
    so where its gradient has vanished nothing can be learned of what came before, and where it grows
    backwards it explodes (Bengio, Simard & Frasconi, "Learning long-term dependencies with gradient descent
    is difficult", IEEE Transactions on Neural Networks 5(2), 1994).  A linear recursion with the loss at its
    end has ``dL/dh = (W^T)^(T - t) dL/dh_T``.

    Parameters
    ----------
    model
        A layer or a model, time-major, that gives the same step by step as in one call: not bidirectional.
    x
        (T, B, I), or tokens (T, B).
    targets, loss
        ``loss(o, targets)`` returns the loss and its gradient in o.  Without a loss it is the sum of the
        last step's outputs.
    state
        Initial state.

    Returns
    -------
    GradientReach

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above, or the model cannot be run step by step.

    Notes
    -----
    States are named by layer and direction, after the layer too in a model that has several; array i of a
    state that a model makes itself is ``state[i][k]``.  The norm is over the batch and the units.  The
    sequence is run as T calls of one step, whose backward calls hand dstate on: 4T forward and T backward
    steps.  Dropout and zoneout draw their masks anew at every step; where there is recurrent dropout, all
    steps have the masks of one, as its own mask is the same for all steps of a call.  Gradients and modes are
    afterwards what they were.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.diagnostics import gradient_reach
    >>> layer = fastrnn.RNN(1, 1, bias=False, nonlinearity="identity", dtype="float64")
    >>> layer.parameters["weight_hh_l0"][...] = -0.5
    >>> gradient_reach(layer, np.zeros((4, 1, 1))).norms
    {'h_l0': array([0.0625, 0.125 , 0.25  , 0.5   ])}
    """
    check_time_major(model)
    check_loss(loss, targets)
    x = np.asarray(x)
    _, every_step = step_by_step(model, x, state)
    specs = (spec_of(module) for _, module in leaves(model))
    one_mask = any(spec.recurrent_dropout > 0 for spec in specs if spec is not None)
    with undisturbed(model, training=True) as choose:

        def masks(t: int) -> None:
            choose(0 if one_mask else t)

        entering, outputs = [state], []
        for o, leaving in walk(model, x, state, masks):
            outputs.append(o)
            entering.append(leaving)
        o = np.concatenate(outputs) if every_step else outputs[-1][0]
        if loss is None:
            do = np.zeros_like(o)
            (do[-1] if every_step else do)[...] = 1
        else:
            _, do = loss(o, targets)
        norms: dict[str, Numbers] = {}
        dstate = None
        for t in reversed(range(len(x))):
            masks(t)
            model(x[t : t + 1], entering[t])
            incoming = do[t : t + 1] if every_step else do if t == len(x) - 1 else None
            _, dstate = model.backward(incoming, dstate)
            for name, gradient in name_states(model, dstate):
                norms.setdefault(name, np.zeros(len(x)))[t] = np.linalg.norm(gradient.astype(np.float64))
    if not norms:
        raise ValueError(f"model is {model!r}, which has no state; expected a recurrent one")
    return GradientReach(norms)


def memory_length(curve: Any, fraction: float = 0.01) -> int | None:
    """Count the steps until a response or a gradient has fallen under a fraction of its largest for good.

    Parameters
    ----------
    curve
        An `ImpulseResponse`, counted from its impulse on; a `GradientReach`, counted from the end
        backwards; or norms (N,) in that order.
    fraction
        Of the largest; greater than 0, at most 1.

    Returns
    -------
    int or None
        None if the curve ends before it falls under, as it does where it does not vanish.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above, or a norm is NaN or negative.

    Examples
    --------
    >>> from fastrnn.diagnostics import memory_length
    >>> memory_length([1, 0.5, 0.25, 0.125, 0.0625], fraction=0.2)
    3
    >>> memory_length([1, 2, 4, 8]) is None
    True
    """
    fraction = number("fraction", fraction, (lambda value: 0 < value <= 1, "a number from 0 to 1, not 0"))
    if isinstance(curve, ImpulseResponse):
        curve = curve.norms[curve.at :]
    elif isinstance(curve, GradientReach):
        curve = curve.total[::-1]
    norms = np.asarray(curve, np.float64)
    if norms.ndim != 1 or norms.size == 0:
        raise ValueError(f"curve has shape {norms.shape}; expected (N,) with N of at least 1")
    if not (norms >= 0).all():
        raise ValueError("curve has NaN or negative numbers; expected norms")
    if not np.isfinite(norms).all():
        return None
    lasting = np.flatnonzero((norms >= fraction * norms.max()) & (norms > 0))
    length = int(lasting[-1]) + 1 if lasting.size else 0
    return length if length < norms.size else None
