"""What it takes to train a recurrent layer from NumPy: output layer, loss, clipping, optimizers.

Everything works on *modules*: objects with two dictionaries of equal keys and shapes,
``parameters`` and ``gradients``, as every fastrnn layer has.  Gradients accumulate until
``zero_grad()``; optimizers write the parameters in place.  Everything also works on CUDA devices, by
kernels on arrays that stay there; running means of 16-bit parameters are float32.

Examples
--------
Learn to repeat the previous value of a random sequence.

>>> import numpy as np
>>> import fastrnn
>>> from fastrnn.training import Adam, Linear, clip_by_global_norm
>>> rng = np.random.default_rng(0)
>>> rnn, readout = fastrnn.GRU(1, 16, seed=0), Linear(16, 1, seed=1)
>>> optimizer = Adam([rnn, readout], learning_rate=1e-2)
>>> for step in range(150):
...     x = rng.standard_normal((20, 8, 1), dtype=np.float32)
...     target = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
...     y, _ = rnn(x)
...     error = readout(y) - target
...     optimizer.zero_grad()
...     _ = rnn.backward(readout.backward(2 * error / error.size))
...     _ = clip_by_global_norm([rnn, readout], 1.0)
...     optimizer.step()
>>> bool(np.mean(error**2) < 0.2)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from . import _device
from ._arrays import is_on_device
from ._backends import CPU, Array, Library, backend_of_arrays, backend_of_device, on_host
from .layouts import DEVICE_DTYPES, DTYPES, boolean, checked_dtype, integer

__all__ = [
    "SGD",
    "Adam",
    "Linear",
    "Module",
    "clip_by_global_norm",
    "cosine_learning_rate",
    "softmax_cross_entropy",
]

# What a number may be, as `_number` takes it.
_Range = tuple[Callable[[Any], bool], str]
_FINITE: _Range = (math.isfinite, "a finite number")
_NOT_NEGATIVE: _Range = (lambda value: 0 <= value < math.inf, "a finite number of at least 0")
_POSITIVE: _Range = (lambda value: 0 < value < math.inf, "a finite number greater than 0")
_POSITIVE_OR_INFINITE: _Range = (lambda value: value > 0, "a number greater than 0")
_FRACTION: _Range = (lambda value: 0 <= value < 1, "a number of at least 0 and less than 1")


def _number(name: str, value: Any, accepted: _Range) -> float:
    """Return `value` as a plain float; bool is not a number here."""
    accept, expected = accepted
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}")
    if not accept(value):
        raise ValueError(f"{name} is {value}; expected {expected}")
    return float(value)


class Module(Protocol):
    """Anything that can be trained: every fastrnn layer, `Linear`, or a class of your own."""

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name to array, written in place by optimizers."""

    @property
    def gradients(self) -> Mapping[str, Array]:
        """Gradient of the loss in each parameter: same names, same shapes."""


def _modules(modules: Any) -> list[Module]:
    """Return what was given as a list of modules, each once."""
    try:
        checked = list(modules)
    except TypeError:
        raise TypeError(f"modules is {modules!r}; expected a list of layers") from None
    for i, module in enumerate(checked):
        for name in ("parameters", "gradients"):
            if not isinstance(getattr(module, name, None), Mapping):
                raise TypeError(f"modules[{i}] is {module!r}; expected a layer, with a dictionary {name}")
        for j, other in enumerate(checked[:i]):
            if module is other:
                raise ValueError(f"modules[{i}] is modules[{j}] again, {module!r}; expected each layer once")
    return checked


class Linear:
    """Affine map of the last axis, ``y = x W^T + b``, with its backward pass.

    The backward pass is ``dx = dy W``, ``dW += dy^T x`` and ``db += sum(dy)``, the sums running over
    all leading axes (Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 6.5.6).
    Names, shapes and initial values are those of torch.nn.Linear: ``weight`` (O, I), ``bias`` (O,),
    uniform within +-1/sqrt(I).

    Parameters
    ----------
    in_features, out_features
        I and O.
    bias
        Whether there is a ``bias``.
    dtype
        float32 or float64, or on a CUDA device float16 or bfloat16; inputs must have it too.
    seed
        An integer of at least 0 makes the initial values reproducible.
    device
        "cpu", "cuda", "cuda:1", ...  On a CUDA device arrays come and go as those of the recurrent layers.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above.
    RuntimeError
        There is no such device; the message says why.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.training import Linear
    >>> readout = Linear(4, 2, seed=0)
    >>> y = readout(np.ones((5, 3, 4), np.float32))
    >>> dx = readout.backward(np.ones_like(y))
    >>> y.shape, dx.shape, readout.gradients["bias"]
    ((5, 3, 2), (5, 3, 4), array([15., 15.], dtype=float32))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = "float32",
        seed: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.in_features = integer("in_features", in_features, 1)
        self.out_features = integer("out_features", out_features, 1)
        self._backend = backend = backend_of_device(device)
        name = checked_dtype(dtype)
        backend.check_dtype(name)
        self.dtype: Any = np.dtype(name) if name in DTYPES else name
        rng = np.random.default_rng(None if seed is None else integer("seed", seed, 0))
        bound = 1 / math.sqrt(in_features)

        def uniform(*shape: int) -> Array:
            return backend.array(rng.uniform(-bound, bound, shape), name)

        self.parameters: dict[str, Array] = {"weight": uniform(out_features, in_features)}
        if boolean("bias", bias):
            self.parameters["bias"] = uniform(out_features)
        self.gradients = {key: backend.zeros(p.shape, name) for key, p in self.parameters.items()}
        self._x: Array | None = None
        self._library: Library | None = None

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0", ..."""
        return self._backend.name

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}, bias={'bias' in self.parameters})"

    def __call__(self, x: Array) -> Array:
        """Map x (..., I) to y (..., O).  Keeps a reference to x for `backward`.

        Raises
        ------
        TypeError
            x has another dtype than the layer.
        ValueError
            The last axis of x is not I long.
        """
        if self._backend is not CPU:
            return self._forward_on_device(x)
        self._check("x", x, self.in_features)
        self._x = x
        y: Array = x @ self.parameters["weight"].T
        if "bias" in self.parameters:
            y += self.parameters["bias"]
        return y

    def backward(self, dy: Array) -> Array:
        """Add the gradients for dy (..., O) to ``gradients`` and return dx (..., I).

        Raises
        ------
        RuntimeError
            There is no forward call that this could belong to.
        TypeError, ValueError
            dy has another dtype or shape than the y of the last forward call.
        """
        x = self._x
        if x is None:
            raise RuntimeError("backward() needs a forward call before it, one for each backward")
        if self._library is not None:
            return self._backward_on_device(dy, x, self._library)
        self._check("dy", dy, self.out_features)
        if dy.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"dy has shape {dy.shape}; expected {(*x.shape[:-1], self.out_features)}")
        self._x = None
        rows = dy.reshape(-1, self.out_features)
        self.gradients["weight"] += rows.T @ x.reshape(-1, self.in_features)
        if "bias" in self.gradients:
            self.gradients["bias"] += rows.sum(axis=0)
        dx: Array = dy @ self.parameters["weight"]
        return dx

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        for gradient in self.gradients.values():
            self._backend.clear(gradient)

    def _forward_on_device(self, x: Any) -> Any:
        library, array = self._backend.take_x("x", x)
        x = self._placed("x", library.check_float("x", array, str(self.dtype), x), library, self.in_features)
        y = library.empty((*x.shape[:-1], self.out_features), str(self.dtype))
        rows, ones = _rows(y), self._ones(y)
        matmul = partial(self._backend.core.matmul, stream=x.stream)
        add = "bias" in self.parameters
        if add:
            matmul(ones, self.parameters["bias"][None], rows, transpose_a=True, transpose_b=False, add=False)
        weight = self.parameters["weight"]
        matmul(_rows(x), weight, rows, transpose_a=False, transpose_b=True, add=add)
        self._x, self._library = x, library
        return library.give(y)

    def _backward_on_device(self, dy: Any, x: Array, library: Library) -> Any:
        dy = library.take_float("dy", dy, str(self.dtype))
        dy = self._placed("dy", dy, library, self.out_features)
        if dy.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"dy has shape {dy.shape}; expected {(*x.shape[:-1], self.out_features)}")
        self._x = None
        rows = _rows(dy)
        matmul = partial(self._backend.core.matmul, stream=x.stream)
        matmul(rows, _rows(x), self.gradients["weight"], transpose_a=True, transpose_b=False, add=True)
        if "bias" in self.gradients:
            bias = self.gradients["bias"][None]
            matmul(self._ones(dy), rows, bias, transpose_a=False, transpose_b=False, add=True)
        dx = library.empty(x.shape, str(self.dtype))
        matmul(rows, self.parameters["weight"], _rows(dx), transpose_a=False, transpose_b=False, add=False)
        return library.give(dx)

    def _placed(self, name: str, array: Array, library: Library, width: int) -> Array:
        if array.ndim == 0 or array.shape[-1] != width:
            raise ValueError(f"{name} has shape {array.shape}; expected (..., {width})")
        return library.place(array, str(self.dtype))

    def _ones(self, array: Array) -> Array:
        """Return a row of ones, by which a product sums the rows of an array, or repeats one."""
        rows = math.prod(array.shape[:-1])
        ones = self._backend.own.empty((1, rows), str(self.dtype))
        ones[...] = 1
        return ones

    def _check(self, name: str, array: Array, width: int) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype:
            came = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{name} is {came}; expected a NumPy array of {self.dtype}")
        if array.ndim == 0 or array.shape[-1] != width:
            raise ValueError(f"{name} has shape {array.shape}; expected (..., {width})")


def _on_host(library: Library, name: str, value: Any) -> Any:
    """Return an array of a device as NumPy's; lists and None as they are."""
    return on_host(library.take(name, value)) if is_on_device(value) else value


def _rows(array: Array) -> Array:
    """View a contiguous device array as a matrix of its last axis."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def softmax_cross_entropy(logits: Any, targets: Any, mask: Any = None) -> tuple[float, Any]:
    """Mean cross entropy of softmax(logits) with integer targets, and its gradient in the logits.

    With p = softmax(logits), N scored positions and the one-hot target e,
    ``loss = -(1/N) sum log p[target]`` and ``dlogits = (p - e) / N`` (Bishop, "Pattern Recognition and
    Machine Learning", 2006, section 4.3.4).  The largest logit of each row is subtracted first, so no
    finite logit overflows.

    Parameters
    ----------
    logits
        (..., V), float32 or float64; or an array on a CUDA device, of any float type.
    targets
        (...), integers in 0..V-1.
    mask
        (...), bool: the positions that are scored.  Where it is False the target may be anything, the
        logits too (NaN included), and the gradient is 0.

    Returns
    -------
    loss
        In nats; divide by log(2) for bits.
    dlogits
        (..., V), a new array of the dtype of logits.

    Raises
    ------
    TypeError
        logits are not floating point, targets not integers, or mask not bool.
    ValueError
        Shapes do not agree, a scored target is out of range, or no position is scored.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> from fastrnn.training import softmax_cross_entropy
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 4)), [2])
    >>> round(loss / math.log(2), 6), dlogits
    (2.0, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    backend, library = backend_of_arrays([logits]), None
    if backend is not CPU:
        library, logits = backend.take_x("logits", logits)
        targets, mask = (_on_host(library, name, a) for name, a in (("targets", targets), ("mask", mask)))
        if str(logits.dtype) not in DEVICE_DTYPES:
            raise TypeError(f"logits are {logits.dtype}; expected one of {', '.join(DEVICE_DTYPES)}")
    elif not isinstance(logits, np.ndarray) or logits.dtype not in (np.float32, np.float64):
        came = getattr(logits, "dtype", type(logits).__name__)
        raise TypeError(f"logits are {came}; expected a NumPy array of float32 or float64")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits have shape {logits.shape}; expected (..., V) with V > 0")
    target = np.asarray(targets)
    if not np.issubdtype(target.dtype, np.integer):
        raise TypeError(f"targets are {target.dtype}; expected integers")
    if target.shape != logits.shape[:-1]:
        raise ValueError(f"targets have shape {target.shape}; expected {logits.shape[:-1]}")
    size = logits.shape[-1]
    scored = np.ones(target.shape, bool) if mask is None else np.asarray(mask)
    if scored.dtype != np.bool_:
        raise TypeError(f"mask is {scored.dtype}; expected bool")
    if scored.shape != target.shape:
        raise ValueError(f"mask has shape {scored.shape}; expected {target.shape}")
    chosen = target[scored]
    if chosen.size == 0:
        raise ValueError("no position is scored: the mean over none is undefined")
    if chosen.min() < 0 or chosen.max() >= size:
        raise ValueError(f"targets range from {chosen.min()} to {chosen.max()}; expected 0..{size - 1}")

    if library is not None:
        logits = library.place(logits, logits.dtype)
        dlogits = library.empty(logits.shape, logits.dtype)
        numbers = library.place(np.where(scored, target, 0), "int64"), library.place(scored, "bool")
        loss = backend.core.softmax_cross_entropy(logits, *numbers, dlogits, 1 / chosen.size, logits.stream)
        return float(loss) / chosen.size, library.give(dlogits)

    rows = np.arange(chosen.size)
    p = logits[scored]  # a copy (N, V), which becomes the gradient in place
    p -= p.max(axis=-1, keepdims=True)
    target_logits = p[rows, chosen]
    np.exp(p, out=p)
    total = p.sum(axis=-1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - target_logits, dtype=np.float64))
    p /= total
    p[rows, chosen] -= 1
    p /= chosen.size
    if mask is None:
        return loss, p.reshape(logits.shape)
    dlogits = np.zeros_like(logits)
    dlogits[scored] = p
    return loss, dlogits


def clip_by_global_norm(modules: Sequence[Module], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most max_norm.

    Keeps the direction of the step where back-propagation through time explodes (Pascanu, Mikolov &
    Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1).

    Parameters
    ----------
    modules
        Whose gradients are scaled, in place.
    max_norm
        Greater than 0; infinity only measures.

    Returns
    -------
    norm
        Before scaling; worth logging.

    Raises
    ------
    FloatingPointError
        A gradient holds NaN or infinity; nothing is scaled.
    TypeError, ValueError
        modules is no list of layers, each once, or max_norm not greater than 0.

    Examples
    --------
    >>> from fastrnn.training import Linear, clip_by_global_norm
    >>> readout = Linear(1, 1)
    >>> readout.gradients["weight"][:] = 3
    >>> readout.gradients["bias"][:] = 4
    >>> clip_by_global_norm([readout], 1.0)
    5.0
    >>> readout.gradients["bias"]
    array([0.8], dtype=float32)
    """
    max_norm = _number("max_norm", max_norm, _POSITIVE_OR_INFINITE)
    gradients = [gradient for module in _modules(modules) for gradient in module.gradients.values()]
    norm = math.sqrt(sum(_sum_of_squares(gradient) for gradient in gradients))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the norm of the gradients is {norm}: one of them holds NaN or infinity")
    if norm > max_norm:
        for gradient in gradients:
            if isinstance(gradient, np.ndarray):
                gradient *= max_norm / norm
            else:
                _device.cuda_of_array(gradient).scale(gradient, max_norm / norm)
    return norm


def _sum_of_squares(array: Array) -> float:
    if isinstance(array, np.ndarray):
        return float(np.sum(np.square(array, dtype=np.float64)))
    return _device.cuda_of_array(array).sum_of_squares(array)


def cosine_learning_rate(progress: float, peak: float, *, final: float = 0.0, warmup: float = 0.0) -> float:
    """Learning rate that rises linearly from 0 to peak, then falls to final along half a cosine.

    One cycle of Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR
    2017, equation 5, as a function of the fraction of the training that is done, so that it serves
    a limit in minutes as well as one in steps.

    Parameters
    ----------
    progress
        Done part of the training; held to 0..1.
    peak, final
        The learning rate after the warm-up and at the end.
    warmup
        The part of the training, 0 <= warmup < 1, in which the rate rises.

    Raises
    ------
    TypeError, ValueError
        An argument is no number, not finite, or a rate is negative.

    Examples
    --------
    >>> from fastrnn.training import cosine_learning_rate
    >>> [round(cosine_learning_rate(p, 1.0, warmup=0.2), 6) for p in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    progress = min(max(_number("progress", progress, _FINITE), 0.0), 1.0)
    peak = _number("peak", peak, _NOT_NEGATIVE)
    final = _number("final", final, _NOT_NEGATIVE)
    warmup = _number("warmup", warmup, _FRACTION)
    if progress < warmup:
        return peak * progress / warmup
    angle = math.pi * (progress - warmup) / (1 - warmup)
    return final + (peak - final) * (1 + math.cos(angle)) / 2


def _zeros_like(parameter: Array) -> Array:
    """Return zeros where the parameter is, of the dtype that it is computed in."""
    if isinstance(parameter, np.ndarray):
        return np.zeros_like(parameter)
    wide = parameter.dtype == "float64"
    return _device.cuda_of_array(parameter).zeros(parameter.shape, "float64" if wide else "float32")


class _Optimizer:
    """What the optimizers share: the modules and zero-filled buffers shaped like their parameters."""

    def __init__(self, modules: Sequence[Module], learning_rate: float) -> None:
        self.modules = _modules(modules)
        self.learning_rate = _number("learning_rate", learning_rate, _POSITIVE)

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
        _number("learning_rate", self.learning_rate, _NOT_NEGATIVE)  # a schedule may start and end at 0
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


class SGD(_Optimizer):
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
        self.momentum = _number("momentum", momentum, _FRACTION)
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


class Adam(_Optimizer):
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
        self.betas = (_number("betas[0]", b1, _FRACTION), _number("betas[1]", b2, _FRACTION))
        self.eps = _number("eps", eps, _POSITIVE)
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
