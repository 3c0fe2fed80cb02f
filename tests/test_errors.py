"""Is every bad argument refused by name, with what came and what was expected, before anything changes?"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import _arrays, _core, functional, reference
from fastrnn.functional import Spec
from nested import arrays, assert_equal

T, B, IN, H = 5, 3, 4, 6


def ones(*shape: int, dtype: Any = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


def locked(*shape: int) -> np.ndarray:
    array = ones(*shape)
    array.flags.writeable = False
    return array


class Unreadable:
    """An array of a library that cannot hand it out."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __dlpack_device__(self) -> Any:
        raise self.error

    __dlpack__ = __dlpack_device__


class World:
    """One of each kind of object, every one with something to lose."""

    def __init__(self) -> None:
        self.gru = fastrnn.GRU(IN, H, seed=1)
        self.lstm = fastrnn.LSTM(IN, H, batch_first=True, seed=2)
        self.cell = fastrnn.LSTMCell(IN, H, seed=3)
        self.idle = fastrnn.GRU(IN, H, dropout=0.5, num_layers=2, seed=4)
        self.still = fastrnn.GRU(IN, H, seed=5).eval()
        self.both = fastrnn.GRU(IN, H, bidirectional=True, seed=6).eval()
        for module in (self.gru, self.lstm):
            module(ones(4, 2, IN))
            module.backward(module(ones(4, 2, IN))[0])
        self.gru(ones(T, B, IN))
        self.lstm(ones(B, T, IN))
        self.cell(ones(B, IN))
        self.stream = self.still.stream(batch=B)
        self.stream.step(ones(B, IN))
        self.spec = Spec("gru", IN, H)
        self.parameters = self.gru.state_dict()
        self.packed = functional.pack(self.spec, self.parameters)
        self.reserve = functional.forward_train(self.spec, self.packed, ones(T, B, IN))[2]
        self.y, self.h = ones(T, B, H), ones(1, B, H)
        self.dx = ones(T, B, IN)

    def contents(self) -> Any:
        """Copies of everything that a call could change."""
        modules = (self.gru, self.lstm, self.cell, self.idle, self.still, self.both)
        return tuple(
            [array.copy() for array in arrays(tuple((m.parameters, m.gradients) for m in modules))]
            + [
                array.copy()
                for array in arrays((self.stream.state, self.parameters, self.y, self.h, self.dx))
            ]
        )

    def forward(
        self, x: Any = None, state: Any = None, weights: Any = None, spec: Any = None, **options: Any
    ) -> Any:
        return functional.forward(
            self.spec if spec is None else spec,
            self.packed if weights is None else weights,
            ones(T, B, IN) if x is None else x,
            state,
            **options,
        )

    def backward(self, dy: Any = None, dstate_n: Any = None, **options: Any) -> Any:
        return functional.backward(self.spec, self.parameters, self.reserve, dy, dstate_n, **options)


@pytest.fixture
def world() -> Iterator[World]:
    """A world that must be as it was when the test is over, with its calls still good to go back through."""
    world, twin = World(), World()
    before = world.contents()
    yield world
    assert_equal(world.contents(), before)
    dy = ones(T, B, H)
    assert_equal(world.gru.backward(dy), twin.gru.backward(dy))
    assert_equal(world.lstm.backward(dy.swapaxes(0, 1)), twin.lstm.backward(dy.swapaxes(0, 1)))
    assert_equal(world.cell.backward((dy[0], None)), twin.cell.backward((dy[0], None)))
    assert_equal(world.backward(dy), twin.backward(dy))
    assert_equal(world.idle(dy[..., :IN]), twin.idle(dy[..., :IN]))  # no dropout mask was used up
    assert_equal(world.stream.step(ones(B, IN)), twin.stream.step(ones(B, IN)))


Bad = tuple[Callable[[World], Any], type[Exception], str]


def table(*cases: Bad) -> Any:
    return pytest.mark.parametrize(("call", "error", "message"), cases, ids=[case[2] for case in cases])


def refuse(world: World, call: Callable[[World], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(world)


# ------------------------------------------------------------------------------------ constructors


@table(
    (lambda w: Spec("qrnn", 3, 4), ValueError, "cell is 'qrnn'; expected one of 'lstm', 'gru', 'rnn'"),
    (lambda w: Spec(1, 3, 4), TypeError, "cell is 1 (int); expected one of 'lstm', 'gru', 'rnn'"),
    (
        lambda w: Spec("gru", 3, 4, peephole="some"),
        ValueError,
        "peephole is 'some'; expected one of 'none', 'd",
    ),
    (
        lambda w: Spec("gru", 3, 4, proj_size=2),
        ValueError,
        "proj_size is 2 for cell 'gru'; only 'lstm' has one",
    ),
    (
        lambda w: Spec("gru", 3, 4, peephole="full"),
        ValueError,
        "peephole is 'full' for cell 'gru'; only 'lstm'",
    ),
    (lambda w: Spec("rnn", 3, 4, reset_after=False), ValueError, "reset_after is False for cell 'rnn'; only"),
    (lambda w: Spec("gru", 3, 4, nonlinearity="relu"), ValueError, "nonlinearity is 'relu' for cell 'gru'"),
    (lambda w: fastrnn.GRU(0, 4), ValueError, "input_size is 0; expected an integer of at least 1"),
    (lambda w: fastrnn.GRU(3, -4), ValueError, "hidden_size is -4; expected an integer of at least 1"),
    (lambda w: fastrnn.GRU(2**80, 4), ValueError, "expected an integer of at most 2147483647"),
    (
        lambda w: fastrnn.LSTM(2**31 - 1, 2**31 - 1),
        ValueError,
        "input_size is 2147483647 and hidden_size is 2147483647; expected weights of at most",
    ),
    (lambda w: fastrnn.GRU(3, 4, 0), ValueError, "num_layers is 0; expected an integer of at least 1"),
    (lambda w: fastrnn.GRU(3.0, 4), TypeError, "input_size is 3.0 (float); expected an integer"),
    (lambda w: fastrnn.GRU(3, True), TypeError, "hidden_size is True (bool); expected an integer"),
    (lambda w: fastrnn.GRU("3", 4), TypeError, "input_size is '3' (str); expected an integer"),
    (lambda w: fastrnn.GRU(3, 4, bias=1), TypeError, "bias is 1 (int); expected True or False"),
    (
        lambda w: fastrnn.GRU(3, 4, batch_first=None),
        TypeError,
        "batch_first is None (NoneType); expected True",
    ),
    (
        lambda w: fastrnn.GRU(3, 4, bidirectional="no"),
        TypeError,
        "bidirectional is 'no' (str); expected True",
    ),
    (
        lambda w: fastrnn.GRU(3, 4, reset_after=0),
        TypeError,
        "reset_after is 0 (int); expected True or False",
    ),
    (
        lambda w: fastrnn.GRU(3, 4, dropout=1.5),
        ValueError,
        "dropout is 1.5; expected a probability from 0 to 1",
    ),
    (lambda w: fastrnn.GRU(3, 4, dropout=-0.1), ValueError, "dropout is -0.1; expected a probability"),
    (lambda w: fastrnn.GRU(3, 4, dropout=float("nan")), ValueError, "dropout is nan; expected a probability"),
    (lambda w: fastrnn.GRU(3, 4, dropout=True), TypeError, "dropout is True (bool); expected a number"),
    (lambda w: fastrnn.GRU(3, 4, dropout="0.5"), TypeError, "dropout is '0.5' (str); expected a number"),
    (
        lambda w: fastrnn.GRU(3, 4, dtype="float16"),
        TypeError,
        "dtype is 'float16'; expected 'float32' or 'flo",
    ),
    (lambda w: fastrnn.GRU(3, 4, dtype=">f4"), TypeError, "dtype is '>f4'; expected 'float32' or 'float64'"),
    (lambda w: fastrnn.GRU(3, 4, dtype=None), TypeError, "dtype is None; expected 'float32' or 'float64'"),
    (lambda w: fastrnn.GRU(3, 4, dtype="single?"), TypeError, "dtype is 'single?'; expected 'float32' or"),
    (lambda w: fastrnn.GRU(3, 4, device="cuda:9"), RuntimeError, "device='cuda:9' is not available: "),
    (
        lambda w: fastrnn.GRU(3, 4, device="cuda:x"),
        ValueError,
        "device is 'cuda:x'; expected 'cpu' or 'cuda'",
    ),
    (lambda w: fastrnn.GRU(3, 4, device="tpu"), ValueError, "device is 'tpu'; expected 'cpu' or 'cuda'"),
    (lambda w: fastrnn.GRU(3, 4, device=0), TypeError, "device is 0 (int); expected 'cpu'"),
    (lambda w: fastrnn.GRU(3, 4, seed=-1), ValueError, "seed is -1; expected an integer of at least 0"),
    (
        lambda w: fastrnn.GRU(3, 4, seed=2**64),
        ValueError,
        "seed is 18446744073709551616; expected an integer of at most",
    ),
    (lambda w: fastrnn.GRU(3, 4, seed=1.0), TypeError, "seed is 1.0 (float); expected an integer"),
    (
        lambda w: fastrnn.LSTM(3, 4, proj_size=4),
        ValueError,
        "proj_size is 4; expected less than hidden_size = 4",
    ),
    (
        lambda w: fastrnn.LSTM(3, 4, proj_size=-1),
        ValueError,
        "proj_size is -1; expected an integer of at least 0",
    ),
    (
        lambda w: fastrnn.LSTM(3, 4, peephole=True),
        ValueError,
        "peephole is True; expected False, 'diagonal' or",
    ),
    (
        lambda w: fastrnn.LSTM(3, 4, peephole="none"),
        ValueError,
        "peephole is 'none'; expected False, 'diagonal'",
    ),
    (
        lambda w: fastrnn.LSTM(3, 4, peephole=1),
        TypeError,
        "peephole is 1; expected False, 'diagonal' or 'full'",
    ),
    (
        lambda w: fastrnn.LSTM(3, 4, peephole=np.array([1, 2])),
        TypeError,
        "peephole is array([1, 2]); expected False, 'diagonal' or 'full'",
    ),
    (
        lambda w: fastrnn.RNN(3, 4, nonlinearity="gelu"),
        ValueError,
        "nonlinearity is 'gelu'; expected one of 'tanh'",
    ),
    (lambda w: fastrnn.RNN(3, 4, 1, True), TypeError, "nonlinearity is True (bool); expected one of 'tanh'"),
    (lambda w: fastrnn.RNNCell(3, 0), ValueError, "hidden_size is 0; expected an integer of at least 1"),
    (lambda w: fastrnn.GRUCell(3, 4, device="cuda:9"), RuntimeError, "device='cuda:9' is not available"),
    (lambda w: fastrnn.LSTMCell(3, 4, zoneout=0.1), TypeError, "unexpected keyword argument 'zoneout'"),
    (lambda w: fastrnn.LSTMCell(3, 4, dtype=int), TypeError, "expected 'float32' or 'float64'"),
)
def test_constructors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(None)


# ------------------------------------------------------------------------------------------- calls


@table(
    # x
    (lambda w: w.gru([[1.0]]), TypeError, "x has type list; expected an array, as from np.asarray(x)"),
    (lambda w: w.gru(None), TypeError, "x has type NoneType; expected an array"),
    (
        lambda w: w.gru([ones(5, IN), ones(3, IN)]),
        TypeError,
        "x is a list of arrays; expected one array: stack them, and pad sequences of different lengths",
    ),
    (
        lambda w: w.stream.run((ones(5, IN),)),
        TypeError,
        "x is a tuple of arrays; expected one array: stack them, and pad",
    ),
    (lambda w: w.gru(np.float32(1)), TypeError, "x has type float32; expected an array"),
    (lambda w: w.gru(np.ndarray), TypeError, "x has type type; expected an array"),
    (
        lambda w: w.gru(Unreadable(KeyError("gone"))),
        TypeError,
        "x (Unreadable) cannot be taken by DLPack: 'gone'",
    ),
    (
        lambda w: w.gru(Unreadable(RuntimeError("gone"))),
        TypeError,
        "x (Unreadable) cannot be taken by DLPack: gone",
    ),
    (lambda w: w.gru(np.ma.ones((T, B, IN))), TypeError, "x is a masked array, whose mask would be lost"),
    (
        lambda w: w.gru(ones(T, B, IN, dtype="float64")),
        TypeError,
        "x is float64; expected float32: convert it with x.astype('float32'), or choose dtype=",
    ),
    (lambda w: w.gru(ones(T, B, IN, dtype="float16")), TypeError, "x is float16; expected float32"),
    (lambda w: w.gru(ones(T, B, IN, dtype=complex)), TypeError, "x is complex128; expected float32"),
    (lambda w: w.gru(ones(T, B, IN, dtype=bool)), TypeError, "x is bool; expected float32"),
    (lambda w: w.gru(ones(T, B, IN).astype(object)), TypeError, "x is object; expected float32"),
    (lambda w: w.gru(np.full((T, B), "a")), TypeError, "x is <U1; expected float32"),
    (
        lambda w: w.gru(ones(IN)),
        ValueError,
        "x has shape (4,); expected (T, B, I) = (T, B, 4) or (T, I) = (T, 4)",
    ),
    (
        lambda w: w.lstm(ones(1, 2, 3, 4)),
        ValueError,
        "x has shape (1, 2, 3, 4); expected (B, T, I) = (B, T, 4) or",
    ),
    (lambda w: w.gru(ones(T, B, 7)), ValueError, "x has shape (5, 3, 7); expected (T, B, I) = (T, B, 4)"),
    (lambda w: w.gru(ones(T, 7)), ValueError, "x has shape (5, 7); expected (T, I) = (T, 4)"),
    (
        lambda w: w.gru(ones(T, B, IN, dtype=int)),
        ValueError,
        "x has shape (5, 3, 4); expected (T, B) or (T,), as int64 stands for tokens; convert features to",
    ),
    (
        lambda w: w.gru(ones(0, B, IN)),
        ValueError,
        "x has shape (0, 3, 4); expected at least one step (T >= 1)",
    ),
    (
        lambda w: w.lstm(ones(B, 0, IN)),
        ValueError,
        "x has shape (3, 0, 4); expected at least one step (T >= 1)",
    ),
    (lambda w: w.gru(np.array([[0, IN]])), ValueError, "x holds the token 4; expected tokens from 0 to 3"),
    (lambda w: w.gru(np.array([-1, 0])), ValueError, "x holds the token -1; expected tokens from 0 to 3"),
    (lambda w: w.gru(np.array([2**64 - 1], "u8")), ValueError, "x holds the token 18446744073709551615"),
    (lambda w: w.still(ones(T, B, 7)), ValueError, "x has shape (5, 3, 7)"),
    (lambda w: w.idle(ones(T, B, 7)), ValueError, "x has shape (5, 3, 7); expected (T, B, I) = (T, B, 4)"),
    # state
    (lambda w: w.gru(ones(T, B, IN), [0.0]), TypeError, "state has type list; expected one array h"),
    (lambda w: w.gru(ones(T, B, IN), (w.h, w.h)), TypeError, "state has type tuple; expected one array h"),
    (lambda w: w.gru(ones(T, B, IN), 0), TypeError, "state has type int; expected an array"),
    (lambda w: w.gru(ones(T, B, IN), w.h.astype("float64")), TypeError, "state is float64; expected float32"),
    (
        lambda w: w.lstm(ones(B, T, IN), (w.h, w.h.astype("float64"))),
        TypeError,
        "state[1] (c) is float64; expected float32: convert it with state[1].astype('float32'), or",
    ),
    (
        lambda w: w.gru(ones(T, B, IN), ones(B, H)),
        ValueError,
        "state has shape (3, 6); expected (L*D, B, H) = (1, 3, 6)",
    ),
    (lambda w: w.gru(ones(T, B, IN), ones(1, 2, H)), ValueError, "state has shape (1, 2, 6); expected"),
    (lambda w: w.gru(ones(T, IN), w.h), ValueError, "state has shape (1, 3, 6); expected (L*D, H) = (1, 6)"),
    (lambda w: w.lstm(ones(B, T, IN), w.h), TypeError, "state has type ndarray; expected the pair (h, c)"),
    (lambda w: w.lstm(ones(B, T, IN), (w.h,)), ValueError, "state has 1 entries; expected the pair (h, c)"),
    (
        lambda w: w.lstm(ones(B, T, IN), (w.h, None)),
        TypeError,
        "state[1] (c) has type NoneType; expected an array",
    ),
    (
        lambda w: w.lstm(ones(B, T, IN), (w.h, ones(1, B, 7))),
        ValueError,
        "state[1] (c) has shape (1, 3, 7); expected (L*D, B, H) = (1, 3, 6)",
    ),
    # lengths
    (lambda w: w.gru(ones(T, B, IN), lengths=3), TypeError, "lengths has type int; expected an array"),
    (lambda w: w.gru(ones(T, B, IN), lengths=[1.0] * 3), TypeError, "lengths is float64; expected integers"),
    (lambda w: w.gru(ones(T, B, IN), lengths=[True] * 3), TypeError, "lengths is bool; expected integers"),
    (
        lambda w: w.gru(ones(T, B, IN), lengths=[True, 5, 5]),
        TypeError,
        "lengths holds a bool beside numbers; expected integers",
    ),
    (
        lambda w: w.gru(np.array([[0, 3], [4, -1]]), lengths=[2, 1]),
        ValueError,
        "x holds the token 4; expected tokens from 0 to 3",
    ),
    (
        lambda w: w.gru(ones(T, B, IN), lengths=[[1], [1, 2]]),
        TypeError,
        "lengths has type list that makes no array",
    ),
    (
        lambda w: w.gru(ones(T, B, IN), lengths=[5, 5]),
        ValueError,
        "lengths has shape (2,); expected (B,) = (3,)",
    ),
    (
        lambda w: w.gru(ones(T, B, IN), lengths=[1, 2, 6]),
        ValueError,
        "lengths[2] is 6; expected from 0 to T = 5",
    ),
    (
        lambda w: w.gru(ones(T, B, IN), lengths=[1, -1, 6]),
        ValueError,
        "lengths[1] is -1; expected from 0 to T = 5",
    ),
    (lambda w: w.gru(ones(T, IN), lengths=6), ValueError, "lengths[0] is 6; expected from 0 to T = 5"),
    # reset
    (
        lambda w: w.gru(ones(T, B, IN), reset=[True]),
        ValueError,
        "reset has shape (1,); expected (T, B) = (5, 3)",
    ),
    (lambda w: w.gru(ones(T, B, IN), reset=[[1] * B] * T), TypeError, "reset is int64; expected bool"),
    (lambda w: w.gru(ones(T, B, IN), reset="no"), TypeError, "reset has type str; expected an array"),
    (
        lambda w: w.gru(ones(T, B, IN), reset=ones(T, B, dtype=int)),
        TypeError,
        "reset is int64; expected bool",
    ),
    (
        lambda w: w.gru(ones(T, B, IN), reset=ones(B, T, dtype=bool)),
        ValueError,
        "reset has shape (3, 5); expected (T, B) = (5, 3)",
    ),
    (
        lambda w: w.lstm(ones(B, T, IN), reset=ones(T, B, dtype=bool)),
        ValueError,
        "reset has shape (5, 3); expected (B, T) = (3, 5)",
    ),
    (lambda w: w.gru(ones(T, IN), reset=ones(T, 1, dtype=bool)), ValueError, "expected (T,) = (5,)"),
    # cells
    (
        lambda w: w.cell(ones(T, B, IN)),
        ValueError,
        "x has shape (5, 3, 4); expected (B, I) = (B, 4) or (I,) = (4,)",
    ),
    (lambda w: w.cell(ones(B, 7)), ValueError, "x has shape (3, 7); expected (B, I) = (B, 4)"),
    (
        lambda w: w.cell(ones(B, IN), ones(B, H)),
        TypeError,
        "state has type ndarray; expected the pair (h, c)",
    ),
    (
        lambda w: w.cell(ones(B, IN), (ones(B, H), ones(H))),
        ValueError,
        "state[1] (c) has shape (6,); expected (B, H) = (3, 6)",
    ),
    (lambda w: w.cell(ones(B, IN), lengths=[1]), TypeError, "lengths"),
    # explain
    (lambda w: w.gru.explain([1]), TypeError, "x has type list; expected an array"),
    (
        lambda w: w.gru.explain(ones(T, B, 7)),
        ValueError,
        "x has shape (5, 3, 7); expected (T, B, I) = (T, B, 4)",
    ),
)
def test_calls(world: World, call: Any, error: type[Exception], message: str) -> None:
    refuse(world, call, error, message)


@table(
    (lambda w: w.gru.backward([1.0]), TypeError, "dy has type list; expected an array"),
    (lambda w: w.gru.backward(ones(T, B, H, dtype=float)), TypeError, "dy is float64; expected float32"),
    (lambda w: w.gru.backward(ones(T, B, H, dtype=int)), TypeError, "dy is int64; expected float32"),
    (
        lambda w: w.gru.backward(ones(B, T, H)),
        ValueError,
        "dy has shape (3, 5, 6); expected (T, B, D*R) = (5, 3, 6)",
    ),
    (
        lambda w: w.lstm.backward(ones(T, B, H)),
        ValueError,
        "dy has shape (5, 3, 6); expected (B, T, D*R) = (3, 5, 6)",
    ),
    (
        lambda w: w.gru.backward(None, ones(1, 2, H)),
        ValueError,
        "dstate_n has shape (1, 2, 6); expected (L*D, B, H)",
    ),
    (lambda w: w.gru.backward(None, (w.h, w.h)), TypeError, "dstate_n has type tuple; expected one array h"),
    (lambda w: w.lstm.backward(None, w.h), TypeError, "dstate_n has type ndarray; expected the pair (h, c)"),
    (
        lambda w: w.lstm.backward(None, [w.h] * 3),
        ValueError,
        "dstate_n has 3 entries; expected the pair (h, c)",
    ),
    (
        lambda w: w.lstm.backward(None, (None, w.h.astype(float))),
        TypeError,
        "dstate_n[1] (c) is float64; expected float32",
    ),
    (
        lambda w: w.cell.backward((ones(H), None)),
        ValueError,
        "dstate_n[0] (h) has shape (6,); expected (B, H)",
    ),
    (
        lambda w: w.still.backward(w.y),
        RuntimeError,
        "backward in eval mode, where calls save nothing; call train()",
    ),
    (lambda w: w.idle.backward(w.y), RuntimeError, "backward without a training call to go back through"),
    (lambda w: w.gru.train(1), TypeError, "mode is 1 (int); expected True or False"),
)
def test_backward_and_modes(world: World, call: Any, error: type[Exception], message: str) -> None:
    refuse(world, call, error, message)


def test_backward_twice() -> None:
    layer = World().gru
    layer.backward(ones(T, B, H))
    gradients = {name: array.copy() for name, array in layer.gradients.items()}
    with pytest.raises(RuntimeError, match="call the layer first, and again before every further backward"):
        layer.backward(ones(T, B, H))
    assert_equal(layer.gradients, gradients)
    layer(ones(T, B, IN))
    layer.eval().train()
    with pytest.raises(
        RuntimeError, match=r"without a training call to go back through \(eval\(\) dropped it\)"
    ):
        layer.backward(ones(T, B, H))


# -------------------------------------------------------------------------------------- parameters


def replace(mapping: Any, name: str, value: Any) -> None:
    mapping[name] = value


def set_attribute(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


@table(
    (
        lambda w: w.gru.parameters["weight"],
        KeyError,
        "no 'weight'; expected one of weight_ih_l0, weight_hh_l0",
    ),
    (
        lambda w: replace(w.gru.parameters, "weight", w.h),
        KeyError,
        "no 'weight'; expected one of weight_ih_l0",
    ),
    (
        lambda w: replace(w.gru.parameters, "bias_ih_l0", ones(3 * H)),
        TypeError,
        "'bias_ih_l0' cannot be replaced; write into it: [...] = value",
    ),
    (lambda w: replace(w.gru.gradients, "bias_ih_l0", ones(3 * H)), TypeError, "cannot be replaced"),
    (lambda w: replace(w.still.parameters["bias_ih_l0"], slice(None), 0), ValueError, "read-only"),
    (lambda w: set_attribute(w.gru, "hidden_size", 7), AttributeError, "hidden_size"),
    (lambda w: set_attribute(w.gru, "weight_ih_l0", w.h), AttributeError, "weight_ih_l0"),
    (
        lambda w: w.gru.load_state_dict(None),
        TypeError,
        "state_dict has type NoneType; expected a mapping of names",
    ),
    (
        lambda w: w.gru.load_state_dict([w.h]),
        TypeError,
        "state_dict has type list; expected a mapping of names",
    ),
    (
        lambda w: w.gru.load_state_dict(w.still),
        TypeError,
        "state_dict has type GRU; expected a mapping of names to arrays, as its state_dict()",
    ),
    (
        lambda w: w.gru.load_state_dict({}),
        ValueError,
        "state_dict: missing weight_ih_l0, weight_hh_l0, bias_ih_l0",
    ),
    (lambda w: w.gru.load_state_dict(w.parameters | {"a": 1}), ValueError, "state_dict: unexpected a"),
    (
        lambda w: w.still.load_state_dict(w.parameters | {"bias_hh_l0": ones(5)}),
        ValueError,
        "state_dict: bias_hh_l0 has shape (5,), expected (18,)",
    ),
    (
        lambda w: w.gru.load_state_dict(w.parameters | {"bias_hh_l0": [0.0] * 18}),
        TypeError,
        "state_dict['bias_hh_l0'] has type list; expected an array",
    ),
    (
        lambda w: w.gru.load_state_dict(w.parameters | {"bias_hh_l0": ones(18, dtype=int)}),
        TypeError,
        "state_dict['bias_hh_l0'] is int64; expected floats",
    ),
    (lambda w: w.gru.save(None), TypeError, "NoneType"),
    (lambda w: fastrnn.load(None), TypeError, "NoneType"),
)
def test_parameters(world: World, call: Any, error: type[Exception], message: str) -> None:
    refuse(world, call, error, message)


# ----------------------------------------------------------------------------------------- streams


def set_state(stream: fastrnn.Stream, state: Any) -> None:
    stream.state = state


@table(
    (lambda w: w.gru.stream(2), RuntimeError, "a stream needs a layer in eval mode; call eval() first"),
    (
        lambda w: w.both.stream(2),
        ValueError,
        "the layer is bidirectional; a stream cannot start from the end",
    ),
    (lambda w: w.still.stream(0), ValueError, "batch is 0; expected an integer of at least 1"),
    (
        lambda w: w.still.stream(2**63),
        ValueError,
        "batch is 9223372036854775808; expected an integer of at most 2147483647",
    ),
    (
        lambda w: fastrnn.Stream(None, 1),
        TypeError,
        "layer has type NoneType; expected a fastrnn.LSTM, GRU or",
    ),
    (lambda w: fastrnn.Stream(w.cell, 2), TypeError, "layer has type LSTMCell; expected a fastrnn.LSTM, GRU"),
    (lambda w: copy.copy(w.stream), TypeError, "a Stream can be neither copied nor pickled; make another"),
    (lambda w: pickle.dumps(w.stream), TypeError, "a Stream can be neither copied nor pickled; make another"),
    (lambda w: w.still.stream(2.0), TypeError, "batch is 2.0 (float); expected an integer"),
    (lambda w: w.stream.step([1.0]), TypeError, "x has type list; expected an array"),
    (lambda w: w.stream.step(ones(B, IN, dtype=float)), TypeError, "x is float64; expected float32"),
    (lambda w: w.stream.step(ones(2, IN)), ValueError, "x has shape (2, 4); expected (N, I) = (3, 4)"),
    (lambda w: w.stream.step(ones(IN)), ValueError, "x has shape (4,); expected (N, I) = (3, 4)"),
    (
        lambda w: w.stream.step(ones(B, IN, dtype=int)),
        ValueError,
        "x has shape (3, 4); expected (N,) = (3,), as int64 stands for tokens; convert features to float32",
    ),
    (lambda w: w.stream.step(np.zeros(2, int)), ValueError, "x has shape (2,); expected (N,) = (3,)"),
    (
        lambda w: w.stream.step(np.array([0, 4, 1])),
        ValueError,
        "x holds the token 4; expected tokens from 0 to 3",
    ),
    (lambda w: w.stream.step(ones(B, IN), 1), TypeError, "rows has type int; expected an array"),
    (lambda w: w.stream.step(ones(B, IN), [0.0] * 3), TypeError, "rows is float64; expected integers"),
    (lambda w: w.stream.step(ones(B, IN), ones(3, dtype=bool)), TypeError, "rows is bool; expected integers"),
    (lambda w: w.stream.step(ones(B, IN), [[0, 1, 2]]), ValueError, "rows has shape (1, 3); expected (k,)"),
    (lambda w: w.stream.step(ones(2, IN), [0]), ValueError, "x has shape (2, 4); expected (k, I) = (1, 4)"),
    (lambda w: w.stream.step(ones(2, IN), [0, 3]), ValueError, "rows[1] is 3; expected from 0 to 2"),
    (lambda w: w.stream.step(ones(2, IN), [-1, 0]), ValueError, "rows[0] is -1; expected from 0 to 2"),
    (
        lambda w: w.stream.step(ones(2, IN), [1, 1]),
        ValueError,
        "rows is [1, 1]; expected each stream at most once",
    ),
    (lambda w: w.stream.run(ones(B, IN)), ValueError, "x has shape (3, 4); expected (T, B, I) = (T, B, 4)"),
    (
        lambda w: w.stream.run(ones(T, 2, IN)),
        ValueError,
        "x has shape (5, 2, 4); expected (T, B, I) = (T, 3, 4)",
    ),
    (lambda w: w.stream.run(ones(0, B, IN)), ValueError, "x has shape (0, 3, 4); expected at least one step"),
    (
        lambda w: w.stream.run(np.full((T, B), 9)),
        ValueError,
        "x holds the token 9; expected tokens from 0 to 3",
    ),
    (lambda w: w.stream.reset([3]), ValueError, "rows[0] is 3; expected from 0 to 2"),
    (lambda w: w.stream.reset([0.5]), TypeError, "rows is float64; expected integers or a bool mask"),
    (lambda w: w.stream.reset([True, 2]), TypeError, "rows holds a bool beside numbers; expected integers"),
    (lambda w: w.stream.reset([True]), ValueError, "rows has shape (1,); expected (N,) = (3,)"),
    (lambda w: w.stream.reset("all"), TypeError, "rows has type str; expected an array"),
    (lambda w: w.stream.reset(ones(2, dtype=bool)), ValueError, "rows has shape (2,); expected (N,) = (3,)"),
    (lambda w: set_state(w.stream, None), TypeError, "state is None; expected arrays, or call reset()"),
    (lambda w: set_state(w.stream, (w.h, w.h)), TypeError, "state has type tuple; expected one array h"),
    (
        lambda w: set_state(w.stream, ones(1, 2, H)),
        ValueError,
        "state has shape (1, 2, 6); expected (L*D, B, H)",
    ),
    (lambda w: set_state(w.stream, w.h.astype(float)), TypeError, "state is float64; expected float32"),
)
def test_streams(world: World, call: Any, error: type[Exception], message: str) -> None:
    refuse(world, call, error, message)


# --------------------------------------------------------------------------------- functional form


@table(
    (
        lambda w: functional.pack("gru", w.parameters),
        TypeError,
        "spec has type str; expected a fastrnn.functional.Spec",
    ),
    (
        lambda w: functional.pack(w.spec, None),
        TypeError,
        "parameters has type NoneType; expected a mapping of names",
    ),
    (lambda w: functional.pack(w.spec, {}), ValueError, "parameters: missing weight_ih_l0, weight_hh_l0"),
    (
        lambda w: functional.pack(w.spec, w.parameters | {"bias_hh_l0": ones(18, dtype=float)}),
        TypeError,
        "parameters['bias_hh_l0'] is float64; expected float32",
    ),
    (
        lambda w: functional.pack(w.spec, w.parameters | {"weight_hh_l0": ones(18, 5), "b": 0}),
        ValueError,
        "parameters: unexpected b; weight_hh_l0 has shape (18, 5), expected (18, 6)",
    ),
    (lambda w: w.forward(spec="gru"), TypeError, "spec has type str; expected a fastrnn.functional.Spec"),
    (lambda w: w.forward(spec=Spec("gru", IN, 7)), ValueError, "weights were packed for Spec(cell='gru'"),
    (lambda w: w.forward(weights=[1]), TypeError, "parameters has type list; expected a mapping of names"),
    (lambda w: w.forward(ones(T, IN)), ValueError, "x has shape (5, 4); expected (T, B, I) = (T, B, 4)"),
    (
        lambda w: w.forward(state=ones(1, 2, H)),
        ValueError,
        "state has shape (1, 2, 6); expected (L*D, B, H) = (1, 3",
    ),
    (lambda w: w.forward(lengths=[1]), ValueError, "lengths has shape (1,); expected (B,) = (3,)"),
    (lambda w: w.forward(reset=ones(T, B)), TypeError, "reset is float32; expected bool"),
    # out of forward
    (
        lambda w: w.forward(out=[w.y]),
        TypeError,
        "out (y) has type list; expected an array of float32 to write into",
    ),
    (
        lambda w: w.forward(out=np.lib.stride_tricks.as_strided(w.y, strides=(B * H * 4, 4, 4))),
        ValueError,
        "out (y) has strides (72, 4, 4); expected every element in memory of its own",
    ),
    (lambda w: copy.deepcopy(w.packed), TypeError, "a Packed can be neither copied nor pickled; pack the"),
    (lambda w: pickle.dumps(w.reserve), TypeError, "a Reserve can be neither copied nor pickled; run"),
    (
        lambda w: w.forward(out=(w.y,)),
        ValueError,
        "out has 1 entries; expected an array for y, or the pair (y, st",
    ),
    (
        lambda w: w.forward(out=ones(T, B, 7)),
        ValueError,
        "out (y) has shape (5, 3, 7); expected (T, B, D*R) = (5, 3",
    ),
    (lambda w: w.forward(out=ones(T, B, H, dtype=float)), TypeError, "out (y) is float64; expected float32"),
    (
        lambda w: w.forward(out=ones(T, B, H).astype(">f4")),
        TypeError,
        "out (y) is >f4; expected float32, native",
    ),
    (
        lambda w: w.forward(out=locked(T, B, H)),
        ValueError,
        "out (y) is read-only; expected an array to write into",
    ),
    (lambda w: w.forward(out=ones(T, B, 2 * H)[..., ::2]), ValueError, "expected a last axis of unit stride"),
    (
        lambda w: w.forward(out=(None, ones(B, 1, H).swapaxes(0, 1)[:, ::-1])),
        ValueError,
        "a C-contiguous array",
    ),
    (lambda w: w.forward(out=(w.y, (w.h, w.h))), TypeError, "out[1] has type tuple; expected one array h"),
    (
        lambda w: w.forward(out=(w.y, ones(B, H))),
        ValueError,
        "out[1] has shape (3, 6); expected (L*D, B, H) = (1, 3",
    ),
    (lambda w: w.forward(state=w.h, out=(w.y, w.h)), ValueError, "out[1] overlaps state[0] in memory"),
    (
        lambda w: w.forward(w.y[..., :IN], out=w.y),
        ValueError,
        "out (y) overlaps x in memory; expected separate",
    ),
    (lambda w: w.forward(out=(w.y, w.y[:1])), ValueError, "out[1] overlaps out (y) in memory"),
    (
        lambda w: w.forward(weights=w.parameters, out=(None, w.parameters["weight_hh_l0"][None, :B])),
        ValueError,
        "out[1] overlaps weight_hh_l0 in memory",
    ),
    # forward_train
    (
        lambda w: functional.forward_train(w.spec, w.packed, ones(T, B, IN), seed=-1),
        ValueError,
        "seed is -1; expected an integer of at least 0",
    ),
    (
        lambda w: functional.forward_train(w.spec, w.packed, ones(T, B, IN), call=0.5),
        TypeError,
        "call is 0.5 (float); expected an integer",
    ),
    (
        lambda w: functional.forward_train(w.spec, w.packed, ones(T, B, 7)),
        ValueError,
        "x has shape (5, 3, 7)",
    ),
    (
        lambda w: functional.forward_train(w.spec, w.packed, ones(T, B, IN), out=locked(T, B, H)),
        ValueError,
        "out (y) is read-only",
    ),
    # backward
    (
        lambda w: functional.backward(
            w.spec, w.parameters, functional.Reserve(w.reserve.call, _core.Reserve(), 0, 0)
        ),
        ValueError,
        "reserve is of no call; expected the third result of forward_train",
    ),
    (
        lambda w: functional.backward(w.spec, w.parameters, functional.Reserve.__new__(functional.Reserve)),
        ValueError,
        "reserve is of no call",
    ),
    (
        lambda w: functional.backward(w.spec, w.parameters, w.y, w.y),
        TypeError,
        "reserve has type ndarray; expected the third result of forward_train",
    ),
    (
        lambda w: functional.backward(Spec("gru", IN, 7), w.parameters, w.reserve, w.y),
        ValueError,
        "reserve is of a call for Spec(cell='gru'",
    ),
    (
        lambda w: functional.backward(w.spec, w.packed, w.reserve),
        TypeError,
        "parameters has type Packed; expected a map",
    ),
    (lambda w: functional.backward(w.spec, {}, w.reserve), ValueError, "parameters: missing weight_ih_l0"),
    (
        lambda w: w.backward(ones(T, B, 7)),
        ValueError,
        "dy has shape (5, 3, 7); expected (T, B, D*R) = (5, 3, 6)",
    ),
    (lambda w: w.backward(None, ones(B, H)), ValueError, "dstate_n has shape (3, 6); expected (L*D, B, H)"),
    (
        lambda w: w.backward(out=w.dx),
        TypeError,
        "out has type ndarray; expected the triple (dx, dstate, gradients)",
    ),
    (
        lambda w: w.backward(out=(w.dx,)),
        ValueError,
        "out has 1 entries; expected the triple (dx, dstate, gradients)",
    ),
    (
        lambda w: w.backward(out=(w.y, None, None)),
        ValueError,
        "out[0] (dx) has shape (5, 3, 6); expected (T, B, I)",
    ),
    (
        lambda w: w.backward(out=(w.reserve.call.x, None, None)),
        ValueError,
        "out[0] (dx) overlaps x in memory",
    ),
    (
        lambda w: w.backward(out=(w.dx, w.h[0], None)),
        ValueError,
        "out[1] has shape (3, 6); expected (L*D, B, H)",
    ),
    (
        lambda w: w.backward(None, w.h, out=(None, w.h, None)),
        ValueError,
        "out[1] overlaps dstate_n[0] in memory",
    ),
    (
        lambda w: w.backward(out=(w.dx, None, [])),
        TypeError,
        "out[2] has type list; expected a mapping of names to arrays",
    ),
    (
        lambda w: w.backward(out=(w.dx, None, {})),
        ValueError,
        "out[2] has the names []; expected ['weight_ih_l0',",
    ),
    (
        lambda w: w.backward(out=(w.dx, None, w.parameters)),
        ValueError,
        "out[2]['weight_ih_l0'] overlaps weight_ih_l0 in memory",
    ),
    (
        lambda w: w.backward(out=(w.dx, None, w.parameters | {"bias_hh_l0": ones(5)})),
        ValueError,
        "out[2]['bias_hh_l0'] has shape (5,); expected (rows,) = (18,)",
    ),
)
def test_functional(world: World, call: Any, error: type[Exception], message: str) -> None:
    refuse(world, call, error, message)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((2**40, 2**10, 4), MemoryError, r"shape \(1099511627776, 1024, 4\) and data type float32"),
        ((2**40, 2**19, 4), ValueError, "array is too big"),  # 2**63 bytes
        ((2**40, 2**24, 4), ValueError, "array is too big"),
    ],
)
def test_memory_that_cannot_be_had(shape: tuple[int, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _arrays.empty(shape, np.dtype("float32"))


def test_dx_of_tokens_has_nowhere_to_go() -> None:
    spec = Spec("gru", IN, H)
    parameters = fastrnn.GRU(IN, H).state_dict()
    *_, reserve = functional.forward_train(spec, parameters, np.zeros((T, B), int))
    with pytest.raises(
        ValueError, match="out has an array for dx; expected None, since tokens have no gradient"
    ):
        functional.backward(spec, parameters, reserve, out=(ones(T, B, IN), None, None))


@pytest.mark.parametrize("dtype", ["U1", "M8[s]", object, complex])
def test_no_conversion_is_advised_where_none_makes_sense(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"dy is [^;]*; expected float32$"):
        World().gru.backward(np.zeros((T, B, H), dtype))


def test_outputs_may_lie_between_inputs_and_have_any_stride_in_an_axis_of_one() -> None:
    spec = Spec("gru", IN, 1)
    parameters = fastrnn.GRU(IN, 1, seed=1).state_dict()
    memory = ones(T, B, IN + 2)
    expected = functional.forward(spec, parameters, ones(T, B, IN))[0]
    y, _ = functional.forward(spec, parameters, memory[..., :IN], out=memory[..., IN::2])
    assert y.strides[-1] == 8
    assert_equal(y, expected)


@table(
    (lambda p: reference.forward(None, p, ones(T, B, IN)), TypeError, "spec has type NoneType; expected a"),
    (
        lambda p: reference.forward(Spec("gru", IN, H), None, ones(T, B, IN)),
        TypeError,
        "parameters has type NoneType; expected a mapping of names to arrays",
    ),
    (
        lambda p: reference.forward(Spec("gru", IN, H), {}, ones(T, B, IN)),
        ValueError,
        "parameters: missing weight_ih_l0, weight_hh_l0",
    ),
    (
        lambda p: reference.backward(Spec("gru", IN, H), p, None),
        TypeError,
        "cache has type NoneType; expected the third result of forward",
    ),
)
def test_the_reference(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(fastrnn.GRU(IN, H).state_dict())
