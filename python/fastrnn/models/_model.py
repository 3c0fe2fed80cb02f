"""What all models share: several modules that are called, gone back through and trained as one."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from .. import _files
from .._arrays import BOOLS, INTEGERS, expect_shape, is_on_device, take, take_listed
from .._backends import CPU, Array, backend_of_arrays, backend_of_device, on_host
from .._calls import check_parameters
from ..info import Report
from ..layers import NamedArrays
from ..layouts import LARGEST_SIZE, DType, boolean, checked_dtype, integer
from ..training import Module, softmax

State = Any
"""None, an array, or a tuple of states; each array has the batch on its axis 1, as states of layers."""


def map_state(change: Callable[[Array], Array], state: State) -> State:
    """Apply a function to every array of a state."""
    if state is None:
        return None
    if isinstance(state, tuple | list):
        return tuple(map_state(change, part) for part in state)
    return change(state)


def state_arrays(state: State) -> list[Array]:
    """Return the arrays of a state, one after another."""
    arrays: list[Array] = []
    map_state(arrays.append, state)
    return arrays


def on_host_or_device(name: str, value: Any) -> Any:
    """Return an array of any library on the host as NumPy's, and one on a device as it is."""
    return value if is_on_device(value) else take(name, value)


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None: not every module takes all."""
    return {name: value for name, value in options.items() if value is not None}


def joined_reports(**reports: Report) -> Report:
    """Return the reports of several parts as one, each entry with its part's name in front."""
    return Report(
        {f"{part} {entry}": text for part, report in reports.items() for entry, text in report.items()}
    )


class Model(ABC):
    """Named modules as one: what is true of a layer is true of a model.

    ``o, state_n = model(x, state)`` and ``dx, dstate = model.backward(do, dstate_n)`` take and give what a
    layer's calls do, time-major: x is (T, B, I), or tokens (T, B).  So a model stands where a layer can:
    inside another model, in `fastrnn.training`, in `fastrnn.diagnostics`.  Outputs o are logits where they
    stand for classes; the losses take the softmax.

    Arrays on the host may be of any library with DLPack; what comes back is NumPy's.

    Parameters
    ----------
    parts
        Layers, `training.Linear`, models: names and order are those of the parameters.

    Raises
    ------
    ValueError
        Parts are of different dtypes or on different devices, one is batch first, or there twice.

    Examples
    --------
    A model of one's own is a forward and a backward pass over its parts.

    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import Model
    >>> class Residual(Model):
    ...     def __init__(self, layer):
    ...         super().__init__(layer=layer)
    ...         self.layer, self.output_size = layer, layer.output_size
    ...     def __call__(self, x, state=None):
    ...         y, state_n = self.layer(x, state)
    ...         return x + y, state_n
    ...     def backward(self, do=None, dstate_n=None):
    ...         dx, dstate = self.layer.backward(do, dstate_n)
    ...         return do + dx, dstate
    >>> model = Residual(fastrnn.GRU(4, 4, seed=0))
    >>> model
    Residual(layer=GRU(4, 4))
    >>> model(np.ones((5, 2, 4), "float32"))[0].shape
    (5, 2, 4)
    """

    output_size: int
    """O: width of the last axis of the outputs."""
    output = "linear"
    """What o stands for: "linear", a value, or "softmax", the logits of classes."""
    _by_numpy = False
    """Whether its formulas are NumPy's, so that it is on the CPU only."""

    def __init__(self, **parts: Module) -> None:
        for attribute in ("dtype", "device"):
            # A class of one's own may have neither.
            found = {name: str(getattr(part, attribute, "")) for name, part in parts.items()}
            if len(set(found.values()) - {""}) > 1:
                raise ValueError(f"parts have different {attribute}s: {found}; expected one")
        for name, part in parts.items():
            if getattr(part, "batch_first", False):
                raise ValueError(f"{name} is {part!r}; expected batch_first=False: models are time-major")
        self._parts = parts
        names: dict[int, str] = {}
        for name, leaf in self.leaves():
            if names.setdefault(id(leaf), name) != name:
                raise ValueError(
                    f"{name} is {names[id(leaf)]}, {leaf!r}; expected each once: it keeps one call"
                )
        self._saved: Any = None  # what backward needs of the last training call, beside what the parts keep

    @property
    def parts(self) -> Mapping[str, Module]:
        """The modules by name."""
        return MappingProxyType(self._parts)

    @property
    def dtype(self) -> DType:
        """Of parameters, inputs and results alike."""
        return checked_dtype(self._common("dtype"))

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0", ..."""
        return str(self._common("device"))

    def to(self, device: str, dtype: Any = None) -> Self:
        """Move all parts to another device, as a layer's `to`; returns the model itself.

        Parameters
        ----------
        device, dtype
            As in `fastrnn.LSTM.to`.

        Raises
        ------
        NotImplementedError
            NumPy computes a part, or a module of one's own has no `to`; for another device than the CPU.
        RuntimeError
            There is no such device, the message says why; or a layer is quantised.
        TypeError, ValueError
            For a device of another name, or a dtype that is not computed there.

        Notes
        -----
        `parameters` and `gradients` are new arrays then: make another optimizer.  A training call made before
        cannot be gone back through any more, and streams stop working.  Nothing happens if all parts are
        there already; if one cannot be moved, those that were are moved back.

        Examples
        --------
        >>> import fastrnn
        >>> from fastrnn.models import ManyToMany
        >>> ManyToMany(fastrnn.GRU(3, 4), 2).to("cpu").device
        'cpu'
        """
        backend = backend_of_device(device)
        leaves: list[tuple[str, Any]] = list(self.leaves())
        if backend is not CPU:
            for model in self._models():
                if model._by_numpy:
                    raise NotImplementedError(f"NumPy computes {model!r}; expected device 'cpu' for it")
            for name, leaf in leaves:
                if not hasattr(leaf, "to"):
                    raise NotImplementedError(f"{name} is {leaf!r}, which has no to(); expected device 'cpu'")
        to_move: list[tuple[str, Any, DType]] = []  # with its dtype then
        for name, leaf in leaves:
            if hasattr(leaf, "to"):
                chosen = checked_dtype(leaf.dtype if dtype is None else dtype)
                backend.check_dtype(chosen)
                if (leaf.device, checked_dtype(leaf.dtype)) != (backend.name, chosen):
                    to_move.append((name, leaf, chosen))
        for name, leaf, _ in to_move:
            if getattr(leaf, "quantized", None) is not None:
                raise RuntimeError(f"{name} is quantised to {leaf.quantized}; call quantize('float32') first")
        before: list[tuple[Any, str, Any]] = []
        try:
            for _, leaf, chosen in to_move:
                before.append((leaf, leaf.device, leaf.dtype))
                leaf.to(device, chosen)
        except BaseException:
            for leaf, *was in before[:-1]:
                leaf.to(*was)
            raise
        if to_move:
            self._forget()
        return self

    def _common(self, attribute: str) -> Any:
        for part in self._parts.values():
            if hasattr(part, attribute):
                return getattr(part, attribute)
        raise AttributeError(f"{self!r} has no {attribute}: none of its parts has one")

    @property
    def parameters(self) -> NamedArrays:
        """``part.name`` to array, for every part."""
        return NamedArrays(self._joined("parameters"))

    @property
    def gradients(self) -> NamedArrays:
        """``part.name`` to gradient, in the order of `parameters`."""
        return NamedArrays(self._joined("gradients"))

    def _joined(self, kind: str) -> dict[str, Array]:
        return {
            f"{part}.{name}": array
            for part, module in self._parts.items()
            for name, array in getattr(module, kind).items()
        }

    def leaves(self) -> Iterator[tuple[str, Module]]:
        """Go through the layers and output layers, of models inside too, with their dotted names."""
        for name, module in self._parts.items():
            if isinstance(module, Model):
                yield from ((f"{name}.{inner}", leaf) for inner, leaf in module.leaves())
            else:
                yield name, module

    def _models(self) -> Iterator[Model]:
        """Go through this model and those inside."""
        yield self
        for module in self._parts.values():
            if isinstance(module, Model):
                yield from module._models()

    def __repr__(self) -> str:
        shown = [f"{name}={part!r}" for name, part in self._parts.items()]
        for name, default in (("output", "linear"), ("nonlinearity", "tanh")):
            own = getattr(self, name, default)
            if own != default:
                shown.append(f"{name}={own!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _configuration(self) -> str:
        """Return what a file has to agree with beside names and shapes; it may be of another dtype."""
        return re.sub(r", dtype='\w+'", "", repr(self))

    # ------------------------------------------------------------------------------------- calls

    @abstractmethod
    def __call__(self, x: Any, state: State = None) -> tuple[Any, State]:
        """Return outputs and final state; subclasses say of what shape."""

    @abstractmethod
    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last training call, once, and add to `gradients`."""

    def predict(self, x: Any, state: State = None, **options: Any) -> Any:
        """Return what the outputs of a call mean: with ``output="softmax"`` probabilities, else o itself.

        Of an o on a device `training.softmax` is computed on the host; the probabilities are where o is.
        """
        o, _ = self(x, state, **options)
        return softmax(o) if self.output == "softmax" else o

    def stream(self, batch: int = 1) -> ModelStream | PartStream:
        """Return a stream of `batch` rows that keeps its state from step to step; needs eval mode."""
        return ModelStream(self, batch)

    def explain(self, x: Any) -> Report:
        """Tell what computes a call with this x, and why not something faster; computes nothing."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say; ask its parts: {', '.join(self._parts)}"
        )

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the arrays of a state of `batch` rows; () if there is no state."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its state is")

    def _last_call(self) -> Any:
        """Return what the last training call kept; RuntimeError if there is none to go back through."""
        if self._saved is None or not self.training:
            raise RuntimeError(
                "backward without a training call to go back through: call the model first, in training "
                "mode, and again before every further backward"
            )
        return self._saved

    # ------------------------------------------------------------------------------------- modes

    @property
    def training(self) -> bool:
        """Whether it, and everything in it, is in training mode."""
        return all(getattr(leaf, "training", True) for _, leaf in self.leaves())

    def train(self, mode: bool = True) -> Self:
        """Switch everything to training mode, or with False to eval mode; returns the model itself."""
        mode = boolean("mode", mode)
        for _, leaf in self.leaves():
            if hasattr(leaf, "train"):
                leaf.train(mode)
        if not mode:
            self._forget()
        return self

    def _forget(self) -> None:
        """Drop the last training call, here and in the models inside."""
        for model in self._models():
            model._saved = None

    def eval(self) -> Self:
        """Switch everything to eval mode; returns the model itself."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        for gradient in self.gradients.values():
            backend_of_arrays([gradient]).clear(gradient)

    # -------------------------------------------------------------------------- copies and files

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters, in the order of `parameters`."""
        return {name: array.copy() for name, array in self.parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy parameters from a mapping of arrays of any library, in either mode.

        Parameters
        ----------
        state_dict
            Exactly the names and shapes of `parameters`; other float widths are converted.

        Raises
        ------
        TypeError, ValueError
            Something is missing, unexpected, or of another shape or kind; nothing has changed then.

        Notes
        -----
        A training call made before cannot be gone back through any more.
        """
        self._write_parameters(self._check_parameters(state_dict))

    def _check_parameters(self, state_dict: Mapping[str, Any]) -> dict[str, Array]:
        """Return copies of the arrays, checked; sources may share memory with parameters."""
        backend = backend_of_device(self.device)
        parameters = self.parameters
        shapes = {name: tuple(array.shape) for name, array in parameters.items()}
        arrays = check_parameters(backend.own, "state_dict", shapes, state_dict, self.dtype, cast=True)
        return {name: backend.array(a, self.dtype) for name, a in zip(shapes, arrays, strict=True)}

    def _write_parameters(self, copies: Mapping[str, Array]) -> None:
        leaf: Any
        for prefix, leaf in self.leaves():
            own = {name: copies[f"{prefix}.{name}"] for name in leaf.parameters}
            if hasattr(leaf, "load_state_dict"):
                leaf.load_state_dict(own)
            else:
                for name, array in own.items():
                    leaf.parameters[name][...] = array
                if hasattr(leaf, "train"):  # to eval mode and back drops a call
                    mode = leaf.training
                    leaf.train(False)
                    leaf.train(mode)
        self._forget()

    def save(self, path: _files.AnyPath) -> None:
        """Write the parameters to a safetensors file, for `load`; OSError if it cannot be written.

        An existing file is replaced, and only once the new one is complete.
        """
        arrays = {name: on_host(array) for name, array in self.parameters.items()}
        description = {"class": type(self).__name__, "model": self._configuration()}
        _files.write(path, _files.MODEL, arrays, description)

    def load(self, path: _files.AnyPath) -> Self:
        """Read the parameters that `save` wrote for a model of the same parts; returns the model itself.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is no safetensors file of `save`, or of a model of another class, other shapes or options
            (nonlinearity, ...); nothing has changed then.

        Examples
        --------
        >>> import tempfile
        >>> import fastrnn
        >>> from fastrnn.models import ManyToMany
        >>> model, other = (ManyToMany(fastrnn.GRU(3, 4), 2) for _ in range(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder + "/model.safetensors")
        ...     _ = other.load(folder + "/model.safetensors")
        >>> all((other.parameters[name] == array).all() for name, array in model.parameters.items())
        True
        """

        def take(description: dict[str, Any], arrays: Mapping[str, Array]) -> None:
            if description["class"] != type(self).__name__:
                raise ValueError(f"its class is {description['class']!r}; expected {type(self).__name__!r}")
            copies = self._check_parameters(arrays)
            if description["model"] != self._configuration():
                raise ValueError(f"it is of {description['model']}; expected {self._configuration()}")
            self._write_parameters(copies)

        _files.load(path, _files.MODEL, take)
        return self

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # as of layers: every copy owns its parameters

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_saved": None}  # a copy has no call to go back through


class ModelStream:
    """Rows of a model that advance together, one step a call, each from its own state.

    Made by ``model.stream(batch)`` in eval mode; this one makes one-step calls of the model.

    Parameters
    ----------
    model
        In eval mode.
    batch
        B: rows.

    Raises
    ------
    RuntimeError
        The model is in training mode.
    TypeError, ValueError
        batch is no positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> model = ManyToMany(fastrnn.GRU(3, 4, seed=0), 2, seed=1).eval()
    >>> stream = model.stream(batch=6)
    >>> stream.step(np.ones((6, 3), "float32")).shape, stream.state.shape
    ((6, 2), (1, 6, 4))
    """

    def __init__(self, model: Model, batch: int = 1) -> None:
        self._model = model
        self._batch = integer("batch", batch, 1, LARGEST_SIZE)
        self._state: State = None
        self._check_mode()

    def __repr__(self) -> str:
        return f"ModelStream({self._model!r}, batch={self._batch})"

    def _check_mode(self) -> None:
        if self._model.training:
            raise RuntimeError("a stream needs a model in eval mode; call eval() first")

    @property
    def batch(self) -> int:
        """B: rows."""
        return self._batch

    def step(self, x: Any) -> Any:
        """Advance every row by one step.

        Parameters
        ----------
        x : array (B, I), or tokens (B,)

        Returns
        -------
        o : array (B, O)
            May be overwritten by the next step.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As for a call of the model, which has to be in eval mode still; no row has moved then.
        """
        self._check_mode()
        x = take("x", x)
        if x.ndim == 0 or x.shape[0] != self._batch:
            raise ValueError(
                f"x has shape {x.shape}; expected ({self._batch}, ...), a row for each of the stream"
            )
        o, self._state = self._model(x[None], self._state)
        return o[0]

    @property
    def state(self) -> State:
        """Copies of the state, None before the first step (for zeros); assign to set it."""
        return map_state(np.copy, self._state)

    @state.setter
    def state(self, value: State) -> None:
        def copied(array: Any) -> Array:
            if np.ndim(array) < 2 or np.shape(array)[1] != self._batch:
                raise ValueError(
                    f"state has an array of shape {np.shape(array)}; expected {self._batch} rows on axis 1"
                )
            return np.array(array)

        taken = map_state(copied, value)
        found = tuple(array.shape for array in state_arrays(taken))
        try:
            shapes = self._model.state_shapes(self._batch)
        except NotImplementedError:  # a model of one's own need not say
            shapes = found
        if taken is not None and found != shapes:
            raise ValueError(f"state has arrays of shapes {found}; expected {shapes}")
        self._state = taken

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows, or some (indices or a bool mask), to zero."""
        if rows is None:
            self._state = None
            return
        chosen = take_listed("rows", rows, INTEGERS + BOOLS, "integers or a bool mask")
        if chosen.dtype.kind == BOOLS:
            expect_shape("rows", chosen, {"B": self._batch})
        elif ((chosen < 0) | (chosen >= self._batch)).any():
            raise ValueError(f"rows is {chosen.tolist()}; expected from 0 to {self._batch - 1}")

        def cleared(array: Array) -> Array:
            array = array.copy()
            array[:, chosen] = 0
            return array

        self._state = map_state(cleared, self._state)


class PartStream:
    """The stream of one part of a model, with something done to what goes in or comes out at each step."""

    def __init__(self, inner: Any, step: Callable[[Any, Any], Any]) -> None:
        self._inner = inner
        self._step = step

    def __repr__(self) -> str:
        return f"PartStream({self._inner!r})"

    @property
    def batch(self) -> int:
        """B: rows."""
        return int(self._inner.batch)

    def step(self, x: Any) -> Any:
        """Advance every row by one step, as `ModelStream.step`."""
        return self._step(self._inner, on_host_or_device("x", x))

    @property
    def state(self) -> State:
        """Copies of the state; assign to set it."""
        return self._inner.state

    @state.setter
    def state(self, value: State) -> None:
        self._inner.state = value

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows, or some, to zero."""
        self._inner.reset(rows)
