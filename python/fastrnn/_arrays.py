"""Arrays in and out: NumPy as it is, every other library by DLPack, without a copy on the CPU.

Nothing here knows about recurrent layers.  Messages name the argument, what came and what was
expected; the callers add shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core

Array = NDArray[Any]
Export = Callable[[Array], Any]
"""Hands a NumPy array to the caller's library, sharing its memory."""

# DLPack device types whose memory this process can read directly: the CPU, and host memory pinned by
# CUDA or ROCm.
_HOST_DEVICES = (1, 3, 11)
_CUDA_DEVICES = (2, 13)  # and managed memory


def take(name: str, value: Any) -> Array:
    """Return a NumPy view of an array of any library; no copy."""
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"{name} is a masked array, whose mask would be lost; pass {_expression(name)}.filled(...)"
            )
        return np.asarray(value)
    if not _is_array(value):
        if is_jax(value):
            raise TypeError(
                f"{name} has type {type(value).__name__}; expected an array with values: what JAX traces, as "
                f"under jit, grad and vmap, is for the functions of fastrnn.jax"
            )
        raise TypeError(
            f"{name} has type {type(value).__name__}; expected an array, as from "
            f"np.asarray({_expression(name)})"
        )
    refuse_grad(name, value)
    try:
        device = int(value.__dlpack_device__()[0])
        array = np.from_dlpack(value) if device in _HOST_DEVICES else None
    except Exception as error:  # whatever another library may raise
        kind = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{name} ({kind}) cannot be taken by DLPack: {error}") from error
    if array is None:
        raise ValueError(f"{name} is on DLPack device type {device}; expected the CPU: copy it there first")
    return array


def is_jax(value: Any) -> bool:
    """Tell whether it is an array of JAX, with values or traced; they are taken never to change."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)


def refuse_grad(name: str, value: Any) -> None:
    """Raise TypeError for a tensor whose graph would be lost."""
    if getattr(value, "requires_grad", False):
        raise TypeError(
            f"{name} requires grad, but no autograd graph is recorded here: pass "
            f"{_expression(name)}.detach() and call backward() of the layer (fastrnn.torch has modules "
            f"with autograd)"
        )


def detached(value: Any) -> Any:
    """Return a checkpoint's tensor without its graph."""
    return value.detach() if getattr(value, "requires_grad", False) else value


def plain(value: Any) -> Any:
    """Return a checkpoint's tensor without its graph, and in a width that NumPy has."""
    value = detached(value)
    kind = str(getattr(value, "dtype", ""))
    if kind == "torch.bfloat16":
        return value.float()
    if kind == "bfloat16" and hasattr(value, "astype"):  # of JAX, or of ml_dtypes in NumPy
        return value.astype("float32")
    return value


def is_on_device(value: Any) -> bool:
    """Tell whether it is an array on a CUDA device, of any library."""
    if isinstance(value, np.ndarray | type):
        return False
    if hasattr(value, "__dlpack_device__"):
        try:
            return int(value.__dlpack_device__()[0]) in _CUDA_DEVICES
        except Exception:  # whatever another library may raise: `take` names it
            return False
    return hasattr(value, "__cuda_array_interface__")


def _is_array(value: Any) -> bool:
    """Tell whether it is an array of some library; an array class is none, for all its methods."""
    return (
        hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__") and not isinstance(value, type)
    )


def _expression(name: str) -> str:
    """Return the Python of a name as messages show it: ``state[0]`` of ``state[0] (h)``."""
    return name.partition(" (")[0]


def check_float(name: str, array: Array, dtype: np.dtype[Any], value: Any) -> Array:
    """Demand exactly this dtype; only the byte order is converted.  `value` is what the caller passed."""
    if array.dtype == dtype:
        return array
    if array.dtype.newbyteorder("=") == dtype:
        return array.astype(dtype)
    advice = ""
    if array.dtype.kind in "biuf":
        convert = f".astype('{dtype}')" if hasattr(value, "astype") else f".to(torch.{dtype})"
        advice = f": convert it with {_expression(name)}{convert}, or choose dtype="
    raise TypeError(f"{name} is {array.dtype}; expected {dtype}{advice}")


INTEGERS, BOOLS = "iu", "b"
"""Kinds of dtype, for `take_listed`."""


def take_listed(name: str, value: Any, kinds: str, expected: str) -> Array:
    """Take an array of one of these kinds of dtype; a list or tuple, nested or not, will do.

    `expected` names the kinds in messages.
    """
    if isinstance(value, list | tuple):
        try:
            array = np.asarray(value)
        except ValueError as error:  # ragged
            raise TypeError(f"{name} has type {type(value).__name__} that makes no array: {error}") from error
        if not array.size:
            array = array.astype(bool if kinds == BOOLS else np.int64)
        if array.dtype.kind != "b" and any(isinstance(item, bool | np.bool_) for item in value):
            raise TypeError(f"{name} holds a bool beside numbers; expected {expected}")
    else:
        array = take(name, value)
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name} is {array.dtype}; expected {expected}")
    return array


def exporter(name: str, value: Any) -> Export:
    """Find how results go back to the library that `value` came from."""
    if isinstance(value, np.ndarray):
        return as_it_is
    importer: Export | None
    if hasattr(value, "__array_namespace__"):
        importer = getattr(value.__array_namespace__(), "from_dlpack", None)
    else:
        importer = _dlpack_importer(type(value))
    if importer is None:
        raise TypeError(
            f"{name} has type {type(value).__name__}, whose library has no from_dlpack to take results back; "
            f"pass np.from_dlpack({name})"
        )
    return importer


def as_it_is(array: Array) -> Array:
    """Hand over to NumPy itself: an `Export`."""
    return array


def _dlpack_importer(kind: type) -> Any:
    """Find `from_dlpack` of the nearest package that defines this array type or a base of it."""
    for base in kind.__mro__:
        package = base.__module__
        while package:
            importer = getattr(sys.modules.get(package), "from_dlpack", None)
            if importer is not None:
                return importer
            package = package.rpartition(".")[0]
    return None


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a new array; a large one begins with a cache line, as those of `np.empty` seldom do."""
    return _core.empty(shape, dtype)


def unit_stride(array: Array) -> Array:
    """Return the array itself if a kernel can read it in place, else a contiguous copy.

    Kernels take any strides but the last, which must be one element; negative ones are fine.
    """
    if array.flags.aligned and array.strides[-1] == array.itemsize:
        return array
    return array.copy()


def contiguous(array: Array) -> Array:
    """Return the array itself if it is C-contiguous and aligned, else a copy that is."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else array.copy()


def expect_shape(name: str, array: Array, axes: Mapping[str, int | None]) -> None:
    """Compare with named axes, in order; an axis of None may have any size."""
    shape = array.shape
    if len(shape) == len(axes):
        for have, size in zip(shape, axes.values(), strict=True):
            if size is not None and have != size:
                break
        else:
            return
    raise ValueError(f"{name} has shape {shape}; expected {describe_axes(axes)}")


def describe_axes(axes: Mapping[str, int | None]) -> str:
    """Write ``(T, B, I) = (T, B, 3)``: the letters, and the sizes where they are given."""
    comma = "," if len(axes) == 1 else ""
    letters = ", ".join(axes) + comma
    sizes = ", ".join(letter if size is None else str(size) for letter, size in axes.items()) + comma
    return f"({letters})" if letters == sizes else f"({letters}) = ({sizes})"


def take_output(
    name: str, value: Any, dtype: np.dtype[Any], axes: Mapping[str, int | None], *, strided: bool = False
) -> Array:
    """Take an array that a kernel writes into: exactly this dtype and shape, never a copy.

    `strided` allows any strides but the last, which is one element, as long as no two elements share memory.
    """
    if not _is_array(value):
        raise TypeError(f"{name} has type {type(value).__name__}; expected an array of {dtype} to write into")
    array = take(name, value)
    if array.dtype != dtype:
        raise TypeError(f"{name} is {array.dtype}; expected {dtype}, native byte order")
    check_output(name, array, axes, array.flags.writeable, strided=strided)
    return array


def check_output(
    name: str, array: Array, axes: Mapping[str, int | None], writeable: bool, *, strided: bool
) -> None:
    """Check shape and strides of an array that a kernel writes into, without touching its memory."""
    expect_shape(name, array, axes)
    if not writeable:
        raise ValueError(f"{name} is read-only; expected an array to write into")
    flags = array.flags
    unit = array.shape[-1] == 1 or array.strides[-1] == array.itemsize if strided else flags.c_contiguous
    if array.size and not (flags.aligned and unit):
        wanted = "a last axis of unit stride" if strided else "a C-contiguous array"
        raise ValueError(f"{name} has strides {array.strides}; expected {wanted}, aligned")
    if strided and array.size and _overlaps_itself(array):
        raise ValueError(f"{name} has strides {array.strides}; expected every element in memory of its own")


def _overlaps_itself(array: Array) -> bool:
    """Tell whether some axis does not step over all that the axes of smaller stride span."""
    span = array.itemsize
    for stride, size in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if size > 1:
            if stride < span:
                return True
            span += stride * (size - 1)
    return False


_OVERLAP_WORK: Any = 100_000  # NumPy's stubs know the two special values alone
"""Bound on the search for common elements, exponential at worst; past it arrays count as overlapping."""


def refuse_overlap(outputs: Mapping[str, Array], inputs: Mapping[str, Array | None]) -> None:
    """Raise ValueError if an output shares memory with an input or with another output."""
    others = {key: array for key, array in inputs.items() if array is not None}
    for name, output in outputs.items():
        for other, array in others.items():
            if np.may_share_memory(output, array, max_work=_OVERLAP_WORK):
                raise ValueError(f"{name} overlaps {other} in memory; expected separate memory")
        others[name] = output
