"""What all models share: several modules that are called, gone back through and trained as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

from .._backends import Array, backend_of_arrays
from ..layers import NamedArrays
from ..layouts import boolean
from ..training import Module

State = Any
"""None, an array, or a tuple of states; each array has the batch on its axis 1, as states of layers."""


def map_state(change: Callable[[Array], Array], state: State) -> State:
    """Apply a function to every array of a state."""
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(map_state(change, part) for part in state)
    return change(state)


class Model:
    """Named modules as one: what is true of a layer is true of a model.

    ``o, state_n = model(x, state)`` and ``dx, dstate = model.backward(do, dstate_n)`` take and give what a
    layer's calls do, time-major: x is (T, B, I), or tokens (T, B).  So a model stands where a layer can:
    inside another model, in `fastrnn.training`, in `fastrnn.diagnostics`.  Outputs o are logits where they
    stand for classes; the losses take the softmax.

    Parameters
    ----------
    parts
        Layers, `training.Linear`, models: names and order are those of the parameters.
    """

    def __init__(self, **parts: Module) -> None:
        self._parts = parts

    @property
    def parts(self) -> Mapping[str, Module]:
        """The modules by name."""
        return MappingProxyType(self._parts)

    @property
    def parameters(self) -> NamedArrays:
        """``part.name`` to array, for every part."""
        return NamedArrays(self._joined("parameters"))

    @property
    def gradients(self) -> NamedArrays:
        """``part.name`` to gradient, in the order of `parameters`."""
        return NamedArrays(self._joined("gradients"))

    def _joined(self, kind: str) -> dict[str, Array]:
        return {
            f"{part}.{name}": array
            for part, module in self._parts.items()
            for name, array in getattr(module, kind).items()
        }

    def leaves(self) -> Iterator[tuple[str, Module]]:
        """Go through the layers and output layers, of models inside too, with their dotted names."""
        for name, module in self._parts.items():
            if isinstance(module, Model):
                yield from ((f"{name}.{inner}", leaf) for inner, leaf in module.leaves())
            else:
                yield name, module

    # ------------------------------------------------------------------------------------- calls

    def __call__(self, x: Any, state: State = None) -> tuple[Any, State]:
        """Return outputs and final state; subclasses say of what shape."""
        raise NotImplementedError(f"{type(self).__name__} has no forward pass")

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last training call, once, and add to `gradients`."""
        raise NotImplementedError(f"{type(self).__name__} has no backward pass")

    # ------------------------------------------------------------------------------------- modes

    @property
    def training(self) -> bool:
        """Whether its layers are in training mode."""
        return all(getattr(leaf, "training", True) for _, leaf in self.leaves())

    def train(self, mode: bool = True) -> Self:
        """Switch every layer to training mode, or with False to eval mode; returns the model itself."""
        mode = boolean("mode", mode)
        for _, leaf in self.leaves():
            if hasattr(leaf, "train"):
                leaf.train(mode)
        return self

    def eval(self) -> Self:
        """Switch every layer to eval mode; returns the model itself."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        for gradient in self.gradients.values():
            backend_of_arrays([gradient]).clear(gradient)

    # ------------------------------------------------------------------------------------- copies

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters, in the order of `parameters`."""
        return {name: array.copy() for name, array in self.parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy parameters from a mapping with exactly the names and shapes of `parameters`, in either mode.

        Raises
        ------
        TypeError, ValueError
            Something is missing, unexpected, or of another shape or kind; nothing has changed then.
        """
        raise NotImplementedError
