"""Fast recurrent layers: LSTM, GRU and Elman RNN, forward and backward, without a framework.

The layers take torch.nn's arguments, parameter names and shapes; see `LSTM`, `GRU`, `RNN` and their
single-step cells.  `functional` has the same as pure functions, `reference` as plain NumPy loops
written to be read, `training` what else it takes to train.

Examples
--------
>>> import numpy as np
>>> import fastrnn
>>> layer = fastrnn.LSTM(input_size=3, hidden_size=4, seed=0)
>>> y, (h_n, c_n) = layer(np.ones((5, 2, 3), "float32"))
>>> y.shape, h_n.shape, c_n.shape
((5, 2, 4), (1, 2, 4), (1, 2, 4))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _core, functional
from .info import get_float32_products, get_num_threads, info, set_float32_products, set_num_threads
from .layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, load
from .streaming import Stream

if TYPE_CHECKING:
    from . import convert, diagnostics, models, onnx, reference, sampling, training

__version__: str = _core.build_info()["version"]

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stream",
    "__version__",
    "convert",
    "diagnostics",
    "functional",
    "get_float32_products",
    "get_num_threads",
    "info",
    "load",
    "models",
    "onnx",
    "reference",
    "sampling",
    "set_float32_products",
    "set_num_threads",
    "training",
]

# Submodules that an import of the package does not wait for.
_LATER = ("convert", "diagnostics", "jax", "models", "onnx", "reference", "sampling", "torch", "training")

# Of `convert`, for short.
_CONVERTERS = [f"{way}_{system}" for way in ("from", "to") for system in ("flax", "haste", "keras", "torch")]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return import_module(f".{name}", __name__)
    if name in _CONVERTERS:
        return getattr(import_module(".convert", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_CONVERTERS})
