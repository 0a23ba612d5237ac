"""A round whose updates the server sees in their sum alone, beside one in clear.

    python -m benchmarks.secure_sums [numbers] [sites] [rounds]

Claim: masks cost a site time in proportion to the sites of the sum (within 20 % for twice as many),
the server half to twice what they cost a site, more where sites drop out, and twice the bytes. The
loop, the tasks and the aggregators are those of any run; sites are in this process, one
after the other, and do not train.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import verdict
from fl.client import masking, task
from fl.client.request import TrainRequest, read
from fl.config import Client, DataConfigs, Federation, ServerConfigs, SharedClientConfigs
from fl.endpoints.base import EndpointError
from fl.server.aggregators import open_aggregator
from fl.server.checkpoint import Snapshot
from fl.server.clock import RealClock
from fl.server.events import Event, RoundEnded
from fl.server.federation import Parts, Server
from fl.server.schedulers import open_scheduler
from fl.tensors import Tensors, pieces
from fl.transport.file import FileTransport

SECURE = "SecureFedAvgAggregator"
MEMORY = Path("/dev/shm")  # noqa: S108  (updates lie in memory, as the tables of docs/performance.md)


def main() -> None:
    """Rounds in clear, secure ones, and secure ones with the most drop-outs."""
    numbers, sites, rounds = (int(a) for a in (*sys.argv[1:], "10000000", "5", "5")[:3])
    few, many = (compare(numbers, count, rounds) for count in (sites, 2 * sites))
    for count, cost in ((sites, few), (2 * sites, many)):
        server = cost.server / cost.site
        verdict(f"masks at the server / at a site, {count} sites", server, at_least=0.5, at_most=2)
        verdict(f"unmasking with drop-outs / without, {count} sites", cost.dropped, at_least=1)
        verdict(f"bytes, secure / in clear, {count} sites", cost.size, at_least=1.99, at_most=2.01)
    doubled = many.site / few.site
    verdict("masks at a site, of twice the sites", doubled, at_least=1.6, at_most=2.4)


@dataclass(frozen=True)
class Cost:
    """What masks cost.

    Attributes:
        site: Seconds at a site.
        server: Seconds at the server.
        dropped: Times as many seconds to take masks off where sites have dropped out.
        size: Times as many bytes.
    """

    site: float
    server: float
    dropped: float
    size: float


def compare(numbers: int, sites: int, rounds: int) -> Cost:
    """Measure as many sites: in clear, with masks, and with the most drop-outs."""
    most = sites - (sites // 2 + 1)
    print(f"{numbers:,} numbers, {sites} sites, {rounds} rounds: seconds, median (least to most)")
    print("                              round                 at a site             MB a site")
    found = []
    for name, aggregator, gone in (
        ("in clear", "FedAvgAggregator", 0),
        ("secure", SECURE, 0),
        (f"secure, {most} drop out", SECURE, most),
    ):
        took, at_site, size, phases = measure(aggregator, numbers, sites, rounds, gone)
        server = sum(phases[phase] for phase in ("collect", "unmask", "aggregate"))
        found.append((statistics.median(at_site), server, size, phases["unmask"]))
        print(f"{name:28}  {spread(took)}  {spread(at_site)}  {size / 1e6:9.1f}")
        print("    " + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items()))
    clear, secure, dropped = found
    return Cost(
        site=secure[0] - clear[0],
        server=secure[1] - clear[1],
        dropped=dropped[3] / secure[3],
        size=secure[2] / clear[2],
    )


class Sites:
    """Sites that have their updates already; the last ones drop out instead of training."""

    def __init__(self, update: Tensors, transport: FileTransport, silent: set[str]) -> None:
        self._update, self._transport, self._silent = update, transport, silent
        self.seconds: list[float] = []

    def submit(self, client: Client, request: dict[str, Any]) -> Future[dict[str, Any]]:
        """Answer at once."""
        future: Future[dict[str, Any]] = Future()
        if request["operation"] != "train":
            future.set_result(task.run(request))
        elif client.client_id in self._silent:
            error = {"type": "BenchmarkError", "message": "it drops out", "traceback": ""}
            future.set_result({"error": error})
        else:
            future.set_result({"result": self._train(request)})
        return future

    def _train(self, request: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        tensors, wanted = self._update, read(TrainRequest, request)
        if wanted.masking is not None:
            tensors = masking.masked(tensors, wanted, wanted.masking, 100)
        update = self._transport.put(*pieces(tensors)).to_json()
        self.seconds.append(time.perf_counter() - started)
        return {"job": request["job"], "update": update, "num_samples": 100, "steps": 1}

    def health(self, _client: Client) -> None:
        """Every site is there."""

    def explain(self, error: BaseException) -> EndpointError:
        """Nothing is lost on its way."""
        return EndpointError(str(error))


def measure(
    aggregator: str, numbers: int, sites: int, rounds: int, gone: int
) -> tuple[list[float], list[float], int, dict[str, float]]:
    """Seconds a round, seconds at a site, bytes of an update, median seconds by phase."""
    names = [f"site-{index}" for index in range(sites)]
    federation = configuration(names, aggregator, rounds, sites - gone)
    configs = federation.server_configs
    weights = {"w": torch.zeros(numbers)}
    ended: list[RoundEnded] = []

    def listen(event: Event) -> None:
        if isinstance(event, RoundEnded):
            ended.append(event)

    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        os.environ["FL_SITE_STATE"] = f"{folder}/state"
        transport = FileTransport(Path(folder) / "updates")
        update = {"w": 1e-3 * torch.randn(numbers)}
        endpoints = Sites(update, transport, set(names[sites - gone :]))
        clock = RealClock()
        parts = Parts(
            endpoints=endpoints,  # type: ignore[arg-type]  # what a run needs of it
            transport=transport,
            scheduler=open_scheduler(configs, None),
            aggregator=open_aggregator(aggregator, configs.aggregator_kwargs, names),
            clock=clock,
            evaluate=None,
            listen=listen,
            save=lambda _snapshot: None,
            sent=lambda _task, _model: None,
        )
        Server(federation, parts, "run").fit(Snapshot(0, dict(weights), {}, {}, {}))
        clock.close()
    took = [event.seconds["total"] for event in ended]
    phases = {
        phase: statistics.median(event.seconds.get(phase, 0.0) for event in ended)
        for phase in ("agree", "submit", "collect", "unmask", "aggregate")
    }
    return took, endpoints.seconds, ended[0].updates[0].size, phases


def configuration(names: list[str], aggregator: str, rounds: int, needed: int) -> Federation:
    """So many sites, of which so many are needed."""
    data = DataConfigs(dataset_path="data.py", dataset_name="load")
    client = partial(Client, endpoint_id="local", data_configs=data)
    model = {"model_path": "model.py", "model_name": "Net"}
    return Federation(
        client_configs=SharedClientConfigs.model_validate({"model_configs": model}),
        server_configs=ServerConfigs(
            num_clients=len(names),
            num_global_epochs=rounds,
            min_clients=needed,
            norm_bound=None,
            aggregator=aggregator,
        ),
        clients=[client(client_id=name) for name in names],
    )


def spread(values: list[float]) -> str:
    """Such as `0.12 (0.11 to 0.15)`."""
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
