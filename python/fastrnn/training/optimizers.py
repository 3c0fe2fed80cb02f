"""Steps from gradients to parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .. import _device
from .._backends import Array, backend_of_arrays
from ._numbers import FRACTION, NOT_NEGATIVE, POSITIVE, number
from .modules import Module, module_list


def _zeros_like(parameter: Array) -> Array:
    """Return zeros where the parameter is, of the dtype that it is computed in."""
    if isinstance(parameter, np.ndarray):
        return np.zeros_like(parameter)
    wide = parameter.dtype == "float64"
    return _device.cuda_of_array(parameter).zeros(parameter.shape, "float64" if wide else "float32")


class Optimizer:
    """What the optimizers share: the modules and zero-filled buffers shaped like their parameters."""

    def __init__(self, modules: Sequence[Module], learning_rate: float) -> None:
        self.modules = module_list(modules)
        self.learning_rate = number("learning_rate", learning_rate, POSITIVE)

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        for _, gradient in self._pairs():
            backend_of_arrays([gradient]).clear(gradient)

    def _pairs(self) -> Iterator[tuple[Array, Array]]:
        """Every (parameter, gradient), always in the same order."""
        for module in self.modules:
            for name, parameter in module.parameters.items():
                yield parameter, module.gradients[name]

    def _ready(self, buffers: list[Array]) -> None:
        """Check, before anything is written, that a step can be made."""
        number("learning_rate", self.learning_rate, NOT_NEGATIVE)  # a schedule may start and end at 0
        for (parameter, _), buffer in zip(self._pairs(), buffers, strict=True):
            here, there = (getattr(array, "device", "cpu") for array in (buffer, parameter))
            if here != there:
                raise RuntimeError(
                    f"a parameter is on {there}, but was on {here} when the optimizer was made: make another"
                )
        for i, module in enumerate(self.modules):
            if not all(parameter.flags.writeable for parameter in module.parameters.values()):
                raise RuntimeError(f"modules[{i}], {module!r}, is in eval mode: call train() before step()")

    def _buffers(self) -> list[Array]:
        return [_zeros_like(parameter) for parameter, _ in self._pairs()]


class SGD(Optimizer):
    """Stochastic gradient descent with (heavy-ball) momentum.

    ``v = momentum v + g``, ``p -= learning_rate v`` (Polyak, "Some methods of speeding up the convergence
    of iteration methods", 1964, with the learning rate outside v as in Sutskever et al., ICML 2013).

    Parameters
    ----------
    modules
        What is trained.
    learning_rate
        Greater than 0; may be assigned between steps, 0 too.
    momentum
        0 <= momentum < 1.

    Raises
    ------
    TypeError, ValueError
        modules is no list of layers, each once, or a number is not what is said above.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import SGD, Linear
    >>> readout = Linear(1, 1, bias=False, seed=0)
    >>> readout.parameters["weight"][:] = 1
    >>> readout.gradients["weight"][:] = 2
    >>> optimizer = SGD([readout], learning_rate=0.1, momentum=0.5)
    >>> optimizer.step()  # v = 2
    >>> optimizer.step()  # v = 3
    >>> readout.parameters["weight"].round(6)
    array([[0.5]], dtype=float32)
    """

    def __init__(self, modules: Sequence[Module], learning_rate: float, *, momentum: float = 0.0) -> None:
        super().__init__(modules, learning_rate)
        self.momentum = number("momentum", momentum, FRACTION)
        self._velocity = self._buffers()

    def step(self) -> None:
        """Move every parameter once, in place; RuntimeError if a layer is in eval mode."""
        self._ready(self._velocity)
        for (parameter, gradient), v in zip(self._pairs(), self._velocity, strict=True):
            if isinstance(parameter, np.ndarray):
                v *= self.momentum
                v += gradient
                parameter -= self.learning_rate * v
            else:
                cuda = _device.cuda_of_array(parameter)
                cuda.update("sgd", parameter, gradient, v, self.momentum, self.learning_rate)


class Adam(Optimizer):
    """Adam: steps scaled by running means of the gradient and of its square.

    ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``,
    ``p -= learning_rate m_hat / (sqrt(v_hat) + eps)`` with ``m_hat = m / (1 - b1^t)`` and
    ``v_hat = v / (1 - b2^t)`` at step t (Kingma & Ba, "Adam: A Method for Stochastic Optimization",
    ICLR 2015, algorithm 1).

    Parameters
    ----------
    modules
        What is trained.
    learning_rate
        Greater than 0; may be assigned between steps, 0 too.
    betas
        (b1, b2), each at least 0 and less than 1.
    eps
        Greater than 0.

    Raises
    ------
    TypeError, ValueError
        modules is no list of layers, each once, or a number is not what is said above.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import Adam, Linear
    >>> readout = Linear(1, 1, bias=False, seed=0)
    >>> readout.parameters["weight"][:] = 1
    >>> readout.gradients["weight"][:] = 1000
    >>> Adam([readout], learning_rate=0.1).step()  # the first step is learning_rate * sign(g)
    >>> readout.parameters["weight"].round(6)
    array([[0.9]], dtype=float32)
    """

    def __init__(
        self,
        modules: Sequence[Module],
        learning_rate: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(modules, learning_rate)
        try:
            b1, b2 = betas
        except (TypeError, ValueError) as error:
            raise type(error)(f"betas is {betas!r}; expected two numbers") from None
        self.betas = (number("betas[0]", b1, FRACTION), number("betas[1]", b2, FRACTION))
        self.eps = number("eps", eps, POSITIVE)
        self._steps = 0
        on_devices = {p.device: p for p, _ in self._pairs() if not isinstance(p, np.ndarray)}
        self._states = {name: _device.cuda_of_array(p).adam_state() for name, p in on_devices.items()}
        self._mean = self._buffers()
        self._square = self._buffers()

    def step(self) -> None:
        """Move every parameter once, in place; RuntimeError if a layer is in eval mode."""
        self._ready(self._mean)
        self._steps += 1
        b1, b2 = self.betas
        rate = self.learning_rate / (1 - b1**self._steps)
        root = 1 / math.sqrt(1 - b2**self._steps)
        for state in self._states.values():
            _device.cuda_of_array(state).begin_adam_step(state, b1, b2, self.learning_rate)
        for (parameter, gradient), m, v in zip(self._pairs(), self._mean, self._square, strict=True):
            if not isinstance(parameter, np.ndarray):
                cuda, state = _device.cuda_of_array(parameter), self._states[parameter.device]
                cuda.update("adam", parameter, gradient, m, v, state, b1, b2, self.eps)
                continue
            m *= b1
            m += (1 - b1) * gradient
            v *= b2
            v += (1 - b2) * np.square(gradient)
            step = np.sqrt(v)
            step *= root
            step += self.eps
            np.divide(m, step, out=step)
            step *= rate
            parameter -= step
