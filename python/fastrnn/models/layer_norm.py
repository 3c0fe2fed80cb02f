"""LSTM and GRU with layer normalisation, composed in NumPy with their own back-propagation through time."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._backends import CPU, Array
from ..layouts import LARGEST_SIZE, Spec, checked_dtype, integer
from ..reference import sigmoid
from ..training import Linear
from ._host import Recursion, seeds


class LayerNorm:
    """Sums of a layer to mean 0 and variance 1, then scaled and shifted: ``y = g (a - mean) / std + b``.

    Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, 2016, equations 3 and 4, with 1e-5 added
    to the variance.  Each block of the last axis is normalised for itself.  A part for cells of one's own,
    and no `Model`: a call returns what its `backward` is then given.

    Parameters
    ----------
    blocks
        Their sizes, each at least 1.
    dtype
        float32 or float64.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.models import LayerNorm
    >>> norm = LayerNorm(2, 2, dtype="float64")
    >>> y, _ = norm(np.array([[1.0, 3.0, 5.0, 5.0]]))
    >>> y.round(4)
    array([[-1.,  1.,  0.,  0.]])
    """

    epsilon = 1e-5
    device = "cpu"

    def __init__(self, *blocks: int, dtype: Any = "float32") -> None:
        size = sum(integer("blocks", block, 1, LARGEST_SIZE) for block in blocks)
        if not blocks:
            raise ValueError("blocks is empty; expected the size of at least one block")
        name = checked_dtype(dtype)
        CPU.check_dtype(name)
        self.dtype = np.dtype(name)
        self.parameters = {"weight": np.ones(size, name), "bias": np.zeros(size, name)}
        self.gradients = {name: np.zeros_like(array) for name, array in self.parameters.items()}
        ends = np.cumsum(blocks)
        self._blocks = [slice(end - block, end) for end, block in zip(ends, blocks, strict=True)]

    def __repr__(self) -> str:
        return f"LayerNorm({', '.join(str(block.stop - block.start) for block in self._blocks)})"

    def __call__(self, a: Array) -> tuple[Array, Any]:
        """Return y for sums a (..., N), and what `backward` needs."""
        unit, scales = np.empty_like(a), []
        for block in self._blocks:
            centred = a[..., block] - a[..., block].mean(axis=-1, keepdims=True)
            variance = np.mean(centred * centred, axis=-1, keepdims=True)
            scales.append(1 / np.sqrt(variance + self.epsilon))
            unit[..., block] = centred * scales[-1]
        return unit * self.parameters["weight"] + self.parameters["bias"], (unit, scales)

    def backward(self, dy: Array, saved: Any) -> Array:
        """Add to the gradients and return da."""
        unit, scales = saved
        leading = tuple(range(dy.ndim - 1))
        self.gradients["weight"] += (dy * unit).sum(axis=leading)
        self.gradients["bias"] += dy.sum(axis=leading)
        dunit, da = dy * self.parameters["weight"], np.empty_like(dy)
        for block, scale in zip(self._blocks, scales, strict=True):
            d, u = dunit[..., block], unit[..., block]
            da[..., block] = scale * (
                d - d.mean(axis=-1, keepdims=True) - u * (d * u).mean(axis=-1, keepdims=True)
            )
        return da


class _LayerNormCell(Recursion):
    """What both cells share: W x and R h, each normalised."""

    def __init__(self, spec: Spec, blocks: tuple[int, ...], seed: int | None, **parts: Any) -> None:
        gates, (first, second) = sum(blocks), seeds(seed, 2)
        self.hidden_size = self.output_size = spec.hidden_size
        self.input = Linear(spec.input_size, gates, False, dtype=spec.dtype, seed=first)
        self.input_norm = LayerNorm(*blocks, dtype=spec.dtype)
        self.recurrent = Linear(spec.hidden_size, gates, False, dtype=spec.dtype, seed=second)
        self.recurrent_norm = LayerNorm(*blocks, dtype=spec.dtype)
        super().__init__(
            spec,
            input=self.input,
            input_norm=self.input_norm,
            recurrent=self.recurrent,
            recurrent_norm=self.recurrent_norm,
            **parts,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size})"

    def _drive(self, x: Array) -> tuple[Array, Any]:
        drive, saved = self.input_norm(self.input(x))
        return drive, (x, saved)

    def _drive_backward(self, ddrive: Array, saved: Any) -> Array:
        x, norm = saved
        return self.input.backward_from(x, self.input_norm.backward(ddrive, norm))

    def _recur(self, h: Array) -> tuple[Array, Any]:
        sums, saved = self.recurrent_norm(self.recurrent(h))
        return sums, (h, saved)

    def _recur_backward(self, dsums: Array, saved: Any) -> Array:
        h, norm = saved
        return self.recurrent.backward_from(h, self.recurrent_norm.backward(dsums, norm))


class LayerNormLSTM(_LayerNormCell):
    """LSTM whose sums and cell are normalised over the units of each step.

    ::

        (i, f, g, o) = LN(W x; a_1, b_1) + LN(R h; a_2, b_2)     over all 4H sums at once
        c' = s(f) * c + s(i) * tanh(g)
        h' = s(o) * tanh(LN(c'; a_3, b_3))

    Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, 2016, supplementary material; their further
    b is part of b_1.  It is computed in NumPy, step by step: slower than `fastrnn.LSTM`, as `explain` says.

    Parameters
    ----------
    input_size, hidden_size
        I and H.
    dtype
        float32 or float64.
    seed
        Makes the initial W and R reproducible, uniform within 1/sqrt(I) and 1/sqrt(H); a are 1, b are 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.models import LayerNormLSTM
    >>> layer = LayerNormLSTM(3, 4, seed=0)
    >>> y, (h_n, c_n) = layer(np.ones((5, 2, 3), "float32"), lengths=[5, 3])
    >>> dx, dstate = layer.backward(np.ones_like(y))
    >>> y.shape, h_n.shape, dx.shape
    ((5, 2, 4), (1, 2, 4), (5, 2, 3))
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, dtype: Any = "float32", seed: int | None = None
    ) -> None:
        spec = Spec("lstm", input_size, hidden_size, dtype=dtype)
        self.cell_norm = LayerNorm(spec.hidden_size, dtype=spec.dtype)
        super().__init__(spec, (4 * spec.hidden_size,), seed, cell_norm=self.cell_norm)

    def _step(self, drive: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], Any]:
        (h,), (c,) = state
        sums, recur = self._recur(h)
        i, f, g, o = np.split(drive + sums, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c_n = f * c + i * g
        normal, norm = self.cell_norm(c_n)
        q = np.tanh(normal)
        h_n = o * q
        return h_n, (h_n[None], c_n[None]), (recur, i, f, g, o, c, norm, q)

    def _step_backward(
        self, dy: Array, dstate_n: tuple[Array, ...], saved: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        recur, i, f, g, o, c, norm, q = saved
        (dh,), (dc,) = dstate_n
        dh = dh + dy
        dc = dc + self.cell_norm.backward(dh * o * (1 - q * q), norm)
        di, df, dg, do = (
            dc * g * i * (1 - i),
            dc * c * f * (1 - f),
            dc * i * (1 - g * g),
            dh * q * o * (1 - o),
        )
        dsums = np.concatenate([di, df, dg, do], axis=-1)
        return dsums, (self._recur_backward(dsums, recur)[None], (dc * f)[None])


class LayerNormGRU(_LayerNormCell):
    """GRU whose sums are normalised over the units of each step.

    ::

        (r, z) = LN(W_rz x; a_1, b_1) + LN(R_rz h; a_2, b_2)     over both, 2H sums
        n = tanh(LN(W_n x; a_3, b_3) + s(r) * LN(R_n h; a_4, b_4))
        h' = (1 - s(z)) * n + s(z) * h

    Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450, 2016, supplementary material, with the
    z of `fastrnn.GRU` (theirs is 1 - z).  It is computed in NumPy, step by step: slower than `fastrnn.GRU`,
    as `explain` says.

    Parameters
    ----------
    input_size, hidden_size, dtype, seed
        As of `LayerNormLSTM`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.models import LayerNormGRU, ManyToMany
    >>> model = ManyToMany(LayerNormGRU(3, 4, seed=0), 2, seed=1)
    >>> o, h_n = model(np.ones((5, 6, 3), "float32"))
    >>> o.shape, h_n.shape
    ((5, 6, 2), (1, 6, 4))
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, dtype: Any = "float32", seed: int | None = None
    ) -> None:
        spec = Spec("gru", input_size, hidden_size, dtype=dtype)
        super().__init__(spec, (2 * spec.hidden_size, spec.hidden_size), seed)

    def _step(self, drive: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], Any]:
        ((h,),) = state
        sums, recur = self._recur(h)
        r, z, x_n = np.split(drive, 3, axis=-1)
        r_h, z_h, h_n = np.split(sums, 3, axis=-1)
        r, z = sigmoid(r + r_h), sigmoid(z + z_h)
        n = np.tanh(x_n + r * h_n)
        y = (1 - z) * n + z * h
        return y, (y[None],), (recur, r, z, n, h, h_n)

    def _step_backward(
        self, dy: Array, dstate_n: tuple[Array, ...], saved: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        recur, r, z, n, h, h_n = saved
        dh = dstate_n[0][0] + dy
        dn = dh * (1 - z) * (1 - n * n)
        dr, dz = dn * h_n * r * (1 - r), dh * (h - n) * z * (1 - z)
        dprevious = dh * z + self._recur_backward(np.concatenate([dr, dz, dn * r], axis=-1), recur)
        return np.concatenate([dr, dz, dn], axis=-1), (dprevious[None],)
