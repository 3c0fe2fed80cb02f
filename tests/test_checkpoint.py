"""Does training that keeps only c every k steps give the bits of training that keeps all, in less memory?"""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import _core, functional
from fastrnn._backends import CPU
from fastrnn.layouts import DTYPES, Spec
from nested import assert_equal
from problems import Problem, arrays_of, make_problem
from shapes import LANES, VARIANTS, make_spec
from tolerances import assert_same_bits

KINDS: dict[str, Any] = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}

# Options of a network and of a call, together and apart.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    "plain": ({}, {}),
    "no bias, no state": ({"bias": False}, {"state": False}),
    "lengths, both directions": ({"bidirectional": True}, {"lengths": True}),
    "reset, both directions": ({"bidirectional": True}, {"reset": True}),
    "tokens, layers, dropout": ({"num_layers": 3, "dropout": 0.5}, {"tokens": True, "lengths": True}),
    "everything": (
        {"num_layers": 2, "dropout": 0.5, "bidirectional": True},
        {"lengths": True, "reset": True},
    ),
}


def run(problem: Problem, checkpoint: int | None) -> tuple[Any, functional.Reserve]:
    """Return ((y, state_n), (dx, dstate, gradients)) of the kernels, and the reserve."""
    spec, parameters = problem.spec, problem.parameters
    *out, reserve = functional.forward_train(
        spec, parameters, problem.x, problem.state, **problem.options, seed=7, call=11, checkpoint=checkpoint
    )
    return (out, functional.backward(spec, parameters, reserve, problem.dy, problem.dstate_n)), reserve


def saved(spec: Spec, steps: int, batch: int, checkpoint: int) -> str:
    """Return what explain() says is saved."""
    return str(CPU.network(spec).explain(steps, batch, True, False, checkpoint)["saved"])


def segment(spec: Spec, steps: int, batch: int, checkpoint: int = 1) -> int:
    """Return the steps of a segment, which are those of a block of backward for a checkpoint of one step."""
    found = re.search(r"(\d+) steps at a time", saved(spec, steps, batch, checkpoint))
    return int(found[1]) if found else 0


def expected_bytes(spec: Spec, steps: int, batch: int, checkpoint: int) -> int:
    """Return what a reserve holds: c at the ends of segments, and the outputs between layers."""
    item = np.dtype(spec.dtype).itemsize
    kept = (spec.num_layers - 1) * align(steps * batch * spec.output_size * item)
    if spec.cell == "lstm":
        parts = spec.num_layers * spec.num_directions
        ends = steps // segment(spec, steps, batch, checkpoint)
        kept += parts * align(ends * batch * spec.hidden_size * item)
    return kept


def align(count: int) -> int:
    """Round up to a cache line, as every array of a reserve is."""
    return -(-count // 64) * 64


def check(problem: Problem) -> None:
    """Compare checkpoints around a block's edge and T with none: every result and the reserve's size."""
    spec, steps, batch = problem.spec, problem.steps, problem.batch
    wanted, reserve = run(problem, None)
    plain = reserve.nbytes
    block = segment(spec, steps, batch)
    if spec.cell == "rnn":
        assert block == 0
        block = 8
    else:
        assert 1 < block < steps / 2, "too few steps for several segments"
    for checkpoint in sorted({1, block - 1, block, block + 1, steps, 3 * steps}):
        got, reserve = run(problem, checkpoint)
        for name, array in arrays_of(got).items():
            if array is not None:
                assert_same_bits(array, arrays_of(wanted)[name], f"{name} with checkpoint={checkpoint}")
        assert reserve.nbytes == expected_bytes(spec, steps, batch, checkpoint)
        assert reserve.nbytes < plain or spec.cell == "rnn"


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_network_has_the_same_bits(
    variant: str, options: str, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """Outputs, dx, dstate and gradients, over segments that divide T and ones that do not."""
    network, call = OPTIONS[options]
    spec = make_spec(variant, 5, LANES[isa, dtype] + 1, dtype=dtype, **network)
    check(make_problem(rng, spec, steps=21, batch=64, **call))


# How so many threads divide the work: H, T, B, directions and threads.
SPLITS: dict[str, tuple[int, int, int, bool, int]] = {
    "rows of the batch: enough for a full tile each": (33, 21, 64, True, 4),
    "rows of the batch: a step is too short for a barrier": (20, 400, 3, True, 4),
    "hidden units": (300, 350, 3, False, 2),
    # Without segments these layers are side by side.
    "rows of the batch": (32, 400, 3, False, 2),
}


@pytest.mark.kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("rnn")])
def test_threads_change_nothing(variant: str, split: str, isa: str, rng: np.random.Generator) -> None:
    """Segments are computed again by rows and by units, and any threads equal one."""
    hidden, steps, batch, bidirectional, threads = SPLITS[split]
    spec = make_spec(variant, 30, hidden, num_layers=2, dropout=0.5, bidirectional=bidirectional)
    problem = make_problem(rng, spec, steps, batch, lengths=True, reset=True)
    _core.set_num_threads(1)
    alone, _ = run(problem, 1)
    _core.set_num_threads(threads)

    def explained(checkpoint: int) -> str:
        report = CPU.network(spec).explain(steps, batch, training=True, tokens=False, checkpoint=checkpoint)
        return report["split"]

    assert split in explained(1)
    assert "layers side by side" not in explained(1)
    assert ("layers side by side" in explained(0)) == (split == "rows of the batch")
    check(problem)
    together, _ = run(problem, 1)
    for name, array in arrays_of(together).items():
        assert_same_bits(array, arrays_of(alone)[name], name)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_take_a_checkpoint(kind: str, rng: np.random.Generator) -> None:
    """Gradients add up as without one, explain() tells, and train() alone goes back to keeping everything."""
    x = rng.standard_normal((50, 40, 3)).astype("float32")
    layer = KINDS[kind](3, 5, num_layers=2, dropout=0.3, bidirectional=True, seed=1)
    plain = copy.deepcopy(layer)
    keeps_all = plain.explain(x)["saved"]
    assert "saved" not in copy.deepcopy(layer).eval().explain(x)
    assert layer.train(checkpoint=20) is layer
    for _ in range(2):
        y, state_n = plain(x)
        assert_equal(layer(x), (y, state_n))
        assert_equal(layer.backward(y, state_n), plain.backward(y, state_n))
    assert_equal(layer.gradients, plain.gradients)

    block = segment(layer._spec, 50, 40)
    expected = {
        "lstm": "c every 21 steps; backward computes the gates again, 21 steps at a time",
        "gru": f"nothing beside y; backward computes the gates again, {block} steps at a time",
        "rnn": "nothing beside y",
    }[kind]
    assert layer.explain(x)["saved"] == expected
    assert layer.train().explain(x)["saved"] == keeps_all


def test_copies_keep_the_checkpoint(rng: np.random.Generator) -> None:
    """Copies, pickles and a change of dtype do; a layer that was in eval mode asks again."""
    x = rng.standard_normal((50, 40, 3)).astype("float32")
    layer = fastrnn.LSTM(3, 5).train(checkpoint=13)
    expected = layer.explain(x)["saved"]
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.explain(x)["saved"] == expected
    assert layer.to("cpu", "float64").explain(x.astype("float64"))["saved"].startswith("c every")
    assert layer.eval().train().explain(x.astype("float64"))["saved"] == "gates and c of every step"


def test_a_call_made_before_is_gone_back_through(rng: np.random.Generator) -> None:
    """train() with another checkpoint changes the next call, not the last one."""
    x = rng.standard_normal((30, 40, 3)).astype("float32")
    layers = [fastrnn.GRU(3, 5, seed=2) for _ in range(2)]
    for layer in layers:
        y, _ = layer(x)
    layers[0].train(checkpoint=7)
    assert_equal(*(layer.backward(np.ones_like(y)) for layer in layers))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"checkpoint": 0}, ValueError, "checkpoint is 0; expected an integer of at least 1"),
        ({"checkpoint": -3}, ValueError, "checkpoint is -3; expected an integer of at least 1"),
        ({"checkpoint": 2.0}, TypeError, "checkpoint is 2.0 (float); expected an integer"),
        ({"checkpoint": True}, TypeError, "checkpoint is True (bool); expected an integer"),
        ({"checkpoint": 2**63}, ValueError, f"expected an integer of at most {2**63 - 1}"),
        (
            {"mode": False, "checkpoint": 4},
            ValueError,
            "checkpoint is 4 with mode=False; expected None in eval mode",
        ),
    ],
)
def test_what_is_no_checkpoint(arguments: Any, error: type[Exception], message: str) -> None:
    """The error names it, and the mode stays."""
    layer = fastrnn.GRU(2, 3).train(checkpoint=5)
    with pytest.raises(error, match=re.escape(message)):
        layer.train(**arguments)
    assert layer.training
    assert "again" in layer.explain(np.zeros((4, 1, 2), "float32"))["saved"]
    if arguments.get("mode", True):
        spec = Spec("gru", 2, 3)
        zeros = {name: np.zeros(shape, "float32") for name, shape in spec.parameter_shapes().items()}
        with pytest.raises(error, match=re.escape(message)):
            functional.forward_train(spec, zeros, np.zeros((4, 1, 2), "float32"), **arguments)


@pytest.mark.cuda
def test_a_device_has_none() -> None:
    """The error says so before anything changes."""
    message = r"checkpoint is 4, which device 'cuda:0' does not have; expected None, or device 'cpu'"
    try:
        layer = fastrnn.LSTM(2, 3, device="cuda")
    except RuntimeError as error:
        pytest.skip(str(error))
    with pytest.raises(NotImplementedError, match=message):
        layer.train(checkpoint=4)
    layer(np.ones((3, 1, 2), "float32"))
    layer.backward()
    here = fastrnn.LSTM(2, 3).train(checkpoint=4)
    with pytest.raises(NotImplementedError, match=message):
        here.to("cuda")
    assert here.device == "cpu"


PROGRAM = """
import sys, fastrnn, numpy as np
fastrnn.set_num_threads(1)
checkpoint = int(sys.argv[2]) or None
layer = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU}[sys.argv[1]](8, 64, seed=0).train(checkpoint=checkpoint)
y, _ = layer(np.ones((20_000, 8, 8), "float32"))
layer.backward(np.ones_like(y))
print(layer._saved.nbytes)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_process_saves_seven_eighths_of_the_reserve(kind: str) -> None:
    """The most memory it has at any time, scratch included: at least so much less than with all gates."""

    def measure(checkpoint: int) -> tuple[int, int]:
        command = [sys.executable, "-c", PROGRAM, kind, str(checkpoint)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return int(output[0]), int(output[1]) * 1024

    (plain, plain_peak), (kept, kept_peak) = measure(0), measure(500)
    assert plain == 20_000 * 8 * 64 * 4 * {"lstm": 5, "gru": 3}[kind]
    assert kept <= plain / 8
    assert plain_peak - kept_peak >= plain * 7 / 8
