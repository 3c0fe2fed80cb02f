"""The compiled CUDA kernels, where they were built.  Not public: `fastrnn._device` loads it.

Networks are run as by `fastrnn._core`, with device arrays in place of NumPy's; letters, shapes and names
are the same.  A call is queued on the stream of its x, and waits there for what the other arrays were last
used for.  Streams are numbered as DLPack does: 1 is the legacy default stream, 2 the one of the thread,
others are handles.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

class Flags:
    """As NumPy's."""

    @property
    def c_contiguous(self) -> bool: ...
    @property
    def aligned(self) -> bool: ...
    writeable: bool

class DeviceArray:
    """An array on a CUDA device: its own memory, a view, or another library's."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> str:
        """By name, since NumPy has no "bfloat16"."""
    @property
    def itemsize(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes."""
    @property
    def device(self) -> str:
        """ "cuda:0", ..."""
    @property
    def ptr(self) -> int:
        """Address on the device."""
    @property
    def stream(self) -> int:
        """The stream that its last use was queued on."""
    @property
    def flags(self) -> Flags: ...
    def follow(self, stream: int) -> None:
        """Make this the stream of its next use, which waits there for the last one."""
    def numpy(self) -> NDArray[Any]:
        """A copy on the host, bfloat16 as float32; waits."""
    def copy(self) -> DeviceArray: ...
    def __copy__(self) -> DeviceArray: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceArray: ...
    def __reduce__(self) -> tuple[Any, ...]:
        """By way of the host."""
    def reshape(self, *shape: int | Sequence[int]) -> DeviceArray:
        """A view, of a contiguous array."""
    def swapaxes(self, axis1: int, axis2: int) -> DeviceArray: ...
    def __getitem__(self, key: Any) -> DeviceArray:
        """A view: integers, slices, None and an ellipsis."""
    def __setitem__(self, key: Any, value: Any) -> None:
        """Copy in, with broadcasting, from the host or from an array of this dtype on this device."""
    def __len__(self) -> int: ...
    def __array__(self, *arguments: Any, **options: Any) -> NDArray[Any]:
        """TypeError: `numpy` is to be asked for."""
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

def empty(shape: Sequence[int], dtype: str, device: int, stream: int) -> DeviceArray: ...
def from_host(array: NDArray[Any], dtype: str, device: int, stream: int) -> DeviceArray:
    """Of the same dtype, or bfloat16 from float32."""

def from_dlpack(array: Any, stream: int, home: int = 0) -> DeviceArray:
    """Share the memory of another library's array, ordered on `stream`, which waits for it if it must.

    `home` is the stream that the library works on: the memory goes back in its order. If that is 0, unknown,
    it goes back when the last use is over, for which the host waits.
    """

def from_cuda_array_interface(array: Any, stream: int) -> DeviceArray:
    """Likewise; `home` is the stream that the interface names."""

class Network:
    def __init__(
        self,
        *,
        cell: str,
        dtype: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
        proj_size: int,
        peephole: str,
        reset_after: bool,
        nonlinearity: str,
        dropout: float,
        recurrent_dropout: float,
        zoneout_h: float,
        zoneout_c: float,
        device: int,
    ) -> None: ...
    def explain(self, steps: int, batch: int, training: bool, tokens: bool) -> dict[str, str]: ...
    def launches(self, steps: int, batch: int, backward: bool) -> list[dict[str, str | int | float]]:
        """Return those of that pass's persistent kernel that are possible, with or without a wish.

        Of each: strategy, ranks, columns, tile, and as estimate what the model says of one step, in seconds.
        """

class Weights:
    """Parameters for the forward kernels, which read them where they lie: nothing is copied."""

    def __init__(self, network: Network) -> None: ...
    def pack(self, parameters: Sequence[DeviceArray]) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Reserve:
    """What a training forward saves for backward; reused by the next forward it is given to."""

    def __init__(self) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def count_calls(self, device: int) -> None:
        """Count forwards with masks on the device from now on; the count is added to their `call`."""
    @property
    def counting(self) -> bool: ...
    @property
    def calls(self) -> int:
        """How many were counted; waits."""

def forward(
    network: Network,
    weights: Weights,
    x: DeviceArray,
    h0: DeviceArray | None,
    c0: DeviceArray | None,
    lengths: DeviceArray | None,
    reset: DeviceArray | None,
    y: DeviceArray,
    h_n: DeviceArray,
    c_n: DeviceArray | None,
    reserve: Reserve | None,
    seed: int,
    call: int,
) -> None: ...
def backward(
    network: Network,
    parameters: Sequence[DeviceArray],
    x: DeviceArray,
    h0: DeviceArray | None,
    c0: DeviceArray | None,
    lengths: DeviceArray | None,
    reset: DeviceArray | None,
    y: DeviceArray,
    reserve: Reserve,
    dy: DeviceArray | None,
    dh_n: DeviceArray | None,
    dc_n: DeviceArray | None,
    dx: DeviceArray | None,
    dh0: DeviceArray,
    dc0: DeviceArray | None,
    gradients: Sequence[DeviceArray],
    add: bool,
    seed: int,
    call: int,
) -> None: ...

class Stream:
    """As `_core.Stream`; c of a 16-bit network is float32."""

    def __init__(self, network: Network, weights: Weights, batch: int) -> None: ...
    def step(self, x: DeviceArray, rows: DeviceArray | None) -> DeviceArray: ...
    def run(self, x: DeviceArray, y: DeviceArray) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...
    @property
    def h(self) -> DeviceArray: ...
    @property
    def c(self) -> DeviceArray | None: ...

def clear_rows(array: DeviceArray, rows: DeviceArray) -> None:
    """array[:, rows] = 0"""

def scale(array: DeviceArray, factor: float, stream: int) -> None:
    """array *= factor"""

def sum_of_squares(array: DeviceArray, stream: int) -> float:
    """In double; waits."""

def matmul(
    a: DeviceArray,
    b: DeviceArray,
    c: DeviceArray,
    transpose_a: bool,
    transpose_b: bool,
    add: bool,
    stream: int,
) -> None:
    """c = op(a) op(b), or += with `add`; contiguous matrices."""

def softmax_cross_entropy(
    logits: DeviceArray,
    targets: DeviceArray,
    scored: DeviceArray,
    gradient: DeviceArray,
    scale: float,
    stream: int,
) -> float:
    """The sum of the losses of the scored rows; gradient (out) is that of this sum, times scale.  Waits."""

def update(
    rule: str,
    parameters: Sequence[DeviceArray],
    gradients: Sequence[DeviceArray],
    buffers: Sequence[Sequence[DeviceArray]],
    numbers: Mapping[str, float],
    state: DeviceArray,
    stream: int,
) -> None:
    """Make a step as `_core.update`, and count it in `state`: three float64, the first the steps made.

    Buffers of 16-bit parameters are float32.  All is checked before anything is changed.
    """

def set_float32_products(how: str) -> None:
    """ "automatic", "plain", "bf16x3" or "tf32"."""

def get_float32_products() -> str: ...
def set_wish(
    strategy: str = "", ranks: int = 0, columns: int = 0, tile: str = "", backward: bool = False
) -> None:
    """What all later calls, or their backward passes, insist on, of what is possible; nothing: all is chosen.

    strategy "step", "cta" or "cluster"; tile "narrow", "wide", "low" or "tall".  For tests and measurements.
    """

def why_unavailable() -> str:
    """Why there is no device; empty if there is one."""

def device_count() -> int: ...
def device_info(device: int) -> dict[str, Any]:
    """name, capability (major, minor), processors, memory."""

def driver_version() -> tuple[int, int]: ...
def runtime_version() -> tuple[int, int]: ...
def cublas() -> str:
    """Which cuBLAS is in use, or why there is none."""

def set_cublas_folders(folders: Sequence[str]) -> None:
    """Where to look for it before the loader's path."""

def synchronous() -> bool:
    """Whether FASTRNN_CUDA_SYNC is 1: every launch is waited for, and inputs on the device are checked."""

def synchronize(device: int, stream: int) -> None: ...
