"""Random networks and the arrays of one call, with every option switched on or off; guarded outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastrnn import functional, reference
from fastrnn.layouts import Spec
from tolerances import assert_close, chain, size


@dataclass(frozen=True)
class Problem:
    """A network and everything one forward and backward call are given."""

    spec: Spec
    parameters: dict[str, np.ndarray]
    x: np.ndarray
    state: Any
    lengths: np.ndarray | None
    reset: np.ndarray | None
    dy: np.ndarray
    dstate_n: Any

    @property
    def batch(self) -> int:
        """B."""
        return self.x.shape[1]

    @property
    def steps(self) -> int:
        """T."""
        return self.x.shape[0]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that every `forward` takes."""
        return {"lengths": self.lengths, "reset": self.reset}

    def reference(self, dropout_key: tuple[int, int] | None = None) -> tuple[Any, ...]:
        """Return (y, state_n), (dx, dstate, gradients) of the float64 reference."""
        y, state_n, cache = reference.forward(
            self.spec, self.parameters, self.x, self.state, **self.options, dropout_key=dropout_key
        )
        return (y, state_n), reference.backward(self.spec, self.parameters, cache, self.dy, self.dstate_n)


class Guarded:
    """Outputs that lie in a sea of NaN, to see a kernel write past an edge or leave an element out."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.seas: list[tuple[np.ndarray, tuple[slice, ...]]] = []

    def array(self, shape: tuple[int, ...], *, strided: bool = False) -> np.ndarray:
        """Return an array between guards: whole rows before and after, or a border on every axis."""
        if strided:
            sea = np.full([n + 2 for n in shape[:-1]] + [shape[-1] + 16], np.nan, self.dtype)
            inside = (*(slice(1, -1) for _ in shape[:-1]), slice(8, -8))
        else:
            sea = np.full((shape[0] + 2, *shape[1:]), np.nan, self.dtype)
            inside = (slice(1, -1),)
        self.seas.append((sea, inside))
        return sea[inside]

    def check(self) -> None:
        """Assert that the guards are untouched."""
        for sea, inside in self.seas:
            guards = np.ones(sea.shape, dtype=bool)
            guards[inside] = False
            assert np.isnan(sea[guards]).all(), f"written outside an output of shape {sea[inside].shape}"


def flat(state: Any) -> tuple[np.ndarray, ...]:
    """Return a state, h or (h, c), as a tuple."""
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)


def like_state(spec: Spec, arrays: Any) -> Any:
    """Return a sequence of state arrays in the public form, h or (h, c)."""
    arrays = tuple(arrays)
    return arrays if spec.cell == "lstm" else arrays[0]


def random_parameters(rng: np.random.Generator, spec: Spec) -> dict[str, np.ndarray]:
    """Draw parameters as the layers initialise them, uniform within 1/sqrt(H): states stay of order 1."""
    bound = spec.hidden_size**-0.5
    return {k: rng.uniform(-bound, bound, s).astype(spec.dtype) for k, s in spec.parameter_shapes().items()}


def make_problem(
    rng: np.random.Generator,
    spec: Spec,
    steps: int,
    batch: int,
    *,
    tokens: bool = False,
    state: bool = True,
    lengths: bool = False,
    reset: bool = False,
) -> Problem:
    """Draw one call.  Padding holds NaN, in x and in dy, so that a step that looks at it is caught."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(spec.dtype)

    def draw_state() -> Any:
        return like_state(spec, (normal(*shape) for shape in spec.state_shapes(batch)))

    x = rng.integers(0, spec.input_size, (steps, batch)) if tokens else normal(steps, batch, spec.input_size)
    dy = normal(steps, batch, spec.output_size)
    length_array = reset_array = None
    if lengths:
        length_array = rng.integers(1, steps + 1, batch)
        if batch > 1:
            length_array[:2] = (0, steps)
        padding = np.arange(steps)[:, None] >= length_array
        dy[padding] = np.nan
        if not tokens:
            x[padding] = np.nan
    if reset:
        reset_array = rng.random((steps, batch)) < 0.3
        reset_array[0, ::2] = True
        reset_array[-1, 1::3] = True
    return Problem(
        spec=spec,
        parameters=random_parameters(rng, spec),
        x=x,
        state=draw_state() if state else None,
        lengths=length_array,
        reset=reset_array,
        dy=dy,
        dstate_n=draw_state(),
    )


def arrays_of(results: Any) -> dict[str, np.ndarray | None]:
    """Return the arrays in ((y, state_n), (dx, dstate, gradients)) by name."""
    (y, state_n), (dx, dstate, gradients) = results
    named = {"y": y, "dx": dx}
    named |= {f"state_n[{i}]": a for i, a in enumerate(flat(state_n))}
    named |= {f"dstate[{i}]": a for i, a in enumerate(flat(dstate))}
    return named | {"gradient of " + name: g for name, g in gradients.items()}


def compare(actual: Any, expected: Any, problem: Problem) -> None:
    """Assert that two ((y, state_n), (dx, dstate, gradients)) of one problem are equal up to rounding.

    Where arrays are small they may owe it to cancellation: f * c + i * g to that of two states, and a
    slope such as 1 - h^2, which is exact to eps of 1 however small it is.  So outputs are judged by the
    largest state, before or after, and gradients by no less than what comes in times the weights that it
    goes through; those of the parameters together, by the largest.
    """
    spec, got, wanted = problem.spec, arrays_of(actual), arrays_of(expected)
    assert list(got) == list(wanted)
    forward = chain(spec, problem.steps)
    backward = chain(spec, problem.steps, problem.batch)
    given = () if problem.state is None else flat(problem.state)
    states = size(*given, *(a for name, a in wanted.items() if name.startswith(("y", "state_n"))))
    incoming = size(problem.dy, *flat(problem.dstate_n)) * size(*problem.parameters.values())
    gradients = size(*(a for name, a in wanted.items() if name.startswith("gradient")))
    for name, reference_array in wanted.items():
        if reference_array is None:
            assert got[name] is None, f"{name} is not None"
            continue
        if name.startswith(("y", "state_n")):
            n, scale = forward, states
        else:
            largest = gradients if name.startswith("gradient") else size(reference_array)
            n, scale = backward, max(largest, incoming)
        assert_close(got[name], reference_array, n_products=n, dtype=spec.dtype, scale=scale, what=name)


def in_cuts(problem: Problem, packed: Any, cuts: Iterable[int]) -> tuple[np.ndarray, ...]:
    """Forward from each cut of T to the next with the state carried over: y, h_n and c_n."""
    state, parts = problem.state, []
    for start, stop in itertools.pairwise(cuts):
        piece = slice(start, stop)
        part, state = functional.forward(
            problem.spec, packed, problem.x[piece], state, reset=problem.reset[piece]
        )
        parts.append(part)
    return np.concatenate(parts), *flat(state)


def pieces(problem: Problem, row: int) -> Iterator[slice]:
    """Yield the steps of each piece that resets cut one row's sequence into, first to last."""
    end = problem.steps if problem.lengths is None else int(problem.lengths[row])
    cuts = [] if problem.reset is None else [t for t in range(1, end) if problem.reset[t, row]]
    if end:
        for start, stop in zip([0, *cuts], [*cuts, end], strict=True):
            yield slice(start, stop)


def apart(problem: Problem, run: Any) -> tuple[Any, ...]:
    """Run every piece of every row as a call of its own and put the results together.

    `run(x, state, dy, dstate_n)` does forward and backward of one row without lengths or reset and
    returns ((y, state_n), (dx, dstate, gradients)).  This is the meaning of lengths and resets spelled
    out: the forward direction's initial state enters the first piece (unless a reset stands at step 0)
    and its final state leaves the last; the reverse direction's enters the last and leaves the first.
    """
    spec = problem.spec
    forward = np.arange(spec.num_layers * spec.num_directions) % spec.num_directions == 0
    dtype = problem.dy.dtype
    zeros = [np.zeros(shape, dtype) for shape in spec.state_shapes(problem.batch)]
    state = zeros if problem.state is None else flat(problem.state)
    dstate_n = flat(problem.dstate_n)
    y = np.zeros(problem.dy.shape, dtype)
    dx = None if problem.x.ndim == 2 else np.zeros(problem.x.shape, dtype)
    state_n, dstate = [a.copy() for a in state], [a.copy() for a in dstate_n]
    gradients = {name: np.zeros(a.shape) for name, a in problem.parameters.items()}
    for row in range(problem.batch):
        cuts = list(pieces(problem, row))
        here = slice(row, row + 1)
        cleared = problem.reset is not None and bool(problem.reset[0, row])
        for piece in cuts:
            first, last = piece is cuts[0], piece is cuts[-1]
            enters = np.where(forward, first and not cleared, last)[:, None, None]
            leaves = np.where(forward, last, first)[:, None, None]
            out, back = run(
                problem.x[piece, here],
                like_state(spec, (np.where(enters, a[:, here], 0).astype(dtype) for a in state)),
                problem.dy[piece, here],
                like_state(spec, (np.where(leaves, a[:, here], 0).astype(dtype) for a in dstate_n)),
            )
            y[piece, here] = out[0]
            if dx is not None:
                dx[piece, here] = back[0]
            for whole, part in zip(state_n, flat(out[1]), strict=True):
                whole[:, here] = np.where(leaves, part, whole[:, here])
            for whole, part in zip(dstate, flat(back[1]), strict=True):
                ends = np.where(forward, first, last)[:, None, None]
                whole[:, here] = np.where(ends, np.where(enters, part, 0), whole[:, here])
            for name, part in back[2].items():
                gradients[name] += part
    return (y, like_state(spec, state_n)), (dx, like_state(spec, dstate), gradients)
