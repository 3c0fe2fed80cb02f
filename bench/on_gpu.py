"""What the scripts have in common that measure on a GPU and read their own files again."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from peers import AbsentError, FastRNNCuda


def arguments(about: str, reader: str, reads: str) -> argparse.Namespace:
    """Options of the command line; `reader` takes files instead of measuring, and `reads` is its help."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=math.inf, help="time for everything")
    parser.add_argument("--row-seconds", type=float, default=0.3, help="time for the turns of one size")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument(f"--{reader}", nargs="*", type=Path, help=reads)
    args = parser.parse_args()
    if args.out is None and getattr(args, reader) is None:
        parser.error("--out is missing")
    return args


def replayed() -> FastRNNCuda:
    """The layers on the GPU, replayed from graphs; exits with 2 where they cannot be measured."""
    try:
        return FastRNNCuda(graph=True)
    except (ImportError, AbsentError) as error:
        print(f"{error}: nothing measured", file=sys.stderr)
        sys.exit(2)
