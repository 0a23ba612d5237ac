"""The check that tells the truth: a worker at each site proves that models will reach it.

ProxyStore's own command can succeed on a login node while a compute node, with a proxy in its
environment, reaches nothing. So the proof runs where training will: inside a Globus Compute task.
"""

from __future__ import annotations

import time
import uuid
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fl.config import Client, load_federation
from fl.endpoints.base import Endpoints, JSONObject, answer_of
from fl.endpoints.places import open_endpoints
from fl.errors import FederationError
from fl.run import prepare_environment
from fl.server.requests import check_request
from fl.transport import Ref, Transport, open_server_transport


@dataclass(frozen=True)
class Check:
    """One check of one site.

    Attributes:
        client_id: The site.
        check: `endpoint` (does the service see it?) or `worker` (do models reach its workers?).
        ok: Whether it passed.
        message: What was found.
        remedy: What to do, empty if it passed.
        seconds: How long it took.
    """

    client_id: str
    check: str
    ok: bool
    message: str
    remedy: str
    seconds: float


def check_sites(server: Path, clients: Path, deadline: float) -> list[Check]:
    """Check every site of a federation, all at once.

    Args:
        server: Path of server.yaml.
        clients: Path of clients.yaml.
        deadline: Seconds that a worker may take to answer; a queue's waiting time is part of it.

    Returns:
        Two checks a site.

    Raises:
        FederationError: The server's own side does not work, so that nothing can be checked.
    """
    federation = load_federation(server, clients)
    prepare_environment(federation, server.parent)
    with ExitStack() as stack:
        endpoints = open_endpoints(federation)
        stack.callback(endpoints.close)
        transport = open_server_transport(federation.server_configs.comm_configs)
        stack.callback(transport.close)
        model = transport.put(uuid.uuid4().bytes)
        stack.callback(transport.evict, model)
        online = [_endpoint(client, endpoints) for client in federation.clients]
        up = [client for client, found in zip(federation.clients, online, strict=True) if found.ok]
        return online + _workers(up, endpoints, transport, model, deadline)


def _endpoint(client: Client, endpoints: Endpoints) -> Check:
    started = time.monotonic()
    down = endpoints.health(client)
    remedy = "start it: ansible-playbook playbooks/compute.yml, then read its endpoint.log"
    return Check(
        client.client_id,
        "endpoint",
        down is None,
        down or "online",
        remedy if down else "",
        time.monotonic() - started,
    )


def _workers(
    clients: list[Client],
    endpoints: Endpoints,
    transport: Transport,
    model: Ref,
    deadline: float,
) -> list[Check]:
    started = time.monotonic()
    tasks = {
        client.client_id: endpoints.submit(
            client, check_request(client, model, transport.grant(model.size))
        )
        for client in clients
    }
    wait(tasks.values(), deadline)
    return [_worker(name, task, endpoints, started, deadline) for name, task in tasks.items()]


def _worker(
    name: str, task: Future[JSONObject], endpoints: Endpoints, started: float, deadline: float
) -> Check:
    def outcome(ok: bool, message: str, remedy: str) -> Check:
        return Check(name, "worker", ok, message, remedy, time.monotonic() - started)

    if not task.done():
        return outcome(
            False,
            f"no worker answered within {deadline:g} s",
            "is the job waiting in the queue, or refused? see the endpoint's log on its login node",
        )
    try:
        found = answer_of(task, endpoints)
    except FederationError as error:
        return outcome(False, str(error), _remedy(str(error)))
    seconds = found.get("seconds", {})
    timings = ", ".join(f"{phase} {value:.3f} s" for phase, value in seconds.items())
    return outcome(True, f"models reach worker {found.get('host')} ({timings})", "")


def _remedy(message: str) -> str:
    if "no ProxyStore endpoint" in message:
        return (
            "the worker does not reach its login node's ProxyStore endpoint: is a proxy set there "
            "(fl_proxy: unset), or the endpoint down (playbooks/proxystore.yml)?"
        )
    if "S3" in message:
        return (
            "the worker does not reach the bucket: are HTTPS and the store's address open from "
            "compute nodes, or is a proxy needed there?"
        )
    if "ProxyStore" in message:
        return "the endpoints do not reach each other: is the relay up, and are both of them?"
    return "see the message, and the endpoint's log on its login node"
