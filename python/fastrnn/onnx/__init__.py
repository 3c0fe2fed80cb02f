"""ONNX: its recurrent operators on the fused kernels, models read and written.

`run_node` runs one RNN, GRU or LSTM node, and `plan_node` tells on which path; `from_onnx` reads models
made of them, `to_onnx` writes layers; `Backend` is `onnx.backend`'s interface to the same.  Needs the extra
``onnx`` (``pip install 'fastrnn[onnx]'``), which an import of this package alone does not.
"""

from typing import TYPE_CHECKING, Any

from .._extras import require
from .export import to_onnx
from .graphs import Stack, from_onnx
from .nodes import plan_node, run_node

if TYPE_CHECKING:
    from .backend import Backend

__all__ = ["Backend", "Stack", "from_onnx", "plan_node", "run_node", "to_onnx"]


def __getattr__(name: str) -> Any:
    if name == "Backend":  # a subclass of one of onnx's
        require("onnx", "fastrnn.onnx.Backend")
        from .backend import Backend

        return Backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
