"""NaN, infinities, denormals and huge values; how exact the nonlinearities are; what the CPU is left like."""

from __future__ import annotations

import ctypes
import platform

import numpy as np
import pytest
from fastrnn import functional
from fastrnn.layouts import DTYPES, Spec
from problems import compare, flat, make_problem
from shapes import VARIANTS, make_spec
from tolerances import assert_same_bits

pytestmark = pytest.mark.kernels

ULP = 3.0
"""The bound that csrc/cells/math.h states for sigmoid and tanh, in units of the result's last place."""


def every_exponent(dtype: str) -> np.ndarray:
    """Return numbers of every exponent the dtype has, denormals too, with both signs and many mantissas."""
    limits = np.finfo(dtype)
    per_exponent = 128 if dtype == "float32" else 32
    exponents = np.arange(limits.minexp - limits.nmant, limits.maxexp)
    mantissas = 1.0 + np.random.default_rng(0).random((exponents.size, per_exponent))
    mantissas[:, 0] = 1.0
    numbers = np.ldexp(mantissas, exponents[:, None]).astype(dtype).ravel()
    where_they_bend = np.linspace(0, 120 if dtype == "float32" else 750, 100_000)
    numbers = np.concatenate([[0.0], numbers, where_they_bend])
    return np.concatenate([-numbers, numbers]).astype(dtype)


def through_a_layer(nonlinearity: str, values: np.ndarray, hidden_size: int) -> np.ndarray:
    """Apply a nonlinearity by an RNN of one step whose only weights are ones."""
    dtype = values.dtype.name
    spec = Spec("rnn", 1, hidden_size, bias=False, nonlinearity=nonlinearity, dtype=dtype)
    weights = {
        "weight_ih_l0": np.ones((hidden_size, 1), dtype),
        "weight_hh_l0": np.zeros((hidden_size, hidden_size), dtype),
    }
    y, _ = functional.forward(spec, weights, values[None, :, None])
    np.testing.assert_array_equal(y, np.broadcast_to(y[..., :1], y.shape))  # whichever lane it was in
    return y[0, :, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid"])
def test_nonlinearities_are_exact_to_a_few_ulp(nonlinearity: str, dtype: str, isa: str) -> None:
    """Over every exponent, wherever the result is a normal number; below that, to the smallest one."""
    x = every_exponent(dtype)
    actual = through_a_layer(nonlinearity, x, 16)
    wide = x.astype(np.longdouble)
    if nonlinearity == "tanh":
        exact = np.tanh(wide)
    else:
        with np.errstate(over="ignore"):
            exact = 1 / (1 + np.exp(-wide))
    limits = np.finfo(dtype)
    ulp = np.spacing(np.maximum(np.abs(exact).astype(dtype), limits.tiny))
    error = np.abs(actual - exact) / ulp
    normal = np.abs(exact) >= limits.tiny
    worst = int(np.argmax(np.where(normal, error, 0)))
    assert error[worst] <= ULP, (
        f"{nonlinearity}({x[worst]!r}) = {actual[worst]!r}, {error[worst]:.2f} ulp off"
    )
    assert (np.abs(actual - exact)[~normal] <= limits.tiny).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nonlinearities_at_their_ends(dtype: str, isa: str) -> None:
    """Infinities give the limits, NaN gives NaN; relu is exact, identity hands bits through."""
    x = np.array([-np.inf, np.inf, np.nan], dtype)
    ends = {"tanh": [-1, 1], "sigmoid": [0, 1], "relu": [0, np.inf], "identity": [-np.inf, np.inf]}
    for nonlinearity, limits in ends.items():
        y = through_a_layer(nonlinearity, x, 5)
        assert y[:2].tolist() == limits
        assert np.isnan(y[2])
    values = every_exponent(dtype)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(through_a_layer("relu", values, 5), np.maximum(values, 0))
        assert np.array_equal(through_a_layer("identity", values, 5), values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_stays_in_its_row(variant: str, isa: str, rng: np.random.Generator) -> None:
    """One row's x is NaN from some step on: it shows there, and every other row keeps its bits."""
    problem = make_problem(rng, make_spec(variant, 5, 19, num_layers=2), steps=4, batch=7)
    spec, parameters = problem.spec, problem.parameters
    y, _, reserve = functional.forward_train(spec, parameters, problem.x, problem.state)
    dx, dstate, _ = functional.backward(spec, parameters, reserve, problem.dy, problem.dstate_n)
    problem.x[2:, 3] = np.nan
    bad_y, _, reserve = functional.forward_train(spec, parameters, problem.x, problem.state)
    bad_dx, bad_dstate, _ = functional.backward(spec, parameters, reserve, problem.dy, problem.dstate_n)
    assert np.isnan(bad_y[2:, 3]).all()
    assert np.array_equal(bad_y[:2], y[:2])
    others = np.arange(7) != 3
    for bad, good in zip((bad_y, bad_dx, *flat(bad_dstate)), (y, dx, *flat(dstate)), strict=True):
        assert_same_bits(bad[:, others], good[:, others])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_nan_gradient_shows(variant: str, isa: str, rng: np.random.Generator) -> None:
    """At the first step without a state, too, of which nothing is multiplied with h."""
    problem = make_problem(rng, make_spec(variant, 5, 19), steps=4, batch=3)
    spec, parameters = problem.spec, problem.parameters
    problem.dy[0, 0] = np.nan
    *_, reserve = functional.forward_train(spec, parameters, problem.x)
    *_, gradients = functional.backward(spec, parameters, reserve, problem.dy)
    assert np.isnan(gradients["weight_ih_l0"]).any(axis=1).sum() > 0
    assert np.isnan(gradients["bias_ih_l0"]).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_reset_clears_nan(variant: str, isa: str, rng: np.random.Generator) -> None:
    """A NaN state ends at the next reset, forward and backward."""
    problem = make_problem(rng, make_spec(variant, 5, 19), steps=4, batch=3, reset=True)
    problem.reset[...] = False
    problem.reset[2] = True
    problem.x[1, 0] = np.nan
    problem.dy[2, 1] = np.nan
    spec, parameters = problem.spec, problem.parameters
    y, _, reserve = functional.forward_train(spec, parameters, problem.x, problem.state, reset=problem.reset)
    dx, dstate, _ = functional.backward(spec, parameters, reserve, problem.dy)
    assert np.isnan(y[1, 0]).all()
    assert np.isfinite(y[2:]).all()
    assert np.isnan(dx[2, 1]).all()
    assert np.isfinite(dx[:2, 1]).all()
    for d in flat(dstate):
        assert np.isfinite(d[:, 1]).all()


@pytest.mark.parametrize("scale", [1e30, np.inf], ids=["huge", "infinite"])
@pytest.mark.parametrize(
    "variant", ["lstm", "lstm-diagonal", "lstm-full", "gru", "gru-reset-before", "rnn-tanh", "rnn-sigmoid"]
)
def test_saturated_gates(variant: str, scale: float, isa: str, rng: np.random.Generator) -> None:
    """The outputs and gradients of the reference, to its NaN (a slope of 0 times an infinite x)."""
    problem = make_problem(rng, make_spec(variant, 1, 19), steps=3, batch=4)
    problem.x[...] = np.copysign(scale, problem.x)
    spec, parameters = problem.spec, problem.parameters
    with np.errstate(invalid="ignore"):
        expected = problem.reference()
    *out, reserve = functional.forward_train(spec, parameters, problem.x, problem.state)
    assert np.isfinite(out[0]).all()
    compare(
        (out, functional.backward(spec, parameters, reserve, problem.dy, problem.dstate_n)), expected, problem
    )


def mxcsr() -> int:
    """Return the SSE control bits: rounding, flush-to-zero, denormals-are-zero, exception masks."""
    environment = ctypes.create_string_buffer(64)
    assert ctypes.CDLL("libm.so.6").fegetenv(environment) == 0
    return int.from_bytes(environment.raw[28:32], "little") & ~0x3F  # without the sticky flags


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the control register of x86-64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_floating_point_environment_is_left_alone(
    variant: str, isa: str, rng: np.random.Generator
) -> None:
    """Control bits before equal those after."""
    problem = make_problem(rng, make_spec(variant, 5, 19), steps=3, batch=5)
    before = mxcsr()
    *_, reserve = functional.forward_train(problem.spec, problem.parameters, problem.x)
    functional.backward(problem.spec, problem.parameters, reserve, problem.dy)
    assert mxcsr() == before
