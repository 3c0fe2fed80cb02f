"""What can be trained, and the affine output layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike

from .. import _core
from .._arrays import contiguous, empty
from .._backends import CPU, Array, Library, backend_of_device, on_host
from ..layouts import DTYPES, boolean, checked_dtype, integer


class Module(Protocol):
    """Anything that can be trained: every fastrnn layer, `Linear`, or a class of your own."""

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name to array, written in place by optimizers."""

    @property
    def gradients(self) -> Mapping[str, Array]:
        """Gradient of the loss in each parameter: same names, same shapes."""


def module_list(modules: Any) -> list[Module]:
    """Return what was given as a list of modules, each once, and each of their arrays in one of them."""
    try:
        checked = list(modules)
    except TypeError:
        raise TypeError(f"modules is {modules!r}; expected a list of layers") from None
    for i, module in enumerate(checked):
        for name in ("parameters", "gradients"):
            if not isinstance(getattr(module, name, None), Mapping):
                came = f"an array {module.shape}" if hasattr(module, "shape") else repr(module)
                raise TypeError(f"modules[{i}] is {came}; expected a layer, with a dictionary {name}")
        for j, other in enumerate(checked[:i]):
            if module is other:
                raise ValueError(f"modules[{i}] is modules[{j}] again, {module!r}; expected each layer once")
    owners: dict[int, tuple[int, Array]] = {}  # the arrays too: a number is an array's as long as it lives
    for i, module in enumerate(checked):
        for name, array in module.parameters.items():
            owner, _ = owners.setdefault(id(array), (i, array))
            if owner != i:
                raise ValueError(f"modules[{i}] has {name} of modules[{owner}]; expected each parameter once")
    return checked


def check_trainable(modules: Sequence[Module]) -> None:
    """Raise RuntimeError for a module that no step can move."""
    for i, module in enumerate(modules):
        check_writeable(f"modules[{i}]", module, "before step()")


def check_writeable(name: str, module: Module, when: str = "first") -> None:
    """Raise RuntimeError for a module in eval mode, whose parameters are read-only."""
    if not all(parameter.flags.writeable for parameter in module.parameters.values()):
        raise RuntimeError(f"{name}, {module!r}, is in eval mode: call train() {when}")


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
        self._training = True

    @property
    def training(self) -> bool:
        """True in training mode, False in eval mode, where calls keep nothing for `backward`."""
        return self._training

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or with False to eval mode; returns the layer itself."""
        self._training = boolean("mode", mode)
        if not mode:
            self._x = self._library = None
        return self

    def eval(self) -> Self:
        """Switch to eval mode; returns the layer itself."""
        return self.train(False)

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0", ..."""
        return self._backend.name

    def to(self, device: str, dtype: DTypeLike | None = None) -> Self:
        """Move it to another device, and to another dtype if one is given, as a layer's `to`; returns itself.

        `parameters` and `gradients` are new then, and the last call cannot be gone back through.

        Parameters
        ----------
        device, dtype
            As in `fastrnn.LSTM.to`.

        Raises
        ------
        RuntimeError
            There is no such device; the message says why.
        TypeError, ValueError
            For a device or dtype of another name, or a dtype that is not computed there.

        Examples
        --------
        >>> from fastrnn.training import Linear
        >>> Linear(3, 2).to("cpu", "float64").dtype
        dtype('float64')
        """
        backend = backend_of_device(device)
        name = checked_dtype(self.dtype if dtype is None else dtype)
        backend.check_dtype(name)
        if backend is not self._backend or name != checked_dtype(self.dtype):
            parameters, gradients = (
                {key: backend.array(array, name) for key, array in named.items()}
                for named in (self.parameters, self.gradients)
            )
            self._backend, self.dtype = backend, np.dtype(name) if name in DTYPES else name
            self.parameters, self.gradients = parameters, gradients
            self._x = self._library = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        # copy and deepcopy come here too: a copy has arrays of its own, and no call to go back through.
        arrays = {
            kind: {name: on_host(array) for name, array in getattr(self, kind).items()}
            for kind in ("parameters", "gradients")
        }
        return self.__dict__ | {"_x": None, "_library": None} | arrays

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for named in self.parameters, self.gradients:
            named.update({k: self._backend.array(a, checked_dtype(self.dtype)) for k, a in named.items()})

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}, bias={'bias' in self.parameters})"

    def __call__(self, x: Array) -> Array:
        """Map x (..., I) to y (..., O).  In training mode, keeps a reference to x for `backward`.

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
        if self._training:
            self._x = x
        y = empty((*x.shape[:-1], self.out_features), self.dtype)
        weight, bias = self.parameters["weight"], self.parameters.get("bias")
        _core.linear_forward(_rows(contiguous(x)), weight, bias, _rows(y))
        return y

    def backward(self, dy: Array) -> Array:
        """Add the gradients for dy (..., O) to ``gradients`` and return dx (..., I).

        Raises
        ------
        RuntimeError
            There is no forward call in training mode that this could belong to.
        TypeError, ValueError
            dy has another dtype or shape than the y of the last forward call.
        """
        return self._backward("dy", dy)

    def _backward(self, name: str, dy: Array) -> Array:
        """Do `backward` for a model that calls dy something else; errors name it."""
        x = self._x
        if x is None:
            raise RuntimeError(
                "backward() needs a forward call in training mode before it, one for each backward"
            )
        if self._library is not None:
            return self._backward_on_device(name, dy, x, self._library)
        self._check(name, dy, self.out_features)
        self._check_leading(name, dy, x)
        self._x = None
        return self.backward_from(x, dy)

    def backward_from(self, x: Array, dy: Array) -> Array:
        """Do `backward` for the x of any call, for which who makes several has to keep it; on the CPU."""
        dx = empty(x.shape, self.dtype)
        _core.linear_backward(
            _rows(contiguous(x)),
            _rows(contiguous(dy)),
            self.parameters["weight"],
            _rows(dx),
            self.gradients["weight"],
            self.gradients.get("bias"),
        )
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
        if self._training:
            self._x, self._library = x, library
        return library.give(y)

    def _backward_on_device(self, name: str, dy: Any, x: Array, library: Library) -> Any:
        dy = library.take_float(name, dy, str(self.dtype))
        dy = self._placed(name, dy, library, self.out_features)
        self._check_leading(name, dy, x)
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

    def _check_leading(self, name: str, dy: Array, x: Array) -> None:
        if dy.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"{name} has shape {dy.shape}; expected {(*x.shape[:-1], self.out_features)}")

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


def _rows(array: Array) -> Array:
    """View a contiguous array as a matrix of its last axis."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
