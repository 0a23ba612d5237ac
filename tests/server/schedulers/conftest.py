"""Federations in virtual time: queues as a test lists them, training that adds a constant."""

import pytest
import torch

from fl.endpoints.virtual import Trained, VirtualSite, VirtualSites
from fl.server.aggregators import open_aggregator
from fl.server.checkpoint import Snapshot
from fl.server.events import RoundEnded
from fl.server.federation import Parts, Server
from fl.server.schedulers import open_scheduler
from fl.transport.memory import MemoryTransport


class Adding:
    """Work that adds 1 to every weight, and keeps what was asked for."""

    def __init__(self):
        self.asked = []

    def steps(self, request, seconds_per_step):
        steps = request["steps"] or 10
        self.asked.append((request["client_id"], steps, request["learning_rate_scale"]))
        return steps

    def train(self, request, weights, steps):
        return Trained({name: torch.ones_like(w) for name, w in weights.items()}, 10, {})


def listed(*delays):
    """A queue with these delays, one a task; the last for ever."""
    left = list(delays)
    return lambda _moment: left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture
def simulate(federation):
    """Run a federation of sites given by name; gives every step's second and updates.

    Those are as "a0 b1": whose, and how stale.

    What was asked of whom is in `simulate.asked`, the scheduler in `simulate.scheduler`.
    """

    def _simulate(sites, steps, **settings):
        settings = {"round_deadline": 1e5, "min_clients": 1, **settings}
        configured = federation(list(sites), num_global_epochs=steps, **settings)
        configs, transport, work = configured.server_configs, MemoryTransport(), Adding()
        world = VirtualSites(sites, work, transport)
        aggregator = open_aggregator(configs.aggregator, configs.aggregator_kwargs, list(sites))
        trace = []

        def listen(event):
            if isinstance(event, RoundEnded):
                folded = [f"{update.client_id}{update.staleness}" for update in event.updates]
                trace.append((round(world.now(), 2), " ".join(folded)))

        scheduler = open_scheduler(configs, aggregator.updates_per_step)
        parts = Parts(
            world, transport, scheduler, aggregator, world, None, listen, lambda _: None,
            lambda *_: None,
        )  # fmt: skip
        end = Server(configured, parts, "run").fit(Snapshot(0, {"w": torch.zeros(1)}, {}, {}, {}))
        _simulate.asked, _simulate.scheduler = work.asked, scheduler
        _simulate.weight = end.weights["w"].item()
        _simulate.left = len(transport)
        return trace

    return _simulate


@pytest.fixture
def site():
    """A site with listed queue delays, of one second a step if not said."""
    return lambda *delays, seconds_per_step=1.0, **more: VirtualSite(
        listed(*delays), seconds_per_step, **more
    )
