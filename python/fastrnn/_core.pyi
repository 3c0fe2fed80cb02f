"""The compiled CPU kernels.  Not public: `fastrnn.functional` checks arguments, this trusts it.

Letters as in `fastrnn.layouts`.  Every array argument has the network's dtype, is aligned, and is
C-contiguous unless its line says otherwise.  Shapes are checked again here, but the messages are
meant for developers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

class Network:
    """Shape and options of a stack (the compiled side of `layouts.Spec`); immutable."""

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
    ) -> None: ...
    def explain(
        self,
        steps: int,
        batch: int,
        training: bool,
        tokens: bool,
        checkpoint: int = 0,
        quantized: str | None = None,
    ) -> dict[str, str]:
        """Which kernel would run for a call of this size, and why: kernel, isa, weights, threads, ..."""

class Weights:
    """Parameters packed for the forward kernels of the instruction set in force.

    `quantized`: "bfloat16" or "int8", for a float32 network and inference alone.
    """

    def __init__(self, network: Network, quantized: str | None = None) -> None: ...
    def pack(self, parameters: Sequence[object]) -> None:
        """Pack (again) from arrays, or tensors that are read in place, in `Spec.parameter_shapes` order.

        Memory is reused.
        """
    @overload
    def run_plain(self, layouts: tuple[str, ...], x: object, state: object) -> Any: ...
    @overload
    def run_plain(
        self,
        layouts: tuple[str, ...],
        x: object,
        state: object,
        reserve: Reserve | None,
        tensors: bool,
        parameters: Sequence[object] | None,
    ) -> Any:
        """Run a whole call in the layout of x's rank: "TB", "BT" or "T", of a cell "B" or "".

        Returns what a layer does, in new arrays: (y, h_n) or (y, (h_n, c_n)), of a cell h_n or (h_n, c_n).
        None, with nothing done, unless x and the state (None, an array, or a tuple of two) are plain:
        NumPy's own arrays of the network's dtype, C-contiguous and aligned, of the right shapes; with
        `tensors` those of `read_tensors` as well.  Given parameters are packed first.
        """
    @property
    def nbytes(self) -> int: ...

class Reserve:
    """What a training forward saves for backward; reused by the next forward it is given to.

    With `checkpoint`, an LSTM saves c every so many steps, rounded up to whole blocks of backward, and no
    gates; a GRU saves nothing.  0 is without.
    """

    def __init__(self, checkpoint: int = 0) -> None: ...
    @property
    def nbytes(self) -> int: ...

def read_tensors(type: type) -> bool:
    """Read tensors of exactly this type in place from now on, where they are asked for.

    False, with nothing done, if the type has no table of functions for that (DLPack's, from 1.2 on).
    """

def layouts_of(tensors: Sequence[object]) -> bytes:
    """Return what is the same only for the same addresses, dtypes, shapes and strides, in this order."""

def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Return a new array, which begins with a cache line if it is large."""

def forward(
    network: Network,
    weights: Weights,
    x: Array,  # (T, B, I), last axis with unit stride, others any; or int64 tokens (T, B) contiguous
    h0: Array | None,  # (L*D, B, R)
    c0: Array | None,  # (L*D, B, H), LSTM only
    lengths: Array | None,  # (B,) int64, 0 <= length <= T
    reset: Array | None,  # (T, B) bool
    y: Array,  # out (T, B, D*R), last axis with unit stride, others any
    h_n: Array,  # out (L*D, B, R)
    c_n: Array | None,  # out (L*D, B, H), LSTM only
    reserve: Reserve | None,  # a training call if given
    seed: int,  # 64-bit; used only with a reserve, for its masks
    call: int,
) -> None: ...
def backward(
    network: Network,
    parameters: Sequence[object],
    x: Array,
    h0: Array | None,
    c0: Array | None,
    lengths: Array | None,
    reset: Array | None,
    y: Array,
    reserve: Reserve,
    dy: Array | None,  # (T, B, D*R), last axis with unit stride, others any
    dh_n: Array | None,
    dc_n: Array | None,
    dx: Array | None,  # out, shape of x; last axis with unit stride; None for tokens
    dh0: Array,  # out (L*D, B, R)
    dc0: Array | None,  # out (L*D, B, H)
    gradients: Sequence[Array],  # out: this call's sums, in the order of parameters
    add: bool,  # to what they hold, in place of overwriting that
    seed: int,  # those of the forward call
    call: int,
) -> None: ...
def backward_plain(
    network: Network,
    parameters: Sequence[object],
    layouts: tuple[str, ...],
    x: object,
    state: object,
    y: object,  # of a cell its h_n
    reserve: Reserve,
    dy: object,  # None, or the gradient in y: of a cell dh_n alone
    dh_n: object,
    dc_n: object,
    need_dx: bool,
    gradients: Sequence[Array] | None,
) -> tuple[Array | None, Array, Array | None, Sequence[Array]] | None:
    """Run backward of a call of `Weights.run_plain` with a reserve: dx, dh, dc and the sums, in new arrays.

    Given gradients are added to, and returned in place of the sums.

    None, with nothing done, unless everything is plain, as there, or a tensor that is read in place.
    """

class Stream:
    """Persistent state of N independent streams, advanced one step per call."""

    def __init__(self, network: Network, weights: Weights, batch: int) -> None: ...
    def step(self, x: Array, rows: Array | None) -> Array:
        """x (k, I) or tokens (k,) int64; rows (k,) distinct int64 or None for all N.

        Returns (k, R): a view of one buffer that the next step overwrites.  Raises ValueError for
        rows out of range or repeated, RuntimeError when another thread is inside this stream.
        """
    def run_plain(self, x: object) -> Array | None:
        """`step` of all streams; None, with nothing done, unless x is plain features, as `Weights` has it."""
    def run(self, x: Array, y: Array) -> None:
        """x (T, N, I) or tokens (T, N) int64, y out (T, N, R); advances every stream T steps."""
    def __enter__(self) -> None:
        """Keep other threads out, to read or write h and c; RuntimeError if one is inside."""

    def __exit__(self, *error: object) -> None: ...
    @property
    def h(self) -> Array:
        """(L, N, R), the live buffer."""
    @property
    def c(self) -> Array | None:
        """(L, N, H), the live buffer; LSTM only."""

def update(
    rule: str,
    parameters: Sequence[Array],
    gradients: Sequence[Array],
    buffers: Sequence[Sequence[Array]],
    numbers: Mapping[str, float],
    steps: int,
) -> None:
    """A step of an optimizer for all parameters, each float32 or float64, in place; nothing if it raises.

    `steps` counts it too: it is 1 in the first.

    Buffers are lists of the parameters' dtypes and shapes: for "sgd" (velocity), "adagrad" (square),
    "rmsprop" (square, velocity), "adam" (mean, square).  Numbers not named are those that change nothing.
    """

def sum_of_squares(arrays: Sequence[Array]) -> float:
    """Of all elements, formed in float64."""

def scale(arrays: Sequence[Array], factor: float) -> None:
    """Multiply in place."""

def softmax_cross_entropy(
    logits: Array,  # (N, V)
    targets: Array,  # (N,) int64, 0..V-1 where scored
    scored: Array | None,  # (N,) bool; None: all
    gradient: Array,  # out (N, V): of the sum, times scale
    scale: float,
) -> float:
    """Sum of -log softmax(logits)[target] over the scored rows."""

def linear_forward(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
    """y (N, O), out, = x (N, I) weight^T + bias; weight (O, I)."""

def linear_backward(
    x: Array, dy: Array, weight: Array, dx: Array | None, dweight: Array, dbias: Array | None
) -> None:
    """dx, out, = dy weight, dweight += dy^T x, dbias += the sum of the rows of dy."""

def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def isa() -> str:
    """The instruction set in force: "baseline", "avx2" or "avx512" (on aarch64 "baseline")."""

def available_isas() -> list[str]:
    """Those this CPU can run, slowest first."""

def set_isa(name: str) -> None:
    """Force one for everything packed from now on; ValueError if unknown or not available here."""

def allow_dot_instructions(allowed: bool) -> None:
    """For tests: may what is packed from now on use BF16 and VNNI instructions, where there are any?"""

def build_info() -> dict[str, str]:
    """compiler, build_type, isas compiled in, version."""
