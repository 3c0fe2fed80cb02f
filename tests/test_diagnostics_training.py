"""Do gates, gradient norms, landscapes and hidden pictures show what a model does, and change nothing?"""

from __future__ import annotations

import fastrnn
import numpy as np
import pytest
from fastrnn.charmodel import CharacterModel, Vocabulary
from fastrnn.diagnostics import (
    GradientNorms,
    gate_saturation,
    hidden_picture,
    loss_line,
    loss_plane,
    random_direction,
)
from fastrnn.models import ManyToMany, MultiTap
from tolerances import assert_close, assert_same_bits


def logistic(a):
    return 1 / (1 + np.exp(-a))


# ---- Gates ------------------------------------------------------------------------------------------


def test_gates_of_an_lstm_with_lengths(rng):
    layer = fastrnn.LSTM(3, 4, bidirectional=True, dtype="float64", seed=0)
    for parameter in layer.parameters.values():
        parameter *= 4
    x, lengths = rng.normal(size=(7, 3, 3)), np.array([7, 0, 4])
    found = gate_saturation(layer, x, lengths=lengths, low=0.2, high=0.7)
    p = {name.removesuffix("_l0_reverse"): a for name, a in layer.parameters.items() if "reverse" in name}
    seen = {gate: [] for gate in "ifo"}
    for b, length in enumerate(lengths):
        h = c = np.zeros(4)
        for t in reversed(range(length)):
            a = p["weight_ih"] @ x[t, b] + p["bias_ih"] + p["weight_hh"] @ h + p["bias_hh"]
            i, f, g, o = logistic(a[:4]), logistic(a[4:8]), np.tanh(a[8:12]), logistic(a[12:])
            c = f * c + i * g
            h = o * np.tanh(c)
            for gate, values in zip("ifo", (i, f, o), strict=True):
                seen[gate].append(values)
    for gate, values in seen.items():
        name = f"{gate}_l0_reverse"
        np.testing.assert_allclose(found.left[name], np.mean(np.array(values) < 0.2, axis=0))
        np.testing.assert_allclose(found.right[name], np.mean(np.array(values) > 0.7, axis=0))
    assert list(found.left) == [gate + suffix for suffix in ("_l0", "_l0_reverse") for gate in "ifo"]


def test_gates_of_a_gru(rng):
    layer = fastrnn.GRU(5, 4, dtype="float32", seed=0)
    for parameter in layer.parameters.values():
        parameter *= 4
    tokens, state = rng.integers(0, 5, (9, 2)), rng.normal(size=(1, 2, 4)).astype("float32")
    found = gate_saturation(layer, tokens, state)
    y, _ = layer.eval()(tokens, state)
    entering = np.concatenate([state, y[:-1]])
    p = layer.parameters
    a = np.eye(5)[tokens] @ p["weight_ih_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"]
    a = (a + entering @ p["weight_hh_l0"].T).reshape(-1, 12)
    for gate, values in (("r", logistic(a[:, :4])), ("z", logistic(a[:, 4:8]))):
        np.testing.assert_allclose(found.left[f"{gate}_l0"], np.mean(values < 0.1, axis=0))
        np.testing.assert_allclose(found.right[f"{gate}_l0"], np.mean(values > 0.9, axis=0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: gate_saturation(fastrnn.RNN(3, 4), 0),
            TypeError,
            "expected an LSTM or GRU, which have gates",
        ),
        (lambda: gate_saturation(fastrnn.GRU(3, 4), np.zeros((5, 1, 2))), ValueError, "x has shape"),
        (
            lambda: gate_saturation(fastrnn.GRU(3, 4, batch_first=True), np.zeros((5, 1, 3))),
            ValueError,
            "the layer has batch_first=True; expected a time-major one",
        ),
        (
            lambda: gate_saturation(fastrnn.GRU(3, 4), np.zeros((5, 1, 3)), lengths=[0]),
            ValueError,
            r"x has shape \(5, 1, 3\), lengths is \[0\]; expected a step of some row",
        ),
        (
            lambda: gate_saturation(fastrnn.GRU(3, 4), np.zeros((5, 1, 3)), low=0.9, high=0.1),
            ValueError,
            "low is 0.9 and high is 0.1; expected low < high",
        ),
        (
            lambda: gate_saturation(fastrnn.GRU(3, 4), np.zeros((5, 1, 3)), high=2),
            ValueError,
            "high is 2; expected a number from 0 to 1",
        ),
    ],
)
def test_gates_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Gradient norms ---------------------------------------------------------------------------------


def test_norms_of_every_layer(rng):
    model = ManyToMany(fastrnn.GRU(3, 4, 2, bidirectional=True, seed=0), 2, seed=1)
    record = GradientNorms(every=2)
    for step in range(5):
        o, _ = model(rng.normal(size=(4, 2, 3)).astype("float32"))
        model.backward(o)  # gradients grow from step to step
        record(step, model)
    assert record.steps == [0, 2, 4]
    assert list(record.norms) == [
        "layer.l0",
        "layer.l0_reverse",
        "layer.l1",
        "layer.l1_reverse",
        "readout",
    ]
    own = [g for name, g in model.gradients.items() if name.endswith("_l1") and name.startswith("layer")]
    expected = np.linalg.norm(np.concatenate([g.ravel() for g in own]).astype(np.float64))
    assert record.norms["layer.l1"][-1] == pytest.approx(expected)


def test_norms_bad_use():
    with pytest.raises(ValueError, match="every is 0; expected an integer of at least 1"):
        GradientNorms(every=0)
    record = GradientNorms()
    with pytest.raises(TypeError, match="model is 3; expected a layer or a model, with"):
        record(0, 3)
    record(0, fastrnn.RNN(2, 2))
    with pytest.raises(ValueError, match=r"model has the layers \['l0', 'l1'\]; expected \['l0'\] as before"):
        record(1, fastrnn.RNN(2, 2, 2))


# ---- Landscapes -------------------------------------------------------------------------------------


def make_model():
    return ManyToMany(fastrnn.GRU(3, 4, 2, dropout=0.5, dtype="float64", seed=0), 2, seed=1)


def half_square(model):
    return sum(float(np.square(array).sum()) / 2 for array in model.parameters.values())


@pytest.mark.parametrize("training", [True, False])
def test_a_quadratic_loss_along_a_line(rng, training):
    model = make_model().train(training)
    a, b = ({k: rng.normal(size=p.shape) for k, p in model.parameters.items()} for _ in range(2))
    alphas = [-0.5, 0, 0.3, 1, 2]
    found = loss_line(model, half_square, a, b, alphas)
    flat_a, flat_b = (np.concatenate([v.ravel() for v in values.values()]) for values in (a, b))
    expected = [np.square((1 - alpha) * flat_a + alpha * flat_b).sum() / 2 for alpha in alphas]
    assert_close(found.losses, np.array(expected), n_products=len(flat_a))


def test_a_quadratic_loss_on_a_plane(rng):
    model = make_model()
    names = list(model.parameters)
    directions = [{k: rng.normal(size=p.shape) for k, p in model.parameters.items()} for _ in range(2)]
    found = loss_plane(model, half_square, None, directions, span=2.0, points=4)
    centre, first, second = (
        np.concatenate([np.ravel(values[k]) for k in names]) for values in (model.parameters, *directions)
    )
    np.testing.assert_allclose(found.alphas, np.linspace(-2, 2, 4))
    expected = [
        [np.square(centre + alpha * first + beta * second).sum() / 2 for beta in found.alphas]
        for alpha in found.alphas
    ]
    assert_close(found.losses, np.array(expected), n_products=len(centre))


@pytest.mark.parametrize("training", [True, False])
def test_the_masks_are_the_same_at_every_point(rng, training):
    model = make_model().train(training)
    x = rng.normal(size=(4, 2, 3))
    here = model.state_dict()
    found = loss_line(model, lambda model: model(x)[0].sum(), here, here, [0.0, 0.25, 1.0])
    assert_close(found.losses, np.full(3, found.losses[0]), n_products=100)


@pytest.mark.parametrize("training", [True, False])
def test_parameters_come_back_even_if_the_loss_raises(rng, training):
    model = make_model().train(training)
    before, calls = model.state_dict(), model.layer.calls
    zero = {name: np.zeros_like(array) for name, array in before.items()}

    def loss_of(model):
        assert not any(array.any() for array in model.parameters.values())
        raise ArithmeticError("enough")

    with pytest.raises(ArithmeticError, match="enough"):
        loss_line(model, loss_of, zero, zero)
    with pytest.raises(ArithmeticError, match="enough"):
        loss_plane(model, loss_of, zero)
    for name, array in model.parameters.items():
        assert_same_bits(array, before[name], name)
    assert (model.training, model.layer.calls) == (training, calls)
    if not training:  # and the packed weights too
        x = rng.normal(size=(4, 2, 3))
        assert_same_bits(model(x)[0], make_model().eval()(x)[0])


def test_a_random_direction_has_the_norms_of_the_rows():
    parameters = make_model().state_dict()
    first, again, other = (random_direction(parameters, seed=seed) for seed in (0, 0, 1))
    for name, array in parameters.items():
        sizes = np.linalg.norm(array, axis=1) if array.ndim == 2 else np.zeros(())
        np.testing.assert_allclose(np.linalg.norm(first[name], axis=-1), sizes, rtol=1e-12)
        np.testing.assert_array_equal(first[name], again[name])
        assert array.ndim == 1 or (first[name] != other[name]).all()


LAYER = fastrnn.RNN(1, 2, bias=False, seed=0)
STATE = LAYER.state_dict()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: loss_line(3, half_square, STATE, STATE), TypeError, "model is 3; expected a layer"),
        (lambda: loss_line(LAYER, 3, STATE, STATE), TypeError, "loss_of is 3; expected a function"),
        (lambda: loss_line(LAYER, half_square, 3, STATE), TypeError, "a has type int; expected a mapping"),
        (
            lambda: loss_line(LAYER, half_square, STATE, {}),
            ValueError,
            r"b has the names \[\]; expected \['weight_ih_l0', 'weight_hh_l0'\]",
        ),
        (
            lambda: loss_line(LAYER, half_square, STATE, STATE | {"weight_ih_l0": np.zeros(2)}),
            ValueError,
            r"b\['weight_ih_l0'\] has shape \(2,\); expected \(2, 1\)",
        ),
        (
            lambda: loss_line(LAYER, half_square, STATE, STATE, [np.nan]),
            ValueError,
            r"alphas are \[nan\]; expected finite numbers, at least one",
        ),
        (
            lambda: loss_plane(LAYER, half_square, None, [STATE]),
            ValueError,
            "expected two mappings of names to arrays",
        ),
        (
            lambda: loss_plane(LAYER, half_square, span=0),
            ValueError,
            "span is 0; expected a finite number gr",
        ),
        (lambda: loss_plane(LAYER, half_square, points=1), ValueError, "points is 1; expected an integer of"),
    ],
)
def test_landscape_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Hidden units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_hidden_units_of_every_layer(rng, training):
    layer = fastrnn.LSTM(5, 4, 2, dropout=0.5, seed=0).train(training)
    tokens = rng.integers(0, 5, 9)
    picture = hidden_picture(ManyToMany(layer, 3), tokens)
    assert layer.training == training
    y, (h_n, c_n) = layer.eval()(tokens[:, None])
    assert list(picture.states) == ["h_l0", "h_l1", "c_l0", "c_l1"]
    np.testing.assert_array_equal(picture.states["h_l1"], y[:, 0])
    for k in range(2):
        np.testing.assert_array_equal(picture.states[f"h_l{k}"][-1], h_n[k, 0])
        np.testing.assert_array_equal(picture.states[f"c_l{k}"][-1], c_n[k, 0])
    assert picture.symbols == tuple(map(str, tokens))
    spread = picture.states["c_l0"].std(axis=0)
    assert picture.liveliest("c_l0", 2) == sorted(range(4), key=lambda unit: -spread[unit])[:2]


def test_a_hidden_picture_is_of_one_direction(rng):
    layer = fastrnn.GRU(5, 4, bidirectional=True, seed=0)
    for model in layer, ManyToMany(layer, 3):
        with pytest.raises(ValueError, match="gives something else step by step"):
            hidden_picture(model, rng.integers(0, 5, 9))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MultiTap(5, 4, 3, seed=0), "state[0][0]"),
        (lambda: fastrnn.LSTM(5, 4, 2, seed=0), "h_l1"),
        (lambda: ManyToMany(fastrnn.GRU(5, 4, 2, seed=0), 3), "h_l1"),
    ],
)
def test_what_is_drawn_if_nothing_is_said(rng, make, name):
    pytest.importorskip("matplotlib")
    picture = hidden_picture(make(), rng.integers(0, 5, 9))
    assert picture.draw().axes[1].get_ylabel() == name


def test_a_text_through_a_character_model():
    model = CharacterModel(Vocabulary("abc \n"), "gru", hidden_size=6, seed=0)
    picture = hidden_picture(model, "a cab\nb")
    assert picture.symbols == tuple("a cab\nb")
    y, _ = model.layer(model.vocabulary.encode("a cab\nb")[:, None])
    np.testing.assert_array_equal(picture.states["h_l0"], y[:, 0])


TEXT = "one $two$\n\tthree"


def test_the_figure_shows_every_symbol_once_for_each_unit():
    pytest.importorskip("matplotlib")
    model = CharacterModel(Vocabulary.from_text(TEXT, 1.0), "gru", hidden_size=6, seed=0)
    picture = hidden_picture(model, TEXT)
    axes = picture.draw(units=[5, 0], columns=6).axes[0]
    shown = [(round(t.get_position()[1]), t.get_text()) for t in axes.texts]
    lines = ["one $t", "wo$\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\N{RIGHTWARDS ARROW}three"]
    for first_row in (0, 4):
        for row, line in enumerate(lines, first_row):
            assert "".join(symbol for place, symbol in shown if place == row) == line
    assert len(shown) == 2 * len(TEXT)
    drawn = axes.images[0].get_array()
    assert_close(np.asarray(drawn[0, :6]), picture.states["h_l0"][:6, 5], n_products=1)
    assert_close(np.asarray(drawn[6, :6]), picture.states["h_l0"][10:, 0], n_products=1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["unit 5", "unit 0"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hidden_picture(3, "a"), TypeError, "model is 3; expected a layer"),
        (lambda: hidden_picture(LAYER, "a"), TypeError, "text is a string, and the model has no vocabulary"),
        (lambda: hidden_picture(LAYER, []), ValueError, r"text has shape \(0,\); expected \(T,\)"),
        (
            lambda: hidden_picture(LAYER, [[1, 2]]),
            ValueError,
            r"text has shape \(1, 2\); expected \(T,\) of t",
        ),
        (lambda: hidden_picture(LAYER, [0, 0], ["a"]), ValueError, "symbols are 1; expected 2, one for each"),
        (
            lambda: hidden_picture(LAYER, [0, 0]).draw(name="c_l0"),
            ValueError,
            "name is 'c_l0'; expected one of h_l0",
        ),
        (
            lambda: hidden_picture(LAYER, [0, 0]).draw(units=[]),
            ValueError,
            "units is empty; expected at least one unit",
        ),
        (
            lambda: hidden_picture(LAYER, [0, 0]).draw(units=[2]),
            ValueError,
            "units is 2; expected an integer of at most 1",
        ),
    ],
)
def test_hidden_picture_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Figures ----------------------------------------------------------------------------------------


def test_figures_can_be_written(rng, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    layer = fastrnn.LSTM(2, 3, 2, seed=0)
    record = GradientNorms()
    record(0, layer)
    found = [
        gate_saturation(layer, rng.normal(size=(5, 1, 2))),
        record,
        loss_line(LAYER, half_square, STATE, STATE),
        loss_plane(LAYER, half_square, points=3),
        loss_plane(LAYER, lambda model: np.nan, points=3),  # of which there are no contours
        hidden_picture(LAYER, [0, 0, 0]),
    ]
    for i, one in enumerate(found):
        figure = one.draw()
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{i}.png")
    own = Figure().subplots(1, 3)
    assert found[0].draw(own) is own[0].figure
    with pytest.raises(ValueError, match=r"axes are 1; expected 3, one for each of \['i', 'f', 'o'\]"):
        found[0].draw(own[:1])
