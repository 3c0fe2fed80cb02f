"""Are gradients over two processes those of one? By torchrun and gloo, over the loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastrnn
import pytest
from fastrnn.layouts import Spec
from tolerances import assert_close, chain, size

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.frameworks
EXAMPLE = Path(__file__).resolve().parents[1] / "examples/torch_distributed.py"


def run(command: list[str], file: Path, steps: int) -> dict[str, Any]:
    """Run the example, and read what its first process has saved."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(fastrnn.__file__).parents[1]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [str(EXAMPLE), "--steps", str(steps), "--save", str(file)]
    done = subprocess.run(
        [sys.executable, *command, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(file)
    return found


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_are_one(tmp_path: Path) -> None:
    """The losses of the first steps, each after the gradients of the one before; and it learns."""
    both = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    alone, together = run([], tmp_path / "alone", 60), run(both, tmp_path / "both", 60)
    # Each process rounds a sum over its half of the rows, the steps move by both.
    n = 4 * chain(Spec("gru", 1, 16), 15, 64)
    first = [torch.tensor(found["losses"][:5]).numpy() for found in (together, alone)]
    assert_close(first[0], first[1], n_products=n)
    assert together["losses"][-1] < 0.5 * together["losses"][0]


def gradients_of(rank: int, folder: str) -> None:
    """In a process of its own: save the gradients that DistributedDataParallel leaves."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    model, x = model_and_data()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    parallel(x[:, rank::2])[0].square().mean().backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}")
    torch.distributed.barrier()
    os._exit(0)  # for the reason that the example gives


def model_and_data() -> tuple[Any, Any]:
    import fastrnn.torch

    torch.manual_seed(0)
    return fastrnn.torch.LSTM(3, 8, num_layers=2, bidirectional=True), torch.randn(5, 6, 3)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_gradients_over_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has the mean of both, which is the gradient of one process with all rows."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    processes = torch.multiprocessing.spawn(gradients_of, (str(tmp_path),), nprocs=2, join=False)
    while not processes.join(60):
        pass
    model, x = model_and_data()
    model(x)[0].square().mean().backward()
    spec = Spec("lstm", 3, 8, num_layers=2, bidirectional=True)
    expected = [p.grad.numpy() for p in model.parameters()]
    scale = size(*expected)
    for rank in range(2):
        for a, e in zip(torch.load(tmp_path / str(rank)), expected, strict=True):
            assert_close(a.numpy(), e, n_products=2 * chain(spec, 5, 6), scale=scale)
