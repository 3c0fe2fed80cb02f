"""Who is measured: each implementation behind one interface, all given the same weights and data."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
from workloads import Workload

Result = dict[str, np.ndarray]
Weights = dict[str, np.ndarray]


class Peer(Protocol):
    """`prepare` returns a function that runs the workload once, and whose result can be compared."""

    name: str
    version: str

    def runs(self, workload: Workload) -> bool: ...

    def prepare(
        self, workload: Workload, weights: Weights, x: np.ndarray, threads: int
    ) -> Callable[[], Result]: ...


class FastRNN:
    name = "fastrnn"

    def __init__(self) -> None:
        self.library = importlib.import_module("fastrnn")
        self.version = self.library.__version__

    def runs(self, workload: Workload) -> bool:
        return True

    def layer(self, workload: Workload, weights: Weights | None = None):
        classes = {"lstm": self.library.LSTM, "gru": self.library.GRU, "rnn": self.library.RNN}
        layer = classes[workload.cell](
            workload.input_size,
            workload.hidden_size,
            workload.num_layers,
            bidirectional=workload.bidirectional,
            dtype=workload.dtype,
            seed=0,
        )
        if weights is not None:
            layer.load_state_dict(weights)
        return layer

    def prepare(
        self, workload: Workload, weights: Weights, x: np.ndarray, threads: int
    ) -> Callable[[], Result]:
        self.library.set_num_threads(threads)
        layer = self.layer(workload, weights)
        if workload.run == "forward":
            layer.eval()
            return lambda: {"y": layer(x)[0]}

        def train() -> Result:
            layer.zero_grad()
            y, _ = layer(x)
            dx, _ = layer.backward(np.ones_like(y))
            return {"y": y, "dx": dx, "dw": layer.gradients["weight_hh_l0"]}

        return train


class Torch:
    name = "torch"

    def __init__(self) -> None:
        self.library = importlib.import_module("torch")
        self.version = self.library.__version__

    def runs(self, workload: Workload) -> bool:
        return True

    def prepare(
        self, workload: Workload, weights: Weights, x: np.ndarray, threads: int
    ) -> Callable[[], Result]:
        torch = self.library
        torch.set_num_threads(threads)
        classes = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
        layer = classes[workload.cell](
            workload.input_size,
            workload.hidden_size,
            workload.num_layers,
            bidirectional=workload.bidirectional,
            dtype=getattr(torch, workload.dtype),
        )
        layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        data = torch.from_numpy(x)
        if workload.run == "forward":
            layer.eval()

            def infer() -> Result:
                with torch.no_grad():
                    return {"y": layer(data)[0].numpy()}

            return infer
        data.requires_grad_()
        ones = torch.ones(())

        def train() -> Result:
            layer.zero_grad()
            data.grad = None
            y, _ = layer(data)
            y.backward(ones.expand_as(y))
            return {"y": y.detach().numpy(), "dx": data.grad.numpy(), "dw": layer.weight_hh_l0.grad.numpy()}

        return train


class NumpyLoop:
    """What one writes by hand: the time loop in Python, one NumPy product per step."""

    name = "numpy"

    def __init__(self) -> None:
        # NumPy's BLAS has threads of its own, which go on spinning for a while and disturb whoever runs next.
        self.threads = importlib.import_module("threadpoolctl")
        self.version = np.__version__

    def runs(self, workload: Workload) -> bool:
        return workload.run == "forward" and workload.num_layers == 1 and not workload.bidirectional

    def prepare(
        self, workload: Workload, weights: Weights, x: np.ndarray, threads: int
    ) -> Callable[[], Result]:
        self.threads.threadpool_limits(threads, user_api="blas")
        w_ih, w_hh = weights["weight_ih_l0"].T.copy(), weights["weight_hh_l0"].T.copy()
        b_ih, b_hh = weights["bias_ih_l0"], weights["bias_hh_l0"]
        H = workload.hidden_size

        def sigmoid(a: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-a))

        def lstm() -> Result:
            h = c = np.zeros((workload.batch, H), x.dtype)
            y = np.empty((*x.shape[:2], H), x.dtype)
            for t, a in enumerate(x @ w_ih + (b_ih + b_hh)):
                a = a + h @ w_hh
                i, f, o = sigmoid(a[:, :H]), sigmoid(a[:, H : 2 * H]), sigmoid(a[:, 3 * H :])
                c = f * c + i * np.tanh(a[:, 2 * H : 3 * H])
                y[t] = h = o * np.tanh(c)
            return {"y": y}

        def gru() -> Result:
            h = np.zeros((workload.batch, H), x.dtype)
            y = np.empty((*x.shape[:2], H), x.dtype)
            for t, a in enumerate(x @ w_ih + b_ih):
                b = h @ w_hh + b_hh
                gates = sigmoid(a[:, : 2 * H] + b[:, : 2 * H])
                z = gates[:, H:]
                n = np.tanh(a[:, 2 * H :] + gates[:, :H] * b[:, 2 * H :])
                y[t] = h = (1 - z) * n + z * h
            return {"y": y}

        def rnn() -> Result:
            h = np.zeros((workload.batch, H), x.dtype)
            y = np.empty((*x.shape[:2], H), x.dtype)
            for t, a in enumerate(x @ w_ih + (b_ih + b_hh)):
                y[t] = h = np.tanh(a + h @ w_hh)
            return {"y": y}

        return {"lstm": lstm, "gru": gru, "rnn": rnn}[workload.cell]


ALL = {"fastrnn": FastRNN, "torch": Torch, "numpy": NumpyLoop}


def available(names: list[str]) -> tuple[dict[str, Peer], list[str]]:
    """The peers that are installed, and a line for each that isn't."""
    peers: dict[str, Peer] = {}
    absent = []
    for name in names:
        try:
            peers[name] = ALL[name]()
        except ImportError as error:
            absent.append(f"{name}: absent ({error})")
    return peers, absent
