"""The layers as differentiable torch formulas: slow, and what second derivatives are made of.

Everything is out of place, so that torch.func's transforms can go through it.  The equations are those that
`fastrnn.reference` spells out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import reference
from .._calls import Layout
from ..layouts import Spec

Tensor = Any
State = tuple[Tensor, ...]


def to_time_major(layout: Layout, sequence: Tensor) -> Tensor:
    """View a sequence, or resets, as (T, B, ...)."""
    if layout.axes == "BT":
        return sequence.transpose(0, 1)
    if "B" not in layout.axes:
        sequence = sequence.unsqueeze(len(layout.axes))
    return sequence if "T" in layout.axes else sequence.unsqueeze(0)


def from_time_major(layout: Layout, sequence: Tensor) -> Tensor:
    """Undo `to_time_major`."""
    if layout.axes == "BT":
        return sequence.transpose(0, 1)
    if "T" not in layout.axes:
        sequence = sequence.squeeze(0)
    return sequence if "B" in layout.axes else sequence.squeeze(len(layout.axes))


def state_to_time_major(layout: Layout, state: Tensor) -> Tensor:
    """View a state as (L*D, B, ...)."""
    if "T" not in layout.axes:
        state = state.unsqueeze(0)
    return state if "B" in layout.axes else state.unsqueeze(1)


def state_from_time_major(layout: Layout, state: Tensor) -> Tensor:
    """Undo `state_to_time_major`."""
    if "B" not in layout.axes:
        state = state.squeeze(1)
    return state if "T" in layout.axes else state.squeeze(0)


class _Scale(torch.autograd.Function):
    """`reference.dropout_scale` of a seed, under torch.func.vmap of each sample's own; no derivative."""

    @staticmethod
    def forward(seed: Tensor, spec: Spec, layer: int, steps: int, batch: int) -> Tensor:
        return torch.from_numpy(reference.dropout_scale(spec, layer, steps, batch, (int(seed), 0)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:
        return (None,) * 5

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, seed: Tensor, *sizes: Any) -> tuple[Tensor, int]:
        return torch.stack([_Scale.apply(one, *sizes) for one in seed.unbind(in_dims[0])]), 0


def network(
    spec: Spec,
    layout: Layout,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor | None,
) -> State:
    """Return (y, h_n) or (y, h_n, c_n) in the layout of x; of a cell without y."""
    x = to_time_major(layout, x)
    steps, batch = x.shape[:2]
    state = [
        x.new_zeros(shape) if part is None else state_to_time_major(layout, part)
        for part, shape in zip((h, c), spec.state_shapes(batch), strict=False)
    ]
    active = None if lengths is None else torch.arange(steps, device=x.device)[:, None] < lengths
    if resets is not None:
        resets = to_time_major(layout, resets)
        if active is not None:
            resets = resets & active
    if active is not None:  # 0 times the derivative at a NaN is no 0
        x = torch.where(active[..., None], x, torch.zeros_like(x))
    parameters = dict(zip(spec.parameter_shapes(), weights, strict=True))
    finals: list[State] = []
    for number, suffix in enumerate(spec.suffixes()):
        layer, direction = divmod(number, spec.num_directions)
        own = {k.removesuffix(suffix): w for k, w in parameters.items() if k.endswith(suffix)}
        if direction == 0:
            if layer > 0 and seed is not None:
                x = x * _Scale.apply(seed, spec, layer - 1, steps, batch).to(x)
            outputs: list[Tensor] = []
        y, final = _one_direction(
            spec, own, x, tuple(part[number] for part in state), active, resets, direction
        )
        outputs.append(y)
        finals.append(final)
        if direction == spec.num_directions - 1:
            x = torch.cat(outputs, -1)
    state_n = (state_from_time_major(layout, torch.stack(part)) for part in zip(*finals, strict=True))
    return tuple(state_n) if "T" not in layout.axes else (from_time_major(layout, x), *state_n)


def _one_direction(
    spec: Spec,
    p: dict[str, Tensor],
    x: Tensor,
    state: State,
    active: Tensor | None,
    resets: Tensor | None,
    direction: int,
) -> tuple[Tensor, State]:
    """Return the outputs (T, B, R) and the final state of one direction of one layer."""
    steps = x.shape[0]
    from_input = x @ p["weight_ih"].T
    if "bias_ih" in p:
        from_input = from_input + p["bias_ih"]
    step = {"lstm": _lstm_step, "gru": _gru_step, "rnn": _rnn_step}[spec.cell]
    outputs: list[Tensor] = [None] * steps
    for t in reference.walk(steps, direction):
        boundary = t + direction  # the one between this step and the one walked before it
        entered = state
        if resets is not None and boundary < steps:
            entered = tuple(torch.where(resets[boundary][:, None], torch.zeros_like(s), s) for s in state)
        if active is None:
            state = step(spec, p, from_input[t], entered)
            outputs[t] = state[0]
        else:
            real = active[t][:, None]
            entered = tuple(torch.where(real, s, torch.zeros_like(s)) for s in entered)
            left = step(spec, p, from_input[t], entered)
            state = tuple(torch.where(real, new, old) for new, old in zip(left, state, strict=True))
            outputs[t] = torch.where(real, left[0], torch.zeros_like(left[0]))
    return torch.stack(outputs), state


def _product(p: dict[str, Tensor], v: Tensor, rows: slice = slice(None)) -> Tensor:
    product = v @ p["weight_hh"][rows].T
    return product + p["bias_hh"][rows] if "bias_hh" in p else product


def _rnn_step(spec: Spec, p: dict[str, Tensor], x: Tensor, state: State) -> State:
    a = x + _product(p, state[0])
    return (a if spec.nonlinearity == "identity" else getattr(torch, spec.nonlinearity)(a),)


def _gru_step(spec: Spec, p: dict[str, Tensor], x: Tensor, state: State) -> State:
    (h,) = state
    both, last = slice(2 * spec.hidden_size), slice(2 * spec.hidden_size, None)
    r, z = torch.sigmoid(x[..., both] + _product(p, h, both)).chunk(2, -1)
    candidate = r * _product(p, h, last) if spec.reset_after else _product(p, r * h, last)
    n = torch.tanh(x[..., last] + candidate)
    return ((1 - z) * n + z * h,)


def _lstm_step(spec: Spec, p: dict[str, Tensor], x: Tensor, state: State) -> State:
    h, c = state
    i, f, g, o = (x + _product(p, h)).chunk(4, -1)

    def peephole(gate: int, cell: Tensor) -> Tensor:
        if spec.peephole == "none":
            return 0.0
        rows = p["weight_ch"].chunk(3, 0)[gate]
        return cell @ rows.T if spec.peephole == "full" else rows * cell

    kept, taken = torch.sigmoid(f + peephole(1, c)), torch.sigmoid(i + peephole(0, c))
    c_new = kept * c + taken * torch.tanh(g)
    h_new = torch.sigmoid(o + peephole(2, c_new)) * torch.tanh(c_new)
    return (h_new @ p["weight_hr"].T if spec.proj_size else h_new), c_new
