"""A model for a while in eval mode, and its layers by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def leaves(model: Any) -> list[tuple[str, Any]]:
    """Return the layers and output layers of a model by name; a layer is its own only one."""
    if hasattr(model, "leaves"):
        return list(model.leaves())
    return [(type(model).__name__, model)]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Hold a model in eval mode; after it, it is in training mode, with its checkpoints, if it was before."""
    if not model.training:
        yield
        return
    # train() after eval() keeps the gates of every step: a checkpoint has to be asked for again.
    checkpoints = [(leaf, getattr(leaf, "_checkpoint", None)) for _, leaf in leaves(model)]
    model.eval()
    try:
        yield
    finally:
        model.train()
        for leaf, checkpoint in checkpoints:
            if checkpoint is not None:
                leaf.train(checkpoint=checkpoint)
