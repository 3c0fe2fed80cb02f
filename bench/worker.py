"""A process that measures with one number of threads: run.py starts one for each, and writes to it.

    python bench/worker.py THREADS PEER ...

A number of threads is a property of a process: some libraries take theirs once, from the CPUs that the
process may use when they are loaded. So this one first gives itself as many cores as it has threads (THREADS
0: leaves all to it, for peers on a device), and loads the libraries after that. Each line on its standard
input it answers with a line of JSON: seconds and a workload with a row, an empty line with the machine's
ceiling. At the start it says what there is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cores() -> list[int]:
    """The CPUs that this process may use, one of each core before the second of any."""
    seen: dict[str, int] = {}
    order = []
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = str(cpu)
        with contextlib.suppress(OSError):
            path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            siblings = Path(path).read_text().strip()
        seen[siblings] = seen.get(siblings, -1) + 1
        order.append((seen[siblings], cpu))
    return [cpu for _, cpu in sorted(order)]


def thread_count(text: str) -> int:
    """The value of an option."""
    count, most = int(text), len(cores())
    if not 1 <= count <= most:
        raise argparse.ArgumentTypeError(f"{count}, but a thread needs a CPU and this process may use {most}")
    return count


def keep_to(threads: int) -> None:
    """Leave this process that many cores, and tell the libraries that ask the environment."""
    os.sched_setaffinity(0, cores()[:threads])
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    import fastrnn
    import numpy as np

    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    # Of an ARM it tells by whom it is and which.
    names = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
    parts = [f"{name} {found[name]}".removeprefix("model name ") for name in names if name in found]
    model = ", ".join(parts) or platform.processor() or platform.machine()
    return {
        "cpu": model,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "fastrnn": {str(k): str(v) for k, v in fastrnn.info().items() if k != "threads"},
    }


def answering() -> Callable[[Any], None]:
    """In such a process: sends an answer. Whoever asks decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not belong between the answers
    return lambda value: print(json.dumps(value), file=answers, flush=True)


class Process:
    """One that answers each line on its standard input with a line of JSON."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"the measuring process ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # read() says what became of it
            print(question, file=self.process.stdin, flush=True)
        return self.read()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()  # closes the pipes


def main() -> None:
    threads, names = int(sys.argv[1]), sys.argv[2:]
    answer = answering()
    if threads:
        keep_to(threads)
    import ceiling  # from here on, libraries
    import measure
    from peers import OnDevice, available
    from workloads import Workload

    found, absent = available(names)
    versions = {name: peer.version for name, peer in found.items()}
    answer({"machine": machine(), "versions": versions, "absent": absent})
    for line in sys.stdin:
        if not line.strip():
            answer(ceiling.measure(threads))
            continue
        seconds, workload = json.loads(line)
        row = measure.run_one(Workload(**workload), threads, found, seconds)
        on_device = next((peer for peer in found.values() if isinstance(peer, OnDevice)), None)
        if row["failed"] and on_device is not None and on_device.calls.device_lost():
            row["lost"] = True
        answer(row)


if __name__ == "__main__":
    main()
