"""A training in a file, from which it goes on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _files
from .._backends import SEED_END, on_host
from ..layouts import integer
from ._modes import leaves
from .history import History
from .modules import check_writeable

Arrays = dict[str, NDArray[Any]]

NUMBERS = ("epoch", "batch", "scored", "evaluated", "waited", "compared")
CURVES = ("losses", "learning_rates", "gradient_norms", "epochs", "positions")


@dataclass
class Checkpoint:
    """Where a training is, beside the parameters and the optimizer; `fit` writes and reads its files.

    Examples
    --------
    A model out of the checkpoint of a training that may still be under way:

    >>> import tempfile
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.training import Adam, Checkpoint, fit, mean_squared_error
    >>> layer, again = fastrnn.GRU(1, 1, seed=0), fastrnn.GRU(1, 1, seed=1)
    >>> ones = np.ones((5, 2, 1), "float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/training.safetensors"
    ...     history = fit(
    ...         layer,
    ...         [(ones, ones)],
    ...         loss=mean_squared_error,
    ...         optimizer=Adam([layer]),
    ...         steps=3,
    ...         checkpoint=path,
    ...     )
    ...     checkpoint = Checkpoint.load(path, again)
    >>> checkpoint.history.losses == history.losses
    True
    >>> bool((layer.parameters["weight_hh_l0"] == again.parameters["weight_hh_l0"]).all())
    True
    """

    epoch: int = 0
    """Passes over the data that are done."""
    batch: int = 0
    """Batches of this pass that are done."""
    pending: list[float] = field(default_factory=list)
    """Losses whose gradients have been added up since the last update."""
    scored: int = 0
    """Positions that the losses have scored."""
    state: Any = None
    """Carried to the next batch."""
    evaluated: int = 0
    """Evaluations that have been due."""
    waited: int = 0
    """Evaluations since the best one."""
    compared: int = 0
    """The evaluation, counted from 0, from which on the best one is sought."""
    best: Arrays = field(default_factory=dict)
    """Parameters of the best evaluation, where an early stop is asked for."""
    generator: dict[str, Any] | None = None
    """State of what the data is drawn from, at the start of this pass."""
    history: History = field(default_factory=History)

    def save(self, path: _files.AnyPath, model: Any, optimizer: Any, settings: Mapping[str, Any]) -> None:
        """Write everything to a safetensors file, whole or not at all."""
        history = self.history
        arrays = _prefixed("parameters", model.parameters) | _prefixed("optimizer", optimizer.state_dict())
        arrays |= _prefixed("best", self.best)
        if self.pending:
            arrays |= _prefixed("gradients", model.gradients)
        states: list[NDArray[Any]] = []
        structure = _taken_apart(self.state, states)
        arrays |= {f"state.{i}": array for i, array in enumerate(states)}
        curves = {name: getattr(history, name) for name in CURVES}
        curves |= {"evaluations": history.evaluations, "pending": self.pending}
        arrays |= {f"history.{name}": np.array(curve, np.float64) for name, curve in curves.items()}
        numbers = {name: getattr(self, name) for name in NUMBERS}
        description = {
            "settings": dict(settings),
            "numbers": numbers,
            "seconds": history.seconds,
            "state": structure,
            "generator": self.generator,
            # What the next masks are drawn from.
            "calls": {
                name: (leaf.seed, leaf.calls) for name, leaf in leaves(model) if hasattr(leaf, "calls")
            },
        }
        _files.write(path, _files.TRAINING, arrays, description)

    @classmethod
    def load(
        cls,
        path: _files.AnyPath,
        model: Any,
        optimizer: Any = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> Checkpoint:
        """Read what `save` wrote, into a model in training mode and an optimizer, made as those were.

        `settings` are compared with those saved.

        Raises
        ------
        OSError
            The file cannot be read.
        RuntimeError
            The model is in eval mode.
        ValueError
            It is no file of `save`, or of another training.

        Nothing has changed then.
        """
        check_writeable("model", model)

        def make(description: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
            return _restore(description, arrays, model, optimizer, settings)

        return _files.load(path, _files.TRAINING, make)


def _restore(
    description: dict[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    model: Any,
    optimizer: Any,
    settings: Mapping[str, Any],
) -> Checkpoint:
    for name, value in settings.items():
        if description["settings"].get(name) != value:
            raise ValueError(f"{name} was {description['settings'].get(name)!r} and is now {value!r}")
    numbers = description["numbers"]
    curves = _without_prefix("history", arrays)
    restored = Checkpoint(
        **{name: int(number) for name, number in numbers.items()},
        pending=curves["pending"].tolist(),
        state=_put_together(description["state"], _without_prefix("state", arrays)),
        best=_without_prefix("best", arrays),
        generator=description["generator"],
        history=History(
            losses=curves["losses"].tolist(),
            learning_rates=curves["learning_rates"].tolist(),
            gradient_norms=curves["gradient_norms"].tolist(),
            epochs=curves["epochs"].astype(int).tolist(),
            positions=curves["positions"].astype(int).tolist(),
            evaluations=[(int(step), float(loss)) for step, loss in curves["evaluations"]],
            seconds=float(description["seconds"]),
        ),
    )
    parameters = _fitting("parameters", model.parameters, arrays)
    gradients = _fitting("gradients", model.gradients, arrays) if restored.pending else {}
    if restored.best:
        _fitting("best", model.parameters, arrays)
    counted = {name: leaf for name, leaf in leaves(model) if hasattr(leaf, "calls")}
    counts = _counts(description["calls"], list(counted))
    if optimizer is not None:
        optimizer.load_state_dict(_without_prefix("optimizer", arrays))  # it checks before it changes
    write_arrays(model.parameters, parameters)
    write_arrays(model.gradients, gradients)
    for name, leaf in counted.items():
        leaf.seed, leaf.calls = counts[name]
    return restored


def _counts(saved: object, names: list[str]) -> dict[str, tuple[int, int]]:
    """Return seed and calls of each of these layers; ValueError or TypeError unless those are there."""
    if not isinstance(saved, dict) or saved.keys() != set(names):
        came = list(saved) if isinstance(saved, dict) else repr(saved)
        raise ValueError(f"it has layers {came}; expected {names}")
    counts = {}
    for name, pair in saved.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"calls of the layer {name!r} is {pair!r}; expected [seed, calls]")
        seed, calls = (
            integer(f"{what} of the layer {name!r}", number, 0, SEED_END - 1)
            for what, number in zip(("seed", "calls"), pair, strict=True)
        )
        counts[name] = seed, calls
    return counts


def write_arrays(targets: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of the host into those of a model."""
    for name, array in arrays.items():
        targets[name][...] = array


def copies(parameters: Mapping[str, Any]) -> Arrays:
    """Return copies on the host."""
    return {name: np.array(on_host(array)) for name, array in parameters.items()}


def _prefixed(prefix: str, arrays: Mapping[str, Any]) -> Arrays:
    return {f"{prefix}.{name}": on_host(array) for name, array in arrays.items()}


def _without_prefix(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    start = f"{prefix}."
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def _fitting(kind: str, own: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return the arrays of a kind; ValueError unless they have the names and shapes of the model's."""
    found = _without_prefix(kind, arrays)
    shapes = {name: array.shape for name, array in found.items()}
    expected = {name: tuple(array.shape) for name, array in own.items()}
    if shapes != expected:
        raise ValueError(f"it has {kind} {shapes}; expected {expected}")
    return found


def _taken_apart(state: Any, arrays: list[NDArray[Any]]) -> Any:
    """Return the structure of a state, its arrays being numbers in a list that they are added to."""
    if state is None:
        return None
    if isinstance(state, tuple):
        return [_taken_apart(part, arrays) for part in state]
    arrays.append(np.asarray(on_host(state)))
    return len(arrays) - 1


def _put_together(structure: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(structure, list):
        return tuple(_put_together(part, arrays) for part in structure)
    return None if structure is None else arrays[str(structure)]
