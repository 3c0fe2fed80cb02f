"""One row: every peer's result compared first, then all of them timed in turn, then judged."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import fastrnn
import numpy as np
from peers import Data, Peer, Run, as_array, layer_of
from results import BINS_PER_DECADE, on_device, verdict
from workloads import Workload

# How far apart two results may be, as part of the largest value: roundings of a chain of a few thousand
# products (float64, float32: less than what float32 with fewer bits in its products would give), a few dozen
# times the rounding of the formats that round more.
LIMITS = {"float64": 4e-12, "float32": 2e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 0.1, "int8": 0.1}
CHECKED_STEPS = 3  # of a stream, so that a state that is not carried shows
SHORT = 0.05  # seconds: a run below is preceded by runs that are not timed
TURN = 0.004  # seconds that a peer takes in its turn, at the least: the clock's own cost does not count
# Seconds that are not timed before the turn of a short run. One thread's caches fill in a millisecond; of
# several threads that slept, some may wake on one core, and the system takes its time to move them apart.
WARM = 0.001, 0.012  # one thread, several
PAUSE = 0.001  # seconds between two looks at whether other threads are at work
CLOCKED = 100  # steps of a stream that are clocked one by one in each turn


def data(workload: Workload) -> Data:
    """The same weights and input for every peer; for 16-bit formats, float32 numbers that they round."""
    dtype = workload.dtype if workload.itemsize >= 4 else "float32"
    weights = layer_of(fastrnn, workload, dtype=dtype, seed=0).state_dict()
    rng = np.random.default_rng(1)
    T, B, features = workload.steps, workload.batch, workload.input_size
    reset = rng.random((T, B)) < 0.02 if workload.resets else None
    lengths = rng.permutation(np.append(rng.integers(1, T + 1, size=B - 1), T)) if workload.ragged else None
    if workload.tokens:
        tokens = rng.integers(features, size=(T, B))
        return Data(weights, tokens, np.eye(features, dtype=dtype)[tokens], reset, lengths)
    x = rng.standard_normal((T, B, features)).astype(dtype)
    return Data(weights, x, x, reset, lengths)


def arrays(result: Any) -> dict[str, np.ndarray]:
    named = result if isinstance(result, dict) else {"y": result}
    return {key: np.array(as_array(value() if callable(value) else value)) for key, value in named.items()}


def check_equal(
    names: tuple[str, str], result: dict[str, np.ndarray], reference: dict[str, np.ndarray], limit: float
) -> None:
    """Raise RuntimeError unless two peers computed the same."""
    for key in reference:
        if key not in result:
            raise RuntimeError(f"{names[0]} has no {key} to compare with that of {names[1]}")
        scale = float(np.abs(reference[key]).max()) or 1.0
        error = float(np.abs(result[key].ravel() - reference[key].ravel()).max()) / scale
        if not error < limit:
            raise RuntimeError(
                f"{names[0]} and {names[1]} disagree on {key}: {error:.1e} of its size, "
                f"at most {limit:.1e} allowed"
            )


def prepared(
    workload: Workload, threads: int, all_peers: dict[str, Peer], row: dict[str, Any]
) -> dict[str, tuple[Peer, Run]]:
    """The runs of the peers that compute the same as the first; the row receives why others are not there."""
    given = data(workload)
    runs: dict[str, tuple[Peer, Run]] = {}
    reference: tuple[str, dict[str, np.ndarray]] | None = None
    for name, peer in all_peers.items():
        if reason := peer.unable(workload):
            row["unable"][name] = reason
            continue
        try:
            run = peer.prepare(workload, given, threads)
            for _ in range(CHECKED_STEPS if workload.run == "streaming" else 1):
                result = arrays(run())
            if reference is None:
                reference = name, result
            rounding = next((part for part in name.split("-") if part in LIMITS), workload.dtype)
            check_equal((name, reference[0]), result, reference[1], LIMITS[rounding])
        except Exception as error:  # out of memory, nothing for a graph, a wrong result: the others go on
            row["failed"][name] = one_line(error)
            continue
        runs[name] = peer, run
    return runs


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def settle() -> bool:
    """Wait until the other threads of this process are idle, so that every turn begins alike; not for ever.

    Those of a peer may go on waiting for more work in a loop after its turn, on cores that others need.
    """
    for _ in range(200):
        before = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - before < PAUSE / 4:
            return True
    return False


def clocked(run: Run) -> list[float]:
    """Times of single steps, each with the cost of two looks at the clock in it (0.05 us)."""
    times = [time.perf_counter()]
    for _ in range(CLOCKED):
        run()
        times.append(time.perf_counter())
    return [after - before for before, after in pairwise(times)]


def measure(
    runs: dict[str, tuple[Peer, Run]],
    seconds: float,
    steps: dict[str, list[float]],
    warm: float,
    row: dict[str, Any],
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Times of each, taken in turn: whatever disturbs the machine disturbs all of them.

    At least 3 turns, however long they take. Before the turn of a short run come `warm` seconds that are not
    timed. `steps` receives the times of single runs for the peers it names. Also returns how many runs a turn
    has. A run that fails goes from `runs`, and the row receives the reason; also how many of a peer's turns
    began while other threads were still at work.
    """
    repeat: dict[str, int] = {}
    short: dict[str, bool] = {}
    times: dict[str, list[float]] = {name: [] for name in runs}

    def warm_up(peer: Peer, run: Run) -> None:
        until = time.perf_counter() + warm
        while time.perf_counter() < until:
            peer.seconds(run, 1)

    def turn(name: str, peer: Peer, run: Run) -> None:
        if not settle():
            row["unsettled"][name] = row["unsettled"].get(name, 0) + 1
        if name not in repeat:  # its first run says nothing of those to come
            once = min(peer.seconds(run, 1) for _ in range(2))
            repeat[name] = 1
            if once < SHORT:
                warm_up(peer, run)
                once = min(peer.seconds(run, 1) for _ in range(3))
                repeat[name] = max(1, round(TURN / max(once, 1e-7)))
            short[name] = once < SHORT
        elif short[name]:
            warm_up(peer, run)
        times[name].append(peer.seconds(run, repeat[name]))
        if name in steps:
            steps[name] += clocked(run)

    end, turns = time.perf_counter() + seconds, 0
    while runs and (time.perf_counter() < end or turns < 3):
        for name, (peer, run) in list(runs.items()):
            try:
                turn(name, peer, run)
            except Exception as error:  # the others go on
                row["failed"][name] = one_line(error)
                del runs[name], times[name]
        turns += 1
    return times, repeat


def spread(values: list[float]) -> tuple[float, float]:
    """First and third quartile."""
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def latencies(times: list[float]) -> dict[str, Any]:
    """Of single steps: percentiles, and a histogram with bins of the same ratio, bin 0 from 1e-7 s."""
    percents = (1, 25, 50, 75, 95, 99, 99.9)
    values = np.percentile(times, percents)
    bins = Counter(math.floor(BINS_PER_DECADE * math.log10(value / 1e-7)) for value in times)
    return {
        "percentiles_s": {str(p): rounded(v) for p, v in zip(percents, values, strict=True)},
        "first_bin": min(bins),
        "counts": [bins[k] for k in range(min(bins), max(bins) + 1)],
    }


def rounded(value: float) -> float:
    """To what a time can be trusted, so that files stay small."""
    return float(f"{value:.4g}")


def run_one(workload: Workload, threads: int, all_peers: dict[str, Peer], seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"workload": workload.as_dict(), "threads": threads}
    row |= {"peers": {}, "failed": {}, "unable": {}, "unsettled": {}}
    runs = prepared(workload, threads, all_peers, row)
    streaming = workload.run == "streaming"
    steps: dict[str, list[float]] = {name: [] for name in runs if streaming and not on_device(name)}
    times, repeat = measure(runs, seconds, steps, WARM[threads > 1], row)

    def ratio(peer: str, own: str) -> list[float]:
        """Median and quartiles, turn by turn."""
        values = [a / b for a, b in zip(times[peer], times[own], strict=True)]
        return [rounded(value) for value in (statistics.median(values), *spread(values))]

    owns = [name for name in times if name.startswith("fastrnn")]
    for name, values in times.items():
        entry: dict[str, Any] = {
            "median_s": rounded(statistics.median(values)),
            "quartiles_s": [rounded(value) for value in spread(values)],
            "turns": len(values),
            "runs_a_turn": repeat[name],
        }
        rival = runs[name][0].rival
        if rival in times:
            middle, *quartiles = ratio(name, rival)
            entry |= {"rival": rival, "ratio": middle, "ratio_quartiles": quartiles}
            entry["verdict"] = verdict(*quartiles)
        if name in owns and len(owns) > 1:
            entry["beside"] = {own: ratio(own, name) for own in owns if own != name}
        if name in steps:
            entry["steps"] = latencies(steps[name])
        row["peers"][name] = entry
    return row
