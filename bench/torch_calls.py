"""torch's layers as calls that can be timed, on the CPU or on a CUDA device: for peers.py and cudnn.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Call = Callable[[], Any]

LAYERS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def padded(data: torch.Tensor, like: PackedSequence | None) -> Any:
    """A result that can be compared: of packed sequences, a function that makes it."""
    if like is None:
        return data
    return lambda: pad_packed_sequence(like._replace(data=data))[0]


def layer_call(
    layer: torch.nn.RNNBase,
    x: torch.Tensor,
    training: bool,
    tf32: bool = False,
    with_dx: bool = True,
    lengths: torch.Tensor | None = None,
) -> Call:
    """Forward, or forward and backward from dy = 1 to all weights and, `with_dx`, to the input.

    With `lengths` (on the host) x is packed before, and y stays so.
    """
    on_device = x.is_cuda
    pack = None if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    data = x if pack is None else pack.data

    def forward() -> torch.Tensor:
        if on_device:  # a peer with the other rounding may have had the turn before
            torch.backends.cudnn.allow_tf32 = tf32
        if pack is None:
            return layer(data)[0]
        return layer(pack._replace(data=data))[0].data

    if not training:
        layer.eval()

        def infer() -> dict[str, Any]:
            with torch.no_grad():
                return {"y": padded(forward(), pack)}

        return infer
    data = data.clone().requires_grad_(with_dx)
    wanted = {"dx": data} if with_dx else {}
    wanted |= {"dw" if name == "weight_hh_l0" else name: value for name, value in layer.named_parameters()}
    dy = torch.ones_like(forward())

    def train() -> dict[str, Any]:
        y = forward()
        found = torch.autograd.grad(y, list(wanted.values()), dy)
        gradients = dict(zip(wanted, found, strict=True))
        if with_dx:
            gradients["dx"] = padded(gradients["dx"], pack)
        return {"y": padded(y.detach(), pack)} | gradients

    return train


def layer_step(layer: torch.nn.RNNBase, x: torch.Tensor, tf32: bool = False) -> Call:
    """One more step of a layer, x [1, B, I], the state carried."""
    layer.eval().requires_grad_(False)
    state = None

    def step() -> torch.Tensor:
        nonlocal state
        torch.backends.cudnn.allow_tf32 = tf32
        y, state = layer(x, state)
        return y[0]

    return step


CELLS = {"LSTM": torch.nn.LSTMCell, "GRU": torch.nn.GRUCell, "RNN": torch.nn.RNNCell}


def cells_step(layer: torch.nn.RNNBase, x: torch.Tensor) -> Call:
    """The same with a cell of torch.nn for each layer, x [B, I]."""
    kind = type(layer).__name__
    cells = []
    for k in range(layer.num_layers):
        inputs = layer.input_size if k == 0 else layer.hidden_size
        cell = CELLS[kind](inputs, layer.hidden_size, dtype=x.dtype).requires_grad_(False)
        cell.load_state_dict(
            {name: getattr(layer, f"{name}_l{k}").data for name, _ in cell.named_parameters()}
        )
        cells.append(cell)
    states: list[Any] = [None] * len(cells)

    def step() -> torch.Tensor:
        h = x
        for k, cell in enumerate(cells):
            states[k] = cell(h, states[k])
            h = states[k][0] if kind == "LSTM" else states[k]
        return h

    return step


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


def device_lost() -> bool:
    """Has a kernel of this process faulted? Then whatever the process asks of the device fails."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


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
