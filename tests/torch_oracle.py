"""torch.nn's recurrent layers on the arrays of a `Problem`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastrnn.layouts import Spec
from problems import Problem, flat, like_state


def make_layer(spec: Spec, parameters: dict[str, np.ndarray], batch_first: bool = False) -> torch.nn.RNNBase:
    """Return the layer of torch.nn with these options and parameters."""
    options: dict[str, Any] = {
        "num_layers": spec.num_layers,
        "bias": spec.bias,
        "bidirectional": spec.bidirectional,
        "batch_first": batch_first,
        "dtype": getattr(torch, spec.dtype),
    }
    if spec.cell == "lstm":
        options["proj_size"] = spec.proj_size
    if spec.cell == "rnn":
        options["nonlinearity"] = spec.nonlinearity
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[spec.cell](
        spec.input_size, spec.hidden_size, **options
    )
    layer.load_state_dict({name: torch.from_numpy(a) for name, a in parameters.items()})
    return layer


def run_torch(problem: Problem) -> tuple[Any, ...]:
    """Return (y, state_n), (dx, dstate, gradients) as torch.nn computes them, lengths by packing.

    torch knows no resets and no rows of length 0, and a problem given here must have neither.
    """
    spec = problem.spec
    layer = make_layer(spec, problem.parameters)
    real = np.ones(problem.x.shape[:2], dtype=bool)
    if problem.lengths is not None:
        real = np.arange(problem.steps)[:, None] < problem.lengths
    x = torch.from_numpy(np.where(real[:, :, None], problem.x, 0)).requires_grad_()
    state = [torch.from_numpy(a.copy()).requires_grad_() for a in flat(problem.state)]
    given: Any = x
    if problem.lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(problem.lengths), enforce_sorted=False
        )
    y, state_n = layer(given, like_state(spec, state))
    if problem.lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=problem.steps)
    dy = torch.from_numpy(np.where(real[:, :, None], problem.dy, 0))
    loss = (y * dy).sum()
    for out, dout in zip(flat(state_n), flat(problem.dstate_n), strict=True):
        loss = loss + (out * torch.from_numpy(dout)).sum()
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in layer.named_parameters()}
    return (
        (y.detach().numpy(), like_state(spec, (s.detach().numpy() for s in flat(state_n)))),
        (x.grad.numpy(), like_state(spec, (s.grad.numpy() for s in state)), gradients),
    )
