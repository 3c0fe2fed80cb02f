"""Newton's method, for models small enough to have a Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._backends import Array
from ._numbers import NOT_NEGATIVE, POSITIVE, number
from .modules import Module, check_trainable, module_list

MOST_PARAMETERS = 1000
"""Beyond, the 2 n gradients of a step take longer than the thousand steps of Adam that would do better."""


class Newton:
    """Damped Newton steps: ``(H + damping I) d = -g``, ``p += learning_rate d``.

    Goodfellow, Bengio & Courville, "Deep Learning", 2016, equation 8.28; the damping of Levenberg, 1944, and
    Marquardt, 1963.  H is the Hessian by central differences of the gradient, 2 n of them for n parameters.
    These need nothing of a model but its backward pass, and have all of the curvature; Gauss-Newton would
    need a backward pass for each output, and leave out the curvature of the recurrence itself.  H may be
    indefinite far from a minimum: then a step leads down only if the damping is larger than the size of the
    lowest eigenvalue.

    Parameters
    ----------
    model
        What is trained, on the CPU: a layer or a model, or a list of them; at most 1000 parameters in all,
        better float64 than float32.
    closure
        Computes the loss with the parameters as they are, leaves its gradients (from zero) in the model,
        and returns the loss.  It must be the same function at every call of a step: no dropout, no other
        batch.
    damping
        At least 0; may be assigned between steps.  Large, it makes short steps along the gradient.
    learning_rate
        Greater than 0.

    Raises
    ------
    NotImplementedError
        A parameter is on a CUDA device.
    TypeError, ValueError
        model is none, or has more parameters; closure cannot be called; or a number is not what is said
        above.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import Linear, Newton, mean_squared_error
    >>> model, x = Linear(2, 1, dtype="float64", seed=0), np.random.default_rng(0).standard_normal((9, 2))
    >>> def closure():
    ...     model.zero_grad()
    ...     loss, do = mean_squared_error(model(x), x @ [[1.0], [2.0]] + 3)
    ...     _ = model.backward(do)
    ...     return loss
    >>> Newton(model, closure, damping=0.0).step() > 1
    True
    >>> closure() < 1e-10, model.parameters["weight"].round(6), model.parameters["bias"].round(6)
    (True, array([[1., 2.]]), array([3.]))
    """

    def __init__(
        self,
        model: Module | Sequence[Module],
        closure: Callable[[], float],
        damping: float = 1e-3,
        *,
        learning_rate: float = 1.0,
    ) -> None:
        self.modules = module_list([model] if hasattr(model, "parameters") else model)
        if not callable(closure):
            raise TypeError(f"closure is {closure!r}; expected a function that returns the loss")
        for _, parameter, _ in self._named():
            if not isinstance(parameter, np.ndarray):
                raise NotImplementedError(f"a parameter is on {parameter.device}; expected the CPU")
        size = sum(parameter.size for _, parameter, _ in self._named())
        if size > MOST_PARAMETERS:
            raise ValueError(
                f"model has {size} parameters; expected at most {MOST_PARAMETERS}, of which a step takes two "
                f"gradients each: use Adam"
            )
        self.closure = closure
        self.damping = number("damping", damping, NOT_NEGATIVE)
        self.learning_rate = number("learning_rate", learning_rate, POSITIVE)

    def step(self) -> float:
        """Move all parameters once, in place; the gradients are then those of the start.

        Returns
        -------
        loss
            Before the step.

        Raises
        ------
        FloatingPointError
            A gradient is not finite.
        RuntimeError
            A layer is in eval mode.
        ValueError
            H + damping I is singular, as far as differences can tell: its smallest eigenvalue is at most
            eps^(2/3) of its largest, in size.  So it is with damping 0 where the loss is flat in a direction.

        In all these cases the parameters are as they were.
        """
        damping = number("damping", self.damping, NOT_NEGATIVE)
        rate = number("learning_rate", self.learning_rate, NOT_NEGATIVE)
        check_trainable(self.modules)
        loss = self.closure()
        gradient = self._gradient()
        curvatures, directions = np.linalg.eigh(self.hessian() + damping * np.eye(gradient.size))
        sizes = np.abs(curvatures)
        # What `hessian` leaves out: nothing is known of a smaller eigenvalue, its sign neither.
        unknown = max(np.finfo(p.dtype).eps for _, p, _ in self._named()) ** (2 / 3)
        if sizes.min() <= unknown * sizes.max():
            raise ValueError(
                f"damping is {damping}, with which H + damping I is singular to rounding: the sizes of its "
                f"eigenvalues range from {sizes.min():.2g} to {sizes.max():.2g}; expected more damping"
            )
        step = directions @ (directions.T @ -gradient / curvatures)
        begin = 0
        for _, parameter, kept in self._named():
            parameter += (rate * step[begin : begin + parameter.size]).reshape(parameter.shape)
            kept[...] = gradient[begin : begin + parameter.size].reshape(parameter.shape)
            begin += parameter.size
        return float(loss)

    def hessian(self) -> NDArray[np.float64]:
        """Return the Hessian (n, n) where the parameters are now, in their order; symmetric."""
        rows = []
        for _, parameter, _ in self._named():
            # The step at which the error of the difference and that of rounding are equal.
            unit = float(np.cbrt(np.finfo(parameter.dtype).eps))
            for index in np.ndindex(parameter.shape):
                step = unit * max(1.0, abs(float(parameter[index])))
                above, below = (self._gradient_at(parameter, index, sign * step) for sign in (1, -1))
                rows.append((above - below) / (2 * step))
        matrix = np.array(rows)
        return (matrix + matrix.T) / 2

    def _gradient_at(self, parameter: Array, index: tuple[int, ...], step: float) -> NDArray[np.float64]:
        with _kept(parameter, index):
            parameter[index] += step
            self.closure()
            return self._gradient()

    def _gradient(self) -> NDArray[np.float64]:
        joined = np.concatenate([gradient.ravel() for _, _, gradient in self._named()], dtype=np.float64)
        if not np.isfinite(joined).all():
            raise FloatingPointError("a gradient that the closure left holds NaN or infinity")
        return joined

    def _named(self) -> Iterator[tuple[str, Array, Array]]:
        for module in self.modules:
            gradients = module.gradients
            for name, parameter in module.parameters.items():
                yield name, parameter, gradients[name]


@contextmanager
def _kept(parameter: Array, index: tuple[int, ...]) -> Iterator[None]:
    """Put an element back afterwards, whatever happens."""
    value: Any = parameter[index]
    try:
        yield
    finally:
        parameter[index] = value
