"""Do the layers and cells keep their promises: layouts, modes, gradients, copies, seeds?"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import functional
from fastrnn.layouts import DTYPES
from nested import arrays, assert_equal
from tolerances import assert_same_bits

LAYERS: dict[str, Any] = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}
CELLS: dict[str, Any] = {"lstm": fastrnn.LSTMCell, "gru": fastrnn.GRUCell, "rnn": fastrnn.RNNCell}
T, B, IN, H = 5, 3, 4, 6


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def draw_state(rng: np.random.Generator, cell: str, *shape: int) -> Any:
    h, c = normal(rng, *shape), normal(rng, *shape)
    return (h, c) if cell == "lstm" else h


def map_state(function: Any, state: Any) -> Any:
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


# ---------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_batch_first_is_the_same_call_with_axes_swapped(
    cell: str, bidirectional: bool, rng: np.random.Generator
) -> None:
    options = {"num_layers": 2, "bidirectional": bidirectional, "seed": 1}
    time_first = LAYERS[cell](IN, H, **options)
    batch_first = LAYERS[cell](IN, H, batch_first=True, **options)
    x, state = normal(rng, T, B, IN), draw_state(rng, cell, 2 * (1 + bidirectional), B, H)
    lengths, reset = np.array([5, 0, 3]), rng.random((T, B)) < 0.3
    y, state_n = time_first(x, state, lengths=lengths, reset=reset)
    swapped = batch_first(x.swapaxes(0, 1), state, lengths=lengths, reset=reset.T)
    assert_equal((y.swapaxes(0, 1), state_n), swapped)

    dy = normal(rng, *y.shape)
    dx, dstate = time_first.backward(dy, state_n)
    assert_equal((dx.swapaxes(0, 1), dstate), batch_first.backward(dy.swapaxes(0, 1), state_n))
    assert_equal(time_first.gradients, batch_first.gradients)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one(cell: str, batch_first: bool, rng: np.random.Generator) -> None:
    layer = LAYERS[cell](IN, H, num_layers=2, batch_first=batch_first, seed=1)
    x, state = normal(rng, T, IN), draw_state(rng, cell, 2, H)
    reset = np.array([False, True, False, False, True])
    axis = 0 if batch_first else 1
    y, state_n = layer(x, state, lengths=4, reset=reset)
    assert y.shape == (T, H)
    dx, dstate = layer.backward(y, state_n)
    batched = layer(
        np.expand_dims(x, axis),
        map_state(lambda a: a[:, None], state),
        lengths=[4],
        reset=np.expand_dims(reset, axis),
    )
    assert_equal((y, state_n), (batched[0].squeeze(axis), map_state(lambda a: a[:, 0], batched[1])))
    dx_batched, dstate_batched = layer.backward(*batched)
    assert_equal((dx, dstate), (dx_batched.squeeze(axis), map_state(lambda a: a[:, 0], dstate_batched)))


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, ">i2"])
def test_tokens_are_one_hot_vectors(cell: str, kind: Any, rng: np.random.Generator) -> None:
    layer = LAYERS[cell](IN, H, seed=1)
    tokens = rng.integers(IN, size=(T, B)).astype(kind)
    y, state_n = layer(np.eye(IN, dtype="float32")[tokens])
    y_tokens, state_tokens = layer(tokens)
    assert_equal((y_tokens, state_tokens), (y, state_n))
    dx, _ = layer.backward(y)
    assert dx is None
    one, _ = layer(tokens[:, 0])
    assert one.shape == (T, H)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("padding", [-1, IN, 2**62])
def test_tokens_past_the_lengths_may_be_anything(cell: str, padding: int, rng: np.random.Generator) -> None:
    tokens, lengths = rng.integers(IN, size=(T, B)), [2, T, 0]
    past = np.arange(T)[:, None] >= np.array(lengths)
    results = []
    for value in (0, padding):
        layer = LAYERS[cell](IN, H, bidirectional=True, seed=1)
        y, state_n = layer(np.where(past, value, tokens), lengths=lengths)
        results.append((y, state_n, layer.backward(y, state_n)[1], layer.gradients))
    assert_equal(results[1], results[0])


@pytest.mark.parametrize("cell", LAYERS)
def test_strides_and_byte_order_do_not_matter(cell: str, rng: np.random.Generator) -> None:
    layer = LAYERS[cell](IN, H, seed=1).eval()
    x, state = normal(rng, T, B, IN), draw_state(rng, cell, 1, B, H)
    expected = layer(x, state)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view("float32").reshape(x.shape)
    assert not unaligned.flags.aligned
    wide = np.zeros((T, 2 * B, IN + 3), "float32")
    wide[:, ::2, 1 : 1 + IN] = x
    other = {
        "backwards in time": x[::-1].copy()[::-1],
        "backwards in features": x[..., ::-1].copy()[..., ::-1],
        "Fortran order": np.asfortranarray(x),
        "part of a larger array": wide[:, ::2, 1 : 1 + IN],
        "other byte order": x.astype(x.dtype.newbyteorder()),
        "unaligned": unaligned,
    }
    for name, same in other.items():
        np.testing.assert_array_equal(same, x, err_msg=name)
        assert_equal(layer(same, map_state(np.asfortranarray, state)), expected)
    repeated = np.broadcast_to(x[:, :1], x.shape)
    assert_equal(layer(repeated), layer(repeated.copy()))


def test_the_stride_of_an_axis_of_length_1_does_not_matter(rng: np.random.Generator) -> None:
    layer = fastrnn.GRU(IN, H, seed=1).eval()
    record = np.dtype([("x", "float32", (B, IN)), ("rest", "V2")])  # of a size that no float divides
    rows = np.zeros(T, record)["x"][:1]
    rows[...] = normal(rng, 1, B, IN)
    assert rows.strides[0] % rows.itemsize
    assert_equal(layer(rows), layer(rows.copy()))
    assert_equal(layer(rows.swapaxes(0, 1)), layer(rows.swapaxes(0, 1).copy()))


def test_flags_may_be_lists(rng: np.random.Generator) -> None:
    layer, x, reset = fastrnn.GRU(IN, H, seed=1).eval(), normal(rng, T, B, IN), rng.random((T, B)) < 0.4
    assert_equal(layer(x, reset=reset.tolist()), layer(x, reset=reset))


def test_an_empty_batch_gives_empty_results() -> None:
    layer = fastrnn.LSTM(IN, H, num_layers=2, seed=1)
    y, (h_n, c_n) = layer(np.zeros((T, 0, IN), "float32"), lengths=np.zeros(0, int))
    assert y.shape == (T, 0, H)
    assert h_n.shape == c_n.shape == (2, 0, H)
    dx, (dh, dc) = layer.backward(np.zeros_like(y))
    assert dx.shape == (T, 0, IN)
    assert dh.shape == dc.shape == h_n.shape
    assert not any(gradient.any() for gradient in layer.gradients.values())


# ------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cell_is_one_step_of_its_layer(cell: str, dtype: str, rng: np.random.Generator) -> None:
    one, layer = CELLS[cell](IN, H, dtype=dtype, seed=1), LAYERS[cell](IN, H, dtype=dtype, seed=1)
    assert list(one.parameters) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    for name, array in one.parameters.items():
        assert_same_bits(array, layer.parameters[name + "_l0"])
    x = normal(rng, B, IN, dtype=dtype)
    state = map_state(lambda a: a.astype(dtype), draw_state(rng, cell, B, H))
    state_n = one(x, state)
    _, expected = layer(x[None], map_state(lambda a: a[None], state))
    assert_equal(state_n, map_state(lambda a: a[0], expected))
    dx, dstate = one.backward(state_n)
    dx_layer, dstate_layer = layer.backward(None, expected)
    assert_equal((dx, dstate), (dx_layer[0], map_state(lambda a: a[0], dstate_layer)))
    for name, gradient in one.gradients.items():
        assert_same_bits(gradient, layer.gradients[name + "_l0"])
    # Without a batch axis, and as a token.
    alone = one(x[0], map_state(lambda a: a[0], state))
    assert_equal(alone, map_state(lambda a: a[0], state_n))
    assert_equal(one.eval()(np.array([2, 0])), one(np.eye(IN, dtype=dtype)[[2, 0]]))
    assert map_state(np.shape, one(np.array(2))) == ((H,) if cell != "lstm" else ((H,), (H,)))


# ------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("cell", LAYERS)
def test_both_modes_give_the_same_bits_and_keep_the_arrays(cell: str, rng: np.random.Generator) -> None:
    layer = LAYERS[cell](IN, H, num_layers=2, seed=1)
    assert layer.training
    x, before = normal(rng, T, B, IN), dict(layer.parameters)
    trained = layer(x)
    assert not trained[0].flags.writeable
    assert layer.eval() is layer
    assert not layer.training
    inferred = layer(x)
    assert inferred[0].flags.writeable
    assert_equal(trained, inferred)
    for array in layer.parameters.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert layer.train() is layer
    for name, array in layer.parameters.items():
        assert array is before[name]
        array *= 2
    doubled = layer(x)
    assert not np.array_equal(doubled[0], inferred[0])
    assert_equal(layer.eval()(x), doubled)
    assert layer.train(False).training is False


BUSY: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "call": lambda layer, x: layer(x),
    "backward": lambda layer, x: layer.backward(x),
    "zero_grad": lambda layer, x: layer.zero_grad(),
    "train": lambda layer, x: layer.train(),
    "eval": lambda layer, x: layer.eval(),
    "to": lambda layer, x: layer.to("cpu", "float64"),
    "load_state_dict": lambda layer, x: layer.load_state_dict(layer.state_dict()),
}


@pytest.mark.parametrize("what", BUSY)
@pytest.mark.parametrize("kind", [fastrnn.GRU, fastrnn.GRUCell])
def test_a_layer_in_use_is_not_entered_again(kind: Any, what: str) -> None:
    layer, x = kind(H, H, seed=1), np.ones((B, H), "float32")
    layer(x)
    with (
        layer._alone(),
        pytest.raises(RuntimeError, match="this layer is in use by another thread: eval calls"),
    ):
        BUSY[what](layer, x)
    BUSY[what](layer, x)


def in_threads(*works: Callable[[], Any]) -> list[BaseException]:
    """Run all at once; return what they raised."""
    raised: list[BaseException] = []

    def attempt(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=attempt, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_training_calls_of_two_threads_never_meet(rng: np.random.Generator) -> None:
    layer, inputs = fastrnn.LSTM(IN, 32, seed=1), [normal(rng, steps, 4, IN) for steps in (300, 500)]

    def work(x: np.ndarray) -> None:
        for _ in range(40):
            try:
                layer.backward(np.ones_like(layer(x)[0]))
            except RuntimeError as error:
                assert "in use by another thread" in str(error) or "went through it" in str(error)  # noqa: PT017
            except ValueError as error:
                assert "dy has shape" in str(error)  # noqa: PT017  # the other thread's call came later

    assert in_threads(*(lambda x=x: work(x) for x in inputs)) == []


def test_eval_calls_survive_a_change_of_mode(rng: np.random.Generator) -> None:
    # Long enough to give up the interpreter lock, so that the mode changes during a call too.
    layer, x = fastrnn.GRU(IN, H, seed=1).eval(), normal(rng, 100, B, IN)
    expected = layer(x)

    def switch() -> None:
        for _ in range(300):
            layer.train().eval()

    def call() -> None:
        for _ in range(300):
            try:
                assert_equal(layer(x), expected)
            except RuntimeError as error:  # while it was in training mode
                assert "in use by another thread" in str(error)  # noqa: PT017

    raised = in_threads(switch, call)
    assert all("in use by another thread" in str(error) for error in raised)


def test_parameters_are_changed_in_place_only() -> None:
    layer = fastrnn.RNN(IN, H, seed=1)
    array = layer.parameters["weight_ih_l0"]
    layer.parameters["weight_ih_l0"] -= np.float32(0.5)
    assert layer.parameters["weight_ih_l0"] is array
    assert "weight_ih_l0: float32 (6, 4)" in repr(layer.parameters)


def test_gradients_start_at_zero_add_up_and_can_be_zeroed(rng: np.random.Generator) -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    assert list(layer.gradients) == list(layer.parameters)
    assert not any(gradient.any() for gradient in layer.gradients.values())
    x, y = normal(rng, T, B, IN), normal(rng, T, B, H)
    layer(x)
    layer.backward(y)
    once = {name: gradient.copy() for name, gradient in layer.gradients.items()}
    layer(x)
    layer.backward(y)
    for name, gradient in layer.gradients.items():
        assert gradient.any()
        assert_same_bits(gradient, once[name] + once[name])
    kept = dict(layer.gradients)
    layer.zero_grad()
    assert all(gradient is kept[name] and not gradient.any() for name, gradient in layer.gradients.items())


def test_backward_gives_both_gradients_for_any_incoming(rng: np.random.Generator) -> None:
    layer = fastrnn.LSTM(IN, H, seed=1)
    x, dy, dh = normal(rng, T, B, IN), normal(rng, T, B, H), normal(rng, 1, B, H)
    zero = np.zeros_like(dh)
    layer(x)
    dx, (dh_0, dc_0) = layer.backward(dy)
    assert dx.shape == x.shape
    assert dh_0.shape == dc_0.shape == (1, B, H)
    layer(x)
    assert_equal(layer.backward(dy, (zero, zero)), (dx, (dh_0, dc_0)))
    layer(x)
    some = layer.backward(dstate_n=(dh, None))
    layer(x)
    assert_equal(layer.backward(np.zeros_like(dy), (dh, zero)), some)
    layer(x)
    assert not any(array.any() for array in arrays(layer.backward()))


def test_the_layer_agrees_with_the_functional_form(rng: np.random.Generator) -> None:
    layer = fastrnn.LSTM(IN, H, num_layers=2, bidirectional=True, dropout=0.5, proj_size=2, seed=7)
    spec = functional.Spec(
        "lstm", IN, H, num_layers=2, bidirectional=True, dropout=0.5, proj_size=2, dtype="float32"
    )
    x = normal(rng, T, B, IN)
    state = (normal(rng, 4, B, 2), normal(rng, 4, B, H))
    for call in range(3):
        y, state_n = layer(x, state)
        *expected, reserve = functional.forward_train(spec, layer.parameters, x, state, seed=7, call=call)
        assert_equal((y, state_n), tuple(expected))
        layer.zero_grad()
        results = layer.backward(y, state_n)
        *expected, gradients = functional.backward(spec, layer.parameters, reserve, y, state_n)
        assert_equal(results, tuple(expected))
        assert_equal(layer.gradients, gradients)
    packed = functional.pack(spec, layer.parameters)
    assert_equal(functional.forward(spec, packed, x, state), layer.eval()(x, state))


def test_a_reserve_can_be_used_again_and_out_of_order(rng: np.random.Generator) -> None:
    spec = functional.Spec("gru", IN, H)
    layer = fastrnn.GRU(IN, H, seed=3)
    x = normal(rng, 2, T, B, IN)
    reserves = [functional.forward_train(spec, layer.parameters, part)[2] for part in x]
    first = [functional.backward(spec, layer.parameters, r, r.y) for r in reserves]
    for reserve, results in zip(reversed(reserves), reversed(first), strict=True):
        again = functional.backward(spec, layer.parameters, reserve, reserve.y)
        assert_equal(again, results)
    assert "T=5, B=3" in repr(reserves[0])


@pytest.mark.parametrize(
    ("cell", "values", "options"),
    [
        ("lstm", 5, {}),
        ("lstm", 5, {"proj_size": 32}),
        ("lstm", 5, {"peephole": "full"}),
        ("gru", 3, {}),
        ("gru", 3, {"reset_after": False}),
        ("rnn", 1, {}),
    ],
)
def test_a_reserve_holds_what_the_gates_need(cell: str, values: int, options: dict[str, Any]) -> None:
    """At most G values per step, row and unit, LSTM G+1; and the outputs of all layers but the last."""
    for layers in (1, 3):
        spec = functional.Spec(cell, IN, 64, num_layers=layers, bidirectional=True, **options)
        parameters = {name: np.zeros(shape, "float32") for name, shape in spec.parameter_shapes().items()}
        *_, reserve = functional.forward_train(spec, parameters, np.zeros((T, B, IN), "float32"))
        units, between = layers * 2 * 64, (layers - 1) * spec.output_size
        assert reserve.nbytes <= 4 * T * B * (values * units + between)


def test_results_go_where_out_says(rng: np.random.Generator) -> None:
    spec = functional.Spec("lstm", IN, H)
    layer = fastrnn.LSTM(IN, H, seed=3)
    x = normal(rng, T, B, IN)
    expected = functional.forward(spec, layer.parameters, x)
    y = np.zeros((T, B, H + 2), "float32")[..., 1:-1]
    state = tuple(np.zeros((1, B, H), "float32") for _ in "hc")
    results = functional.forward(spec, layer.parameters, x, out=(y, state))
    assert results[0] is y
    assert results[1] is state
    assert_equal(results, expected)
    y[...] = 0
    assert functional.forward(spec, layer.parameters, x, out=y)[0] is y
    assert_equal(y, expected[0])


# ------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies_are_equal_and_independent(duplicate: Any, training: bool, rng: np.random.Generator) -> None:
    layer = fastrnn.LSTM(IN, H, num_layers=2, dropout=0.5, batch_first=True, peephole="full", seed=1)
    x = normal(rng, B, T, IN)
    layer(x)
    layer.backward(np.ones((B, T, H), "float32"))
    layer.train(training)
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert other.training is training
    assert_equal(other.gradients, layer.gradients)
    assert_equal(other(x), layer(x))  # the next dropout mask too
    for name, array in other.train().parameters.items():
        assert not np.shares_memory(array, layer.parameters[name])
        array[...] = 0
    assert all(array.any() for array in layer.parameters.values())


def test_a_copy_has_no_call_to_go_back_through(rng: np.random.Generator) -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    y, _ = layer(normal(rng, T, B, IN))
    with pytest.raises(RuntimeError, match="without a training call"):
        copy.copy(layer).backward(y)
    layer.backward(y)


# ------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("cell", LAYERS)
def test_the_seed_decides_parameters_and_dropout(cell: str, rng: np.random.Generator) -> None:
    def build(seed: int | None) -> Any:
        return LAYERS[cell](IN, H, num_layers=2, dropout=0.5, seed=seed)

    x = normal(rng, T, B, IN)
    one, same, other = build(5), build(5), build(6)
    assert one.seed == 5
    first = one(x)
    assert_equal(first, same(x))
    assert not np.array_equal(first[0], one(x)[0]), "every call has its own masks"
    assert not np.array_equal(one.parameters["weight_hh_l0"], other.parameters["weight_hh_l0"])
    assert build(None).seed != build(None).seed
    again = build(one.seed)
    assert_equal(again(x), first)
    largest = max(abs(array).max() for array in one.parameters.values())
    assert 0.9 * H**-0.5 < largest <= H**-0.5


def test_both_dtypes_start_from_the_same_numbers() -> None:
    single, double = (fastrnn.LSTM(IN, H, dtype=dtype, seed=1) for dtype in DTYPES)
    for name, array in double.parameters.items():
        assert_same_bits(array.astype("float32"), single.parameters[name])


# -------------------------------------------------------------------------------------- appearance


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (fastrnn.LSTM(3, 5), "LSTM(3, 5)"),
        (
            fastrnn.LSTM(3, 5, 2, False, True, 0.5, True, 2, peephole="diagonal", dtype="float64"),
            "LSTM(3, 5, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, "
            "proj_size=2, peephole='diagonal', dtype='float64')",
        ),
        (fastrnn.GRU(3, 5, reset_after=False), "GRU(3, 5, reset_after=False)"),
        (fastrnn.RNN(3, 5, 2, "relu"), "RNN(3, 5, num_layers=2, nonlinearity='relu')"),
        (fastrnn.LSTMCell(3, 5, False), "LSTMCell(3, 5, bias=False)"),
        (fastrnn.GRUCell(3, 5, dtype=np.float64), "GRUCell(3, 5, dtype='float64')"),
        (fastrnn.RNNCell(3, 5, nonlinearity="identity"), "RNNCell(3, 5, nonlinearity='identity')"),
    ],
)
def test_repr_shows_what_differs_from_the_defaults(layer: Any, text: str) -> None:
    assert repr(layer) == text


def test_attributes_have_the_names_of_torch() -> None:
    layer = fastrnn.LSTM(3, 5, 2, False, True, 0.5, True, 2, peephole="full")
    names = "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size peephole"
    assert [getattr(layer, name) for name in names.split()] == [3, 5, 2, False, True, 0.5, True, 2, "full"]
    assert (layer.dtype, layer.device) == ("float32", "cpu")
    assert fastrnn.LSTM(3, 5).peephole is False
    assert fastrnn.GRU(3, 5).reset_after is True
    assert fastrnn.RNN(np.int64(3), 5, dropout=0).nonlinearity == "tanh"


def test_dropout_of_a_single_layer_warns() -> None:
    with pytest.warns(UserWarning, match=r"dropout=0.5 has no effect.*num_layers is 1") as caught:
        fastrnn.GRU(3, 5, dropout=0.5)
    assert caught[0].filename == __file__


def test_explain_counts_panels() -> None:
    x = np.zeros((T, B, IN), "float32")
    lanes = int(fastrnn.GRU(IN, 1).explain(x)["isa"].split()[1])
    for hidden_size, panels in (lanes, "1 panel of"), (lanes + 1, "2 panels of"):
        assert f"; {panels} {lanes} units" in fastrnn.GRU(IN, hidden_size).explain(x)["tile"]


@pytest.mark.parametrize("x", [np.zeros((T, B, IN), "float32"), np.zeros((T, B), int)])
def test_explain_names_the_kernel(x: np.ndarray) -> None:
    layer = fastrnn.GRU(IN, H, seed=1)
    report = layer.explain(x)
    assert {"kernel", "isa", "threads"} <= set(report)
    assert str(report).splitlines()[0].startswith(next(iter(report)))
    assert layer.eval().explain(x)["isa"] == report["isa"]
    with pytest.raises(ValueError, match="x has shape"):
        layer.explain(x[None, None])


def test_import_needs_numpy_alone() -> None:
    program = (
        "import sys, fastrnn; fastrnn.GRU(2, 3); "
        "print(*{'torch', 'safetensors', 'tqdm', 'matplotlib'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert output.stdout.strip() == ""
