"""ONNX Runtime and OpenVINO, which run the same ONNX model; both are for inference, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from peers import AbsentError, Data, OnHost, Run, first_reason, no_resets, one_length, only_inference
from workloads import GATES, Workload

# torch.nn's gates in the order of ONNX: i o f g of i f g o, z r n of r z n.
ORDER = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn": [0]}


def in_onnx_order(cell: str, array: np.ndarray) -> np.ndarray:
    gates = np.split(array, GATES[cell])
    return np.concatenate([gates[gate] for gate in ORDER[cell]])


def states(workload: Workload) -> list[str]:
    """Names of the state's inputs, for a streaming step; the outputs have `_n` behind."""
    kinds = ("h", "c") if workload.cell == "lstm" else ("h",)
    return [f"{kind}{layer}" for layer in range(workload.num_layers) for kind in kinds]


def model(workload: Workload, weights: dict[str, np.ndarray]) -> bytes:
    """The network as an ONNX file: input x [T, B, I], output y [T, B, D*H].

    For a streaming step, state inputs [1, B, H] and outputs too.
    """
    T, B, D, H = workload.steps, workload.batch, workload.directions, workload.hidden_size
    streaming = workload.run == "streaming"
    nodes = []
    constants = {"shape": np.array([T, B, D * H])} if D == 2 else {"directions": np.array([1])}
    x = "x"
    for layer in range(workload.num_layers):
        suffixes = [f"_l{layer}", f"_l{layer}_reverse"][:D]

        def stacked(kind: str, suffixes: list[str] = suffixes) -> np.ndarray:
            return np.stack([in_onnx_order(workload.cell, weights[kind + suffix]) for suffix in suffixes])

        constants |= {f"W{layer}": stacked("weight_ih"), f"R{layer}": stacked("weight_hh")}
        constants[f"B{layer}"] = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
        inputs = [x, f"W{layer}", f"R{layer}", f"B{layer}"]
        outputs = [f"Y{layer}"]
        if streaming:
            own = [name for name in states(workload) if name[1:] == str(layer)]
            inputs += ["", *own]  # between them the lengths, which are not given
            outputs += [f"{name}_n" for name in own]
        options: dict[str, Any] = {"direction": "bidirectional"} if D == 2 else {}
        if workload.cell == "gru":
            options["linear_before_reset"] = 1
        nodes.append(helper.make_node(workload.cell.upper(), inputs, outputs, hidden_size=H, **options))
        after = "y" if layer == workload.num_layers - 1 else f"x{layer + 1}"
        if D == 1:
            nodes.append(helper.make_node("Squeeze", [f"Y{layer}", "directions"], [after]))
        else:
            nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"Z{layer}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"Z{layer}", "shape"], [after]))
        x = after

    def value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = states(workload) if streaming else []
    graph = helper.make_graph(
        nodes,
        workload.cell,
        [value("x", [T, B, workload.input_size]), *(value(name, [1, B, H]) for name in state)],
        [value("y", [T, B, D * H]), *(value(f"{name}_n", [1, B, H]) for name in state)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


class OnnxPeer(OnHost):
    rival: str | None = "fastrnn"

    def unable(self, workload: Workload) -> str:
        others = (workload.dtype != "float32", f"no {workload.dtype}")
        return first_reason(only_inference(workload), no_resets(workload), one_length(workload), others)


class OnnxRuntime(OnnxPeer):
    """With inputs and outputs bound, so that nothing is copied or allocated in a call."""

    def __init__(self) -> None:
        import onnxruntime

        self.library = onnxruntime
        self.version = onnxruntime.__version__

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        options = self.library.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = self.library.InferenceSession(
            model(workload, data.weights), options, providers=["CPUExecutionProvider"]
        )
        value = self.library.OrtValue.ortvalue_from_numpy
        x, y = value(data.vectors), value(np.zeros(workload.output_shape, np.float32))
        names = states(workload) if workload.run == "streaming" else []
        shape = (1, workload.batch, workload.hidden_size)
        sides = [{name: value(np.zeros(shape, np.float32)) for name in names} for _ in range(2)]

        def bound(before: dict[str, Any], after: dict[str, Any]) -> Any:
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", x)
            binding.bind_ortvalue_output("y", y)
            for name in names:
                binding.bind_ortvalue_input(name, before[name])
                binding.bind_ortvalue_output(f"{name}_n", after[name])
            return binding

        there, back = bound(*sides), bound(*sides[::-1])

        def run() -> Any:
            nonlocal there, back
            session.run_with_iobinding(there)
            there, back = back, there  # the state that this run left is where the next one looks
            return y

        return run


class OpenVino(OnnxPeer):
    """With x bound, and for streaming with the state inside the model; float32 unless it is `rounded`."""

    def __init__(self, rounded: str = "") -> None:
        import openvino
        import openvino.passes

        self.library = openvino
        self.version = openvino.__version__.split("-")[0]
        self.precision = {"": "f32", "bfloat16": "bf16"}[rounded]
        self.rival = f"fastrnn-{rounded}" if rounded else "fastrnn"
        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if rounded and "BF16" not in capabilities:
            raise AbsentError("this CPU has no instructions for bfloat16, without which it stays float32")

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        core = self.library.Core()
        network = core.read_model(model(workload, data.weights))
        if workload.run == "streaming":
            passes = self.library.passes.Manager()
            pairs = {name: f"{name}_n" for name in states(workload)}
            passes.register_pass(self.library.passes.MakeStateful(pairs))
            passes.run_passes(network)
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        request = core.compile_model(network, "CPU", options).create_infer_request()
        request.set_input_tensor(self.library.Tensor(data.vectors, shared_memory=True))

        def run() -> dict[str, Any]:
            request.infer(share_outputs=True)
            return {"y": lambda: request.get_output_tensor(0).data}

        return run
