"""What scripts have in common that measure in a process for each number of threads, beside PyTorch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import results
from worker import Process, answering, keep_to, machine, thread_count

Point = dict[str, Any]
"""What is to be measured, and with its figures what was."""


def run(
    script: str,
    parser: argparse.ArgumentParser,
    points: Callable[[argparse.Namespace], list[Point]],
    measured: Callable[[Point, int, float], Point],
    table: Callable[[list[Point]], str],
) -> None:
    """The whole of a script: `measured` of each point, a number of threads, and seconds for it."""
    parser.add_argument("--threads", nargs="+", type=thread_count, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5, help="for each row")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)  # threads, of the process that measures
    args = parser.parse_args()
    if args.work:
        answer = answering()
        keep_to(args.work)
        answer(machine())
        for line in sys.stdin:
            answer(measured(json.loads(line), args.work, args.seconds))
        return
    head = {"commit": results.commit(), "versions": {"torch": metadata.version("torch")}}
    rows = []
    for threads in args.threads:
        process = Process(script, "--work", str(threads), "--seconds", str(args.seconds))
        try:
            head["machine"] = process.read()
            rows += [process.ask(json.dumps(point)) for point in points(args)]
        finally:
            process.stop()
    print(table(rows))
    if args.json:
        results.write(args.json, head, Path(script).stem, rows)
