"""Where a training that diverged went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from .._backends import on_host


def where_it_began(model: Any, x: Any, again: Callable[[], object]) -> str:
    """Tell what was not finite first, and the gradient norm of every layer.

    Parameters
    ----------
    model
        In training mode.
    x
        Of the call that went wrong.
    again
        Makes that call once more, forward and backward.
    """
    from ..diagnostics import GradientNorms  # which imports this package

    if not _finite(x):
        return "x holds NaN or infinity"
    for name, parameter in model.parameters.items():
        if not _finite(parameter):
            return f"the parameter {name} holds NaN or infinity"
    model.zero_grad()
    found: list[str] = []
    with _watched(model, found), np.errstate(all="ignore"):
        again()
    first = (
        f"first not finite: {found[0]}"
        if found
        else "no output and no gradient of a layer is NaN or infinite"
    )
    norms = GradientNorms()
    norms(0, model)
    told = ", ".join(f"{layer} {norm:.3g}" for layer, (norm,) in norms.norms.items())
    return f"{first}; gradient norms: {told}"


def _finite(array: Any) -> bool:
    array = np.asarray(on_host(array))
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _modules(model: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Go through a model, what it is made of, and what that is made of."""
    yield name, model
    for part, module in getattr(model, "parts", {}).items():
        yield from _modules(module, f"{name}.{part}")


@contextmanager
def _watched(model: Any, found: list[str]) -> Iterator[None]:
    """Note, in order, what returns or adds something that is not finite."""
    kinds = [(module, type(module)) for _, module in _modules(model, "")]
    for name, module in _modules(model, type(model).__name__):
        # What the parts of a composed model compute is told before it, since they return before it.
        with suppress(TypeError):  # of a class that cannot be derived from, or changed
            module.__class__ = _watching(type(module), name, found)
    try:
        yield
    finally:
        for module, kind in kinds:
            if type(module) is not kind:
                module.__class__ = kind


def _watching(kind: Any, name: str, found: list[str]) -> type:
    """Make a subclass whose calls look at what they return: a call looks its method up in the class."""

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        returned = kind.__call__(self, *arguments, **options)
        if not _all_finite(returned):
            found.append(f"the output of {name}")
        return returned

    def backward(self: Any, *arguments: Any, **options: Any) -> Any:
        returned = kind.backward(self, *arguments, **options)
        if not all(_finite(gradient) for gradient in self.gradients.values()):
            found.append(f"the gradients of {name}")
        return returned

    return type(kind.__name__, (kind,), {"__slots__": (), "__call__": call, "backward": backward})


def _all_finite(returned: Any) -> bool:
    if isinstance(returned, tuple | list):
        return all(_all_finite(part) for part in returned)
    return not hasattr(returned, "dtype") or _finite(returned)
