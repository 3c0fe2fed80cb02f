"""FlashRNN (pypi.org/project/flashrnn), its fused kernels: one head, with a linear layer before them.

They take x after its product with W_ih, so that one is torch's. At the first call of each size it compiles
itself, for minutes.
"""

from __future__ import annotations

import importlib

import numpy as np
from peers import AbsentError, Data, OnDevice, Run, first_reason, no_resets, one_length
from workloads import GATES, Workload

FUNCTIONS = {"lstm": "lstm", "rnn": "elman"}


class FlashRNN(OnDevice):
    def __init__(self, graph: bool = False) -> None:
        super().__init__(graph)
        module = importlib.import_module("flashrnn")
        self.function = getattr(module, "flashrnn", None)
        if not callable(self.function):
            raise AbsentError("the module flashrnn has no function of that name")
        self.rival = "fastrnn-cuda-graph" if graph else "fastrnn-cuda"

    def unable(self, workload: Workload) -> str:
        return first_reason(
            (workload.cell not in FUNCTIONS, f"no fused {workload.cell.upper()}"),
            (workload.itemsize != 2, f"{workload.dtype} is rounded to fewer bits, or is not there"),
            (workload.run == "streaming", "no stream"),
            (workload.num_layers > 1 or workload.bidirectional, "one layer and one direction only"),
            (workload.tokens, "no tokens"),
            no_resets(workload),
            one_length(workload),
        )

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        torch, G, H = self.torch, GATES[workload.cell], workload.hidden_size
        w_ih, w_hh, b_ih, b_hh = (
            self.on_device(data.weights[name], workload)
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        )
        bias, x = b_ih + b_hh, self.on_device(data.x, workload)

        def forward() -> object:
            product = torch.nn.functional.linear(x, w_ih)  # [T, B, G H]
            heads = product.view(*product.shape[:2], G, 1, H).transpose(0, 1)
            states, _ = self.function(
                heads,
                w_hh.view(G, 1, H, H),
                bias.view(G, 1, H),
                function=FUNCTIONS[workload.cell],
                backend="cuda_fused",
                dtype=workload.dtype,
            )
            return states[0][:, :, 0].transpose(0, 1)  # h, of [B, T, heads, H]

        if workload.run == "forward":

            def infer() -> dict[str, object]:
                with torch.no_grad():
                    return {"y": forward()}

            return self.finish(infer)
        wanted = {"dx": x, "dw": w_hh, "dw_ih": w_ih, "db": bias}
        for value in wanted.values():
            value.requires_grad_()
        dy = self.on_device(np.ones(workload.output_shape, np.float32), workload)

        def train() -> dict[str, object]:
            y = forward()
            found = torch.autograd.grad(y, list(wanted.values()), dy)
            return {"y": y.detach()} | dict(zip(wanted, found, strict=True))

        return self.finish(train)
