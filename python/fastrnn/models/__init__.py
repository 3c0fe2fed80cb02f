"""Recurrent layers made into the models that people train, as the textbooks name them.

Every one but `LayerNorm`, a part of some, is a `Model`: called, gone back through, trained and inspected
as a layer is.  Deep and bidirectional networks are the layers' own:
``fastrnn.LSTM(..., num_layers=2, bidirectional=True)``.
"""

from ._model import Model, ModelStream, map_state
from .deep_in_time import DeepInTime
from .encoder_decoder import EncoderDecoder
from .layer_norm import LayerNorm, LayerNormGRU, LayerNormLSTM
from .output_feedback import OutputFeedback
from .readouts import ManyToMany, ManyToOne, OneToMany
from .sweep import Sweep2D
from .taps import MultiTap, TimeDelay

__all__ = [
    "DeepInTime",
    "EncoderDecoder",
    "LayerNorm",
    "LayerNormGRU",
    "LayerNormLSTM",
    "ManyToMany",
    "ManyToOne",
    "Model",
    "ModelStream",
    "MultiTap",
    "OneToMany",
    "OutputFeedback",
    "Sweep2D",
    "TimeDelay",
    "map_state",
]
