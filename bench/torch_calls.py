"""torch's layers as calls that can be timed, on the CPU or on a CUDA device: for peers.py and cudnn.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], dict[str, torch.Tensor]]

LAYERS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def layer_call(layer: torch.nn.RNNBase, x: torch.Tensor, training: bool, tf32: bool = False) -> Call:
    """Forward, or forward and backward from dy = 1 to the input and all weights."""
    if not training:
        layer.eval()

        def infer() -> dict[str, torch.Tensor]:
            torch.backends.cudnn.allow_tf32 = tf32
            with torch.no_grad():
                return {"y": layer(x)[0]}

        return infer
    x = x.clone().requires_grad_()
    names, weights = zip(*layer.named_parameters(), strict=True)
    dy = torch.ones_like(layer(x)[0])

    def train() -> dict[str, torch.Tensor]:
        torch.backends.cudnn.allow_tf32 = tf32
        y, _ = layer(x)
        dx, *dw = torch.autograd.grad(y, [x, *weights], dy)
        return {"y": y.detach(), "dx": dx, "dw": dw[names.index("weight_hh_l0")]}

    return train


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The replay of a graph of one call; a call before, on its stream, sets up what capturing may not."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def seconds_on_device(call: Callable[[], Any], repeat: int = 1) -> float:
    """Time of one of `repeat` calls, by events before and after them."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeat):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / repeat


def versions() -> dict[str, Any]:
    """Of torch, and of the device if there is one."""
    info: dict[str, Any] = {"torch": torch.__version__}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        info |= {
            "device": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": torch._C._cuda_getDriverVersion(),
            "cudnn": torch.backends.cudnn.version(),
        }
    return info
