"""While a graph is captured, does nothing wait, copy or free what a graph cannot, and is a replay waited for?

On the emulated device, where a test says which stream is being captured, and sees who waits for whom; the
last test captures by torch, on a GPU.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import fastrnn
import numpy as np
import pytest
from devices import device_array
from fastrnn import _device
from fastrnn.training import SGD, AdaGrad, Adam, AdamW, RMSprop, clip_by_global_norm, softmax_cross_entropy

pytestmark = pytest.mark.cuda

T, B, IN, H = 3, 2, 4, 5
CAPTURED, OTHER = 0x77, 0x99


class Emulated:
    """The runtime of the emulated device: tests/emulator/runtime_emulated.h."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.PyDLL(path)
        for name in ("begin_capture", "end_capture"):
            self.function(name).argtypes = [ctypes.c_void_p]
        self.function("wait_for").argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.function("take_waits").restype = ctypes.c_char_p
        self.function("ask_lock").argtypes = [ctypes.c_void_p]

    def function(self, name: str) -> Any:
        return getattr(self.library, f"fastrnn_emulated_{name}")

    @contextmanager
    def capture(self, stream: int = CAPTURED) -> Iterator[None]:
        self.function("begin_capture")(stream)
        try:
            yield
        finally:
            unjoined = self.function("end_capture")(stream)
        assert not unjoined, "a stream was taken into the capture"

    def replay(self) -> None:
        """Do the work of the graph that was captured last."""
        self.function("replay")()

    def wait_for(self, later: int, earlier: int) -> None:
        self.function("wait_for")(later, earlier)

    def devices_used(self) -> int:
        """Devices that something was asked of since the last time: bit d is cuda:d."""
        return int(self.function("take_set_up")())

    def waits(self) -> list[str]:
        """Who waited for whom since the last time."""
        text: bytes = self.function("take_waits")()
        return text.decode().splitlines()


@pytest.fixture
def emulated() -> Iterator[Emulated]:
    module = _device.module()
    if module.__name__ != "_cuda_emulated":
        pytest.skip("the captures of this test are on an emulated device alone")
    library = Emulated(module.__file__)
    library.waits()
    yield library
    library.function("ask_lock")(None)
    library.function("check_everything")(1)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def array_on(stream: int, array: np.ndarray, device: int = 0, dtype: str = "") -> Any:
    return device_array(array, dtype, device, stream)


class Borrowed:
    """An array of a library without DLPack, which works on a stream of its own."""

    def __init__(self, array: Any, stream: int) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | {"stream": stream}


class Asked:
    """An array of a library with DLPack; notes the stream that it was told to order itself before."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.told: list[int] = []

    def __dlpack__(self, stream: int, **options: Any) -> Any:
        self.told.append(stream)
        return self.array.__dlpack__(stream=-1, **options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


# ---------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_training_call_is_captured_after_an_equal_one(
    emulated: Emulated, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_device, "_ambient_stream", lambda index: CAPTURED)  # for zero_grad()
    layer = fastrnn.LSTM(IN, H, num_layers=2, bidirectional=bidirectional, device="cuda", seed=1)
    longer = array_on(CAPTURED, normal(T + 1, B, IN))
    x = longer[:T]
    with emulated.capture(), pytest.raises(RuntimeError, match="make an equal call before the capture"):
        layer(x)
    expected = layer(x)[0].numpy()
    layer.backward(array_on(CAPTURED, np.ones_like(expected)))
    gradients = {name: array.numpy() for name, array in layer.gradients.items()}
    dy = array_on(CAPTURED, np.ones_like(expected))
    with emulated.capture():
        layer.zero_grad()
        y, _ = layer(x)
        layer.backward(dy)
    for _ in range(2):
        emulated.replay()
    np.testing.assert_array_equal(y.numpy(), expected)
    for name, array in layer.gradients.items():
        np.testing.assert_array_equal(array.numpy(), gradients[name])
    with emulated.capture(), pytest.raises(RuntimeError, match="make an equal call before the capture"):
        layer(longer)


def test_a_stream_is_captured_after_it_was_made(emulated: Emulated) -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1).eval()
    x = array_on(CAPTURED, normal(B, IN))
    layer(x)  # a stream begins where its layer was last used
    with emulated.capture(), pytest.raises(RuntimeError, match="a stream cannot be made in a graph"):
        layer.stream(batch=B)
    expected, stream = layer.stream(batch=B).step(x).numpy(), layer.stream(batch=B)
    with emulated.capture():
        h = stream.step(x)
    emulated.replay()
    np.testing.assert_array_equal(h.numpy(), expected)


def test_the_host_is_not_copied_to_or_from(emulated: Emulated) -> None:
    there = array_on(CAPTURED, normal(T, B))
    with emulated.capture():
        for use in there.numpy, lambda: array_on(CAPTURED, normal(T, B)), lambda: there.__setitem__(0, 1.5):
            with pytest.raises(RuntimeError, match="a copy between host and device cannot be captured"):
                use()
        there[...] = 0  # needs nothing of the host
    assert there.numpy().any()
    emulated.replay()
    assert not there.numpy().any()


@pytest.mark.parametrize("masks", [{"dropout": 0.4}, {"recurrent_dropout": 0.4, "zoneout": 0.2}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "make",
    [partial(SGD, momentum=0.9), AdaGrad, RMSprop, Adam, partial(AdamW, weight_decay=0.3)],
    ids=["sgd", "adagrad", "rmsprop", "adam", "adamw"],
)
def test_every_replay_is_another_training_step(
    emulated: Emulated, make: Any, dtype: str, masks: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With masks of its own for every step, and Adam's steps counted."""
    monkeypatch.setattr(_device, "_ambient_stream", lambda index: CAPTURED)
    trained = []
    for captured in False, True:
        layer = fastrnn.GRU(IN, H, num_layers=2, **masks, device="cuda", dtype=dtype, seed=1)
        optimizer = make([layer], learning_rate=0.05)
        x, dy = (array_on(CAPTURED, array, dtype=dtype) for array in (normal(T, B, IN), normal(T, B, H)))

        def step(layer: Any = layer, optimizer: Any = optimizer, x: Any = x, dy: Any = dy) -> None:
            optimizer.zero_grad()
            layer(x)
            layer.backward(dy)
            optimizer.step()

        step()
        if captured:
            with emulated.capture():
                step()
        for _ in range(3):
            emulated.replay() if captured else step()
        trained.append([array.numpy() for array in layer.parameters.values()])
    for eager, replayed in zip(*trained, strict=True):
        np.testing.assert_array_equal(replayed, eager)


@pytest.mark.parametrize("tokens", [False, True], ids=["features", "tokens"])
def test_lengths_resets_and_tokens_are_read_at_every_replay(
    emulated: Emulated, tokens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of each replay, from the device, where nobody looks at them before."""
    monkeypatch.setattr(_device, "_ambient_stream", lambda index: CAPTURED)
    emulated.function("check_everything")(0)
    captured, eager = (fastrnn.GRU(IN, H, bidirectional=True, device="cuda", seed=1) for _ in range(2))
    dy = array_on(CAPTURED, normal(T, B, 2 * H))
    rng = np.random.default_rng(0)

    def drawn() -> list[np.ndarray]:
        x = rng.integers(0, IN, (T, B)) if tokens else rng.standard_normal((T, B, IN)).astype("float32")
        return [x, rng.integers(0, T + 1, B), rng.random((T, B)) < 0.3]

    def step(layer: Any, x: Any, lengths: Any, reset: Any) -> list[Any]:
        layer.zero_grad()
        y, h_n = layer(x, lengths=lengths, reset=reset)
        dx, dh = layer.backward(dy)
        return [y, h_n, dh, *layer.gradients.values(), *([] if tokens else [dx])]

    inputs = [array_on(CAPTURED, array) for array in drawn()]
    step(captured, *inputs)
    with emulated.capture():
        results = step(captured, *inputs)
    for _ in range(3):
        arrays = drawn()
        for array, there in zip(arrays, inputs, strict=True):
            there[...] = array
        emulated.replay()
        expected = step(eager, *(array_on(CAPTURED, array) for array in arrays))
        for result, other in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result.numpy(), other.numpy())


def test_a_step_s_rows_are_read_at_every_replay(emulated: Emulated) -> None:
    emulated.function("check_everything")(0)
    layer = fastrnn.LSTM(IN, H, device="cuda", seed=1).eval()
    captured, eager = layer.stream(batch=3), layer.stream(batch=3)
    x, rows = array_on(CAPTURED, normal(2, IN)), array_on(CAPTURED, np.array([2, 0]))
    captured.step(x, rows)
    captured.reset()
    with emulated.capture():
        h = captured.step(x, rows)
    for chosen in [2, 0], [1, 2], [0, 1]:
        rows[...] = chosen
        emulated.replay()
        np.testing.assert_array_equal(h.numpy(), eager.step(x, chosen).numpy())
        for one, other in zip(captured.state, eager.state, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    emulated.function("check_everything")(1)
    with pytest.raises(ValueError, match=r"rows\[1\] is 3; expected from 0 to 2"):
        captured.step(x, array_on(CAPTURED, np.array([2, 3])))
    with pytest.raises(ValueError, match=r"rows is \[1, 1\]; expected each stream at most once"):
        captured.step(x, array_on(CAPTURED, np.array([1, 1])))


def test_numbers_on_the_device_out_of_range_count_as_the_nearest(emulated: Emulated) -> None:
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    wrong = {"x": np.arange(T * B).reshape(T, B) - 3, "lengths": np.array([-2, T + 3])}
    right = {"x": wrong["x"].clip(0, IN - 1), "lengths": wrong["lengths"].clip(0, T)}
    with pytest.raises(ValueError, match=rf"lengths\[0\] is -2; expected from 0 to T = {T}"):
        layer(**{name: array_on(CAPTURED, array) for name, array in wrong.items()})
    emulated.function("check_everything")(0)
    results = []
    for numbers in wrong, right:
        y, h_n = layer(**{name: array_on(CAPTURED, array) for name, array in numbers.items()})
        layer.zero_grad()
        _, dh = layer.backward(array_on(CAPTURED, normal(T, B, H)))
        results.append([array.numpy() for array in (y, h_n, dh, *layer.gradients.values())])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    stream = layer.eval().stream(batch=2)
    steps = [stream.step(array_on(CAPTURED, np.array(tokens))).numpy() for tokens in ([-1, IN], [0, IN - 1])]
    assert steps[0].shape == (2, H)
    stream.reset()
    np.testing.assert_array_equal(stream.step(array_on(CAPTURED, np.array([0, IN - 1]))).numpy(), steps[0])


def test_a_first_backward_is_captured(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs nothing that an earlier one has set up, and adds to the layer's gradients."""
    monkeypatch.setattr(_device, "_ambient_stream", lambda index: CAPTURED)
    layer = fastrnn.GRU(IN, H, device="cuda", seed=1)
    x, dy = array_on(CAPTURED, normal(T, B, IN)), array_on(CAPTURED, normal(T, B, H))
    layer(x)
    with emulated.capture():
        layer(x)
        layer.backward(dy)
    emulated.replay()
    replayed = layer.gradients["weight_hh_l0"].numpy()
    layer.zero_grad()
    layer(x)
    layer.backward(dy)
    np.testing.assert_array_equal(replayed, layer.gradients["weight_hh_l0"].numpy())


def test_a_copy_of_a_strided_argument_is_part_of_the_graph(emulated: Emulated) -> None:
    layer = fastrnn.GRU(IN, H, num_layers=2, device="cuda", seed=1).eval()
    x, wide = array_on(CAPTURED, normal(T, B, IN)), array_on(OTHER, normal(2, B, 2 * H))
    h_0 = wide[:, :, ::2]
    from_h_0, expected = layer(x, h_0)[0].numpy(), layer(x)[0].numpy()
    assert (from_h_0 != expected).any()
    wide.follow(OTHER)
    with emulated.capture():
        y, _ = layer(x, h_0)
    wide[...] = 0
    emulated.replay()
    np.testing.assert_array_equal(y.numpy(), expected)


@pytest.mark.parametrize("theirs", [False, True], ids=["own", "dlpack"])
def test_an_assignment_is_captured_with_its_source(
    emulated: Emulated, theirs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_device, "current_stream", lambda value, index: CAPTURED)
    source, target = array_on(CAPTURED, normal(T, B)), array_on(OTHER, np.zeros((T, B), "float32"))
    with emulated.capture():
        target[...] = Asked(source) if theirs else source
    assert not target.numpy().any()
    emulated.replay()
    np.testing.assert_array_equal(target.numpy(), source.numpy())


# ----------------------------------------------------------------------------------------- order


def test_memory_that_comes_back_waits_in_its_own_capture_alone(emulated: Emulated) -> None:
    module = _device.module()
    theirs = array_on(OTHER, normal(T, B))
    borrowed = module.from_dlpack(theirs, CAPTURED, OTHER)
    with emulated.capture():
        borrowed.follow(CAPTURED)
        del borrowed  # back to its library, whose stream has no part in the capture
    with emulated.capture(OTHER):
        borrowed = module.from_dlpack(theirs, CAPTURED, OTHER)
        del borrowed
    emulated.waits()
    with emulated.capture():
        emulated.wait_for(OTHER, CAPTURED)  # a fork, of which both streams are a part
        borrowed = module.from_dlpack(theirs, OTHER, CAPTURED)
        del borrowed
    assert emulated.waits()[-1] == "cuda:0 0x77 for 0x99"
    borrowed = module.from_dlpack(theirs, CAPTURED, OTHER)
    del borrowed
    assert emulated.waits()[-1] == "cuda:0 0x99 for 0x77"


def test_the_host_waits_before_memory_goes_back_to_who_knows_which_stream(emulated: Emulated) -> None:
    module = _device.module()
    theirs = array_on(OTHER, normal(T, B))
    unknown = Borrowed(theirs, CAPTURED)
    unknown.__cuda_array_interface__["stream"] = None
    for borrow in partial(module.from_dlpack, theirs), partial(module.from_cuda_array_interface, unknown):
        borrowed = borrow(CAPTURED)
        view = borrowed[1:]
        view.follow(OTHER)
        del borrowed
        emulated.waits()
        del view
        assert emulated.waits() == ["cuda:0 host for 0x99"]
        borrowed = borrow(CAPTURED)
        with emulated.capture():  # where nobody can wait: whoever replays keeps the array
            borrowed.follow(CAPTURED)
            emulated.waits()
            del borrowed
        assert emulated.waits() == []


def test_memory_of_an_interface_goes_back_to_its_stream(emulated: Emulated) -> None:
    theirs = array_on(OTHER, normal(T, B))
    borrowed = _device.module().from_cuda_array_interface(Borrowed(theirs, OTHER), CAPTURED)
    emulated.waits()
    del borrowed
    assert emulated.waits() == ["cuda:0 0x99 for 0x77"]


def test_arrays_change_streams_in_their_own_capture_alone(emulated: Emulated) -> None:
    there = array_on(OTHER, normal(T, B))
    emulated.waits()
    with emulated.capture():
        there.follow(CAPTURED)  # what came before the capture is not waited for,
        there.follow(OTHER)  # nor does what is outside wait for what is inside
        assert emulated.waits() == []
        there.follow(CAPTURED)
        emulated.wait_for(OTHER, CAPTURED)
        there.follow(OTHER)
        there.follow(CAPTURED)
        assert emulated.waits()[-1] == "cuda:0 0x77 for 0x99"


def test_arrays_come_in_while_a_graph_is_captured(emulated: Emulated) -> None:
    module = _device.module()
    there = array_on(OTHER, normal(T, B))
    borrowed, asked = Borrowed(there, OTHER), Asked(there)
    emulated.waits()
    with emulated.capture():
        module.from_cuda_array_interface(borrowed, CAPTURED)
        for home in 0, OTHER:
            module.from_dlpack(asked, CAPTURED, home)
        module.from_dlpack(asked, OTHER, CAPTURED)
    assert asked.told == [-1, -1, -1]
    assert emulated.waits() == []
    module.from_cuda_array_interface(borrowed, CAPTURED)
    module.from_dlpack(asked, CAPTURED, OTHER)
    assert asked.told[3:] == [CAPTURED]
    assert emulated.waits()[0] == "cuda:0 0x77 for 0x99"


def test_two_captures_do_not_wait_for_each_other(emulated: Emulated) -> None:
    there = array_on(OTHER, normal(T, B))
    asked = Asked(there)
    emulated.waits()
    with emulated.capture(), emulated.capture(OTHER):
        there.follow(CAPTURED)
        there.follow(OTHER)
        _device.module().from_dlpack(asked, CAPTURED, OTHER)
    assert asked.told == [-1]
    assert emulated.waits() == []


def test_the_host_waits_for_replays_that_write_a_copy(emulated: Emulated) -> None:
    there = array_on(CAPTURED, normal(T, B))
    with emulated.capture():
        copied = there.copy()
    emulated.replay()
    emulated.waits()
    np.testing.assert_array_equal(copied.numpy(), normal(T, B))
    assert emulated.waits()[0] == "cuda:0 host for all"


def test_the_host_waits_for_replays_on_any_stream(emulated: Emulated) -> None:
    layer = fastrnn.GRU(IN, H, num_layers=2, dropout=0.5, device="cuda", seed=1)
    x, dy = array_on(CAPTURED, normal(T, B, IN)), array_on(CAPTURED, normal(T, B, H))
    layer(x)
    layer.backward(dy)
    emulated.waits()
    layer.gradients["bias_hh_l0"].numpy()
    assert emulated.waits() == ["cuda:0 host for 0x77"]
    with emulated.capture():
        y, _ = layer(x)
        layer.backward(dy)
    emulated.waits()
    for read in y[:, 1:].numpy, layer.gradients["bias_hh_l0"].numpy, lambda: layer._saved.calls:
        read()
        assert emulated.waits() == ["cuda:0 host for all", "cuda:0 host for 0x77"]


# ------------------------------------------------------------------- the lock, and two devices


def test_the_interpreter_goes_on_while_the_host_waits(emulated: Emulated) -> None:
    layer = fastrnn.GRU(IN, H, num_layers=2, dropout=0.5, device="cuda", seed=1)
    y, _ = layer(array_on(CAPTURED, normal(T, B, IN)))
    layer.backward(y)
    emulated.function("ask_lock")(ctypes.cast(ctypes.pythonapi.PyGILState_Check, ctypes.c_void_p))
    emulated.wait_for(OTHER, CAPTURED)
    for wait in (
        lambda: layer._saved.calls,
        lambda: clip_by_global_norm([layer], 1.0),
        lambda: softmax_cross_entropy(y, np.zeros((T, B), int)),
        y.numpy,
    ):
        emulated.waits()
        wait()
        waits = [line for line in emulated.waits() if " host for " in line]
        assert waits
        assert not any(line.endswith("locked") for line in waits)


def test_work_on_the_second_device_waits_there(emulated: Emulated) -> None:
    y = array_on(CAPTURED, normal(T, B, H), device=1)
    targets = array_on(OTHER, np.zeros((T, B), int), device=1)
    scored = array_on(OTHER, np.ones((T, B), bool), device=1)
    gradient = array_on(OTHER, np.empty((T, B, H), "float32"), device=1)
    emulated.waits()
    _device.module().softmax_cross_entropy(y, targets, scored, gradient, 1.0, CAPTURED)
    waits = emulated.waits()
    assert waits[:-1] == ["cuda:1 0x77 for 0x99"] * 3
    assert waits[-1].startswith("cuda:1 host for ")


def test_work_on_the_second_device_leaves_the_first_alone(emulated: Emulated) -> None:
    """A GPU is set up when something is first asked of it, which takes half a gigabyte of its memory."""
    gc.collect()  # what other tests had on the first
    emulated.devices_used()
    module = _device.module()
    layer = fastrnn.LSTM(IN, H, num_layers=2, bidirectional=True, dropout=0.5, device="cuda:1", seed=1)
    optimizer = Adam([layer], learning_rate=0.05)
    x = normal(T, B, IN)
    there = array_on(CAPTURED, x, device=1)
    for given in x, there, Borrowed(there, OTHER):
        y, _ = layer(given)
        layer.backward(array_on(OTHER, normal(T, B, 2 * H), device=1))
    optimizer.step()
    for home in 0, CAPTURED, OTHER:
        layer.parameters["weight_ih_l0"][...] = module.from_dlpack(
            Asked(array_on(OTHER, normal(4 * H, IN), 1)), OTHER, home
        )
    clip_by_global_norm([layer], 1.0)
    stream = fastrnn.GRU(IN, H, device="cuda:1", seed=1).eval().stream(batch=B)
    stream.step(there[0])
    stream.reset(rows=[0])
    layer.to("cpu")
    del y, there, stream, layer, optimizer
    fastrnn.info()
    assert emulated.devices_used() == 0b10


# ------------------------------------------------------------------------------------------ a GPU


def test_torch_captures_a_training_step() -> None:
    """Replays give the bits of as many steps without a graph."""
    if _device.module().__name__ == "_cuda_emulated":
        pytest.skip("there is no GPU")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch sees no GPU")
    x, dy = (torch.from_numpy(array).cuda() for array in (normal(T, B, IN), normal(T, B, 2 * H)))
    trained = []
    for captured in False, True:
        layer = fastrnn.LSTM(IN, H, num_layers=2, bidirectional=True, dropout=0.3, device="cuda", seed=1)
        optimizer = Adam([layer], learning_rate=0.05)

        def step(layer: Any = layer, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            layer(x)
            layer.backward(dy)
            optimizer.step()

        step()
        torch.cuda.synchronize()
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
        for _ in range(3):
            graph.replay() if captured else step()
        torch.cuda.synchronize()
        trained.append([array.numpy() for array in layer.parameters.values()])
    for eager, replayed in zip(*trained, strict=True):
        np.testing.assert_array_equal(replayed, eager)
