"""Tables of what run.py measured, in text."""

from __future__ import annotations

from typing import Any

from workloads import Workload, bound

Result = dict[str, Any]
Row = dict[str, Any]


def share(row: Row, peer: str, ceilings: dict[str, Any]) -> tuple[float, str] | None:
    """Part of the bound that a peer on the CPU reaches, and what sets it; None where there is no ceiling."""
    ceiling = ceilings.get(str(row["threads"]))
    workload = Workload(**row["workload"])
    if "cud" in peer or not ceiling or workload.dtype not in ceiling["gflops"]:
        return None
    seconds, by = bound(workload, ceiling)
    return seconds / row["peers"][peer]["median_s"], by


def title(row: Row) -> str:
    return f"{Workload(**row['workload'])!s:42}{row['threads']:>3}"


def compared(rows: list[Row], ceilings: dict[str, Any]) -> str:
    """Time and rate of fastrnn, on the CPU and on the GPU, each with its peers' times divided by it."""
    head = f"{'':38}threads{'':20}{'ms':>10}  GFLOP/s    of bound   time of a peer / this (quartiles)"
    lines = [head]
    for row in rows:
        for own, entry in row["peers"].items():
            if "rival" in entry:
                continue
            reached = share(row, own, ceilings)
            part = f"{reached[0]:.0%} {reached[1]}" if reached else ""
            others = []
            for name, other in row["peers"].items():
                if other.get("rival") == own:
                    low, high = other["ratio_quartiles"]
                    others.append(f"{name} {other['ratio']:.2f} ({low:.2f}-{high:.2f}) {other['verdict']}")
            gflops = Workload(**row["workload"]).flop / entry["median_s"] / 1e9
            speed = f"{entry['median_s'] * 1e3:>10.4g}  {gflops:>7.1f}  {part:>10}"
            lines.append(f"{title(row)}  {own:18}{speed}   {'   '.join(others)}".rstrip())
        for name, reason in row["failed"].items():
            lines.append(f"{title(row)}  {name} failed: {reason}")
    unable = {(name, reason): None for row in rows for name, reason in row["unable"].items()}
    lines += [f"{name} is left out where there is {reason}" for name, reason in unable]
    return "\n".join(lines)


def throughput(rows: list[Row]) -> str:
    """Sequences per second (steps for streaming), a column for each peer."""
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    width = max([12, *(len(name) + 2 for name in names)])
    lines = [f"{'sequences per second':38}threads" + "".join(f"{name:>{width}}" for name in names)]
    for row in rows:
        batch = row["workload"]["batch"]
        values = (batch / row["peers"][name]["median_s"] if name in row["peers"] else None for name in names)
        cells = "".join(f"{'' if value is None else format(value, ',.0f'):>{width}}" for value in values)
        lines.append(f"{title(row)}{cells}")
    return "\n".join(lines)
