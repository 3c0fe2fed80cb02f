"""Do spectra, impulse responses and reaches of gradients say what linear algebra and differences say?"""

from __future__ import annotations

import importlib.util

import fastrnn
import numpy as np
import pytest
from fastrnn.diagnostics import gradient_reach, impulse_response, memory_length, recurrent_spectrum
from fastrnn.models import ManyToMany
from fastrnn.models._states import Bridge
from fastrnn.training import Linear, softmax_cross_entropy
from tolerances import assert_close


def rotation(radius, angle):
    return radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def linear_layer(matrix, inputs=1, dtype="float64"):
    layer = fastrnn.RNN(inputs, len(matrix), bias=False, nonlinearity="identity", dtype=dtype, seed=0)
    layer.parameters["weight_hh_l0"][...] = matrix
    return layer


# ---- Spectra ----------------------------------------------------------------------------------------

UP_THEN_DOWN = np.array([[0.5, 10.0], [0.0, 0.5]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("matrix", "radius", "verdict", "reason"),
    [
        (np.diag([0.5, 0.25]), 0.5, "vanish", "|lambda|max = 0.5 < 1"),
        (np.diag([1.5, -0.9]), 1.5, "explode", "|lambda|max = 1.5 > 1"),
        (np.diag([0.3, -1.25]), 1.25, "explode and oscillate", "> 1, -1.25 is negative: the sign alternates"),
        (rotation(0.5, np.pi / 3), 0.5, "vanish and oscillate", "is complex: a period of 6 steps"),
        (rotation(1.0, np.pi / 4), 1.0, "persist and oscillate", "= 1, "),
        (np.diag([0.99999, 0.5]), 0.99999, "vanish", "|lambda|max = 0.99999 < 1"),
        (np.eye(3), 1.0, "persist", "|lambda|max = 1 = 1"),
        (np.zeros((2, 2)), 0.0, "vanish", "|lambda|max = 0 < 1"),
        (UP_THEN_DOWN, 0.5, "vanish", "(the norm 10 > 1 lets some vectors grow at first)"),
    ],
)
def test_verdicts_of_known_matrices(matrix, radius, verdict, reason, dtype):
    spectrum = recurrent_spectrum(linear_layer(matrix, dtype=dtype))
    found = spectrum.matrices["weight_hh_l0"]
    assert found.radius == pytest.approx(radius, rel=1e-6)
    assert (found.verdict, found.norm) == (verdict, pytest.approx(np.linalg.norm(matrix, 2), rel=1e-6))
    assert reason in found.reason
    assert f"weight_hh_l0: {verdict}, as |lambda|max" in str(spectrum)


def test_an_orthogonal_matrix_neither_explodes_nor_vanishes(rng):
    q, _ = np.linalg.qr(rng.normal(size=(64, 64)))
    found = recurrent_spectrum(linear_layer(q, dtype="float32")).matrices["weight_hh_l0"]
    assert found.verdict == "persist and oscillate"


def test_every_layer_direction_and_gate(rng):
    layer = fastrnn.LSTM(3, 5, 2, bidirectional=True, proj_size=2, dtype="float64", seed=0)
    model = ManyToMany(layer, 2)
    spectrum = recurrent_spectrum(model)
    assert list(spectrum.matrices) == [
        f"layer.weight_hh_l{k}{direction}.{gate}"
        for k in range(2)
        for direction in ("", "_reverse")
        for gate in "ifgo"
    ]
    w_hh, w_hr = (layer.parameters[name] for name in ("weight_hh_l1_reverse", "weight_hr_l1_reverse"))
    expected = np.linalg.eigvals(w_hh[10:15] @ w_hr)
    found = spectrum.matrices["layer.weight_hh_l1_reverse.g"].eigenvalues
    np.testing.assert_allclose(np.abs(found), -np.sort(-np.abs(expected)), atol=1e-12)
    assert "LSTM is not linear" in str(spectrum)
    assert "not linear" not in str(recurrent_spectrum(linear_layer(np.eye(2))))


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_cell_has_the_matrices_of_its_layer(cell):
    layer, single = getattr(fastrnn, cell)(3, 4, seed=0), getattr(fastrnn, f"{cell}Cell")(3, 4, seed=0)
    found, expected = recurrent_spectrum(single).matrices, recurrent_spectrum(layer).matrices
    assert list(found) == [name.replace("_l0", "") for name in expected]
    for one, other in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(one.eigenvalues, other.eigenvalues)


def test_a_matrix_of_ones_own():
    companion = np.array([[0, 1], [0.5, -0.5]])  # of h_t = -h_(t-1) / 2 + h_(t-2) / 2
    found = recurrent_spectrum(companion).matrices["W"]
    np.testing.assert_allclose(found.eigenvalues, [-1, 0.5], atol=1e-12)
    assert found.verdict == "persist and oscillate"
    with pytest.raises(TypeError, match="model is a matrix of complex128; expected real numbers"):
        recurrent_spectrum(1j * companion)


@pytest.mark.parametrize(
    ("matrix", "period"),
    [(np.diag([1.0, -1.0]), 2), (np.diag([1.0, -0.5]), np.inf), (rotation(0.5, np.pi / 3), 6)],
)
def test_the_period_is_that_of_the_verdict(matrix, period):
    found = recurrent_spectrum(matrix).matrices["W"]
    assert found.period == pytest.approx(period)
    assert ("oscillate" in found.verdict) == np.isfinite(period)


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.zeros(2), np.zeros((0, 0)), np.full((2, 2), np.nan)])
def test_a_matrix_that_has_no_spectrum(matrix):
    with pytest.raises(ValueError, match=r"expected a square matrix of finite numbers"):
        recurrent_spectrum(matrix)


def test_a_diverged_layer_has_no_spectrum():
    layer = linear_layer(np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match=r"weight_hh_l0 has shape \(2, 2\) and NaN or infinity; expected"):
        recurrent_spectrum(layer)


def test_a_model_with_nothing_recurrent_has_no_spectrum():
    with pytest.raises(TypeError, match="expected an LSTM, GRU or RNN, or a model with some"):
        recurrent_spectrum(Linear(2, 2))


# ---- Impulse responses ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 3])
def test_response_of_a_linear_recursion_is_a_power_of_its_matrix(rng, at):
    matrix = rng.normal(size=(4, 4)) / 3
    layer = linear_layer(matrix, inputs=3)
    x = rng.normal(size=(12, 1, 3))
    found = impulse_response(layer, x=x, at=at, feature=2, size=2.0, state=rng.normal(size=(1, 1, 4)))
    u = 2.0 * layer.parameters["weight_ih_l0"][:, 2]
    expected = [np.linalg.matrix_power(matrix, t - at) @ u if t >= at else np.zeros(4) for t in range(12)]
    assert_close(found.response, np.array(expected), n_products=12 * 8, scale=8)
    assert_close(found.norms, np.linalg.norm(expected, axis=1), n_products=12 * 8, scale=8)


def test_response_follows_the_largest_eigenvalue():
    layer = linear_layer(rotation(0.9, 2 * np.pi / 10))
    found = recurrent_spectrum(layer).matrices["weight_hh_l0"]
    response = impulse_response(layer, 40)
    np.testing.assert_allclose(response.norms[1:] / response.norms[:-1], found.radius, rtol=1e-9)
    sign_changes = np.flatnonzero(np.diff(np.sign(response.response[:, 0])))
    np.testing.assert_allclose(np.diff(sign_changes), found.period / 2)


def test_a_model_that_is_partly_in_training_mode_stays_so(rng):
    layer = fastrnn.GRU(3, 4, 2, dropout=0.5, dtype="float64", seed=0).eval()
    lower, upper = layer, fastrnn.GRU(4, 4, 2, dropout=0.5, dtype="float64", seed=1)

    class Stack(ManyToMany):
        def __init__(self):
            super().__init__(upper, 2, seed=2)
            self._parts = {"lower": lower, **self._parts}

        def __call__(self, x, state=None):
            return super().__call__(lower(x)[0], state)

    model = Stack()
    x = rng.normal(size=(6, 1, 3))
    first, second = (impulse_response(model, x=x).response for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (lower.training, upper.training) == (False, True)
    upper.eval()
    np.testing.assert_array_equal(impulse_response(model, x=x).response, first)  # there was no dropout


def test_a_checkpoint_stays():
    layer = fastrnn.LSTM(3, 4, seed=0).train(checkpoint=64)
    x = np.zeros((200, 1, 3), "float32")
    report = layer.explain(x)
    impulse_response(layer, x=x)
    assert layer.explain(x) == report != layer.train().explain(x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_response_of_a_model_is_the_difference_of_two_calls(rng, dtype):
    layer = fastrnn.LSTM(3, 4, 2, bidirectional=True, dropout=0.5, dtype=dtype, seed=0)
    model = ManyToMany(layer, 2, seed=1)
    x = rng.normal(size=(6, 1, 3)).astype(dtype)
    found = impulse_response(model, x=x, at=4, feature=1, size=0.5)
    assert model.training
    model.eval()
    more = x.copy()
    more[4, 0, 1] += 0.5
    outputs = [model(v)[0].astype(np.float64)[:, 0] for v in (x, more)]
    assert_close(found.response, outputs[1] - outputs[0], n_products=100, dtype=dtype, scale=1)
    assert found.norms[0] > 0  # the reverse direction answers before


# ---- Gradients --------------------------------------------------------------------------------------


def test_reach_in_a_linear_recursion_is_a_power_of_its_matrix(rng):
    matrix = rng.normal(size=(4, 4)) / 2
    found = gradient_reach(linear_layer(matrix, inputs=3), rng.normal(size=(9, 1, 3)))
    expected = [np.linalg.norm(np.linalg.matrix_power(matrix.T, 9 - t) @ np.ones(4)) for t in range(9)]
    assert_close(found.norms["h_l0"], np.array(expected), n_products=9 * 4)
    np.testing.assert_array_equal(found.total, found.norms["h_l0"])


def weighted(rng, shape):
    """A loss that is a sum over steps, so that what comes before a step does not matter to those after."""
    factors = rng.normal(size=shape)
    return factors, lambda o, targets: (float((factors * o).sum()), factors)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fastrnn.LSTM(3, 4, 2, dtype="float64", seed=0),
        lambda: fastrnn.LSTM(3, 4, proj_size=2, peephole="diagonal", dtype="float64", seed=0),
        lambda: ManyToMany(fastrnn.GRU(3, 4, 2, dtype="float64", seed=0), 2, seed=1),
    ],
)
def test_reach_is_the_gradient_in_the_state_by_differences(rng, make):
    model = make()
    x, steps = rng.normal(size=(5, 2, 3)), 5
    model.eval()
    o, state = model(x[:1])
    factors, loss = weighted(rng, (steps, *o.shape[1:]))
    found = gradient_reach(model, x, loss=loss)
    assert not model.training
    for t in range(1, steps):
        _, state = model(x[:t])
        parts = [part.copy() for part in (state if isinstance(state, tuple) else (state,))]

        def rest(parts, t=t):
            later, _ = model(x[t:], tuple(parts) if len(parts) == 2 else parts[0])
            return float((factors[t:] * later).sum())

        for part, name in zip(parts, "hc", strict=False):
            for k in range(len(part)):
                differences = np.zeros(part[k].shape)
                for place in np.ndindex(differences.shape):
                    ends = []
                    for step in (1e-5, -1e-5):
                        part[k][place] += step
                        ends.append(rest(parts))
                        part[k][place] -= step
                    differences[place] = (ends[0] - ends[1]) / 2e-5
                assert found.norms[f"{name}_l{k}"][t] == pytest.approx(np.linalg.norm(differences), rel=1e-7)


def test_reach_with_tokens_targets_and_a_state(rng):
    model = ManyToMany(fastrnn.GRU(5, 4, dtype="float64", seed=0), 5, seed=1)
    tokens, state = rng.integers(0, 5, (6, 3)), rng.normal(size=(1, 3, 4))
    found = gradient_reach(model, tokens[:-1], tokens[1:], loss=softmax_cross_entropy, state=state)
    o, _ = model(tokens[:-1], state)
    _, dstate = model.backward(softmax_cross_entropy(o, tokens[1:])[1])
    assert found.norms["h_l0"][0] == pytest.approx(np.linalg.norm(dstate))


def test_reach_of_a_model_whose_output_is_of_the_last_step(rng):
    class Last(ManyToMany):
        def __call__(self, x, state=None):
            o, state_n = super().__call__(x, state)
            self.shape = o.shape
            return o[-1], state_n

        def backward(self, do=None, dstate_n=None):
            every = np.zeros(self.shape)
            if do is not None:
                every[-1] = do
            return super().backward(every, dstate_n)

    layers = [fastrnn.GRU(3, 4, dtype="float64", seed=0) for _ in range(2)]
    x = rng.normal(size=(6, 2, 3))
    last, every = (kind(layer, 2, seed=1) for kind, layer in zip((Last, ManyToMany), layers, strict=True))
    found, every = (gradient_reach(model, x) for model in (last, every))
    np.testing.assert_allclose(found.total, every.total, rtol=1e-12)


def test_zoneout_draws_anew_at_every_step():
    rows, units, kept = 16, 250, 0.5
    layer = fastrnn.RNN(1, units, bias=False, nonlinearity="identity", zoneout=kept, dtype="float64", seed=0)
    layer.parameters["weight_hh_l0"][...] = 0  # so that a gradient goes back only where a unit is kept
    found = np.square(gradient_reach(layer, np.zeros((6, rows, 1))).total) / (rows * units)
    expected = kept ** np.arange(6, 0, -1)
    deviation = np.sqrt(expected * (1 - expected) / (rows * units))
    assert (np.abs(found - expected) < 5 * deviation).all()


def test_recurrent_dropout_has_one_mask_for_all_steps():
    options = {"nonlinearity": "identity", "recurrent_dropout": 0.5, "dtype": "float64", "seed": 0}
    layer = fastrnn.RNN(1, 32, bias=False, **options)
    layer.parameters["weight_hh_l0"][...] = np.eye(32)
    found = np.square(gradient_reach(layer, np.zeros((8, 1, 1))).total)
    kept = found[-1] / 4  # a unit that is kept is doubled at every step, the others reach nothing
    assert 4 < kept < 28
    np.testing.assert_allclose(found, kept * 4.0 ** np.arange(8, 0, -1), rtol=1e-12)


def test_a_spectrum_says_that_zoneout_is_beside_it():
    plain, zoned = (fastrnn.RNN(1, 2, nonlinearity="identity", zoneout=p, seed=0) for p in (0.0, 0.9))
    assert str(recurrent_spectrum(plain)).endswith("which is what the layer does.")
    assert "zoneout keeps a part of h" in str(recurrent_spectrum(zoned))


def test_reach_leaves_the_layer_as_it_was(rng):
    layer = fastrnn.LSTM(3, 4, 2, dropout=0.5, seed=0)
    x = rng.normal(size=(5, 2, 3)).astype("float32")
    calls = layer.calls
    first, second = (gradient_reach(layer, x).total for _ in range(2))
    np.testing.assert_array_equal(first, second)  # the same masks
    assert layer.training
    assert layer.calls == calls
    assert all((gradient == 0).all() for gradient in layer.gradients.values())


@pytest.mark.parametrize(
    ("curve", "fraction", "expected"),
    [
        (0.5 ** np.arange(20), 0.01, 7),  # 2^-6 is 0.0156, 2^-7 is 0.0078
        ([1, 0.001, 0.5, 0.001], 0.01, 3),  # not for good at the first
        ([0, 0, 0], 0.01, 0),
        ([1, 0], 1.0, 1),
        (2.0 ** np.arange(20), 0.01, None),
        ([1, np.inf], 0.01, None),
        (np.ones(5), 0.5, None),
    ],
)
def test_memory_length(curve, fraction, expected):
    assert memory_length(curve, fraction) == expected


def test_memory_length_of_what_is_measured():
    layer = linear_layer(0.5 * np.eye(1))
    assert memory_length(impulse_response(layer, 20, at=5)) == 7
    assert memory_length(gradient_reach(layer, np.zeros((20, 1, 1)))) == 7
    layer = linear_layer(rotation(1.1, 0.3))
    assert memory_length(gradient_reach(layer, np.zeros((20, 1, 1)))) is None


# ---- Errors and figures -----------------------------------------------------------------------------

LAYER = fastrnn.RNN(3, 4, seed=0)
X = np.zeros((5, 1, 3), "float32")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: impulse_response(3), TypeError, "model is 3; expected a layer"),
        (lambda: impulse_response(fastrnn.RNNCell(3, 4)), TypeError, "expected a layer"),
        (lambda: impulse_response(fastrnn.RNN(3, 4, batch_first=True)), ValueError, "has batch_first=True"),
        (lambda: impulse_response(LAYER, 0), ValueError, "steps is 0; expected an integer of at least 1"),
        (lambda: impulse_response(LAYER, 5, x=X), ValueError, "steps is 5 beside an x"),
        (
            lambda: impulse_response(LAYER, x=X[:, 0]),
            ValueError,
            r"x has shape \(5, 3\); expected \(T, 1, I\)",
        ),
        (lambda: impulse_response(LAYER, x=[[1]]), TypeError, "x is int64; expected floats"),
        (lambda: impulse_response(LAYER, x=X, at=5), ValueError, "at is 5; expected an integer of at most 4"),
        (
            lambda: impulse_response(LAYER, feature=3),
            ValueError,
            "feature is 3; expected an integer of at most 2",
        ),
        (lambda: impulse_response(LAYER, size=np.nan), ValueError, "size is nan; expected a finite number"),
        (
            lambda: impulse_response(Bridge(3, LAYER)),
            ValueError,
            "x is None for a model that has no input",
        ),
        (lambda: gradient_reach(LAYER, X, 1), ValueError, "targets are given without a loss"),
        (lambda: gradient_reach(LAYER, X, loss=1), TypeError, "loss is 1; expected a function"),
        (
            lambda: gradient_reach(fastrnn.RNN(3, 4, bidirectional=True), X + 1),
            ValueError,
            r"gives something else step by step; expected one that reads x in order of time",
        ),
        (lambda: memory_length([1], 0), ValueError, "fraction is 0; expected a number from 0 to 1, not 0"),
        (lambda: memory_length([[1]]), ValueError, r"curve has shape \(1, 1\); expected \(N,\)"),
        (lambda: memory_length([1, np.nan]), ValueError, "curve has NaN or negative numbers"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_figures(rng):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    layer = fastrnn.LSTM(3, 4, 2, dtype="float64", seed=0)
    x = rng.normal(size=(5, 1, 3))
    for found, lines in [
        (recurrent_spectrum(layer), 3),  # the circle and two axes, under 8 scatters
        (impulse_response(layer), 4 + 2),
        (gradient_reach(layer, x), 4 + 1),
    ]:
        figure = found.draw()
        assert isinstance(figure, Figure)
        assert len(figure.axes[0].lines) == lines
        own = Figure().add_subplot()
        assert found.draw(own) is own.figure
        assert len(own.lines) == lines
    assert len(recurrent_spectrum(layer).draw().axes[0].collections) == 8


def test_drawing_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"drawing needs matplotlib: pip install 'fastrnn\[cli\]'"):
        recurrent_spectrum(LAYER).draw()
