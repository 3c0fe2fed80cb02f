"""Do the initialisers write what their papers say, gate by gate, in every cell, layer and direction?"""

from __future__ import annotations

import math

import fastrnn
import numpy as np
import pytest
from fastrnn.training import Linear, initialisers

H = 6
LAYERS = {
    "lstm": lambda: fastrnn.LSTM(4, H, 2, bidirectional=True),
    "lstm with projection": lambda: fastrnn.LSTM(4, H, 2, proj_size=3),
    "lstm with diagonal peephole": lambda: fastrnn.LSTM(4, H, peephole="diagonal"),
    "lstm with full peephole": lambda: fastrnn.LSTM(4, H, peephole="full", dtype="float64"),
    "lstm without bias": lambda: fastrnn.LSTM(4, H, bias=False),
    "lstm cell": lambda: fastrnn.LSTMCell(4, H),
    "gru": lambda: fastrnn.GRU(4, H, 2, bidirectional=True),
    "gru reset before": lambda: fastrnn.GRU(4, H, reset_after=False),
    "gru cell": lambda: fastrnn.GRUCell(4, H),
    "rnn": lambda: fastrnn.RNN(4, H, 2, bidirectional=True),
    "rnn cell": lambda: fastrnn.RNNCell(4, H, nonlinearity="relu"),
}
RECURRENT = pytest.mark.parametrize("name", LAYERS)


def filled(layer, value=7.0):
    """Return the layer with every parameter at a value that no initialiser writes."""
    for parameter in layer.parameters.values():
        parameter[...] = value
    return layer


def gates(layer, kind):
    """Return (gate, its part) of every parameter of a kind, such as weight_hh, in layers and directions."""
    names = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "h"}[type(layer).__name__.removesuffix("Cell")]
    for name, parameter in layer.parameters.items():
        if name.startswith(kind):
            assert len(parameter) == len(names) * H
            for i, gate in enumerate(names):
                yield gate, parameter[i * H : (i + 1) * H]


@RECURRENT
def test_uniform(name):
    layer = filled(LAYERS[name]())
    initialisers.uniform(layer, seed=0)
    values = np.concatenate([p.ravel() for p in layer.parameters.values()])
    assert np.abs(values).max() <= 1 / math.sqrt(H)
    assert np.abs(values).max() > 0.8 / math.sqrt(H)
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(values.size)
    initialisers.uniform(layer, 0.01, seed=0)
    for parameter in layer.parameters.values():
        assert np.abs(parameter).max() <= 0.01


@RECURRENT
def test_glorot(name):
    layer = filled(LAYERS[name]())
    initialisers.glorot(layer, seed=0)
    for key, parameter in layer.parameters.items():
        if key.startswith("bias"):
            assert not parameter.any()
        elif parameter.ndim == 1:
            assert (parameter == 7).all()  # a diagonal is no matrix
        else:
            rows = min(H, len(parameter))
            bound = math.sqrt(6 / (rows + parameter.shape[1]))
            for i in range(0, len(parameter), rows):
                block = np.abs(parameter[i : i + rows])
                assert 0.5 * bound < block.max() <= bound


@RECURRENT
def test_orthogonal(name):
    layer = filled(LAYERS[name]())
    initialisers.orthogonal(layer, 0.5, seed=0)
    blocks = [block for _, block in gates(layer, "weight_hh")]
    for block in blocks:
        np.testing.assert_allclose(4 * block.T @ block, np.eye(block.shape[1]), atol=1e-6)
    assert len({block.tobytes() for block in blocks}) == len(blocks)
    for key, parameter in layer.parameters.items():
        if not key.startswith("weight_hh"):
            assert (parameter == 7).all()


@pytest.mark.parametrize("name", ["rnn", "rnn cell"])
def test_identity(name):
    layer = filled(LAYERS[name]())
    initialisers.identity(layer, 0.9)
    for _, block in gates(layer, "weight_hh"):
        np.testing.assert_array_equal(block, np.float32(0.9) * np.eye(H, dtype=np.float32))
    for key, parameter in layer.parameters.items():
        if key.startswith("bias"):
            assert not parameter.any()
        elif key.startswith("weight_ih"):
            assert (parameter == 7).all()


def test_an_irnn_keeps_its_state_without_input():
    layer = fastrnn.RNN(1, 5, nonlinearity="relu", seed=0)
    initialisers.identity(layer)
    h = np.random.default_rng(0).random((1, 2, 5), np.float32)
    _, h_n = layer(np.zeros((50, 2, 1), np.float32), h)
    np.testing.assert_array_equal(h_n, h)


@pytest.mark.parametrize("name", [name for name in LAYERS if "lstm" in name and "without" not in name])
def test_forget_gate_bias(name):
    layer = filled(LAYERS[name]())
    initialisers.forget_gate_bias(layer, 2.0)
    for kind, value in ("bias_ih", 2), ("bias_hh", 0):
        for gate, block in gates(layer, kind):
            assert (block == (value if gate == "f" else 7)).all()
    for key, parameter in layer.parameters.items():
        if not key.startswith("bias"):
            assert (parameter == 7).all()


@pytest.mark.parametrize("name", [name for name in LAYERS if "rnn" not in name and "without" not in name])
def test_chrono(name):
    layer = filled(LAYERS[name]())
    initialisers.chrono(layer, 200, seed=0)
    keeps = "f" if "lstm" in name else "z"
    parts = list(gates(layer, "bias_ih"))
    kept = np.concatenate([block for gate, block in parts if gate == keeps])
    assert (kept >= 0).all()
    assert (kept <= np.log(199)).all()
    assert kept.max() > 4  # log of something near the longest
    if keeps == "f":
        np.testing.assert_array_equal(np.concatenate([block for gate, block in parts if gate == "i"]), -kept)
    written = {keeps, "i"} if keeps == "f" else {keeps}
    for gate, block in gates(layer, "bias_hh"):
        assert (block == (0 if gate in written else 7)).all()
    for gate, block in parts:
        assert gate in written or (block == 7).all()


def test_linear():
    readout = Linear(9, 4)
    initialisers.uniform(readout, seed=0)
    assert 0.2 < np.abs(readout.parameters["weight"]).max() <= 1 / 3
    initialisers.glorot(readout, seed=0)
    assert not readout.parameters["bias"].any()
    assert 0.5 < np.abs(readout.parameters["weight"]).max() <= math.sqrt(6 / 13)


@pytest.mark.parametrize(
    "draw",
    [
        initialisers.uniform,
        initialisers.glorot,
        initialisers.orthogonal,
        lambda layer, seed: initialisers.chrono(layer, 9, seed=seed),
    ],
)
def test_seeds(draw):
    layers = [fastrnn.GRU(2, 3, seed=0) for _ in range(3)]
    for layer, seed in zip(layers, (1, 1, 2), strict=True):
        draw(layer, seed=seed)
    first, same, other = ([p.copy() for p in layer.parameters.values()] for layer in layers)
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


LSTM = fastrnn.LSTM(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: initialisers.uniform(3), TypeError, "layer is 3; expected a layer, a cell or a"),
        (
            lambda: initialisers.uniform(LSTM, 0.0),
            ValueError,
            "bound is 0.0; expected a finite number",
        ),
        (
            lambda: initialisers.uniform(LSTM, seed=-1),
            ValueError,
            "seed is -1; expected an integer of at least 0",
        ),
        (
            lambda: initialisers.glorot(LSTM.eval()),
            RuntimeError,
            r"LSTM\(2, 3\), is in eval mode",
        ),
        (
            lambda: initialisers.orthogonal(Linear(1, 1)),
            TypeError,
            "layer is Linear.*; expected a layer or",
        ),
        (
            lambda: initialisers.orthogonal(LSTM, -1.0),
            ValueError,
            "gain is -1.0; expected a finite number",
        ),
        (lambda: initialisers.identity(LSTM), TypeError, r"layer is LSTM\(2, 3\); expected an RNN"),
        (
            lambda: initialisers.identity(fastrnn.RNN(1, 1), math.inf),
            ValueError,
            "scale is inf; expected",
        ),
        (lambda: initialisers.forget_gate_bias(fastrnn.GRU(1, 1)), TypeError, "GRU.*; expected an LSTM"),
        (
            lambda: initialisers.forget_gate_bias(fastrnn.LSTM(1, 1, bias=False)),
            ValueError,
            "bias=False.*; expected one with biases",
        ),
        (
            lambda: initialisers.forget_gate_bias(LSTM, math.nan),
            ValueError,
            "value is nan; expected a finite",
        ),
        (lambda: initialisers.chrono(fastrnn.RNN(1, 1), 9), TypeError, "RNN.*; expected an LSTM or a GRU"),
        (
            lambda: initialisers.chrono(LSTM, 2),
            ValueError,
            "longest is 2; expected a finite number greater than 2",
        ),
        (
            lambda: initialisers.chrono(fastrnn.GRU(1, 1, bias=False), 9),
            ValueError,
            "bias=False.*; expected one with biases",
        ),
    ],
)
def test_bad_input_changes_nothing(call, error, message):
    LSTM.train()
    before = LSTM.state_dict()
    with pytest.raises(error, match=message):
        call()
    for name, array in LSTM.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
