"""Device arrays: do copies, views and assignments do what NumPy's do, and do capsules keep memory alive?"""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
from typing import Any

import numpy as np
import pytest
from devices import device_array
from fastrnn import _device

pytestmark = pytest.mark.cuda

DTYPES = ["float32", "float64", "float16", "int64", "int32", "uint8", "bool"]


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(dtype: str) -> None:
    array = numbers(3, 4, dtype=dtype)
    there = device_array(array)
    assert there.shape == (3, 4)
    assert (there.ndim, there.size, there.nbytes, there.dtype) == (2, 12, array.nbytes, dtype)
    assert there.strides == array.strides
    assert repr(there) == f"DeviceArray((3, 4), {dtype}, cuda:0)"
    np.testing.assert_array_equal(there.numpy(), array)
    with pytest.raises(TypeError, match=r"the array is on cuda:0; numpy\(\) copies it to the host"):
        np.asarray(there)


def test_bfloat16_is_rounded_to_even() -> None:
    values = np.array([1, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -(2.0**-140), np.inf, np.nan, 3.3e38], "float32")
    back = device_array(values, "bfloat16").numpy()
    bits = values.view("uint32").astype("uint64")
    expected = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype("uint32").view("float32")
    np.testing.assert_array_equal(back[~np.isnan(values)], expected[~np.isnan(values)])
    assert np.isnan(back[5])


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), 1),
        (slice(None, None, -1), slice(1, None, 2)),
        (Ellipsis, None, slice(2)),
        (1, 2, 0),
        (None, slice(3, 1), Ellipsis),
        -1,
        slice(5, None),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bool"])
def test_views(key: Any, dtype: str) -> None:
    array = numbers(4, 3, 2, dtype=dtype)
    there = device_array(array)
    view = there[key]
    assert view.shape == array[key].shape
    np.testing.assert_array_equal(view.numpy(), array[key])
    np.testing.assert_array_equal(view.copy().numpy(), array[key])
    array[key] = 1
    there[key] = 1
    np.testing.assert_array_equal(there.numpy(), array)
    np.testing.assert_array_equal(there.swapaxes(0, -1).numpy(), array.swapaxes(0, -1))


@pytest.mark.parametrize("value", [numbers(3, 2), numbers(2), 7.5, [[1], [2], [3]], numbers(1, 3, 1)])
def test_assignment_broadcasts(value: Any) -> None:
    array = numbers(4, 3, 2)
    there = device_array(array)
    array[1:3] = value
    there[1:3] = value
    np.testing.assert_array_equal(there.numpy(), array)
    if isinstance(value, np.ndarray):
        there[0] = device_array(value)[...] if value.ndim < 3 else device_array(value[0])
        array[0] = value if value.ndim < 3 else value[0]
        np.testing.assert_array_equal(there.numpy(), array)


def test_what_is_refused() -> None:
    there = device_array(numbers(4, 3))
    with pytest.raises(ValueError, match=r"array of shape \(2,\) to one of shape \(4, 3\)"):
        there[...] = np.ones(2)
    with pytest.raises(TypeError, match="could not assign float64 on a device to float32"):
        there[...] = device_array(numbers(4, 3, dtype="float64"))
    with pytest.raises(IndexError, match="too many indices"):
        there[0, 0, 0]
    with pytest.raises(IndexError, match="index 4 is out of range"):
        there[4]
    with pytest.raises(IndexError, match="integers, slices"):
        there[[0, 1]]
    there.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        there[0] = 1


@pytest.mark.parametrize("key", [True, np.zeros(4, bool), np.array([0, 1]), 1.0, "0"])
def test_an_index_of_another_kind_is_refused(key: Any) -> None:
    there = device_array(numbers(4, 3))
    for use in lambda: there[key], lambda: there.__setitem__(key, 1):
        with pytest.raises(IndexError, match="a device array takes integers, slices, None and"):
            use()
    np.testing.assert_array_equal(there[np.int64(1)].numpy(), numbers(4, 3)[1])
    with pytest.raises(IndexError, match="index-sized integer"):
        there[2**70]


@pytest.mark.parametrize(
    ("to", "start"),
    [
        ((...,), (slice(None, None, -1),)),
        ((slice(1, None),), (slice(None, -1),)),
        ((slice(None), slice(1, 3)), (slice(None), slice(0, 2))),
        ((slice(2, None),), (0,)),
        ((...,), (...,)),
    ],
)
def test_an_array_is_assigned_its_own_elements(to: Any, start: Any) -> None:
    """As they were before the first of them was written."""
    array = numbers(4, 3, 2)
    there = device_array(array)
    array[to] = array[start].copy()
    there[to] = there[start]
    np.testing.assert_array_equal(there.numpy(), array)


class _Pinned:
    """An array in memory of the host that CUDA has pinned."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 3, 0

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        return numbers(4, 3)


def test_pinned_memory_is_of_the_host() -> None:
    there = device_array(np.zeros((4, 3), "float32"))
    there[...] = _Pinned()
    np.testing.assert_array_equal(there.numpy(), numbers(4, 3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies(make: Any, dtype: str) -> None:
    there = device_array(numbers(4, 3, dtype="float32" if dtype == "bfloat16" else dtype), dtype)
    view = there[1:, ::2]
    view.flags.writeable = False
    twin = make(view)
    assert (twin.dtype, twin.device, twin.flags.writeable) == (dtype, "cuda:0", True)
    np.testing.assert_array_equal(twin.numpy(), view.numpy())
    before = twin.numpy()
    there[...] = 0
    np.testing.assert_array_equal(twin.numpy(), before)


@pytest.mark.parametrize("options", [{}, {"max_version": (1, 0)}], ids=["plain", "versioned"])
def test_capsules_share_and_keep_memory(options: dict[str, Any]) -> None:
    there = device_array(numbers(4, 3))[1:, ::2]
    capsule = there.__dlpack__(stream=1, **options)

    class Producer:
        def __dlpack__(self, **_: Any) -> Any:
            return capsule

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    taken = _device.module().from_dlpack(Producer(), 1)
    assert taken.ptr == there.ptr
    assert taken.strides == there.strides
    there[...] = 5
    del there
    gc.collect()
    assert (taken.numpy() == 5).all()
    with pytest.raises(ValueError, match="PyCapsule"):
        _device.module().from_dlpack(Producer(), 1)  # a capsule is taken once


def test_export_rules() -> None:
    there = device_array(numbers(4, 3))
    assert there.__dlpack_device__() == (2, 0)
    with pytest.raises(BufferError, match=r"numpy\(\) copies it to the host"):
        there.__dlpack__(dl_device=(1, 0))
    with pytest.raises(ValueError, match="stream is 0; expected None"):
        there.__dlpack__(stream=0)
    for stream in None, -1, 1, 2:
        there.__dlpack__(stream=stream)
    assert there.stream == 2  # the array follows its user
    there.flags.writeable = False
    assert there.__cuda_array_interface__["data"] == (there.ptr, True)
    taken = _device.module().from_dlpack(there, 1)
    assert not taken.flags.writeable
    copied = _device.module().from_dlpack(_Copied(there), 1)
    assert copied.ptr != there.ptr


def test_what_capsules_say_of_the_array() -> None:
    there = device_array(numbers(4, 3))
    assert flags_of(there.__dlpack__(max_version=(1, 0))) == 0
    assert flags_of(there.__dlpack__(max_version=(1, 0), copy=True)) == 2  # DLPACK_FLAG_BITMASK_IS_COPIED
    there.flags.writeable = False
    assert flags_of(there.__dlpack__(max_version=(1, 0))) == 1  # DLPACK_FLAG_BITMASK_READ_ONLY
    assert flags_of(there.__dlpack__(max_version=(1, 0), copy=True)) == 2
    for versions in {}, {"max_version": (0, 8)}:
        with pytest.raises(BufferError, match=r"the array is read-only, which DLPack before version 1"):
            there.__dlpack__(**versions)
        there.__dlpack__(**versions, copy=True)


def flags_of(capsule: Any) -> int:
    """Return DLManagedTensorVersioned::flags, behind its version and two pointers."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_uint64.from_address(get(capsule, b"dltensor_versioned") + 24).value


class _Copied:
    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options, copy=True)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_cuda_array_interface() -> None:
    there = device_array(numbers(4, 3, 2))
    view = there.swapaxes(0, 1)
    interface = view.__cuda_array_interface__
    assert interface["shape"] == (3, 4, 2)
    assert interface["strides"] == view.strides
    assert interface["version"] == 3
    assert there.__cuda_array_interface__["strides"] is None
    assert not hasattr(device_array(numbers(2), "bfloat16"), "__cuda_array_interface__")

    class Holder:
        __cuda_array_interface__ = interface

    taken = _device.module().from_cuda_array_interface(Holder(), 1)
    assert taken.ptr == there.ptr
    np.testing.assert_array_equal(taken.numpy(), numbers(4, 3, 2).swapaxes(0, 1))


def test_reshape() -> None:
    there = device_array(numbers(4, 3, 2))
    for shape in ((6, 4),), (6, 4), ([6, 4],):
        np.testing.assert_array_equal(there.reshape(*shape).numpy(), numbers(6, 4))
    with pytest.raises(ValueError, match=r"of shape \(4, 3, 2\) as \(5, 4\)"):
        there.reshape(5, 4)
    with pytest.raises(ValueError, match="has to be contiguous"):
        there.swapaxes(0, 1).reshape(24)


def test_arrays_of_no_elements() -> None:
    there = device_array(np.empty((0, 3), "float32"))
    assert there.numpy().shape == (0, 3)
    there[...] = 1
    assert there.copy().shape == (0, 3)
    # A view may begin anywhere; the protocol wants 0.
    view = device_array(np.empty((3, 0), "float32"))[1]
    assert view.__cuda_array_interface__["data"] == (0, False)
    assert _device.module().from_cuda_array_interface(view, 1).shape == (0,)
