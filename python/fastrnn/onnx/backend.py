"""`onnx.backend.base.Backend` over `from_onnx` and `run_node`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx.backend.base import Backend as _Base
from onnx.backend.base import BackendRep, namedtupledict

from .graphs import Stack, from_onnx
from .nodes import run_node

__all__ = ["Backend", "Prepared"]


class Prepared(BackendRep):
    """A model ready to run: what `Backend.prepare` returns."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model with a list of inputs, or one array; outputs by place and by name."""
        values = inputs if isinstance(inputs, list | tuple) else [inputs]
        results: tuple[Any, ...] = namedtupledict("Outputs", list(self._stack.outputs))(*self._stack(*values))
        return results


class Backend(_Base):
    """ONNX's interface for back ends, for models of the operators that `from_onnx` reads, on the CPU.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.onnx import Backend, to_onnx
    >>> prepared = Backend.prepare(to_onnx(fastrnn.RNN(3, 4)))
    >>> prepared.run([np.ones((5, 2, 3), "float32")]).h_n.shape
    (1, 2, 4)
    """

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Tell whether `prepare` takes a model."""
        try:
            cls.prepare(model, device)
        except ValueError:
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Make a model ready to run; ValueError as `from_onnx`, or for another device."""
        if not cls.supports_device(device):
            raise ValueError(f"device is {device!r}; expected 'CPU'")
        return Prepared(from_onnx(model))

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Sequence[Any],
        device: str = "CPU",
        outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node, as `fastrnn.onnx.run_node`."""
        if not cls.supports_device(device):
            raise ValueError(f"device is {device!r}; expected 'CPU'")
        outputs = run_node(node, list(inputs))
        named = {name: value for name, value in zip(node.output, outputs, strict=True) if name}
        results: tuple[Any, ...] = namedtupledict("Outputs", list(named))(*named.values())
        return results

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Tell whether this is the CPU."""
        return device.split(":")[0] == "CPU"
