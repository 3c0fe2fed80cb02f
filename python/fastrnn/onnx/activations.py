"""The eleven activations that nodes may name, with their parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Activation:
    """An activation with the parameters that it has.

    Attributes
    ----------
    name : str
        As ONNX writes it.
    alpha, beta : float or None
        None where it has no such parameter.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __call__(self, x: Array) -> Array:
        """Apply it to every element; float32 stays float32."""
        parameters = [value for value in (self.alpha, self.beta) if value is not None]
        return np.asarray(_FORMULAS[self.name](x, *parameters))

    def __str__(self) -> str:
        shown = [f"{k}={v:g}" for k, v in (("alpha", self.alpha), ("beta", self.beta)) if v is not None]
        return f"{self.name}({', '.join(shown)})" if shown else self.name


# https://onnx.ai/onnx/operators/onnx__LSTM.html, "Activation functions".
_FORMULAS: dict[str, Callable[..., Any]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "LeakyRelu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
    "ThresholdedRelu": lambda x, alpha: np.where(x >= alpha, x, np.zeros_like(x)),
    "ScaledTanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "Elu": lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.logaddexp(x, 0),
}

# (alpha, beta): those of the operators of the same name.  ScaledTanh's has none; there it is the plain tanh.
_DEFAULTS: dict[str, tuple[float | None, float | None]] = {
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (1.0, None),
    "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, None),
}

_BY_LOWER_CASE = {name.lower(): name for name in _FORMULAS}


def make_activations(names: list[str], alphas: list[float], betas: list[float]) -> list[Activation]:
    """Give the parameters to the activations that have them, in order; what is missing has its default.

    Raises
    ------
    ValueError
        An activation is unknown, or there are more parameters than activations that have one.
    """
    left = {"activation_alpha": list(alphas), "activation_beta": list(betas)}
    made = []
    for written in names:
        name = _BY_LOWER_CASE.get(written.lower())
        if name is None:
            raise ValueError(f"activations has {written!r}; expected of {', '.join(_FORMULAS)}")
        values = []
        for default, given in zip(_DEFAULTS.get(name, (None, None)), left.values(), strict=True):
            values.append(given.pop(0) if default is not None and given else default)
        made.append(Activation(name, *values))
    for attribute, values_left in left.items():
        if values_left:
            given = alphas if attribute == "activation_alpha" else betas
            raise ValueError(
                f"{attribute} has {len(given)} values, but of the activations {', '.join(names)} only "
                f"{len(given) - len(values_left)} have such a parameter"
            )
    return made
