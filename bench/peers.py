"""Who is measured: each implementation behind one interface, all given the same weights and data."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from workloads import Workload

Run = Callable[[], dict[str, Any]]
Weights = dict[str, np.ndarray]


class AbsentError(Exception):
    """Why a peer cannot be measured here."""


class Peer(Protocol):
    """`prepare` returns a function that runs the workload once, and whose result can be compared."""

    version: str
    rival: str | None  # the peer that this one is compared with

    def runs(self, workload: Workload) -> bool: ...

    def prepare(self, workload: Workload, weights: Weights, x: np.ndarray, threads: int) -> Run: ...

    def seconds(self, run: Run, repeat: int) -> float:
        """Time of one of `repeat` runs, one after the other."""
        ...


def as_array(value: Any) -> np.ndarray:
    """A result of any library, wherever it is, as a NumPy array; 16-bit floats as float32."""
    if hasattr(value, "cpu"):  # torch
        value = value.detach().cpu()
        return (value.float() if value.itemsize == 2 else value).numpy()
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


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
        return self.torch.from_numpy(array).to("cuda", getattr(self.torch, workload.dtype))

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


def fastrnn_run(layer: Any, workload: Workload, x: Any, dy: Any) -> Run:
    if workload.run == "forward":
        layer.eval()
        return lambda: {"y": layer(x)[0]}

    def train() -> dict[str, Any]:
        layer.zero_grad()
        y, _ = layer(x)
        dx, _ = layer.backward(dy)
        return {"y": y, "dx": dx, "dw": layer.gradients["weight_hh_l0"]}

    return train


class FastRNN(OnHost):
    rival = None

    def __init__(self) -> None:
        self.library = importlib.import_module("fastrnn")
        self.version = self.library.__version__

    def runs(self, workload: Workload) -> bool:
        return workload.itemsize >= 4

    def prepare(self, workload: Workload, weights: Weights, x: np.ndarray, threads: int) -> Run:
        self.library.set_num_threads(threads)
        layer = layer_of(self.library, workload, dtype=workload.dtype)
        layer.load_state_dict(weights)
        return fastrnn_run(layer, workload, x, np.ones(workload.output_shape, x.dtype))


class FastRNNCuda(OnDevice):
    rival = None

    def __init__(self, graph: bool = False) -> None:
        self.library = importlib.import_module("fastrnn")
        super().__init__(graph)
        try:
            self.library.LSTM(1, 1, device="cuda")
        except (RuntimeError, TypeError) as error:  # TypeError: a version that has no such argument
            raise AbsentError(str(error)) from error

    def runs(self, workload: Workload) -> bool:
        return True

    def prepare(self, workload: Workload, weights: Weights, x: np.ndarray, threads: int) -> Run:
        layer = layer_of(self.library, workload, dtype=workload.dtype, device="cuda")
        layer.load_state_dict(weights)
        dy = self.on_device(np.ones(workload.output_shape, x.dtype), workload)
        return self.finish(fastrnn_run(layer, workload, self.on_device(x, workload), dy))


def torch_layer(torch: Any, workload: Workload, weights: Weights, device: str) -> Any:
    layer = layer_of(torch.nn, workload, dtype=getattr(torch, workload.dtype), device=device)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return layer


class Torch(OnHost):
    rival = "fastrnn"

    def __init__(self) -> None:
        self.library = importlib.import_module("torch")
        self.calls = importlib.import_module("torch_calls")
        self.version = self.library.__version__

    def runs(self, workload: Workload) -> bool:
        return workload.itemsize >= 4

    def prepare(self, workload: Workload, weights: Weights, x: np.ndarray, threads: int) -> Run:
        self.library.set_num_threads(threads)
        layer = torch_layer(self.library, workload, weights, "cpu")
        return self.calls.layer_call(layer, self.library.from_numpy(x), workload.run == "training")


class Cudnn(OnDevice):
    """torch.nn on the device; float32 without TF32 unless `tf32`."""

    def __init__(self, tf32: bool = False, graph: bool = False) -> None:
        super().__init__(graph)
        self.tf32 = tf32
        self.rival = "fastrnn-cuda-graph" if graph else "fastrnn-cuda"

    def runs(self, workload: Workload) -> bool:
        return workload.dtype == "float32" or not self.tf32

    def prepare(self, workload: Workload, weights: Weights, x: np.ndarray, threads: int) -> Run:
        layer = torch_layer(self.torch, workload, weights, "cuda")
        data = self.on_device(x, workload)
        return self.finish(self.calls.layer_call(layer, data, workload.run == "training", self.tf32))


class NumpyLoop(OnHost):
    """What one writes by hand: the time loop in Python, one NumPy product per step."""

    rival = "fastrnn"

    def __init__(self) -> None:
        # NumPy's BLAS has threads of its own, which go on spinning for a while and disturb whoever runs next.
        self.threads = importlib.import_module("threadpoolctl")
        self.version = np.__version__

    def runs(self, workload: Workload) -> bool:
        simple = workload.num_layers == 1 and not workload.bidirectional and workload.itemsize >= 4
        return simple and workload.run == "forward"

    def prepare(self, workload: Workload, weights: Weights, x: np.ndarray, threads: int) -> Run:
        self.threads.threadpool_limits(threads, user_api="blas")
        w_ih, w_hh = weights["weight_ih_l0"].T.copy(), weights["weight_hh_l0"].T.copy()
        b_ih, b_hh = weights["bias_ih_l0"], weights["bias_hh_l0"]
        H = workload.hidden_size

        def sigmoid(a: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-a))

        def lstm() -> dict[str, Any]:
            h = c = np.zeros((workload.batch, H), x.dtype)
            y = np.empty((*x.shape[:2], H), x.dtype)
            for t, a in enumerate(x @ w_ih + (b_ih + b_hh)):
                a = a + h @ w_hh
                i, f, o = sigmoid(a[:, :H]), sigmoid(a[:, H : 2 * H]), sigmoid(a[:, 3 * H :])
                c = f * c + i * np.tanh(a[:, 2 * H : 3 * H])
                y[t] = h = o * np.tanh(c)
            return {"y": y}

        def gru() -> dict[str, Any]:
            h = np.zeros((workload.batch, H), x.dtype)
            y = np.empty((*x.shape[:2], H), x.dtype)
            for t, a in enumerate(x @ w_ih + b_ih):
                b = h @ w_hh + b_hh
                gates = sigmoid(a[:, : 2 * H] + b[:, : 2 * H])
                z = gates[:, H:]
                n = np.tanh(a[:, 2 * H :] + gates[:, :H] * b[:, 2 * H :])
                y[t] = h = (1 - z) * n + z * h
            return {"y": y}

        def rnn() -> dict[str, Any]:
            h = np.zeros((workload.batch, H), x.dtype)
            y = np.empty((*x.shape[:2], H), x.dtype)
            for t, a in enumerate(x @ w_ih + (b_ih + b_hh)):
                y[t] = h = np.tanh(a + h @ w_hh)
            return {"y": y}

        return {"lstm": lstm, "gru": gru, "rnn": rnn}[workload.cell]


ALL: dict[str, Callable[[], Peer]] = {
    "fastrnn": FastRNN,
    "torch": Torch,
    "numpy": NumpyLoop,
    "fastrnn-cuda": FastRNNCuda,
    "cudnn": Cudnn,
    "cudnn-tf32": lambda: Cudnn(tf32=True),
    "fastrnn-cuda-graph": lambda: FastRNNCuda(graph=True),
    "cudnn-graph": lambda: Cudnn(graph=True),
    "cudnn-tf32-graph": lambda: Cudnn(tf32=True, graph=True),
}


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
