"""Does the training loop train, report, stop and go on as it says?"""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import threading

import fastrnn
import numpy as np
import pytest
from fastrnn import _files
from fastrnn.diagnostics import GradientNorms
from fastrnn.models import (
    DeepInTime,
    EncoderDecoder,
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
from fastrnn.sampling import beam_search, generate
from fastrnn.training import (
    SGD,
    Adam,
    Batches,
    Checkpoint,
    History,
    Linear,
    Newton,
    ScheduledSampling,
    accumulate,
    clip_by_global_norm,
    fit,
    full_bptt,
    inverse_sigmoid_decay,
    mean_loss,
    softmax_cross_entropy,
)
from tolerances import assert_close, assert_same_bits

SYMBOLS, ROWS, STEPS = 4, 20, 9
TOKENS = np.random.default_rng(0).integers(SYMBOLS, size=(STEPS + 1, ROWS))
X, TARGETS = TOKENS[:-1], TOKENS[1:]
LENGTHS = np.random.default_rng(1).integers(3, STEPS + 1, size=ROWS)


def make_model(dropout=0.0, dtype="float32", seed=0):
    return ManyToMany(
        fastrnn.LSTM(SYMBOLS, 8, num_layers=2, dropout=dropout, dtype=dtype, seed=seed), SYMBOLS, seed=1
    )


def take(rows):
    return X[:, rows], TARGETS[:, rows], {"lengths": LENGTHS[rows]}


BATCHES = Batches(ROWS, 6, take, seed=3)  # 4 an epoch, the last of 2 rows
PLAIN = [(X[:, :10], TARGETS[:, :10]), (X[:, 10:], TARGETS[:, 10:])]


def train(model, data=BATCHES, *, optimizer=None, **options):
    options = {"loss": softmax_cross_entropy, "optimizer": optimizer or Adam([model], 0.01)} | options
    if not {"epochs", "steps", "limit"} & options.keys():
        options["epochs"] = 2
    return fit(model, data, **options)


def same_parameters(model, other):
    for name, parameter in other.parameters.items():
        assert_same_bits(model.parameters[name], parameter, name)


# ---- The loop ---------------------------------------------------------------------------------------


def test_it_is_the_loop_written_out():
    model, other = make_model(), make_model()
    rates = []

    def rate(k):
        rates.append(k)
        return 0.01 / (k + 1)

    history = train(model, clip=0.1, learning_rate=rate, epochs=2)
    optimizer, losses, norms = Adam([other], 0.01), [], []
    for epoch in range(2):
        for x, targets, options in BATCHES(epoch):
            optimizer.zero_grad()
            loss, _ = full_bptt(other, x, targets, softmax_cross_entropy, **options)
            norms.append(clip_by_global_norm([other], 0.1))
            optimizer.learning_rate = 0.01 / (len(losses) + 1)
            optimizer.step()
            losses.append(loss)
    assert history.losses == losses
    assert history.gradient_norms == norms
    assert history.learning_rates == [0.01 / (k + 1) for k in rates]
    assert rates == list(range(8))
    assert history.epochs == [1] * 4 + [2] * 4
    assert history.positions[3] == LENGTHS.sum()
    assert history.positions[-1] == 2 * LENGTHS.sum()
    assert history.ending == "epochs"
    same_parameters(model, other)


def test_a_layer_is_trained_as_a_model_is(rng):
    layer = fastrnn.GRU(3, 5, seed=0)
    x, targets = rng.standard_normal((6, 4, 3), np.float32), rng.standard_normal((6, 4, 5), np.float32)

    def squares(o, targets):
        return float(np.mean((o - targets) ** 2)), 2 * (o - targets) / o.size

    history = train(layer, [(x, targets)], loss=squares, optimizer=SGD([layer], 0.1), epochs=20)
    assert history.losses[-1] < history.losses[0]


def test_accumulated_updates_are_those_of_averages():
    model, other = make_model(), make_model()
    history = train(model, accumulate=3, epochs=1)  # of 4 batches: the last update has one
    optimizer, batches, losses = Adam([other], 0.01), list(BATCHES(0)), []
    for part in (batches[:3], batches[3:]):
        losses.append(accumulate(other, part, softmax_cross_entropy))
        optimizer.step()
    assert history.losses == losses
    same_parameters(model, other)


@pytest.mark.parametrize("carry", [True, False])
def test_the_state_is_carried_within_an_epoch_if_asked(carry):
    model, other = make_model(), make_model()
    train(model, PLAIN, carry_state=carry, epochs=2)
    optimizer = Adam([other], 0.01)
    for _ in range(2):
        state = None
        for x, targets in PLAIN:
            optimizer.zero_grad()
            _, state = full_bptt(other, x, targets, softmax_cross_entropy, state=state if carry else None)
            optimizer.step()
    same_parameters(model, other)


def test_truncation_to_the_length_is_no_truncation():
    models = [make_model() for _ in range(3)]
    histories = [
        train(model, truncate=truncate)
        for model, truncate in zip(models, (None, (STEPS, STEPS), (4, 8)), strict=True)
    ]
    assert histories[0].losses == histories[1].losses
    same_parameters(models[0], models[1])
    # Windows of 4 in 9 steps, as far as the longest row goes.
    assert 16 < histories[2].steps <= 24
    assert histories[2].positions[-1] == histories[0].positions[-1]


def test_evaluation_is_the_mean_over_positions_and_changes_nothing():
    model, other = make_model(dropout=0.5), make_model(dropout=0.5)
    model.layer.train(checkpoint=4)
    history = train(model, evaluate=BATCHES, evaluate_every=3)
    train(other)
    same_parameters(model, other)
    assert [step for step, _ in history.evaluations] == [0, 3, 6]
    assert model.training
    assert model.layer.explain(X) == make_model(dropout=0.5).layer.train(checkpoint=4).explain(X)
    assert model.layer.explain(X) != make_model(dropout=0.5).layer.explain(X)
    fresh = make_model(dropout=0.5).eval()
    o, _ = fresh(X, lengths=LENGTHS)
    valid = np.arange(STEPS)[:, None] < LENGTHS
    expected, _ = softmax_cross_entropy(o, TARGETS, valid)
    assert history.evaluations[0][1] == pytest.approx(expected, rel=1e-6)
    assert mean_loss(fresh, BATCHES, softmax_cross_entropy) == pytest.approx(expected, rel=1e-6)
    assert not fresh.training


def test_a_mean_needs_no_gradient():
    """A measure of outputs that has none can be averaged, not trained with."""
    model = make_model()

    def wrong(o, targets):
        return np.mean(o.argmax(axis=-1) != targets), None

    o, _ = model(X)
    assert mean_loss(model, PLAIN, wrong) == pytest.approx(np.mean(o.argmax(axis=-1) != TARGETS))
    with pytest.raises(TypeError, match=r"loss returned \(.*, None\); expected \(loss, do\), of which do is"):
        train(model, PLAIN, loss=wrong)


@pytest.mark.parametrize(("every", "steps"), [(None, [0, 4, 8]), (0.5, [0, 4, 8]), (5, [0, 5])])
def test_when_it_evaluates(every, steps):
    history = train(make_model(), evaluate=lambda model: float(model.training), evaluate_every=every)
    assert history.evaluations == [(step, 0.0) for step in steps]


@pytest.mark.parametrize(("part", "count"), [(0.1, 11), (0.3, 4), (0.05, 11)])
def test_no_evaluation_is_lost_to_rounding(part, count):
    """3 / 10 over 0.1 is a little less than 3."""
    history = train(make_model(), steps=10, evaluate=lambda model: 1.0, evaluate_every=part)
    assert len(history.evaluations) == count


def test_parts_of_a_training_on_data_of_unknown_length_are_whole_epochs():
    options = {"evaluate": lambda model: 1.0, "evaluate_every": 0.25}
    history = train(make_model(), BATCHES.__call__, **options)
    assert [step for step, _ in history.evaluations] == [0, 4, 8]


def test_no_evaluation_between_the_batches_of_an_update(tmp_path):
    path = tmp_path / "log.csv"
    history = train(
        make_model(), epochs=3, accumulate=3, evaluate=lambda model: 1.0, evaluate_every=0.05, log=path
    )
    assert history.steps == 6  # 3 batches and 1, an epoch
    assert [step for step, _ in history.evaluations] == list(range(7))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [int(row["step"]) for row in rows if row["evaluation"]] == list(range(7))


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_update_that_is_not_made_costs_no_evaluation(tmp_path, ahead):
    """A limit that no update sees coming, as one in minutes, is reached within the second update."""
    parts = iter([0.0, 0.2, 0.4, 0.6, 1.0])  # after 0, 1, 2, 3 and 4 batches, three an update
    options = {"accumulate": 3, "evaluate": lambda model: 1.0, "evaluate_every": 0.35 + 0.3 * ahead}
    path, log = tmp_path / "training.safetensors", tmp_path / "log.csv"
    history = train(make_model(), PLAIN * 4, limit=lambda k: next(parts), checkpoint=path, log=log, **options)
    assert (history.ending, history.steps) == ("limit", 1)
    assert [step for step, _ in history.evaluations] == [0, 1]  # due at 0.7 or 0.65, within the second
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert [row["evaluation"] for row in rows] == ["1.0", "1.0"]
    # A training that goes on makes the update, and evaluates what it led to.
    again = train(make_model(), PLAIN * 4, limit=lambda k: k / 2, checkpoint=path, resume=True, **options)
    assert [step for step, _ in again.evaluations][-1] == 2


def test_a_function_that_evaluates_may_return_any_finite_number():
    history = train(make_model(), evaluate=lambda model: 1e9)
    assert [value for _, value in history.evaluations] == [1e9] * 3
    with pytest.raises(FloatingPointError, match="after step 0: the evaluation's loss is inf"):
        train(make_model(), evaluate=lambda model: np.inf)


@pytest.mark.parametrize("truncate", [(3, 3), (2, 5)])
def test_windows_that_score_nothing_pass_the_state_on(truncate):
    """The updates are those of a loss from which the other windows are left out."""
    mask = np.zeros((STEPS, ROWS), bool)
    mask[3:6] = True
    data = [(X, TARGETS, {"mask": mask})]
    model, carried = make_model(), make_model()
    history = train(model, data, truncate=truncate, epochs=2, accumulate=2)
    assert history.positions[-1] == 2 * mask.sum()
    train(carried, [*data, *data], truncate=truncate, epochs=1, accumulate=2, carry_state=True)
    assert all(np.isfinite(parameter).all() for parameter in carried.parameters.values())
    if truncate == (3, 3):
        other, losses = make_model(), []
        optimizer = Adam([other], 0.01)
        for _ in range(2):
            _, state = other(X[:3])
            loss, _ = full_bptt(other, X[3:6], TARGETS[3:6], softmax_cross_entropy, state=state)
            losses.append(loss)
            optimizer.step()
            optimizer.zero_grad()
        assert history.losses == losses
        same_parameters(model, other)
    with pytest.raises(ValueError, match="mask scores no position; expected at least one"):
        train(make_model(), [(X, TARGETS, {"mask": np.zeros_like(mask)})], truncate=truncate)


@pytest.mark.parametrize("part", ["layer", "readout"])
def test_a_model_half_in_eval_mode_is_measured_in_eval_mode_and_left_as_it_was(part):
    model = make_model(dropout=0.5)
    expected = mean_loss(make_model(dropout=0.5).eval(), PLAIN, softmax_cross_entropy)
    model.parts[part].eval()
    assert mean_loss(model, PLAIN, softmax_cross_entropy) == expected
    assert {name: module.training for name, module in model.parts.items() if not module.training} == {
        part: False
    }


def test_early_stop_keeps_the_best_parameters():
    model, seen = make_model(), []

    def evaluate(model):
        seen.append({name: parameter.copy() for name, parameter in model.parameters.items()})
        return [3.0, 1.0, 2.0, 1.0, 0.5][len(seen) - 1]

    history = train(model, evaluate=evaluate, evaluate_every=2, patience=2, epochs=50)
    assert (history.ending, history.steps, history.best) == ("early stop", 6, (2, 1.0))
    for name, parameter in seen[1].items():
        assert_same_bits(model.parameters[name], parameter, name)


def test_callbacks_see_the_gradients_and_may_end_it():
    seen = []

    def callback(step, model):
        seen.append((step, bool(model.gradients["readout.bias"].any())))
        return step == 3

    history = train(make_model(), callbacks=[callback])
    assert seen == [(1, True), (2, True), (3, True)]
    assert (history.ending, history.steps) == ("callback", 3)


def test_gradient_norms_are_recorded_by_a_callback():
    norms = GradientNorms()
    history = train(make_model(), callbacks=[norms])
    recorded = np.array(list(norms.norms.values()))
    np.testing.assert_allclose(np.sqrt((recorded**2).sum(axis=0)), history.gradient_norms, rtol=1e-5)


@pytest.mark.parametrize(
    ("end", "ending", "steps"),
    [({"steps": 6, "epochs": 9}, "steps", 6), ({"limit": lambda k: k / 5, "epochs": 9}, "limit", 5)],
)
def test_the_first_limit_ends_it(end, ending, steps):
    history = train(make_model(), **end)
    assert (history.ending, history.steps) == (ending, steps)


def test_batches_are_shuffled_by_seed_and_epoch_alone():
    rows = Batches(10, 4, lambda rows: (rows, rows), seed=1)
    first = np.concatenate([x for x, _ in rows(0)])
    assert sorted(first) == list(range(10)) != first.tolist()
    assert first.tolist() == np.concatenate([x for x, _ in rows(0)]).tolist()
    assert first.tolist() != np.concatenate([x for x, _ in rows(1)]).tolist()
    assert [x.tolist() for x, _ in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(rows) == 3
    with pytest.raises(TypeError, match="take is None; expected a function"):
        Batches(10, 4, None)


# ---- Resuming ---------------------------------------------------------------------------------------

RESUMED = {
    "dropout": {},
    "accumulated": {"accumulate": 3, "checkpoint_every": 1},
    "carried": {"carry_state": True},
    "truncated": {"truncate": (4, 8), "carry_state": True},
    "early stop": {"evaluate": BATCHES, "evaluate_every": 3, "patience": 50},
    "scheduled": {"prepare": ScheduledSampling(lambda k: inverse_sigmoid_decay(k, 2.0), first=0), "seed": 5},
    "parts": {"evaluate": BATCHES, "evaluate_every": 0.3, "limit": lambda k: k / 8},
    "rates": {"learning_rate": lambda k: 0.02 / (k + 1), "clip": 0.5},
}


def regular(epoch):
    """Batches of one size, for a state to be carried, in another order every epoch."""
    return Batches(ROWS, 5, take, seed=4)(epoch)


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 7])
def test_resumed_equals_unbroken_to_the_bit(tmp_path, case, stop):
    options = RESUMED[case] | {"epochs": 2}
    unbroken = make_model(dropout=0.3)
    expected = train(unbroken, regular, **options)

    path = tmp_path / "training.safetensors"
    batches = 0

    def interrupt(epoch):
        nonlocal batches
        for batch in regular(epoch):
            batches += 1
            if batches == stop + 1:
                signal.raise_signal(signal.SIGINT)
            yield batch

    first = train(make_model(dropout=0.3), interrupt, checkpoint=path, **options)
    assert first.ending == "interrupted"
    assert first.steps < expected.steps
    other = ManyToMany(fastrnn.LSTM(SYMBOLS, 8, 2, dropout=0.3, seed=0), SYMBOLS, seed=99)
    resumed = train(other, regular, checkpoint=path, resume=True, **options)
    for name in ("losses", "learning_rates", "gradient_norms", "epochs", "positions", "evaluations"):
        assert getattr(resumed, name) == getattr(expected, name), name
    assert resumed.ending == expected.ending
    same_parameters(other, unbroken)


def test_a_checkpoint_is_for_a_model_in_training_mode(tmp_path):
    path, model = tmp_path / "training.safetensors", make_model()
    optimizer = Adam([model])
    train(make_model(), steps=3, checkpoint=path)
    with pytest.raises(RuntimeError, match=r"model, ManyToMany.*, is in eval mode: call train\(\) first"):
        Checkpoint.load(path, model.eval(), optimizer)
    assert optimizer.steps == 0
    assert Checkpoint.load(path, model.train(), optimizer).history.steps == optimizer.steps == 3


def test_masks_of_layers_without_a_seed_go_on_too(tmp_path):
    path, unbroken = tmp_path / "training.safetensors", make_model(dropout=0.3, seed=None)
    first, other = copy.deepcopy(unbroken), make_model(dropout=0.3, seed=None)
    expected = train(unbroken, epochs=2)
    train(first, epochs=1, checkpoint=path)
    assert train(other, epochs=2, checkpoint=path, resume=True).losses == expected.losses
    same_parameters(other, unbroken)


@pytest.mark.parametrize("stop", [0, 3, 5, 8])
def test_data_that_draws_goes_on_with_its_draws(tmp_path, stop):
    path = tmp_path / "training.safetensors"

    def drawn(rng, until=10**9):
        def data(epoch):
            for _ in range(4):
                if len(seen) == until:
                    signal.raise_signal(signal.SIGINT)
                seen.append(rng.integers(ROWS, size=5))
                yield take(seen[-1])

        seen = []
        return {"data": data, "generator": rng, "epochs": 3}

    unbroken, model, other = (make_model(dropout=0.3) for _ in range(3))
    expected = train(unbroken, **drawn(np.random.default_rng(1)))
    train(model, **drawn(np.random.default_rng(1), stop), checkpoint=path)
    resumed = train(other, **drawn(np.random.default_rng(99)), checkpoint=path, resume=True)
    assert resumed.losses == expected.losses
    same_parameters(other, unbroken)


@pytest.mark.parametrize("masks", [{"recurrent_dropout": 0.3}, {"zoneout": (0.2, 0.1)}])
def test_masks_within_the_layer_go_on_too(tmp_path, masks):
    path = tmp_path / "training.safetensors"
    models = [ManyToMany(fastrnn.LSTM(SYMBOLS, 8, **masks, seed=0), SYMBOLS, seed=1) for _ in range(3)]
    expected = train(models[0], epochs=2)
    train(models[1], steps=3, checkpoint=path)
    assert train(models[2], epochs=2, checkpoint=path, resume=True).losses == expected.losses
    same_parameters(models[2], models[0])


def sequences(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype("float32")


LABELS = TARGETS[0]
MODELS = {
    "one to many": (lambda: OneToMany(gru(), SYMBOLS, 3, seed=1), sequences(ROWS, 3), {"inputs": X}),
    "encoder-decoder": (
        lambda: EncoderDecoder(gru(), gru(), SYMBOLS, seed=1),
        X[:5],
        {"inputs": X, "target_lengths": LENGTHS},
    ),
    "many to one": (lambda: ManyToOne(gru(), SYMBOLS, seed=1), X, {"lengths": LENGTHS}),
    "output feedback": (
        lambda: OutputFeedback(3, 8, SYMBOLS, seed=0),
        sequences(STEPS, ROWS, 3),
        {"lengths": LENGTHS, "targets": sequences(STEPS, ROWS, SYMBOLS)},
    ),
    "taps": (lambda: ManyToMany(MultiTap(SYMBOLS, 8, 3, seed=0), SYMBOLS, seed=1), X, {}),
    "delays": (lambda: TimeDelay(SYMBOLS, 8, SYMBOLS, 2, seed=0), X, {}),
    "layer norm": (lambda: ManyToMany(LayerNormLSTM(SYMBOLS, 8, seed=0), SYMBOLS, seed=1), X, {}),
    "sweep": (
        lambda: ManyToMany(Sweep2D(fastrnn.GRU(1, 4, seed=0), fastrnn.GRU(4, 5, seed=1)), SYMBOLS, seed=1),
        sequences(STEPS, 3, ROWS, 1),
        {},
    ),
}


def gru():
    return fastrnn.GRU(SYMBOLS, 8, seed=0)


@pytest.mark.parametrize("case", MODELS)
def test_every_model_is_trained_and_resumed(tmp_path, case):
    make, x, options = MODELS[case]
    targets = {"many to one": LABELS, "sweep": np.stack([TARGETS] * 3, axis=1)}.get(case, TARGETS)
    data = [(x, targets, options)]
    models = [make() for _ in range(3)]
    expected = train(models[0], data, epochs=4)
    assert expected.losses[-1] < expected.losses[0]
    path = tmp_path / "training.safetensors"
    train(models[1], data, epochs=2, checkpoint=path)
    assert train(models[2], data, epochs=4, checkpoint=path, resume=True).losses == expected.losses
    same_parameters(models[2], models[0])
    assert mean_loss(models[2], data, softmax_cross_entropy) < expected.losses[0]


def test_resumed_where_the_process_died(tmp_path):
    """The file of the last checkpoint that was due counts, whatever came after it."""
    path = tmp_path / "training.safetensors"
    unbroken = make_model(dropout=0.3)
    expected = train(unbroken, epochs=3)

    def die(step, model):
        if step == 7:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(make_model(dropout=0.3), epochs=3, checkpoint=path, checkpoint_every=3, callbacks=[die])
    other = make_model(dropout=0.3)
    assert train(other, epochs=3, checkpoint=path, resume=True).losses == expected.losses
    same_parameters(other, unbroken)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_training_that_ended_can_be_prolonged(tmp_path):
    path = tmp_path / "training.safetensors"
    model, unbroken = make_model(), make_model()
    train(model, epochs=1, checkpoint=path)
    assert train(model, epochs=3, checkpoint=path, resume=True).losses == train(unbroken, epochs=3).losses
    same_parameters(model, unbroken)
    assert train(model, epochs=3, checkpoint=path, resume=True).steps == 12


def rising(*values):
    """An evaluation that returns these values, one after another."""
    left = list(values)
    return lambda model: left.pop(0)


def test_resumed_without_patience_the_last_parameters_are_kept(tmp_path):
    path = tmp_path / "training.safetensors"
    options = {"evaluate_every": 2, "checkpoint": path}
    train(make_model(), epochs=1, evaluate=rising(3.0, 1.0, 2.0), patience=9, **options)
    resumed, unbroken = make_model(), make_model()
    train(resumed, epochs=2, evaluate=rising(4.0, 5.0), resume=True, **options)
    train(unbroken, epochs=2)
    same_parameters(resumed, unbroken)
    # And with it again: what was best before is gone, so the last evaluation is the first to compare with.
    history = train(resumed, epochs=4, evaluate=rising(6.0, 7.0), patience=2, resume=True, **options)
    assert (history.ending, history.steps) == ("early stop", 12)
    same_parameters(resumed, unbroken)


@pytest.mark.parametrize("before", [{}, {"evaluate": lambda model: 1.0, "evaluate_every": 5}])
def test_patience_added_on_resuming_compares_from_there(tmp_path, before):
    path = tmp_path / "training.safetensors"
    train(make_model(), epochs=2, checkpoint=path, **before)
    options = {"evaluate": rising(5.0, 3.0, 4.0, 6.0), "evaluate_every": 2, "patience": 2}
    resumed, unbroken = make_model(), make_model()
    history = train(resumed, epochs=9, checkpoint=path, resume=True, **options)
    assert history.evaluations[-4:] == [(8, 5.0), (10, 3.0), (12, 4.0), (14, 6.0)]
    assert history.ending == "early stop"
    train(unbroken, steps=10)
    same_parameters(resumed, unbroken)


@pytest.mark.parametrize(
    ("every", "then", "steps"),
    [
        (0.5, 0.5, [0, 2, 4, 8, 16]),  # of 4 steps, then of 16: half of those come at 8
        (1, 0.25, [0, 1, 2, 3, 4, 8, 12, 16]),
        (1, None, [0, 1, 2, 3, 4, 8, 12, 16]),
        (None, 3, [0, 4, 6, 9, 12, 15]),
        (0.5, 4, [0, 2, 4, 8, 12, 16]),
    ],
)
def test_a_prolonged_training_goes_on_evaluating(tmp_path, every, then, steps):
    path, evaluate = tmp_path / "training.safetensors", lambda model: 1.0
    train(make_model(), epochs=1, checkpoint=path, evaluate=evaluate, evaluate_every=every)
    history = train(
        make_model(), epochs=4, checkpoint=path, resume=True, evaluate=evaluate, evaluate_every=then
    )
    assert [step for step, _ in history.evaluations] == steps


def test_resume_without_a_file_begins_anew(tmp_path):
    path = tmp_path / "training.safetensors"
    assert train(make_model(), epochs=1, checkpoint=path, resume=True).steps == 4
    assert path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"truncate": (3, 3)}, r"truncate was None and is now \[3, 3\]"),
        ({"model": ManyToMany(fastrnn.LSTM(SYMBOLS, 9, seed=0), SYMBOLS)}, "it has parameters"),
        ({"optimizer": SGD}, "optimizer was 'Adam' and is now 'SGD'"),
    ],
)
def test_checkpoints_of_other_trainings_are_refused(tmp_path, change, message):
    path = tmp_path / "training.safetensors"
    train(make_model(), epochs=1, checkpoint=path)
    change = dict(change)
    model = change.pop("model", None) or make_model()
    optimizer = change.pop("optimizer", Adam)([model], 0.1)
    before = model.state_dict()
    with pytest.raises(ValueError, match=f"holds a training that cannot be read here: {message}"):
        train(model, checkpoint=path, resume=True, optimizer=optimizer, **change)
    for name, parameter in before.items():
        assert_same_bits(model.parameters[name], parameter, name)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (7, r"calls of the layer 'layer' is 7; expected \[seed, calls\]"),  # as of an old file
        ([3], r"calls of the layer 'layer' is \[3\]; expected \[seed, calls\]"),
        ([3, -1], "calls of the layer 'layer' is -1; expected an integer of at least 0"),
        ([2**64, 0], "seed of the layer 'layer' is 18446744073709551616; expected an integer of at most"),
        ([3, "7"], r"calls of the layer 'layer' is '7' \(str\); expected an integer"),
        (None, r"it has layers \[\]; expected \['layer'\]"),
    ],
)
def test_nothing_has_changed_after_a_checkpoint_of_bad_seeds_or_calls(tmp_path, monkeypatch, calls, message):
    path, model, other = tmp_path / "training.safetensors", make_model(dropout=0.3), make_model(seed=2)
    write = _files.write

    def spoil(path, kind, arrays, description):
        write(path, kind, arrays, description | {"calls": {} if calls is None else {"layer": calls}})

    monkeypatch.setattr(_files, "write", spoil)
    optimizer, saved = Adam([model]), Adam([other])
    saved.step()
    Checkpoint(pending=[1.0]).save(path, other, saved, {})  # with gradients that wait for their step
    for gradient in model.gradients.values():
        gradient[...] = 1
    before = model.state_dict()
    with pytest.raises(ValueError, match=f"cannot be read here: {message}"):
        Checkpoint.load(path, model, optimizer)
    for name, parameter in before.items():
        assert_same_bits(model.parameters[name], parameter, name)
        assert (model.gradients[name] == 1).all(), name
    assert (optimizer.steps, model.layer.seed, model.layer.calls) == (0, 0, 0)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "layer.safetensors"
    fastrnn.GRU(3, 4).save(path)
    with pytest.raises(ValueError, match=r"holds a layer: read it with fastrnn\.load\(path\)"):
        train(make_model(), checkpoint=path, resume=True)
    train(make_model(), epochs=1, checkpoint=path)
    with pytest.raises(ValueError, match=r"holds a training: read it with fit\("):
        fastrnn.load(path)


# ---- Divergence -------------------------------------------------------------------------------------


def diverged(model, data=PLAIN, **options):
    with pytest.raises(FloatingPointError) as caught:
        train(model, data, **options)
    return str(caught.value)


def test_a_loss_that_is_nan_is_told_with_its_place_and_the_first_layer():
    model = make_model()

    def spoil(step, model):
        if step == 3:
            for symbol, sign in enumerate((1, -1)):  # one of them overflows, whatever the sign of y
                model.parameters["readout.weight"][symbol] = sign * 3e38
                model.parameters["readout.bias"][symbol] = 3.4e38

    with np.errstate(all="ignore"):
        message = diverged(model, epochs=3, callbacks=[spoil], optimizer=SGD([model], 1e-3))
    assert message.startswith("epoch 2, batch 2, step 4: the loss is nan, after 1.")
    assert (
        " at step 3; first not finite: the output of ManyToMany.readout; gradient norms: layer.l0" in message
    )
    assert type(model.layer) is fastrnn.LSTM


def test_a_gradient_that_is_not_finite_is_told(rng):
    """Unrolled, w = 4 grows as 4^t: past float32 on the way back, since the loss is of the last step."""
    layer = fastrnn.RNN(1, 1, nonlinearity="identity", bias=False, seed=0)
    layer.parameters["weight_hh_l0"][:] = 4
    layer.parameters["weight_ih_l0"][:] = 1e-30

    def last(o, targets):
        do = np.zeros_like(o)
        do[-1] = 1
        return 1.0, do

    x = np.zeros((80, 1, 1), np.float32)
    x[0] = 1e-8
    before = layer.state_dict()
    with np.errstate(all="ignore"):
        message = diverged(layer, [(x, None)], loss=last, optimizer=SGD([layer], 1e-3))
    assert message.startswith("epoch 1, batch 1, step 1: the norm of the gradients is nan")
    assert "first not finite: the gradients of RNN; gradient norms: l0 nan" in message
    for name, parameter in before.items():
        assert_same_bits(layer.parameters[name], parameter, name)


def test_an_exploding_loss_stops():
    model = make_model()
    scale = iter([1.0, 1.0, 2000.0])

    def loss(o, targets):
        value, do = softmax_cross_entropy(o, targets)
        return value * next(scale, 2000.0), do

    message = diverged(model, loss=loss)
    assert message.startswith("epoch 2, batch 1, step 3: the loss is 2")
    assert "no output and no gradient of a layer is NaN or infinite; gradient norms: layer.l0" in message


def test_bad_data_and_bad_parameters_are_told(rng):
    layer = fastrnn.GRU(3, 5, seed=0)
    x = rng.standard_normal((6, 4, 3), np.float32)

    def total(o, targets):
        return float(o.sum()), np.ones_like(o)

    bad = x.copy()
    bad[2, 1, 0] = np.nan
    assert "; x holds NaN or infinity" in diverged(layer, [(bad, None)], loss=total)
    layer.parameters["bias_hh_l0"][0] = np.inf
    with np.errstate(all="ignore"):
        layer.parameters["bias_hh_l0"][0] = np.nan
    assert "; the parameter bias_hh_l0 holds NaN" in diverged(layer, [(x, None)], loss=total)


@pytest.mark.parametrize("inner", [LayerNormGRU(SYMBOLS, 8, seed=0), DeepInTime(fastrnn.GRU(8, 8), 2)])
def test_composed_models_are_told_apart(inner):
    """What a part computes is told by its name; what a model computes itself, by the model's."""
    model = ManyToMany(inner, SYMBOLS, seed=1)
    size = model.parts["layer"].input_size
    x = np.ones((STEPS, 3, size), np.float32)
    parts = [type(part) for part in model.parts.values()]

    def spoil(step, model):
        for parameter in model.parameters.values():
            parameter[...] = np.where(parameter < 0, -3e38, 3e38)

    with np.errstate(all="ignore"):
        message = diverged(model, [(x, TARGETS[:, :3])], callbacks=[spoil], epochs=3)
    assert "first not finite: the output of ManyToMany.layer" in message, message
    assert [type(part) for part in model.parts.values()] == parts


def test_divergence_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "training.safetensors"
    model = make_model()

    def spoil(step, model):
        if step == 3:
            model.parameters["readout.bias"][...] = np.nan

    diverged(model, epochs=9, callbacks=[spoil], checkpoint=path)
    resumed, unbroken = make_model(), make_model()
    again = train(resumed, PLAIN, epochs=2, checkpoint=path, resume=True)
    assert again.losses == train(unbroken, PLAIN, epochs=2).losses


def test_an_evaluation_that_diverged():
    assert diverged(make_model(), evaluate=lambda model: np.nan) == (
        "after step 0: the evaluation's loss is nan"
    )


# ---- Log, plot, progress ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_the_log_has_a_row_for_each_step(tmp_path, suffix):
    path = tmp_path / f"log.{suffix}"
    history = train(make_model(), log=path, evaluate=BATCHES)
    text = path.read_text()
    if suffix == "csv":
        rows = [
            {key: float(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(text.splitlines())
        ]
    else:
        rows = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    assert [row["step"] for row in rows] == list(range(9))
    assert [row["loss"] for row in rows[1:]] == history.losses
    assert [row["epoch"] for row in rows[1:]] == history.epochs
    assert [(row["step"], row["evaluation"]) for row in rows if row["evaluation"]] == history.evaluations
    history.save(tmp_path / f"again.{suffix}")
    assert (tmp_path / f"again.{suffix}").read_text() == text


@pytest.mark.cuda
def test_it_trains_and_resumes_on_a_device(tmp_path):
    path = tmp_path / "training.safetensors"

    def model(device):
        return ManyToMany(fastrnn.GRU(SYMBOLS, 8, device=device, seed=0), SYMBOLS, seed=1)

    options = {"accumulate": 3, "clip": 1.0, "evaluate": BATCHES, "patience": 9, "epochs": 2}
    here, there, resumed = model("cpu"), model("cuda"), model("cuda")
    expected, found = train(here, **options), train(there, **options)
    assert_close(
        np.array(found.losses), np.array(expected.losses), n_products=STEPS * 20 * 8, dtype="float32"
    )
    train(model("cuda"), **options | {"epochs": 1}, checkpoint=path)
    assert train(resumed, **options, checkpoint=path, resume=True).losses == found.losses
    for name, parameter in there.parameters.items():
        assert_same_bits(resumed.parameters[name].numpy(), parameter.numpy(), name)
    loaded = model("cpu")
    loaded.load_state_dict({name: parameter.numpy() for name, parameter in there.parameters.items()})
    samples = [generate(m.eval(), [0], 10, seed=0, batch=3, stop=2) for m in (there, loaded)]
    assert [tokens.tolist() for tokens in samples[0]] == [tokens.tolist() for tokens in samples[1]]
    found, expected = (beam_search(m, [0], 5, 3)[0].tokens for m in (there, loaded))
    assert found.tolist() == expected.tolist()


def test_the_log_of_a_resumed_training_is_whole(tmp_path):
    log, path = tmp_path / "log.csv", tmp_path / "training.safetensors"
    train(make_model(), epochs=1, checkpoint=path, log=log)
    train(make_model(), epochs=2, checkpoint=path, resume=True, log=log)
    resumed = log.read_text()
    train(make_model(), epochs=2, log=log)
    assert resumed == log.read_text()


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_the_log_may_be_a_pipe(tmp_path, suffix):
    pipe, path, texts = tmp_path / f"pipe.{suffix}", tmp_path / f"log.{suffix}", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: texts.append(pipe.read_text()), daemon=True)
    reader.start()
    history = train(make_model(), log=pipe)
    reader.join()
    history.save(path)
    assert texts == [path.read_text()]
    assert history.steps == 8


def test_the_log_is_there_while_it_trains(tmp_path):
    log, lines = tmp_path / "log.csv", []
    train(make_model(), log=log, callbacks=[lambda step, model: lines.append(log.read_text().count("\n"))])
    assert lines == list(range(1, 9))


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "loss.png"
    history = train(make_model(), plot=path, evaluate=BATCHES)
    assert path.read_bytes().startswith(b"\x89PNG")
    training, evaluation = history.draw().axes[0].lines
    assert training.get_xydata().tolist() == [[i + 1, loss] for i, loss in enumerate(history.losses)]
    assert evaluation.get_xydata().tolist() == [list(point) for point in history.evaluations]
    training, evaluation = history.draw(unit=2.0, over_positions=True).axes[0].lines
    assert training.get_xdata().tolist() == [count / 1e6 for count in history.positions]
    assert evaluation.get_ydata().tolist() == [loss / 2 for _, loss in history.evaluations]


def test_a_picture_that_cannot_be_written_is_refused_first(tmp_path):
    pytest.importorskip("matplotlib")
    model = make_model()
    with pytest.raises(
        ValueError, match=r"plot is '.*loss.abc'; expected a path that ends in \.eps, .*\.png"
    ):
        train(model, plot=tmp_path / "loss.abc")
    same_parameters(model, make_model())
    for name in "loss.SVG", "loss":
        train(make_model(), plot=tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"loss.SVG", "loss.png"}


def test_the_bar_shows_the_done_part_and_the_loss(capsys):
    pytest.importorskip("tqdm")
    train(make_model(), progress=True, evaluate=BATCHES)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "step 8, loss 1." in shown
    assert "evaluation 1." in shown
    train(make_model(), progress=lambda history: f"{history.steps} done")
    assert "8 done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "options", "message"),
    [
        ("tqdm", {"progress": True}, r"progress needs tqdm: pip install 'fastrnn\[cli\]'"),
        ("matplotlib", {"plot": "loss.png"}, r"plot needs matplotlib: pip install 'fastrnn\[cli\]'"),
    ],
)
def test_without_what_it_needs(package, options, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=message):
        train(make_model(), **options)


# ---- Interrupts -------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_after_the_batch():
    before = signal.getsignal(signal.SIGINT)

    def press(step, model):
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    history = train(make_model(), callbacks=[press])
    assert (history.ending, history.steps) == ("interrupted", 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_interrupts_at_once():
    def press(step, model):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
    try:
        with pytest.raises(KeyboardInterrupt):
            train(make_model(), callbacks=[press])
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_runs_in_another_thread():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(train(make_model())))
    thread.start()
    thread.join()
    assert histories[0].steps == 8


# ---- Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"limit": None}, ValueError, "epochs, steps and limit are None; expected at least one"),
        ({"epochs": 0}, ValueError, "epochs is 0; expected an integer of at least 1"),
        ({"steps": 1.5}, TypeError, "steps is 1.5"),
        ({"accumulate": 0}, ValueError, "accumulate is 0; expected an integer of at least 1"),
        ({"clip": 0}, ValueError, "clip is 0; expected a number greater than 0"),
        ({"clip_value": -1}, ValueError, "clip_value is -1; expected a finite number greater than 0"),
        ({"truncate": 5}, TypeError, r"truncate is 5; expected \(k1, k2\)"),
        ({"truncate": (5, 4)}, ValueError, "k2 is 4 with k1=5"),
        (
            {"evaluate_every": 1.5},
            TypeError,
            r"evaluate_every is 1.5 \(float\); expected an integer, or a part of the training, less than 1",
        ),
        ({"checkpoint_every": 0.5}, TypeError, "checkpoint_every is 0.5"),
        ({"patience": 3}, ValueError, "patience is 3 without evaluate; expected validation data"),
        ({"resume": True}, ValueError, "resume is True without a checkpoint; expected its path"),
        ({"log": "log.txt"}, ValueError, r"log is 'log.txt'; expected a path that ends in \.csv"),
        ({"log": "/nowhere/log.csv"}, FileNotFoundError, "log is '/nowhere/log.csv', in a folder that"),
        ({"explode": 0}, ValueError, "explode is 0; expected a number greater than 0"),
        ({"seed": -1}, ValueError, "seed is -1; expected an integer of at least 0"),
        ({"generator": np.random.Generator(np.random.MT19937())}, TypeError, "expected one of np.random.def"),
        ({"generator": 3}, TypeError, "generator is 3; expected one of np.random.default_rng"),
        ({"loss": None}, TypeError, "loss is None; expected a function"),
        ({"learning_rate": 0.1}, TypeError, "learning_rate is 0.1; expected a function"),
        ({"limit": 3}, TypeError, "limit is 3; expected a function"),
        ({"prepare": 3}, TypeError, "prepare is 3; expected a function"),
        ({"callbacks": [print, 3]}, TypeError, r"callbacks\[1\] is 3; expected a function"),
        ({"callbacks": print}, TypeError, r"callbacks is <built-in function print>; expected a list of func"),
        ({"data": 3}, TypeError, "data is 3; expected batches, or a function"),
        ({"evaluate": 3}, TypeError, "evaluate is 3; expected batches, or a function"),
        ({"optimizer": 3}, TypeError, "optimizer is 3; expected one that steps by gradients, such as Adam"),
        ({"optimizer": Adam}, TypeError, r"optimizer is .*; expected one that .*, such as Adam\(\[model\]\)"),
        ({"optimizer": Adam([])}, ValueError, "optimizer.modules is empty; expected the model, or parts of"),
        (
            {"optimizer": Newton(Linear(1, 1), float)},
            TypeError,
            "optimizer is .*Newton.*; expected one that steps by gradients",
        ),
        (
            {"optimizer": Adam([make_model()])},
            ValueError,
            r"optimizer.modules\[0\] is ManyToMany.*; expected the model, or parts of it",
        ),
    ],
)
def test_bad_arguments(options, error, message):
    model = make_model()
    options = {"data": BATCHES} | options
    with pytest.raises(error, match=message):
        train(model, **options)
    assert model.layer.calls == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": lambda k: None}, "limit returned None; expected a number"),
        ({"evaluate": lambda model: "low"}, "evaluate returned 'low'; expected a number"),
        ({"learning_rate": lambda k: None}, r"learning_rate is None \(NoneType\); expected a finite number"),
        ({"loss": lambda o, targets: 1.0}, r"loss returned 1.0; expected \(loss, do\), of which do is its g"),
        ({"loss": lambda o, targets: (1.0, None)}, r"loss returned \(1.0, None\); expected \(loss, do\)"),
        ({"loss": lambda o, targets: (None, o)}, "loss returned None; expected a number"),
        ({"prepare": lambda *_: None}, r"a batch is NoneType; expected \(x, targets\)"),
    ],
)
def test_functions_that_return_something_else(options, message):
    model = make_model()
    with pytest.raises(TypeError, match=message):
        train(model, PLAIN, **options)
    same_parameters(model, make_model())


def test_an_optimizer_may_have_a_part_of_the_model():
    for wrong in 3, ManyToMany:
        with pytest.raises(TypeError, match=r"model is .*; expected a layer or a model"):
            train(wrong, optimizer=Adam([make_model()]))
    model = make_model()
    train(model, optimizer=Adam([model.readout], 0.01))
    same_parameters(model.layer, make_model().layer)
    assert (model.readout.parameters["weight"] != make_model().readout.parameters["weight"]).any()


def test_bad_data():
    with pytest.raises(ValueError, match="data has no batch in epoch 2; expected a list, or a function"):
        train(make_model(), iter(PLAIN))
    with pytest.raises(ValueError, match="data has no batch in epoch 1"):
        train(make_model(), [])
    for data in [X], (X, TARGETS):
        with pytest.raises(
            TypeError, match=r"a batch is ndarray; expected \(x, targets\) .* \[\(x, targets\)\]"
        ):
            train(make_model(), data)
    layer = fastrnn.GRU(3, 5, batch_first=True)
    with pytest.raises(ValueError, match="the model has batch_first=True; expected a time-major one"):
        train(layer, PLAIN, optimizer=Adam([layer]))
    with pytest.raises(TypeError, match="option 'inputs' cannot be cut into windows"):
        train(make_model(), [(X, TARGETS, {"inputs": X})], truncate=(3, 3))
    with pytest.raises(ValueError, match="batches is empty"):
        train(make_model(), evaluate=[])
    with pytest.raises(ValueError, match="evaluate can be gone through only once; expected a list, say, or"):
        train(make_model(), evaluate=(batch for batch in PLAIN))
    with pytest.raises(ValueError, match="a batch has the option 'state'; expected none"):
        train(make_model(), [(X, TARGETS, {"state": None})])


@pytest.mark.parametrize("options", [{"carry_state": True}, {"truncate": (3, 3)}])
def test_states_that_go_backwards_are_not_carried(options):
    layer = fastrnn.GRU(SYMBOLS, 4, bidirectional=True, seed=0)
    for model in (layer, ManyToMany(layer, SYMBOLS, seed=1)):
        with pytest.raises(ValueError, match=r"model is .*; expected one direction: the state of the other"):
            train(model, PLAIN, **options)
    with pytest.raises(ValueError, match="expected one direction"):
        mean_loss(model, PLAIN, softmax_cross_entropy, carry_state=True)
    assert layer.calls == 0


def test_history_of_nothing():
    with pytest.raises(ValueError, match="empty"):
        _ = History().best
    assert History().steps == 0
