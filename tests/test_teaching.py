"""Does a decoder read what teacher forcing, free running and scheduled sampling say it reads?"""

from __future__ import annotations

import fastrnn
import numpy as np
import pytest
from fastrnn.models import EncoderDecoder, ManyToMany, OneToMany
from fastrnn.sampling import generate
from fastrnn.training import (
    Adam,
    ScheduledSampling,
    exponential_decay,
    fit,
    free_running,
    full_bptt,
    inverse_sigmoid_decay,
    linear_decay,
    scheduled_inputs,
    softmax_cross_entropy,
    teacher_forced,
)
from tolerances import assert_same_bits

STEPS, ROWS, SYMBOLS = 12, 5, 6


def make_model(**options):
    return ManyToMany(fastrnn.GRU(SYMBOLS, 8, seed=0, **options), SYMBOLS, seed=1)


def test_teacher_forced_inputs_are_the_targets_one_step_later(rng):
    targets = rng.integers(SYMBOLS, size=(STEPS, ROWS))
    inputs = teacher_forced(targets, 3)
    assert (inputs[0] == 3).all()
    np.testing.assert_array_equal(inputs[1:], targets[:-1])
    vectors = rng.standard_normal((STEPS, ROWS, 2), np.float32)
    first = rng.standard_normal((ROWS, 2), np.float32)
    inputs = teacher_forced(vectors, first)
    assert inputs.dtype == np.float32
    assert_same_bits(inputs[0], first)
    assert_same_bits(inputs[1:], vectors[:-1])
    with pytest.raises(ValueError, match=r"first has shape \(3,\); expected \(5, 2\), or a single value"):
        teacher_forced(vectors, np.zeros(3))


def test_epsilon_1_is_teacher_forcing_and_0_running_free(rng):
    model = make_model()
    targets = rng.integers(SYMBOLS, size=(STEPS, ROWS))
    inputs = scheduled_inputs(model, targets, 0, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(inputs, teacher_forced(targets, 0))
    free = scheduled_inputs(model, targets, 0, 0.0, np.random.default_rng(0), temperature=0)
    assert model.training
    # Greedy: each input is the likeliest output of a call over the inputs before it.
    o, _ = model.eval()(free)
    np.testing.assert_array_equal(free[1:], np.argmax(o[:-1], axis=-1))
    again = free_running(model, np.zeros(ROWS, int), STEPS, np.random.default_rng(1), temperature=0)
    np.testing.assert_array_equal(again, free)
    greedy = generate(model, [0], STEPS - 1, temperature=0)
    np.testing.assert_array_equal(free[1:, 0], greedy)


def test_outputs_are_chosen_with_probability_1_minus_epsilon(rng):
    """Targets that no output can be tell which were chosen."""
    rows, epsilon = 400, 0.3
    model = ManyToMany(fastrnn.GRU(SYMBOLS + 1, 8, seed=0), SYMBOLS, seed=1)
    targets = np.full((STEPS, rows), SYMBOLS)
    inputs = scheduled_inputs(model, targets, 0, epsilon, np.random.default_rng(2))
    share = np.mean(inputs[1:] == SYMBOLS)
    deviation = np.sqrt(epsilon * (1 - epsilon) / (rows * (STEPS - 1)))
    assert abs(share - epsilon) < 4 * deviation
    o, _ = model.eval()(inputs)  # the others follow the softmax of the output before
    p = np.exp(o[:-1] - o[:-1].max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    own = inputs[1:] != SYMBOLS
    for symbol in range(SYMBOLS):
        expected = p[own][:, symbol]
        deviation = np.sqrt(np.sum(expected * (1 - expected)))
        assert abs(np.sum(inputs[1:][own] == symbol) - expected.sum()) < 4.5 * deviation


def test_vectors_are_fed_back_as_they_are(rng):
    model = ManyToMany(fastrnn.GRU(2, 8, seed=0), 2, seed=1)
    targets = rng.standard_normal((STEPS, ROWS, 2), np.float32)
    free = scheduled_inputs(model, targets, 0.0, 0.0, np.random.default_rng(0))
    stream = model.eval().stream(ROWS)
    o = np.zeros((ROWS, 2), np.float32)
    for x in free:
        assert_same_bits(x, o)
        o = stream.step(x).copy()
    wide = ManyToMany(fastrnn.GRU(3, 8, seed=0), 2, seed=1)
    with pytest.raises(ValueError, match=r"outputs have shape \(5, 2\); expected \(5, 3\) as of the targets"):
        scheduled_inputs(wide, np.zeros((STEPS, ROWS, 3), np.float32), 0.0, 0.0, rng)


def test_no_gradient_flows_through_what_is_fed_back(rng):
    """The gradient is that of the model on inputs that are constants."""
    targets = rng.integers(SYMBOLS, size=(STEPS, ROWS))
    model, other = make_model(dtype="float64"), make_model(dtype="float64")
    prepare = ScheduledSampling(0.5, 0)
    seen = []

    def keep(step, model):
        seen.append({name: gradient.copy() for name, gradient in model.gradients.items()})

    fit(
        model,
        [(targets, targets)],
        loss=softmax_cross_entropy,
        optimizer=Adam([model]),
        epochs=1,
        prepare=prepare,
        seed=7,
        callbacks=[keep],
    )
    inputs, _, _ = prepare(other, (targets, targets), 0, np.random.default_rng([7, 0, 0]))
    full_bptt(other, inputs, targets, softmax_cross_entropy)
    for name, gradient in other.gradients.items():
        assert_same_bits(seen[0][name], gradient, name)


def test_decoders_are_started_from_what_they_read(rng):
    x = rng.integers(SYMBOLS, size=(7, ROWS))
    targets = rng.integers(SYMBOLS, size=(STEPS, ROWS))
    lengths = np.array([7, 3, 1, 5, 7])
    model = EncoderDecoder(fastrnn.GRU(SYMBOLS, 8, seed=0), fastrnn.GRU(SYMBOLS, 8, seed=1), SYMBOLS, seed=2)
    prepare = ScheduledSampling(0.0, 0, temperature=0)
    _, _, options = prepare(model, (x, targets, {"lengths": lengths}), 0, np.random.default_rng(0))
    o, _ = model.eval()(x, inputs=options["inputs"], lengths=options["lengths"])
    np.testing.assert_array_equal(options["inputs"][1:], np.argmax(o[:-1], axis=-1))

    images = rng.standard_normal((ROWS, 3), np.float32)
    model = OneToMany(fastrnn.GRU(SYMBOLS, 8, seed=0), SYMBOLS, input_size=3, seed=2)
    ended = {"target_lengths": np.full(ROWS, 4)}
    batch = prepare(model, (images, targets, ended), 0, np.random.default_rng(0))
    o, _ = model.eval()(images, inputs=batch[2]["inputs"])
    np.testing.assert_array_equal(batch[2]["inputs"][1:], np.argmax(o[:-1], axis=-1))


def test_the_loss_of_a_decoder_is_masked_by_the_lengths_of_its_outputs(rng):
    x = rng.integers(SYMBOLS, size=(STEPS, ROWS))  # as many steps as the targets, but other rows end
    targets = rng.integers(SYMBOLS, size=(STEPS, ROWS))
    lengths, ends = np.array([12, 3, 1, 5, 7]), np.array([2, 12, 4, 1, 9])
    valid = np.arange(STEPS)[:, None] < ends
    inputs = teacher_forced(targets, 0)
    model = EncoderDecoder(fastrnn.GRU(SYMBOLS, 8, seed=0), fastrnn.GRU(SYMBOLS, 8, seed=1), SYMBOLS, seed=2)
    o, _ = model(x, inputs=inputs, lengths=lengths)
    for options, mask in (({}, None), ({"target_lengths": ends}, valid)):
        options = {"inputs": inputs, "lengths": lengths, **options}
        loss, _ = full_bptt(model, x, targets, softmax_cross_entropy, **options)
        assert loss == pytest.approx(softmax_cross_entropy(o, targets, mask)[0], rel=1e-6)
    images = rng.standard_normal((ROWS, 3), np.float32)
    for mode in ("state", "input"):
        model = OneToMany(fastrnn.GRU(SYMBOLS, 8, seed=0), SYMBOLS, input_size=3, mode=mode, seed=2)
        o, _ = model(images, inputs=inputs)
        loss, _ = full_bptt(model, images, targets, softmax_cross_entropy, inputs=inputs, target_lengths=ends)
        assert loss == pytest.approx(softmax_cross_entropy(o, targets, valid)[0], rel=1e-6)


def test_schedules_are_those_of_the_paper():
    assert [linear_decay(k, 0.1, start=0.9, end=0.5) for k in (0, 2, 4, 100)] == pytest.approx(
        [0.9, 0.7, 0.5, 0.5]
    )
    assert [exponential_decay(k, 0.9) for k in (0, 3)] == pytest.approx([1.0, 0.729])
    for k in (0, 1, 100, 10_000):
        assert inverse_sigmoid_decay(k, 500.0) == pytest.approx(500 / (500 + np.exp(k / 500)))
    assert inverse_sigmoid_decay(10**9, 1.0) == 0.0
    for schedule in (linear_decay, exponential_decay, inverse_sigmoid_decay):
        falling = [schedule(k, 0.7) for k in range(10)]
        assert falling == sorted(falling, reverse=True)
        with pytest.raises(ValueError, match="k is -1; expected an integer of at least 0"):
            schedule(-1, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_decay(0, -1), "slope is -1; expected a finite number of at least 0"),
        (lambda: linear_decay(0, 1, start=2), "start is 2; expected a number from 0 to 1"),
        (lambda: exponential_decay(0, 1.0), "base is 1.0; expected a number of at least 0 and less than 1"),
        (lambda: inverse_sigmoid_decay(0, 0), "kappa is 0; expected a finite number greater than 0"),
        (lambda: ScheduledSampling(1.5, 0), "epsilon is 1.5; expected a number from 0 to 1"),
        (
            lambda: scheduled_inputs(make_model(), np.zeros((3, 2), int), 0, -0.1, np.random.default_rng()),
            "epsilon is -0.1; expected a number from 0 to 1",
        ),
        (
            lambda: teacher_forced(np.zeros((0, 2), int), 0),
            r"targets have shape \(0, 2\); expected \(T, B\) or \(T, B, O\), T at least 1",
        ),
        (
            lambda: scheduled_inputs(make_model(), np.zeros((0, 2), int), 0, 0.5, np.random.default_rng()),
            r"targets have shape \(0, 2\)",
        ),
        (
            lambda: free_running(make_model(), [0], 0, np.random.default_rng()),
            "steps is 0; expected an integer of at least 1",
        ),
        (
            lambda: free_running(make_model(), 0, 3, np.random.default_rng()),
            r"first has shape \(\); expected tokens \(B,\) or vectors \(B, O\)",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
