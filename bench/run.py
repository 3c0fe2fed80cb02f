"""Measures fastrnn against its peers: results compared first, runs interleaved, medians and quartiles.

    python bench/run.py            the sizes that a release must not be slow at, on one thread
    python bench/run.py --cells lstm gru --batch 1 16 --hidden 64 256 --steps 100 --threads 1 2
    python bench/run.py --passes streaming --batch 1 --hidden 64 --seconds 2
    python bench/run.py --workloads wake-word rl
    python bench/run.py --hidden 256 512 1024 --batch 16 64 --steps 512 --devices cuda

Every list is an axis, and all combinations are measured. CPU and GPU peers run side by side where there is a
GPU. Prints tables, and writes them with machine, versions and commit to bench/results/, a row as soon as it
is measured, and plots beside them (tables.py sums up). Ctrl-C, or --total seconds, end it with what has been
measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from peers import ALL, ON_DEVICE, ON_HOST, ROUNDED, SPECIAL
from plot import draw
from progress import within
from results import commit, rows_of, write
from tables import compared
from worker import Process, thread_count
from workloads import DTYPES, GATES, NAMED, PASSES, Workload, estimate, floor, grid

HERE = Path(__file__).parent


class Worker:
    """The process that measures with one number of threads (worker.py); another one if it dies."""

    def __init__(self, threads: int, peers: list[str]) -> None:
        self.threads, self.peers = threads, peers
        self.start()

    def start(self) -> None:
        self.process = Process(str(HERE / "worker.py"), str(self.threads), *self.peers)
        self.about = self.process.read()

    def row(self, workload: Workload, seconds: float) -> dict[str, Any]:
        try:
            row = self.process.ask(json.dumps([seconds, workload.as_dict()]))
        except ChildProcessError as error:
            self.start()  # after it was killed for its memory, or a library crashed
            row = {"workload": workload.as_dict(), "threads": self.threads, "peers": {}}
            return row | {"failed": {"all": str(error)}, "unable": {}, "unsettled": {}}
        if row.pop("lost", False):
            self.stop()
            self.start()
        return row

    def ceiling(self) -> tuple[dict[str, Any] | None, str]:
        return self.process.ask("")

    def stop(self) -> None:
        self.process.stop()


class Result:
    """What is written: a JSON file that is whole after every row, with how many are still to come."""

    def __init__(self, file: Path, planned: int, label: str) -> None:
        self.file, self.planned = file, planned
        self.head: dict[str, Any] = {"commit": label, "versions": {}, "absent": [], "ceilings": {}}
        self.rows: list[dict[str, Any]] = []

    def go_on(self, before: dict[str, Any]) -> None:
        """With the rows of a run that was stopped."""
        self.rows = list(before["rows"])
        self.head |= {key: value for key, value in before.items() if key != "rows"}

    def about(self, worker: Worker) -> None:
        self.head |= {"machine": worker.about["machine"] | {"cpus": len(os.sched_getaffinity(0))}}
        self.head["versions"] |= worker.about["versions"]
        self.head["absent"] += [line for line in worker.about["absent"] if line not in self.head["absent"]]

    def ceiling(self, worker: Worker) -> None:
        """Measured before the rows and after them: the better one counts."""
        found, reason = worker.ceiling()
        if found is None:
            print(reason)
            return
        before = self.head["ceilings"].setdefault(str(worker.threads), found)
        for kind, rate in found["gflops"].items():
            before["gflops"][kind] = max(rate, before["gflops"][kind])
        for level, read in found["read"].items():
            before["read"][level]["gb_s"] = max(read["gb_s"], before["read"][level]["gb_s"])

    def write(self) -> None:
        self.head["left_out"] = self.planned - len(self.rows)
        write(self.file, self.head, "rows", self.rows)


class Team:
    """The workers of one number of threads: one for the peers on the CPU, one for those on a device."""

    def __init__(self, threads: int, names: list[str], result: Result) -> None:
        self.threads, self.result = threads, result
        self.workers: list[Worker] = []
        for group, count in ((ON_HOST | ROUNDED, threads), (ON_DEVICE | SPECIAL, 0)):
            if chosen := [name for name in names if name in group]:
                worker = Worker(count, chosen)
                result.about(worker)
                if worker.about["versions"]:
                    self.workers.append(worker)
                else:
                    worker.stop()
        if not self.workers:
            sys.exit("nothing to measure: " + "; ".join(result.head["absent"]))
        self.probe()

    def probe(self) -> None:
        for worker in self.workers:
            if worker.threads:
                self.result.ceiling(worker)

    def measure(self, workload: Workload, seconds: float) -> None:
        first, *others = (worker.row(workload, seconds) for worker in self.workers)
        for other in others:
            for key in ("peers", "failed", "unable", "unsettled"):
                first[key] |= other[key]
        self.result.rows.append(first | {"threads": self.threads})
        self.result.write()

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()


def measure_all(
    pairs: list[tuple[int, Workload]], names: list[str], seconds: float, total: float, result: Result
) -> None:
    team = None
    try:
        for threads, workload in within(total, pairs, lambda pair: estimate(pair[1], len(names), seconds)):
            if team is None or team.threads != threads:
                if team is not None:
                    team.probe()
                    team.stop()
                team = Team(threads, names, result)
            team.measure(workload, seconds)
        if team is not None:
            team.probe()
    finally:
        if team is not None:
            team.stop()


def parsed() -> argparse.Namespace:
    usage = "%(prog)s [options, which --help lists]"  # or an error would come after a screen of them
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=usage)
    parser.add_argument("--cells", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=["forward", "training"])
    parser.add_argument("--steps", nargs="+", type=int, default=[100], help="T; of a stream it is 1")
    parser.add_argument("--batch", nargs="+", type=int, help="B; without it and --hidden: the floor sizes")
    parser.add_argument("--hidden", nargs="+", type=int, help="H")
    parser.add_argument("--input", nargs="+", type=int, default=[None], help="I; default: as H")
    parser.add_argument("--layers", nargs="+", type=int, default=[1])
    parser.add_argument("--directions", nargs="+", type=int, choices=(1, 2), default=[1])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--workloads", nargs="+", choices=NAMED, help="in place of all of these")
    parser.add_argument(
        "--threads", nargs="+", type=thread_count, default=[1], help="of the CPU peers, a core for each"
    )
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu", "cuda"])
    parser.add_argument("--peers", nargs="+", choices=ALL, help="default: all that can run here")
    parser.add_argument("--rounded", action="store_true", help="bfloat16 and int8 weights on the CPU too")
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on each row")
    parser.add_argument("--total", type=float, default=math.inf, help="stop when this time is used up")
    parser.add_argument(
        "--out", type=Path, help="JSON file, plots beside it; default bench/results/<date>.json"
    )
    parser.add_argument("--no-plots", action="store_true", help="leave them to plot.py")
    return parser.parse_args()


def wanted(args: argparse.Namespace) -> list[Workload]:
    if args.workloads:
        return [load for name in args.workloads for load in NAMED[name]]
    if not (args.batch or args.hidden):
        return floor()
    sizes = (args.steps, args.batch or [1, 64], args.hidden or [64, 256], args.input, args.layers)
    return grid(args.cells, args.passes, args.dtypes, *sizes, args.directions)


def main() -> None:
    args = parsed()
    groups = {"cpu": ON_HOST, "cuda": ON_DEVICE}
    names = args.peers or [name for device in args.devices for name in groups[device]]
    names += [name for name in ROUNDED if args.rounded and name not in names]
    workloads = wanted(args)
    pairs = [(threads, workload) for threads in args.threads for workload in workloads]
    file = args.out or HERE / "results" / f"{datetime.date.today().isoformat()}.json"
    result = Result(file, len(pairs), commit())
    try:
        measure_all(pairs, names, args.seconds, args.total, result)
    except KeyboardInterrupt:
        print("stopped; what was measured is kept")
    for line in result.head["absent"]:
        print(line)
    if not result.rows:
        sys.exit("nothing was measured")
    result.write()
    measured = result.head | {"rows": result.rows}
    print(compared(list(rows_of(measured))))
    pictures = [] if args.no_plots else draw([measured], result.file.with_suffix(""))
    print("written to", result.file, *pictures)
    failed = [f"{name}: {reason}" for row in result.rows for name, reason in row["failed"].items()]
    if failed or (args.peers and result.head["absent"]):
        sys.exit("not measured: " + "; ".join(dict.fromkeys(failed + result.head["absent"])))


if __name__ == "__main__":
    main()
