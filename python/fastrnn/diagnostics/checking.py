"""Gradients of backward against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layouts import integer
from ..models._model import map_state, state_arrays
from ..training._numbers import POSITIVE, number
from ._figures import figure_of
from ._measuring import check_loss, check_model, undisturbed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GradientCheck:
    """What `gradient_check` found."""

    errors: Mapping[str, float]
    """Worst relative error of each parameter, of x and a decoder's inputs if they are no tokens, and of the
    state if one was given."""
    tolerance: float
    """What rounding explains in the model's dtype."""

    @property
    def worst(self) -> float:
        """The largest of the errors; NaN if one is."""
        return float(np.max([*self.errors.values()]))

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance; NaN is not."""
        return all(error <= self.tolerance for error in self.errors.values())

    def __str__(self) -> str:
        width = max(map(len, self.errors))
        lines = [
            f"{name:{width}}  {error:8.1e}{'' if error <= self.tolerance else '  WRONG'}"
            for name, error in self.errors.items()
        ]
        return "\n".join([*lines, f"{'tolerance':{width}}  {self.tolerance:8.1e}"])

    def draw(self, axes: Any = None) -> Figure:
        """Draw the errors as bars, beside the tolerance; needs matplotlib."""
        figure, axes = figure_of(axes, height=1.2 + 0.28 * len(self.errors))
        names = list(self.errors)
        smallest = self.tolerance * 1e-8  # an error of 0 has no place on a logarithmic axis
        sizes = [max(error, smallest) for error in self.errors.values()]
        colours = ["C0" if error <= self.tolerance else "C3" for error in self.errors.values()]
        axes.barh(names, sizes, left=smallest / 2, color=colours)
        axes.axvline(self.tolerance, color="0.3", linestyle="--")
        label = f"relative error (dashed: tolerance {self.tolerance:.1e})"
        axes.set(xscale="log", xlabel=label, title="Gradients against finite differences")
        axes.invert_yaxis()
        return figure


def gradient_check(
    model: Any,
    x: Any,
    targets: Any = None,
    *,
    loss: Callable[[Any, Any], tuple[float, Any]] | None = None,
    state: Any = None,
    options: Mapping[str, Any] | None = None,
    epsilon: float | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Compare every gradient of ``model.backward`` with central differences of the loss.

    ``dL/dw = (L(w + e) - L(w - e)) / 2e + O(e^2)`` (Goodfellow, Bengio & Courville, "Deep Learning", 2016,
    section 11.5), element by element, in every parameter, in x and a decoder's `inputs` unless they are
    tokens, and in the initial state if one is given.  Masks of dropout and zoneout are the same in all calls.

    Parameters
    ----------
    model
        A layer or a `fastrnn.models.Model` on the CPU, in either mode.  Better float64: see Notes.
    x
        As in a call of the model; so is `state`.
    targets, loss
        ``loss(o, targets)`` returns the loss and its gradient in o, as those of `fastrnn.training` do.
        Without a loss it is the sum of all outputs and final states times fixed random numbers, which
        also goes back through ``dstate_n``.
    options
        Keywords of the model's call: lengths, reset, inputs, ...
    epsilon
        e, in units of max(1, abs(w)), at least twice the dtype's eps; the cube root of that if None.
    samples
        Look only at so many elements of each array, drawn by `seed`; at all if None.
    seed
        Of the samples and the random numbers.

    Returns
    -------
    GradientCheck
        ``passed``, ``worst``, and the errors by name; `print` shows them.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    NotImplementedError
        The model is on a CUDA device.
    TypeError, ValueError
        An argument is not what is said above.

    Notes
    -----
    An error is the largest difference in an array relative to the largest gradient in it.  With eps = u
    the loss is known to about u times its size, which the difference divides by e, and e^2 is what the
    difference itself leaves out: both are u^(2/3) at the best e, u^(1/3).  So gradients smaller than
    u^(1/3) of the loss and the largest gradient together cannot be told from rounding, and count as that
    large; then what rounding explains is a few u^(1/3), and the tolerance is 4 of them: 2e-5 in float64,
    2e-2 in float32, where a small mistake goes unseen.  Elements beyond it are looked at again by
    ``(4 D(e) - D(2e)) / 3`` of the differences D, which leaves out e^4, in case the loss bends so strongly.
    Where relu has its kink no difference is right.

    Parameters, gradients, mode and masks are afterwards what they were, even after an error; a training
    call made before cannot be gone back through.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.diagnostics import gradient_check
    >>> layer = fastrnn.GRU(2, 3, dtype="float64", seed=0)
    >>> check = gradient_check(layer, np.random.default_rng(0).normal(size=(4, 2, 2)))
    >>> list(check.errors)
    ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0', 'x']
    >>> check.passed, check.worst < 1e-7
    (True, True)
    """
    check_model(model)
    if not all(isinstance(array, np.ndarray) for array in model.parameters.values()):
        raise NotImplementedError("gradient_check of a model on a CUDA device; move it to the CPU first")
    check_loss(loss, targets)
    eps = float(np.finfo(next(iter(model.parameters.values())).dtype).eps)
    relative = eps ** (1 / 3) if epsilon is None else number("epsilon", epsilon, POSITIVE)
    if relative < 2 * eps:
        raise ValueError(f"epsilon is {epsilon}; expected at least {2 * eps:.2g}, which rounding leaves")
    samples = None if samples is None else integer("samples", samples, 1)
    seed = integer("seed", seed, 0)
    options = dict(options or {})
    x, state = np.array(x), map_state(np.array, state)  # copies, which are changed element by element
    if "inputs" in options:
        options["inputs"] = np.array(options["inputs"])

    def random_loss(o: Any, state_n: Any) -> tuple[float, Any, Any]:
        """Return the sum of all outputs and final states times random numbers, the same at every call."""
        rng = np.random.default_rng(seed)
        factors = map_state(lambda a: rng.standard_normal(a.shape).astype(a.dtype), (o, state_n))
        products = zip(state_arrays((o, state_n)), state_arrays(factors), strict=True)
        return sum(float(np.sum(a * factor, dtype=np.float64)) for a, factor in products), *factors

    with undisturbed(model, training=True) as masks:

        def run() -> tuple[float, Any, Any]:
            masks(0)
            o, state_n = model(x, state, **options)
            value, do, dstate_n = random_loss(o, state_n) if loss is None else (*loss(o, targets), None)
            if not np.isfinite(value):
                raise FloatingPointError(f"the loss is {value}; expected a finite number")
            return float(value), do, dstate_n

        value, do, dstate_n = run()
        for gradient in model.gradients.values():
            gradient[...] = 0
        dx, dstate = model.backward(do, dstate_n)
        pairs = {name: (array, model.gradients[name].copy()) for name, array in model.parameters.items()}
        if x.dtype.kind == "f" and dx is not None:
            pairs["x"] = x, dx
        if "inputs" in options and getattr(model, "dinputs", None) is not None:
            pairs["inputs"] = options["inputs"], model.dinputs
        given, found = state_arrays(state), state_arrays(dstate)
        for i, pair in enumerate(zip(given, found, strict=True) if given else ()):
            pairs["state" if len(given) == 1 else f"state[{i}]"] = pair

        largest = max(float(np.abs(gradient).max(initial=0)) for _, gradient in pairs.values())
        visible = eps ** (1 / 3) * (abs(value) + largest)
        rng = np.random.default_rng(seed)
        tolerance, errors = 4 * eps ** (1 / 3), {}
        for name, (array, gradient) in pairs.items():
            places = np.arange(array.size)
            if samples is not None and samples < array.size:
                places = rng.choice(array.size, samples, replace=False)
            differences = np.array([_difference(array, i, relative, lambda: run()[0]) for i in places])
            found_there = gradient.reshape(-1)[places].astype(np.float64)
            size = np.abs([*differences, *found_there, visible]).max()
            for k in np.flatnonzero(np.abs(differences - found_there) > tolerance * size):
                wider = _difference(array, places[k], 2 * relative, lambda: run()[0])
                differences[k] = (4 * differences[k] - wider) / 3
            worst = np.abs(differences - found_there).max(initial=0.0)
            errors[name] = float(worst / size) if worst else 0.0
    return GradientCheck(errors, tolerance)


def _difference(array: Any, place: int, relative: float, value: Callable[[], float]) -> float:
    """Return the central difference of the loss in one element, over the steps as they were rounded."""
    before = array.flat[place]
    step = relative * max(1.0, abs(float(before)))
    ends = []
    try:
        for signed in (step, -step):
            array.flat[place] = before + signed
            ends.append((value(), float(array.flat[place])))
    finally:
        array.flat[place] = before
    (above, up), (below, down) = ends
    return (above - below) / (up - down)
