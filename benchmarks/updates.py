"""What the server does with an update of a big model: seconds by part, and its peak memory.

    python -m benchmarks.updates [MB] [updates]

Claims: an update is folded into the sum in at most 1.1 times the CPU seconds of an axpy, the limit
here, measured in the same run; and the server's loop, in a process of its own, needs two models and
256 MB of memory, the process included, and less than half a model more for many updates than for
one. CPU seconds stand beside wall seconds, since only they hold on a machine that others use.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks import verdict
from fl.config import (
    Client,
    DataConfigs,
    Federation,
    ModelConfigs,
    ServerConfigs,
    SharedClientConfigs,
)
from fl.endpoints.base import EndpointError, JSONObject
from fl.server import federation as server
from fl.server.aggregators import Contribution, open_aggregator
from fl.server.checkpoint import Snapshot, read_model, save
from fl.server.clock import RealClock
from fl.server.schedulers import open_scheduler
from fl.tensors import Tensors, decode, norm, pieces, require_layout
from fl.transport import Ref
from fl.transport.file import FileTransport

LAYERS = 10


def main() -> None:
    """One step of many updates, part by part."""
    megabytes, updates = (int(a) for a in (*sys.argv[1:], "100", "16")[:2])
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fl-bench.") as name:
        parts = Parts()
        weights = model(megabytes)
        step(weights, updates, Path(name), parts)
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
    verdict("sum / axpy, of medians", ratio, at_most=1.1)
    peaks = []
    for count in (1, updates):
        bare, most = fresh(megabytes, count)
        peaks.append(most)
        print(f"two rounds of {count} updates: {bare:.0f} MB bare, {most:.0f} MB at the peak,")
        print(f"  {(most - bare) / megabytes:.2f} models more")
    verdict("MB at the peak", max(peaks), at_most=2 * megabytes + 256)
    more = (peaks[-1] - peaks[0]) / megabytes
    verdict(f"models more for {updates} updates than for one", more, at_most=0.5)


def step(weights: Tensors, updates: int, folder: Path, parts: Parts) -> None:
    """Gather updates, step, checkpoint: what the loop does."""
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
            require_layout(weights, update)
            norm(update)
        with parts("first sum" if index == 0 else "sum"):
            aggregator.add(update, contribution)
        del data, update
    with parts("step"):
        moved = aggregator.step(weights)
    with parts("checkpoint"):
        save(folder / "checkpoint", Snapshot(1, moved, {}, {}, {}))


def fresh(megabytes: int, updates: int) -> tuple[float, float]:
    """What a fresh process needs that runs the server's loop, in MB: without a model, and most."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(loop, megabytes, updates).result()


def loop(megabytes: int, updates: int) -> tuple[float, float]:
    """Two rounds of the server's loop over sites that answer at once; the memory before and most.

    All answer with the same update, a file that is there.
    """
    bare = peak()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fl-bench.") as name:
        folder, start = Path(name), Snapshot(0, model(megabytes), {}, {}, {})
        transport, checkpoint = Keeping(folder), folder / "checkpoint"
        save(checkpoint, start)
        names = [str(index) for index in range(updates)]
        configured, clock = federation(names), RealClock()
        aggregator = open_aggregator("FedAvgAggregator", {}, names)
        parts = server.Parts(
            endpoints=Answering(transport.put(*pieces(start.weights))),
            transport=transport,
            scheduler=open_scheduler(configured.server_configs, None),
            aggregator=aggregator,
            clock=clock,
            evaluate=None,
            listen=lambda _: None,
            save=lambda snapshot: save(checkpoint, snapshot),
            reload=lambda: read_model(checkpoint),
            sent=lambda _task, _model: None,
        )
        server.Server(configured, parts, "run").fit(start)
        clock.close()
    return bare, peak()


def federation(names: list[str]) -> Federation:
    """Sites of these names, for two rounds."""
    data = DataConfigs(dataset_path="data.py", dataset_name="load")
    settings = {"num_clients": len(names), "num_global_epochs": 2}
    return Federation(
        client_configs=SharedClientConfigs(
            model_configs=ModelConfigs(model_path="model.py", model_name="Net")
        ),
        server_configs=ServerConfigs.model_validate(settings),
        clients=[Client(endpoint_id="local", client_id=n, data_configs=data) for n in names],
    )


class Keeping(FileTransport):
    """Files that stay."""

    def evict(self, ref: Ref) -> None:
        """They are used again."""


class Answering:
    """Sites that have trained before they are asked."""

    def __init__(self, update: Ref) -> None:
        self._update = update

    def submit(self, _client: Client, request: JSONObject) -> Future[JSONObject]:
        """The answer, at once."""
        answer = {"job": request["job"], "update": self._update.to_json()}
        answered: Future[JSONObject] = Future()
        answered.set_result({"result": answer | {"num_samples": 1, "steps": 1}})
        return answered

    def health(self, _client: Client) -> None:
        """All are well."""

    def explain(self, error: BaseException) -> EndpointError:
        """Nothing fails."""
        return EndpointError(str(error))

    def session(self, _client: Client) -> None:
        """None."""

    def recover(self, _session: str, _jobs: Collection[str]) -> dict[str, Future[JSONObject]]:
        """None."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


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
    """The most memory that this process has had, in MB; its parent's is not counted."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024 / 1e6


def spread(values: tuple[float, ...]) -> str:
    """Median and range."""
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
