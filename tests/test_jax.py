"""Are the functions of `fastrnn.jax` the layers, with the gradients of JAX's own scan, under its transforms?

And are JAX's arrays taken by the layers themselves?
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import functional
from fastrnn.layouts import Spec
from problems import Problem, arrays_of, compare, flat, like_state, make_problem
from shapes import VARIANTS, make_spec
from tolerances import assert_same_bits

jax = pytest.importorskip("jax")

import fastrnn.jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

pytestmark = pytest.mark.frameworks

T, B, IN, H = 5, 3, 4, 6


@pytest.fixture
def x64() -> Iterator[None]:
    """Let JAX have 64-bit types for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def options_of(spec: Spec) -> dict[str, Any]:
    """The arguments of a function that its parameters do not tell."""
    of_cell = {
        "gru": {"reset_after": spec.reset_after},
        "rnn": {"nonlinearity": spec.nonlinearity},
    }.get(spec.cell, {})
    return of_cell | {"dropout": spec.dropout, "recurrent_dropout": spec.recurrent_dropout}


def call(spec: Spec, parameters: Any, x: Any, state: Any, **arguments: Any) -> Any:
    """Call the function of a cell."""
    return getattr(fastrnn.jax, spec.cell)(parameters, x, state, **options_of(spec), **arguments)


def in_jax(problem: Problem) -> dict[str, Any]:
    """The arguments of a call as JAX's arrays."""
    return jax.tree.map(
        jnp.asarray, {"parameters": problem.parameters, "x": problem.x, "state": problem.state}
    ) | {name: None if array is None else jnp.asarray(array) for name, array in problem.options.items()}


def run(problem: Problem, jit: bool = False, **more: Any) -> tuple[Any, Any]:
    """Return ((y, state_n), (dx, dstate, gradients)) in NumPy's arrays, by `jax.vjp`."""
    spec, given = problem.spec, in_jax(problem)
    options = {name: given[name] for name in ("lengths", "reset")} | more
    tokens = problem.x.ndim == 2

    def both(parameters: Any, x: Any, state: Any, incoming: Any) -> Any:
        if tokens:
            out, pull = jax.vjp(lambda p, s: call(spec, p, x, s, **options), parameters, state)
            gradients, dstate = pull(incoming)
            return out, (None, dstate, gradients)
        out, pull = jax.vjp(lambda p, x, s: call(spec, p, x, s, **options), parameters, x, state)
        gradients, dx, dstate = pull(incoming)
        return out, (dx, dstate, gradients)

    incoming = jax.tree.map(jnp.asarray, (problem.dy, problem.dstate_n))
    out, back = (jax.jit(both) if jit else both)(given["parameters"], given["x"], given["state"], incoming)
    return in_order(spec, jax.tree.map(np.asarray, (out, back)))


def in_order(spec: Spec, results: Any) -> Any:
    """Put gradients back into the order of a Spec, which is not that of JAX's dicts."""
    out, (dx, dstate, gradients) = results
    return out, (dx, dstate, {name: gradients[name] for name in spec.parameter_shapes()})


def kernels(problem: Problem, seed: int = 0) -> tuple[Any, Any]:
    """Return the same by `functional`."""
    spec = problem.spec
    *out, reserve = functional.forward_train(
        spec, problem.parameters, problem.x, problem.state, **problem.options, seed=seed
    )
    return tuple(out), functional.backward(spec, problem.parameters, reserve, problem.dy, problem.dstate_n)


def assert_same(actual: Any, expected: Any, state: bool = True) -> None:
    """Compare bit for bit; without an initial state JAX is given no gradient in it."""
    got, wanted = arrays_of(actual), arrays_of(expected)
    for name, array in wanted.items():
        if name.startswith("dstate") and not state:
            continue
        if array is None:
            assert got[name] is None
        else:
            assert_same_bits(got[name], array, name)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_results_and_gradients_have_the_bits_of_the_kernels(
    variant: str, jit: bool, rng: np.random.Generator
) -> None:
    spec = make_spec(variant, IN, H, num_layers=2, bidirectional=True)
    problem = make_problem(rng, spec, T, B, lengths=True, reset=True)
    assert_same(run(problem, jit), kernels(problem))


@pytest.mark.parametrize("options", [{"bias": False}, {"num_layers": 1}, {"bidirectional": True}])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_network_is_read_off_the_parameters(
    cell: str, options: dict[str, Any], rng: np.random.Generator, x64: None
) -> None:
    spec = Spec(cell, IN, H, **options, dtype="float64")
    problem = make_problem(rng, spec, T, B, state=False)
    assert_same(run(problem, jit=True), kernels(problem), state=False)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_tokens(cell: str, rng: np.random.Generator) -> None:
    problem = make_problem(rng, Spec(cell, IN, H), T, B, tokens=True)
    assert_same(run(problem), kernels(problem))
    given = in_jax(problem)
    assert_same(run(problem, jit=True), kernels(problem))
    with pytest.raises(TypeError, match="real- or complex-valued"):
        jax.grad(lambda x: call(problem.spec, given["parameters"], x, None)[0].sum())(given["x"])


@pytest.mark.parametrize("layout", ["batch first", "unbatched"])
def test_layouts(layout: str, rng: np.random.Generator) -> None:
    problem = make_problem(rng, Spec("lstm", IN, H, bidirectional=True), T, 1, reset=True)
    given = in_jax(problem)
    if layout == "batch first":
        view, back = (lambda a: a.swapaxes(0, 1)), (lambda a: a.swapaxes(0, 1))
        states, options = problem.state, {"batch_first": True}
    else:
        view, back = (lambda a: a[:, 0]), (lambda a: a[:, None])
        states, options = tuple(h[:, 0] for h in problem.state), {}
    y, state_n = fastrnn.jax.lstm(
        given["parameters"], view(given["x"]), states, reset=view(given["reset"]), **options
    )
    (expected, expected_n), _ = kernels(problem)
    assert_same_bits(back(np.asarray(y)), expected)
    for ours, right in zip(state_n, expected_n, strict=True):
        assert_same_bits(np.asarray(ours).reshape(right.shape), right)


@pytest.mark.parametrize("rates", [{"dropout": 0.4}, {"recurrent_dropout": 0.3}])
def test_masks_come_from_the_key(rates: dict[str, float], rng: np.random.Generator) -> None:
    problem = make_problem(rng, Spec("gru", IN, H, num_layers=2, **rates), T, B)
    key = jax.random.key(3)
    high, low = (int(word) for word in jax.random.bits(key, (2,), "uint32"))
    expected = kernels(problem, high << 32 | low)
    assert_same(run(problem, jit=True, key=key), expected)
    assert_same(run(problem, key=key), expected)
    given = in_jax(problem)
    without, _ = call(problem.spec, given["parameters"], given["x"], given["state"])
    layer, _ = functional.forward(problem.spec, problem.parameters, problem.x, problem.state)
    assert_same_bits(np.asarray(without), layer)
    assert (np.asarray(without) != expected[0][0]).any()


# What JAX itself makes of the equations: a scan over time for each layer and direction.


def scan(spec: Spec, parameters: Any, x: Any, state: Any) -> tuple[Any, Any]:
    """Return (y, state_n) of a network of JAX's operations alone."""

    def step(suffix: str) -> Any:
        def weights(name: str) -> Any:
            return parameters[name + suffix]

        def run_step(carry: Any, x_t: Any) -> Any:
            h = carry[0]
            a = weights("weight_ih") @ x_t.T + weights("bias_ih")[:, None]
            b = weights("weight_hh") @ h.T + weights("bias_hh")[:, None]
            if spec.cell == "lstm":
                i, f, g, o = (part.T for part in jnp.split(a + b, 4))
                c = jax.nn.sigmoid(f) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h
            if spec.cell == "gru":
                r, z, n = ((p.T, q.T) for p, q in zip(jnp.split(a, 3), jnp.split(b, 3), strict=True))
                z = jax.nn.sigmoid(z[0] + z[1])
                h = (1 - z) * jnp.tanh(n[0] + jax.nn.sigmoid(r[0] + r[1]) * n[1]) + z * h
                return (h,), h
            h = jnp.tanh(a + b).T
            return (h,), h

        return run_step

    finals = []
    for layer in range(spec.num_layers):
        outputs = []
        for direction in range(spec.num_directions):
            suffix = f"_l{layer}" + "_reverse" * direction
            index = layer * spec.num_directions + direction
            carry = tuple(part[index] for part in flat(state))
            carry, y = jax.lax.scan(step(suffix), carry, x, reverse=bool(direction))
            outputs.append(y)
            finals.append(carry)
        x = jnp.concatenate(outputs, axis=-1)
    return x, like_state(spec, (jnp.stack(parts) for parts in zip(*finals, strict=True)))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_against_jax_itself(cell: str, rng: np.random.Generator, x64: None) -> None:
    spec = Spec(cell, IN, H, bidirectional=True, dtype="float64")
    problem = make_problem(rng, spec, T, B)
    given = in_jax(problem)

    @jax.jit
    def both(parameters: Any, x: Any, state: Any, incoming: Any) -> Any:
        out, pull = jax.vjp(lambda p, x, s: scan(spec, p, x, s), parameters, x, state)
        return out, pull(incoming)

    incoming = jax.tree.map(jnp.asarray, (problem.dy, problem.dstate_n))
    out, (gradients, dx, dstate) = both(given["parameters"], given["x"], given["state"], incoming)
    expected = in_order(spec, jax.tree.map(np.asarray, (out, (dx, dstate, gradients))))
    compare(run(problem, jit=True), expected, problem)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_gradients_by_finite_differences(cell: str, rng: np.random.Generator, x64: None) -> None:
    problem = make_problem(rng, Spec(cell, 2, 3, dtype="float64"), 4, 2, reset=True)
    given = in_jax(problem)

    def function(parameters: Any, x: Any, state: Any) -> Any:
        return call(problem.spec, parameters, x, state, lengths=jnp.array([4, 2]), reset=given["reset"])

    check_grads(function, (given["parameters"], given["x"], given["state"]), order=1, modes=["rev"])


def test_a_context_of_64_bits(rng: np.random.Generator) -> None:
    if not hasattr(jax, "enable_x64"):
        pytest.skip("this JAX has no jax.enable_x64")
    problem = make_problem(rng, Spec("gru", IN, H, dtype="float64"), T, B)
    with jax.enable_x64(True):
        assert_same(run(problem, jit=True), kernels(problem))


# vmap.


def test_what_is_mapped_becomes_rows(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(rng, Spec("lstm", IN, H, num_layers=2), T, 4 * B, lengths=True, reset=True)
    given = in_jax(problem)

    def split(array: Any, axis: int) -> Any:
        return jnp.moveaxis(array.reshape(*array.shape[:axis], 4, B, *array.shape[axis + 1 :]), axis, 0)

    batches: list[int] = []
    forward = functional.forward
    monkeypatch.setattr(
        functional, "forward", lambda *a, **k: [batches.append(a[2].shape[1]), forward(*a, **k)][1]
    )
    y, state_n = jax.vmap(
        lambda x, state, lengths, reset: fastrnn.jax.lstm(
            given["parameters"], x, state, lengths=lengths, reset=reset
        )
    )(
        split(given["x"], 1),
        tuple(split(part, 1) for part in given["state"]),
        split(given["lengths"], 0),
        split(given["reset"], 1),
    )
    assert batches == [4 * B]
    (expected, expected_n), _ = kernels(problem)
    assert_same_bits(np.asarray(y), np.asarray(split(expected, 1)))
    for ours, right in zip(state_n, expected_n, strict=True):
        assert_same_bits(np.asarray(ours), np.asarray(split(right, 1)))


@pytest.mark.parametrize("mapped", ["weights", "tokens", "x in two axes", "key"])
def test_vmap_is_one_call_after_another(mapped: str, rng: np.random.Generator) -> None:
    spec = Spec("gru", IN, H, num_layers=2, dropout=0.5 if mapped == "key" else 0.0)
    problems = [make_problem(rng, spec, T, B, tokens=mapped == "tokens", state=False) for _ in range(4)]
    given = [in_jax(problem) for problem in problems]
    first, keys = given[0], jax.random.split(jax.random.key(0), 4)
    x = jnp.stack([each["x"] for each in given])
    if mapped == "weights":
        weights = jax.tree.map(lambda *parts: jnp.stack(parts), *(each["parameters"] for each in given))
        y, h = jax.vmap(lambda p: call(spec, p, first["x"], None))(weights)
        expected = [call(spec, each["parameters"], first["x"], None) for each in given]
    elif mapped == "key":
        y, h = jax.vmap(lambda key: call(spec, first["parameters"], first["x"], None, key=key))(keys)
        expected = [call(spec, first["parameters"], first["x"], None, key=key) for key in keys]
    else:

        def function(x: Any) -> Any:
            return call(spec, first["parameters"], x, None)

        expected = [function(each["x"]) for each in given]
        if mapped == "tokens":
            y, h = jax.jit(jax.vmap(function))(x)
        else:
            y, h = jax.vmap(jax.vmap(function), 1, 1)(x.reshape(2, 2, *x.shape[1:]))
            y, h = (part.reshape(4, *part.shape[2:]) for part in (y, h))
    for index, (y_one, h_one) in enumerate(expected):
        assert_same_bits(np.asarray(y[index]), np.asarray(y_one))
        assert_same_bits(np.asarray(h[index]), np.asarray(h_one))


@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize(("mapped", "batch"), [(4, 0), (0, 3), (0, 0)])
def test_mapping_over_nobody(differentiated: bool, mapped: int, batch: int) -> None:
    parameters = fastrnn.jax.init(jax.random.key(0), Spec("lstm", IN, H))
    x, lengths = jnp.ones((mapped, T, batch, IN)), jnp.ones((mapped, batch), "int32")

    def function(x: Any, lengths: Any) -> Any:
        return fastrnn.jax.lstm(parameters, x, lengths=lengths)

    if differentiated:
        dx = jax.vmap(jax.grad(lambda x, lengths: function(x, lengths)[0].sum()))(x, lengths)
        assert dx.shape == x.shape
    else:
        y, (h_n, c_n) = jax.jit(jax.vmap(function))(x, lengths)
        assert y.shape == (mapped, T, batch, H)
        assert h_n.shape == c_n.shape == (mapped, 1, batch, H)


def test_gradients_per_sample(rng: np.random.Generator) -> None:
    problem = make_problem(rng, Spec("lstm", IN, H), T, B, state=False)
    given = in_jax(problem)

    def loss(parameters: Any, x: Any) -> Any:
        return (fastrnn.jax.lstm(parameters, x)[0] ** 2).sum()

    x = jnp.moveaxis(given["x"], 1, 0)[:, :, None]
    per_sample = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(given["parameters"], x)
    for index in range(B):
        alone = jax.grad(loss)(given["parameters"], x[index])
        for name, gradient in alone.items():
            assert_same_bits(np.asarray(per_sample[name][index]), np.asarray(gradient), name)


def test_lengths_alone_are_mapped(rng: np.random.Generator) -> None:
    given = in_jax(make_problem(rng, Spec("gru", IN, H), T, B))

    def function(lengths: Any) -> Any:
        return fastrnn.jax.gru(given["parameters"], given["x"], given["state"], lengths=lengths)

    lengths = jnp.array([[5, 2, 0], [1, 4, 3]])
    y, h_n = jax.vmap(function)(lengths)
    for index, each in enumerate(lengths):
        for ours, right in zip((y, h_n), function(each), strict=True):
            assert_same_bits(np.asarray(ours[index]), np.asarray(right))


# Being called back.


def test_large_arrays_in_several_calls_of_one_program() -> None:
    parameters = fastrnn.jax.init(jax.random.key(0), Spec("rnn", 64, 64))

    @jax.jit
    def program(x: Any) -> Any:
        y, _ = fastrnn.jax.rnn(parameters, x * 2)
        again, _ = fastrnn.jax.rnn(parameters, x + 1)
        return fastrnn.jax.rnn(parameters, y + again)[0].sum()

    assert np.isfinite(program(jnp.ones((100, 200, 64))))  # 5 MB each
    assert np.isfinite(jax.grad(program)(jnp.ones((100, 200, 64)))).all()


def test_inside_a_scan_computed_again_in_backward(rng: np.random.Generator) -> None:
    problem = make_problem(rng, Spec("lstm", IN, H), 2 * T, B)
    given = in_jax(problem)

    @jax.checkpoint
    def chunk(state: Any, x: Any) -> Any:
        y, state = fastrnn.jax.lstm(given["parameters"], x, state)
        return state, y

    @jax.jit
    def both(x: Any) -> Any:
        (state_n, y), pull = jax.vjp(lambda x: jax.lax.scan(chunk, given["state"], x.reshape(2, T, B, IN)), x)
        return y, state_n, pull((problem.dstate_n, problem.dy.reshape(2, T, B, H)))[0]

    y, state_n, dx = jax.tree.map(np.asarray, both(given["x"]))
    spec, parameters = problem.spec, problem.parameters
    y_1, state_1, first = functional.forward_train(spec, parameters, problem.x[:T], problem.state)
    y_2, state_2, second = functional.forward_train(spec, parameters, problem.x[T:], state_1)
    dx_2, dstate, _ = functional.backward(spec, parameters, second, problem.dy[T:], problem.dstate_n)
    dx_1, _, _ = functional.backward(spec, parameters, first, problem.dy[:T], dstate)
    for ours, right in zip((*y, *state_n), (y_1, y_2, *state_2), strict=True):
        assert_same_bits(ours, right)
    assert_same_bits(dx, np.concatenate((dx_1, dx_2)))


def test_threads_run_a_program_side_by_side(rng: np.random.Generator) -> None:
    given = in_jax(make_problem(rng, Spec("gru", IN, H), 50, 40, state=False))
    program = jax.jit(jax.grad(lambda x: (fastrnn.jax.gru(given["parameters"], x)[0] ** 2).sum()))
    with ThreadPoolExecutor(4) as pool:
        first, *others = (np.asarray(dx) for dx in pool.map(program, [given["x"]] * 12))
    for other in others:
        assert_same_bits(other, first)


def test_nobody_in_the_batch() -> None:
    parameters = fastrnn.jax.init(jax.random.key(0), Spec("gru", IN, H))
    gradients, dx = jax.grad(lambda p, x: fastrnn.jax.gru(p, x)[0].sum(), (0, 1))(
        parameters, jnp.ones((T, 0, IN))
    )
    assert dx.shape == (T, 0, IN)
    assert not any(gradient.any() for gradient in gradients.values())


def test_a_call_is_compiled_once(rng: np.random.Generator, caplog: pytest.LogCaptureFixture) -> None:
    given = in_jax(make_problem(rng, Spec("gru", IN, 7), T, B, state=False))
    compiled = []
    for _ in range(2):
        caplog.clear()
        with jax.log_compiles():
            fastrnn.jax.gru(given["parameters"], given["x"])
        compiled.append(sum("ompiling" in record.getMessage() for record in caplog.records))
    assert compiled[0] > 0
    assert compiled[1] == 0


def test_training_by_jax() -> None:
    parameters = fastrnn.jax.init(jax.random.key(0), Spec("gru", 2, 8))
    x = jax.random.normal(jax.random.key(1), (6, 16, 2))

    def loss(parameters: Any) -> Any:
        return ((fastrnn.jax.gru(parameters, x)[1][0, :, 0] - 0.1 * x[..., 0].sum(0)) ** 2).mean()

    @jax.jit
    def step(parameters: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters)
        return value, jax.tree.map(lambda p, g: p - 0.3 * g, parameters, gradients)

    before, parameters = step(parameters)
    for _ in range(40):
        after, parameters = step(parameters)
    assert after < before / 3


# Initial values and errors.


def test_initial_values() -> None:
    spec = Spec("lstm", IN, H, num_layers=2, proj_size=2, peephole="diagonal")
    drawn = jax.jit(lambda key: fastrnn.jax.init(key, spec))(jax.random.key(0))
    assert {name: array.shape for name, array in drawn.items()} == spec.parameter_shapes()
    values = np.concatenate([np.ravel(array) for array in drawn.values()])
    assert np.unique(values).size > 0.99 * values.size  # nothing is drawn twice
    assert 0.9 < np.abs(values).max() * H**0.5 <= 1
    assert abs(values.mean()) * H**0.5 < 5 / np.sqrt(3 * values.size)
    with pytest.raises(TypeError, match=r"^spec has type dict; expected"):
        fastrnn.jax.init(jax.random.key(0), {})
    with pytest.raises(TypeError, match=r"^spec.dtype is float64, which JAX has only with"):
        fastrnn.jax.init(jax.random.key(0), Spec("gru", IN, H, dtype="float64"))


ONES = np.ones((T, B, IN), "float32")


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": ONES[..., 1:]}, ValueError, r"^x has shape \(5, 3, 3\); expected \(T, B, I\) = \(T, B, 4\)"),
        ({"x": ONES[:0]}, ValueError, "at least one step"),
        ({"x": ONES.astype("float16")}, TypeError, "^x is float16; expected float32"),
        ({"state": ONES}, ValueError, r"^state has shape .* expected \(L\*D, B, H\) = \(1, 3, 6\)"),
        ({"lengths": np.ones(2, "int32")}, ValueError, r"^lengths has shape \(2,\); expected \(B,\)"),
        ({"lengths": np.ones(B, "float32")}, TypeError, "^lengths is float32; expected integers"),
        ({"reset": np.ones((T, 1), bool)}, ValueError, "^reset has shape"),
        ({"weight_hh_l0": np.ones((18, 5), "float32")}, ValueError, "weight_hh_l0 has shape"),
        ({"weight_ih_l0": np.ones((17, 4), "float32")}, ValueError, r"expected \(3\*H, I\)"),
        ({"weight_ih_l0": np.ones((18, 4), "float16")}, TypeError, "is float16; expected float32 or float64"),
        ({"bias_hh_l0": None}, ValueError, "missing bias_hh_l0"),
        ({"weight_hr_l0": np.ones((2, 6), "float32")}, ValueError, "unexpected weight_hr_l0"),
    ],
)
def test_shapes_are_checked_when_traced(
    change: dict[str, Any], kind: Any, message: str, traced: bool
) -> None:
    parameters = dict(fastrnn.GRU(IN, H, seed=0).parameters)
    arguments: dict[str, Any] = {"x": ONES, "state": None, "lengths": None, "reset": None}
    for name, value in change.items():
        if name in arguments:
            arguments[name] = value
        elif value is None:
            del parameters[name]
        else:
            parameters[name] = value

    def function(parameters: Any, arguments: Any) -> Any:
        return fastrnn.jax.gru(parameters, **arguments)

    with pytest.raises(kind, match=message):
        (jax.jit(function).lower if traced else function)(parameters, arguments)


def test_other_arguments_are_checked() -> None:
    parameters = dict(fastrnn.GRU(IN, H, seed=0).parameters)
    with pytest.raises(TypeError, match=r"^parameters has type list; expected a mapping"):
        fastrnn.jax.gru([], ONES)
    for shape in (), (6,), (0, 6):
        weights = dict(fastrnn.LSTM(IN, H, seed=0).parameters) | {"weight_hr_l0": np.ones(shape, "float32")}
        with pytest.raises(
            ValueError, match=r"^parameters\['weight_hr_l0'\] has shape .*; expected \(P, H\)"
        ):
            fastrnn.jax.lstm(weights, ONES)
    with pytest.raises(ValueError, match=r"^parameters: missing weight_ih_l0; there are bias"):
        fastrnn.jax.gru({"bias": ONES}, ONES)
    with pytest.raises(ValueError, match=r"^parameters: missing weight_ih_l0; there are none$"):
        fastrnn.jax.gru({}, ONES)
    with pytest.raises(TypeError, match=r"^x is float64, which JAX has only with"):
        fastrnn.jax.gru(parameters, ONES.astype("float64"))
    with pytest.raises(TypeError, match=r"^x is key<.*; expected an array of numbers"):
        fastrnn.jax.gru(parameters, jax.random.key(0))
    with pytest.raises(TypeError, match=r"^batch_first is 1"):
        fastrnn.jax.gru(parameters, ONES, batch_first=1)
    with pytest.raises(ValueError, match=r"^dropout is 2"):
        fastrnn.jax.gru(parameters, ONES, dropout=2)
    with pytest.raises(ValueError, match=r"^lengths\[1\] is 6; expected from 0 to T = 5"):
        fastrnn.jax.gru(parameters, ONES, lengths=[1, 6, 0])
    with pytest.raises(ValueError, match=r"^x holds the token 4"):
        fastrnn.jax.gru(parameters, jnp.full((T, B), 4))


@pytest.mark.filterwarnings("default")
def test_values_that_come_later_are_checked_then() -> None:
    parameters = dict(fastrnn.GRU(IN, H, seed=0).parameters)
    with pytest.raises(Exception, match=r"lengths\[0\] is 9; expected from 0 to T = 5"):
        jax.block_until_ready(
            jax.jit(lambda n: fastrnn.jax.gru(parameters, ONES, lengths=n))(jnp.array([9, 1, 1]))
        )
    y, _ = jax.jit(lambda x: fastrnn.jax.gru(parameters, x))(ONES)  # and nothing is left of it
    assert np.isfinite(y).all()


def test_forward_mode_is_refused() -> None:
    parameters = dict(fastrnn.GRU(IN, H, seed=0).parameters)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: fastrnn.jax.gru(parameters, x), (jnp.asarray(ONES),), (jnp.asarray(ONES),))


# JAX's arrays in the layers themselves.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_take_and_give_jax_arrays(training: bool, batch_first: bool, rng: np.random.Generator) -> None:
    layer = fastrnn.LSTM(IN, H, batch_first=batch_first, seed=1).train(training)
    x = rng.standard_normal((B, T, IN) if batch_first else (T, B, IN), dtype=np.float32)
    state = tuple(rng.standard_normal((1, B, H), dtype=np.float32) for _ in range(2))
    lengths, reset = np.array([5, 0, 2]), rng.random(x.shape[:2]) < 0.3
    expected = jax.tree.map(np.array, layer(x, state, lengths=lengths, reset=reset))
    back = layer.backward(np.ones_like(expected[0])) if training else ()
    results = layer(
        jnp.asarray(x),
        jax.tree.map(jnp.asarray, state),
        lengths=jnp.asarray(lengths),
        reset=jnp.asarray(reset),
    )
    results = (results, layer.backward(jnp.ones_like(results[0])) if training else ())
    wanted = jax.tree.leaves((expected, back))
    assert len(wanted) == (6 if training else 3)
    for ours, right in zip(jax.tree.leaves(results), wanted, strict=True):
        assert isinstance(ours, jax.Array)
        assert_same_bits(np.asarray(ours), right)


def test_cells_tokens_streams_and_checkpoints_of_jax_arrays(rng: np.random.Generator) -> None:
    spec = Spec("gru", IN, H)
    parameters = fastrnn.jax.init(jax.random.key(0), spec)
    layer = fastrnn.GRU(IN, H)
    layer.load_state_dict(parameters)
    layer.eval()
    x = jnp.asarray(rng.standard_normal((T, B, IN), dtype=np.float32))
    y, h_n = layer(x)
    y_jax, h_jax = fastrnn.jax.gru(parameters, x)
    assert_same_bits(np.asarray(y), np.asarray(y_jax))
    assert_same_bits(np.asarray(h_n), np.asarray(h_jax))
    stream = layer.stream(batch=B)
    for t in range(T):
        step = stream.step(x[t])
        assert isinstance(step, jax.Array)
        assert_same_bits(np.array(step), np.asarray(y[t]))
    assert_same_bits(stream.state, np.asarray(h_n))
    y_tokens, _ = layer(jnp.ones((T, B), "int32"))
    assert_same_bits(np.asarray(y_tokens), layer(np.ones((T, B), "int64"))[0])
    h = fastrnn.GRUCell(IN, H, seed=0)(x[0])
    assert isinstance(h, jax.Array)
    packed = functional.pack(spec, parameters)
    assert_same_bits(np.asarray(functional.forward(spec, packed, x)[0]), np.asarray(y))
    message = r"^x has type \w*Tracer; expected an array with values: .* is for the functions of fastrnn\.jax"
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda x: layer(x)[0])(x)


@pytest.mark.parametrize("rows", [None, [2, 0]])
def test_what_a_stream_gives_to_jax_stays(rows: Any, rng: np.random.Generator) -> None:
    stream = fastrnn.GRU(64, 64, seed=0).eval().stream(batch=3)
    x = jnp.asarray(rng.standard_normal((4, 3 if rows is None else 2, 64), dtype=np.float32))
    steps, kept = [], []
    for t in range(4):
        steps.append(stream.step(x[t], rows))
        kept.append(np.array(steps[t]))
    for ours, right in zip(steps, kept, strict=True):
        assert_same_bits(np.asarray(ours), right)


def test_what_a_training_call_gives_to_jax_stays(rng: np.random.Generator) -> None:
    layer = fastrnn.LSTM(64, 64, seed=0)
    x = jnp.asarray(rng.standard_normal((2, T, B, 64), dtype=np.float32))
    calls, kept = [], []
    for t in range(2):
        y, (h, c) = layer(x[t])
        calls += [y, h, c, layer.backward(y)[0]]
        kept += [np.array(each) for each in calls[-4:]]
    for ours, right in zip(calls, kept, strict=True):
        assert_same_bits(np.asarray(ours), right)
