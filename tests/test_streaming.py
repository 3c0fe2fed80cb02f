"""Does a stream, step by step, equal one call of its layer, and keep its rows apart?"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn.layouts import DTYPES
from nested import arrays, assert_equal
from tolerances import assert_same_bits

T, N, IN, H = 7, 5, 3, 9
LAYERS: dict[str, Any] = {
    "lstm": lambda **options: fastrnn.LSTM(IN, H, **options),
    "lstm-proj": lambda **options: fastrnn.LSTM(IN, H, proj_size=4, **options),
    "lstm-diagonal": lambda **options: fastrnn.LSTM(IN, H, peephole="diagonal", **options),
    "lstm-full": lambda **options: fastrnn.LSTM(IN, H, peephole="full", **options),
    "gru": lambda **options: fastrnn.GRU(IN, H, **options),
    "gru-reset-before": lambda **options: fastrnn.GRU(IN, H, reset_after=False, **options),
    "rnn": lambda **options: fastrnn.RNN(IN, H, **options),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def build(name: str, **options: Any) -> Any:
    return LAYERS[name](num_layers=2, seed=1, **options).eval()


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


@each_layer
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, N])
def test_steps_are_one_call_bit_for_bit(name: str, dtype: str, batch: int, rng: np.random.Generator) -> None:
    layer = build(name, dtype=dtype)
    x = normal(rng, T, batch, IN, dtype=dtype)
    y, state_n = layer(x)
    stream = layer.stream(batch=batch)
    for t in range(T):
        assert_same_bits(stream.step(x[t]), y[t])
    assert_equal(stream.state, state_n)
    assert stream.batch == batch


@each_layer
def test_run_and_steps_mix(name: str, rng: np.random.Generator) -> None:
    layer = build(name)
    x = normal(rng, T, N, IN)
    y, state_n = layer(x)
    stream = layer.stream(batch=N)
    assert_same_bits(stream.run(x[:3]), y[:3])
    assert_same_bits(stream.step(x[3]), y[3])
    assert_same_bits(stream.run(x[4:]), y[4:])
    assert_equal(stream.state, state_n)


def test_run_follows_batch_first(rng: np.random.Generator) -> None:
    layer = build("gru", batch_first=True)
    x = normal(rng, N, T, IN)
    y = layer.stream(batch=N).run(x)
    assert_same_bits(y, layer(x)[0])
    assert y.flags.c_contiguous


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 5, 6, 8, 48])  # one thread has less or more than a tile of rows
@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_a_step_takes_the_buffer_that_the_last_one_returned(
    cls: Any, batch: int, layers: int, rng: np.random.Generator
) -> None:
    layer = cls(70, 70, layers, seed=1).eval()  # more units than two tiles have
    fed_back, copied = layer.stream(batch=batch), layer.stream(batch=batch)
    x = normal(rng, batch, 70)
    y, expected = fed_back.step(x), copied.step(x)
    for _ in range(3):
        y, expected = fed_back.step(y), copied.step(expected.copy())
        assert_same_bits(y, expected)
    some = np.arange(batch)[::2]
    assert_same_bits(fed_back.step(y[: len(some)], some), copied.step(expected[: len(some)].copy(), some))


@each_layer
def test_rows_advance_alone(name: str, rng: np.random.Generator) -> None:
    layer = build(name)
    x = normal(rng, T, N, IN)
    whole, some = layer.stream(batch=N), layer.stream(batch=N)
    for t in range(T):
        y = whole.step(x[t]).copy()
        order = rng.permutation(N)
        for rows in (order[:2], order[2:].astype(np.uint8)):
            assert_same_bits(some.step(x[t, rows], rows=rows), y[rows])
    assert_equal(some.state, whole.state)
    before = some.state
    some.step(x[0, [1]], rows=[1])
    for a, b in zip(arrays(some.state), arrays(before), strict=True):
        assert_same_bits(np.delete(a, 1, axis=1), np.delete(b, 1, axis=1))
        assert not np.array_equal(a[:, 1], b[:, 1])
    assert some.step(x[0, :0], rows=[]).shape[0] == 0


def test_tokens_are_one_hot_vectors(rng: np.random.Generator) -> None:
    layer = build("gru")
    tokens = rng.integers(IN, size=(T, N))
    y, _ = layer(tokens)
    stream = layer.stream(batch=N)
    assert_same_bits(stream.step(tokens[0]), y[0])
    assert_same_bits(stream.step(tokens[1, [4, 0]].astype(np.int16), rows=[4, 0]), y[1, [4, 0]])
    stream.reset()
    assert_same_bits(stream.run(tokens), y)


def test_the_result_is_one_buffer(rng: np.random.Generator) -> None:
    stream = build("lstm").stream(batch=N)
    x = normal(rng, 2, N, IN)
    one = stream.step(x[0])
    other = stream.step(x[1])
    assert np.shares_memory(one, other)
    assert_same_bits(one, other)


@each_layer
@pytest.mark.parametrize("mask", [False, True])
def test_reset_zeroes_the_rows_named(name: str, mask: bool, rng: np.random.Generator) -> None:
    layer = build(name)
    x = normal(rng, T, N, IN)
    stream = layer.stream(batch=N)
    stream.run(x)
    before = stream.state
    chosen = np.array([True, False, False, True, False])
    stream.reset(chosen if mask else np.flatnonzero(chosen))
    for a, b in zip(arrays(stream.state), arrays(before), strict=True):
        assert not a[:, chosen].any()
        assert_same_bits(a[:, ~chosen], b[:, ~chosen])
    fresh = layer.stream(batch=N)
    assert_same_bits(stream.step(x[0])[chosen], fresh.step(x[0])[chosen])
    stream.reset()
    assert not any(a.any() for a in arrays(stream.state))


@each_layer
def test_state_is_copied_out_and_in(name: str, rng: np.random.Generator) -> None:
    layer = build(name)
    x = normal(rng, T, N, IN)
    stream = layer.stream(batch=N)
    stream.run(x[:4])
    saved = stream.state
    rest = stream.run(x[4:])
    assert not any(np.array_equal(a, b) for a, b in zip(arrays(saved), arrays(stream.state), strict=True))
    stream.state = saved
    assert_same_bits(stream.run(x[4:]), rest)
    _, state_n = layer(x)
    other = layer.stream(batch=N)
    other.state = state_n
    assert_equal(other.state, stream.state)


def test_strides_and_byte_order_do_not_matter(rng: np.random.Generator) -> None:
    layer = build("gru")
    x = normal(rng, N, IN)
    y = layer.stream(batch=N).step(x).copy()
    for same in (np.asfortranarray(x), x[::-1].copy()[::-1], x.astype(">f4"), x.view(np.ndarray)):
        assert_same_bits(layer.stream(batch=N).step(same), y)


@pytest.mark.parametrize("change", ["train", "load_state_dict"])
def test_a_stream_goes_with_its_weights(change: str, rng: np.random.Generator) -> None:
    layer = build("gru")
    stream = layer.stream(batch=N)
    x = normal(rng, T, N, IN)
    if change == "train":
        layer.train().eval()
    else:
        layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="make a new one"):
        stream.step(x[0])
    with pytest.raises(RuntimeError, match="make a new one"):
        stream.run(x)
    with pytest.raises(RuntimeError, match="make a new one"):
        stream.reset()
    with pytest.raises(RuntimeError, match="make a new one"):
        _ = stream.state
    with pytest.raises(RuntimeError, match="make a new one"):
        stream.state = np.zeros((2, N, H), "float32")
    assert_same_bits(layer.stream(batch=N).run(x), layer(x)[0])


def test_streams_of_one_layer_run_in_parallel(rng: np.random.Generator) -> None:
    layer = build("lstm")
    rows = 50  # a step is long enough to give up the interpreter lock
    x = normal(rng, 4, T, rows, IN)
    results: list[Any] = [None] * len(x)

    def work(i: int) -> None:
        stream = layer.stream(batch=rows)
        results[i] = np.stack([stream.step(step).copy() for step in x[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, part in zip(results, x, strict=True):
        assert_same_bits(result, layer(part)[0])


def test_two_threads_in_one_stream_are_told_so(rng: np.random.Generator) -> None:
    stream = build("lstm").stream(batch=N)
    x = normal(rng, 20_000, N, IN)
    refused: list[RuntimeError] = []

    def attempt(work: Any) -> None:
        try:
            work()
        except RuntimeError as error:
            refused.append(error)

    for _ in range(20):
        thread = threading.Thread(target=attempt, args=(lambda: stream.run(x),))
        thread.start()
        while thread.is_alive() and not refused:
            attempt(lambda: stream.step(x[0]))
        thread.join()
        if refused:
            break
    assert refused, "the threads never met"
    assert "stream" in str(refused[0])
    stream.step(x[0])  # and it works again


USES: dict[str, Any] = {
    "step": lambda stream, state: stream.step(np.ones((N, IN), "float32")),
    "run": lambda stream, state: stream.run(np.ones((T, N, IN), "float32")),
    "reset": lambda stream, state: stream.reset(),
    "read": lambda stream, state: stream.state,
    "assign": lambda stream, state: setattr(stream, "state", state),
}


@pytest.mark.parametrize("use", USES)
def test_a_stream_in_use_is_not_entered_again(use: str) -> None:
    stream = build("gru").stream(batch=N)
    state = stream.state + 1
    with stream._core, pytest.raises(RuntimeError, match="this stream is in use by another thread"):
        USES[use](stream, state)
    assert (stream.state == 0).all()
    USES[use](stream, state)


COUNTED = """
import ctypes, itertools, sys
import numpy as np, fastrnn
layer = getattr(fastrnn, sys.argv[1])(16, int(sys.argv[2]), seed=0).eval()
work = layer.stream(3).step if sys.argv[3] == "step" else layer
x = np.ones((3, 16), "float32")
libc = ctypes.CDLL(None)
libc.dlvsym.restype, libc.dlvsym.argtypes = ctypes.c_void_p, [ctypes.c_void_p] + 2 * [ctypes.c_char_p]
versions = b"GLIBC_2.2.5", b"GLIBC_2.17"  # the oldest of x86-64 and aarch64
def find(name):
    return next((ctypes.CFUNCTYPE(None)(at) for v in versions if (at := libc.dlvsym(None, name, v))), None)
begin, end = find(b"mtrace"), find(b"muntrace")
work(x)
begin()
for _ in itertools.repeat(None, int(sys.argv[4])):
    work(x)
end()
"""


def allocations(kind: str, hidden: int, what: str, times: int, log: Path) -> int:
    """Count what a process that repeats a call asks malloc for, Python's objects included."""
    library = "libc_malloc_debug.so.0"
    tracing = {"LD_PRELOAD": library, "MALLOC_TRACE": str(log), "PYTHONMALLOC": "malloc"}
    arguments = [sys.executable, "-c", COUNTED, kind, str(hidden), what, str(times)]
    done = subprocess.run(arguments, env=os.environ | tracing, capture_output=True, text=True, timeout=120)
    if library in done.stderr:
        pytest.skip(f"no {library}, which glibc counts allocations with: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return sum(" + " in line or " > " in line for line in log.read_text().splitlines())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("hidden", [16, 300])  # the larger one gives up the interpreter lock
def test_a_step_allocates_nothing(kind: str, hidden: int, tmp_path: Path) -> None:
    few, many = (allocations(kind, hidden, "step", times, tmp_path / str(times)) for times in (1, 500))
    assert few == many  # those of switching the trace on and off


def test_allocations_are_counted(tmp_path: Path) -> None:
    few, many = (allocations("GRU", 16, "call", times, tmp_path / str(times)) for times in (1, 500))
    assert many - few >= 499 * 2  # y and h_n


def test_rows_to_reset_may_be_a_list_of_bools(rng: np.random.Generator) -> None:
    stream = build("lstm").stream(batch=N)
    stream.run(normal(rng, T, N, IN))
    h, c = stream.state
    stream.reset([True, False, True, False, False])
    for now, before in zip(stream.state, (h, c), strict=True):
        assert (now[:, [0, 2]] == 0).all()
        assert_same_bits(now[:, [1, 3, 4]], before[:, [1, 3, 4]])


def test_repr_shows_layer_and_batch() -> None:
    assert repr(fastrnn.GRU(3, 4).eval().stream(2)) == "Stream(GRU(3, 4), batch=2)"
