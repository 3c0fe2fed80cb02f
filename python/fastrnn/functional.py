"""Recurrent networks as pure functions over explicit weights, states and reserves.

The layers of `fastrnn` are a thin shell over the same calls.  Here everything is time-major
(T, B, ...), nothing is remembered between calls, and nothing but `out` is written.

Letters: T steps, B batch, I input size, H hidden size, P projection size, R = P or H, D directions,
L layers.  Arrays may come from any library that speaks DLPack; results come back in that of x.  A call
runs where its parameters are: on the CPU, or on the CUDA device that their library has put them on; there
`out` is, too.

Examples
--------
Two outstanding forward calls, each with its own reserve:

>>> import numpy as np
>>> from fastrnn import functional as F
>>> spec = F.Spec("gru", input_size=3, hidden_size=4)
>>> rng = np.random.default_rng(0)
>>> weights = {k: rng.normal(size=s).astype("float32") for k, s in spec.parameter_shapes().items()}
>>> x = rng.normal(size=(5, 2, 3)).astype("float32")
>>> y, h, first = F.forward_train(spec, weights, x)
>>> y, h, second = F.forward_train(spec, weights, x, h)
>>> dx, dh, gradients = F.backward(spec, weights, second, dy=np.ones_like(y))
>>> dx, dh, gradients = F.backward(spec, weights, first, dstate_n=dh)
>>> dx.shape, dh.shape, list(gradients)[:2]
((5, 2, 3), (1, 2, 4), ['weight_ih_l0', 'weight_hh_l0'])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._arrays import refuse_overlap
from ._backends import SEED_END, Array, Backend, backend_of_arrays
from ._calls import (
    TIME_MAJOR,
    Call,
    Packed,
    Reserve,
    State,
    check_call,
    check_checkpoint,
    check_incoming,
    check_parameters,
    check_quantize,
    check_spec,
    run_backward,
    run_forward,
    state_parts,
)
from .layouts import Spec, integer

__all__ = ["Packed", "Reserve", "Spec", "backward", "forward", "forward_train", "pack"]


def pack(spec: Spec, parameters: Mapping[str, Any], *, quantize: str = "float32") -> Packed:
    """Pack parameters once, for many calls of `forward`.

    Parameters
    ----------
    spec : Spec
        Shape and options of the network.
    parameters : mapping of str to array
        Exactly the names and shapes of ``spec.parameter_shapes()``, of the dtype of `spec`.
    quantize : "bfloat16", "int8" or "float32", optional
        Round the weights of a float32 network on the CPU, as `fastrnn.LSTM.quantize` does; such a Packed is
        for `forward` alone.

    Returns
    -------
    Packed
        A copy in the order that the kernels read; later changes of `parameters` do not reach it.

    Raises
    ------
    TypeError
        For an array of another dtype, something that is no array, or a network that is not quantised.
    ValueError
        For missing or unexpected names and wrong shapes, all of them listed; for another value of `quantize`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn import functional as F
    >>> spec = F.Spec("rnn", input_size=2, hidden_size=3)
    >>> zeros = {name: np.zeros(shape, "float32") for name, shape in spec.parameter_shapes().items()}
    >>> packed = F.pack(spec, zeros)
    >>> y, h_n = F.forward(spec, packed, np.ones((4, 1, 2), "float32"))
    >>> float(abs(y).max())
    0.0
    """
    check_spec(spec)
    backend, arrays = _parameters(spec, parameters)
    quantized = check_quantize("quantize", backend, spec, quantize)
    return Packed(backend, spec, backend.fixed(arrays), quantized)


def forward(
    spec: Spec,
    weights: Packed | Mapping[str, Any],
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    out: Any = None,
) -> tuple[Any, Any]:
    """Run a network over a batch of sequences, for inference: no dropout, zoneout by its expectation.

    Parameters
    ----------
    spec : Spec
        Shape and options of the network.
    weights : Packed or mapping of str to array
        The result of `pack`, or parameters to pack for this call alone.
    x : array (T, B, I), or integer tokens (T, B)
        Tokens stand for one-hot vectors of length I.  T of at least 1; B may be 0.
    state : array (L*D, B, R), for LSTM the pair (h, c) with c (L*D, B, H), optional
        Initial state; zeros if None.
    lengths : integers (B,), optional
        Steps of each row, from 0 to T, in any order.  y is 0 past them, and x (tokens too) may hold anything.
    reset : bool array (T, B), optional
        A boundary before step t: the state that enters it is zero.
    out : array, or pair (y, state_n), optional
        Memory for y (its last axis of unit stride) and for the final state (C-contiguous, structured
        as `state`), apart from every input; None in the pair leaves that part to be allocated.

    Returns
    -------
    y : array (T, B, D*R)
        The last layer's h at every step.
    state_n : array, or pair for LSTM
        Final state, as `state`; that of a row's own end where there are `lengths`.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, dtype, shape or value; nothing has been written then.
    """
    check_spec(spec)
    packed = _packed(spec, weights)
    if type(x) is np.ndarray and lengths is None and reset is None and out is None:  # as in that of a layer
        results: tuple[Any, Any] | None = packed.run_plain((TIME_MAJOR.axes,), x, state)
        if results is not None:
            return results
    call = check_call(packed.backend, spec, (TIME_MAJOR,), x, state, lengths, reset)
    y_out, state_out = _split_out(out)
    y, state_n = _check_forward_out(call, weights, y_out, state_out)
    y, state_n = run_forward(packed, call, y, state_n)
    return (
        call.give(y) if y_out is None else y_out,
        call.give_state(state_n) if state_out is None else state_out,
    )


def forward_train(
    spec: Spec,
    weights: Packed | Mapping[str, Any],
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    out: Any = None,
    seed: int = 0,
    call: int = 0,
    checkpoint: int | None = None,
) -> tuple[Any, Any, Reserve]:
    """`forward` with dropout and zoneout, saving what `backward` needs.

    Parameters
    ----------
    spec, weights, x, state, lengths, reset, out
        As for `forward`.
    seed, call : int, optional
        64-bit keys of the masks of dropout and zoneout: the same pair gives the same masks.
    checkpoint : int, optional
        Keep c every so many steps and no gates, as ``layer.train(checkpoint=...)`` says.

    Returns
    -------
    y, state_n
        As from `forward`.  y is part of the reserve, hence a read-only array unless it is `out`;
        libraries without read-only arrays get a plain one.  Do not change it before `backward`.
    reserve : Reserve
        For `backward`, any number of times.

    Raises
    ------
    TypeError, ValueError
        As `forward`.
    NotImplementedError
        For a checkpoint on a CUDA device.
    """
    check_spec(spec)
    checkpoint = check_checkpoint(checkpoint)
    seed = integer("seed", seed, 0, SEED_END - 1)
    number = integer("call", call, 0, SEED_END - 1)
    packed = _packed(spec, weights)
    if packed.quantized is not None:
        raise ValueError(f"weights are {packed.quantized}; expected float32, as quantised ones do not train")
    checked = check_call(packed.backend, spec, (TIME_MAJOR,), x, state, lengths, reset)
    y_out, state_out = _split_out(out)
    y, state_n = _check_forward_out(checked, weights, y_out, state_out)
    reserve = Reserve(checked, packed.backend.reserve(checkpoint), seed, number)
    y, state_n = run_forward(packed, checked, y, state_n, reserve)
    return (
        checked.give(y, writeable=False) if y_out is None else y_out,
        checked.give_state(state_n) if state_out is None else state_out,
        reserve,
    )


def backward(
    spec: Spec,
    parameters: Mapping[str, Any],
    reserve: Reserve,
    dy: Any = None,
    dstate_n: Any = None,
    *,
    out: Any = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """Back-propagate through the call that made `reserve`.

    Back-propagation through time: Werbos, "Backpropagation through time: what it does and how to do
    it", Proceedings of the IEEE 78(10), 1990.

    Parameters
    ----------
    spec : Spec
        That of the forward call.
    parameters : mapping of str to array
        Those of the forward call, with the same values.
    reserve : Reserve
        From `forward_train`.
    dy : array (T, B, D*R), optional
        Gradient of the loss in y; zeros if None.  What it holds past a row's length is ignored.
    dstate_n : array, or pair for LSTM, optional
        Gradient in the final state, structured as it; zeros if None (also inside the pair).
    out : triple (dx, dstate, gradients), optional
        Memory for the results, overwritten; None in the triple leaves that part to be allocated.

    Returns
    -------
    dx : array (T, B, I), or None for tokens
    dstate : array, or pair for LSTM
        Gradient in the initial state, also if there was none.
    gradients : dict of str to array
        This call's sums, in the order of ``spec.parameter_shapes()``.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, dtype, shape or value; nothing has been written then.
    """
    check_spec(spec)
    if not isinstance(reserve, Reserve):
        raise TypeError(
            f"reserve has type {type(reserve).__name__}; expected the third result of forward_train"
        )
    if getattr(reserve, "y", None) is None:
        raise ValueError("reserve is of no call; expected the third result of forward_train")
    if reserve.spec != spec:
        raise ValueError(f"reserve is of a call for {reserve.spec}; expected one for {spec}")
    call, library = reserve.call, reserve.call.library
    arrays = check_parameters(library, "parameters", spec.parameter_shapes(), parameters, spec.dtype)
    dy, dstate_n = check_incoming(reserve, dy, dstate_n)

    # Outputs.
    if out is None:
        out = (None, None, None)
    if not isinstance(out, tuple):
        raise TypeError(f"out has type {type(out).__name__}; expected the triple (dx, dstate, gradients)")
    if len(out) != 3:
        raise ValueError(f"out has {len(out)} entries; expected the triple (dx, dstate, gradients)")
    dx_out, dstate_out, gradients_out = out
    outputs: dict[str, Array] = {}
    dx = dstate = None
    if dx_out is not None:
        if call.tokens:
            raise ValueError("out has an array for dx; expected None, since tokens have no gradient")
        axes = TIME_MAJOR.sequence_axes(call.steps, call.batch, I=spec.input_size)
        dx = outputs["out[0] (dx)"] = library.take_output(
            "out[0] (dx)", dx_out, spec.dtype, axes, strided=True
        )
    if dstate_out is not None:
        dstate = _check_state_out(call, dstate_out, outputs)
    if gradients_out is None:
        sums = {name: library.empty(shape, spec.dtype) for name, shape in spec.parameter_shapes().items()}
    else:
        sums = _check_gradients_out(call, gradients_out, outputs)
    inputs: dict[str, Array | None] = dict(zip(spec.parameter_shapes(), arrays, strict=True))
    inputs |= {"dy": dy, "y": reserve.y, **_call_arrays(call)}
    inputs |= {f"dstate_n[{i}]": array for i, array in enumerate(dstate_n or ())}
    _refuse_overlap(call, outputs, inputs)

    dx, dstate = run_backward(reserve, arrays, dy, dstate_n, list(sums.values()), dx, dstate)
    if dx_out is None and dx is not None:
        dx_out = call.give(dx)
    if dstate_out is None:
        dstate_out = call.give_state(dstate)
    if gradients_out is None:
        gradients_out = {name: library.give(array) for name, array in sums.items()}
    return dx_out, dstate_out, gradients_out


def _parameters(spec: Spec, parameters: Any) -> tuple[Backend, list[Array]]:
    """Return where the parameters are, and the arrays in order."""
    backend = backend_of_arrays(parameters.values() if isinstance(parameters, Mapping) else ())
    backend.check_dtype(spec.dtype)
    shapes = spec.parameter_shapes()
    return backend, check_parameters(backend.own, "parameters", shapes, parameters, spec.dtype)


def _packed(spec: Spec, weights: Any) -> Packed:
    if not isinstance(weights, Packed):
        backend, arrays = _parameters(spec, weights)
        return Packed(backend, spec, arrays)
    if weights.spec != spec:
        raise ValueError(f"weights were packed for {weights.spec}; expected {spec}")
    return weights


def _call_arrays(call: Call) -> dict[str, Array | None]:
    """Return a call's inputs by name, to look for overlaps."""
    state = {f"state[{i}]": array for i, array in enumerate(call.state or ())}
    return {"x": call.x, **state, "lengths": call.lengths, "reset": call.reset}


def _split_out(out: Any) -> tuple[Any, Any]:
    """Return the caller's memory for y and for the final state."""
    if not isinstance(out, tuple):
        return out, None
    if len(out) != 2:
        raise ValueError(f"out has {len(out)} entries; expected an array for y, or the pair (y, state_n)")
    return out


def _check_forward_out(
    call: Call, weights: Any, y_out: Any, state_out: Any
) -> tuple[Array | None, State | None]:
    outputs: dict[str, Array] = {}
    y = state_n = None
    if y_out is not None:
        y = outputs["out (y)"] = call.library.take_output(
            "out (y)", y_out, call.spec.dtype, call.y_axes, strided=True
        )
    if state_out is not None:
        state_n = _check_state_out(call, state_out, outputs)
    inputs = _call_arrays(call)
    if isinstance(weights, Mapping):
        inputs |= {name: call.library.take(name, array) for name, array in weights.items()}
    _refuse_overlap(call, outputs, inputs)
    return y, state_n


def _refuse_overlap(call: Call, outputs: Mapping[str, Array], inputs: Mapping[str, Array | None]) -> None:
    span = call.library.span
    refuse_overlap(
        {name: span(array) for name, array in outputs.items()},
        {name: None if array is None else span(array) for name, array in inputs.items()},
    )


def _check_state_out(call: Call, value: Any, outputs: dict[str, Array]) -> State:
    parts = state_parts("out[1]", call.spec, value)
    axes = TIME_MAJOR.state_axes(call.spec, call.batch)
    taken = {
        part: call.library.take_output(part, array, call.spec.dtype, wanted)
        for (part, array), wanted in zip(parts.items(), axes, strict=True)
    }
    outputs.update(taken)
    return tuple(taken.values())


def _check_gradients_out(call: Call, value: Any, outputs: dict[str, Array]) -> dict[str, Array]:
    shapes = call.spec.parameter_shapes()
    if not isinstance(value, Mapping):
        raise TypeError(f"out[2] has type {type(value).__name__}; expected a mapping of names to arrays")
    if set(value) != set(shapes):
        raise ValueError(f"out[2] has the names {list(value)}; expected {list(shapes)}")
    taken = {}
    for name, shape in shapes.items():
        label = f"out[2][{name!r}]"
        axes: dict[str, int | None] = dict(zip(("rows", "columns"), shape, strict=False))
        taken[name] = outputs[label] = call.library.take_output(label, value[name], call.spec.dtype, axes)
    return taken
