"""What the server does with an update of a big model: seconds by part, and its peak memory.

    python -m benchmarks.updates [MB] [updates]

Claims: an update is folded into the sum at about the speed of an axpy, the limit here, measured in
the same run; and the process, which is a fresh one with a model in it, needs no more memory for
many updates than for one. CPU seconds stand beside wall seconds, since only they hold on a machine
that others use.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fl.server.aggregators import Contribution, open_aggregator
from fl.server.checkpoint import Snapshot, save
from fl.tensors import Tensors, decode, pieces, require_same_layout
from fl.transport.file import FileTransport

LAYERS = 10


def main() -> None:
    """One step of many updates, part by part."""
    megabytes, updates = (int(a) for a in (*sys.argv[1:], "100", "16")[:2])
    bare = peak()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fl-bench.") as name:
        parts = Parts()
        weights = model(megabytes)
        loaded = peak()
        once = step(weights, 1, Path(name), parts)
        many = step(weights, updates, Path(name), parts)
    parts.times["axpy"] = []
    total, other = torch.zeros(megabytes * 250_000), torch.ones(megabytes * 250_000)
    for _ in range(updates):
        with parts("axpy"):
            total.add_(other, alpha=0.5)
    print(f"{megabytes} MB an update, {updates} updates: median (least to most)")
    for part, times in parts.times.items():
        wall, cpu = zip(*times, strict=True)
        print(f"  {part:12} {spread(wall)} s, CPU {spread(cpu)} s")
    ratio = parts.median("sum") / parts.median("axpy")
    print(f"sum / axpy: {ratio:.2f} of CPU seconds")
    print(f"peak memory: {bare:.0f} MB bare, {loaded:.0f} MB with the model; in a step of")
    print(f"  1 update {once:.0f} MB, {updates} updates {many:.0f} MB")
    print(f"  beyond the bare process: {(many - bare) / megabytes:.2f} models")


def step(weights: Tensors, updates: int, folder: Path, parts: Parts) -> float:
    """Gather updates, step, checkpoint: what the loop does; the peak memory after it."""
    transport = FileTransport(folder)
    ref = transport.put(*pieces(weights))
    aggregator = open_aggregator("FedAvgAggregator", {}, ["a"])
    contribution = Contribution("a", num_samples=10, steps=1, staleness=0, share=1.0)
    for index in range(updates):
        with parts("get"):
            data = transport.get(ref)
        with parts("decode"):
            update = decode(data)
        with parts("check"):
            require_same_layout(weights, update)
        with parts("first sum" if index == 0 else "sum"):
            aggregator.add(update, contribution)
        del data, update
    with parts("step"):
        moved = aggregator.step(weights)
    with parts("checkpoint"):
        save(folder / "checkpoint", Snapshot(1, moved, {}, {}, {}))
    return peak()


class Parts:
    """Wall and CPU seconds of parts."""

    def __init__(self) -> None:
        self.times: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time what is done inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        spent = (time.perf_counter() - wall, time.process_time() - cpu)
        self.times.setdefault(part, []).append(spent)

    def median(self, part: str) -> float:
        """CPU seconds of a part."""
        return statistics.median(cpu for _, cpu in self.times[part])


def model(megabytes: int) -> Tensors:
    """Layers of random numbers."""
    rows = megabytes * 250_000 // LAYERS // 1000
    return {f"layer.{index}": torch.randn(rows, 1000) for index in range(LAYERS)}


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def spread(values: tuple[float, ...]) -> str:
    """Median and range."""
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
