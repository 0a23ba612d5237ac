"""Ten and a thousand virtual sites through the product's loop: seconds, and the server's memory.

    python -m benchmarks.scale [--sites 10 100 1000] [--rounds 100] [--picture FILE.svg]

Claim: a thousand sites, 100 rounds, take less than ten minutes on two cores, and the peak memory of
the process is within 10 % of that for ten sites. Each federation runs in a process of its own, so
that each peak is its own. Training is a constant difference of a model of 0.2 MB, so that a
thousand updates held at once would be seen: what is measured is the loop, the encoding and the
sums. Queues are log-normal, FedAvg waits for everybody, Pace for nobody. ms/update is processor
time, for machines that others use too.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections import Counter

import altair as alt
import numpy as np
import torch

from benchmarks import verdict
from fl.config import Client, DataConfigs, Federation, ServerConfigs, SharedClientConfigs
from fl.endpoints.virtual import Trained, VirtualSite, VirtualSites
from fl.server.aggregators import open_aggregator
from fl.server.checkpoint import Snapshot
from fl.server.events import RoundEnded
from fl.server.federation import Parts, Server
from fl.server.schedulers import open_scheduler
from fl.tensors import Data
from fl.transport import GoneError, Ref
from fl.transport.base import ref_to

# Pace steps by at least this share of the sites: a model is kept as long as a site trains it.
SHARE = 0.1
SCHEDULERS = {
    "FedAvg": ("SyncScheduler", "FedAvgAggregator"),
    "Pace": ("PaceScheduler", "PaceAggregator"),
}
VALUES = 50_000  # a model of 0.2 MB
BAR = 40


class Storage:
    """Where sites and server keep what they put; equal bytes are kept once.

    An update lies at its site until the step that it is in is safe. Here the sites' storage is the
    server's memory, but since they all answer the same bytes, one copy stands for all of theirs.
    """

    name = "storage"
    limit: int | None = None

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._counts: Counter[str] = Counter()
        self._puts = 0

    def put(self, *pieces: Data) -> Ref:
        """See `fl.transport.Transport`."""
        self._puts += 1
        ref = ref_to(self.name, {"object": str(self._puts)}, pieces)
        self._objects.setdefault(ref.digest, b"".join(pieces))
        self._counts[ref.digest] += 1
        return ref

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:  # noqa: ARG002  (the protocol's)
        """See `fl.transport.Transport`."""
        if ref.digest not in self._objects:
            raise GoneError("no longer there")
        return self._objects[ref.digest]

    def evict(self, ref: Ref) -> None:
        """See `fl.transport.Transport`."""
        self._counts[ref.digest] -= 1
        if self._counts[ref.digest] == 0:
            del self._objects[ref.digest], self._counts[ref.digest]

    def grant(self, size: int | None) -> None:
        """See `fl.transport.Transport`: everybody is in this process."""

    def close(self) -> None:
        """See `fl.transport.Transport`."""


class Constant:
    """Sites that answer with the same difference."""

    def __init__(self, model: dict[str, torch.Tensor]) -> None:
        change = {name: torch.full_like(tensor, 1e-3) for name, tensor in model.items()}
        self._trained = Trained(change, 100, {"train_loss": 1.0})

    def steps(self, request: dict, seconds_per_step: float) -> int:  # noqa: ARG002  (the protocol's)
        """See `fl.endpoints.virtual.Work`."""
        return request["steps"] or 20

    def train(self, request: dict, weights: dict[str, torch.Tensor], steps: int) -> Trained:  # noqa: ARG002  (as above)
        """See `fl.endpoints.virtual.Work`."""
        return self._trained


def site(index: int) -> VirtualSite:
    """A site with a queue and a speed of its own."""
    generator = np.random.default_rng(index)
    median, speed = 300 * math.exp(0.5 * generator.normal()), math.exp(0.4 * generator.normal())
    return VirtualSite(lambda _moment: median * math.exp(generator.normal()), speed, 5.0)


def simulate(name: str, sites: int, rounds: int) -> dict[str, float]:
    """One federation: as many updates as there are sites, a round."""
    scheduler, aggregation = SCHEDULERS[name]
    names = [f"site-{index}" for index in range(sites)]
    model = {"w": torch.zeros(VALUES)}
    transport = Storage()
    world = VirtualSites(
        {name: site(index) for index, name in enumerate(names)}, Constant(model), transport
    )
    federation = configured(scheduler, aggregation, names)
    configs = federation.server_configs
    aggregator = open_aggregator(configs.aggregator, configs.aggregator_kwargs, names)
    updates = 0

    def listen(event: object) -> None:
        nonlocal updates
        if isinstance(event, RoundEnded):
            updates += len(event.updates)
            if updates >= sites * rounds:
                server.stop()

    parts = Parts(
        endpoints=world,
        transport=transport,
        scheduler=open_scheduler(configs, aggregator.updates_per_step),
        aggregator=aggregator,
        clock=world,
        evaluate=None,
        listen=listen,
        save=lambda _snapshot: None,
        sent=lambda _task, _model: None,
    )
    server = Server(federation, parts, "simulated")
    started, worked = time.monotonic(), time.process_time()
    end = server.fit(Snapshot(0, model, {}, {}, {}))
    return {
        "seconds": time.monotonic() - started,
        "processor": time.process_time() - worked,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "steps": end.version,
        "updates": updates,
        "virtual": world.now(),
    }


def configured(scheduler: str, aggregator: str, names: list[str]) -> Federation:
    """A federation of virtual sites."""
    data = DataConfigs(dataset_path="digits/data.py", dataset_name="get_digits")
    model = {"model_path": "digits/model.py", "model_name": "Constant"}
    server = {
        "num_clients": len(names),
        "num_global_epochs": 10**6,
        "scheduler": scheduler,
        "aggregator": aggregator,
        "round_deadline": 1e6,
    }
    if scheduler == "PaceScheduler":
        server["scheduler_kwargs"] = {"min_updates": math.ceil(SHARE * len(names))}
    return Federation(
        client_configs=SharedClientConfigs.model_validate({"model_configs": model}),
        server_configs=ServerConfigs.model_validate(server),
        clients=[Client(endpoint_id="local", client_id=name, data_configs=data) for name in names],
    )


def apart(name: str, sites: int, rounds: int) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", name, str(sites), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--picture")
    parser.add_argument("--one", nargs=3, metavar=("SCHEDULER", "SITES", "ROUNDS"))
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        name, sites, rounds = arguments.one
        print(json.dumps(simulate(name, int(sites), int(rounds))))
        return
    print(f"{arguments.rounds} rounds, a model of {4 * VALUES / 1e6:.1f} MB")
    found = {}
    for name in SCHEDULERS:
        found[name] = [(sites, apart(name, sites, arguments.rounds)) for sites in arguments.sites]
        report(name, found[name])
    if arguments.picture:
        draw(found, arguments.picture)


def report(name: str, rows: list[tuple[int, dict[str, float]]]) -> None:
    """A table with the peaks as bars, and the ratio of the last to the first."""
    highest = max(measured["peak"] for _, measured in rows)
    print(f"\n{name:8} sites  updates   steps   virtual h   wall s    cpu s   ms/update   peak MB")
    for sites, measured in rows:
        each = 1000 * measured["processor"] / measured["updates"]
        print(
            f"        {sites:6} {measured['updates']:8} {measured['steps']:7}"
            f" {measured['virtual'] / 3600:11.1f} {measured['seconds']:8.1f}"
            f" {measured['processor']:8.1f} {each:11.2f}"
            f" {measured['peak']:9.1f}  {'#' * round(BAR * measured['peak'] / highest)}"
        )
    sites, most = rows[-1]
    verdict(f"peak, {sites} sites to {rows[0][0]}", most["peak"] / rows[0][1]["peak"], at_most=1.1)
    verdict(f"minutes, {sites} sites", most["seconds"] / 60, at_most=10)


def draw(found: dict[str, list[tuple[int, dict[str, float]]]], file: str) -> None:
    """Peak memory over sites, beside the band of 10 % above that of the fewest."""
    rows = [
        {"scheduler": name, "sites": sites, "MB": measured["peak"]}
        for name, line in found.items()
        for sites, measured in line
    ]
    fewest = max(line[0][1]["peak"] for line in found.values())
    chart = alt.Chart(alt.Data(values=rows), width=420, height=240)
    peaks = chart.mark_line(point=True).encode(
        x=alt.X("sites:Q", title="sites", scale=alt.Scale(type="log")),
        y=alt.Y("MB:Q", title="the server's peak memory, MB", scale=alt.Scale(domainMin=0)),
        color=alt.Color("scheduler:N", title=None),
    )
    limit = alt.Chart(alt.Data(values=[{"MB": 1.1 * fewest}])).mark_rule(strokeDash=[4, 4])
    (peaks + limit.encode(y="MB:Q")).save(file)


if __name__ == "__main__":
    main()
