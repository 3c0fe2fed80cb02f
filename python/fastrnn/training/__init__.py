"""What it takes to train a recurrent layer from NumPy: output layer, loss, clipping, optimizers.

Everything works on *modules*: objects with two dictionaries of equal keys and shapes,
``parameters`` and ``gradients``, as every fastrnn layer has.  Gradients accumulate until
``zero_grad()``; optimizers write the parameters in place.  Everything also works on CUDA devices, by
kernels on arrays that stay there; running means of 16-bit parameters are float32.

Examples
--------
Learn to repeat the previous value of a random sequence.

>>> import numpy as np
>>> import fastrnn
>>> from fastrnn.training import Adam, Linear, clip_by_global_norm
>>> rng = np.random.default_rng(0)
>>> rnn, readout = fastrnn.GRU(1, 16, seed=0), Linear(16, 1, seed=1)
>>> optimizer = Adam([rnn, readout], learning_rate=1e-2)
>>> for step in range(150):
...     x = rng.standard_normal((20, 8, 1), dtype=np.float32)
...     target = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
...     y, _ = rnn(x)
...     error = readout(y) - target
...     optimizer.zero_grad()
...     _ = rnn.backward(readout.backward(2 * error / error.size))
...     _ = clip_by_global_norm([rnn, readout], 1.0)
...     optimizer.step()
>>> bool(np.mean(error**2) < 0.2)
True
"""

from __future__ import annotations

from . import initialisers
from .bptt import accumulate, full_bptt, truncated_bptt
from .checkpoint import Checkpoint
from .clipping import clip_by_global_norm, clip_by_value
from .history import History
from .loop import Batches, fit, mean_loss
from .losses import (
    bits_per_symbol,
    log_likelihood,
    mean_squared_error,
    perplexity,
    softmax,
    softmax_cross_entropy,
    valid_steps,
)
from .modules import Linear, Module
from .newton import Newton
from .optimizers import SGD, AdaGrad, Adam, AdamW, RMSprop
from .schedules import cosine_learning_rate, inverse_decay, inverse_sqrt_decay, linear_warmup
from .teaching import (
    ScheduledSampling,
    exponential_decay,
    free_running,
    inverse_sigmoid_decay,
    linear_decay,
    scheduled_inputs,
    teacher_forced,
)

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Batches",
    "Checkpoint",
    "History",
    "Linear",
    "Module",
    "Newton",
    "RMSprop",
    "ScheduledSampling",
    "accumulate",
    "bits_per_symbol",
    "clip_by_global_norm",
    "clip_by_value",
    "cosine_learning_rate",
    "exponential_decay",
    "fit",
    "free_running",
    "full_bptt",
    "initialisers",
    "inverse_decay",
    "inverse_sigmoid_decay",
    "inverse_sqrt_decay",
    "linear_decay",
    "linear_warmup",
    "log_likelihood",
    "mean_loss",
    "mean_squared_error",
    "perplexity",
    "scheduled_inputs",
    "softmax",
    "softmax_cross_entropy",
    "teacher_forced",
    "truncated_bptt",
    "valid_steps",
]
