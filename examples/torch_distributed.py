"""Trains a GRU of fastrnn.torch on several processes or machines: torch's own DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/torch_distributed.py      two processes of this machine
    torchrun --nnodes 2 --node-rank 0 --master-addr HOST --master-port 29500 examples/torch_distributed.py

The second is for two machines, with --node-rank 1 on the other. The task: tell whether the sum of a row of +1
and -1 is above zero. Every process has its part of each batch, and DistributedDataParallel averages the
gradients, so that the steps are those of one process with the whole batch. On GPUs the backend is "nccl"
instead of "gloo", and each process has a device of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import fastrnn.torch
import torch
import torch.distributed as dist


class Sign(torch.nn.Module):
    """The last h of a GRU, and one number from it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = fastrnn.torch.GRU(1, 16, batch_first=True)
        self.readout = torch.nn.Linear(16, 1)

    def forward(self, x: Any) -> Any:
        _, h_n = self.layer(x)
        return self.readout(h_n[-1])[:, 0]


def train(steps: int, batch: int, rank: int, world: int) -> dict[str, Any]:
    """Return the loss of each step, over all processes, and the parameters in the end."""
    if batch % world:  # the mean over processes would weigh their rows differently
        raise ValueError(f"batch is {batch}; expected a multiple of the {world} processes")
    torch.manual_seed(0)
    model = Sign()
    run: Any = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    draws = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randint(0, 2, (batch, 15, 1), generator=draws).float() * 2 - 1
        target = (x.sum((1, 2)) > 0).float()
        own = slice(rank, None, world)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(run(x[own]), target[own])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        losses.append(float(mean) / world)
    return {"losses": losses, "parameters": {k: v.clone() for k, v in model.state_dict().items()}}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64, help="over all processes")
    parser.add_argument("--save", help="file for losses and parameters, written by the first process")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the processes share the cores
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    try:
        found = train(args.steps, args.batch, rank, world)
        if world > 1:
            dist.barrier()  # none leaves while another still waits for its gradients
    finally:
        if world > 1:
            dist.destroy_process_group()
    if rank == 0:
        print(f"{world} process(es): loss {found['losses'][0]:.3f} -> {found['losses'][-1]:.3f}")
        if args.save:
            torch.save(found, args.save)
    return found


if __name__ == "__main__":
    main()
    # After DistributedDataParallel gloo's threads outlive the group (torch 2.13). One that lets go of a
    # tensor while the interpreter takes itself apart ends the process: "terminate called".
    sys.stdout.flush()
    os._exit(0)
