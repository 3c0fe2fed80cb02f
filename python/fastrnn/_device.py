"""CUDA devices: the module `_cuda`, the backend over it, and the libraries that have arrays there.

`_cuda` is imported when a device is first asked for, and that import calls no CUDA function, so the package
can be imported, and a process forked, where there is neither toolkit nor driver.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays
from ._backends import SEED_END, Array, Backend, Library, kind
from .layouts import DType, Spec

LEGACY_STREAM = 1
"""The default stream that all of a process shares, by DLPack's number."""

_LEAST_CAPABILITY = (8, 0)
"""The lowest compute capability that kernels are compiled for."""


# ------------------------------------------------------------------------------------------ module


@functools.lru_cache(maxsize=1)
def _imported() -> tuple[Any, str]:
    """Return the module, or why there is none."""
    try:
        module = importlib.import_module("fastrnn._cuda")
    except ModuleNotFoundError:
        return None, "this build has no CUDA kernels (there was no nvcc, or FASTRNN_CUDA was OFF)"
    except ImportError as error:
        return None, f"the CUDA kernels cannot be loaded: {error}"
    # Where the wheels nvidia-cublas and nvidia-cublas-cu12 put it.
    module.set_cublas_folders(
        [
            str(folder)
            for path in sys.path
            for folder in (Path(path, "nvidia/cu13/lib"), Path(path, "nvidia/cublas/lib"))
            if folder.is_dir()
        ]
    )
    return module, ""


def why_unavailable() -> str:
    """Return why ``device="cuda"`` cannot be had; nothing if it can."""
    module, reason = _imported()
    return reason if module is None else module.why_unavailable()


def module() -> Any:
    """Return `_cuda`, where `why_unavailable` has nothing to say."""
    return _imported()[0]


def describe() -> dict[str, Any]:
    """Return what `fastrnn.info` says of CUDA."""
    reason = why_unavailable()
    if reason:
        return {"cuda": f"not available: {reason}"}
    core = module()
    devices = []
    for index in range(core.device_count()):
        device = core.device_info(index)
        capability = _dotted(device["capability"])
        devices.append(f"cuda:{index} {device['name']} ({capability}, {device['memory'] >> 30} GiB)")
    return {
        "cuda": devices,
        "cuda_runtime": _dotted(core.runtime_version()),
        "cuda_driver": _dotted(core.driver_version()),
        "cublas": core.cublas(),
        "float32_products": core.get_float32_products(),
    }


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def set_float32_products(how: str) -> None:
    """Choose how products of float32 are computed from now on."""
    core, reason = _imported()
    if core is None:
        raise RuntimeError(f"CUDA is not available: {reason}")
    core.set_float32_products(how)


def get_float32_products() -> str:
    """Return how products of float32 are computed."""
    core, _ = _imported()
    return "automatic" if core is None else str(core.get_float32_products())


def cuda(index: int, device: str) -> Cuda:
    """Return the backend of a device; `device` is what the caller called it."""
    reason = why_unavailable()
    if reason:
        raise RuntimeError(f"device={device!r} is not available: {reason}")
    count = module().device_count()
    if index >= count:
        raise RuntimeError(f"device={device!r} is not available: there are {count}, numbered from 0")
    return _backend(module(), index)


@functools.lru_cache
def _backend(module: Any, index: int) -> Cuda:
    capability = module.device_info(index)["capability"]
    if capability < _LEAST_CAPABILITY:
        raise RuntimeError(
            f"device='cuda:{index}' is not available: it has compute capability {_dotted(capability)}; "
            f"expected at least {_dotted(_LEAST_CAPABILITY)}"
        )
    return Cuda(module, index)


def cuda_of_array(value: Any) -> Cuda:
    """Return the backend of the device that an array is on."""
    if _is_device_array(value):
        index = int(value.device.partition(":")[2])
    elif hasattr(value, "__dlpack_device__"):
        index = int(value.__dlpack_device__()[1])
    else:
        index = int(getattr(getattr(value, "device", 0), "id", 0))
    return cuda(index, f"cuda:{index}")


def _is_device_array(value: Any) -> bool:
    core = module()
    return core is not None and isinstance(value, core.DeviceArray)


# ----------------------------------------------------------------------------------------- streams


def current_stream(value: Any, index: int) -> int | None:
    """Return the stream that the array's library is working on, in DLPack's numbers; None if unknown."""
    if _is_device_array(value):
        return int(value.stream)
    if _is_of("torch", "Tensor", value):
        return int(sys.modules["torch"].cuda.current_stream(index).cuda_stream) or LEGACY_STREAM
    if _is_of("cupy", "ndarray", value):
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(index):
            return int(cupy.cuda.getcurrent_stream().ptr) or LEGACY_STREAM
    return None


def capsule_maker(value: Any) -> Callable[..., Any]:
    """Return what makes the DLPack capsule of an array on a device; called by `_cuda.from_dlpack`.

    torch, from 2.9 on, refuses unless the tensor is on its own current device, whatever the stream.
    """
    make: Callable[..., Any] = value.__dlpack__
    if not _is_of("torch", "Tensor", value):
        return make
    cuda = sys.modules["torch"].cuda
    index = value.get_device()
    if index == cuda.current_device():
        return make

    def make_there(**options: Any) -> Any:
        with cuda.device(index):
            return make(**options)

    return make_there


def _is_of(package: str, name: str, value: Any) -> bool:
    """Whether a value is of this class of a package, or of a subclass from anywhere; imports nothing."""
    return isinstance(value, getattr(sys.modules.get(package), name, ()))


def _ambient_stream(index: int) -> int:
    """Return the stream for work on no caller's array: that of the framework that the process uses."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.current_stream(index).cuda_stream) or LEGACY_STREAM
    return LEGACY_STREAM


# ----------------------------------------------------------------------------------------- arrays


class DeviceLibrary(Library):
    """Takes arrays to a device: those of the host are copied over, and back."""

    def __init__(
        self,
        backend: Cuda,
        stream: int | None = None,
        give: Callable[[Array], Any] | None = None,
        empty: Callable[[tuple[int, ...], str], Array] | None = None,
    ) -> None:
        super().__init__(give)
        self._backend = backend
        self._core = backend.core
        self._known_stream = stream
        self._empty = empty

    @property
    def _stream(self) -> int:
        return self._backend.stream if self._known_stream is None else self._known_stream

    def _from_device(self, name: str, value: Any) -> Array | None:
        """Return an array of a device, of any library, without a copy; None for one of the host."""
        if isinstance(value, self._core.DeviceArray):
            array = value
        elif _arrays.is_on_device(value):
            _arrays.refuse_grad(name, value)
            try:
                if hasattr(value, "__dlpack__"):
                    stream = self._stream
                    home = current_stream(value, self._backend.index)
                    array = self._core.from_dlpack(value, stream, home or 0)
                else:
                    array = self._core.from_cuda_array_interface(value, self._stream)
            except Exception as error:  # whatever another library may raise
                raise TypeError(f"{name} ({type(value).__name__}) cannot be taken: {error}") from error
        else:
            return None
        if array.device != self._backend.name:
            raise ValueError(
                f"{name} is on {array.device}; expected {self._backend.name}: copy it there first"
            )
        return array

    def take(self, name: str, value: Any) -> Array:
        array = self._from_device(name, value)
        return _arrays.take(name, value) if array is None else array

    def check_float(self, name: str, array: Array, dtype: str, value: Any) -> Array:
        if isinstance(array, np.ndarray):
            return _arrays.check_float(name, array, _host_dtype(dtype), value)
        if array.dtype != dtype:
            raise TypeError(f"{name} is {array.dtype} on {array.device}; expected {dtype}")
        return array

    def take_listed(self, name: str, value: Any, kinds: str, expected: str) -> Array:
        array = self._from_device(name, value)
        if array is None:
            return _arrays.take_listed(name, value, kinds, expected)
        if kind(array) not in kinds:
            raise TypeError(f"{name} is {array.dtype}; expected {expected}")
        if array.dtype not in ("int64", "bool"):
            raise TypeError(f"{name} is {array.dtype} on {array.device}; expected int64 there")
        return array

    def take_output(
        self,
        name: str,
        value: Any,
        dtype: str,
        axes: Mapping[str, int | None],
        *,
        strided: bool = False,
    ) -> Array:
        array = self._from_device(name, value)
        if array is None:
            raise TypeError(
                f"{name} has type {type(value).__name__}; "
                f"expected an array on {self._backend.name} to write into"
            )
        if array.dtype != dtype:
            raise TypeError(f"{name} is {array.dtype}; expected {dtype}")
        _arrays.check_output(name, self.span(array), axes, array.flags.writeable, strided=strided)
        return array

    def convert(self, name: str, value: Any, dtype: str) -> Array:
        value = _arrays.detached(value)
        array = self._from_device(name, value)
        if array is not None:
            if kind(array) != "f":
                raise TypeError(f"{name} is {array.dtype}; expected floats")
            if array.dtype == dtype:
                return array
            value = array.numpy()
        return super().convert(name, value, _host_dtype(dtype).name)

    def values(self, array: Array) -> NDArray[Any] | None:
        if isinstance(array, np.ndarray):
            return array
        return array.numpy() if self._core.synchronous() else None

    def place(self, array: Array, dtype: str) -> Array:
        if isinstance(array, np.ndarray):
            if dtype != "bfloat16":
                array = array.astype(dtype, copy=False)
            return self._core.from_host(array, dtype, self._backend.index, self._stream)
        return array if array.flags.c_contiguous and array.flags.aligned else self._copy(array)

    def place_rows(self, array: Array, dtype: str) -> Array:
        if isinstance(array, np.ndarray):
            return self.place(array, dtype)
        unit = array.shape[-1] == 1 or array.strides[-1] == array.itemsize
        return array if unit and array.flags.aligned else self._copy(array)

    def _copy(self, array: Array) -> Array:
        array.follow(self._stream)  # and so into the graph, if the call is being captured
        return array.copy()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        if self._empty is not None:
            return self._empty(shape, dtype)
        return self._core.empty(shape, dtype, self._backend.index, self._stream)

    def give(self, array: Array, writeable: bool = True) -> Any:
        return array if self._importer is None else self._importer(array)

    def span(self, array: Array) -> NDArray[Any]:
        return array if isinstance(array, np.ndarray) else np.asarray(_Span(array))


def put_back(array: NDArray[Any], dtype: str, index: int) -> Array:
    """Return an array that was pickled to the device of this number."""
    backend = cuda(index, f"cuda:{index}")
    return backend.core.from_host(array, dtype, index, backend.stream)


class _Span:
    """The addresses of a device array, in NumPy's terms; what is there must not be touched."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = {
            "data": (array.ptr, True),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.itemsize}",
            "version": 3,
        }


def _host_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype that an array of the host has for one of the device: NumPy has no bfloat16."""
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


# ----------------------------------------------------------------------------------------- backend


class Cuda(Backend):
    """A CUDA device."""

    def __init__(self, core: Any, index: int) -> None:
        self.name = f"cuda:{index}"
        self.index = index
        self.core = core
        self.own = DeviceLibrary(self)
        self.placement = {"device": index}

    @property
    def stream(self) -> int:
        """The stream for work on no caller's array."""
        return _ambient_stream(self.index)

    def check_dtype(self, dtype: DType) -> None:
        pass

    def take_x(self, name: str, value: Any) -> tuple[Library, Array]:
        if not _arrays.is_on_device(value):
            array = _arrays.take(name, value)
            export = _arrays.exporter(name, value)
            return DeviceLibrary(self, give=lambda result: export(result.numpy())), array
        library = self._library_of(name, value)
        return library, library.take(name, value)

    def _library_of(self, name: str, value: Any) -> DeviceLibrary:
        stream = current_stream(value, self.index) or LEGACY_STREAM
        if isinstance(value, self.core.DeviceArray) or not hasattr(value, "__dlpack__"):
            return DeviceLibrary(self, stream)
        if _is_of("torch", "Tensor", value):
            torch = sys.modules["torch"]

            # Results of torch's own memory: its allocator knows of streams and of graphs that are captured.
            def empty(shape: tuple[int, ...], dtype: str) -> Array:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.name)
                return self.core.from_dlpack(tensor, stream, stream)

            return DeviceLibrary(self, stream, torch.from_dlpack, empty)
        return DeviceLibrary(self, stream, _arrays.exporter(name, value))

    def array(self, value: Any, dtype: DType) -> Array:
        if isinstance(value, np.ndarray):
            array = value.astype(_host_dtype(dtype), order="C", copy=False)
            return self.core.from_host(array, dtype, self.index, self.stream)
        if value.device == self.name and value.dtype == dtype:
            return value.copy()
        return self.array(value.numpy(), dtype)

    def zeros(self, shape: tuple[int, ...], dtype: DType) -> Array:
        array = self.own.empty(shape, dtype)
        array[...] = 0
        return array

    def clear(self, array: Array) -> None:
        array.follow(self.stream)
        array[...] = 0

    def scale(self, array: Array, factor: float) -> None:
        """Multiply in place."""
        self.core.scale(array, factor, self.stream)

    def sum_of_squares(self, array: Array) -> float:
        """Return the sum of the squares of all elements, formed in float64."""
        return float(self.core.sum_of_squares(array, self.stream))

    def step_counter(self) -> Array:
        # Steps are counted on the device, so that in a graph every replay is one.
        return self.zeros((3,), "float64")

    def update(
        self,
        rule: str,
        parameters: list[Array],
        gradients: list[Array],
        buffers: list[list[Array]],
        numbers: Mapping[str, float],
        counter: Array,
    ) -> None:
        self.core.update(rule, parameters, gradients, buffers, numbers, counter, self.stream)

    def clear_rows(self, state: Array, rows: Any) -> None:
        if isinstance(rows, slice):
            state[:, rows] = 0
        else:
            indices = np.flatnonzero(rows) if rows.dtype == bool else rows
            self.core.clear_rows(state, self.own.place(indices, "int64"))

    def fixed(self, arrays: list[Array]) -> list[Array]:
        return [array.copy() for array in arrays]  # weights are read where they lie

    def reserve(self, checkpoint: int | None) -> Any:
        if checkpoint is not None:
            raise NotImplementedError(
                f"checkpoint is {checkpoint}, which device {self.name!r} does not have; expected None, or "
                f"device 'cpu'"
            )
        return self.core.Reserve()

    def layer_reserve(self, spec: Spec, checkpoint: int | None) -> Any:
        # Calls with masks are counted on the device, so that a graph draws new ones at every replay.
        reserve = self.reserve(checkpoint)
        if spec.has_state_noise or (spec.dropout and spec.num_layers > 1):
            reserve.count_calls(self.index)
        return reserve

    def next_call(self, reserve: Any, number: int) -> int:
        return number if reserve.counting else super().next_call(reserve, number)

    def calls_made(self, reserve: Any, number: int) -> int:
        return (number + int(reserve.calls)) % SEED_END
