"""LSTM, GRU and RNN for JAX: pure functions over a dict of parameters, differentiable, by the CPU kernels.

Parameters have torch.nn's names and shapes; cell, sizes, layers, directions, biases, projection and
peepholes are read off them.  `jax.grad` (reverse mode, first derivatives), `jax.jit` and `jax.vmap` work;
results have the bits of fastrnn's layers.  The kernels are called back by `jax.pure_callback`.  Needs JAX,
the extra ``fastrnn[jax]``.

Examples
--------
>>> import jax
>>> import fastrnn.jax
>>> parameters = fastrnn.jax.init(jax.random.key(0), fastrnn.jax.Spec("gru", input_size=3, hidden_size=4))
>>> x = jax.random.normal(jax.random.key(1), (5, 2, 3))
>>> def loss(parameters, x):
...     y, h_n = fastrnn.jax.gru(parameters, x)
...     return (y**2).mean()
>>> gradients = jax.jit(jax.grad(loss))(parameters, x)
>>> gradients["weight_hh_l0"].shape
(12, 4)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from . import _arrays, functional
from ._backends import Array, Cpu, Library, is_integer
from ._calls import BATCH_FIRST, TIME_MAJOR, UNBATCHED, check_call, check_parameters
from ._extras import require
from .layouts import DTYPES, GATES, Spec, boolean, checked_dtype

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError:
    require("jax", "fastrnn.jax")
    raise

__all__ = ["Spec", "gru", "init", "lstm", "rnn"]


# ------------------------------------------------------------------------------- public functions


def init(key: Any, spec: Spec) -> dict[str, Any]:
    """Draw the parameters of a network, uniform within 1/sqrt(H) as torch.nn does.

    Parameters
    ----------
    key : jax.random.key
        Every parameter is drawn from a key of its own.
    spec : Spec
        Shape and options, `fastrnn.functional.Spec`.  "float64" needs ``jax_enable_x64``.

    Returns
    -------
    dict of str to jax.Array
        Names and shapes of ``spec.parameter_shapes()``.

    Raises
    ------
    TypeError
        For something that is no Spec, and for a dtype that JAX does not have now or the CPU not at all.

    Examples
    --------
    >>> import jax
    >>> from fastrnn.jax import Spec, init
    >>> parameters = init(jax.random.key(0), Spec("rnn", input_size=3, hidden_size=4))
    >>> {name: array.shape for name, array in parameters.items()}
    {'weight_ih_l0': (4, 3), 'weight_hh_l0': (4, 4), 'bias_ih_l0': (4,), 'bias_hh_l0': (4,)}
    """
    if not isinstance(spec, Spec):
        raise TypeError(f"spec has type {type(spec).__name__}; expected a fastrnn.functional.Spec")
    _ON_CPU.check_dtype(spec.dtype)
    _refuse_narrowing("spec.dtype", np.dtype(spec.dtype))
    shapes = spec.parameter_shapes()
    bound = spec.hidden_size**-0.5
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(part, shape, spec.dtype, -bound, bound)
        for part, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def lstm(
    parameters: Mapping[str, Any],
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    key: Any = None,
) -> tuple[Any, Any]:
    """Run a long short-term memory over a batch of sequences: `fastrnn.LSTM` as a pure function.

    Letters: T steps, B batch, I input size, H hidden size, P projection size, R = P or H, D directions,
    L layers.  Equations and their sources are those of `fastrnn.LSTM`.

    Parameters
    ----------
    parameters : mapping of str to array
        torch.nn's names and shapes, as from `init`, of float32 or float64: ``weight_ih_l0`` (4*H, I),
        ``weight_hh_l0`` (4*H, R), or also ``bias_ih_l0``, ``bias_hh_l0``, ``weight_hr_l0``, ``weight_ch_l0``,
        the same with ``_reverse``, and so on for ``_l1``.
    x : array (T, B, I), with `batch_first` (B, T, I), or (T, I)
        Of the dtype of the parameters; or integer tokens without the axis I, which stand for one-hot vectors.
    state : pair (h, c) of arrays (L*D, B, R) and (L*D, B, H), without B if x has none, optional
        Initial state; zeros if None.
    lengths : integers (B,), optional
        Steps of each row, from 0 to T, in any order.  y is 0 past them, and x may hold anything.
    reset : bool array with the leading axes of x, optional
        A boundary before step t: the state that enters it is zero, and no gradient crosses.
    batch_first : bool, optional
        Whether x, y and `reset` have B before T.
    dropout, recurrent_dropout : float, optional
        Probabilities, as the layers have them.
    key : jax.random.key, optional
        What masks are drawn from; without it there are none.

    Returns
    -------
    y : jax.Array (T, B, D*R), in x's layout
        The last layer's h at every step.
    state_n : pair (h_n, c_n)
        Final state, as `state`.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, dtype or shape: under ``jit`` when it is traced.  Values of
        `lengths` and tokens are checked then too if they are known; else their ValueError comes out of the
        callback as JAX's runtime error.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastrnn.jax import Spec, init, lstm
    >>> parameters = init(jax.random.key(0), Spec("lstm", input_size=3, hidden_size=4, bidirectional=True))
    >>> y, (h_n, c_n) = lstm(parameters, jnp.ones((2, 5, 3)), lengths=jnp.array([5, 2]), batch_first=True)
    >>> y.shape, c_n.shape, bool(y[1, 2:].any())
    ((2, 5, 8), (2, 2, 4), False)
    """
    return _call("lstm", **locals())


def gru(
    parameters: Mapping[str, Any],
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    key: Any = None,
    reset_after: bool = True,
) -> tuple[Any, Any]:
    """Run gated recurrent units over a batch of sequences: `fastrnn.GRU` as a pure function.

    Parameters
    ----------
    parameters, x, lengths, reset, batch_first, dropout, recurrent_dropout, key
        As for `lstm`, with 3 gates: ``weight_ih_l0`` (3*H, I), ``weight_hh_l0`` (3*H, H).
    state : array (L*D, B, H), without B if x has none, optional
        Initial state; zeros if None.
    reset_after : bool, optional
        Whether the reset gate multiplies after the recurrent product (torch.nn) or before it (the paper).

    Returns
    -------
    y : jax.Array (T, B, D*H), in x's layout
    h_n : jax.Array, as `state`

    Raises
    ------
    TypeError, ValueError
        As for `lstm`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastrnn.jax import Spec, gru, init
    >>> parameters = init(jax.random.key(0), Spec("gru", input_size=3, hidden_size=4))
    >>> dx = jax.grad(lambda x: gru(parameters, x)[0].sum())(jnp.ones((5, 2, 3)))
    >>> dx.shape
    (5, 2, 3)
    """
    return _call("gru", **locals())


def rnn(
    parameters: Mapping[str, Any],
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    key: Any = None,
    nonlinearity: str = "tanh",
) -> tuple[Any, Any]:
    """Run an Elman network over a batch of sequences: `fastrnn.RNN` as a pure function.

    Parameters
    ----------
    parameters, x, lengths, reset, batch_first, dropout, recurrent_dropout, key
        As for `lstm`, with one gate: ``weight_ih_l0`` (H, I), ``weight_hh_l0`` (H, H).
    state : array (L*D, B, H), without B if x has none, optional
        Initial state; zeros if None.
    nonlinearity : "tanh", "relu", "sigmoid" or "identity", optional

    Returns
    -------
    y : jax.Array (T, B, D*H), in x's layout
    h_n : jax.Array, as `state`

    Raises
    ------
    TypeError, ValueError
        As for `lstm`.

    Examples
    --------
    Every sequence of a batch of batches, by the same weights:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastrnn.jax import Spec, init, rnn
    >>> parameters = init(jax.random.key(0), Spec("rnn", input_size=3, hidden_size=4))
    >>> y, h_n = jax.vmap(lambda x: rnn(parameters, x))(jnp.ones((7, 5, 2, 3)))
    >>> y.shape, h_n.shape
    ((7, 5, 2, 4), (7, 1, 2, 4))
    """
    return _call("rnn", **locals())


# ------------------------------------------------------------------------------------ checked calls


class _Traced(Library):
    """JAX's arrays, with values or still without, and others on the host: checked, but read by no kernel."""

    def take(self, name: str, value: Any) -> Array:
        if not isinstance(value, jax.Array):
            value = _arrays.take(name, value)
            _refuse_narrowing(name, value.dtype)
        elif not isinstance(value.dtype, np.dtype):
            raise TypeError(f"{name} is {value.dtype}; expected an array of numbers")
        return value

    def take_listed(self, name: str, value: Any, kinds: str, expected: str) -> Array:
        if not isinstance(value, jax.Array):
            return super().take_listed(name, value, kinds, expected)
        array = self.take(name, value)
        if array.dtype.kind not in kinds:
            raise TypeError(f"{name} is {array.dtype}; expected {expected}")
        return array

    def values(self, array: Array) -> Array | None:
        return None if isinstance(array, jax.core.Tracer) else np.asarray(array)

    def place(self, array: Array, dtype: str) -> Array:
        return jnp.asarray(array)

    def place_rows(self, array: Array, dtype: str) -> Array:
        return jnp.asarray(array)

    def give(self, array: Array, writeable: bool = True) -> Any:
        return array


class _OnCpu(Cpu):
    """The CPU, told about calls that run later."""

    own = _Traced()

    def take_x(self, name: str, value: Any) -> tuple[Library, Array]:
        return self.own, self.own.take(name, value)


_ON_CPU = _OnCpu()


def _refuse_narrowing(name: str, dtype: np.dtype[Any]) -> None:
    """Refuse float64 where JAX would make float32 of it without a word."""
    if dtype == np.float64 and not jax.config.jax_enable_x64:
        raise TypeError(
            f"{name} is float64, which JAX has only with jax.config.update('jax_enable_x64', True)"
        )


def _spec_of(cell: Any, parameters: Any, options: Mapping[str, Any]) -> Spec:
    """Read off the parameters what network they are of; their shapes are then checked by it."""
    if not isinstance(parameters, Mapping):
        raise TypeError(
            f"parameters has type {type(parameters).__name__}; expected a mapping of names to arrays"
        )
    if "weight_ih_l0" not in parameters:
        names = ", ".join(map(str, parameters)) or "none"
        raise ValueError(f"parameters: missing weight_ih_l0; there are {names}")
    gates, label = len(GATES[cell]), "parameters['weight_ih_l0']"
    first = _ON_CPU.own.take(label, parameters["weight_ih_l0"])
    if str(first.dtype) not in DTYPES:
        raise TypeError(f"{label} is {first.dtype}; expected {' or '.join(DTYPES)}")
    if first.ndim != 2 or first.shape[0] % gates or not first.size:
        rows = "H" if gates == 1 else f"{gates}*H"
        raise ValueError(f"{label} has shape {first.shape}; expected ({rows}, I)")
    layers = 1
    while f"weight_ih_l{layers}" in parameters:
        layers += 1
    found: dict[str, Any] = {}
    if cell == "lstm" and "weight_hr_l0" in parameters:
        shape = np.shape(parameters["weight_hr_l0"])
        if len(shape) != 2 or not shape[0]:
            raise ValueError(f"parameters['weight_hr_l0'] has shape {shape}; expected (P, H)")
        found["proj_size"] = shape[0]
    if cell == "lstm" and "weight_ch_l0" in parameters:
        found["peephole"] = "diagonal" if np.ndim(parameters["weight_ch_l0"]) == 1 else "full"
    return Spec(
        cell,
        input_size=first.shape[1],
        hidden_size=first.shape[0] // gates,
        num_layers=layers,
        bias="bias_ih_l0" in parameters,
        bidirectional="weight_ih_l0_reverse" in parameters,
        dtype=checked_dtype(str(first.dtype)),
        **found,
        **options,
    )


def _call(
    cell: str,
    parameters: Any,
    x: Any,
    state: Any,
    lengths: Any,
    reset: Any,
    batch_first: Any,
    key: Any,
    **options: Any,
) -> tuple[Any, Any]:
    """Check and run one call; `options` are those of a Spec that the parameters do not tell."""
    spec = _spec_of(cell, parameters, options)
    shapes = spec.parameter_shapes()
    arrays = check_parameters(_ON_CPU.own, "parameters", shapes, parameters, spec.dtype)
    layouts = (BATCH_FIRST if boolean("batch_first", batch_first) else TIME_MAJOR, UNBATCHED)
    call = check_call(_ON_CPU, spec, layouts, x, state, lengths, reset)
    bits = None
    if key is None:
        spec = replace(spec, dropout=0.0, recurrent_dropout=0.0)
    elif spec.dropout or spec.recurrent_dropout:
        bits = jax.random.bits(key, (2,), "uint32")
    named = dict(zip(shapes, arrays, strict=True))
    y, state_n = _run(spec, named, call.x, call.state, call.lengths, call.reset, bits)
    return call.give(y), call.give_state(state_n)


# ---------------------------------------------------------------------- what JAX differentiates


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(spec: Spec, *arguments: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return time-major (y, state_n) of (parameters, x, state, lengths, reset, bits), states as tuples."""
    x = arguments[1]
    steps, batch = x.shape[:2]
    shapes = (steps, batch, spec.output_size), spec.state_shapes(batch)
    results = jax.ShapeDtypeStruct(shapes[0], spec.dtype), tuple(_like(spec, shape) for shape in shapes[1])
    computed: tuple[Any, tuple[Any, ...]] = jax.pure_callback(
        _callbacks(spec)[0], results, *arguments, vmap_method="expand_dims"
    )
    return computed


def _like(spec: Spec, shape: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct(shape, spec.dtype)


def _run_forward(spec: Spec, *arguments: Any) -> tuple[Any, Any]:
    return _run(spec, *arguments), arguments


def _run_backward(spec: Spec, arguments: Any, incoming: Any) -> tuple[Any, ...]:
    parameters, x, state = arguments[:3]
    like = functools.partial(jax.tree.map, lambda array: _like(spec, array.shape))
    results = like(parameters), None if is_integer(x) else like(x), like(state)
    gradients = jax.pure_callback(
        _callbacks(spec)[1], results, *arguments, incoming, vmap_method="expand_dims"
    )
    return *gradients, None, None, None


_run.defvjp(_run_forward, _run_backward)


# ------------------------------------------------------------------------ called back with values


@functools.lru_cache(maxsize=256)
def _callbacks(spec: Spec) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the callbacks of a network: always the same two, so that JAX compiles a call once."""
    return functools.partial(_forward, spec), functools.partial(_backward, spec)


def _forward(spec: Spec, *arguments: Any) -> Any:
    """Compute y and state_n; every array may have leading axes of `vmap`, of size 1 where it is not mapped.

    A row does not depend on its neighbours, so what is mapped becomes rows of one batch; but for weights that
    are mapped too, and for masks, which are drawn by row.
    """
    arguments, axes, front = _mapped(arguments)
    parameters, x, state, lengths, reset, bits = arguments
    shared = all(np.prod(array.shape[:axes]) == 1 for array in parameters.values())
    if not axes or bits is not None or not shared:
        return _one_by_one(axes, front, arguments, functools.partial(_forward_one, spec))

    count, batch = int(np.prod(front)), x.shape[axes + 1]

    def joined(array: Any, batch_axis: int) -> Any:
        if array is None:
            return None
        own = array.shape[axes:]
        every = np.broadcast_to(array, front + own).reshape(count, *own)
        shape = (*own[:batch_axis], len(every) * own[batch_axis], *own[batch_axis + 1 :])
        return np.moveaxis(every, 0, batch_axis).reshape(shape)

    def parted(array: Any) -> Any:
        parts = array.reshape(array.shape[0], count, batch, array.shape[2])
        return np.moveaxis(parts, 1, 0).reshape(*front, *parts.shape[:1], *parts.shape[2:])

    results = _forward_one(
        spec,
        {name: array.reshape(array.shape[axes:]) for name, array in parameters.items()},
        joined(x, 1),
        None if state is None else tuple(joined(part, 1) for part in state),
        joined(lengths, 0),
        joined(reset, 1),
        None,
    )
    return jax.tree.map(parted, results)


def _backward(spec: Spec, *arguments: Any) -> Any:
    """Compute gradients of the parameters, of x (None for tokens) and of the state (None if there is none).

    The sums of the parameters' gradients are asked for one by one, whatever is mapped.
    """
    arguments, axes, front = _mapped(arguments)
    return _one_by_one(axes, front, arguments, functools.partial(_backward_one, spec))


def _mapped(arguments: Any) -> tuple[Any, int, tuple[int, ...]]:
    """Return the arguments as NumPy's arrays, the number of axes in front, and their sizes."""
    arguments = jax.tree.map(np.asarray, arguments)
    x = arguments[1]
    axes = x.ndim - (2 if is_integer(x) else 3)
    return arguments, axes, np.broadcast_shapes(*(a.shape[:axes] for a in jax.tree.leaves(arguments)))


def _one_by_one(axes: int, front: tuple[int, ...], arguments: Any, run: Callable[..., Any]) -> Any:
    """Call `run` for each index of the axes in front."""
    if not axes:
        return run(*arguments)

    def part(index: tuple[int, ...], array: Any) -> Any:
        return array[tuple(i if size > 1 else 0 for i, size in zip(index, array.shape, strict=False))]

    if 0 in front:  # nothing is mapped: one call of zeros tells the shapes
        alone = run(*jax.tree.map(lambda array: np.zeros(array.shape[axes:], array.dtype), arguments))
        return jax.tree.map(lambda array: np.zeros(front + array.shape, array.dtype), alone)
    results = [run(*jax.tree.map(functools.partial(part, i), arguments)) for i in np.ndindex(front)]
    return jax.tree.map(lambda *parts: np.stack(parts).reshape(front + parts[0].shape), *results)


def _forward_one(
    spec: Spec, parameters: Any, x: Any, state: Any, lengths: Any, reset: Any, bits: Any
) -> tuple[Any, tuple[Any, ...]]:
    state, options = _public(state), {"lengths": lengths, "reset": reset}
    if bits is None:
        y, state_n = functional.forward(spec, parameters, x, state, **options)
    else:
        y, state_n, _ = functional.forward_train(spec, parameters, x, state, **options, seed=_seed(bits))
    return y, _parts(state_n)


def _backward_one(
    spec: Spec, parameters: Any, x: Any, state: Any, lengths: Any, reset: Any, bits: Any, incoming: Any
) -> tuple[Any, Any, Any]:
    # What forward saved is no array that JAX could hand on, so it is computed again.
    dy, dstate_n = incoming
    *_, reserve = functional.forward_train(
        spec, parameters, x, _public(state), lengths=lengths, reset=reset, seed=_seed(bits)
    )
    dx, dstate, gradients = functional.backward(spec, parameters, reserve, dy, _public(dstate_n))
    return gradients, dx, None if state is None else _parts(dstate)


def _public(state: Any) -> Any:
    """Return a tuple of state arrays as `functional` takes it: h, or the pair (h, c)."""
    return state[0] if state is not None and len(state) == 1 else state


def _parts(state: Any) -> tuple[Any, ...]:
    """Undo `_public`."""
    return state if isinstance(state, tuple) else (state,)


def _seed(bits: Any) -> int:
    return 0 if bits is None else int(bits[0]) << 32 | int(bits[1])
