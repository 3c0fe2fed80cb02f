"""Compares two runs of run.py: has fastrnn become slower?

    python bench/compare.py OLD.json NEW.json

For every workload that both have: time in the old run / time in the new one, so that above 1 the new one is
faster, and a verdict. The range in brackets goes from OLD's lower quartile / NEW's upper one to OLD's upper /
NEW's lower: SLOWER means that three quarters of the new runs took at least 2 % longer than three quarters of
the old ones. A machine is not equally fast every day: what the peers, of the same version in both, take more
or less on geometric mean is divided out (--raw: is not). Exits with 1 when any row is SLOWER or has failed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from results import Row, geometric_mean, quotient, rows_of, verdict


def drift(pairs: list[tuple[Row, Row]], versions: tuple[dict[str, str], dict[str, str]]) -> float:
    """Time of the peers in the new run / in the old one."""
    return geometric_mean(
        after.seconds(peer) / before.seconds(peer)
        for before, after in pairs
        for peer in before.peers.keys() & after.peers.keys()
        if not peer.startswith("fastrnn") and versions[0].get(peer) == versions[1].get(peer)
    )


def compared(old: dict[str, Any], new: dict[str, Any], raw: bool) -> tuple[str, int]:
    """A table, and how many times are slower or no longer there."""
    cpus = [side["machine"]["cpu"].removeprefix("model name ") for side in (old, new)]
    if cpus[0] != cpus[1]:
        raise SystemExit(f"the two runs are of two CPUs: {cpus[0]}; {cpus[1]}")
    before, after = ({(row.load, row.threads): row for row in rows_of(side)} for side in (old, new))
    pairs = [(before[key], after[key]) for key in before if key in after]
    if not pairs:
        raise SystemExit("the two runs have no workload in common")
    machine = drift(pairs, (old["versions"], new["versions"]))
    if raw or math.isnan(machine):  # no peers in common
        machine = 1.0
    lines = [
        f"{old['commit']} -> {new['commit']}; divided out: the peers now take {machine:.3f} of their time"
    ]
    lines.append(f"{'':45}threads{'':18}{'old ms':>10}{'new ms':>10}   old / new, (range)")
    slower = failed = count = 0
    for row, other in pairs:
        for own in dict.fromkeys([*row.owns, *other.owns]):
            count += 1
            head = f"{row.load!s:45}{row.threads:>7}  {own:16}"
            if lacking := [side for side in (row, other) if own not in side.peers]:
                side = lacking[-1]
                reason = side.failed.get(own) or side.failed.get("all") or "not measured"
                when = "" if side is other else " in the old run"
                lines.append(f"{head}FAILED{when}: {reason}")
                failed += side is other
                continue
            found = quotient(own, row.peers[own], other.peers[own])
            low, high = found.low * machine, found.high * machine
            judged = verdict(low, high)
            slower += judged == "SLOWER"
            times = "".join(f"{side.seconds(own) * 1e3:>10.4g}" for side in (row, other))
            lines.append(f"{head}{times}   {found.median * machine:.2f} ({low:.2f}-{high:.2f}) {judged}")
    for name, side, others in (("old", before, after), ("new", after, before)):
        if missing := len(side.keys() - others.keys()):
            lines.append(f"{missing} rows are in the {name} run alone")
    lines.append(f"{slower} of {count} times are slower beyond the spread, {failed} failed")
    return "\n".join(lines), slower + failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--raw", action="store_true", help="times as they are, for runs of one sitting")
    args = parser.parse_args()
    text, worse = compared(*(json.loads(file.read_text()) for file in (args.old, args.new)), args.raw)
    print(text)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
