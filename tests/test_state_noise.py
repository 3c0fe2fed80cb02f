"""Are recurrent dropout and zoneout what they are said to be, forward and backward, in every kernel?

The masks and the equations are those of `fastrnn.reference`, whose gradients test_reference.py checks.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import _core, functional, reference
from fastrnn._backends import CPU
from fastrnn.layouts import DTYPES, Spec
from nested import assert_equal
from problems import Problem, arrays_of, compare, flat, in_cuts, like_state, make_problem, pieces
from shapes import LANES, NOISE, SHAPES, VARIANTS, Shape, make_spec
from tolerances import assert_close, assert_same_bits, chain

LAYERS: dict[str, Any] = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
SEED, CALL = 2**64 - 3, 5
KEY = (SEED, CALL)
BOTH = NOISE["both"]


def run(problem: Problem, checkpoint: int | None = None) -> tuple[Any, ...]:
    """Return ((y, state_n), (dx, dstate, gradients)) of the kernels."""
    spec, parameters = problem.spec, problem.parameters
    *out, reserve = functional.forward_train(
        spec,
        parameters,
        problem.x,
        problem.state,
        **problem.options,
        seed=SEED,
        call=CALL,
        checkpoint=checkpoint,
    )
    return out, functional.backward(spec, parameters, reserve, problem.dy, problem.dstate_n)


def infer(problem: Problem, **changes: Any) -> tuple[np.ndarray, ...]:
    """Return y and the final state, in inference."""
    problem = dataclasses.replace(problem, **changes)
    y, state_n = functional.forward(
        problem.spec, problem.parameters, problem.x, problem.state, **problem.options
    )
    return y, *flat(state_n)


# ------------------------------------------------------------------------------- against the reference


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cell_at_every_shape(
    variant: str, shape: Shape, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """Training with both, plain and masked; and inference."""
    hidden = shape.hidden_size(LANES[isa, dtype])
    spec = make_spec(variant, shape.input_size, hidden, dtype=dtype, **BOTH)
    for masked in (False, True):
        problem = make_problem(rng, spec, shape.steps, shape.batch, lengths=masked, reset=masked)
        compare(run(problem), problem.reference(KEY), problem)
        (y, state_n), backward = problem.reference()
        inferred = infer(problem)
        compare(((inferred[0], like_state(spec, inferred[1:])), backward), ((y, state_n), backward), problem)


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "everything": (
        {"num_layers": 2, "bidirectional": True, "dropout": 0.4},
        {"lengths": True, "reset": True},
    ),
    "tokens, no bias, no state": (
        {"num_layers": 2, "bias": False},
        {"tokens": True, "state": False, "lengths": True},
    ),
}


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cell_with_every_option(
    variant: str, noise: str, option: str, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """Each alone and both, with all that a network and a call may have beside them."""
    network, call = OPTIONS[option]
    spec = make_spec(variant, 6, LANES[isa, dtype] + 1, dtype=dtype, **network, **NOISE[noise])
    problem = make_problem(rng, spec, steps=6, batch=7, **call)
    compare(run(problem), problem.reference(KEY), problem)


@pytest.mark.kernels
@pytest.mark.parametrize("variant", VARIANTS)
def test_many_steps(variant: str, isa: str, rng: np.random.Generator) -> None:
    """Over the blocks of forward and of backward, and segments of a checkpoint, both directions."""
    hidden = 4 * LANES[isa, "float32"] + 3
    spec = make_spec(variant, 21, hidden, bidirectional=True, **BOTH)
    problem = make_problem(rng, spec, steps=67, batch=64, lengths=True, reset=True)
    assert problem.steps * problem.batch * hidden * spec.num_gates * 4 > 256 * 1024
    results = run(problem)
    compare(results, problem.reference(KEY), problem)
    for checkpoint in (1, 20):
        for name, array in arrays_of(run(problem, checkpoint)).items():
            assert_same_bits(array, arrays_of(results)[name], f"{name} with checkpoint={checkpoint}")


# ------------------------------------------------------------------------------ against torch's autograd


def torch_step(spec: Spec, torch: Any, p: Any, x: Any, state: Any, m: Any) -> Any:
    """One step of a cell, from the equations, by torch: m masks h where the recurrent weights read it."""
    h = state[0]
    if spec.cell == "gru":
        (r_x, z_x, n_x), (r_w, z_w, n_w) = (
            (x @ p["weight_ih"].T + p["bias_ih"]).chunk(3, 1),
            p["weight_hh"].chunk(3),
        )
        r_b, z_b, n_b = p["bias_hh"].chunk(3)
        r = torch.sigmoid(r_x + (m * h) @ r_w.T + r_b)
        z = torch.sigmoid(z_x + (m * h) @ z_w.T + z_b)
        inner = r * ((m * h) @ n_w.T + n_b) if spec.reset_after else (r * m * h) @ n_w.T + n_b
        return ((1 - z) * torch.tanh(n_x + inner) + z * h,)
    a = x @ p["weight_ih"].T + p["bias_ih"] + (m * h) @ p["weight_hh"].T + p["bias_hh"]
    if spec.cell == "rnn":
        return (torch.tanh(a),)
    i, f, g, o = a.chunk(4, 1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h @ p["weight_hr"].T if spec.proj_size else h), c


@pytest.mark.parametrize("variant", ["lstm", "lstm-proj", "gru", "gru-reset-before", "rnn-tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_loop_in_torch_agrees(variant: str, dtype: str, rng: np.random.Generator) -> None:
    """Two layers, every output and every gradient: autograd shares nothing with backward but the masks."""
    torch = pytest.importorskip("torch")
    spec = make_spec(variant, 3, 9, num_layers=2, dtype=dtype, **BOTH)
    problem = make_problem(rng, spec, steps=7, batch=4)

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(array.astype("float64")).requires_grad_()

    parameters = {name: tensor(array) for name, array in problem.parameters.items()}
    x, start = tensor(problem.x), [tensor(s) for s in flat(problem.state)]
    rows, ends = x, []
    for layer in range(2):
        p = {name[:-3]: a for name, a in parameters.items() if name.endswith(f"_l{layer}")}
        m = torch.from_numpy(reference.recurrent_dropout_scale(spec, layer, 4, KEY)[0])
        keeps = [torch.from_numpy(k[:, :, 0]) for k in reference.zoneout_keep(spec, layer, 7, 4, KEY)]
        now, outputs = [s[layer] for s in start], []
        for t in range(7):
            new = torch_step(spec, torch, p, rows[t], now, m)
            now = [torch.where(k[t] == 1, old, n) for k, old, n in zip(keeps, now, new, strict=True)]
            outputs.append(now[0])
        rows = torch.stack(outputs)
        ends.append(now)
    state_n = [torch.stack(s) for s in zip(*ends, strict=True)]
    loss = (rows * torch.from_numpy(problem.dy)).sum()
    for out, dout in zip(state_n, flat(problem.dstate_n), strict=True):
        loss = loss + (out * torch.from_numpy(dout)).sum()
    loss.backward()
    expected = (
        (rows.detach().numpy(), like_state(spec, (s.detach().numpy() for s in state_n))),
        (
            x.grad.numpy(),
            like_state(spec, (s.grad.numpy() for s in start)),
            {name: a.grad.numpy() for name, a in parameters.items()},
        ),
    )
    compare(run(problem), expected, problem)


# -------------------------------------------------------------------------------------------- the masks


def test_a_unit_that_is_zoned_out_keeps_its_bits(rng: np.random.Generator) -> None:
    """h and c at every step are what they were, or what the step makes of them, and the share is right."""
    spec = make_spec("lstm", 3, 64, zoneout=(0.3, 0.1))
    problem = make_problem(rng, spec, steps=1, batch=50)
    (y, (h_n, c_n)), _ = run(problem)
    plain = dataclasses.replace(problem, spec=dataclasses.replace(spec, zoneout=0.0))
    (h_new, (_, c_new)), _ = run(plain)
    keeps = reference.zoneout_keep(spec, 0, 1, 50, KEY)
    for after, before, new, keep, p in zip(
        (h_n[0], c_n[0]), flat(problem.state), (h_new[0], c_new[0]), keeps, spec.zoneout_of, strict=True
    ):
        assert_same_bits(after, np.where(keep[0, :, 0] == 1, before[0], new))
        assert abs(keep.mean() - p) < 5 * np.sqrt(p * (1 - p) / keep.size)
    assert_same_bits(y[0], h_n[0])


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("variant", ["lstm", "lstm-full-proj", "gru", "gru-reset-before", "rnn-relu"])
def test_where_chance_has_no_say(variant: str, p: float, rng: np.random.Generator) -> None:
    """With zoneout 1 the state never moves; with recurrent dropout 1 every step starts from W_hh's zeros."""
    spec = make_spec(variant, 3, 9, zoneout=(p, p))
    problem = make_problem(rng, spec, steps=4, batch=3)
    (y, state_n), (dx, dstate, gradients) = run(problem)
    if p == 1:
        for after, before in zip(flat(state_n), flat(problem.state), strict=True):
            assert_same_bits(after, before)
        assert not dx.any()
        assert not any(g.any() for g in gradients.values())
        assert_close(flat(dstate)[0][0], problem.dy.sum(axis=0) + flat(problem.dstate_n)[0][0], n_products=5)
        spec = dataclasses.replace(spec, zoneout=0.0, recurrent_dropout=1.0)
        cut = dataclasses.replace(problem, spec=spec)
        silent = {k: np.zeros_like(a) if "weight_hh" in k else a for k, a in problem.parameters.items()}
        plain = dataclasses.replace(
            problem, spec=dataclasses.replace(spec, recurrent_dropout=0.0), parameters=silent
        )
        wanted, got = arrays_of(run(plain)), arrays_of(run(cut))
        for name in ("y", "state_n[0]", "dx", "dstate[0]", "gradient of weight_ih_l0"):
            assert_same_bits(got[name] + 0, wanted[name] + 0, name)  # but for the sign of 0
        assert not got["gradient of weight_hh_l0"].any()
    else:
        plain = dataclasses.replace(problem, spec=dataclasses.replace(spec, zoneout=0.0))
        assert_equal((y, state_n), tuple(run(plain)[0]))


def test_masks_do_not_resemble_each_other() -> None:
    """Dropout, recurrent dropout and both zoneouts of one call draw apart; so do layers and directions."""
    spec = Spec("lstm", 3, 256, num_layers=2, bidirectional=True)
    masks = [reference.draws(spec, layer, 1, 20, 256, KEY, kind) for kind in range(4) for layer in (0, 1)]
    bits = [mask[0, :, d].ravel() >> 31 for mask in masks for d in (0, 1)]
    for i, one in enumerate(bits):
        for other in bits[:i]:
            assert abs((one == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(one.size)


def test_recurrent_dropout_has_one_mask_for_a_sequence(rng: np.random.Generator) -> None:
    """Of linear units, those that W_hh reads are the same at all steps, scaled; y is not masked."""
    spec = Spec("rnn", 1, 64, bias=False, nonlinearity="identity", recurrent_dropout=0.25, dtype="float64")
    parameters = {"weight_ih_l0": np.zeros((64, 1)), "weight_hh_l0": np.eye(64)}
    state = rng.uniform(1, 2, (1, 30, 64))
    y, _, _ = functional.forward_train(spec, parameters, np.zeros((6, 30, 1)), state, seed=SEED, call=CALL)
    mask = reference.recurrent_dropout_scale(spec, 0, 30, KEY)[0]
    assert set(np.unique(mask)) == {0.0, 4 / 3}
    assert abs((mask > 0).mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / mask.size)
    assert not (mask == mask[0]).all(), "each row has its own"
    for t in range(6):
        np.testing.assert_allclose(y[t], state[0] * mask ** (t + 1), rtol=1e-14)
    inferred, _ = functional.forward(spec, parameters, np.zeros((6, 30, 1)), state)
    np.testing.assert_array_equal(inferred[5], state[0])


def test_another_call_has_other_masks(rng: np.random.Generator) -> None:
    layer = fastrnn.GRU(3, 9, recurrent_dropout=0.5, seed=1)
    zoned = fastrnn.GRU(3, 9, zoneout=0.5, seed=1)
    x, state = rng.standard_normal((4, 2, 3), dtype="float32"), np.ones((1, 2, 9), "float32")
    for one in (layer, zoned):
        first, _ = one(x, state)
        assert not np.array_equal(one(x, state)[0], first)
        one.eval()
        assert_equal(one(x, state), one(x, state))


@pytest.mark.kernels
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_zoneout_gives_up_leaves_no_trace(
    dtype: str, value: float, isa: str, rng: np.random.Generator
) -> None:
    """Even where it is not finite, be it a new value or the gradient of one; nor in inference with p = 1."""
    width = 2 * LANES[isa, dtype] + 3
    spec = Spec("rnn", 1, width, bias=False, nonlinearity="identity", dtype=dtype, zoneout=0.5)
    keep = reference.zoneout_keep(spec, 0, 1, 2, KEY)[0][0, :, 0] == 1
    assert keep.any()
    assert not keep.all()
    x, state = np.ones((1, 2, 1), dtype), rng.standard_normal((1, 2, width)).astype(dtype)
    parameters = {
        "weight_ih_l0": np.full((width, 1), value, dtype),
        "weight_hh_l0": np.eye(width, dtype=dtype),
    }
    y, _, reserve = functional.forward_train(spec, parameters, x, state, seed=SEED, call=CALL)
    np.testing.assert_array_equal(y[0], np.where(keep, state[0], value))
    np.testing.assert_array_equal(reference.forward(spec, parameters, x, state, dropout_key=KEY)[0], y)
    dy = np.where(keep, value, 1).astype(dtype)[None]
    _, dstate, _ = functional.backward(spec, parameters, reserve, dy)
    np.testing.assert_array_equal(dstate, dy)
    always = dataclasses.replace(spec, zoneout=1.0)
    np.testing.assert_array_equal(functional.forward(always, parameters, x, state)[0], state)
    np.testing.assert_array_equal(reference.forward(always, parameters, x, state)[0], state)


@pytest.mark.kernels
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_recurrent_dropout_drops_leaves_no_trace(dtype: str, value: float, isa: str) -> None:
    width = 2 * LANES[isa, dtype] + 3
    spec = Spec("rnn", 1, width, bias=False, nonlinearity="identity", dtype=dtype, recurrent_dropout=0.5)
    mask = reference.recurrent_dropout_scale(spec, 0, 2, KEY)[0]
    x, state = np.zeros((1, 2, 1), dtype), np.where(mask == 0, value, 1).astype(dtype)[None]
    parameters = {"weight_ih_l0": np.zeros((width, 1), dtype), "weight_hh_l0": np.eye(width, dtype=dtype)}
    y, _, _ = functional.forward_train(spec, parameters, x, state, seed=SEED, call=CALL)
    np.testing.assert_array_equal(y[0], mask)
    np.testing.assert_array_equal(reference.forward(spec, parameters, x, state, dropout_key=KEY)[0], y)


@pytest.mark.kernels
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_dropout_drops_between_layers_leaves_no_trace(
    dtype: str, directions: int, value: float, isa: str
) -> None:
    """On the way up, nor what is dropped of a gradient on the way down."""
    width = LANES[isa, dtype] + 3
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": directions == 2, "dropout": 0.5}
    spec = make_spec("rnn-identity", 1, width, bias=False, dtype=dtype, **options)
    scale = reference.dropout_scale(spec, 0, 1, 1, KEY)
    parameters = {name: np.zeros(shape, dtype) for name, shape in spec.parameter_shapes().items()}
    for d in range(directions):
        own, suffix = slice(d * width, (d + 1) * width), "_reverse" * d
        parameters["weight_ih_l0" + suffix][:, 0] = np.where(scale[0, 0, own] == 0, value, 1)
        parameters["weight_ih_l1" + suffix][:] = np.eye(directions * width)[own]
    x = np.ones((1, 1, 1), dtype)
    y, _, reserve = functional.forward_train(spec, parameters, x, seed=SEED, call=CALL)
    np.testing.assert_array_equal(y, scale)
    np.testing.assert_array_equal(reference.forward(spec, parameters, x, dropout_key=KEY)[0], y)
    _, _, gradients = functional.backward(spec, parameters, reserve, np.full_like(y, value))
    for d in range(directions):
        gradient = gradients["weight_ih_l0" + "_reverse" * d][:, 0]
        np.testing.assert_array_equal(gradient == 0, scale[0, 0, d * width : (d + 1) * width] == 0)


@pytest.mark.kernels
@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid"])
def test_a_kept_unit_has_no_part_in_a_step_of_an_elman_layer(
    nonlinearity: str, isa: str, rng: np.random.Generator
) -> None:
    """Its value, which is none of the nonlinearity, has an infinite slope there."""
    spec = Spec("rnn", 3, 2 * LANES[isa, "float32"] + 3, zoneout=0.5, nonlinearity=nonlinearity)
    problem = make_problem(rng, spec, steps=1, batch=4)
    keep = reference.zoneout_keep(spec, 0, 1, 4, KEY)[0][0, :, 0] == 1
    assert keep.any()
    weights = {name: 0 * a if "weight_hh" in name else a for name, a in problem.parameters.items()}
    problem = dataclasses.replace(problem, parameters=weights)
    (_, _), (dx, dstate, gradients) = run(problem)
    problem = dataclasses.replace(problem, state=np.where(keep, np.float32(1e20), problem.state))
    (y, _), (dx_large, dstate_large, gradients_large) = run(problem)
    assert (y[0][keep] == np.float32(1e20)).all()
    assert_same_bits(dx_large, dx)
    assert_same_bits(dstate_large, dstate)
    assert_same_bits(gradients_large["weight_ih_l0"], gradients["weight_ih_l0"])


# ---------------------------------------------------------------------------------------------- promises


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_in_inference_a_batch_is_its_rows_and_pieces_apart(
    variant: str, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """The expectation of zoneout depends on no neighbour, and resets and cuts of T are ends of sequences."""
    spec = make_spec(variant, 5, 2 * LANES[isa, dtype] + 1, dtype=dtype, num_layers=2, **BOTH)
    problem = make_problem(rng, spec, steps=7, batch=11, lengths=True, reset=True)
    y, *_ = infer(problem)
    for row in range(problem.batch):
        here = slice(row, row + 1)
        for n, piece in enumerate(pieces(problem, row)):
            zero = n > 0 or bool(problem.reset[0, row])
            state = [np.where(zero, 0, s[:, here]).astype(dtype) for s in flat(problem.state)]
            alone = infer(
                problem, x=problem.x[piece, here], state=like_state(spec, state), lengths=None, reset=None
            )
            assert_same_bits(alone[0], y[piece, here], f"row {row}, steps {piece}")
    problem = make_problem(rng, spec, steps=23, batch=3, reset=True)
    packed = functional.pack(spec, problem.parameters)
    for cuts in (range(24), [0, 1, 7, 8, 20, 23]):
        for a, b in zip(in_cuts(problem, packed, cuts), infer(problem), strict=True):
            assert_same_bits(a, b, f"cut at {cuts}")


# How four threads divide the work, as explain() puts it: H, T, B, network and call.
THREADED: dict[str, tuple[int, int, int, dict[str, Any], dict[str, bool]]] = {
    "rows of the batch: enough for a full tile each": (130, 3, 64, {}, {}),
    "hidden units": (650, 3, 1, {}, {}),
    "both directions side by side; within each: rows": (
        130,
        4,
        37,
        {"bidirectional": True, "num_layers": 2},
        {"lengths": True, "reset": True},
    ),
    "both directions side by side; within each: hidden units": (330, 4, 3, {"bidirectional": True}, {}),
    "layers side by side": (60, 200, 1, {"num_layers": 2}, {}),
}


@pytest.mark.kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("split", THREADED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_and_checkpoints_change_nothing(
    variant: str, split: str, isa: str, rng: np.random.Generator
) -> None:
    """Every output and gradient, in inference y; a checkpoint draws the masks of its segments again."""
    hidden, steps, batch, options, masks = THREADED[split]
    spec = make_spec(variant, 70, hidden, **options, **BOTH)
    problem = make_problem(rng, spec, steps, batch, **masks)
    results = {}
    for threads in (1, 2, 3, 4):
        _core.set_num_threads(threads)
        results[threads] = arrays_of(run(problem)) | {"inferred": infer(problem)[0]}
        again = arrays_of(run(problem, checkpoint=1))
        for name, array in again.items():
            assert_same_bits(array, results[threads][name], f"{name} with a checkpoint")
    assert split in CPU.network(spec).explain(steps, batch, training=True, tokens=False)["split"]
    for threads in (2, 3, 4):
        for name, array in results[threads].items():
            assert_same_bits(array, results[1][name], f"{name} with {threads} threads")


@pytest.mark.kernels
@pytest.mark.parametrize("quantized", ["bfloat16", "int8"])
@pytest.mark.parametrize("variant", ["lstm", "lstm-full-proj", "gru", "gru-reset-before", "rnn-tanh"])
def test_quantised_networks_have_the_expectation_too(
    variant: str, quantized: str, isa: str, rng: np.random.Generator
) -> None:
    """One step is the mean of the state before it and of a step without zoneout; steps are one call."""
    spec = make_spec(variant, 5, 2 * LANES[isa, "float32"] + 1, zoneout=(0.3, 0.2))
    problem = make_problem(rng, spec, steps=5, batch=3, reset=True)
    packed = functional.pack(spec, problem.parameters, quantize=quantized)
    first = dataclasses.replace(problem, x=problem.x[:1], reset=None)
    _, state_n = functional.forward(spec, packed, first.x, first.state)
    plain = functional.pack(dataclasses.replace(spec, zoneout=0.0), problem.parameters, quantize=quantized)
    _, new = functional.forward(plain.spec, plain, first.x, first.state)
    for after, before, without, p in zip(
        flat(state_n), flat(problem.state), flat(new), spec.zoneout_of, strict=True
    ):
        assert_close(after, p * before.astype("float64") + (1 - p) * without, n_products=chain(spec, 1))
    y, whole = functional.forward(spec, packed, problem.x, problem.state, reset=problem.reset)
    for a, b in zip(in_cuts(problem, packed, range(6)), (y, *flat(whole)), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("cell", LAYERS)
def test_streams_have_the_expectation(cell: str, rng: np.random.Generator) -> None:
    """Step by step, some rows at a time, they are one call."""
    zoneout: Any = (0.4, 0.2) if cell == "lstm" else 0.4
    layer = LAYERS[cell](3, 5, num_layers=2, recurrent_dropout=0.5, zoneout=zoneout, seed=1).eval()
    x = rng.standard_normal((6, 4, 3), dtype="float32")
    y, state_n = layer(x)
    stream = layer.stream(4)
    for t in range(6):
        for rows in ([2, 0], [1, 3]):
            assert_same_bits(stream.step(x[t, rows], rows=np.array(rows)), y[t, rows])
    assert_equal(stream.state, state_n)


# -------------------------------------------------------------------------------- the layers' own affairs


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (fastrnn.LSTM(3, 5, zoneout=(0.1, 0.25)), "LSTM(3, 5, zoneout=(0.1, 0.25))"),
        (fastrnn.LSTM(3, 5, zoneout=[0.1, 0]), "LSTM(3, 5, zoneout=(0.1, 0.0))"),
        (
            fastrnn.GRU(3, 5, recurrent_dropout=0.5, zoneout=0.25),
            "GRU(3, 5, recurrent_dropout=0.5, zoneout=0.25)",
        ),
        (fastrnn.RNN(3, 5, recurrent_dropout=np.float32(0.5)), "RNN(3, 5, recurrent_dropout=0.5)"),
    ],
)
def test_copies_and_files_keep_the_options(
    layer: Any, text: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """And the place in the sequence of masks."""
    assert repr(layer) == text
    assert repr(type(layer)(3, 5)).endswith("(3, 5)")
    x = rng.standard_normal((4, 2, 3), dtype="float32")
    layer(x)
    layer.save(tmp_path / "layer.safetensors")
    others = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        fastrnn.load(tmp_path / "layer.safetensors"),
    ]
    expected = layer(x)
    for other in others:
        assert repr(other) == text
        assert (other.recurrent_dropout, other.zoneout) == (layer.recurrent_dropout, layer.zoneout)
        assert_equal(other(x), expected)


def test_a_number_and_a_pair_are_the_same_zoneout() -> None:
    """A number is that of h."""
    assert Spec("lstm", 3, 5, zoneout=0.25) == Spec("lstm", 3, 5, zoneout=(0.25, 0))
    assert Spec("lstm", 3, 5) == Spec("lstm", 3, 5, zoneout=(0, 0))
    assert fastrnn.LSTM(3, 5, zoneout=0.25).zoneout == (0.25, 0.0)
    assert fastrnn.GRU(3, 5, zoneout=0.25).zoneout == 0.25


def test_a_layer_agrees_with_the_functional_form(rng: np.random.Generator) -> None:
    layer = fastrnn.LSTM(3, 5, recurrent_dropout=0.5, zoneout=(0.3, 0.2), seed=7)
    spec = Spec("lstm", 3, 5, recurrent_dropout=0.5, zoneout=(0.3, 0.2))
    x = rng.standard_normal((4, 2, 3), dtype="float32")
    for call in range(2):
        y, state_n = layer(x)
        *expected, reserve = functional.forward_train(spec, layer.parameters, x, seed=7, call=call)
        assert_equal((y, state_n), tuple(expected))
        layer.zero_grad()
        assert_equal(layer.backward(y), functional.backward(spec, layer.parameters, reserve, y)[:2])


def test_explain_tells() -> None:
    x = np.zeros((5, 2, 3), "float32")
    layer = fastrnn.LSTM(3, 4, recurrent_dropout=0.25, zoneout=(0.1, 0.05))
    report = layer.explain(x)
    assert report["recurrent_dropout"] == "0.25: one mask on h for each row of a call, before W_hh"
    assert report["zoneout"] == "h 0.1, c 0.05: a mask for each step, drawn again in backward"
    report = layer.eval().explain(x)
    assert report["recurrent_dropout"] == "0.25: not in inference"
    assert report["zoneout"] == "h 0.1, c 0.05: the expectation, at each step"
    assert fastrnn.GRU(3, 4, zoneout=1).explain(x)["zoneout"].startswith("h 1: a mask")
    assert fastrnn.GRU(3, 4, zoneout=1e-9).explain(x)["zoneout"].startswith("h 1e-09: a mask")
    assert not {"zoneout", "recurrent_dropout"} & set(fastrnn.GRU(3, 4).explain(x))


@pytest.mark.parametrize(
    ("cell", "options", "error", "message"),
    [
        ("gru", {"recurrent_dropout": 1.5}, ValueError, "recurrent_dropout is 1.5; expected a probability"),
        ("rnn", {"recurrent_dropout": "a"}, TypeError, "recurrent_dropout is 'a' (str); expected a number"),
        ("lstm", {"zoneout": -0.5}, ValueError, "zoneout is -0.5; expected a probability from 0 to 1"),
        ("lstm", {"zoneout": True}, TypeError, "zoneout is True (bool); expected a number from 0 to 1"),
        ("lstm", {"zoneout": (0.5, 2)}, ValueError, "zoneout[1] (c) is 2; expected a probability"),
        ("lstm", {"zoneout": (0.5,)}, ValueError, "zoneout has 1 entries; expected one number, or the pair"),
        ("gru", {"zoneout": (0.5, 0.5)}, ValueError, "zoneout is (0.5, 0.5) for cell 'gru'; expected one"),
    ],
)
def test_what_is_no_probability(
    cell: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        LAYERS[cell](3, 4, **options)
