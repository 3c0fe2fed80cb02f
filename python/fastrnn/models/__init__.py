"""Recurrent layers made into the models that people train, as the textbooks name them.

Every one is a `Model`: called, gone back through, trained and inspected as a layer is.
"""

from ._model import Model
from .readouts import ManyToMany

__all__ = ["ManyToMany", "Model"]
