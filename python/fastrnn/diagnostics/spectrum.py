"""Eigenvalues and singular values of recurrent matrices: whether signals explode, vanish or oscillate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._backends import on_host
from ..layouts import GATES, Spec
from ..training._modes import leaves
from ._figures import figure_of
from ._measuring import Numbers, spec_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class MatrixSpectrum:
    """What is known of ``h_t = W h_(t-1)`` for one recurrent matrix W."""

    eigenvalues: NDArray[np.complex128]
    """(H,), the largest modulus first."""
    singular_values: Numbers
    """(H,), falling."""
    verdict: str
    """"explode", "persist" or "vanish", the first and last with " and oscillate" where it does that too."""
    reason: str
    """Why."""
    period: float
    """Steps per oscillation, if the verdict says that it oscillates: 2 if the sign alternates; else inf."""

    @property
    def radius(self) -> float:
        """Spectral radius, the largest modulus of an eigenvalue: the growth per step in the long run."""
        return float(abs(self.eigenvalues[0]))

    @property
    def norm(self) -> float:
        """Largest singular value: the most that one step can grow a vector."""
        return float(self.singular_values[0])


@dataclass(frozen=True)
class RecurrentSpectrum:
    """What `recurrent_spectrum` found; `print` shows the verdicts and their reasons."""

    matrices: Mapping[str, MatrixSpectrum]
    """By name of the parameter, for gated cells with the gate: ``weight_hh_l0``, ``weight_hh_l0.i``, ..."""
    scope: str
    """What the verdicts speak of, and what they leave out."""

    def __str__(self) -> str:
        lines = [f"{name}: {found.verdict}, as {found.reason}" for name, found in self.matrices.items()]
        return "\n".join([*lines, self.scope])

    def draw(self, axes: Any = None) -> Figure:
        """Draw the eigenvalues in the complex plane, with the unit circle; needs matplotlib."""
        width = 5.5 + 0.08 * max(map(len, self.matrices))  # the names stand beside the circle
        figure, axes = figure_of(axes, width, max(4.6, 1 + 0.21 * len(self.matrices)))
        turn = np.linspace(0, 2 * np.pi, 200)
        axes.plot(np.cos(turn), np.sin(turn), color="0.4", linewidth=1)
        for i, (name, found) in enumerate(self.matrices.items()):
            real, imaginary = found.eigenvalues.real, found.eigenvalues.imag
            marker = "os^Dv*"[i // 10 % 6]
            label = f"{name}: {found.radius:.3g}"
            axes.scatter(real, imaginary, s=14, marker=marker, color=f"C{i % 10}", alpha=0.7, label=label)
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.set(xlabel="real part", ylabel="imaginary part", title="Eigenvalues of the recurrent matrices")
        axes.set_aspect("equal", adjustable="box", anchor="N")
        axes.locator_params(nbins=5)
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="small", title="radius"
        )
        return figure


def recurrent_spectrum(model: Any) -> RecurrentSpectrum:
    """Find eigenvalues, singular values and spectral radius of every recurrent matrix.

    Without input and nonlinearity ``h_t = W h_(t-1) = W^t h_0``, and the gradient goes back by W^T at every
    step.  In the long run both grow or shrink by the largest modulus of an eigenvalue at each step: above 1
    they explode, below 1 they vanish; a complex pair turns as it goes, a negative eigenvalue alternates:
    they oscillate.  For at most some steps a vector may grow by the largest singular value at each, even if
    it vanishes in the end (Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, section 2; Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.7).

    Parameters
    ----------
    model
        A layer or a cell, or a model that has some.  One matrix for each layer, direction and gate; with a
        projection it is ``W_hh W_hr``.  Or a matrix W (H, H), say that of a recursion over several taps.

    Returns
    -------
    RecurrentSpectrum

    Raises
    ------
    TypeError
        There is no LSTM, GRU or RNN in the model, or the matrix is not of real numbers.
    ValueError
        A matrix is not square, or holds NaN or infinity.

    Notes
    -----
    Of a nonlinear cell this says what the linear recursion alone would do.  tanh has a slope of at most 1 and
    sigmoid of at most 1/4, so saturated units shrink what W would let grow; below a largest singular value
    of 1, or 4, an RNN's gradient vanishes for certain.  In an LSTM or GRU the matrix of a gate stands
    inside a nonlinearity, beside a path through c or z that it does not see, and zoneout adds one to any
    cell: there `gradient_reach` measures what matters.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.diagnostics import recurrent_spectrum
    >>> layer = fastrnn.RNN(1, 2, nonlinearity="identity")
    >>> layer.parameters["weight_hh_l0"][...] = [[0, -0.5], [0.5, 0]]
    >>> found = recurrent_spectrum(layer).matrices["weight_hh_l0"]
    >>> found.verdict, round(found.radius, 6), found.period
    ('vanish and oscillate', 0.5, 4.0)
    """
    if isinstance(model, np.ndarray):
        if model.dtype.kind not in "fiu":
            raise TypeError(f"model is a matrix of {model.dtype}; expected real numbers")
        matrix = model.astype(np.float64)
        eps = float(np.finfo(model.dtype if model.dtype.kind == "f" else np.float64).eps)
        return RecurrentSpectrum({"W": _spectrum("W", matrix, eps)}, "Said of h_t = W h_(t-1).")
    matrices, cells, zoned = {}, [], False
    for leaf, module in leaves(model):
        spec = spec_of(module)
        if spec is not None:
            prefix = f"{leaf}." if leaf else ""
            for name, matrix, eps in _matrices(spec, module):
                matrices[prefix + name] = _spectrum(prefix + name, matrix, eps)
            cells.append(spec.nonlinearity if spec.cell == "rnn" else spec.cell.upper())
            zoned |= spec.zoneout_of[0] > 0
    if not matrices:
        raise TypeError(f"model is {model!r}; expected an LSTM, GRU or RNN, or a model with some")
    others = sorted({cell for cell in cells if cell != "identity"})
    reasons = [f"{other} is not linear" for other in others]
    reasons += ["zoneout keeps a part of h as it is"] if zoned else []
    scope = "Said of h_t = W h_(t-1)" + (
        f" alone: {', '.join(reasons)}, see the notes of recurrent_spectrum."
        if reasons
        else ", which is what the layer does."
    )
    return RecurrentSpectrum(matrices, scope)


def _matrices(spec: Spec, module: Any) -> Iterator[tuple[str, Numbers, float]]:
    """Yield the name of every square matrix, itself, and the precision of its elements."""
    gates = GATES[spec.cell]
    for suffix in spec.suffixes():
        name = "weight_hh" + suffix
        if name not in module.parameters:  # a cell's has no number
            name = "weight_hh"
        weight = on_host(module.parameters[name])
        eps = float(np.finfo(weight.dtype).eps)
        for gate, rows in zip(gates, np.split(weight.astype(np.float64), len(gates)), strict=True):
            square = rows @ on_host(module.parameters["weight_hr" + suffix]) if spec.proj_size else rows
            yield name if len(gates) == 1 else f"{name}.{gate}", square, eps


def _spectrum(name: str, matrix: Numbers, eps: float) -> MatrixSpectrum:
    finite = np.isfinite(matrix).all()
    if not finite or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        found = f"shape {matrix.shape}" + ("" if finite else " and NaN or infinity")
        raise ValueError(f"{name} has {found}; expected a square matrix of finite numbers")
    eigenvalues = np.linalg.eigvals(matrix).astype(np.complex128)
    eigenvalues = eigenvalues[np.argsort(-np.abs(eigenvalues), kind="stable")]
    singular_values = np.asarray(np.linalg.svd(matrix, compute_uv=False), np.float64)
    radius, norm = abs(eigenvalues[0]), singular_values[0]
    # The elements are rounded, which moves eigenvalues (of a matrix that is about normal) by as much.
    rounding = 4 * np.sqrt(len(matrix)) * eps * norm
    if abs(radius - 1) <= rounding:
        verdict, relation = "persist", "= 1"
    else:
        verdict, relation = ("explode", "> 1") if radius > 1 else ("vanish", "< 1")
    # Enough digits to be seen on its side of 1.
    digits = next(n for n in range(4, 18) if verdict == "persist" or float(f"{radius:.{n}g}") != 1)
    reason = f"|lambda|max = {radius:.{digits}g} {relation}"
    if verdict == "vanish" and norm > 1 + rounding:
        reason += f" (the norm {norm:.3g} > 1 lets some vectors grow at first)"
    # An angle below this may come from rounding a double real eigenvalue.
    largest = eigenvalues[np.abs(eigenvalues) >= radius - rounding]
    turning = largest[np.abs(np.angle(largest)) > np.sqrt(rounding)] if radius > rounding else largest[:0]
    period = np.inf
    if turning.size:
        period = 2 * np.pi / abs(float(np.angle(turning[0])))
        verdict += " and oscillate"
        first = turning[0]
        negative = abs(first.imag) <= np.sqrt(rounding) * radius
        reason += (
            f", {first.real:.4g} is negative: the sign alternates"
            if negative
            else f", {first.real:.4g} +- {abs(first.imag):.4g}i is complex: a period of {period:.3g} steps"
        )
    return MatrixSpectrum(eigenvalues, singular_values, verdict, reason, period)
