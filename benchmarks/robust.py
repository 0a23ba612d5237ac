"""A step of a rule that compares updates, when they are many and big: memory and seconds.

    python -m benchmarks.robust [MB] [updates] [aggregator]

Claim: updates wait for the step on disk, so that the step needs at most four models of memory. By
as many models, 64 updates of 1 GB would fit in 8 GB: that is worked out, not run. What the process
itself must have (its anonymous memory) is sampled; pages of files are the kernel's,
which takes them back when it is short. To see that it does, give the process less than it would
like, as in `systemd-run --user --scope -p MemoryMax=2G python -m benchmarks.robust 250 64`. The
files lie in TMPDIR. The limit beside it is one reading of the same files.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import torch

from benchmarks import verdict
from fl.server.aggregators import Contribution, open_aggregator

LAYERS = 10


def main() -> None:
    """Add the updates and step, watched."""
    given = sys.argv[1:]
    megabytes, updates = (int(a) for a in (*given[:2], "100", "64")[:2])
    name = given[2] if len(given) > 2 else "MedianAggregator"
    clients = [f"site-{index}" for index in range(updates)]
    aggregator = open_aggregator(name, {}, clients)
    bare = anonymous()
    weights = model(megabytes)
    with Peak() as peak:
        started = time.perf_counter()
        for client in clients:
            aggregator.add(model(megabytes), Contribution(client, 10, 1, 0, 1 / updates))
        added = time.perf_counter()
        read = sum(
            float(t.sum()) for update in aggregator.state().values() for t in update.values()
        )
        again = time.perf_counter()
        aggregator.step(weights)
        stepped = time.perf_counter()
    print(f"{name}, {updates} updates of {megabytes} MB (sum of all: {read:.0f})")
    print(f"  make and add {added - started:8.1f} s")
    print(f"  read once    {again - added:8.1f} s")
    ratio = (stepped - again) / (again - added)
    print(f"  step         {stepped - again:8.1f} s, {ratio:.1f} readings")
    most = peak.most - bare
    print(f"  anonymous memory at its peak: {most:.0f} MB beyond the bare process's {bare:.0f} MB,")
    print(f"  which is {most / megabytes:.2f} models; all updates are {updates * megabytes} MB")
    print(f"  by as many models, updates of 1 GB would need {most / megabytes:.1f} GB")
    verdict("models of memory at the peak", most / megabytes, at_most=4)


class Peak:
    """The most anonymous memory while it is open, in MB; looked at fifty times a second."""

    def __enter__(self) -> Peak:
        self.most = anonymous()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, anonymous())


def model(megabytes: int) -> dict[str, torch.Tensor]:
    """Layers of random numbers."""
    rows = megabytes * 250_000 // LAYERS // 1000
    return {f"layer.{index}": torch.randn(rows, 1000) for index in range(LAYERS)}


def anonymous() -> float:
    """This process's memory that no file backs, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1000


if __name__ == "__main__":
    main()
