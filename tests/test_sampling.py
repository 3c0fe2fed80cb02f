"""Are draws, searches and forecasts those of the model's distribution, row by row?"""

from __future__ import annotations

import itertools
import math

import fastrnn
import numpy as np
import pytest
from fastrnn.models import EncoderDecoder, ManyToMany, OneToMany
from fastrnn.sampling import beam_search, distribution, forecast, generate, generate_steps
from tolerances import assert_close, assert_same_bits

SYMBOLS = 5


def make_model(symbols=SYMBOLS, cell=fastrnn.GRU, scale=4.0, **options):
    model = ManyToMany(cell(symbols, 8, seed=0, **options), symbols, seed=1)
    model.readout.parameters["weight"][...] *= scale  # or all symbols are nearly as likely
    return model.eval()


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


# ---- Distribution -----------------------------------------------------------------------------------


def test_distribution_is_the_softmax(rng):
    logits = rng.standard_normal((7, 3, SYMBOLS))
    for temperature in (0.1, 1.0, 3.0):
        p = distribution(logits, temperature=temperature)
        np.testing.assert_allclose(p, np.exp(log_softmax(logits / temperature)), rtol=1e-12)
    greedy = distribution(logits, temperature=0)
    np.testing.assert_array_equal(greedy, np.eye(SYMBOLS)[logits.argmax(axis=-1)])
    np.testing.assert_array_equal(distribution(logits, temperature=1e-300), greedy)


def test_top_k_and_top_p_leave_the_likeliest():
    logits = np.log([[0.1, 0.4, 0.3, 0.2]])
    assert distribution(logits, top_k=2).round(12).tolist() == [[0, round(4 / 7, 12), round(3 / 7, 12), 0]]
    assert distribution(logits, top_k=9).round(12).tolist() == [[0.1, 0.4, 0.3, 0.2]]
    for top_p, left in ((0.01, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1, 4)):
        p = distribution(logits, top_p=top_p)
        assert np.count_nonzero(p) == left
        assert p.sum() == pytest.approx(1)
    # top_p counts what top_k and temperature have left.
    assert np.count_nonzero(distribution(logits, top_k=3, top_p=0.76)) == 2
    assert np.count_nonzero(distribution(logits, top_k=3, top_p=0.79)) == 3
    assert np.count_nonzero(distribution(logits, temperature=0.2, top_p=0.7)) == 1
    assert distribution(np.zeros((1, 4)), top_k=2).tolist() == [[0.5, 0.5, 0, 0]]
    assert distribution(logits, exclude=[1], temperature=0).tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("symbols", "top_p", "left"), [(10, 0.7, 7), (10, 0.1, 1), (10, 0.9, 9), (1000, 0.3, 300), (7, 3 / 7, 3)]
)
def test_top_p_leaves_no_token_more_for_rounding(symbols, top_p, left):
    """Of equally likely tokens; summed up, nine tenths are a little less than 0.9."""
    assert np.count_nonzero(distribution(np.zeros(symbols), top_p=top_p)) == left


def test_logits_of_any_size_are_drawn_from():
    model, most = make_model(dtype="float64"), np.finfo(np.float64).max
    assert distribution([most, -most, most]).tolist() == [0.5, 0, 0.5]
    assert distribution([most, -most], temperature=0).tolist() == [1, 0]
    model.readout.parameters["weight"][...] = 0
    model.readout.parameters["bias"][...] = [-most, most, -most, -most, most]
    assert set(generate(model, [0], 20, seed=0)) == {1, 4}
    assert {tuple(found.tokens) for found in beam_search(model, [0], 1, 2)} == {(1,), (4,)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1}, ValueError, "temperature is -1; expected a finite number of at least 0"),
        ({"temperature": "hot"}, TypeError, "temperature is 'hot'"),
        ({"top_k": 0}, ValueError, "top_k is 0; expected an integer of at least 1"),
        ({"top_p": 0}, ValueError, "top_p is 0; expected a number greater than 0 and at most 1"),
        ({"top_p": 1.5}, ValueError, "top_p is 1.5; expected a number from 0 to 1"),
        ({"exclude": [5]}, ValueError, "a token in exclude is 5; expected less than 5"),
        ({"exclude": range(5)}, ValueError, "exclude has all 5 tokens; expected one to be left"),
    ],
)
def test_bad_options_of_draws(options, error, message):
    with pytest.raises(error, match=message):
        distribution(np.zeros((2, SYMBOLS)), **options)
    with pytest.raises(error, match=message):
        generate(make_model(), [0], 3, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_without_a_softmax(bad):
    with pytest.raises(FloatingPointError, match="the largest logit of a row is NaN or infinite"):
        distribution(np.array([[0.0, bad], [0.0, 0.0]]))


# ---- Generation -------------------------------------------------------------------------------------


def test_greedy_is_the_argmax_of_a_whole_call():
    model = make_model()
    prompt = np.array([[0, 3], [1, 1]])
    rows = generate(model, prompt, 20, temperature=0)
    for row, tokens in enumerate(rows):
        o, _ = model(np.concatenate([prompt[:, row], tokens])[:, None])
        np.testing.assert_array_equal(np.argmax(o[1:-1, 0], axis=-1), tokens)


def test_draws_follow_the_model():
    """The first two tokens of many rows, against probabilities by the chain rule."""
    model = make_model(3)
    rows = 4000
    samples = np.array(generate(model, [1], 2, seed=0, batch=rows))
    log_p, stream = np.zeros((3, 3)), model.stream(3)
    first = log_softmax(stream.step(np.full(3, 1)))[0]
    second = log_softmax(stream.step(np.arange(3)))
    log_p = first[:, None] + second
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(samples.T), 1)
    p = np.exp(log_p)
    assert (np.abs(counts - rows * p) < 4.5 * np.sqrt(rows * p * (1 - p))).all()
    limited = np.array(generate(model, [1], 2, seed=0, batch=500, top_k=1))
    assert (limited == generate(model, [1], 2, temperature=0)).all()


def test_a_row_depends_on_the_seed_and_its_number_alone():
    model = make_model()
    many = generate(model, [2, 4], 150, seed=3, batch=9)
    few = generate(model, [2, 4], 150, seed=3, batch=4)
    one = generate(model, [2, 4], 150, seed=3)
    other = generate(model, [2, 4], 150, seed=4)
    for row in range(4):
        np.testing.assert_array_equal(many[row], few[row])
    np.testing.assert_array_equal(many[0], one)
    assert (many[0] != many[1]).any()
    assert (one != other).any()
    assert (generate(model, [2], 50) != generate(model, [2], 50)).any()


def test_rows_stop_where_a_stop_token_would_be():
    model = make_model()
    whole = generate(model, [2], 60, seed=1, batch=20)
    stopped = generate(model, [2], 60, seed=1, batch=20, stop=[0, 3])
    lengths = []
    for tokens, short in zip(whole, stopped, strict=True):
        ends = np.flatnonzero(np.isin(tokens, [0, 3]))
        lengths.append(ends[0] if ends.size else 60)
        np.testing.assert_array_equal(short, tokens[: lengths[-1]])
    assert len(set(lengths)) > 3
    assert min(lengths) < 60
    steps = list(generate_steps(model, [2], 60, seed=1, batch=20, stop=[0, 3]))
    assert len(steps) == max(lengths)
    assert all((step == -1).sum() == sum(n <= t for n in lengths) for t, step in enumerate(steps))


def test_rows_that_have_stopped_leave_the_stream(monkeypatch):
    model, sizes = make_model(), []
    make = model.stream

    def stream(rows):
        sizes.append(rows)
        return make(rows)

    monkeypatch.setattr(model, "stream", stream)
    samples = generate(model, [2], 60, seed=1, batch=20, stop=[0, 3])
    lengths = sorted(len(tokens) for tokens in samples)
    assert sizes[0] == 20
    assert len(sizes) > 2
    assert all(2 * after <= before for before, after in itertools.pairwise(sizes))
    assert sizes[1] == sum(n > lengths[9] for n in lengths)  # when half of them have stopped


def test_excluded_tokens_are_never_drawn():
    samples = generate(make_model(), [2], 100, seed=0, batch=10, exclude=[0, 4])
    assert set(np.concatenate(samples)) == {1, 2, 3}


def test_streams_go_on_from_their_state(rng):
    model = make_model()
    stream = model.stream(2)
    stream.step(np.array([1, 2]))
    found = generate(stream, [[3, 3]], 10, temperature=0)
    np.testing.assert_array_equal(found, generate(model, [[1, 2], [3, 3]], 10, temperature=0))

    images = rng.standard_normal((4, 3), np.float32)
    captions = OneToMany(fastrnn.GRU(SYMBOLS, 8, seed=0), SYMBOLS, input_size=3, seed=2).eval()
    found = generate(captions.start(images), [0], 6, temperature=0)
    o, _ = captions(images, inputs=np.concatenate([np.zeros((1, 4), int), np.array(found).T]))
    np.testing.assert_array_equal(np.argmax(o[:-1], axis=-1).T, found)


def test_shapes_of_results():
    model = make_model()
    assert generate(model, [0], 7, seed=0).shape == (7,)
    assert generate(model, [0], 0, seed=0).shape == (0,)
    assert [tokens.shape for tokens in generate(model, [0], 7, batch=1)] == [(7,)]
    assert [tokens.shape for tokens in generate(model, [[0]], 7)] == [(7,)]
    assert generate(model, np.array([0], np.uint8), 3, seed=0).dtype == np.int64


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([], 3), {}, ValueError, r"prompt has shape \(0,\); expected at least one token"),
        (([0.5], 3), {}, TypeError, "prompt is float64; expected integers"),
        (([[[0]]], 3), {}, ValueError, r"prompt has shape \(1, 1, 1\); expected \(T,\) or \(T, B\)"),
        (([0], -1), {}, ValueError, "length is -1; expected an integer of at least 0"),
        (([0], 3), {"batch": 0}, ValueError, "batch is 0; expected an integer of at least 1"),
        (([[0, 1]], 3), {"batch": 3}, ValueError, "batch is 3; expected 2, from prompt"),
        (([0], 3), {"stop": -1}, ValueError, "a token in stop is -1"),
        (([0], 3), {"stop": [0, 5]}, ValueError, "a token in stop is 5; expected less than 5"),
        (([0], 3), {"seed": -1}, ValueError, "seed is -1"),
        (
            ([0, 5], 3),
            {},
            ValueError,
            "prompt cannot be read: x holds the token 5; expected tokens from 0 to 4",
        ),
    ],
)
def test_bad_arguments_of_generate(arguments, options, error, message):
    with pytest.raises(error, match=message):
        generate(make_model(), *arguments, **options)


def test_tokens_that_the_source_does_not_read():
    layer = fastrnn.GRU(3, 9, seed=0).eval()
    message = "^source gives 9 logits, but does not read as many tokens: x holds the token .; .* from 0 to 2$"
    with pytest.raises(ValueError, match=message):
        generate(layer, [1], 20, seed=0)
    with pytest.raises(ValueError, match=message):
        beam_search(layer, [1], 20, 3)
    assert (generate(layer, [1], 20, exclude=range(3, 9), seed=0) < 3).all()


def test_what_writes_nothing_is_refused():
    for source in None, fastrnn.GRU:
        with pytest.raises(TypeError, match=r"source is .*; expected a model or a stream"):
            generate(source, [0], 3)
    with pytest.raises(TypeError, match=r"model is .*; expected a model"):
        forecast(make_model().stream(1), np.ones((3, 1, 1)), 3)


def test_modes_and_rows():
    model = make_model()
    with pytest.raises(ValueError, match="the stream has 3 rows; expected 2"):
        generate(model.stream(3), [[0, 1]], 3)
    model.train()
    with pytest.raises(RuntimeError, match="eval"):
        generate(model, [0], 3)


# ---- Beam search ------------------------------------------------------------------------------------


def every_sequence(model, prompt, length, stop, alpha):
    """Score all sequences, by whole calls: (tokens without stop, log P, score), best first."""
    found = {}
    symbols = model.output_size
    for tokens in itertools.product(range(symbols), repeat=length):
        ends = [i for i, token in enumerate(tokens) if token == stop]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        if tokens in found:
            continue
        o, _ = model(np.array([*prompt, *tokens])[:, None])
        log_p = log_softmax(o[len(prompt) - 1 : -1, 0])
        total = sum(log_p[i, token] for i, token in enumerate(tokens))
        found[tokens] = (total, total / ((5 + len(tokens)) / 6) ** alpha)
    ranked = sorted(found.items(), key=lambda item: -item[1][1])
    return [([t for t in tokens if t != stop], *scores) for tokens, scores in ranked]


@pytest.mark.parametrize("alpha", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("stop", [None, 0])
def test_wide_beams_search_exhaustively(alpha, stop):
    model = make_model(3, dtype="float64")
    length, beams = 4, 27
    expected = every_sequence(model, [1, 2], length, stop, alpha)[:beams]
    found = beam_search(model, [1, 2], length, beams, length_penalty=alpha, stop=() if stop is None else stop)
    assert len(found) == len(expected)
    for hypothesis, (tokens, total, score) in zip(found, expected, strict=True):
        assert hypothesis.tokens.tolist() == tokens
        assert hypothesis.log_probability == pytest.approx(total, rel=1e-9)
        assert hypothesis.score == pytest.approx(score, rel=1e-9)
        assert hypothesis.stopped == (len(tokens) < length)


def test_more_beams_find_no_worse_and_narrow_ones_what_they_should():
    model = make_model(SYMBOLS, scale=2.0, dtype="float64")
    best = every_sequence(model, [3], 4, None, 0.0)[0]
    scores = [beam_search(model, [3], 4, beams)[0].score for beams in (1, 5, 125)]
    assert scores[0] <= scores[1] + 1e-12
    assert scores[2] == pytest.approx(best[1], rel=1e-9)
    greedy = beam_search(model, [3], 30, 1)[0]
    np.testing.assert_array_equal(greedy.tokens, generate(model, [3], 30, temperature=0))
    for hypothesis in beam_search(model, [3], 30, 4):
        o, _ = model(np.array([3, *hypothesis.tokens])[:, None])
        chosen = log_softmax(o[:-1, 0])[np.arange(30), hypothesis.tokens]
        assert hypothesis.log_probability == pytest.approx(chosen.sum(), rel=1e-9)


def test_beams_of_an_encoder_decoder(rng):
    model = EncoderDecoder(
        fastrnn.LSTM(3, 8, seed=0, dtype="float64"), fastrnn.LSTM(3, 8, seed=1, dtype="float64"), 3, seed=2
    )
    model.decoder.readout.parameters["weight"][...] *= 4
    model.eval()
    x = rng.integers(3, size=(6, 1))
    found = beam_search(model.start(np.repeat(x, 9, axis=1)), [0], 3, 9, stop=2)
    best, highest = None, -np.inf
    for tokens in [
        [2],
        *([t, 2] for t in range(2)),
        *([a, b, c] for a in range(2) for b in range(2) for c in range(3)),
    ]:
        o, _ = model(x, inputs=np.array([0, *tokens[:-1]])[:, None])
        total = log_softmax(o[:, 0])[np.arange(len(tokens)), tokens].sum()
        if total > highest:
            best, highest = [t for t in tokens if t != 2], total
    assert found[0].tokens.tolist() == best
    assert found[0].log_probability == pytest.approx(highest, rel=1e-9)


def test_a_stop_token_given_twice_ends_a_sequence_once():
    found = beam_search(make_model(), [1, 2], 3, 6, stop=[0, 0, 3])
    expected = beam_search(make_model(), [1, 2], 3, 6, stop=[0, 3])
    assert [(h.tokens.tolist(), h.score) for h in found] == [(h.tokens.tolist(), h.score) for h in expected]
    with pytest.raises(ValueError, match="a token in stop is 5; expected less than 5"):
        beam_search(make_model(), [1, 2], 3, 6, stop=5)


def test_excluded_tokens_are_not_searched():
    for hypothesis in beam_search(make_model(), [1], 5, 6, exclude=[0, 2]):
        assert not np.isin(hypothesis.tokens, [0, 2]).any()
    assert len(beam_search(make_model(), [1], 2, 6, exclude=[0, 1, 2, 3])) == 1


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0], 0, 2), {}, "length is 0; expected an integer of at least 1"),
        (([0], 3, 0), {}, "beams is 0; expected an integer of at least 1"),
        (([[0]], 3, 2), {}, r"prompt has shape \(1, 1\); expected \(T,\)"),
        (([0], 3, 2), {"length_penalty": -1}, "length_penalty is -1; expected a finite number of at least 0"),
        (([], 3, 2), {}, r"prompt has shape \(0,\); expected at least one token"),
        (([5], 3, 2), {}, "prompt cannot be read: x holds the token 5; expected tokens from 0 to 4"),
    ],
)
def test_bad_arguments_of_beam_search(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        beam_search(make_model(), *arguments, **options)
    with pytest.raises(ValueError, match="the stream has 3 rows; expected 2"):
        beam_search(make_model().stream(3), [0], 3, 2)


# ---- Forecasts --------------------------------------------------------------------------------------


def autoregression(a):
    """x_{t+1} = a x_t, as a layer: without recurrence the output is the input times a."""
    layer = fastrnn.RNN(1, 1, nonlinearity="identity", bias=False, dtype="float64")
    layer.parameters["weight_hh_l0"][...] = 0
    layer.parameters["weight_ih_l0"][...] = a
    return layer.eval()


def test_the_path_is_the_closed_loop(rng):
    model = ManyToMany(fastrnn.LSTM(2, 6, dtype="float64", seed=0), 2, seed=1).eval()
    history = rng.standard_normal((9, 3, 2))
    found = forecast(model, history, 7)
    whole = history
    for _ in range(7):
        o, _ = model(whole)
        whole = np.concatenate([whole, o[-1:]])
    assert_close(found.path, whole[9:], n_products=16 * 20)
    assert found.samples.shape == found.intervals.shape == (0, 7, 3, 2)
    assert found.quantiles == ()


def test_sampled_runs_have_the_variance_of_an_autoregression():
    """With errors of deviation s: s^2 (1 + a^2 + ... + a^2k) at step k (Box & Jenkins, 1970)."""
    a, deviation, runs, steps = 0.8, 0.5, 3000, 6
    history = np.full((2, 2, 1), 3.0)
    levels = (0.1, 0.5, 0.9)
    found = forecast(
        autoregression(a), history, steps, samples=runs, noise=deviation, quantiles=levels, seed=0
    )
    mean = 3 * a ** np.arange(1, steps + 1)
    assert_close(found.path[:, 0, 0], mean, n_products=steps)
    variance = deviation**2 * np.cumsum(a ** (2 * np.arange(steps)))
    for row in range(2):
        runs_of_row = found.samples[:, :, row, 0]
        assert (np.abs(runs_of_row.mean(axis=0) - mean) < 4.5 * np.sqrt(variance / runs)).all()
        assert (np.abs(runs_of_row.var(axis=0) / variance - 1) < 4.5 * math.sqrt(2 / runs)).all()
    np.testing.assert_allclose(found.intervals, np.quantile(found.samples, levels, axis=0))
    assert (np.abs(found.intervals[2, :, 0, 0] - mean - 1.2816 * np.sqrt(variance)) < 0.1).all()


def test_runs_depend_on_seed_run_and_row_alone(rng):
    model = ManyToMany(fastrnn.GRU(2, 6, dtype="float64", seed=0), 2, seed=1).eval()
    history = rng.standard_normal((4, 3, 2))
    many = forecast(model, history, 5, samples=6, noise=[0.1, 0.2], seed=1)
    few = forecast(model, history[:, :1], 5, samples=2, noise=[0.1, 0.2], seed=1)
    assert_close(few.samples, many.samples[:2, :, :1], n_products=100)
    again = forecast(model, history, 5, samples=6, noise=[0.1, 0.2], seed=1)
    assert_same_bits(again.samples, many.samples)
    assert (forecast(model, history, 5, samples=6, noise=0.1, seed=2).samples != many.samples).any()


def test_residuals_are_drawn_with_replacement_and_functions_are_asked():
    residuals = np.array([[-1.0], [2.0], [5.0]])
    found = forecast(autoregression(0.0), np.ones((1, 1, 1)), 4, samples=300, noise=residuals, seed=0)
    assert set(found.samples.ravel()) == {-1.0, 2.0, 5.0}
    found = forecast(
        autoregression(0.0), np.ones((1, 1, 1)), 4, samples=3, noise=lambda rng: np.full((4, 1), 7.0)
    )
    assert (found.samples == 7).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; expected an integer of at least 1"),
        ({"samples": -1}, "samples is -1; expected an integer of at least 0"),
        ({"samples": 3}, "samples is 3 without noise; expected noise"),
        ({"samples": 3, "noise": -1.0}, r"noise has shape \(\); expected a standard deviation of at least 0"),
        ({"samples": 3, "noise": [1.0, 1.0]}, r"noise has shape \(2,\); expected a standard deviation"),
        ({"samples": 3, "noise": np.nan}, "noise holds NaN or infinity"),
        ({"samples": 3, "noise": lambda rng: np.zeros(3)}, r"noise returned an array of shape \(3,\)"),
        ({"quantiles": [2.0]}, r"quantiles\[0\] is 2.0; expected a number from 0 to 1"),
        ({"history": np.ones((3, 1))}, r"history has shape \(3, 1\); expected \(T, B, I\)"),
        ({"history": np.ones((0, 1, 1))}, r"history has shape \(0, 1, 1\); expected \(T, B, I\) with T"),
        (
            {"model": fastrnn.GRU(1, 2, dtype="float64").eval()},
            r"outputs have shape \(2, 2\); expected \(2, 1\), to be fed back",
        ),
    ],
)
def test_bad_arguments_of_forecast(options, message):
    arguments = {"model": autoregression(0.5), "history": np.ones((3, 2, 1)), "steps": 4} | options
    with pytest.raises(ValueError, match=message):
        forecast(**arguments)
