"""What the measurements share: a model run in one mode with the same masks, and left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import GRUCell, LSTMCell, RNNCell
from ..layouts import Spec
from ..models._model import Model, State, map_state, state_arrays
from ..training._modes import leaves, modes_kept

Numbers = NDArray[np.float64]


def check_model(model: Any) -> None:
    """Raise TypeError for something that is neither a layer nor a model."""
    mappings = (getattr(model, name, None) for name in ("parameters", "gradients"))
    if (
        not all(isinstance(mapping, Mapping) for mapping in mappings)
        or not all(hasattr(model, name) for name in ("training", "backward", "load_state_dict"))
        or isinstance(model, GRUCell | LSTMCell | RNNCell)  # whose calls are of one step
    ):
        raise TypeError(f"model is {model!r}; expected a layer or a fastrnn.models.Model")


def check_loss(loss: Any, targets: Any) -> None:
    """Raise unless there is a function of outputs and targets, or neither it nor targets."""
    if loss is None and targets is not None:
        raise ValueError("targets are given without a loss; expected loss=, or no targets")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss is {loss!r}; expected a function of outputs and targets")


def spec_of(module: Any) -> Spec | None:
    """Return the Spec of a recurrent layer, None for any other module."""
    spec = getattr(module, "_spec", None)
    return spec if isinstance(spec, Spec) else None


@contextmanager
def undisturbed(model: Any, *, training: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Run calls in one mode (None: as it is), then put everything back, whatever happens meanwhile.

    That is parameters, gradients, modes, and the numbers of calls, which choose the masks of dropout.  A
    training call made before is lost: backward raises RuntimeError where it needs that call.

    Yields
    ------
    masks : function
        ``masks(k)`` before a call gives it the masks that call k from here would have.
    """
    parameters = {name: array.copy() for name, array in model.parameters.items()}
    gradients = {name: array.copy() for name, array in model.gradients.items()}
    models = list(model._models()) if isinstance(model, Model) else []
    modules = [module for _, module in leaves(model)]
    calls = [(module, module.calls) for module in [*models, *modules] if hasattr(module, "calls")]

    def masks(k: int) -> None:
        for module, number in calls:
            module.calls = number + k

    with modes_kept(model):
        try:
            # A model that is partly in training mode is in neither.
            modes = {module.training for module in modules if hasattr(module, "training")}
            if training is not None and modes != {training}:
                model.train(training)
            yield masks
        finally:
            model.load_state_dict(parameters)
            for name, array in model.gradients.items():
                array[...] = gradients[name]
            masks(0)


def check_time_major(model: Any) -> None:
    """Raise unless it is a layer or a model that has time on the first axis."""
    check_model(model)
    if getattr(model, "batch_first", False):
        raise ValueError("the layer has batch_first=True; expected a time-major one")


def walk(
    model: Any, x: Any, state: State, before: Callable[[int], None] = lambda t: None
) -> Iterator[tuple[Any, State]]:
    """Run a model over x (T, B, ...) one step at a time; yield copies of o, with an axis T, and the state."""
    for t in range(len(x)):
        before(t)
        o, state = model(x[t : t + 1], state)
        state = map_state(np.array, state)
        yield np.array(o).reshape(1, *np.shape(o)[-2:]), state


def step_by_step(model: Any, x: Any, state: State) -> tuple[list[State], bool]:
    """Return the states after every step, and whether there is an output at every step, in eval mode.

    ValueError if the steps do not give what one call gives, as where x is read backwards too.
    """
    with undisturbed(model, training=False):
        whole, _ = model(x, state)
        outputs, states = zip(*walk(model, x, state), strict=True)
    stepwise = np.concatenate(outputs)
    every_step = whole.shape == stepwise.shape
    last = whole[-1:] if every_step else whole[None]
    closeness = np.sqrt(np.finfo(stepwise.dtype).eps)
    if last.shape != stepwise[-1:].shape or not np.allclose(
        whole, stepwise if every_step else stepwise[-1], closeness, closeness
    ):
        raise ValueError(
            f"model is {model!r}, which gives something else step by step; expected one that reads x in "
            f"order of time and hands its state on (not bidirectional)"
        )
    return list(states), every_step


def name_states(model: Any, state: State) -> Iterator[tuple[str, Any]]:
    """Yield the name and array (B, units) of every layer's h, and c, in a state or its gradient."""
    specs = [(name, spec) for name, module in leaves(model) if (spec := spec_of(module)) is not None]
    arrays = state_arrays(state)
    names = [
        (f"{name}." if len(specs) > 1 else "", part, spec.suffixes())
        for name, spec in specs
        for part in (("h", "c") if spec.cell == "lstm" else ("h",))
    ]
    shapes = [len(suffixes) for _, _, suffixes in names]
    if shapes != [len(array) for array in arrays]:  # a state of the model's own making
        names = [("", f"state[{i}]", [f"[{k}]" for k in range(len(a))]) for i, a in enumerate(arrays)]
    for (prefix, part, suffixes), array in zip(names, arrays, strict=True):
        yield from ((f"{prefix}{part}{suffix}", rows) for suffix, rows in zip(suffixes, array, strict=True))
