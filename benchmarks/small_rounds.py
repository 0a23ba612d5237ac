"""What a round of a small model costs with local clients, against the bare pool of processes.

    python -m benchmarks.small_rounds [clients]

Claim: with eight clients that do not train, on this machine's cores, the median warm round takes
less than 20 ms, checkpoint included. Beside it the limit: as many calls that do nothing, through a
bare pool of processes.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context

from benchmarks import verdict
from benchmarks.big_rounds import ratio, rounds, spread

ROUNDS, REPEATS = 40, 5


def main() -> None:
    """Measure both in turns."""
    clients = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    ours, bare = [], []
    parts: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        bare += calls(clients)
        for entry in rounds(0.01, clients, ROUNDS):
            ours.append(entry["seconds"]["total"])
            for name, seconds in entry["seconds"].items():
                parts.setdefault(name, []).append(seconds)
    print(f"10 kB, {clients} clients, milliseconds: median (least to most)")
    for name, values in parts.items():
        print(f"  {name:12} {milliseconds(values)}")
    print(f"  a round      {milliseconds(ours)}")
    print(f"  bare calls   {milliseconds(bare)}")
    print(f"  round / bare: {ratio(ours, bare)}")
    below = statistics.mean(seconds < 0.02 for seconds in ours)
    print(f"  rounds below 20 ms: {below:.0%} of {len(ours)}")
    verdict("milliseconds of the median round", 1000 * statistics.median(ours), at_most=20)


def calls(clients: int) -> list[float]:
    """Seconds of as many calls that do nothing, once the pool is warm."""
    workers = min(clients, os.cpu_count() or 1)
    times = []
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            wait([pool.submit(nothing) for _ in range(clients)])
            times.append(time.perf_counter() - started)
    return times[1:]


def nothing() -> None:
    """What a client that had nothing to do would do."""


def milliseconds(values: list[float]) -> str:
    """Median and range."""
    return spread([value * 1000 for value in values])


if __name__ == "__main__":
    main()
