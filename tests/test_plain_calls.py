"""Do calls of plain arguments, run at once, give what checked calls give, and leave all else to them?"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import _arrays, functional, layers
from fastrnn.layouts import DTYPES
from nested import arrays, assert_equal
from shapes import VARIANTS, make_spec

T, B, IN, H = 5, 3, 4, 18
CACHE_LINE, LARGE = 64, 2**16  # bytes: of the alignment of arrays of LARGE and more
LAYERS: dict[str, Any] = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
CELLS: dict[str, Any] = {"lstm": fastrnn.LSTMCell, "gru": fastrnn.GRUCell, "rnn": fastrnn.RNNCell}
LAYOUTS = {"TB": (T, B), "BT": (B, T), "T": (T,)}


class OtherArray(np.ndarray):
    """Not NumPy's own class, and so not plain."""


def layer_of(variant: str, batch_first: bool, **options: Any) -> Any:
    """Make a layer in eval mode by way of its `Spec`."""
    spec = make_spec(variant, IN, H, num_layers=2, **options)
    kind = LAYERS[spec.cell]
    named = {name: getattr(spec, name) for name in kind._arguments if name != "batch_first"}
    if named.get("peephole") == "none":
        named["peephole"] = False
    return kind(**named, batch_first=batch_first, seed=1).eval()


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def was_plain(results: Any, x: np.ndarray) -> None:
    """Assert that a call was run at once, into new arrays of its own."""
    assert results is not None
    for array in arrays(results):
        assert type(array) is np.ndarray
        assert array.dtype == x.dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not np.may_share_memory(array, x)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("axes", LAYOUTS)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"dtype": "float64"}], ids=str)
def test_layers(
    variant: str, axes: str, with_state: bool, options: dict[str, Any], rng: np.random.Generator
) -> None:
    layer = layer_of(variant, batch_first=axes == "BT", **options)
    x = normal(rng, (*LAYOUTS[axes], IN), layer.dtype)
    checked = layer(x.view(OtherArray))
    state = checked[1] if with_state else None
    if with_state:
        checked = layer(x.view(OtherArray), state)
    plain = layer._packed.run_plain(layer._axes, x, state)
    was_plain(plain, x)
    assert_equal(plain, checked)
    assert_equal(layer(x, state), checked)
    if axes == "TB":
        assert_equal(functional.forward(layer._spec, layer._packed, x, state), checked)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(B, IN), (IN,)], ids=str)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cells(
    cell: str, shape: tuple[int, ...], with_state: bool, dtype: str, rng: np.random.Generator
) -> None:
    layer = CELLS[cell](IN, H, dtype=dtype, seed=1).eval()
    x = normal(rng, shape, dtype)
    state = layer(x.view(OtherArray)) if with_state else None
    checked = layer(x.view(OtherArray), state)
    plain = layer._packed.run_plain(layer._axes, x, state)
    was_plain(plain, x)
    assert_equal(plain, checked)
    assert_equal(layer(x, state), checked)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_were_pickled(dtype: str, rng: np.random.Generator) -> None:
    """Their dtype is equal to NumPy's own, but another object."""
    layer = fastrnn.GRU(IN, H, dtype=dtype, seed=1).eval()
    x = pickle.loads(pickle.dumps(normal(rng, (T, B, IN), dtype)))
    assert x.dtype is not np.dtype(dtype)
    plain = layer._packed.run_plain(layer._axes, x, None)
    was_plain(plain, x)
    assert_equal(plain, layer(x.view(OtherArray)))
    swapped = x.astype(x.dtype.newbyteorder())
    assert layer._packed.run_plain(layer._axes, swapped, None) is None


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("quantized", ["bfloat16", "int8"])
def test_quantised_weights(cell: str, quantized: str, rng: np.random.Generator) -> None:
    layer = LAYERS[cell](IN, H, seed=1).eval().quantize(quantized)
    x = normal(rng, (T, B, IN))
    plain = layer._packed.run_plain(layer._axes, x, None)
    was_plain(plain, x)
    assert_equal(plain, layer(x.view(OtherArray)))


@pytest.mark.parametrize("steps", [1, 300])
def test_results_of_any_size_begin_where_checked_ones_do(steps: int, rng: np.random.Generator) -> None:
    layer = fastrnn.GRU(IN, 64, seed=1).eval()
    x = normal(rng, (steps, B, IN))
    plain = layer._packed.run_plain(layer._axes, x, None)
    was_plain(plain, x)
    assert_equal(plain, layer(x.view(OtherArray)))
    assert (plain[0].nbytes >= LARGE) == (steps == 300)
    assert plain[0].nbytes < LARGE or plain[0].ctypes.data % CACHE_LINE == 0


@pytest.mark.parametrize("shape", [(LARGE // 4,), (2, LARGE // 8 + 1), (3, 5, LARGE)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_arrays_begin_with_a_cache_line(shape: tuple[int, ...], dtype: str) -> None:
    kept = [_arrays.empty(shape, np.dtype(dtype)) for _ in range(5)]
    for array in kept:
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        assert array.ctypes.data % CACHE_LINE == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable
        array[...] = 1  # memory that is there


def test_an_empty_batch_is_plain() -> None:
    layer = fastrnn.LSTM(IN, H, seed=1).eval()
    y, (h_n, c_n) = layer._packed.run_plain(layer._axes, np.zeros((T, 0, IN), "float32"), None)
    assert (y.shape, h_n.shape, c_n.shape) == ((T, 0, H), (1, 0, H), (1, 0, H))


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


def unaligned(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)


X, STATE = ones(T, B, IN), ones(1, B, H)
LEFT: dict[str, tuple[Any, Any]] = {
    "list": (X.tolist(), None),
    "subclass": (X.view(OtherArray), None),
    "float64": (X.astype("float64"), None),
    "byte order": (X.astype(">f4"), None),
    "tokens": (ones(T, B, dtype="int64"), None),
    "no unit stride": (ones(T, B, 2 * IN)[:, :, ::2], None),
    "rows apart": (ones(T, B + 1, IN)[:, 1:], None),
    "axes swapped": (ones(B, T, IN).swapaxes(0, 1), None),
    "unaligned": (unaligned(X), None),
    "no step": (ones(0, B, IN), None),
    "other features": (ones(T, B, IN + 1), None),
    "too few axes": (ones(IN), None),
    "too many axes": (ones(1, T, B, IN), None),
    "no axis": (np.float32(1), None),
    "state of another type": (X, [STATE]),
    "state of float64": (X, STATE.astype("float64")),
    "state of another batch": (X, ones(1, B + 1, H)),
    "state of another layout": (X, ones(1, H)),
    "state of another size": (X, ones(1, B, H - 1)),
    "state of a subclass": (X, STATE.view(OtherArray)),
    "pair": (X, (STATE, STATE)),
}


@pytest.mark.parametrize("case", LEFT)
def test_all_else_is_left_to_the_checks(case: str) -> None:
    """And to their messages, which test_errors.py has."""
    layer = fastrnn.GRU(IN, H, seed=1).eval()
    assert layer._packed.run_plain(layer._axes, *LEFT[case]) is None


@pytest.mark.parametrize(
    "state",
    [STATE, [STATE, STATE], (STATE,), (STATE, STATE, STATE), (STATE, None), (STATE, ones(1, B, H - 1))],
)
def test_a_pair_is_a_tuple_of_two_plain_arrays(state: Any) -> None:
    layer = fastrnn.LSTM(IN, H, seed=1).eval()
    assert layer._packed.run_plain(layer._axes, X, (STATE, STATE)) is not None
    assert layer._packed.run_plain(layer._axes, X, state) is None


@pytest.mark.parametrize("x", [X[0].tolist(), X[0].view(OtherArray), X, X[0, :2], ones(B, dtype="int64")])
def test_steps_of_a_stream(x: Any) -> None:
    stream = fastrnn.GRU(IN, H, seed=1).eval().stream(B)
    before = stream.state
    assert stream._run_plain(x) is None
    assert_equal(stream.state, before)
    assert stream._run_plain(X[0]) is stream.step(X[0])


def test_lengths_reset_and_out_are_left_to_the_checks() -> None:
    """None of them reaches the short way, which would pass over it."""
    layer = fastrnn.GRU(IN, H, seed=1).eval()
    y, h_n = layer(X)
    short, _ = layer(X, lengths=[0, 1, T])
    assert not short[:, 0].any()
    again, _ = layer(X, reset=np.full((T, B), True))
    assert_equal(again[-1], again[0])
    out = np.empty_like(y), np.empty_like(h_n)
    results = functional.forward(layer._spec, layer._packed, X, out=out)
    assert results[0] is out[0]
    assert_equal(results, (y, h_n))
    with pytest.raises(ValueError, match="x has shape"):
        functional.forward(layer._spec, layer._packed, X[:, 0])  # only layers take sequences without a batch


def test_the_weights_in_force_are_used() -> None:
    layer, other = (fastrnn.GRU(IN, H, seed=seed).eval() for seed in (1, 2))
    layer(X)
    layer.load_state_dict(other.state_dict())
    assert_equal(layer(X), other(X))
    layer.train().parameters["bias_ih_l0"][...] += 1
    trained = layer(X)
    assert not trained[0].flags.writeable  # a reserve has it
    assert_equal(layer.eval()(X), trained)


@contextmanager
def switches_only_when_let() -> Iterator[None]:
    """Let threads have the interpreter lock only where another gives it up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


SHORT, LONG = ones(1, 1, 64), ones(50, 64, 64)
LOCKING: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "call": lambda layer, x: layer(x),
    "checked": lambda layer, x: layer(x.view(OtherArray)),
    "step": lambda layer, x: layer.stream(x.shape[1] * x.shape[0]).step(x.reshape(-1, 64)),
    "run": lambda layer, x: layer.stream(x.shape[1]).run(x),
}


@pytest.mark.parametrize("way", LOCKING)
def test_only_long_calls_give_up_the_interpreter_lock(way: str) -> None:
    """Beside a busy thread each time costs a short call the busy one's turn, 5 ms."""
    layer, work = fastrnn.LSTM(64, 64, seed=1).eval(), LOCKING[way]
    work(layer, SHORT)  # what Python imports at the first call is read from files
    gate, ran = threading.Lock(), []

    def other() -> None:
        with gate:
            ran.append(True)

    with switches_only_when_let():
        gate.acquire()
        thread = threading.Thread(target=other)
        thread.start()  # it runs to the gate, and wants the lock from its opening on
        gate.release()
        for _ in range(3000):
            work(layer, SHORT)
        assert not ran
        for _ in range(2000):  # on one CPU the other thread also needs the system to let it run
            if ran:
                break
            work(layer, LONG)
        assert ran
        thread.join()


# ------------------------------------------------------------------------------------------ training


def trained(layer: Any) -> Any:
    """Return it in training mode, after a call that set up the memory which calls run at once need."""
    layer.train()(np.zeros((T, B, IN) if isinstance(layer, tuple(LAYERS.values())) else (B, IN), layer.dtype))
    return layer


def incoming(results: Any, rng: np.random.Generator, *, cell: bool) -> tuple[Any, ...]:
    """Draw the gradients in results of a call, as arguments of backward."""
    if isinstance(results, tuple):
        drawn = tuple(incoming(part, rng, cell=True)[0] for part in results)
        return (drawn,) if cell else drawn
    return (normal(rng, results.shape, str(results.dtype)),)


@contextmanager
def checks_refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where a call is checked in Python."""
    with monkeypatch.context() as patch:
        patch.setattr(layers, "check_call", None)
        patch.setattr(layers, "check_incoming", None)
        yield


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("axes", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"dtype": "float64"}], ids=str)
@pytest.mark.parametrize("with_state", [False, True])
def test_training(
    variant: str,
    axes: str,
    options: dict[str, Any],
    with_state: bool,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, checked = (trained(layer_of(variant, axes == "BT", **options)) for _ in range(2))
    x = normal(rng, (*LAYOUTS[axes], IN), plain.dtype)
    state = plain(x)[1] if with_state else None
    for _ in range(2):  # gradients add up
        expected = checked(x.view(OtherArray), state)
        gradients = incoming(expected, rng, cell=False)
        expected_gradients = checked.backward(*gradients)
        with checks_refused(monkeypatch):
            results = plain(x, state)
            assert_equal(plain.backward(*gradients), expected_gradients)
        assert_equal(results, expected)
        assert not results[0].flags.writeable
        assert_equal(plain.gradients, checked.gradients)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(B, IN), (IN,)], ids=str)
@pytest.mark.parametrize("with_state", [False, True])
def test_training_of_cells(
    cell: str,
    shape: tuple[int, ...],
    with_state: bool,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, checked = (trained(CELLS[cell](IN, H, seed=1)) for _ in range(2))
    x = normal(rng, shape)
    state = plain(x) if with_state else None
    expected = checked(x.view(OtherArray), state)
    gradients = incoming(expected, rng, cell=True)
    expected_gradients = checked.backward(*gradients)
    with checks_refused(monkeypatch):
        results = plain(x, state)
        assert_equal(results, expected)
        for array in arrays(results):
            array[...] = np.nan  # which is the caller's
        assert_equal(plain.backward(*gradients), expected_gradients)
    assert_equal(plain.gradients, checked.gradients)


@pytest.mark.parametrize("axes", LAYOUTS)
def test_gradients_that_are_not_plain_are_checked(axes: str, rng: np.random.Generator) -> None:
    """Also those of a call that was run at once."""
    layer = trained(layer_of("lstm", axes == "BT"))
    x = normal(rng, (*LAYOUTS[axes], IN))
    y, (h_n, c_n) = layer(x)
    dy, dh, dc = (normal(rng, array.shape) for array in (y, h_n, c_n))
    expected = layer.backward(dy, (dh, dc))
    for again in (dy.view(OtherArray), (dh, dc)), (dy, [dh, dc]), (dy, (dh.view(OtherArray), dc)):
        layer(x)
        assert_equal(layer.backward(*again), expected)
    layer(x)
    with pytest.raises(ValueError, match=r"dy has shape"):
        layer.backward(dy[1:], (dh, dc))
    with pytest.raises(TypeError, match=r"dstate_n"):
        layer.backward(dy, dh)
    assert_equal(layer.backward(dy, (dh, dc)), expected)  # nothing had changed
    with pytest.raises(RuntimeError, match="backward went through it"):
        layer.backward(dy)


def test_a_call_that_is_refused_leaves_the_one_before_it(rng: np.random.Generator) -> None:
    layer = trained(fastrnn.GRU(IN, H, seed=1))
    x = normal(rng, (T, B, IN))
    y, _ = layer(x)
    expected = layer.backward(y)
    layer(x)
    with pytest.raises(ValueError, match="x has shape"):
        layer(x[:, :, 1:])
    assert_equal(layer.backward(y), expected)


@pytest.mark.parametrize("options", [{"recurrent_dropout": 0.5}, {"zoneout": 0.5}, {"dropout": 0.5}], ids=str)
def test_masks_have_the_number_of_their_call(options: dict[str, float], rng: np.random.Generator) -> None:
    layer, same = (fastrnn.GRU(IN, H, num_layers=2, seed=1, **options) for _ in range(2))
    x = normal(rng, (T, B, IN))
    for _ in range(3):
        assert_equal(layer(x), same(x.view(OtherArray)))
    assert layer.calls == same.calls == 3


def test_calls_are_counted(rng: np.random.Generator) -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    for count in range(3):
        assert layer.calls == count
        layer(normal(rng, (T, B, IN)))


def test_training_with_a_checkpoint(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, saving = fastrnn.LSTM(IN, H, seed=1), fastrnn.LSTM(IN, H, seed=1).train(checkpoint=2)
    x = normal(rng, (T, B, IN))
    for layer in whole, saving:
        layer(x)
        with checks_refused(monkeypatch):
            y, _ = layer(x)
            layer.backward(np.ones_like(y))
    assert_equal(whole.gradients, saving.gradients)


@pytest.mark.parametrize("plain", [True, False])
def test_gradients_are_not_added_to_twice(
    plain: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a signal raises once they are, before backward returns."""
    layer, name = trained(fastrnn.GRU(IN, H, seed=1)), "backward_plain" if plain else "backward"
    x = normal(rng, (T, B, IN))
    y, _ = layer(x)
    backward = getattr(layers._core, name)

    def interrupted(*arguments: Any) -> None:
        backward(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(layers._core, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        layer.backward(y if plain else y.view(OtherArray))
    monkeypatch.undo()
    once = {name: gradient.copy() for name, gradient in layer.gradients.items()}
    with pytest.raises(RuntimeError, match="the last backward did not end"):
        layer.backward(y)
    assert_equal(layer.gradients, once)


def test_a_call_before_the_mode_was_chosen_anew(rng: np.random.Generator) -> None:
    layer, same = (trained(fastrnn.LSTM(IN, H, seed=1)) for _ in range(2))
    x = normal(rng, (T, B, IN))
    y, _ = layer(x)
    layer.train(checkpoint=2)
    same(x)
    assert_equal(layer.backward(y), same.backward(y))


@pytest.mark.frameworks
def test_tensors_that_require_grad_are_refused(rng: np.random.Generator) -> None:
    """Also once fastrnn.torch reads tensors in place."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("fastrnn.torch")
    layer = trained(fastrnn.GRU(IN, H, seed=1))
    y, _ = layer(normal(rng, (T, B, IN)))
    with pytest.raises(TypeError, match="dy requires grad"):
        layer.backward(torch.ones(y.shape, requires_grad=True))
