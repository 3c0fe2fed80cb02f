"""Steps from gradients to parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import _device
from .._backends import CPU, Array, backend_of_arrays, on_host
from .._calls import check_parameters
from ..layouts import boolean
from ._numbers import FRACTION, NOT_NEGATIVE, POSITIVE, number
from .modules import Module, check_trainable, module_list


def _zeros_like(parameter: Array) -> Array:
    """Return zeros where the parameter is, of the dtype that it is computed in."""
    if isinstance(parameter, np.ndarray):
        return np.zeros_like(parameter)
    wide = parameter.dtype == "float64"
    return _device.cuda_of_array(parameter).zeros(parameter.shape, "float64" if wide else "float32")


class Optimizer(ABC):
    """What the optimizers share: the modules, the step, and what is kept from one step to the next."""

    _rule: ClassVar[str]
    """The kernel: csrc/cells/optimizers.h has the equations."""
    _buffers: ClassVar[tuple[str, ...]]
    """Names of what is kept for each parameter, zero at first, in the order that the kernel takes."""

    def __init__(self, modules: Sequence[Module], learning_rate: float, weight_decay: float = 0.0) -> None:
        self.modules = module_list(modules)
        self.learning_rate = number("learning_rate", learning_rate, POSITIVE)
        self.weight_decay = number("weight_decay", weight_decay, NOT_NEGATIVE)
        self._kept = {name: [_zeros_like(p) for _, p, _ in self._named()] for name in self._buffers}
        backends = {backend_of_arrays([p]) for _, p, _ in self._named()} or {CPU}
        self._counters = {backend: backend.step_counter() for backend in backends}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.modules!r}, learning_rate={self.learning_rate:g})"

    @property
    def steps(self) -> int:
        """How many steps were made; on a device, those of a graph's replays too."""
        return int(on_host(next(iter(self._counters.values())))[0])

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        for _, _, gradient in self._named():
            backend_of_arrays([gradient]).clear(gradient)

    def step(self) -> None:
        """Move every parameter once, in place.

        Raises
        ------
        RuntimeError
            A layer is in eval mode, or on another device than when the optimizer was made.
        TypeError, ValueError
            learning_rate was assigned something else than a finite number of at least 0; or a parameter is
            not float32 or float64, its gradient of another dtype or shape, or one is not contiguous.
            Nothing is changed then.
        """
        self._ready()
        named = list(self._named())
        numbers = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay, **self._numbers()}
        for backend, counter in self._counters.items():
            here = [i for i, (_, p, _) in enumerate(named) if backend_of_arrays([p]) is backend]
            parameters, gradients = ([named[i][what] for i in here] for what in (1, 2))
            buffers = [[kept[i] for i in here] for kept in self._kept.values()]
            backend.update(self._rule, parameters, gradients, buffers, numbers, counter)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of all that steps change beside the parameters, as NumPy arrays.

        With `load_state_dict`, and the parameters, training goes on as if it had never stopped, bit for bit.
        ``steps`` and ``learning_rate`` have no axes; the others are named buffer.module.parameter, as in
        ``mean.0.weight_hh_l0``.  Momentum, weight decay and so on belong to the constructor.

        Examples
        --------
        >>> from fastrnn.training import Adam, Linear
        >>> list(Adam([Linear(1, 1, bias=False)]).state_dict())
        ['steps', 'learning_rate', 'mean.0.weight', 'square.0.weight']
        """
        state = {"steps": np.array(float(self.steps)), "learning_rate": np.array(float(self.learning_rate))}
        return state | {name: np.array(on_host(array)) for name, array in self._named_buffers()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the optimizer was whose `state_dict` this is; its modules had the same parameters.

        Raises
        ------
        TypeError, ValueError
            Something is missing, unexpected, or of another shape or kind; nothing has changed then.
        """
        shapes = {"steps": (), "learning_rate": ()}
        shapes |= {name: array.shape for name, array in self._named_buffers()}
        arrays = check_parameters(CPU.own, "state_dict", shapes, state_dict, "float64", cast=True)
        steps, rate, *buffers = arrays
        number("state_dict['steps']", float(steps), NOT_NEGATIVE)
        self.learning_rate = number("state_dict['learning_rate']", float(rate), NOT_NEGATIVE)
        for counter in self._counters.values():
            counter[0] = float(steps)
        for (_, buffer), array in zip(self._named_buffers(), buffers, strict=True):
            buffer[...] = array.astype(str(buffer.dtype))

    def _named(self) -> Iterator[tuple[str, Array, Array]]:
        """Every parameter, as (module.name, itself, gradient), always in the same order."""
        for i, module in enumerate(self.modules):
            gradients = module.gradients
            for name, parameter in module.parameters.items():
                yield f"{i}.{name}", parameter, gradients[name]

    def _named_buffers(self) -> Iterator[tuple[str, Array]]:
        for buffer, arrays in self._kept.items():
            for (name, _, _), array in zip(self._named(), arrays, strict=True):
                yield f"{buffer}.{name}", array

    @abstractmethod
    def _numbers(self) -> dict[str, float]:
        """Return what the kernel wants beside arrays, learning rate and weight decay."""

    def _ready(self) -> None:
        """Check, before anything is written, that a step can be made."""
        number("learning_rate", self.learning_rate, NOT_NEGATIVE)  # a schedule may start and end at 0
        for (_, parameter, _), buffer in zip(self._named(), next(iter(self._kept.values())), strict=True):
            here, there = (getattr(array, "device", "cpu") for array in (buffer, parameter))
            if here != there:
                raise RuntimeError(
                    f"a parameter is on {there}, but was on {here} when the optimizer was made: make another"
                )
        check_trainable(self.modules)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Polyak's or Nesterov's.

    ``v = momentum v + g``, ``p -= learning_rate v`` (Polyak, "Some methods of speeding up the convergence
    of iteration methods", 1964, with the learning rate outside v); with nesterov
    ``p -= learning_rate (g + momentum v)`` (Sutskever, Martens, Dahl & Hinton, "On the importance of
    initialization and momentum in deep learning", ICML 2013, as torch.optim.SGD has it).

    Parameters
    ----------
    modules
        What is trained.
    learning_rate
        Greater than 0; may be assigned between steps, 0 too.
    momentum
        0 <= momentum < 1.
    nesterov
        Look ahead by the momentum; needs one greater than 0.
    weight_decay
        At least 0; ``weight_decay p`` is added to g, which is the gradient of an L2 penalty.

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

    _rule = "sgd"
    _buffers = ("velocity",)

    def __init__(
        self,
        modules: Sequence[Module],
        learning_rate: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, learning_rate, weight_decay)
        self.momentum = number("momentum", momentum, FRACTION)
        self.nesterov = boolean("nesterov", nesterov)
        if nesterov and momentum == 0:
            raise ValueError("nesterov is True, but momentum is 0; expected a momentum greater than 0")

    def _numbers(self) -> dict[str, float]:
        return {"momentum": self.momentum, "nesterov": self.nesterov}


class AdaGrad(Optimizer):
    """AdaGrad: each parameter's steps shrink with the squares of all its gradients so far.

    ``s = s + g^2``, ``p -= learning_rate g / (sqrt(s) + eps)`` (Duchi, Hazan & Singer, "Adaptive Subgradient
    Methods for Online Learning and Stochastic Optimization", JMLR 2011, section 1).  For gradients of equal
    size sqrt(s) grows as sqrt(k + 1), so the learning rate already contains a decay by 1/sqrt(k + 1): do not
    add `inverse_sqrt_decay`.

    Parameters
    ----------
    modules, learning_rate, weight_decay
        As for `SGD`.
    eps
        Greater than 0.

    Raises
    ------
    TypeError, ValueError
        As `SGD`.

    Examples
    --------
    >>> from fastrnn.training import AdaGrad, Linear
    >>> readout = Linear(1, 1, bias=False, seed=0)
    >>> readout.parameters["weight"][:] = 1
    >>> readout.gradients["weight"][:] = 1000
    >>> optimizer = AdaGrad([readout], learning_rate=0.1)
    >>> optimizer.step()  # 0.1 / sqrt(1)
    >>> optimizer.step()  # 0.1 / sqrt(2)
    >>> readout.parameters["weight"].round(4)
    array([[0.8293]], dtype=float32)
    """

    _rule = "adagrad"
    _buffers = ("square",)

    def __init__(
        self,
        modules: Sequence[Module],
        learning_rate: float = 1e-2,
        *,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, learning_rate, weight_decay)
        self.eps = number("eps", eps, POSITIVE)

    def _numbers(self) -> dict[str, float]:
        return {"eps": self.eps}


class RMSprop(Optimizer):
    """RMSprop: steps scaled by a running mean of the squared gradient.

    ``s = decay s + (1 - decay) g^2``, ``v = momentum v + g / (sqrt(s) + eps)``, ``p -= learning_rate v``
    (Tieleman & Hinton, "Lecture 6.5: RMSProp", COURSERA Neural Networks for Machine Learning, 2012; eps and
    momentum as in torch.optim.RMSprop).

    Parameters
    ----------
    modules, learning_rate, weight_decay
        As for `SGD`.
    decay
        0 <= decay < 1; torch calls it alpha.
    eps
        Greater than 0.
    momentum
        0 <= momentum < 1.

    Raises
    ------
    TypeError, ValueError
        As `SGD`.

    Examples
    --------
    >>> from fastrnn.training import Linear, RMSprop
    >>> readout = Linear(1, 1, bias=False, seed=0)
    >>> readout.parameters["weight"][:] = 1
    >>> readout.gradients["weight"][:] = 1000
    >>> RMSprop([readout], learning_rate=0.01).step()  # s = 0.01 g^2: ten times the learning rate
    >>> readout.parameters["weight"].round(6)
    array([[0.9]], dtype=float32)
    """

    _rule = "rmsprop"
    _buffers = ("square", "velocity")

    def __init__(
        self,
        modules: Sequence[Module],
        learning_rate: float = 1e-2,
        *,
        decay: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, learning_rate, weight_decay)
        self.decay = number("decay", decay, FRACTION)
        self.eps = number("eps", eps, POSITIVE)
        self.momentum = number("momentum", momentum, FRACTION)

    def _numbers(self) -> dict[str, float]:
        return {"b2": self.decay, "eps": self.eps, "momentum": self.momentum}


class Adam(Optimizer):
    """Adam: steps scaled by running means of the gradient and of its square.

    ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``,
    ``p -= learning_rate m_hat / (sqrt(v_hat) + eps)`` with ``m_hat = m / (1 - b1^t)`` and
    ``v_hat = v / (1 - b2^t)`` at step t (Kingma & Ba, "Adam: A Method for Stochastic Optimization",
    ICLR 2015, algorithm 1).

    Parameters
    ----------
    modules, learning_rate
        As for `SGD`.
    betas
        (b1, b2), each at least 0 and less than 1.
    eps
        Greater than 0.
    weight_decay
        At least 0; ``weight_decay p`` is added to g.  `AdamW` decays the parameters themselves.

    Raises
    ------
    TypeError, ValueError
        As `SGD`.

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

    _rule = "adam"
    _buffers = ("mean", "square")

    def __init__(
        self,
        modules: Sequence[Module],
        learning_rate: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, learning_rate, weight_decay)
        try:
            b1, b2 = betas
        except (TypeError, ValueError) as error:
            raise type(error)(f"betas is {betas!r}; expected two numbers") from None
        self.betas = (number("betas[0]", b1, FRACTION), number("betas[1]", b2, FRACTION))
        self.eps = number("eps", eps, POSITIVE)

    def _numbers(self) -> dict[str, float]:
        b1, b2 = self.betas
        return {"b1": b1, "b2": b2, "bias1": b1, "bias2": b2, "eps": self.eps}


class AdamW(Adam):
    """Adam with decoupled weight decay: the parameters shrink by themselves, whatever the gradient's size.

    ``p = (1 - learning_rate weight_decay) p`` before Adam's step, which does not see it (Loshchilov &
    Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2).

    Parameters
    ----------
    modules, learning_rate, betas, eps
        As for `Adam`.
    weight_decay
        At least 0.

    Raises
    ------
    TypeError, ValueError
        As `SGD`.

    Examples
    --------
    >>> from fastrnn.training import AdamW, Linear
    >>> readout = Linear(1, 1, bias=False, seed=0)
    >>> readout.parameters["weight"][:] = 1
    >>> AdamW([readout], learning_rate=0.1, weight_decay=0.5).step()
    >>> readout.parameters["weight"].round(6)
    array([[0.95]], dtype=float32)
    """

    def __init__(
        self,
        modules: Sequence[Module],
        learning_rate: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(modules, learning_rate, betas=betas, eps=eps, weight_decay=weight_decay)

    def _numbers(self) -> dict[str, float]:
        shrink = 1 - self.learning_rate * self.weight_decay
        return super()._numbers() | {"weight_decay": 0.0, "shrink": shrink}
