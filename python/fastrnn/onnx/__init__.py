"""ONNX: its recurrent operators on the fused kernels, models read and written.

`run_node` runs one RNN, GRU or LSTM node, and `plan_node` tells on which path.  Needs the extra ``onnx``
(``pip install fastrnn[onnx]``), which an import of this package alone does not.
"""

from .nodes import plan_node, run_node

__all__ = ["plan_node", "run_node"]
