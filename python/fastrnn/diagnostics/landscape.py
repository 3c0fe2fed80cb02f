"""The loss along lines and over planes through the space of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._backends import on_host
from ..layouts import integer
from ..training._numbers import POSITIVE, number
from ._figures import figure_of
from ._measuring import Numbers, check_model, undisturbed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class LossLine:
    """What `loss_line` found."""

    alphas: Numbers
    """(N,): 0 is a, 1 is b."""
    losses: Numbers
    """(N,)."""

    def draw(self, axes: Any = None) -> Figure:
        """Draw the loss along the line; needs matplotlib."""
        figure, axes = figure_of(axes)
        axes.plot(self.alphas, self.losses, "o-", markersize=3)
        for end, name in ((0, " a"), (1, " b")):
            axes.axvline(end, color="0.6", linewidth=0.8, linestyle="--")
            axes.text(end, 0.97, name, va="top", transform=axes.get_xaxis_transform())
        axes.set(xlabel=r"$\alpha$", ylabel="loss", title=r"Loss at $(1 - \alpha)\,a + \alpha\,b$")
        axes.grid(alpha=0.3)
        return figure


def loss_line(
    model: Any,
    loss_of: Callable[[Any], float],
    a: Parameters,
    b: Parameters,
    alphas: Any = None,
) -> LossLine:
    """Evaluate the loss at ``(1 - alpha) a + alpha b``, on the line through two sets of parameters.

    From the initial to the trained parameters it mostly falls without a barrier; between two trainings it
    mostly does not (Goodfellow, Vinyals & Saxe, "Qualitatively characterizing neural network optimization
    problems", ICLR 2015).

    Parameters
    ----------
    model
        A layer or a model, in the mode in which its loss is wanted.
    loss_of
        ``loss_of(model)`` returns the loss, a number.  Masks of dropout are the same at every point.
    a, b
        Two state_dicts of the model.
    alphas
        (N,); 25 numbers from -0.25 to 1.25 if None.

    Returns
    -------
    LossLine

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above.

    Notes
    -----
    The model's parameters are afterwards what they were, even if loss_of raises; a training call made before
    cannot be gone back through.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.diagnostics import loss_line
    >>> layer = fastrnn.RNN(1, 1, bias=False, nonlinearity="identity", dtype="float64", seed=0)
    >>> zero = {name: np.zeros_like(array) for name, array in layer.parameters.items()}
    >>> one = {name: np.ones_like(array) for name, array in layer.parameters.items()}
    >>> def loss_of(layer):
    ...     return float(layer(np.ones((1, 1, 1)))[0].item())
    >>> loss_line(layer, loss_of, zero, one, [0, 0.5, 1]).losses
    array([0. , 0.5, 1. ])
    """
    check_model(model)
    _check_callable(loss_of)
    a, b = _checked("a", model, a), _checked("b", model, b)
    along = np.linspace(-0.25, 1.25, 25) if alphas is None else np.asarray(alphas, np.float64)
    if along.ndim != 1 or along.size == 0 or not np.isfinite(along).all():
        raise ValueError(f"alphas are {alphas!r}; expected finite numbers, at least one")
    points = ({name: (1 - alpha) * a[name] + alpha * b[name] for name in a} for alpha in along)
    with undisturbed(model) as masks:
        losses = [_loss_at(model, loss_of, point, masks) for point in points]
    return LossLine(along, np.array(losses))


@dataclass(frozen=True)
class LossPlane:
    """What `loss_plane` found."""

    alphas: Numbers
    """(N,): multiples of the first direction; those of the second are the same numbers."""
    losses: Numbers
    """(N, N): ``losses[i, j]`` at ``centre + alphas[i] first + alphas[j] second``."""

    def draw(self, axes: Any = None) -> Figure:
        """Draw contours of the loss over the plane, its centre marked; needs matplotlib."""
        figure, axes = figure_of(axes, 5.6, 4.4)
        losses = np.ma.masked_invalid(self.losses.T)  # rows of a picture go along y
        if losses.count() and losses.max() > losses.min():
            filled = axes.contourf(self.alphas, self.alphas, losses, levels=24, cmap="viridis")
            axes.contour(self.alphas, self.alphas, losses, levels=12, colors="white", linewidths=0.4)
            figure.colorbar(filled, ax=axes, label="loss")
        axes.plot(0, 0, "+", color="white", markersize=11, markeredgewidth=1.6)
        axes.set(xlabel="first direction", ylabel="second direction", title="Loss around a point")
        axes.locator_params(nbins=5)
        return figure


def loss_plane(
    model: Any,
    loss_of: Callable[[Any], float],
    centre: Parameters | None = None,
    directions: Sequence[Parameters] | None = None,
    *,
    span: float = 1.0,
    points: int = 21,
    seed: int = 0,
) -> LossPlane:
    """Evaluate the loss at ``centre + alpha first + beta second``, on a plane in the space of parameters.

    Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS 2018.

    Parameters
    ----------
    model, loss_of
        As for `loss_line`.
    centre
        A state_dict of the model; its parameters as they are if None.
    directions
        Two mappings like `centre`; two of `random_direction` if None.
    span, points
        alpha and beta are `points` numbers from -span to span; an odd number has the centre.
    seed
        Of the random directions.

    Returns
    -------
    LossPlane

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above.

    Notes
    -----
    As for `loss_line`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.diagnostics import loss_plane
    >>> layer = fastrnn.RNN(2, 3, seed=0).eval()
    >>> x = np.ones((4, 1, 2), "float32")
    >>> plane = loss_plane(layer, lambda layer: float(np.square(layer(x)[0]).mean()), points=5)
    >>> plane.losses.shape, bool(plane.losses[2, 2] == np.square(layer(x)[0]).mean())
    ((5, 5), True)
    """
    check_model(model)
    _check_callable(loss_of)
    centre = _checked("centre", model, model.parameters if centre is None else centre)
    if directions is None:
        rng = np.random.default_rng(integer("seed", seed, 0))
        directions = [random_direction(centre, seed=int(rng.integers(2**63))) for _ in range(2)]
    if not isinstance(directions, Sequence) or len(directions) != 2:
        raise ValueError(f"directions are {directions!r}; expected two mappings of names to arrays")
    first, second = (_checked(f"directions[{i}]", model, one) for i, one in enumerate(directions))
    span, points = number("span", span, POSITIVE), integer("points", points, 2)
    alphas = np.linspace(-span, span, points)
    losses = np.empty((points, points))
    with undisturbed(model) as masks:
        for i, alpha in enumerate(alphas):
            for j, beta in enumerate(alphas):
                point = {name: centre[name] + alpha * first[name] + beta * second[name] for name in centre}
                losses[i, j] = _loss_at(model, loss_of, point, masks)
    return LossPlane(alphas, losses)


def random_direction(parameters: Parameters, *, seed: int = 0) -> dict[str, Numbers]:
    """Draw a filter-normalised random direction in the space of parameters.

    Each row of a matrix, the weights into one gate of one unit, is drawn from a normal distribution and
    scaled to the norm of that row in `parameters`, so that a step of 1 means the same in every row whatever
    its scale; biases and other vectors do not move (Li et al., "Visualizing the loss landscape of neural
    nets", NeurIPS 2018, section 4).

    Parameters
    ----------
    parameters
        Name to array, such as a state_dict.
    seed
        Makes the draws reproducible.

    Returns
    -------
    dict of str to ndarray
        Float64.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.diagnostics import random_direction
    >>> drawn = random_direction({"weight": np.array([[3.0, 4.0], [0.0, 0.0]]), "bias": np.ones(2)})
    >>> np.linalg.norm(drawn["weight"], axis=1).round(12).tolist(), drawn["bias"].tolist()
    ([5.0, 0.0], [0.0, 0.0])
    """
    rng = np.random.default_rng(integer("seed", seed, 0))
    direction = {}
    for name, array in parameters.items():
        values = np.asarray(on_host(array), np.float64)
        drawn = rng.standard_normal(values.shape)
        if values.ndim < 2:
            direction[name] = np.zeros(values.shape)
        else:
            sizes = (np.linalg.norm(a, axis=-1, keepdims=True) for a in (values, drawn))
            direction[name] = drawn * np.divide(*sizes)
    return direction


def _check_callable(loss_of: Any) -> None:
    if not callable(loss_of):
        raise TypeError(f"loss_of is {loss_of!r}; expected a function of the model")


def _checked(name: str, model: Any, values: Any) -> dict[str, Numbers]:
    """Return a set of parameters, or changes of them, as float64."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} has type {type(values).__name__}; expected a mapping of names to arrays")
    if set(values) != set(model.parameters):
        raise ValueError(f"{name} has the names {list(values)}; expected {list(model.parameters)}")
    arrays = {key: np.array(on_host(values[key]), np.float64) for key in model.parameters}
    for key, array in arrays.items():
        expected = tuple(model.parameters[key].shape)
        if array.shape != expected:
            raise ValueError(f"{name}[{key!r}] has shape {array.shape}; expected {expected}")
    return arrays


def _loss_at(
    model: Any, loss_of: Callable[[Any], float], point: Parameters, masks: Callable[[int], None]
) -> float:
    model.load_state_dict(point)
    masks(0)
    return float(loss_of(model))
