"""Are the architectures what their equations say, forward and backward, with lengths, resets and tokens?"""

from __future__ import annotations

import copy

import fastrnn
import numpy as np
import pytest
from fastrnn.diagnostics import gradient_check
from fastrnn.models import (
    DeepInTime,
    EncoderDecoder,
    LayerNorm,
    LayerNormGRU,
    LayerNormLSTM,
    ManyToMany,
    ManyToOne,
    MultiTap,
    OneToMany,
    OutputFeedback,
    Sweep2D,
    TimeDelay,
)
from fastrnn.models._host import HostModel
from fastrnn.training import Linear, softmax_cross_entropy
from nested import arrays, assert_equal
from tolerances import assert_close, assert_same_bits, size

T, B, X, H, Y = 5, 4, 3, 4, 2  # steps, rows, widths of x, h and o
F64 = {"dtype": "float64"}


def gru(inputs=X, hidden=H, seed=0, dtype="float64", **options):
    return fastrnn.GRU(inputs, hidden, dtype=dtype, seed=seed, **options)


def lstm(inputs=X, hidden=H, seed=0, dtype="float64", **options):
    return fastrnn.LSTM(inputs, hidden, dtype=dtype, seed=seed, **options)


# Models over sequences x (T, B, X) with a state, that take lengths: name to how one is made.
SEQUENCES = {
    "many to many": lambda dtype="float64": ManyToMany(lstm(num_layers=2, dtype=dtype), Y, seed=1),
    "many to one": lambda dtype="float64": ManyToOne(gru(dtype=dtype), Y, seed=1),
    "many to one, bidirectional": lambda dtype="float64": ManyToOne(
        lstm(bidirectional=True, num_layers=2, dtype=dtype), Y, seed=1
    ),
    "deep in time": lambda dtype="float64": DeepInTime(gru(dtype=dtype), 3),
    "readout of deep in time": lambda dtype="float64": ManyToMany(
        DeepInTime(lstm(dtype=dtype), 2), Y, seed=1
    ),
    "deep in time of deep in time": lambda dtype="float64": DeepInTime(DeepInTime(gru(dtype=dtype), 2), 2),
    "one tap": lambda dtype="float64": MultiTap(X, H, 1, seed=0, dtype=dtype),
    "three taps": lambda dtype="float64": MultiTap(X, H, 3, nonlinearity="sigmoid", seed=0, dtype=dtype),
    "many to one of taps": lambda dtype="float64": ManyToOne(
        MultiTap(X, H, 2, seed=0, dtype=dtype), Y, seed=1
    ),
    "time delay": lambda dtype="float64": TimeDelay(X, H, Y, 2, seed=0, dtype=dtype),
    "longer time delay than sequence": lambda dtype="float64": TimeDelay(X, H, Y, T + 2, seed=0, dtype=dtype),
    "output feedback": lambda dtype="float64": OutputFeedback(X, H, Y, seed=0, dtype=dtype),
    "output feedback of classes": lambda dtype="float64": OutputFeedback(
        X, H, Y, output="softmax", seed=0, dtype=dtype
    ),
    "layer-norm LSTM": lambda dtype="float64": LayerNormLSTM(X, H, seed=0, dtype=dtype),
    "layer-norm GRU": lambda dtype="float64": LayerNormGRU(X, H, seed=0, dtype=dtype),
    "deep layer-norm GRU": lambda dtype="float64": ManyToMany(
        DeepInTime(LayerNormGRU(X, H, seed=0, dtype=dtype), 2), Y, seed=1
    ),
    "a readout of a readout": lambda dtype="float64": ManyToMany(
        ManyToMany(gru(dtype=dtype), 5, seed=1), Y, seed=2
    ),
}
WITH_RESET = sorted(set(SEQUENCES) - {"time delay", "longer time delay than sequence"})
CAUSAL = [name for name in SEQUENCES if "one" not in name or name == "one tap"]


def random_state(rng, model, batch=B):
    state = tuple(rng.standard_normal(shape) for shape in model.state_shapes(batch))
    return state if len(state) > 1 else state[0]


def masked(lengths, steps=T):
    """The loss of the steps within the lengths, which is what a readout's o is for."""
    valid = np.broadcast_to(np.arange(steps)[:, None] < (steps if lengths is None else lengths), (steps, B))
    return lambda o, targets: softmax_cross_entropy(o, targets, valid)


def assert_gradients(model, x, *arguments, **options):
    check = gradient_check(model, x, *arguments, samples=9, **options)
    assert check.passed, check
    return check


# ---- all of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["plain", "lengths", "reset", "both"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_gradients_are_those_of_finite_differences(rng, name, options):
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    keywords = {}
    if options in ("lengths", "both"):
        keywords["lengths"] = np.array([3, T, 0, 1])
    if options in ("reset", "both"):
        if name not in WITH_RESET:
            pytest.skip(f"{name} has no reset")
        keywords["reset"] = rng.random((T, B)) < 0.4
    state = random_state(rng, model)
    if "lengths" in keywords and "many" in name and "one" not in name:
        # A readout knows nothing of lengths: its o past them is c, which the losses mask.
        targets = rng.integers(0, Y, (T, B))
        assert_gradients(model, x, targets, loss=masked(keywords["lengths"]), state=state, options=keywords)
    else:
        assert_gradients(model, x, state=state, options=keywords)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_row_does_not_see_past_its_length(rng, name):
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    lengths = np.array([3, T, 1, 4])
    padded = np.where(np.arange(T)[:, None, None] < lengths[:, None], x, np.nan)
    o, state_n = model(padded, lengths=lengths)
    do = np.ones_like(o)
    if o.ndim == 3:
        do[np.arange(T)[:, None] >= lengths] = 0
    dx, dstate = model.backward(do)
    gradients = {name: g.copy() for name, g in model.gradients.items()}
    model.zero_grad()
    assert (dx[np.arange(T)[:, None] >= lengths] == 0).all()
    scale = size(dx, *arrays(dstate), *gradients.values())
    for b, steps in enumerate(lengths):
        own, own_n = model(x[:steps, b : b + 1])
        assert_close(o[:steps, [b]] if o.ndim == 3 else o[[b]], own, n_products=T * X * H)
        own_dx, own_dstate = model.backward(np.ones_like(own))
        assert_close(dx[:steps, [b]], own_dx, n_products=10 * T * X * H, scale=scale)
        for a, row, n in ((state_n, own_n, 1), (dstate, own_dstate, 10)):
            for all_rows, alone in zip(arrays(a), arrays(row), strict=True):
                assert_close(all_rows[:, [b]], alone, n_products=n * T * X * H, scale=scale)
    for name, g in model.gradients.items():
        assert_close(gradients[name], g, n_products=10 * B * T * X * H, scale=scale)


@pytest.mark.parametrize("name", WITH_RESET)
def test_a_reset_cuts_the_sequence(rng, name):
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    if getattr(getattr(model, "layer", None), "bidirectional", False):
        pytest.skip("the backward direction starts at the other end")
    reset = np.zeros((T, B), bool)
    reset[2] = True
    o, state_n = model(x, random_state(rng, model), reset=reset)
    own, own_n = model(x[2:])
    assert_close(o[2:] if o.ndim == 3 else o, own, n_products=T * X * H)
    for a, b in zip(arrays(state_n), arrays(own_n), strict=True):
        assert_close(a, b, n_products=T * X * H)


@pytest.mark.parametrize("name", SEQUENCES)
def test_state_goes_from_call_to_call(rng, name):
    if "bidirectional" in name:
        pytest.skip("the backward direction starts at the other end")
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    o, state_n = model(x)
    _, state = model(x[:2])
    rest, rest_n = model(x[2:], state)
    assert_close(rest, o[2:] if o.ndim == 3 else o, n_products=T * X * H)
    for a, b in zip(arrays(rest_n), arrays(state_n), strict=True):
        assert_close(a, b, n_products=T * X * H)


FUSED = [
    name for name, make in SEQUENCES.items() if not any(isinstance(m, HostModel) for m in make()._models())
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUSED)
def test_what_layers_and_readouts_compute_has_the_same_bits_alone_and_step_by_step(rng, name, dtype):
    rows = 13  # several tiles, and a part of one
    model, x = SEQUENCES[name](dtype).eval(), rng.standard_normal((T, rows, X)).astype(dtype)
    o, _ = model(x)
    for b in range(rows):
        assert_same_bits(model(x[:, b : b + 1])[0], o[:, b : b + 1] if o.ndim == 3 else o[b : b + 1])
    if name in CAUSAL:
        stream = model.stream(rows)
        for x_t, o_t in zip(x, o, strict=True):
            assert_same_bits(stream.step(x_t).copy(), o_t)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_stream_is_the_call_step_by_step(rng, name):
    model, x = SEQUENCES[name]().eval(), rng.standard_normal((T, B, X))
    o, state_n = model(x)
    stream = model.stream(B)
    for x_t, o_t in zip(x, o, strict=True):
        assert_close(stream.step(x_t), o_t, n_products=T * X * H)
    for a, b in zip(arrays(stream.state), arrays(state_n), strict=True):
        assert_close(a, b, n_products=T * X * H)
    stream.state = state_n
    stream.reset([0, 2])
    for a, b in zip(arrays(stream.state), arrays(state_n), strict=True):
        assert (a[:, [0, 2]] == 0).all()
        assert_equal(a[:, [1, 3]], b[:, [1, 3]])


@pytest.mark.parametrize("name", SEQUENCES)
def test_tokens_are_one_hot_vectors(rng, name):
    model, tokens = SEQUENCES[name](), rng.integers(0, X, (T, B))
    o, state_n = model(tokens)
    dx, _ = model.backward(np.ones_like(o))
    assert dx is None
    gradients = {name: g.copy() for name, g in model.gradients.items()}
    model.zero_grad()
    same, same_n = model(np.eye(X)[tokens])
    model.backward(np.ones_like(o))
    for a, b in zip(arrays((o, state_n, gradients)), arrays((same, same_n, model.gradients)), strict=True):
        assert_close(a, b, n_products=T * B * X * H)
    tokens[1, 1] = X
    before = model.state_dict()
    with pytest.raises(ValueError, match=f"x holds the token {X}; expected tokens from 0 to {X - 1}"):
        model(tokens)
    model(np.where(tokens == X, 0, tokens), lengths=np.full(B, 1))
    model(tokens, lengths=np.full(B, 1))
    assert_equal(model.state_dict(), before)


@pytest.mark.parametrize("name", SEQUENCES)
def test_wrong_calls_are_refused(rng, name):
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    with pytest.raises(TypeError, match="x is float32; expected float64"):
        model(x.astype("float32"))
    with pytest.raises(ValueError, match=r"x has shape \(5, 4, 2\)"):
        model(x[:, :, :2])
    with pytest.raises((TypeError, ValueError), match="state has"):
        model(x, np.zeros((1, 1, 1)))
    with pytest.raises(ValueError, match=r"lengths\[0\] is 6; expected from 0 to T = 5"):
        model(x, lengths=[6, 1, 1, 1])
    with pytest.raises(RuntimeError, match="backward"):
        model.backward(None)
    o, state_n = model(x)
    with pytest.raises(ValueError, match=r"d[oy]"):
        model.backward(np.zeros((7, 7, 7)))
    with pytest.raises((TypeError, ValueError), match="dstate_n has"):
        model.backward(np.ones_like(o), arrays(state_n)[0][:, :2])
    assert all((g == 0).all() for g in model.gradients.values())
    model.backward(np.ones_like(o), state_n)
    with pytest.raises(RuntimeError, match="backward"):
        model.backward(np.ones_like(o))
    o, _ = model(x)
    with pytest.raises(RuntimeError, match="backward"):
        model.eval().train().backward(np.ones_like(o))
    model.eval()(x)
    with pytest.raises(RuntimeError, match="backward"):
        model.backward(np.ones_like(o))


NESTED = {
    "encoder of layer norm, decoder of taps": lambda: EncoderDecoder(
        LayerNormLSTM(X, H, seed=0, **F64), MultiTap(X, 5, 2, seed=1, **F64), Y, bridge=True, seed=2
    ),
    "encoder deep in time, decoder too": lambda: EncoderDecoder(
        DeepInTime(lstm(proj_size=2), 2), DeepInTime(gru(seed=1), 3), Y, bridge=True, seed=2
    ),
    "one to many, deep in time, peephole": lambda: OneToMany(
        DeepInTime(lstm(peephole="full"), 2), Y, X, mode="input", seed=1
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_models_go_into_models(rng, name):
    model, inputs = NESTED[name](), rng.standard_normal((3, B, X))
    x = rng.standard_normal((B, X) if isinstance(model, OneToMany) else (T, B, X))
    assert_gradients(model, x, options={"inputs": inputs})


def test_dropout_is_the_layers(rng):
    model = ManyToOne(DeepInTime(lstm(num_layers=3, dropout=0.5), 2), Y, seed=1)
    assert_gradients(model, rng.standard_normal((T, B, X)))


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_batch_may_be_empty(name):
    model = SEQUENCES[name]()
    o, state_n = model(np.zeros((T, 0, X)))
    dx, dstate = model.backward(np.ones_like(o), state_n)
    assert 0 in o.shape
    assert dx.shape == (T, 0, X)
    assert [a.shape for a in arrays(dstate)] == [a.shape for a in arrays(state_n)]


# ---- each by its equations ---------------------------------------------------------------------------


def test_the_last_step_of_each_direction_is_read(rng):
    layer = lstm(num_layers=2, bidirectional=True)
    model, x = ManyToOne(layer, Y, seed=1), rng.standard_normal((T, B, X))
    for lengths in None, np.array([3, 0, 5, 1]):
        _, (h_n, _) = layer(x, lengths=lengths)
        o, _ = model(x, lengths=lengths)
        assert_close(o, model.readout(np.concatenate([h_n[-2], h_n[-1]], axis=-1)), n_products=2 * H)


def test_a_stream_of_many_to_one_gives_what_the_sequence_so_far_does(rng):
    model, x = ManyToOne(gru(), Y, seed=1).eval(), rng.standard_normal((T, B, X))
    stream = model.stream(B)
    for t in range(T):
        assert_same_bits(stream.step(x[t]).copy(), model(x[: t + 1])[0])


def test_pseudo_steps_are_steps_with_the_same_input(rng):
    layer, x = gru(), rng.standard_normal((T, B, X))
    y, state_n = DeepInTime(layer, 3)(x)
    h = None
    for x_t, y_t in zip(x, y, strict=True):
        for _ in range(3):
            _, h = layer(x_t[None], h)
        assert_equal(y_t, h[0])
    assert_equal(state_n, h)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid", "identity"])
def test_one_tap_is_an_elman_network(rng, nonlinearity):
    tap = MultiTap(X, H, 1, nonlinearity=nonlinearity, seed=0, **F64)
    peer = fastrnn.RNN(X, H, nonlinearity=nonlinearity, bias=True, **F64)
    for name, own in zip(
        ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0"), tap.parameters.values(), strict=True
    ):
        peer.parameters[name][...] = own
    peer.parameters["bias_hh_l0"][...] = 0
    x, state = rng.standard_normal((T, B, X)), rng.standard_normal((1, B, H))
    results = tap(x, state), tap.backward(np.ones((T, B, H)), state)
    expected = peer(x, state), peer.backward(np.ones((T, B, H)), state)
    for a, b in zip(arrays(results), arrays(expected), strict=True):
        assert_close(a, b, n_products=T * (X + H))
    for name, own in zip(("weight_ih_l0", "bias_ih_l0", "weight_hh_l0"), tap.gradients.values(), strict=True):
        assert_close(own, peer.gradients[name], n_products=T * B * (X + H))


def test_taps_reach_back_k_steps(rng):
    model, x = MultiTap(X, H, 3, seed=0, **F64), rng.standard_normal((T, B, X))
    y, _ = model(x)
    W, b, U = model.parameters.values()
    h = {t: np.zeros((B, H)) for t in (-3, -2, -1)}
    for t in range(T):
        taps = sum(h[t - k] @ U[:, (k - 1) * H : k * H].T for k in (1, 2, 3))
        h[t] = np.tanh(x[t] @ W.T + b + taps)
        assert_close(y[t], h[t], n_products=T * (X + 3 * H))


def test_a_time_delay_sees_k_steps_back_and_no_further(rng):
    model, x = TimeDelay(X, H, Y, 2, seed=0, **F64), rng.standard_normal((T, B, X))
    o, state_n = model(x)
    W, b, V, c = model.parameters.values()
    past = {t: x[t] if t >= 0 else np.zeros((B, X)) for t in range(-2, T)}
    for t in range(T):
        h = np.tanh(sum(past[t - k] @ W[:, k * X : (k + 1) * X].T for k in range(3)) + b)
        assert_close(o[t], h @ V.T + c, n_products=3 * X + H)
    assert_equal(state_n, x[:-3:-1])
    x[0] += 1
    assert_equal(model(x)[0][3:], o[3:])


@pytest.mark.parametrize("output", ["linear", "softmax"])
@pytest.mark.parametrize("lengths", [None, [3, 5, 0, 1]])
def test_teacher_forcing_is_the_closed_loop_where_the_targets_are_its_outputs(rng, output, lengths):
    model = OutputFeedback(X, H, Y, output=output, seed=0, **F64)
    x, state = rng.standard_normal((T, B, X)), rng.standard_normal((1, B, Y))
    reset = np.zeros((T, B), bool)
    reset[3, 1] = True
    closed, closed_n = model(x, state, lengths=lengths, reset=reset)
    targets = model.predict(x, state, lengths=lengths, reset=reset)
    forced, forced_n = model(x, state, targets=targets, lengths=lengths, reset=reset)
    assert_close(forced, closed, n_products=T * (X + H + Y))
    assert_close(forced_n, closed_n, n_products=T * (X + H + Y))
    stream = model.eval().stream(B)
    stream.state = state
    if lengths is None:
        for t in range(3):
            assert_close(stream.step(x[t]), forced[t], n_products=T * (X + H + Y))


@pytest.mark.parametrize("name", ["output feedback", "output feedback of classes"])
@pytest.mark.parametrize("options", ["plain", "lengths", "reset"])
def test_teacher_forced_gradients_are_those_of_finite_differences(rng, name, options):
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    keywords = {"targets": rng.standard_normal((T, B, Y))}
    if options == "lengths":
        keywords["lengths"] = np.array([3, T, 0, 1])
    if options == "reset":
        keywords["reset"] = rng.random((T, B)) < 0.4
    assert_gradients(model, x, state=random_state(rng, model), options=keywords)


def test_teacher_forced_steps_are_independent(rng, monkeypatch):
    model, x = OutputFeedback(X, H, Y, seed=0, **F64), rng.standard_normal((T, B, X))
    targets = rng.standard_normal((T, B, Y))
    o, state_n = model(x, targets=targets)
    fed = np.concatenate([np.zeros((1, B, Y)), targets[:-1]])
    alone = [model(x[t : t + 1], fed[t : t + 1])[0] for t in range(T)]
    assert_close(o, np.concatenate(alone), n_products=X + H + Y)
    assert_equal(state_n, targets[-1:])
    products = []
    monkeypatch.setattr(Linear, "_check", lambda self, name, array, width: products.append(array.shape))
    model.backward(np.ones_like(model(x, targets=targets)[0]))
    monkeypatch.undo()
    assert len(products) == 6  # of the three matrices, forward and backward, all over all steps
    assert {shape[0] for shape in products} == {T}
    tokens = rng.integers(0, Y, (T, B))
    assert_equal(model(x, targets=tokens), model(x, targets=np.eye(Y)[tokens]))
    tokens[1, 2] = Y
    with pytest.raises(ValueError, match=f"targets holds the token {Y}; expected tokens from 0 to {Y - 1}"):
        model(x, targets=tokens)
    with pytest.raises(
        ValueError, match=r"targets has shape \(4, 4, 2\); expected \(T, B, O\) = \(5, 4, 2\)"
    ):
        model(x, targets=targets[1:])
    with pytest.raises(TypeError, match="targets is float32; expected float64"):
        model(x, targets=targets.astype("float32"))


def test_sweeps_are_rows_then_columns(rng):
    rows, columns = gru(bidirectional=True), lstm(2 * H, 5, bidirectional=True)
    model, images = Sweep2D(rows, columns), rng.standard_normal((6, T, B, X))
    y, state_n = model(images)
    assert state_n is None
    assert y.shape == (6, T, B, 10)
    v = np.stack([rows(row)[0] for row in images])
    for c in range(T):
        assert_close(y[:, c], columns(v[:, c])[0], n_products=(T + 6) * 3 * H)
    assert_gradients(model, images)
    assert_gradients(ManyToMany(model, 3, seed=0), rng.integers(0, X, (6, T, B)))
    with pytest.raises(ValueError, match="columns has input_size 3; expected 8, the width of rows"):
        Sweep2D(rows, gru())
    with pytest.raises(ValueError, match="state is given; expected None"):
        model(images, np.zeros(3))
    with pytest.raises(ValueError, match=r"x has shape \(6, 5, 4, 2\); expected \(R, C, B, I\)"):
        model(images[..., :2])
    with pytest.raises(ValueError, match="no stream"):
        model.stream()
    model(images)
    with pytest.raises(ValueError, match=r"do has shape \(6, 5, 4, 9\)"):
        model.backward(y[..., :9])
    with pytest.raises(ValueError, match="dstate_n is given; expected None"):
        model.backward(y, y)


ONE_TO_MANY = {
    "state": lambda: OneToMany(lstm(num_layers=2), Y, 6, seed=1),
    "affine state": lambda: OneToMany(gru(), Y, 6, nonlinearity="identity", seed=1),
    "state of taps": lambda: OneToMany(MultiTap(X, H, 2, seed=0, **F64), Y, 6, seed=1),
    "input": lambda: OneToMany(lstm(num_layers=2), Y, 6, mode="input", seed=1),
}


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("lengths", [None, [3, 0, T, 1]])
@pytest.mark.parametrize("name", ONE_TO_MANY)
def test_one_to_many(rng, name, lengths, tokens):
    model, x = ONE_TO_MANY[name](), rng.standard_normal((B, 6))
    inputs = rng.integers(0, X, (T, B)) if tokens else rng.standard_normal((T, B, X))
    options = {"inputs": inputs, "target_lengths": lengths}
    targets = rng.integers(0, Y, (T, B))
    state = random_state(rng, model) if name == "input" else None
    assert_gradients(model, x, targets, loss=masked(lengths), state=state, options=options)
    o, state_n = model(x, state, **options)
    assert o.shape == (T, B, Y)
    if lengths is not None:
        valid = np.arange(T)[:, None] < lengths
        assert_equal(o[valid], model(x, state, inputs=inputs)[0][valid])
    else:
        stream = model.eval().start(x, state)
        for inputs_t, o_t in zip(inputs, o, strict=True):
            assert_close(stream.step(inputs_t), o_t, n_products=(T + 1) * 3 * (X + H))
        for a, b in zip(arrays(stream.state), arrays(state_n), strict=True):
            assert_close(a, b, n_products=(T + 1) * 3 * (X + H))


def test_one_to_many_by_its_equations(rng):
    layer, x, inputs = gru(), rng.standard_normal((B, 6)), rng.standard_normal((T, B, X))
    model = OneToMany(layer, Y, 6, seed=1)
    W, b = list(model.parameters.values())[:2]
    y, _ = layer(inputs, np.tanh(x @ W.T + b)[None])
    assert_close(model(x, inputs=inputs)[0], model.decoder.readout(y), n_products=6 + T * 3 * H)
    model = OneToMany(layer, Y, 6, mode="input", seed=1)
    W, b = list(model.parameters.values())[:2]
    y, _ = layer(np.concatenate([(x @ W.T + b)[None], inputs]))
    assert_close(model(x, inputs=inputs)[0], model.decoder.readout(y[1:]), n_products=6 + T * 3 * H)


def test_one_to_many_refuses(rng):
    model, x, inputs = ONE_TO_MANY["state"](), rng.standard_normal((B, 6)), rng.standard_normal((T, B, X))
    with pytest.raises(ValueError, match="inputs is None; expected what the decoder is to read"):
        model(x)
    with pytest.raises(ValueError, match=r"inputs has shape \(5, 3, 3\); expected \(T, B, I\) = \(T, 4, 3\)"):
        model(x, inputs=inputs[:, :3])
    with pytest.raises(ValueError, match="state is given; expected None: x makes"):
        model(x, random_state(rng, model), inputs=inputs)
    with pytest.raises(ValueError, match=r"x has shape \(4, 5\); expected \(B, X\) = \(B, 6\)"):
        model(x[:, :5], inputs=inputs)
    with pytest.raises(ValueError, match=r"start\(x\)"):
        model.stream()
    with pytest.raises(RuntimeError, match="eval mode"):
        model.start(x)
    with pytest.raises(ValueError, match="expected one direction"):
        OneToMany(gru(bidirectional=True), Y, 6)
    with pytest.raises(ValueError, match="mode is 'both'; expected one of 'state', 'input'"):
        OneToMany(gru(), Y, 6, mode="both")
    with pytest.raises(ValueError, match="inputs holds the token 3"):
        ONE_TO_MANY["input"]()(x, inputs=np.full((T, B), X))


ENCODER_DECODERS = {
    "GRU to GRU": lambda: EncoderDecoder(gru(), gru(5, H, 1), Y, seed=2),
    "bidirectional LSTM to deep GRU": lambda: EncoderDecoder(
        lstm(bidirectional=True), gru(5, 6, 1, num_layers=2), Y, bridge=True, seed=2
    ),
    "layer-norm LSTM to LSTM": lambda: EncoderDecoder(
        LayerNormLSTM(X, H, seed=0, **F64), lstm(5, H, 1), Y, seed=2
    ),
}


@pytest.mark.parametrize("options", [{}, {"lengths": [3, 1, T, 2]}, {"target_lengths": [3, 7, 0, 2]}])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoder(rng, name, options):
    model, x, inputs = (
        ENCODER_DECODERS[name](),
        rng.standard_normal((T, B, X)),
        rng.standard_normal((7, B, 5)),
    )
    targets, loss = rng.integers(0, Y, (7, B)), masked(options.get("target_lengths"), 7)
    state = tuple(rng.standard_normal((a[0], B, a[2])) for a in model._encoded)
    state = state if len(state) > 1 else state[0]
    options = {"inputs": inputs, **options}
    assert_gradients(model, x, targets, loss=loss, state=state, options=options)
    if "target_lengths" not in options:
        o, state_n = model(x, **options)
        del options["inputs"]
        stream = model.eval().start(x, **options)
        for inputs_t, o_t in zip(inputs, o, strict=True):
            assert_close(stream.step(inputs_t), o_t, n_products=(T + 7) * 3 * 2 * H)
        for a, b in zip(arrays(stream.state), arrays(state_n), strict=True):
            assert_close(a, b, n_products=(T + 7) * 3 * 2 * H)


@pytest.mark.parametrize("make", [*ONE_TO_MANY.values(), ENCODER_DECODERS["GRU to GRU"]])
def test_the_gradient_in_inputs_is_that_of_the_last_backward(rng, make):
    model = make()
    x = rng.standard_normal((B, 6) if isinstance(model, OneToMany) else (T, B, X))
    inputs = rng.standard_normal((7, B, model.decoder.input_size))
    assert model.dinputs is None
    o, _ = model(x, inputs=inputs)
    model.backward(np.ones_like(o))
    assert model.dinputs.shape == inputs.shape
    assert model.dinputs.any()
    assert copy.deepcopy(model).dinputs is None  # nor has a copy the call
    o, _ = model(x, inputs=np.zeros((7, B), int))
    model.backward(np.ones_like(o))
    assert model.dinputs is None
    o, _ = model(x, inputs=inputs, target_lengths=[7, 0, 2, 6])
    model.backward(np.ones_like(o))
    assert not model.dinputs[2:, 2].any()
    assert model.dinputs[:2, 2].any()
    assert model.eval().dinputs is None


def test_encoder_decoder_refuses():
    with pytest.raises(
        ValueError, match=r"the encoder's state has the shapes \(\(2, 1, 4\),\) a row.*or bridge=True"
    ):
        EncoderDecoder(gru(bidirectional=True), gru(), Y)
    with pytest.raises(ValueError, match=r"decoder is GRU.*expected one direction"):
        EncoderDecoder(gru(), gru(bidirectional=True), Y, bridge=True)
    model = EncoderDecoder(gru(), gru(), Y)
    x = np.zeros((T, B, X))
    with pytest.raises(ValueError, match="inputs is None"):
        model(x)
    with pytest.raises(ValueError, match=r"inputs has shape \(5, 4, 2\); expected \(T, B, I\) = \(T, 4, 3\)"):
        model(x, inputs=x[:, :, :2])
    with pytest.raises(TypeError, match="inputs is float32; expected float64"):
        model(x, inputs=x.astype("float32"))
    with pytest.raises(ValueError, match=r"lengths\[0\] is 6; expected from 0 to T = 5"):
        model(x, inputs=x, target_lengths=[6, 1, 1, 1])
    o, _ = model(x, inputs=x)
    with pytest.raises(RuntimeError, match="eval mode"):
        model.start(x)
    model.backward(o)  # the call is still there
    with pytest.raises(ValueError, match=r"x has shape \(5, 4, 2\)"):
        model.eval().start(x[:, :, :2])


# ---- against torch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_encoder_decoder_equals_torch(rng, dtype):
    torch = pytest.importorskip("torch")
    encoder, decoder = fastrnn.GRU(X, H, seed=0, dtype=dtype), fastrnn.GRU(5, H, seed=1, dtype=dtype)
    model = EncoderDecoder(encoder, decoder, Y, seed=2)
    peers = [torch.nn.GRU(X, H), torch.nn.GRU(5, H), torch.nn.Linear(H, Y)]
    for part, peer in zip((encoder, decoder, model.decoder.readout), peers, strict=True):
        peer.to(getattr(torch, dtype)).load_state_dict(
            {k: torch.from_numpy(p.copy()) for k, p in part.parameters.items()}
        )
    x = rng.standard_normal((T, B, X)).astype(dtype)
    inputs = rng.standard_normal((7, B, 5)).astype(dtype)
    targets = rng.integers(0, Y, (7, B))
    x_peer, inputs_peer = (torch.from_numpy(array).requires_grad_() for array in (x, inputs))
    o_peer = peers[2](peers[1](inputs_peer, peers[0](x_peer)[1])[0])
    loss_peer = torch.nn.functional.cross_entropy(
        o_peer.reshape(-1, Y), torch.from_numpy(targets).reshape(-1)
    )
    loss_peer.backward()
    o, _ = model(x, inputs=inputs)
    loss, do = softmax_cross_entropy(o, targets)
    dx, _ = model.backward(do)
    n = 5 * (T + 7) * (5 + H) + 7 * B
    assert_close(np.array(loss), loss_peer.detach().numpy(), n_products=n, dtype=dtype)
    assert_close(o, o_peer.detach().numpy(), n_products=n)
    gradients = [p.grad.numpy() for peer in peers for p in peer.parameters()]
    gradients += [peer.grad.numpy() for peer in (x_peer, inputs_peer)]
    for own, grad in zip((*model.gradients.values(), dx, model.dinputs), gradients, strict=True):
        assert_close(own, grad, n_products=n, scale=size(*gradients))


def torch_layer(layer):
    from torch_oracle import make_layer

    return make_layer(layer._spec, {name: p.copy() for name, p in layer.parameters.items()})


def torch_parameters(torch, model):
    return {name: torch.from_numpy(p.copy()).requires_grad_() for name, p in model.parameters.items()}


def test_many_to_one_equals_torch_packed(rng):
    torch = pytest.importorskip("torch")
    layer = lstm(num_layers=2, bidirectional=True)
    model, peer = ManyToOne(layer, Y, seed=1), torch_layer(layer)
    x, do, lengths = rng.standard_normal((T, B, X)), rng.standard_normal((B, Y)), np.array([3, T, 1, 4])
    x_peer = torch.from_numpy(x).requires_grad_()
    packed = torch.nn.utils.rnn.pack_padded_sequence(x_peer, torch.from_numpy(lengths), enforce_sorted=False)
    _, (h_n, _) = peer(packed)
    V, c = (torch.from_numpy(p) for p in model.readout.parameters.values())
    o_peer = torch.cat([h_n[-2], h_n[-1]], dim=1) @ V.T + c
    (o_peer * torch.from_numpy(do)).sum().backward()
    o, _ = model(x, lengths=lengths)
    dx, _ = model.backward(do)
    n = 5 * 2 * T * (2 * H + H + 1) + T * B
    assert_close(o, o_peer.detach().numpy(), n_products=n)
    assert_close(dx, x_peer.grad.numpy(), n_products=n)
    gradients = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    for name, own in layer.gradients.items():
        assert_close(own, gradients[name], n_products=n, scale=size(*gradients.values()))


def test_a_time_delay_is_a_convolution_of_torch(rng):
    torch = pytest.importorskip("torch")
    model, K = TimeDelay(X, H, Y, 2, seed=0, **F64), 2
    x, do = rng.standard_normal((T, B, X)), rng.standard_normal((T, B, Y))
    p, x_peer = torch_parameters(torch, model), torch.from_numpy(x).requires_grad_()
    kernel = p["input.weight"].reshape(H, K + 1, X).flip(1).permute(0, 2, 1)
    padded = torch.nn.functional.pad(x_peer.permute(1, 2, 0), (K, 0))
    h = torch.tanh(torch.nn.functional.conv1d(padded, kernel, p["input.bias"])).permute(2, 0, 1)
    o_peer = h @ p["readout.weight"].T + p["readout.bias"]
    (o_peer * torch.from_numpy(do)).sum().backward()
    o, _ = model(x)
    dx, _ = model.backward(do)
    n = 3 * X + H + Y + T * B
    assert_close(o, o_peer.detach().numpy(), n_products=n)
    assert_close(dx, x_peer.grad.numpy(), n_products=n)
    for own, peer in zip(model.gradients.values(), p.values(), strict=True):
        assert_close(own, peer.grad.numpy(), n_products=n)


def test_output_feedback_equals_torch(rng):
    torch = pytest.importorskip("torch")
    model = OutputFeedback(X, H, Y, output="softmax", seed=0, **F64)
    x, do = rng.standard_normal((T, B, X)), rng.standard_normal((T, B, Y))
    p, x_peer = torch_parameters(torch, model), torch.from_numpy(x).requires_grad_()
    fed, outputs = torch.zeros(B, Y, dtype=torch.float64), []
    for x_t in x_peer:
        a = x_t @ p["input.weight"].T + p["input.bias"] + fed @ p["feedback.weight"].T
        outputs.append(torch.tanh(a) @ p["readout.weight"].T + p["readout.bias"])
        fed = torch.softmax(outputs[-1], dim=1)
    o_peer = torch.stack(outputs)
    (o_peer * torch.from_numpy(do)).sum().backward()
    o, _ = model(x)
    dx, _ = model.backward(do)
    n = 3 * T * (X + H + Y) + T * B
    assert_close(o, o_peer.detach().numpy(), n_products=n)
    assert_close(dx, x_peer.grad.numpy(), n_products=n)
    for own, peer in zip(model.gradients.values(), p.values(), strict=True):
        assert_close(own, peer.grad.numpy(), n_products=n)


def test_a_sweep_equals_torch(rng):
    torch = pytest.importorskip("torch")
    rows, columns = gru(bidirectional=True), lstm(2 * H, 5, bidirectional=True)
    model, peers = Sweep2D(rows, columns), (torch_layer(rows), torch_layer(columns))
    x, dy = rng.standard_normal((6, T, B, X)), rng.standard_normal((6, T, B, 10))
    x_peer = torch.from_numpy(x).requires_grad_()
    v = torch.stack([peers[0](row)[0] for row in x_peer])
    y_peer = torch.stack([peers[1](v[:, c])[0] for c in range(T)], dim=1)
    (y_peer * torch.from_numpy(dy)).sum().backward()
    y, _ = model(x)
    dx, _ = model.backward(dy)
    n = 5 * (T * (X + H + 1) + 6 * (2 * H + 5 + 1)) + 6 * T * B
    assert_close(y, y_peer.detach().numpy(), n_products=n)
    assert_close(dx, x_peer.grad.numpy(), n_products=n)
    gradients = [p.grad.numpy() for peer in peers for p in peer.parameters()]
    for own, grad in zip(model.gradients.values(), gradients, strict=True):
        assert_close(own, grad, n_products=n, scale=size(*gradients))


def torch_layer_norm_loop(torch, model, x, h, c):
    """Run the cells of `model` in torch; returns y and parameters, which have gradients then."""
    norm = torch.nn.functional.layer_norm
    p = {k: torch.from_numpy(a.copy()).requires_grad_() for k, a in model.parameters.items()}
    ys = []
    for x_t in x:
        a, b = x_t @ p["input.weight"].T, h @ p["recurrent.weight"].T
        if c is None:
            blocks = []
            for sums, part in ((a, "input_norm"), (b, "recurrent_norm")):
                w, bias = p[part + ".weight"], p[part + ".bias"]
                blocks.append(
                    (
                        norm(sums[:, : 2 * H], (2 * H,), w[: 2 * H], bias[: 2 * H]),
                        norm(sums[:, 2 * H :], (H,), w[2 * H :], bias[2 * H :]),
                    )
                )
            r, z = torch.sigmoid(blocks[0][0] + blocks[1][0]).chunk(2, dim=1)
            h = (1 - z) * torch.tanh(blocks[0][1] + r * blocks[1][1]) + z * h
        else:
            sums = norm(a, (4 * H,), p["input_norm.weight"], p["input_norm.bias"])
            sums = sums + norm(b, (4 * H,), p["recurrent_norm.weight"], p["recurrent_norm.bias"])
            i, f, g, o = sums.chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(norm(c, (H,), p["cell_norm.weight"], p["cell_norm.bias"]))
        ys.append(h)
    return torch.stack(ys), p


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU])
def test_layer_norm_equals_torch(rng, kind, dtype):
    torch = pytest.importorskip("torch")
    model = kind(X, H, dtype=dtype, seed=0)
    for name, array in model.parameters.items():
        if "norm" in name:
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    x, h, c, dy = (rng.standard_normal(s).astype(dtype) for s in ((T, B, X), (1, B, H), (1, B, H), (T, B, H)))
    x_peer, h_peer, c_peer = (torch.from_numpy(a.copy()).requires_grad_() for a in (x, h, c))
    is_lstm = kind is LayerNormLSTM
    y_peer, p = torch_layer_norm_loop(torch, model, x_peer, h_peer[0], c_peer[0] if is_lstm else None)
    (y_peer * torch.from_numpy(dy)).sum().backward()
    y, _ = model(x, (h, c) if is_lstm else h)
    dx, dstate = model.backward(dy)
    assert y.dtype == dx.dtype == dtype
    n = 5 * T * (X + H) + T * B
    assert_close(y, y_peer.detach().numpy(), n_products=n)
    states = [h_peer.grad.numpy(), c_peer.grad.numpy()] if is_lstm else [h_peer.grad.numpy()]
    expected = [*(a.grad.numpy() for a in p.values()), x_peer.grad.numpy(), *states]
    for own, grad in zip((*model.gradients.values(), dx, *arrays(dstate)), expected, strict=True):
        assert_close(own, grad, n_products=n, scale=size(*expected))


# ---- float32 ----------------------------------------------------------------------------------------

ONE, MANY, IMAGES = (B, X), (T, B, X), (3, T, B, X)
F32 = {
    "one to many": (ONE, lambda: OneToMany(fastrnn.GRU(X, H), Y, X)),
    "one to many, input": (ONE, lambda: OneToMany(fastrnn.GRU(X, H), Y, X, mode="input")),
    "encoder-decoder": (
        MANY,
        lambda: EncoderDecoder(fastrnn.GRU(X, H), LayerNormLSTM(X, H), Y, bridge=True),
    ),
    "many to one": (MANY, lambda: ManyToOne(DeepInTime(fastrnn.LSTM(X, H), 2), Y)),
    "output feedback": (MANY, lambda: OutputFeedback(X, H, Y, output="softmax")),
    "time delay": (MANY, lambda: TimeDelay(X, H, Y, 2)),
    "taps": (MANY, lambda: MultiTap(X, H, 2, nonlinearity="sigmoid")),
    "layer-norm GRU": (MANY, lambda: LayerNormGRU(X, H)),
    "sweep": (IMAGES, lambda: Sweep2D(fastrnn.GRU(X, H), fastrnn.GRU(H, Y))),
}


@pytest.mark.parametrize("name", F32)
def test_float32_stays_float32(rng, name):
    shape, make = F32[name]
    model, x = make(), rng.standard_normal(shape, dtype="float32")
    assert model.dtype == "float32"
    options = {"inputs": rng.standard_normal((T, B, X), dtype="float32")} if "decoder" in model.parts else {}
    o, state_n = model(x, **options)
    results = o, state_n, *model.backward(np.ones_like(o), state_n), model.gradients
    assert {a.dtype.name for a in arrays(results)} == {"float32"}


# ---- the rest ----------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_of_the_outputs(rng):
    x = rng.standard_normal((T, B, X))
    for make in ManyToMany, ManyToOne:
        model, plain = make(gru(), Y, output="softmax", seed=1), make(gru(), Y, seed=1)
        o, _ = model(x)
        assert_equal(plain.predict(x), o)
        e = np.exp(o)
        assert_close(model.predict(x), e / e.sum(axis=-1, keepdims=True), n_products=Y)
    model = EncoderDecoder(gru(), gru(), Y, output="softmax")
    assert_close(model.predict(x, inputs=x).sum(axis=-1), np.ones((T, B)), n_products=Y)
    with pytest.raises(ValueError, match="output is 'sigmoid'; expected one of 'linear', 'softmax'"):
        ManyToMany(gru(), Y, output="sigmoid")


@pytest.mark.parametrize("make", [*SEQUENCES.values(), *ONE_TO_MANY.values(), *ENCODER_DECODERS.values()])
def test_files_and_copies_of_all(tmp_path, make):
    model, other = make(), make()
    for array in other.parameters.values():
        array += 1
    model.save(tmp_path / "model.safetensors")
    assert_equal(other.load(tmp_path / "model.safetensors").state_dict(), model.state_dict())
    assert_equal(copy.deepcopy(model).state_dict(), model.state_dict())
    assert model.eval().training is False
    assert model.train().training is True
    assert repr(model).startswith(type(model).__name__ + "(")


def every_model():
    """Name to a model, x and options of a call."""
    rng = np.random.default_rng(0)
    x, vectors = rng.standard_normal((T, B, X)), rng.standard_normal((B, 6))
    for name, make in SEQUENCES.items():
        yield name, (make, x, {})
    for name, make in ONE_TO_MANY.items():
        yield f"one to many, {name}", (make, vectors, {"inputs": x})
    for name, make in ENCODER_DECODERS.items():
        yield name, (make, x, {"inputs": rng.standard_normal((T, B, 5))})
    yield (
        "sweep",
        (lambda: Sweep2D(gru(bidirectional=True), gru(2 * H, Y, 1)), rng.standard_normal((2, T, B, X)), {}),
    )


EVERY = dict(every_model())


def test_slower_models_say_so():
    for model in LayerNormLSTM(X, H), LayerNormGRU(X, H), MultiTap(X, H, 2), OutputFeedback(X, H, Y):
        report = model.explain(np.zeros((T, B, X), "float32"))
        assert "Python loop over time" in report["kernel"]
        assert "slower" in report
        assert type(model).__name__ in report["because"]
    assert "slower" not in TimeDelay(X, H, Y, 2).explain(np.zeros((T, B, X), "float32"))
    deep = ManyToOne(DeepInTime(fastrnn.GRU(X, H), 3), Y).explain(np.zeros((T, B, X), "float32"))
    assert deep["pseudo-steps"] == 3
    assert "isa" in deep
    forced = OutputFeedback(X, H, Y).explain(np.zeros((T, B, X)), targets=np.zeros((T, B, Y)))
    assert forced["kernel"] == "none: NumPy, one product for all steps"


@pytest.mark.parametrize("name", EVERY)
def test_every_model_explains_a_call(name):
    make, x, options = EVERY[name]
    report = make().explain(x, **options)
    assert any(entry.endswith("kernel") for entry in report)
    for part in ("encoder", "decoder", "rows", "columns"):
        layer = make().parts.get(part)
        if isinstance(layer, fastrnn.GRU):
            assert {f"{part} isa", f"{part} threads"} <= set(report)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiTap(X, H, 0), "taps is 0; expected an integer of at least 1"),
        (lambda: TimeDelay(X, H, Y, 0), "delays is 0; expected an integer of at least 1"),
        (lambda: DeepInTime(gru(), 0), "pseudo_steps is 0; expected an integer of at least 1"),
        (lambda: DeepInTime(gru(bidirectional=True), 2), "expected one direction"),
        (lambda: MultiTap(X, H, 2, nonlinearity="cos"), "nonlinearity is 'cos'"),
        (lambda: OutputFeedback(X, H, Y, output="cos"), "output is 'cos'"),
        (
            lambda: OneToMany(gru(), Y, 6, nonlinearity="relu"),
            "nonlinearity is 'relu'; expected one of 'tanh'",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ManyToMany("GRU", Y), "layer is 'GRU'; expected a layer or a model, over sequences"),
        (lambda: ManyToOne(fastrnn.GRUCell(X, H), Y), r"layer is GRUCell\(3, 4\); expected a layer"),
        (lambda: OneToMany(None, Y, 6), "layer is None; expected a layer"),
        (lambda: DeepInTime(Linear(X, H), 2), r"layer is Linear\(3, 4, bias=True\); expected a layer"),
        (lambda: EncoderDecoder(3, gru(), Y), "encoder is 3; expected a layer"),
        (lambda: EncoderDecoder(gru(), 3, Y), "decoder is 3; expected a layer"),
        (lambda: Sweep2D(3, gru()), "rows is 3; expected a layer"),
        (lambda: Sweep2D(gru(), 3), "columns is 3; expected a layer"),
        (lambda: LayerNorm(3, dtype="int32"), "dtype is 'int32'; expected 'float32' or 'float64'"),
        (lambda: LayerNorm(3, dtype="float16"), "dtype is 'float16'; expected 'float32' or 'float64'"),
    ],
)
def test_what_is_no_layer_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("make", [*ONE_TO_MANY.values(), *ENCODER_DECODERS.values()])
def test_wrong_gradients_of_decoders_are_called_by_their_name(rng, make):
    model = make()
    x = rng.standard_normal((B, 6) if isinstance(model, OneToMany) else (T, B, X))
    o, _ = model(x, inputs=rng.standard_normal((7, B, model.decoder.input_size)))
    with pytest.raises(ValueError, match=r"do has shape \(6, 4, 2\); expected .*\(7, 4, 2\)"):
        model.backward(o[1:])
    with pytest.raises(TypeError, match=r"do is float32; expected .*float64"):
        model.backward(o.astype("float32"))
    assert not any(gradient.any() for gradient in model.gradients.values())
    model.backward(o)  # the call is still there


@pytest.mark.parametrize("name", EVERY)
def test_arrays_of_torch_give_what_those_of_numpy_do(name):
    torch = pytest.importorskip("torch")
    make, x, options = EVERY[name]
    model = make()
    o, state_n = model(x, **options)
    wanted = o, state_n, *model.backward(o, state_n)
    model.zero_grad()
    own, own_n = model(torch.from_numpy(x), **{k: torch.from_numpy(v) for k, v in options.items()})
    dstate_n = tuple(torch.from_numpy(a) for a in arrays(own_n))
    dstate_n = dstate_n if isinstance(state_n, tuple) else dstate_n[0] if dstate_n else None
    assert_equal((own, own_n, *model.backward(torch.from_numpy(own.copy()), dstate_n)), wanted)
    assert all(isinstance(a, np.ndarray) for a in arrays((own, own_n)))
    if name in CAUSAL:
        x_t = torch.from_numpy(x[0])
        assert_equal(model.eval().stream(B).step(x_t), make().eval().stream(B).step(x[0]))


NARROW = {
    "deep in time": lambda: DeepInTime(gru(), 3),
    "many to one": lambda: ManyToOne(gru(), Y, seed=1),
    "time delay": lambda: TimeDelay(X, H, Y, 2, seed=0, **F64),
    "layer": gru,
}


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64"])
@pytest.mark.parametrize("name", NARROW)
def test_lengths_may_be_of_any_integers(rng, name, dtype):
    model, steps = NARROW[name](), 120
    x, lengths = rng.standard_normal((steps, B, X)), np.array([steps, 100, 0, 1])
    assert_equal(model(x, lengths=lengths.astype(dtype)), model(x, lengths=lengths))


def test_lengths_of_targets_may_be_of_any_integers(rng):
    model, x, inputs = ONE_TO_MANY["input"](), rng.standard_normal((B, 6)), rng.standard_normal((127, B, X))
    lengths = np.array([127, 100, 0, 1])
    wanted = model(x, inputs=inputs, target_lengths=lengths)
    assert_equal(model(x, inputs=inputs, target_lengths=lengths.astype("int8")), wanted)


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_final_state_is_the_callers(rng, name):
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    dstate_n, results = random_state(rng, model), []
    for written in False, True:
        o, state_n = model(x)
        if written:
            for array in arrays(state_n):
                array[...] = 0
        results.append(model.backward(np.ones_like(o), dstate_n))
    assert_equal(*results)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_state_may_be_a_list(rng, name):
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    state = random_state(rng, model)
    if isinstance(state, tuple):
        assert_equal(model(x, list(state)), model(x, state))
        check = gradient_check(model, x, state=list(state), samples=3)
        assert {"state[0]", "state[1]"} <= set(check.errors)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_backward_that_fails_adds_nothing(rng, name):
    model, x = SEQUENCES[name](), rng.standard_normal((T, B, X))
    o, state_n = model(x)
    wrong = tuple(a.astype("float32") for a in arrays(state_n))
    with pytest.raises(TypeError, match=r"dstate_n.* is float32; expected float64"):
        model.backward(np.ones_like(o), wrong if isinstance(state_n, tuple) else wrong[0])
    assert all((g == 0).all() for g in model.gradients.values())
    model.backward(None, state_n)
    before = {name: g.copy() for name, g in model.gradients.items()}
    with pytest.raises(RuntimeError, match="backward"):
        model.backward(np.ones_like(o))
    assert_equal(model.gradients, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda layer: DeepInTime(layer, 2),
        lambda layer: ManyToOne(layer, Y),
        lambda layer: OneToMany(layer, Y, 6),
        lambda layer: EncoderDecoder(gru(), layer, Y, bridge=True),
    ],
)
def test_both_directions_are_refused_inside_of_models_too(make):
    with pytest.raises(ValueError, match=r"is ManyToMany\(.*expected one direction"):
        make(ManyToMany(gru(bidirectional=True), X))


def test_encoder_decoder_checks_before_anything_runs():
    model = EncoderDecoder(gru(), gru(), Y, bridge=True)
    x = np.zeros((T, B, X))
    o, _ = model(x, inputs=x)
    with pytest.raises(ValueError, match="inputs holds the token 3; expected tokens from 0 to 2"):
        model(x, inputs=np.full((T, B), X))
    with pytest.raises(ValueError, match=r"x has shape \(5, 3\); expected \(T, B, I\) = \(T, B, 3\)"):
        model(x[:, 0], inputs=x)
    assert model.encoder.calls == 1
    model.backward(o)
    tokens = np.full((T, B), X)
    tokens[0] = 0
    assert model(x, inputs=tokens, target_lengths=[1] * B)[0].shape == (T, B, Y)


@pytest.mark.parametrize("blocks", [(), (0,), (3, -1)])
def test_layer_norm_has_no_empty_blocks(blocks):
    with pytest.raises(ValueError, match="blocks is"):
        LayerNorm(*blocks)


OTHERS = {
    "nonlinearity of a layer": [
        lambda f=f: ManyToMany(fastrnn.RNN(X, H, nonlinearity=f), Y) for f in ("tanh", "relu")
    ],
    "nonlinearity of taps": [lambda f=f: MultiTap(X, H, 2, nonlinearity=f) for f in ("tanh", "relu")],
    "nonlinearity of a window": [lambda f=f: TimeDelay(X, H, Y, 2, nonlinearity=f) for f in ("relu", "tanh")],
    "output": [lambda f=f: OutputFeedback(X, H, Y, output=f) for f in ("linear", "softmax")],
    "nonlinearity of a bridge": [
        lambda f=f: OneToMany(gru(), Y, 6, nonlinearity=f) for f in ("tanh", "identity")
    ],
    "pseudo-steps": [lambda k=k: DeepInTime(gru(), k) for k in (2, 3)],
    "reset_after": [lambda r=r: ManyToMany(fastrnn.GRU(X, H, reset_after=r), Y) for r in (True, False)],
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_other_options_is_refused(tmp_path, name):
    one, other = (make() for make in OTHERS[name])
    one.save(tmp_path / "model.safetensors")
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"it is of \w+\(.*; expected \w+\("):
        other.load(tmp_path / "model.safetensors")
    assert_equal(other.state_dict(), before)


def test_a_file_may_be_of_another_dtype(tmp_path):
    one, other = SEQUENCES["many to many"]("float32"), SEQUENCES["many to many"]()
    one.save(tmp_path / "model.safetensors")
    other.load(tmp_path / "model.safetensors")
    assert_equal({k: a.astype("float32") for k, a in other.parameters.items()}, one.state_dict())
