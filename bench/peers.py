"""Who is measured: each implementation behind one interface, all given the same weights and data.

fastrnn, PyTorch, and a loop in NumPy are here; the others in onnx_peers.py, jax_peer.py and flashrnn_peer.py.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from workloads import Workload

# What it returns can be compared: arrays by name, or y alone; a function where an array has to be made first.
Run = Callable[[], Any]


@dataclass(frozen=True)
class Data:
    """What every peer computes with."""

    weights: dict[str, np.ndarray]  # named and laid out as torch.nn's
    x: np.ndarray  # [T, B, I], or tokens [T, B]
    vectors: np.ndarray  # [T, B, I]: x, tokens as one-hot vectors
    reset: np.ndarray | None = None  # bool [T, B]: rows whose state is zero before the step
    lengths: np.ndarray | None = None  # [B]


class AbsentError(Exception):
    """Why a peer cannot be measured here."""


class Peer(Protocol):
    """`prepare` returns a function that runs the workload once; for streaming, that goes one step on."""

    version: str
    rival: str | None  # the peer that this one is compared with

    def unable(self, workload: Workload) -> str:
        """Why this peer is left out, or nothing."""
        ...

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run: ...

    def seconds(self, run: Run, repeat: int) -> float:
        """Time of one of `repeat` runs, one after the other."""
        ...


def as_array(value: Any) -> np.ndarray:
    """A result of any library, wherever it is, as a NumPy array; 16-bit floats as float32."""
    if hasattr(value, "cpu"):  # torch
        value = value.detach().cpu()
        return (value.float() if value.itemsize == 2 else value).numpy()
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def first_reason(*reasons: tuple[bool, str]) -> str:
    return next((reason for holds, reason in reasons if holds), "")


def only_inference(workload: Workload) -> tuple[bool, str]:
    return workload.run == "training", "no training"


def no_resets(workload: Workload) -> tuple[bool, str]:
    return workload.resets, "no resets inside a sequence"


def one_length(workload: Workload) -> tuple[bool, str]:
    return workload.ragged, "no lengths"


def only_32_or_64_bits(workload: Workload) -> tuple[bool, str]:
    return workload.itemsize < 4, f"no {workload.dtype}"


def no_rounding(workload: Workload) -> tuple[tuple[bool, str], ...]:
    """What a layer with rounded weights cannot do."""
    return only_inference(workload), (workload.dtype != "float32", f"no {workload.dtype}")


class OnHost:
    """Runs that are done when they return."""

    def seconds(self, run: Run, repeat: int) -> float:
        start = time.perf_counter()
        for _ in range(repeat):
            run()
        return (time.perf_counter() - start) / repeat


class OnDevice:
    """Runs whose data are on a CUDA device and stay there; torch holds them and keeps time.

    `graph` measures the replay of a CUDA graph of a run, which leaves out what calls cost on the CPU.
    """

    def __init__(self, graph: bool) -> None:
        self.graph = graph
        self.torch = importlib.import_module("torch")
        if not self.torch.cuda.is_available():
            raise AbsentError("torch sees no CUDA device")
        self.calls = importlib.import_module("torch_calls")
        self.version = ", ".join(f"{name} {value}" for name, value in self.calls.versions().items())

    def on_device(self, array: np.ndarray, workload: Workload) -> Any:
        """Numbers in the workload's type; tokens as they are."""
        tensor = self.torch.from_numpy(array).to("cuda")
        return tensor.to(getattr(self.torch, workload.dtype)) if tensor.is_floating_point() else tensor

    def finish(self, run: Run) -> Run:
        return self.calls.captured(run) if self.graph else run

    def seconds(self, run: Run, repeat: int) -> float:
        return self.calls.seconds_on_device(run, repeat)


def layer_of(module: Any, workload: Workload, **options: Any) -> Any:
    """An LSTM, GRU or RNN of fastrnn or of torch.nn, which take the same arguments."""
    return getattr(module, workload.cell.upper())(
        workload.input_size,
        workload.hidden_size,
        workload.num_layers,
        bidirectional=workload.bidirectional,
        **options,
    )


def fastrnn_run(
    layer: Any, workload: Workload, x: Any, dy: Any, reset: Any = None, lengths: Any = None
) -> Run:
    if workload.run == "streaming":
        return partial(layer.eval().stream(batch=workload.batch).step, x[0])
    given = {"reset": reset, "lengths": lengths}
    options = {name: value for name, value in given.items() if value is not None}
    if workload.run == "forward":
        layer.eval()
        return lambda: layer(x, **options)[0]

    def train() -> dict[str, Any]:
        layer.zero_grad()
        y, _ = layer(x, **options)
        dx, _ = layer.backward(dy)
        result = {"y": y, "dw": layer.gradients["weight_hh_l0"]}
        return result if dx is None else result | {"dx": dx}

    return train


def no_replayed_stream(peer: OnDevice, workload: Workload) -> tuple[bool, str]:
    return peer.graph and workload.run == "streaming", "a stream: making its graph takes a step of it"


class FastRNN(OnHost):
    """In the workload's type; `rounded`: with weights of that type, x, y and state float32."""

    rival = None

    def __init__(self, rounded: str = "") -> None:
        self.library = importlib.import_module("fastrnn")
        self.version = self.library.__version__
        self.rounded = rounded
        if rounded and not hasattr(self.library.LSTM, "quantize"):
            raise AbsentError(f"fastrnn {self.version} has no quantize()")

    def unable(self, workload: Workload) -> str:
        return first_reason(only_32_or_64_bits(workload), *(no_rounding(workload) if self.rounded else ()))

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        self.library.set_num_threads(threads)
        layer = layer_of(self.library, workload, dtype=workload.dtype)
        layer.load_state_dict(data.weights)
        if self.rounded:
            layer.eval().quantize(self.rounded)
        dy = np.ones(workload.output_shape, workload.dtype)
        return fastrnn_run(layer, workload, data.x, dy, data.reset, data.lengths)


@contextmanager
def wished(**wish: str | int) -> Iterator[None]:
    """Of what is possible for them, calls of fastrnn on a device insist on this (`set_wish` of `_cuda`)."""
    core = importlib.import_module("fastrnn._device").module()
    core.set_wish(**wish)
    try:
        yield
    finally:
        core.set_wish(backward=wish.get("backward", False))


class FastRNNCuda(OnDevice):
    """`strategy`: what the graph is captured with, in place of what is chosen."""

    rival = None

    def __init__(self, graph: bool = False, strategy: str = "") -> None:
        self.library = importlib.import_module("fastrnn")
        super().__init__(graph)
        self.strategy = strategy
        try:
            self.library.LSTM(1, 1, device="cuda")
        except (RuntimeError, TypeError) as error:  # TypeError: a version that has no such argument
            raise AbsentError(str(error)) from error

    def unable(self, workload: Workload) -> str:
        return first_reason(no_replayed_stream(self, workload))

    def layer(self, workload: Workload, data: Data) -> tuple[Any, Any]:
        """With its weights, and x."""
        layer = layer_of(self.library, workload, dtype=workload.dtype, device="cuda")
        layer.load_state_dict(data.weights)
        return layer, self.on_device(data.x, workload)

    def launches(self, layer: Any, workload: Workload) -> list[dict[str, Any]]:
        """Of the persistent kernel of the last pass, with the model's estimate of a step in seconds.

        For training that of both passes, forward as is fastest by the model.
        """
        network, size = layer._backend.network(layer._spec), (workload.steps, workload.batch)
        forward = network.launches(*size, backward=False)
        if workload.run == "forward":
            return forward
        least = min((launch["estimate"] for launch in forward), default=math.nan)
        backward = network.launches(*size, backward=True)
        return [launch | {"estimate": launch["estimate"] + least} for launch in backward]

    def call(self, layer: Any, workload: Workload, data: Data, x: Any) -> Run:
        reset, lengths = (
            None if value is None else self.torch.from_numpy(value).to("cuda")
            for value in (data.reset, data.lengths)
        )
        dy = self.on_device(np.ones(workload.output_shape, np.float32), workload)
        return fastrnn_run(layer, workload, x, dy, reset, lengths)

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        layer, x = self.layer(workload, data)
        call = self.call(layer, workload, data, x)
        if not self.strategy:
            return self.finish(call)
        layer.train(workload.run == "training")
        with ExitStack() as wishes:
            for backward in (False, True)[: workload.passes]:
                wishes.enter_context(wished(strategy=self.strategy, backward=backward))
                insist(layer, x, self.strategy, backward)
            return self.finish(call)


def insist(layer: Any, x: Any, strategy: str, backward: bool = False) -> None:
    """RuntimeError unless it is what a call, or its backward pass, does."""
    report, key = layer.explain(x), "backward_strategy" if backward else "strategy"
    if report[key] != strategy:
        raise RuntimeError(f"is not computed as {strategy}: {report[f'{key}_reason']}")


def torch_layer(torch: Any, workload: Workload, data: Data, device: str) -> Any:
    layer = layer_of(torch.nn, workload, dtype=getattr(torch, workload.dtype), device=device)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in data.weights.items()})
    return layer


def sequence_call(
    peer: Torch | Cudnn, layer: Any, workload: Workload, data: Data, x: Any, tf32: bool = False
) -> Run:
    lengths = None if data.lengths is None else peer.torch.from_numpy(data.lengths)
    training = workload.run == "training"
    return peer.calls.layer_call(layer, x, training, tf32, not workload.tokens, lengths)


class Torch(OnHost):
    """torch.nn's layers; for a streaming step its cells, which take half the time of a layer with T = 1."""

    rival = "fastrnn"

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")
        self.calls = importlib.import_module("torch_calls")
        self.version = self.torch.__version__

    def unable(self, workload: Workload) -> str:
        return first_reason(only_32_or_64_bits(workload), no_resets(workload))

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        self.torch.set_num_threads(threads)
        layer = torch_layer(self.torch, workload, data, "cpu")
        x = self.torch.from_numpy(data.vectors)
        if workload.run == "streaming":
            return self.calls.cells_step(layer, x[0])
        return sequence_call(self, layer, workload, data, x)


class Cudnn(OnDevice):
    """torch.nn on the device; float32 without TF32 unless `tf32`."""

    def __init__(self, tf32: bool = False, graph: bool = False) -> None:
        super().__init__(graph)
        self.tf32 = tf32
        self.rival = "fastrnn-cuda-graph" if graph else "fastrnn-cuda"

    def unable(self, workload: Workload) -> str:
        return first_reason(
            (self.tf32 and workload.dtype != "float32", "TF32 is for float32"),
            no_replayed_stream(self, workload),
            no_resets(workload),
        )

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        layer = torch_layer(self.torch, workload, data, "cuda")
        x = self.on_device(data.vectors, workload)
        if workload.run == "streaming":
            return self.calls.layer_step(layer, x, self.tf32)
        return self.finish(sequence_call(self, layer, workload, data, x, self.tf32))


class NumpyLoop(OnHost):
    """What one writes by hand: the time loop in Python, one NumPy product per step."""

    rival = "fastrnn"

    def __init__(self) -> None:
        # NumPy's BLAS has threads of its own, which go on spinning for a while and disturb whoever runs next.
        self.threads = importlib.import_module("threadpoolctl")
        self.version = np.__version__

    def unable(self, workload: Workload) -> str:
        return first_reason(
            only_32_or_64_bits(workload),
            only_inference(workload),
            one_length(workload),
            (workload.num_layers > 1 or workload.bidirectional, "one layer and one direction only"),
        )

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        self.threads.threadpool_limits(threads, user_api="blas")
        weights, H = data.weights, workload.hidden_size
        w_ih, w_hh = weights["weight_ih_l0"].T.copy(), weights["weight_hh_l0"].T.copy()
        b_ih, b_hh = weights["bias_ih_l0"], weights["bias_hh_l0"]

        def sigmoid(a: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-a))

        def lstm(a: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
            a = a + h @ w_hh
            i, f, o = sigmoid(a[:, :H]), sigmoid(a[:, H : 2 * H]), sigmoid(a[:, 3 * H :])
            c = f * c + i * np.tanh(a[:, 2 * H : 3 * H])
            return o * np.tanh(c), c

        def gru(a: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
            b = h @ w_hh + b_hh
            gates = sigmoid(a[:, : 2 * H] + b[:, : 2 * H])
            z = gates[:, H:]
            n = np.tanh(a[:, 2 * H :] + gates[:, :H] * b[:, 2 * H :])
            return ((1 - z) * n + z * h,)

        def rnn(a: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
            return (np.tanh(a + h @ w_hh),)

        cell = {"lstm": lstm, "gru": gru, "rnn": rnn}[workload.cell]
        bias = b_ih if workload.cell == "gru" else b_ih + b_hh
        zero = np.zeros((workload.batch, H), workload.dtype)
        start = (zero,) * (2 if workload.cell == "lstm" else 1)
        state = start

        def step() -> np.ndarray:
            nonlocal state
            state = cell(data.vectors[0] @ w_ih + bias, *state)
            return state[0]

        def sequence() -> np.ndarray:
            state = start
            y = np.empty(workload.output_shape, zero.dtype)
            inputs = w_ih[data.x] if workload.tokens else data.x @ w_ih
            for t, a in enumerate(inputs + bias):
                if data.reset is not None:
                    state = tuple(np.where(data.reset[t, :, None], 0, part) for part in state)
                state = cell(a, *state)
                y[t] = state[0]
            return y

        return step if workload.run == "streaming" else sequence


def other(module: str, name: str, *arguments: Any) -> Callable[[], Peer]:
    return lambda: getattr(importlib.import_module(module), name)(*arguments)


ON_HOST: dict[str, Callable[[], Peer]] = {
    "fastrnn": FastRNN,
    "torch": Torch,
    "onnxruntime": other("onnx_peers", "OnnxRuntime"),
    "openvino": other("onnx_peers", "OpenVino"),
    "jax": other("jax_peer", "Jax"),
    "numpy": NumpyLoop,
}
# Weights and products of fewer bits, float32 outside: measured when they are asked for.
ROUNDED: dict[str, Callable[[], Peer]] = {
    "fastrnn-bfloat16": lambda: FastRNN("bfloat16"),
    "fastrnn-int8": lambda: FastRNN("int8"),
    "openvino-bfloat16": other("onnx_peers", "OpenVino", "bfloat16"),
}
ON_DEVICE: dict[str, Callable[[], Peer]] = {
    "fastrnn-cuda": FastRNNCuda,
    "cudnn": Cudnn,
    "cudnn-tf32": lambda: Cudnn(tf32=True),
    "fastrnn-cuda-graph": lambda: FastRNNCuda(graph=True),
    "cudnn-graph": lambda: Cudnn(graph=True),
    "cudnn-tf32-graph": lambda: Cudnn(tf32=True, graph=True),
}
# On a device too, measured when they are asked for: not every size has all strategies, and FlashRNN compiles
# itself for every size.
SPECIAL: dict[str, Callable[[], Peer]] = {
    "fastrnn-cuda-cta-graph": lambda: FastRNNCuda(graph=True, strategy="cta"),
    "fastrnn-cuda-cluster-graph": lambda: FastRNNCuda(graph=True, strategy="cluster"),
    "flashrnn": other("flashrnn_peer", "FlashRNN"),
    "flashrnn-graph": other("flashrnn_peer", "FlashRNN", True),
}
ALL = ON_HOST | ROUNDED | ON_DEVICE | SPECIAL


def available(names: list[str]) -> tuple[dict[str, Peer], list[str]]:
    """The peers that can run here, and a line for each reason why others cannot."""
    peers: dict[str, Peer] = {}
    reasons: dict[str, list[str]] = {}
    for name in names:
        try:
            peers[name] = ALL[name]()
        except (ImportError, AbsentError) as error:
            reasons.setdefault(str(error), []).append(name)
    absent = [f"{', '.join(without)}: absent ({reason})" for reason, without in reasons.items()]
    return peers, absent
