"""What computes: the CPU, or a CUDA device, each with the arrays that its kernels take.

`_calls` checks a call once, in these terms, whatever computes it.  A `Backend` is where a layer lives; a
`Library` is where the arrays of one call come from and its results go back to.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays, _core
from ._arrays import BOOLS, INTEGERS
from .layouts import DTYPES, DType, Spec

SEED_END = 2**64
"""Seeds and call numbers are 64-bit, since they key the dropout generator."""

Array = Any
"""An array as a backend's kernels take it, or on its way to it: NumPy's, or a `DeviceArray`."""


class Library:
    """Takes the arrays of a call and hands results back, without a copy: NumPy's, and others on the host."""

    def __init__(self, importer: _arrays.Export | None = None) -> None:
        self._importer = importer

    # Each of these returns an array whose dtype and shape can be checked; `place` and `place_rows` then put
    # it where the kernels want it.

    def take(self, name: str, value: Any) -> Array:
        """Take an array of any dtype."""
        return _arrays.take(name, value)

    def take_float(self, name: str, value: Any, dtype: str) -> Array:
        """Take an array of exactly this dtype."""
        return self.check_float(name, self.take(name, value), dtype, value)

    def check_float(self, name: str, array: Array, dtype: str, value: Any) -> Array:
        """Demand this dtype of an array that was taken; `value` is what the caller passed."""
        return _arrays.check_float(name, array, np.dtype(dtype), value)

    def take_listed(self, name: str, value: Any, kinds: str, expected: str) -> Array:
        """Take an array, or a list, of these kinds of dtype."""
        return _arrays.take_listed(name, value, kinds, expected)

    def take_output(
        self,
        name: str,
        value: Any,
        dtype: str,
        axes: Mapping[str, int | None],
        *,
        strided: bool = False,
    ) -> Array:
        """Take an array to write into."""
        return _arrays.take_output(name, value, np.dtype(dtype), axes, strided=strided)

    def convert(self, name: str, value: Any, dtype: str) -> Array:
        """Take an array of floats of any width, as one of this dtype; with a graph or without."""
        array = _arrays.take(name, _arrays.plain(value))
        if array.dtype.kind != "f":
            raise TypeError(f"{name} is {array.dtype}; expected floats")
        return array.astype(dtype, copy=False)

    def values(self, array: Array) -> Array | None:
        """Return an array of integers as NumPy's, to be checked; None where that would have to wait."""
        return array

    def place(self, array: Array, dtype: str) -> Array:
        """Return the array itself if it is contiguous and on the device, else a copy that is."""
        return _arrays.contiguous(array.astype(dtype, copy=False))

    def place_rows(self, array: Array, dtype: str) -> Array:
        """Return the array itself if only its last axis has unit stride and it is there, else a copy."""
        return _arrays.unit_stride(array)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return new memory for a result."""
        return _arrays.empty(shape, np.dtype(dtype))

    def give(self, array: Array, writeable: bool = True) -> Any:
        """Hand a result over.

        Other libraries have no read-only arrays, so `writeable` is a matter of NumPy alone.
        """
        if self._importer is not None:
            return self._importer(array)
        if not writeable:
            array = array[...]  # the caller's view, not the kernels' own
            array.flags.writeable = False
        return array

    def span(self, array: Array) -> Array:
        """Return an array of NumPy's with the same addresses, to compare them."""
        return array


def _leave(*arguments: Any) -> None:
    """Run nothing."""


class Backend(ABC):
    """Where layers live and are computed."""

    name: str
    """"cpu", "cuda:0", ..."""
    core: Any
    """The compiled module: Network, Weights, Reserve, Stream, forward, backward."""
    own: Library
    """For arrays that belong to no caller: parameters, gradients, state."""
    placement: Mapping[str, int] = {}
    """What a compiled Network is told beside its options."""

    def __reduce__(self) -> tuple[Any, ...]:
        return backend_of_device, (self.name,)  # what is copied or pickled goes on living in the same place

    @abstractmethod
    def check_dtype(self, dtype: DType) -> None:
        """Raise TypeError for a dtype that is not computed here."""

    def network(self, spec: Spec) -> Any:
        """Return the compiled side of a Spec."""
        return _network(self, spec)

    @abstractmethod
    def take_x(self, name: str, value: Any) -> tuple[Library, Array]:
        """Find where `value`, the x of a call, comes from, and take it."""

    def run_plain(self, compiled: Any) -> Callable[..., Any]:
        """Return what runs calls of plain arguments at once, and gives None for those that are to be checked.

        `compiled` are weights or a stream.  Only the CPU's have such a way, so here it is none.
        """
        return _leave

    @abstractmethod
    def array(self, value: Any, dtype: DType) -> Array:
        """Return a contiguous copy of an array of any backend."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """Return a new array of zeros."""

    @abstractmethod
    def clear(self, array: Array) -> None:
        """Set all elements to zero."""

    @abstractmethod
    def clear_rows(self, state: Array, rows: Any) -> None:
        """Set these rows, the second axis, of a stream's state to zero: a slice, indices or a bool mask."""

    @abstractmethod
    def step_counter(self) -> Array:
        """Return what counts the steps of an optimizer: an array whose first number they are."""

    @abstractmethod
    def update(
        self,
        rule: str,
        parameters: list[Array],
        gradients: list[Array],
        buffers: list[list[Array]],
        numbers: Mapping[str, float],
        counter: Array,
    ) -> None:
        """Make a step of an optimizer by one of the rules that `_core.update` lists, and count it."""

    def fixed(self, arrays: list[Array]) -> list[Array]:
        """Return what may be packed so that later changes of the arrays do not reach it."""
        return arrays

    @abstractmethod
    def reserve(self, checkpoint: int | None) -> Any:
        """Return memory for training calls; NotImplementedError for a checkpoint that cannot be had here."""

    def layer_reserve(self, spec: Spec, checkpoint: int | None) -> Any:
        """Return memory for the training calls of a layer, which it may count."""
        return self.reserve(checkpoint)

    def next_call(self, reserve: Any, number: int) -> int:
        """Return the number of the training call after the one with this number."""
        return (number + 1) % SEED_END

    def calls_made(self, reserve: Any, number: int) -> int:
        """Return the number that the next training call is to have if it finds another reserve."""
        return number


class Cpu(Backend):
    """The CPU, with NumPy's arrays."""

    name = "cpu"
    core = _core
    own = Library()

    def check_dtype(self, dtype: DType) -> None:
        if dtype not in DTYPES:
            raise TypeError(
                f"dtype is {dtype!r}; expected 'float32' or 'float64', or another device than 'cpu'"
            )

    def take_x(self, name: str, value: Any) -> tuple[Library, Array]:
        array = _arrays.take(name, value)  # what is no array is better told of than what has no library
        if isinstance(value, np.ndarray):
            return self.own, array
        return Library(_arrays.exporter(name, value)), array

    def run_plain(self, compiled: Any) -> Callable[..., Any]:
        run: Callable[..., Any] = compiled.run_plain
        return run

    def array(self, value: Any, dtype: DType) -> Array:
        return np.array(on_host(value), dtype, order="C")

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Array:
        return np.zeros(shape, dtype)

    def clear(self, array: Array) -> None:
        array.fill(0)

    def step_counter(self) -> Array:
        return np.zeros(1)

    def update(
        self,
        rule: str,
        parameters: list[Array],
        gradients: list[Array],
        buffers: list[list[Array]],
        numbers: Mapping[str, float],
        counter: Array,
    ) -> None:
        _core.update(rule, parameters, gradients, buffers, numbers, counter[0] + 1)
        counter[0] += 1

    def reserve(self, checkpoint: int | None) -> Any:
        return _core.Reserve(checkpoint or 0)

    def clear_rows(self, state: Array, rows: Any) -> None:
        state[:, rows] = 0


CPU = Cpu()


@functools.lru_cache(maxsize=256)
def _network(backend: Backend, spec: Spec) -> Any:
    zoneout_h, zoneout_c = (*spec.zoneout_of, 0.0)[:2]
    return backend.core.Network(
        cell=spec.cell,
        dtype=spec.dtype,
        input_size=spec.input_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        bidirectional=spec.bidirectional,
        bias=spec.bias,
        proj_size=spec.proj_size,
        peephole=spec.peephole,
        reset_after=spec.reset_after,
        nonlinearity=spec.nonlinearity,
        dropout=spec.dropout,
        recurrent_dropout=spec.recurrent_dropout,
        zoneout_h=zoneout_h,
        zoneout_c=zoneout_c,
        **backend.placement,
    )


def on_host(array: Array) -> NDArray[Any]:
    """Return an array of any backend as NumPy's."""
    return array if isinstance(array, np.ndarray) else array.numpy()


def brought_to_host(name: str, value: Any) -> Any:
    """Return a caller's array on a device as NumPy's; what is on the host, lists and None as they are."""
    if not _arrays.is_on_device(value):
        return value
    return on_host(backend_of_arrays([value]).own.take(name, value))


def kind(array: Array) -> str:
    """Return NumPy's letter for the kind of an array's dtype, which a `DeviceArray` has by name."""
    dtype = array.dtype
    if isinstance(dtype, np.dtype):
        return dtype.kind
    return {"float": "f", "bfloat": "f", "int": "i", "uint": "u", "bool": BOOLS}[dtype.rstrip("0123456789")]


def is_integer(array: Array) -> bool:
    """Whether it is of integers: tokens, if it is x."""
    return kind(array) in INTEGERS


def backend_of_device(device: object) -> Backend:
    """Find what `device` names: "cpu", "cuda" (the first), "cuda:1", ...

    Raises
    ------
    TypeError, ValueError
        If it names none.
    RuntimeError
        If that one cannot be had here; the message says why.
    """
    if not isinstance(device, str):
        raise TypeError(f"device is {device!r} ({type(device).__name__}); expected 'cpu' or 'cuda'")
    if device == "cpu":
        return CPU
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise ValueError(f"device is {device!r}; expected 'cpu' or 'cuda', or 'cuda:1' and so on")
    from ._device import cuda

    return cuda(int(index or 0), device)


def backend_of_arrays(arrays: Iterable[Any]) -> Backend:
    """Find where the first of a caller's arrays is; the CPU for none."""
    for array in arrays:
        if _arrays.is_on_device(array):
            from ._device import cuda_of_array

            return cuda_of_array(array)
        break
    return CPU
