"""torch.nn's recurrent modules over the kernels of fastrnn: drop-in, with autograd.

`LSTM`, `GRU`, `RNN` and their cells take torch.nn's arguments and give its results, from the same initial
weights and the same checkpoints; `replace` puts them into a model that is there.  Needs PyTorch, the extra
``fastrnn[torch]``.

Examples
--------
>>> import torch
>>> import fastrnn.torch
>>> model = torch.nn.LSTM(3, 4)
>>> x = torch.randn(5, 2, 3)
>>> expected, _ = model(x)
>>> ours = fastrnn.torch.LSTM(3, 4)
>>> ours.load_state_dict(model.state_dict())
<All keys matched successfully>
>>> y, _ = ours(x)
>>> torch.allclose(y, expected, atol=1e-5)
True
"""

from .._extras import require

try:
    from ._modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
    from ._replace import replace
except ModuleNotFoundError:
    require("torch", "fastrnn.torch")
    raise

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "replace"]
