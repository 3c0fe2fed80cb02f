"""The modules of a model by name, and their modes, changed for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def leaves(model: Any) -> list[tuple[str, Any]]:
    """Return the modules of a model that hold parameters, with their names; a layer is its own, without."""
    return list(model.leaves()) if hasattr(model, "leaves") else [("", model)]


@contextmanager
def modes_kept(model: Any) -> Iterator[None]:
    """Give every module back its mode, what it is quantised to and its checkpoint, whatever happens."""
    before = [(module, _mode(module)) for _, module in leaves(model) if hasattr(module, "training")]
    try:
        yield
    finally:
        for module, mode in before:
            training, quantized, checkpoint = mode
            if _mode(module) != mode:
                module.train(training)
            if quantized is not None and _mode(module) != mode:
                module.quantize(quantized)
            if checkpoint is not None and _mode(module) != mode:
                module.train(checkpoint=checkpoint)


def _mode(module: Any) -> tuple[bool, str | None, int | None]:
    return module.training, getattr(module, "quantized", None), getattr(module, "_checkpoint", None)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Hold a model in eval mode for a while, also one of which only some modules are in training mode."""
    with modes_kept(model):
        if any(getattr(module, "training", False) for _, module in leaves(model)):
            model.eval()
        yield
