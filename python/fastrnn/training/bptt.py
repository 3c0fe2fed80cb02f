"""Gradients of one update: back-propagation through time in full, truncated, or over several mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import _device
from .._arrays import is_on_device
from ..layouts import integer
from ._numbers import returned
from .losses import valid_steps
from .modules import Module

LossFunction = Callable[..., tuple[float, Any]]
"""``loss, do = loss(o, targets, mask=None)``, as `softmax_cross_entropy`."""

Batch = tuple[Any, Any] | tuple[Any, Any, Mapping[str, Any]]
"""x, targets, and what else the model is called with; `mask` is for the loss alone."""


def full_bptt(
    model: Any, x: Any, targets: Any, loss: LossFunction, *, state: Any = None, **options: Any
) -> tuple[float, Any]:
    """Forward, loss and backward over all steps; gradients are added to the model's.

    Back-propagation through time (Werbos, "Backpropagation through time: what it does and how to do it",
    Proceedings of the IEEE, 1990).

    Parameters
    ----------
    model
        A layer or model in training mode, time-major.
    x, targets
        Of the model and of the loss.
    loss
        ``loss, do = loss(o, targets, mask=None)``.
    state
        That the first step starts from; zeros if None.
    options
        Of the model's call.  `lengths` masks the loss too where o has the steps of x, `target_lengths` that
        of a decoder.  `mask`, bool of o's leading axes, goes to the loss alone, instead of that.

    Returns
    -------
    loss : float
    state_n : array or tuple
        Final state.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        From the model or the loss; no gradient has changed then.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.training import full_bptt, softmax_cross_entropy
    >>> model = ManyToMany(fastrnn.GRU(4, 8, seed=0), 4, seed=1)
    >>> tokens = np.arange(12).reshape(6, 2) % 4
    >>> loss, state_n = full_bptt(model, tokens, (tokens + 1) % 4, softmax_cross_entropy)
    >>> state_n.shape, bool(model.gradients["readout.bias"].any())
    ((1, 2, 8), True)
    """
    value, _, state_n = gradients(model, x, targets, loss, state, options)
    return value, state_n


Pass = tuple[float, int, Any]
"""Loss, how many positions it scores, final state."""

_DO = "of which do is its gradient in o"


def gradients(
    model: Any,
    x: Any,
    targets: Any,
    loss: LossFunction,
    state: Any,
    options: Mapping[str, Any],
    skip: int = 0,
) -> Pass:
    """Forward, loss of the outputs from step `skip` on, and backward."""
    value, count, do, state_n = evaluated(model, x, targets, loss, state, options, skip)
    if do is None:
        raise TypeError(f"loss returned ({value!r}, None); expected (loss, do), {_DO}")
    if skip:
        do = np.concatenate([np.zeros((skip, *do.shape[1:]), do.dtype), do])
    model.backward(do)
    return value, count, state_n


def evaluated(
    model: Any,
    x: Any,
    targets: Any,
    loss: LossFunction,
    state: Any,
    options: Mapping[str, Any],
    skip: int = 0,
) -> tuple[float, int, Any, Any]:
    """Forward and loss: the loss, how many positions it scores, its gradient in o, the final state."""
    options = dict(options)
    if "state" in options:
        raise ValueError("a batch has the option 'state'; expected none: carry_state starts it from the last")
    mask = options.pop("mask", None)
    o, state_n = model(x, state, **options)
    ends = _ends(x, o, options)
    if mask is None and ends is not None:
        mask = valid_steps(ends, len(o))[skip:]
    if skip:
        o = o[skip:]
    scored = loss(o, targets) if mask is None else loss(o, targets, mask)
    if not isinstance(scored, tuple) or len(scored) != 2:
        raise TypeError(f"loss returned {scored!r}; expected (loss, do), {_DO}")
    value, do = returned("loss", scored[0]), scored[1]
    return value, int(np.prod(o.shape[:-1]) if mask is None else np.count_nonzero(mask)), do, state_n


def _ends(x: Any, o: Any, options: Mapping[str, Any]) -> Any:
    """Return the steps of each row of o; None where nothing is said of them, or o has none."""
    if "target_lengths" in options:
        return options["target_lengths"]
    # A decoder's outputs have steps of their own, which lengths, those of x, say nothing about.
    own = "inputs" not in options and o.shape[:-1] == np.shape(x)[:2]
    return options.get("lengths") if own else None


def truncated_bptt(
    model: Any,
    x: Any,
    targets: Any,
    loss: LossFunction,
    k1: int,
    k2: int | None = None,
    *,
    state: Any = None,
    lengths: Any = None,
    reset: Any = None,
    update: Callable[[], object] | None = None,
) -> tuple[list[float], Any]:
    """Every k1 steps, the gradient of their loss, gone back through the last k2 steps.

    BPTT(h; h') of Williams & Peng, "An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories", Neural Computation, 1990, with h = k2 and h' = k1; the names are those of
    Sutskever, "Training recurrent neural networks", 2013, section 2.8.6.  At t = k1, 2 k1, ... the loss of
    the steps t - k1 to t is differentiated with the state at t - k2 held constant.  Every step's loss counts
    once.  k1 = k2 is training chunk by chunk with the state carried; k1 = k2 = T is full BPTT, to the bit.
    Where k1 does not divide T the last window ends at T: it has the loss of the steps that are left, and goes
    back through k2 steps from there, or with k1 = k2 through those of its loss alone.

    Parameters
    ----------
    model
        A layer or model in training mode whose o has the steps of x, as `models.ManyToMany`; of one
        direction.
    x, targets
        NumPy's, time-major: T steps are their first axis.
    loss
        ``loss, do = loss(o, targets, mask=None)`` of k1 steps, the last ones perhaps fewer.
    k1, k2
        1 <= k1 <= k2; k2 is k1 if None.  With k2 > k1 every step is run about 1 + k2 / k1 times, since the
        steps before the newest are run again, with the parameters of the moment and new dropout masks.
    state
        That the first step starts from; zeros if None.
    lengths
        (B,): steps of each row; the others do not count, and windows without any are left out.
    reset
        (T, B), as in the layer's call.
    update
        Called after each backward pass: clipping, a step of the optimizer, zero_grad().  If None the
        gradients of all windows add up; with a loss that sums, to the gradient of the whole.

    Returns
    -------
    losses : list of float
        One a window.
    state_n : array or tuple
        Final state.

    Raises
    ------
    NotImplementedError
        x is on a CUDA device.
    TypeError, ValueError
        k1 or k2 is not what is said above, or from the model or the loss.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.training import Adam, softmax_cross_entropy, truncated_bptt
    >>> model = ManyToMany(fastrnn.GRU(4, 8, seed=0), 4, seed=1)
    >>> tokens = np.arange(60).reshape(30, 2, order="F") % 4
    >>> optimizer = Adam([model], 0.01)
    >>> def update():
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> losses, state = truncated_bptt(
    ...     model, tokens, (tokens + 1) % 4, softmax_cross_entropy, 10, 20, update=update
    ... )
    >>> len(losses), losses[2] < losses[0]
    (3, True)
    """
    options = {name: value for name, value in (("lengths", lengths), ("reset", reset)) if value is not None}
    losses = []
    for (value, _, state_n), _ in windows(model, x, targets, loss, k1, k2, state, options):
        losses.append(value)
        state = state_n
        if update is not None:
            update()
    return losses, state


def check_truncation(k1: Any, k2: Any) -> tuple[int, int]:
    """Return k1 and k2 as `truncated_bptt` takes them."""
    k1 = integer("k1", k1, 1)
    if k2 is None:
        return k1, k1
    k2 = integer("k2", k2, 1)
    if k2 < k1:
        raise ValueError(f"k2 is {k2} with k1={k1}; expected k2 >= k1, or some losses would have no gradient")
    return k1, k2


def windows(
    model: Any,
    x: Any,
    targets: Any,
    loss: LossFunction,
    k1: int,
    k2: int | None,
    state: Any,
    options: Mapping[str, Any],
) -> Iterator[tuple[Pass, Callable[[], Pass]]]:
    """Make the pass of each window; yield what came of it, and a function that makes it again.

    A window of which `mask` scores nothing only leads to the state after it: its loss is 0, of no positions.
    """
    k1, k2 = check_truncation(k1, k2)
    check_carried("model", model)
    if is_on_device(x):
        raise NotImplementedError("x is on a device; truncated BPTT takes NumPy's arrays, for any model")
    if unknown := sorted(options.keys() - {"lengths", "reset", "mask"}):
        raise TypeError(f"option {unknown[0]!r} cannot be cut into windows; expected lengths, reset or mask")
    steps = len(x)
    longest = np.max(options["lengths"], initial=0) if "lengths" in options else steps
    mask = np.asarray(options["mask"]) if "mask" in options else None
    if mask is not None and not mask[:longest].any():
        raise ValueError("mask scores no position; expected at least one to take the mean over")
    start = first = 0  # `state` is that at step `start`; losses before `first` have been counted
    for end in [*range(k1, steps, k1), steps]:
        if first and first >= longest:
            return  # every row has ended
        begin = max(start, end - k2)
        if begin > start:
            _, state = model(x[start:begin], state, **_cut(options, start, begin))
            start = begin
        cut, own = x[begin:end], _cut(options, begin, end)
        if mask is not None and not mask[first:end].any():
            run = partial(_unscored, model, cut, state, own)
        else:
            scored = own if mask is None else own | {"mask": mask[first:end]}
            run = partial(gradients, model, cut, targets[first:end], loss, state, scored, first - begin)
        made = run()
        yield made, run
        first = end
        if k1 == k2:
            start, state = end, made[2]


def _unscored(model: Any, x: Any, state: Any, options: Mapping[str, Any]) -> Pass:
    """Do what `gradients` does where nothing is scored: go on to the final state."""
    _, state_n = model(x, state, **options)
    return 0.0, 0, state_n


def check_carried(name: str, model: Any) -> None:
    """Raise ValueError for a model whose final state is none that later steps could start from."""
    from ..models._states import check_one_direction  # which imports this package

    check_one_direction(name, model, "the state of the other one comes from the steps to come")


def _cut(options: Mapping[str, Any], begin: int, end: int) -> dict[str, Any]:
    """Return the options of a call for these steps."""
    cut: dict[str, Any] = {}
    if "lengths" in options:
        cut["lengths"] = np.clip(np.asarray(options["lengths"]) - begin, 0, end - begin)
    if "reset" in options:
        cut["reset"] = np.asarray(options["reset"])[begin:end]
    return cut


def accumulate(model: Any, batches: Iterable[Batch], loss: LossFunction) -> float:
    """Leave in the gradients the average of the gradients of M mini-batches, for one update.

    ``g = (1/M) sum_m g_m``: with a mean as loss and batches of one size, the gradient of one batch M times as
    large, in the memory of one (Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 8.1.3).

    Parameters
    ----------
    model
        A layer or model in training mode; its gradients are set to zero first.
    batches
        M of ``(x, targets)`` or ``(x, targets, options)``, options being those of `full_bptt`.
    loss
        ``loss, do = loss(o, targets, mask=None)``.

    Returns
    -------
    loss : float
        The average of the M losses.

    Raises
    ------
    ValueError
        There is no batch.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> from fastrnn.training import accumulate, softmax_cross_entropy
    >>> model = ManyToMany(fastrnn.GRU(4, 8, seed=0), 4, seed=1)
    >>> tokens = np.arange(24).reshape(6, 4) % 4
    >>> halves = [(tokens[:, :2], tokens[:, :2]), (tokens[:, 2:], tokens[:, 2:])]
    >>> loss = accumulate(model, halves, softmax_cross_entropy)
    """
    model.zero_grad()
    losses = []
    for batch in batches:
        x, targets, options = parts_of(batch)
        losses.append(full_bptt(model, x, targets, loss, **options)[0])
    if not losses:
        raise ValueError("batches is empty; expected at least one to average over")
    divide_gradients([model], len(losses))
    return sum(losses) / len(losses)


def parts_of(batch: Any) -> tuple[Any, Any, Mapping[str, Any]]:
    """Return x, targets and options of a batch."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(
            f"a batch is {type(batch).__name__}; expected (x, targets) or (x, targets, options), and of one "
            f"batch alone a list, [(x, targets)]"
        )
    x, targets, options = batch if len(batch) == 3 else (*batch, {})
    if not isinstance(options, Mapping):
        raise TypeError(f"options of a batch are {options!r}; expected a dictionary")
    return x, targets, options


def divide_gradients(modules: Sequence[Module], count: int) -> None:
    """Turn sums of `count` gradients into their averages."""
    if count == 1:
        return
    for module in modules:
        for gradient in module.gradients.values():
            if isinstance(gradient, np.ndarray):
                gradient /= count
            else:
                _device.cuda_of_array(gradient).scale(gradient, 1 / count)
