"""Initial parameters of recurrent layers, written in place, gate by gate.

Each function takes a layer or a cell, some also a `Linear`, and fills all stacked layers and directions; of
a model, give it the parts.  Nothing is changed if it raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._backends import on_host
from ..layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from ..layouts import integer
from ._numbers import FINITE, POSITIVE, Range, number
from .modules import Linear, check_writeable

GREATER_THAN_TWO: Range = (lambda value: 2 < value < math.inf, "a finite number greater than 2")

Gates = list[NDArray[np.float64]]
"""The parts of one parameter, which share its memory: one for each gate, or one if it has no gates."""


def uniform(layer: Any, bound: float | None = None, *, seed: int | None = None) -> None:
    """Draw all parameters from -bound..bound, by default 1/sqrt(H), as torch.nn does.

    For a `Linear` the default is 1/sqrt(I).  (LeCun, Bottou, Orr & Mueller, "Efficient BackProp", 1998,
    section 4.6, for why the width goes with the root of what is summed.)

    Parameters
    ----------
    layer
        A layer, a cell or a `Linear`, in training mode.
    bound
        Greater than 0.
    seed
        An integer of at least 0 makes the draw reproducible.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is said above.
    RuntimeError
        The layer is in eval mode.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.training import initialisers
    >>> layer = fastrnn.LSTM(3, 16)
    >>> initialisers.uniform(layer, seed=0)
    >>> bool(abs(layer.parameters["weight_hh_l0"]).max() <= 1 / 4)
    True
    """
    _check_layer(layer, linear=True)
    width = layer.in_features if isinstance(layer, Linear) else layer.hidden_size
    bound = 1 / math.sqrt(width) if bound is None else number("bound", bound, POSITIVE)
    rng = _generator(seed)

    def change(name: str, gates: Gates) -> None:
        for gate in gates:
            gate[...] = rng.uniform(-bound, bound, gate.shape)

    _rewrite(layer, change)


def glorot(layer: Any, *, seed: int | None = None) -> None:
    """Draw each gate's matrices from -b..b with ``b = sqrt(6 / (fan_in + fan_out))``, and clear the biases.

    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS
    2010, equation 16.  A gate's W_ih has fan_in I and fan_out H.  A diagonal peephole is no matrix, and
    is left as it is.

    Parameters
    ----------
    layer, seed
        As for `uniform`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `uniform`.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.training import initialisers
    >>> layer = fastrnn.GRU(2, 4)
    >>> initialisers.glorot(layer, seed=0)
    >>> bool(abs(layer.parameters["weight_ih_l0"]).max() <= 1), layer.parameters["bias_ih_l0"].any()
    (True, np.False_)
    """
    _check_layer(layer, linear=True)
    rng = _generator(seed)

    def change(name: str, gates: Gates) -> None:
        for gate in gates:
            if name.startswith("bias"):
                gate[...] = 0
            elif gate.ndim == 2:
                bound = math.sqrt(6 / sum(gate.shape))
                gate[...] = rng.uniform(-bound, bound, gate.shape)

    _rewrite(layer, change)


def orthogonal(layer: Any, gain: float = 1.0, *, seed: int | None = None) -> None:
    """Make each gate's W_hh a random orthogonal matrix times gain; all else is left as it is.

    Its singular values are all `gain`, so that a linear recurrence neither explodes nor vanishes (Saxe,
    McClelland & Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks", ICLR 2014).  With a projection W_hh (H, P) has orthonormal columns.

    Parameters
    ----------
    layer
        A layer or a cell, in training mode.
    gain
        Greater than 0.
    seed
        As for `uniform`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `uniform`.

    Examples
    --------
    >>> import fastrnn
    >>> import numpy as np
    >>> from fastrnn.training import initialisers
    >>> layer = fastrnn.RNN(2, 5, dtype="float64")
    >>> initialisers.orthogonal(layer, seed=0)
    >>> W = layer.parameters["weight_hh_l0"]
    >>> bool(np.allclose(W @ W.T, np.eye(5)))
    True
    """
    _check_layer(layer)
    gain = number("gain", gain, POSITIVE)
    rng = _generator(seed)

    def change(name: str, gates: Gates) -> None:
        if name.startswith("weight_hh"):
            for gate in gates:
                q, r = np.linalg.qr(rng.standard_normal(gate.shape))
                gate[...] = gain * q * np.sign(np.diag(r))  # without the signs the draw would not be uniform

    _rewrite(layer, change)


def identity(layer: Any, scale: float = 1.0) -> None:
    """Set W_hh of a simple recurrent network to ``scale I`` and its biases to 0: the IRNN.

    With relu it copies its state until an input changes it (Le, Jaitly & Hinton, "A Simple Way to Initialize
    Recurrent Networks of Rectified Linear Units", 2015).  W_ih is left as it is.

    Parameters
    ----------
    layer
        An `RNN` or `RNNCell`, in training mode.
    scale
        Finite; below 1 it forgets.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `uniform`.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.training import initialisers
    >>> layer = fastrnn.RNN(1, 2, nonlinearity="relu")
    >>> initialisers.identity(layer)
    >>> layer.parameters["weight_hh_l0"], layer.parameters["bias_hh_l0"]
    (array([[1., 0.],
           [0., 1.]], dtype=float32), array([0., 0.], dtype=float32))
    """
    _check_layer(layer)
    if not isinstance(layer, RNN | RNNCell):
        raise TypeError(f"layer is {layer!r}; expected an RNN: with gates W_hh = I does not copy the state")
    scale = number("scale", scale, FINITE)

    def change(name: str, gates: Gates) -> None:
        if name.startswith("bias"):
            gates[0][...] = 0
        elif name.startswith("weight_hh"):
            gates[0][...] = scale * np.eye(layer.hidden_size)

    _rewrite(layer, change)


def forget_gate_bias(layer: Any, value: float = 1.0) -> None:
    """Set the bias of an LSTM's forget gates, of which there are two that are added, to `value` in all.

    A gate that is open at first lets gradients through from the start (Gers, Schmidhuber & Cummins,
    "Learning to Forget", 2000; Jozefowicz, Zaremba & Sutskever, "An Empirical Exploration of Recurrent
    Network Architectures", ICML 2015, who recommend 1).

    Parameters
    ----------
    layer
        An `LSTM` or `LSTMCell` with biases, in training mode.
    value
        Finite: b_ih gets it, b_hh 0.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `uniform`.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.training import initialisers
    >>> layer = fastrnn.LSTM(1, 2)
    >>> initialisers.forget_gate_bias(layer)
    >>> layer.parameters["bias_ih_l0"][2:4]
    array([1., 1.], dtype=float32)
    """
    _check_layer(layer)
    if not isinstance(layer, LSTM | LSTMCell):
        raise TypeError(f"layer is {layer!r}; expected an LSTM, which has forget gates")
    _check_bias(layer)
    value = number("value", value, FINITE)

    def change(name: str, gates: Gates) -> None:
        if name.startswith("bias"):
            gates[1][...] = value if name.startswith("bias_ih") else 0

    _rewrite(layer, change)


def chrono(layer: Any, longest: float, *, seed: int | None = None) -> None:
    """Draw gate biases for memories of up to `longest` steps: ``b_f = log(u)``, u uniform in 1..longest-1.

    A forget gate of sigmoid(log(u)) keeps its cell for about u steps; ``b_i = -b_f``.  A GRU's z, which
    keeps h, gets b_f (Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018, section 3).

    Parameters
    ----------
    layer
        An LSTM or GRU, or a cell of one, with biases, in training mode.  b_ih gets the values, b_hh of
        these gates 0.
    longest
        T_max, greater than 2: the range of dependencies to be caught, in steps.
    seed
        As for `uniform`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `uniform`.

    Examples
    --------
    >>> import fastrnn
    >>> from fastrnn.training import initialisers
    >>> layer = fastrnn.GRU(1, 4)
    >>> initialisers.chrono(layer, 100, seed=0)
    >>> bias = layer.parameters["bias_ih_l0"][4:8]
    >>> bool((0 <= bias).all() and (bias <= 4.6).all())
    True
    """
    _check_layer(layer)
    if not isinstance(layer, LSTM | LSTMCell | GRU | GRUCell):
        raise TypeError(f"layer is {layer!r}; expected an LSTM or a GRU, which have gates")
    _check_bias(layer)
    longest = number("longest", longest, GREATER_THAN_TWO)
    rng = _generator(seed)

    def change(name: str, gates: Gates) -> None:
        if not name.startswith("bias"):
            return
        bias = np.zeros(layer.hidden_size)
        if name.startswith("bias_ih"):
            bias = np.log(rng.uniform(1, longest - 1, layer.hidden_size))
        gates[1][...] = bias  # f of an LSTM, z of a GRU
        if isinstance(layer, LSTM | LSTMCell):
            gates[0][...] = -bias

    _rewrite(layer, change)


def _check_layer(layer: Any, *, linear: bool = False) -> None:
    if not hasattr(layer, "hidden_size") and not (linear and isinstance(layer, Linear)):
        expected = "a layer, a cell or a Linear" if linear else "a layer or a cell"
        raise TypeError(f"layer is {layer!r}; expected {expected}")
    check_writeable("layer", layer)


def _check_bias(layer: Any) -> None:
    if not layer.bias:
        raise ValueError(f"layer is {layer!r}; expected one with biases")


def _generator(seed: int | None) -> np.random.Generator:
    return np.random.default_rng(None if seed is None else integer("seed", seed, 0))


def _rewrite(layer: Any, change: Callable[[str, Gates], None]) -> None:
    """Let `change` write into a copy of each parameter, gates apart, and take over what it wrote."""
    for name, parameter in layer.parameters.items():
        there = on_host(parameter)
        values = np.array(there, np.float64)
        # Of a projection, W_hr (P, H) with P < H, there is one part, as of a Linear's.
        parts = max(1, len(values) // getattr(layer, "hidden_size", len(values)))
        change(name, np.split(values, parts))
        parameter[...] = values.astype(there.dtype)
