"""A federation in memory: clients that answer as a test tells them to, and a store that counts."""

import math
from concurrent.futures import Future
from uuid import UUID

import pytest
import torch

from fl.config import Client, DataConfigs, Federation, ServerConfigs, SharedClientConfigs
from fl.endpoints.base import EndpointError
from fl.server import checkpoint, patience, sites
from fl.server.aggregators import open_aggregator
from fl.server.checkpoint import Snapshot
from fl.server.clock import RealClock
from fl.server.federation import Parts, Server
from fl.server.schedulers import open_scheduler
from fl.tensors import decode, digest, encode
from fl.transport.base import GoneError, Ref, verified


class MemoryTransport:
    """Objects in a dictionary: what is left in `objects` was not evicted."""

    limit = None

    def __init__(self):
        self.objects = {}
        self.puts = 0

    def put(self, *pieces):
        data = b"".join(pieces)
        self.puts += 1
        key = str(self.puts)
        self.objects[key] = data
        return Ref("memory", {"object": key}, len(data), digest(data))

    def get(self, ref, seconds=math.inf):
        if ref.key.get("object") not in self.objects:
            raise GoneError("no longer there")
        return verified(ref, self.objects[ref.key["object"]])

    def evict(self, ref):
        self.objects.pop(ref.key.get("object"), None)

    def exists(self, ref):
        return ref.key.get("object") in self.objects

    def grant(self, size):
        return None

    def close(self):
        pass


class ScriptedEndpoints:
    """Clients whose answers come from functions of (request, transport).

    A function may return the task's answer, raise, or return None for a task that never ends:
    it waits in `open`, by client. Clients in `down` are offline, for the reason there. With a
    `group`, a later process can get their answers again.
    """

    def __init__(self, transport, scripts):
        self.transport, self.scripts = transport, scripts
        self.open, self.down, self.requests, self.group = {}, {}, [], None

    def submit(self, client, request):
        future = Future()
        self.requests.append(request)
        try:
            answer = self.scripts[client.client_id](request, self.transport)
        except Exception as error:
            future.set_exception(error)
        else:
            if answer is None:
                self.open[client.client_id] = future, request
            else:
                future.set_result(answer)
        return future

    def health(self, client):
        return self.down.get(client.client_id)

    def explain(self, error):
        return EndpointError(f"explained {error}")

    def session(self, client):
        return self.group

    def recover(self, session, jobs):
        return {}

    def close(self):
        pass


class QuickClock(RealClock):
    """The real one, in a hurry."""

    tick = 0.01


def train(delta, num_samples=1, **extra):
    """A client that moves every weight by `delta`."""

    def answer(request, transport):
        weights = decode(transport.get(Ref.from_json(request["model"])))
        change = {name: torch.full_like(tensor, delta) for name, tensor in weights.items()}
        if request["update"] == "model":
            change = {name: weights[name] + tensor for name, tensor in change.items()}
        return {
            "result": {
                "job": request["job"],
                "update": transport.put(encode(change)).to_json(),
                "num_samples": num_samples,
                "steps": 1,
                "metrics": {"train_loss": 0.5},
                "seconds": {"train": 0.1},
                **extra,
            }
        }

    return answer


def _endpoint(endpoint_id):
    return endpoint_id if endpoint_id == "local" else UUID(endpoint_id)


@pytest.fixture
def transport():
    return MemoryTransport()


@pytest.fixture
def weights():
    return {"w": torch.zeros(4)}


@pytest.fixture
def federation():
    """A federation of the named clients, with server settings as given."""

    def _federation(names, endpoint_id="local", shared=None, **settings):
        data = DataConfigs(dataset_path="d.py", dataset_name="load")
        model = {"model_path": "m.py", "model_name": "Net"}
        return Federation(
            client_configs=SharedClientConfigs.model_validate(
                {"model_configs": model, **(shared or {})}
            ),
            server_configs=ServerConfigs.model_validate(
                {"num_clients": len(names), "num_global_epochs": 1, **settings}
            ),
            clients=[
                Client(endpoint_id=_endpoint(endpoint_id), client_id=name, data_configs=data)
                for name in names
            ],
        )

    return _federation


@pytest.fixture
def fit(federation, transport, weights, monkeypatch):
    """Run a federation of scripted clients.

    Gives the weights and the events; what else there was is in `fit.endpoints`, `fit.snapshots`
    and `fit.server`. With a `fit.file` the server keeps its snapshots there.
    """
    monkeypatch.setattr(sites, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(sites, "SPACING_SECONDS", 0.01)
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)
    clocks = []

    def _fit(
        scripts, evaluate=None, start=None, on_event=lambda event: None, recovered=(), **settings
    ):
        endpoints = _fit.prepared or ScriptedEndpoints(transport, scripts)
        endpoints.scripts = scripts
        names = list(scripts)
        configured = federation(names, shared=_fit.shared, **settings)
        configs = configured.server_configs
        aggregator = open_aggregator(configs.aggregator, configs.aggregator_kwargs, names)
        clocks.append(QuickClock())
        events, _fit.snapshots = [], []

        def listen(event):
            events.append(event)
            on_event(event)

        def keep(snapshot):
            _fit.snapshots.append(snapshot)
            if _fit.file is not None:
                checkpoint.save(_fit.file, snapshot)

        parts = Parts(
            endpoints=endpoints,
            transport=transport,
            scheduler=open_scheduler(configs, aggregator.updates_per_step),
            aggregator=aggregator,
            clock=clocks[-1],
            evaluate=evaluate,
            listen=listen,
            save=keep,
            sent=lambda task, model: None,
            sealing=_fit.sealing,
            reload=_fit.file and (lambda: checkpoint.read_model(_fit.file)),
        )
        _fit.server = Server(configured, parts, "run")
        _fit.events, _fit.endpoints = events, endpoints
        begin = start or Snapshot(0, dict(weights), {}, {}, {})
        if _fit.file is not None:
            checkpoint.save(_fit.file, begin)
        return _fit.server.fit(begin, recovered).weights, events

    _fit.prepared = _fit.shared = _fit.sealing = _fit.file = None
    yield _fit
    for clock in clocks:
        clock.close()
