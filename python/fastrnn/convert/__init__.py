"""Weights from other systems and back: PyTorch, Keras, Flax, Haste.

``from_*`` makes a fastrnn layer of another system's layer, of its parameters by name, or of a file of
safetensors; ``to_*`` goes back.  Values are copied as they are: there and back gives the same bits.
Where a system has one bias and fastrnn two, the other is 0, and on the way back they are added.  Nothing
but NumPy is imported until a layer of another system is given or asked for; ONNX is `fastrnn.onnx`.
"""

from ._flax import from_flax, to_flax
from ._haste import from_haste, to_haste
from ._keras import from_keras, keras_weights, to_keras
from ._torch import from_torch, to_torch
from .backwards import Backwards, lengths_from_mask

__all__ = [
    "Backwards",
    "from_flax",
    "from_haste",
    "from_keras",
    "from_torch",
    "keras_weights",
    "lengths_from_mask",
    "to_flax",
    "to_haste",
    "to_keras",
    "to_torch",
]
