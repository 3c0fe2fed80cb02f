"""The kernels as operators that torch knows: with autograd, fake tensors, vmap and second derivatives.

There are two ways in, over the same kernels and the same formulas.  What traces or wraps tensors
(torch.compile, torch.export, fake and meta tensors, dispatch modes) sees the operators ``torch.ops.fastrnn``;
plain tensors, and those of torch.func, go through an autograd.Function, which costs a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from . import _kernels
from ._formula import network

Tensor = Any

_library = torch.library.Library("fastrnn", "DEF")

_INPUTS = "Tensor x, Tensor? h, Tensor? c, Tensor[] weights, Tensor? lengths, Tensor? resets, Tensor? seed, "
_library.define(f"infer({_INPUTS} str options, bool cached) -> (Tensor y, Tensor h_n, Tensor c_n)")
_library.define(
    f"train({_INPUTS} str options, bool cached) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor reserve)"
)
_library.define(
    f"backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, {_INPUTS} Tensor y, Tensor reserve, str options, "
    "bool need_dx) -> (Tensor dx, Tensor dh, Tensor dc, Tensor[] dweights)"
)

# Operators return tensors: an empty one where there is nothing.


def _filled(parts: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if part is None else part for part in parts]


def _infer(*inputs: Any) -> tuple[Tensor, ...]:
    y, h_n, c_n, _ = _kernels.run_forward(*(*inputs, False))
    return tuple(_filled((y, h_n, c_n), inputs[0]))


def _train(*inputs: Any) -> tuple[Tensor, ...]:
    y, h_n, c_n, token = _kernels.run_forward(*(*inputs, True))
    return (*_filled((y, h_n, c_n), inputs[0]), token)


def _backward(dy: Tensor, dh_n: Tensor, dc_n: Tensor, x: Tensor, *others: Any) -> tuple[Any, ...]:
    *results, sums = _kernels.run_backward(dy, dh_n, dc_n, x, *others)
    return (*_filled(results, x), sums)


for _device in ("CPU", "CUDA"):
    _library.impl("infer", _infer, _device)
    _library.impl("train", _train, _device)
    _library.impl("backward", _backward, _device)


# ------------------------------------------------------------------------------------ fake tensors


@torch.library.register_fake("fastrnn::infer", lib=_library)
def _infer_fake(x: Tensor, h: Any, c: Any, weights: Any, lengths: Any, resets: Any, seed: Any, options: str,
                cached: bool) -> tuple[Tensor, ...]:  # fmt: skip
    plan = _kernels.plan_of(options, x.dtype)
    y = x.new_empty((*x.shape[:-1], plan.output_size) if plan.steps else 0)
    state = [x.new_empty(shape) for shape in plan.state_shapes(x)]
    return y, state[0], state[1] if plan.lstm else x.new_empty(0)


@torch.library.register_fake("fastrnn::train", lib=_library)
def _train_fake(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return (*_infer_fake(x, *others), torch.empty((1,), dtype=torch.int64, device="cpu"))


@torch.library.register_fake("fastrnn::backward", lib=_library)
def _backward_fake(dy: Any, dh_n: Any, dc_n: Any, x: Tensor, h: Any, c: Any, weights: Any, lengths: Any,
                   resets: Any, seed: Any, y: Any, reserve: Any, options: str,
                   need_dx: bool) -> tuple[Any, ...]:  # fmt: skip
    plan = _kernels.plan_of(options, x.dtype)
    state = [x.new_empty(shape) for shape in plan.state_shapes(x)]
    dx = x.new_empty(x.shape if need_dx else 0)
    dweights = [w.new_empty(w.shape) for w in weights]
    return dx, state[0], state[1] if plan.lstm else x.new_empty(0), dweights


# --------------------------------------------------------------------------- second derivatives


def _second(
    options: str,
    incoming: Sequence[Tensor | None],
    primals: Sequence[Any],
    others: tuple[Tensor | None, Tensor | None, Tensor | None],
    gradients: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return the gradients in `incoming` and `primals` of the sums that backward made of them.

    `primals` are x, h, c and the weights, `gradients` those in what backward returned for each.
    """
    there = [n for n, value in enumerate(primals) if value is not None]
    given = [n for n, value in enumerate(incoming) if value is not None]
    plan = _kernels.plan_of(options, primals[0].dtype)
    lengths, resets, seed = others

    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        full: list[Any] = [None] * len(primals)
        for n, value in zip(there, values, strict=True):
            full[n] = value
        x, h, c, *weights = full
        results = network(plan.spec, plan.layout, x, h, c, weights, lengths, resets, seed)
        if not plan.steps:
            results = (None, *results)
        return tuple(results[n] for n in given)

    def first(*values: Tensor) -> tuple[Tensor, ...]:
        _, pull = torch.func.vjp(forward, *values[len(given) :])
        found: tuple[Tensor, ...] = pull(values[: len(given)])
        return found

    values = [incoming[n] for n in given] + [primals[n] for n in there]
    wanted = [torch.zeros_like(primals[n]) if gradients[n] is None else gradients[n] for n in there]
    with torch.autocast(primals[0].device.type, enabled=False):  # the kernels round to no half either
        _, pull = torch.func.vjp(first, *values)
        sums = pull(tuple(wanted))
    to_incoming: list[Tensor | None] = [None] * len(incoming)
    to_primals: list[Tensor | None] = [None] * len(primals)
    for n, total in zip(given, sums, strict=False):
        to_incoming[n] = total
    for n, total in zip(there, sums[len(given) :], strict=True):
        to_primals[n] = total
    return to_incoming, to_primals


# ------------------------------------------------------------------ autograd of the operators
# What forward saves, and in which order: x h c lengths resets seed y reserve weights.


def _setup_train(ctx: Any, inputs: Any, output: Any) -> None:
    x, h, c, weights, lengths, resets, seed, ctx.options, _ = inputs
    y, h_n, _, reserve = output
    seen = y if "layout=T" in ctx.options or "layout=BT" in ctx.options else h_n
    ctx.save_for_backward(x, h, c, lengths, resets, seed, seen, reserve, *weights)
    ctx.set_materialize_grads(False)


def _train_backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any) -> tuple[Any, ...]:
    x, h, c, lengths, resets, seed, y, reserve, *weights = ctx.saved_tensors
    lstm = "cell=lstm" in ctx.options
    dx, dh, dc, sums = torch.ops.fastrnn.backward(
        dy, dh_n, dc_n if lstm else None, x, h, c, weights, lengths, resets, seed, y, reserve,
        ctx.options, ctx.needs_input_grad[0],
    )  # fmt: skip
    return (
        dx if ctx.needs_input_grad[0] else None,
        None if h is None else dh,
        None if c is None else dc,
        sums,
        *[None] * 5,
    )


def _setup_infer(ctx: Any, inputs: Any, output: Any) -> None:
    x, h, c, weights, lengths, resets, seed, ctx.options, _ = inputs
    ctx.save_for_backward(x, h, c, lengths, resets, seed, *weights)
    ctx.set_materialize_grads(False)


def _infer_backward(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "torch.ops.fastrnn.infer saves nothing to go back through; call torch.ops.fastrnn.train where "
        "gradients are wanted, as the modules do"
    )


def _setup_backward(ctx: Any, inputs: Any, output: Any) -> None:
    dy, dh_n, dc_n, x, h, c, weights, lengths, resets, seed, _, _, ctx.options, _ = inputs
    ctx.save_for_backward(dy, dh_n, dc_n, lengths, resets, seed, x, h, c, *weights)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, ddx: Any, ddh: Any, ddc: Any, dsums: Any) -> tuple[Any, ...]:
    dy, dh_n, dc_n, lengths, resets, seed, *primals = ctx.saved_tensors
    lstm = "cell=lstm" in ctx.options
    gradients = [ddx, ddh, ddc if lstm else None, *dsums]
    to_incoming, (x, h, c, *weights) = _second(
        ctx.options, (dy, dh_n, dc_n), primals, (lengths, resets, seed), gradients
    )
    return (*to_incoming, x, h, c, weights, *[None] * 7)


torch.library.register_autograd("fastrnn::train", _train_backward, setup_context=_setup_train, lib=_library)
torch.library.register_autograd("fastrnn::infer", _infer_backward, setup_context=_setup_infer, lib=_library)
torch.library.register_autograd(
    "fastrnn::backward", _backward_backward, setup_context=_setup_backward, lib=_library
)


# ------------------------------------------------------------------- autograd of plain tensors


class _Backward(torch.autograd.Function):
    """Backward, with a derivative."""

    @staticmethod
    def forward(options: str, need_dx: bool, dy: Any, dh_n: Any, dc_n: Any, x: Any, h: Any, c: Any,
                lengths: Any, resets: Any, seed: Any, y: Any, token: Any,
                *weights: Any) -> tuple[Any, ...]:  # fmt: skip
        dx, dh, dc, sums = _kernels.run_backward(
            dy, dh_n, dc_n, x, h, c, weights, lengths, resets, seed, y, token, options, need_dx
        )
        return dx, None if h is None else dh, None if c is None else dc, *sums

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.options, _, dy, dh_n, dc_n, x, h, c, lengths, resets, seed, _, _, *weights = inputs
        ctx.save_for_backward(dy, dh_n, dc_n, lengths, resets, seed, x, h, c, *weights)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        dy, dh_n, dc_n, lengths, resets, seed, *primals = ctx.saved_tensors
        to_incoming, (x, h, c, *weights) = _second(
            ctx.options, (dy, dh_n, dc_n), primals, (lengths, resets, seed), gradients
        )
        return (None, None, *to_incoming, x, h, c, *[None] * 5, *weights)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _one_by_one(_Backward, info.batch_size, in_dims, inputs)


# torch.autograd has a vmap of its own, older than torch.func's, for `grad(is_grads_batched=True)`,
# `jacobian(vectorize=True)` and gradcheck; a function is not asked for a rule, but sees its tensors.
_is_of_autograd = torch._C._functorch.is_legacy_batchedtensor


def _of_autograds_vmap(inputs: tuple[Any, ...]) -> list[Any]:
    """Return what `_Backward` makes of several gradients in one tensor."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    dims = tuple(0 if isinstance(part, torch.Tensor) and _is_of_autograd(part) else None for part in inputs)
    plain = tuple(
        part if dim is None else torch._remove_batch_dim(part, level, 1, dim)
        for part, dim in zip(inputs, dims, strict=True)
    )
    size = next(len(part) for part, dim in zip(plain, dims, strict=True) if dim is not None)
    results, _ = _one_by_one(_Backward, size, dims, plain)
    return [None if part is None else torch._add_batch_dim(part, 0, level) for part in results]


class _Recurrence(torch.autograd.Function):
    """Forward of plain tensors under torch.func: the operator ``train`` without the dispatcher."""

    @staticmethod
    def forward(options: str, cached: bool, x: Any, h: Any, c: Any, lengths: Any, resets: Any, seed: Any,
                *weights: Any) -> tuple[Any, ...]:  # fmt: skip
        return _kernels.run_forward(x, h, c, weights, lengths, resets, seed, options, cached, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.options, _, x, h, c, lengths, resets, seed, *weights = inputs
        y, h_n, _, token = output
        ctx.mark_non_differentiable(token)
        ctx.save_for_backward(x, h, c, lengths, resets, seed, h_n if y is None else y, token, *weights)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any = None) -> tuple[Any, ...]:
        x, h, c, lengths, resets, seed, y, token, *weights = ctx.saved_tensors
        if dy is None and dh_n is None and dc_n is None:
            return (None,) * (8 + len(weights))
        inputs = (ctx.options, ctx.needs_input_grad[2], dy, dh_n, dc_n, x, h, c, lengths, resets, seed, y,
                  token, *weights)  # fmt: skip
        # A second derivative may be asked for where gradients are enabled.
        run = _Backward.apply if torch.is_grad_enabled() else _Backward.forward
        try:
            dx, dh, dc, *sums = run(*inputs)
        except RuntimeError:
            if not any(isinstance(part, torch.Tensor) and _is_of_autograd(part) for part in inputs):
                raise
            dx, dh, dc, *sums = _of_autograds_vmap(inputs)
        return (None, None, dx, dh, dc, None, None, None, *sums)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _one_by_one(_Recurrence, info.batch_size, in_dims, inputs)


class _Plain(torch.autograd.Function):
    """The same outside torch.func, which wants a context of its own and the token among the results."""

    @staticmethod
    def forward(ctx: Any, options: str, cached: bool, x: Any, h: Any, c: Any, lengths: Any, resets: Any,
                seed: Any, *weights: Any) -> tuple[Any, ...]:  # fmt: skip
        y, h_n, c_n, token = _kernels.run_forward(
            x, h, c, weights, lengths, resets, seed, options, cached, True
        )
        ctx.options = options
        ctx.save_for_backward(x, h, c, lengths, resets, seed, h_n if y is None else y, token, *weights)
        ctx.set_materialize_grads(False)
        return y, h_n, c_n

    backward = _Recurrence.backward


def _one_by_one(
    function: Any, size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Apply a function to one sample after the other: each has weights, or gradients in them, of its own."""
    if size == 0:
        raise ValueError("vmap goes over 0 samples; expected at least 1")
    results = [
        function.apply(
            *(
                value if dim is None else value.select(dim, n)
                for value, dim in zip(inputs, in_dims, strict=True)
            )
        )
        for n in range(size)
    ]
    columns = list(zip(*results, strict=True))
    stacked = [None if column[0] is None else torch.stack(column) for column in columns]
    if function is _Recurrence:
        stacked[3] = _kernels.stack_tokens(columns[3])
    return tuple(stacked), tuple(None if value is None else 0 for value in stacked)


def _have_tangents(tensors: Sequence[Tensor | None]) -> bool:
    # Of torch.func the tangents may be below what another transform wrapped, as in forward over reverse.
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) or any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def _forward_mode(
    x: Tensor, h: Any, c: Any, weights: Sequence[Tensor], lengths: Any, resets: Any, seed: Any, options: str
) -> tuple[Any, ...]:
    """Return y, h_n and c_n with tangents: the kernels have none, the formula has."""
    plan = _kernels.plan_of(options, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        results = network(plan.spec, plan.layout, x, h, c, weights, lengths, resets, seed)
    y, h_n, *rest = results if plan.steps else (None, *results)
    return y, h_n, rest[0] if plan.lstm else None


def recurrence(
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor | None,
    options: str,
    cached: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, h_n and c_n by the shortest way for these tensors.

    `cached` allows packed weights of an earlier call if they have not changed since.
    """
    if forward_ad._current_level >= 0 and _have_tangents((x, h, c, *weights)):
        return _forward_mode(x, h, c, weights, lengths, resets, seed, options)
    tracing = torch._C._get_tracing_state() is not None
    # torch.jit.trace checks a trace by another one without gradients, which has to be the same.
    graph = (tracing or torch.is_grad_enabled()) and (
        weights[0].requires_grad
        or x.requires_grad
        or any(w.requires_grad for w in weights)
        or (h is not None and h.requires_grad)
        or (c is not None and c.requires_grad)
    )
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or x.is_meta or tracing:
        plain = False
    elif torch._C._are_functorch_transforms_active():
        y, h_n, c_n, _ = _Recurrence.apply(options, cached, x, h, c, lengths, resets, seed, *weights)
        return y, h_n, c_n
    else:
        plain = type(x) is torch.Tensor
    if not plain:
        operator = torch.ops.fastrnn.train if graph else torch.ops.fastrnn.infer
        y, h_n, c_n = operator(x, h, c, weights, lengths, resets, seed, options, cached)[:3]
    elif graph:
        # Past the part of apply() in Python, which is for torch.func and twice as long as the rest.
        y, h_n, c_n = super(torch.autograd.Function, _Plain).apply(
            options, cached, x, h, c, lengths, resets, seed, *weights
        )
    else:
        y, h_n, c_n, _ = _kernels.run_forward(x, h, c, weights, lengths, resets, seed, options, cached, False)
    return y, h_n, c_n
