"""The textbook: every recurrent layer of this package as plain float64 NumPy loops.

Nothing here is fast.  It is written to be read, and it is what the kernels are tested against, so it
shares no code with them.  One small function per cell computes one step for the whole batch, another
its gradient, and `forward` and `backward` walk them over layers, directions and time.

Equations
---------
x is the input of a step, h and c the state that enters it, h' and c' the state that leaves it, s the
logistic sigmoid, * the elementwise product.  W_k, R_k and b_k are the rows of ``weight_ih``,
``weight_hh`` and ``bias_ih`` that belong to gate k, and d_k those of ``bias_hh``.

Elman network [1]_, `nonlinearity` one of tanh, relu, sigmoid, identity::

    h' = nonlinearity(W x + b + R h + d)

LSTM [2]_ with the forget gate of [3]_::

    i = s(W_i x + b_i + R_i h + d_i)           f = s(W_f x + b_f + R_f h + d_f)
    g = tanh(W_g x + b_g + R_g h + d_g)        o = s(W_o x + b_o + R_o h + d_o)
    c' = f * c + i * g                         h' = o * tanh(c')

Peepholes [4]_ let the gates see the cell: P_i c is added inside i, P_f c inside f and P_o c' inside o,
where P is a diagonal matrix (the ``weight_ch`` of shape (3H,)) or a full one ((3H, H)).  A projection
[5]_ makes the state narrower: h' = W_hr (o * tanh(c')).

GRU [6]_, with r applied after the recurrent product (``reset_after=True``) or before it::

    r = s(W_r x + b_r + R_r h + d_r)           z = s(W_z x + b_z + R_z h + d_z)
    n = tanh(W_n x + b_n + r * (R_n h + d_n))  or  n = tanh(W_n x + b_n + R_n (r * h) + d_n)
    h' = (1 - z) * n + z * h

In training, recurrent dropout [9]_ puts m * h in place of h in every product with R_k, with a mask m that
is the same at all steps of a sequence; the h in z * h stays whole.  Zoneout [10]_ then lets units keep their
previous value, h'' = k * h + (1 - k) * h' and the same for c, where k is 1 with its probability, drawn for
every step and unit, and in inference k is that probability.  h' still follows from the c' of the equations.
In all of these 0 times anything is 0: what is dropped or not kept leaves no trace, even if it is infinite.

The gradients are back-propagation through time [7]_: the same steps walked in the opposite order, each
turning the gradient of the state that left it into that of the state that entered it.

References
----------
.. [1] J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.
.. [2] S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.
.. [3] F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget: continual prediction with LSTM",
   Neural Computation 12, 2000.
.. [4] F. A. Gers and J. Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.
.. [5] H. Sak, A. Senior and F. Beaufays, "Long short-term memory recurrent neural network architectures
   for large scale acoustic modeling", Interspeech 2014.
.. [6] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
   translation", EMNLP 2014.
.. [7] P. J. Werbos, "Backpropagation through time: what it does and how to do it", Proc. IEEE 78, 1990.
.. [8] J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as
   1, 2, 3", SC 2011.
.. [9] Y. Gal and Z. Ghahramani, "A theoretically grounded application of dropout in recurrent neural
   networks", NIPS 2016.
.. [10] D. Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .layouts import Spec

__all__ = [
    "Cache",
    "backward",
    "dropout_scale",
    "forward",
    "philox4x32",
    "recurrent_dropout_scale",
    "sigmoid",
    "zoneout_keep",
]

Array = NDArray[np.float64]
State = tuple[Array, ...]  # (h,) or, for LSTM, (h, c); rows of a batch
Parameters = Mapping[str, Array]  # of one layer and direction: names without their suffix
Gradients = dict[str, Array]
Saved = Any  # what one step keeps for its gradient; each cell knows its own
EVERY = slice(None)


def sigmoid(a: Array) -> Array:
    """Return 1 / (1 + exp(-a)), accurate at both ends and without overflow."""
    e = np.exp(-np.abs(a))
    return np.asarray(np.where(a < 0, e, 1.0) / (1.0 + e))


# ---- The products ---------------------------------------------------------------------------------
# kind is the end of a parameter's name: "ih" reads the input, "hh" the state, "ch" the cell, "hr"
# projects.  rows are the gates wanted.  Only "ih" and "hh" ever have a bias.


def product(p: Parameters, kind: str, rows: slice, v: Array) -> Array:
    """Multiply v (B, K) by rows of one weight and add the bias if there is one: (B, rows)."""
    out = v @ p["weight_" + kind][rows].T
    return out + p["bias_" + kind][rows] if "bias_" + kind in p else out


def product_backward(p: Parameters, grad: Gradients, kind: str, rows: slice, v: Array, dout: Array) -> Array:
    """Add the gradient of weight and bias to `grad`; return that of v."""
    grad["weight_" + kind][rows] += dout.T @ v
    if "bias_" + kind in p:
        grad["bias_" + kind][rows] += dout.sum(axis=0)
    return np.asarray(dout @ p["weight_" + kind][rows])


def peephole(p: Parameters, spec: Spec, gate: int, c: Array) -> Array:
    """Return what gate 0 (i), 1 (f) or 2 (o) reads of the cell: (B, H)."""
    rows = slice(gate * spec.hidden_size, (gate + 1) * spec.hidden_size)
    if spec.peephole == "full":
        return product(p, "ch", rows, c)
    return p["weight_ch"][rows] * c if spec.peephole == "diagonal" else np.zeros_like(c)


def peephole_backward(p: Parameters, grad: Gradients, spec: Spec, gate: int, c: Array, dout: Array) -> Array:
    """Add the gradient of one gate's peephole to `grad`; return that of c."""
    rows = slice(gate * spec.hidden_size, (gate + 1) * spec.hidden_size)
    if spec.peephole == "full":
        return product_backward(p, grad, "ch", rows, c, dout)
    if spec.peephole == "diagonal":
        grad["weight_ch"][rows] += (dout * c).sum(axis=0)
        return p["weight_ch"][rows] * dout
    return np.zeros_like(c)


# ---- The cells: one step of the batch, and its gradient -------------------------------------------
# A step maps x (B, I) and the state that enters to the state that leaves; the products with R read m * h,
# where m (B, R) is the mask of recurrent dropout, or ones.  Its gradient maps that of the state that left to
# those of x and of the state that entered, and adds to `grad`.


def masked(m: Array, a: Array) -> Array:
    """Return m * a, but 0 where m is 0, whatever a is."""
    return np.multiply(m, a, where=m != 0, out=np.zeros(a.shape))


def nonlinearity(name: str, a: Array) -> Array:
    """Apply the nonlinearity of an Elman network."""
    if name == "tanh":
        return np.tanh(a)
    if name == "relu":
        return np.maximum(a, 0.0)
    return sigmoid(a) if name == "sigmoid" else a


def nonlinearity_slope(name: str, h: Array) -> Array:
    """Return its derivative, in terms of its value h.  That of relu at 0 is 0."""
    if name == "tanh":
        return 1.0 - h * h
    if name == "relu":
        return (h > 0).astype(h.dtype)
    return h * (1.0 - h) if name == "sigmoid" else np.ones_like(h)


def rnn_step(spec: Spec, p: Parameters, x: Array, state: State, m: Array) -> tuple[State, Saved]:
    """Do one step of the Elman network; state (h,), each (B, H)."""
    (h,) = state
    a = product(p, "ih", EVERY, x) + product(p, "hh", EVERY, masked(m, h))
    h_new = nonlinearity(spec.nonlinearity, a)
    return (h_new,), (x, h, h_new, m)


def rnn_step_backward(
    spec: Spec, p: Parameters, grad: Gradients, saved: Saved, dstate: State
) -> tuple[Array, State]:
    """Do the gradient of `rnn_step`."""
    x, h, h_new, m = saved
    da = dstate[0] * nonlinearity_slope(spec.nonlinearity, h_new)
    dx = product_backward(p, grad, "ih", EVERY, x, da)
    return dx, (masked(m, product_backward(p, grad, "hh", EVERY, masked(m, h), da)),)


def lstm_step(spec: Spec, p: Parameters, x: Array, state: State, m: Array) -> tuple[State, Saved]:
    """Do one step of the LSTM; state (h, c), h (B, R) and c (B, H)."""
    h, c = state
    a = product(p, "ih", EVERY, x) + product(p, "hh", EVERY, masked(m, h))
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    i = sigmoid(a_i + peephole(p, spec, 0, c))
    f = sigmoid(a_f + peephole(p, spec, 1, c))
    g = np.tanh(a_g)
    c_new = f * c + i * g
    o = sigmoid(a_o + peephole(p, spec, 2, c_new))
    h_full = o * np.tanh(c_new)
    h_new = product(p, "hr", EVERY, h_full) if spec.proj_size else h_full
    return (h_new, c_new), (x, h, c, i, f, g, o, c_new, m)


def lstm_step_backward(
    spec: Spec, p: Parameters, grad: Gradients, saved: Saved, dstate: State
) -> tuple[Array, State]:
    """Do the gradient of `lstm_step`."""
    x, h, c, i, f, g, o, c_new, m = saved
    dh, dc_new = dstate
    tanh_c = np.tanh(c_new)
    if spec.proj_size:
        dh = product_backward(p, grad, "hr", EVERY, o * tanh_c, dh)
    # The output gate first: through its peephole it is one more reader of c'.
    da_o = dh * tanh_c * o * (1.0 - o)
    dc_new = dc_new + dh * o * (1.0 - tanh_c**2) + peephole_backward(p, grad, spec, 2, c_new, da_o)
    da_i = dc_new * g * i * (1.0 - i)
    da_f = dc_new * c * f * (1.0 - f)
    da_g = dc_new * i * (1.0 - g**2)
    dc = dc_new * f
    dc = dc + peephole_backward(p, grad, spec, 0, c, da_i) + peephole_backward(p, grad, spec, 1, c, da_f)
    da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
    dx = product_backward(p, grad, "ih", EVERY, x, da)
    return dx, (masked(m, product_backward(p, grad, "hh", EVERY, masked(m, h), da)), dc)


def gru_step(spec: Spec, p: Parameters, x: Array, state: State, m: Array) -> tuple[State, Saved]:
    """Do one step of the GRU; state (h,), each (B, H)."""
    (h,) = state
    rz, candidate = slice(0, 2 * spec.hidden_size), slice(2 * spec.hidden_size, None)
    r, z = np.split(sigmoid(product(p, "ih", rz, x) + product(p, "hh", rz, masked(m, h))), 2, axis=1)
    if spec.reset_after:
        q = product(p, "hh", candidate, masked(m, h))
        n = np.tanh(product(p, "ih", candidate, x) + r * q)
    else:
        q = product(p, "hh", candidate, r * masked(m, h))
        n = np.tanh(product(p, "ih", candidate, x) + q)
    return ((1.0 - z) * n + z * h,), (x, h, r, z, n, q, m)


def gru_step_backward(
    spec: Spec, p: Parameters, grad: Gradients, saved: Saved, dstate: State
) -> tuple[Array, State]:
    """Do the gradient of `gru_step`."""
    x, h, r, z, n, q, m = saved
    (dh_new,) = dstate
    rz, candidate = slice(0, 2 * spec.hidden_size), slice(2 * spec.hidden_size, None)
    da_n = dh_new * (1.0 - z) * (1.0 - n**2)
    da_z = dh_new * (h - n) * z * (1.0 - z)
    if spec.reset_after:
        dr = da_n * q
        dmh = product_backward(p, grad, "hh", candidate, masked(m, h), da_n * r)
    else:
        drmh = product_backward(p, grad, "hh", candidate, r * masked(m, h), da_n)
        dr = drmh * masked(m, h)
        dmh = drmh * r
    da_rz = np.concatenate([dr * r * (1.0 - r), da_z], axis=1)
    dmh = dmh + product_backward(p, grad, "hh", rz, masked(m, h), da_rz)
    dx = product_backward(p, grad, "ih", EVERY, x, np.concatenate([da_rz, da_n], axis=1))
    return dx, (dh_new * z + masked(m, dmh),)


Step = Callable[[Spec, Parameters, Array, State, Array], tuple[State, Saved]]
StepBackward = Callable[[Spec, Parameters, Gradients, Saved, State], tuple[Array, State]]
CELLS: dict[str, tuple[Step, StepBackward]] = {
    "lstm": (lstm_step, lstm_step_backward),
    "gru": (gru_step, gru_step_backward),
    "rnn": (rnn_step, rnn_step_backward),
}


# ---- Dropout and zoneout --------------------------------------------------------------------------


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Draw from Philox4x32-10, the counter-based random number generator of [8]_.

    Parameters
    ----------
    counter : array_like of unsigned integers below 2**32, shape (..., 4)
    key : array_like of unsigned integers below 2**32, shape (..., 2)
        Broadcast against `counter`.

    Returns
    -------
    ndarray of uint32, shape (..., 4)
        Four independent draws for every counter.

    Examples
    --------
    >>> from fastrnn.reference import philox4x32
    >>> [hex(word) for word in philox4x32([0, 0, 0, 0], [0, 0])]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, dtype=np.uint64), -1, 0)
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (right >> shift) ^ c1 ^ k0, right & low, (left >> shift) ^ c3 ^ k1, left & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def draws(
    spec: Spec, layer: int, steps: int, batch: int, width: int, key: tuple[int, int], kind: int = 0
) -> NDArray[np.uint32]:
    """Return the draw of each unit of one layer: (T, B, D, width), uniform below 2**32.

    That of unit u of a direction at step t of row b is word u % 4 of the Philox block with the counter
    (u // 4 + kind * 2**29, b, t, layer * D + direction); the key is the low and the high half of
    seed + call * 0x9E3779B97F4A7C15.  So a draw depends on where its unit stands and on nothing else.
    kind is 0 for dropout of outputs, 1 for recurrent dropout, 2 for zoneout of h and 3 for that of c.
    """
    directions, blocks = spec.num_directions, -(-width // 4)
    counter = np.empty((steps, batch, directions, blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks) + kind * 2**29
    counter[..., 1] = np.arange(batch)[:, None, None]
    counter[..., 2] = np.arange(steps)[:, None, None, None]
    counter[..., 3] = layer * directions + np.arange(directions)[:, None]
    k = (key[0] + key[1] * 0x9E3779B97F4A7C15) % 2**64
    blocks_of_4 = philox4x32(counter, [k % 2**32, k >> 32])
    return blocks_of_4.reshape(steps, batch, directions, 4 * blocks)[..., :width]


def kept(draw: NDArray[np.uint32], p: float) -> NDArray[np.bool_]:
    """Return where a mask that drops with probability p keeps: draws under floor((1 - p) * 2**32)."""
    return draw < int((1.0 - p) * 2**32)


def dropout_scale(spec: Spec, layer: int, steps: int, batch: int, key: tuple[int, int]) -> Array:
    """Return the factor of each output of one layer: 0 (dropped) or 1 / (1 - dropout) (kept).

    Parameters
    ----------
    spec : Spec
    layer : int
        The one that makes the output.
    steps, batch : int
        T and B.
    key : (int, int)
        Seed and call number, both 64-bit.

    Returns
    -------
    ndarray, shape (T, B, D*R)
    """
    draw = draws(spec, layer, steps, batch, spec.recurrent_size, key)
    scale = 1.0 / (1.0 - spec.dropout) if spec.dropout < 1.0 else 0.0
    return np.where(kept(draw, spec.dropout), scale, 0.0).reshape(steps, batch, spec.output_size)


def recurrent_dropout_scale(spec: Spec, layer: int, batch: int, key: tuple[int, int] | None) -> Array:
    """Return recurrent dropout's factors m (D, B, R) of one layer's h: one mask for all steps of a row.

    They are 0 (dropped) or 1 / (1 - recurrent_dropout) (kept); all are 1 without a key, in inference.
    """
    p = spec.recurrent_dropout if key is not None else 0.0
    draw = draws(spec, layer, 1, batch, spec.recurrent_size, key or (0, 0), kind=1)[0]
    return np.where(kept(draw, p), 1.0 / (1.0 - p) if p < 1.0 else 0.0, 0.0).swapaxes(0, 1)


def zoneout_keep(
    spec: Spec, layer: int, steps: int, batch: int, key: tuple[int, int] | None
) -> tuple[Array, ...]:
    """Return how much each unit of one layer keeps of its previous value, of h or, for LSTM, of (h, c).

    1 or 0, drawn for each step; without a key, in inference, the probability of a 1.  Shapes (T, B, D, R)
    and (T, B, D, H).
    """
    shares = []
    widths = (spec.recurrent_size, spec.hidden_size)
    for which, p in enumerate(spec.zoneout_of):
        draw = draws(spec, layer, steps, batch, widths[which], key or (0, 0), kind=2 + which)
        shares.append(np.full(draw.shape, p) if key is None else np.where(kept(draw, p), 0.0, 1.0))
    return tuple(shares)


# ---- Layers, directions and time ------------------------------------------------------------------


@dataclass(frozen=True)
class Cache:
    """What `forward` keeps for `backward`."""

    tokens: bool
    active: NDArray[np.bool_]  # (T, B): the step is within the row's length
    reset: NDArray[np.bool_]  # (T, B)
    saved: list[list[Saved]]  # [layer * D + direction][t]
    scales: list[Array | None]  # [layer]: (T, B, D*R) factors on its output, None without dropout
    keeps: list[tuple[Array, ...]]  # [layer]: zoneout's shares of the state before each step


def boundaries(active: NDArray[np.bool_], reset: NDArray[np.bool_], direction: int) -> NDArray[np.bool_]:
    """Return where (T, B) the state that enters a step is zero instead of what the step before it left.

    A reset at t stands between steps t-1 and t.  The forward direction meets it on entering t, and the
    reverse direction on entering t-1.  A reset past the row's length stands between nothing.
    """
    between = reset & active
    if direction == 0:
        return between
    return np.concatenate([between[1:], np.zeros_like(between[:1])])


def select(mask: NDArray[np.bool_], yes: State, no: State) -> State:
    """Take for each row b the state `yes` where mask[b], else `no`."""
    return tuple(np.where(mask[:, None], a, b) for a, b in zip(yes, no, strict=True))


def zeros_like(state: State) -> State:
    """Return a state of zeros."""
    return tuple(np.zeros_like(s) for s in state)


def walk(steps: int, direction: int) -> range:
    """Return the steps in the order in which a direction walks them."""
    return range(steps) if direction == 0 else range(steps - 1, -1, -1)


def of_layer(spec: Spec, arrays: Mapping[str, Array], suffix: str) -> dict[str, Array]:
    """Return the arrays of one layer and direction, under their names without the suffix."""
    return {
        name.removesuffix(suffix): arrays[name]
        for name in spec.parameter_shapes()
        if name[name.index("_l") :] == suffix
    }


def expect_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `array` has this shape."""
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}")


def as_parameters(spec: Spec, parameters: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Return all parameters in float64, their names and shapes checked."""
    if not isinstance(spec, Spec):
        raise TypeError(f"spec has type {type(spec).__name__}; expected a fastrnn.layouts.Spec")
    if not isinstance(parameters, Mapping):
        raise TypeError(
            f"parameters has type {type(parameters).__name__}; expected a mapping of names to arrays"
        )
    missing = [name for name in spec.parameter_shapes() if name not in parameters]
    if missing:
        raise ValueError(f"parameters: missing {', '.join(missing)}")
    p = {name: np.asarray(parameters[name], dtype=np.float64) for name in spec.parameter_shapes()}
    for name, shape in spec.parameter_shapes().items():
        expect_shape(f"parameters[{name!r}]", p[name], shape)
    return p


def as_states(name: str, spec: Spec, state: Any, batch: int) -> State:
    """Return the public form of a state (h, or (h, c); None for zeros) as a tuple of new arrays."""
    shapes = spec.state_shapes(batch)
    given = (state,) if spec.cell != "lstm" else (None, None) if state is None else tuple(state)
    if len(given) != len(shapes):
        raise ValueError(f"{name} has {len(given)} entries; expected the pair (h, c)")
    states = tuple(
        np.zeros(shape) if a is None else np.array(a, np.float64)
        for a, shape in zip(given, shapes, strict=True)
    )
    for i, (array, shape) in enumerate(zip(states, shapes, strict=True)):
        expect_shape(f"{name}[{i}]" if len(shapes) > 1 else name, array, shape)
    return states


def as_vectors(spec: Spec, x: NDArray[Any], active: NDArray[np.bool_]) -> Array:
    """Return x (T, B, I), zero where not active; tokens (T, B) become one-hot vectors."""
    steps, batch = active.shape
    if x.dtype.kind not in "iu":
        expect_shape("x", x, (steps, batch, spec.input_size))
        return np.where(active[:, :, None], x, 0.0).astype(np.float64)
    expect_shape("x", x, (steps, batch))
    tokens = np.where(active, x, 0)
    if tokens.size and (tokens.min() < 0 or tokens.max() >= spec.input_size):
        raise ValueError(
            f"x holds tokens from {tokens.min()} to {tokens.max()}; expected 0 to {spec.input_size - 1}"
        )
    return np.where(active[:, :, None], np.eye(spec.input_size)[tokens], 0.0)


def forward(
    spec: Spec,
    parameters: Mapping[str, ArrayLike],
    x: ArrayLike,
    state: Any = None,
    *,
    lengths: ArrayLike | None = None,
    reset: ArrayLike | None = None,
    dropout_key: tuple[int, int] | None = None,
) -> tuple[Array, Any, Cache]:
    """Run the layers over a batch of sequences.

    Parameters
    ----------
    spec : Spec
        Its dtype is ignored: everything is computed in float64.
    parameters : mapping of str to array_like
        As `Spec.parameter_shapes` lists them.
    x : array_like, shape (T, B, I), or integers, shape (T, B)
        Integers stand for one-hot vectors.  What stands past a row's length is never looked at.
    state : None, h, or (h, c) for LSTM
        Initial state, h (L*D, B, R) and c (L*D, B, H); None for zeros.
    lengths : array_like of int, shape (B,), optional
        Steps of each row, 0 to T.  y is 0 past them, the final state is that at the row's own end, and
        the reverse direction starts there.
    reset : array_like of bool, shape (T, B), optional
        True where a new piece begins: no state and no gradient crosses from step t-1 to t or back.
    dropout_key : (seed, call), optional
        Of a call in training: apply dropout and zoneout with the masks of this key.  None for inference, with
        no dropout and the expectation of zoneout.

    Returns
    -------
    y : ndarray, shape (T, B, D*R)
    state_n : the final state, in the form of `state`
    cache : Cache
        For `backward`.

    Raises
    ------
    TypeError
        `spec` or `parameters` is something else.
    ValueError
        A parameter is missing, or a shape, a length or a token is not as stated.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn import reference
    >>> from fastrnn.layouts import Spec
    >>> spec = Spec("rnn", input_size=1, hidden_size=1, bias=False, nonlinearity="identity")
    >>> weights = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.5]]}
    >>> y, h_n, cache = reference.forward(spec, weights, np.ones((3, 1, 1)))
    >>> y.ravel().tolist()
    [1.0, 1.5, 1.75]
    """
    p = as_parameters(spec, parameters)
    x = np.asarray(x)
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(
            f"x has shape {x.shape}; expected (T, B, I), or (T, B) for tokens, with T of at least 1"
        )
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    expect_shape("lengths", lengths, (batch,))
    if not ((lengths >= 0) & (lengths <= steps)).all():
        raise ValueError(f"lengths is {lengths.tolist()}; expected lengths from 0 to {steps}")
    reset = np.zeros((steps, batch), dtype=bool) if reset is None else np.asarray(reset, dtype=bool)
    expect_shape("reset", reset, (steps, batch))
    states = as_states("state", spec, state, batch)
    active = np.arange(steps)[:, None] < lengths
    layer_x = as_vectors(spec, x, active)

    step = CELLS[spec.cell][0]
    directions = spec.num_directions
    saved: list[list[Saved]] = []
    scales: list[Array | None] = []
    keeps: list[tuple[Array, ...]] = []
    for layer in range(spec.num_layers):
        y = np.zeros((steps, batch, directions, spec.recurrent_size))
        scale_h = recurrent_dropout_scale(spec, layer, batch, dropout_key)
        keeps.append(zoneout_keep(spec, layer, steps, batch, dropout_key))
        for direction in range(directions):
            index = layer * directions + direction
            layer_p = of_layer(spec, p, spec.suffixes()[index])
            boundary = boundaries(active, reset, direction)
            now: State = tuple(s[index] for s in states)
            saved.append([None] * steps)
            for t in walk(steps, direction):
                entering = select(active[t] & ~boundary[t], now, zeros_like(now))
                leaving, saved[index][t] = step(spec, layer_p, layer_x[t], entering, scale_h[direction])
                keep = [k[t, :, direction] for k in keeps[layer]]
                leaving = tuple(
                    masked(k, old) + masked(1.0 - k, new)
                    for k, old, new in zip(keep, entering, leaving, strict=True)
                )
                now = select(active[t], leaving, now)  # a row past its length keeps its state
                y[t, :, direction] = np.where(active[t, :, None], now[0], 0.0)
            for whole, last in zip(states, now, strict=True):
                whole[index] = last
        layer_x = y.reshape(steps, batch, spec.output_size)
        scales.append(None)
        if dropout_key is not None and spec.dropout > 0.0 and layer < spec.num_layers - 1:
            scale = dropout_scale(spec, layer, steps, batch, dropout_key)
            scales[layer] = scale
            layer_x = masked(scale, layer_x)
    cache = Cache(x.dtype.kind in "iu", active, reset, saved, scales, keeps)
    return layer_x, states if spec.cell == "lstm" else states[0], cache


def backward(
    spec: Spec,
    parameters: Mapping[str, ArrayLike],
    cache: Cache,
    dy: ArrayLike | None = None,
    dstate_n: Any = None,
) -> tuple[Array | None, Any, dict[str, Array]]:
    """Return the gradients of a loss, from its gradients in what `forward` returned.

    Parameters
    ----------
    spec, parameters
        Those of the forward call.
    cache : Cache
        What it returned.
    dy : array_like, shape (T, B, D*R), optional
        None for zeros.  What stands past a row's length is never looked at.
    dstate_n : None, dh_n, or (dh_n, dc_n) for LSTM, of which either may be None
        None for zeros.

    Returns
    -------
    dx : ndarray, shape (T, B, I), or None if x was integers
    dstate : gradient of the initial state, in the form of `dstate_n`
    gradients : dict of str to ndarray
        In the order of `Spec.parameter_shapes`.

    Raises
    ------
    TypeError
        `spec`, `parameters` or `cache` is something else.
    ValueError
        A parameter is missing, or a shape is not as stated.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn import reference
    >>> from fastrnn.layouts import Spec
    >>> spec = Spec("rnn", input_size=1, hidden_size=1, bias=False, nonlinearity="identity")
    >>> weights = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.5]]}
    >>> y, h_n, cache = reference.forward(spec, weights, np.ones((3, 1, 1)))
    >>> dx, dh, gradients = reference.backward(spec, weights, cache, dstate_n=np.ones((1, 1, 1)))
    >>> dx.ravel().tolist(), gradients["weight_hh_l0"].item()
    ([0.25, 0.5, 1.0], 2.0)
    """
    p = as_parameters(spec, parameters)
    if not isinstance(cache, Cache):
        raise TypeError(f"cache has type {type(cache).__name__}; expected the third result of forward")
    gradients = {name: np.zeros(shape) for name, shape in spec.parameter_shapes().items()}
    active, directions = cache.active, spec.num_directions
    steps, batch = active.shape
    dstates = as_states("dstate_n", spec, dstate_n, batch)
    dlayer = np.zeros((steps, batch, spec.output_size)) if dy is None else np.asarray(dy, dtype=np.float64)
    expect_shape("dy", dlayer, (steps, batch, spec.output_size))

    step_backward = CELLS[spec.cell][1]
    for layer in range(spec.num_layers - 1, -1, -1):
        scale = cache.scales[layer]
        dout = dlayer if scale is None else masked(scale, dlayer)
        dout = np.where(active[:, :, None], dout, 0.0).reshape(steps, batch, directions, spec.recurrent_size)
        dlayer = np.zeros((steps, batch, spec.layer_input_size(layer)))
        for direction in range(directions):
            index = layer * directions + direction
            suffix = spec.suffixes()[index]
            layer_p, grad = of_layer(spec, p, suffix), of_layer(spec, gradients, suffix)
            boundary = boundaries(active, cache.reset, direction)
            dnow: State = tuple(d[index] for d in dstates)
            for t in reversed(walk(steps, direction)):
                dleaving = (dnow[0] + dout[t, :, direction], *dnow[1:])
                dleaving = select(active[t], dleaving, zeros_like(dnow))
                keep = [k[t, :, direction] for k in cache.keeps[layer]]
                dnew = tuple(masked(1.0 - k, d) for k, d in zip(keep, dleaving, strict=True))
                dx, dentering = step_backward(spec, layer_p, grad, cache.saved[index][t], dnew)
                dentering = tuple(masked(k, d) + e for k, d, e in zip(keep, dleaving, dentering, strict=True))
                dlayer[t] += dx
                dentering = select(boundary[t], zeros_like(dnow), dentering)
                dnow = select(active[t], dentering, dnow)
            for whole, first in zip(dstates, dnow, strict=True):
                whole[index] = first
    return None if cache.tokens else dlayer, dstates if spec.cell == "lstm" else dstates[0], gradients
