"""What is wrong, before a queue hour is spent: the server, every site, a worker at each.

ProxyStore's own command can succeed on a login node while a compute node, with a proxy in its
environment, reaches nothing. So the proof runs where training will: inside a Globus Compute task,
which does everything that a round does, with the model's real size and one step.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from tempfile import TemporaryDirectory

from fl.check_server import check_server
from fl.check_sites import Sites, Ways, evict
from fl.client.check import Item, Items, told_way
from fl.config import Client, Federation
from fl.config_files import Files
from fl.endpoints.credentials import prepare_environment
from fl.endpoints.places import open_endpoints
from fl.remedies import remedy
from fl.sealing import ServerKeys
from fl.server.clock import RealClock
from fl.transport import open_server_transport

SERVER = "server"


@dataclass(frozen=True)
class Check:
    """One check of the server or of one site.

    Attributes:
        client_id: The site, or `server`.
        check: What was checked.
        ok: Whether a run can do with it.
        message: What was found.
        remedy: What to do about it; a check that is ok and has one is a warning.
        seconds: How long it took.
    """

    client_id: str
    check: str
    ok: bool
    message: str
    remedy: str
    seconds: float


def check(files: Files, deadline: float, *, quick: bool = False) -> Iterator[Check]:
    """Check everything that a run needs, all sites at once.

    Args:
        files: Where the federation is described.
        deadline: Seconds that a site may take to answer; a queue's waiting time is part of it.
        quick: Whether to ask only what needs no worker.

    Yields:
        The checks, each as soon as it is known.

    Raises:
        ConfigError: The files cannot be meant.
        FederationError: An environment file cannot be read.
    """
    federation = files.load()
    prepare_environment(federation, files.site_code)
    items = Items()
    model = check_server(items, federation, files.server)
    encoded = model.encoded if model is not None else None
    with ExitStack() as stack:
        ways = items.attempt("ways", lambda: _open(federation, encoded, stack))
        told = partial(_told, federation)
        yield from map(partial(told, None), items.found)
        if ways is None:
            return
        sites = Sites(federation, ways, deadline, model)
        for client, online in sites.online():
            seen = told(client, online)
            yield seen
            if seen.ok and not quick:
                yield from starmap(told, sites.ask(client))
        yield from starmap(told, sites.answers())


def health(files: Files, deadline: float) -> list[Check]:
    """Check only whether models will reach every site's workers; no model is built for it.

    Args:
        files: Where the federation is described.
        deadline: As for `check`.

    Returns:
        Two checks a site: `endpoint` (does the service see it?) and `worker` (do models reach its
        workers?).

    Raises:
        FederationError: The server's own side does not work, so that nothing can be checked.
    """
    federation = files.load()
    prepare_environment(federation, files.site_code)
    with ExitStack() as stack:
        ways, _ = _open(federation, None, stack)
        told = partial(_told, federation)
        sites = Sites(federation, ways, deadline, None)
        seen: list[Check] = []
        found: list[Check] = []
        for client, online in sites.online():
            seen.append(told(client, online))
            if seen[-1].ok:
                found += starmap(told, sites.ask(client))
        found += starmap(told, sites.answers())
    return seen + [
        _as_one([check for check in found if check.client_id == online.client_id])
        for online in seen
        if online.ok
    ]


def _as_one(checks: list[Check]) -> Check:
    """All that a worker found as one check: the first fault, or what the way took."""
    for found in checks:
        if not found.ok:
            return Check(
                found.client_id, "worker", False, found.message, found.remedy, found.seconds
            )
    timed = [found for found in checks if found.check in ("way", "download", "upload")]
    took = ", ".join(f"{found.check} {found.seconds:.3f} s" for found in timed)
    message = f"models reach worker {checks[0].message} ({took})"
    return Check(checks[0].client_id, "worker", True, message, "", checks[0].seconds)


def _open(federation: Federation, model: bytes | None, stack: ExitStack) -> tuple[Ways, str]:
    """Open the ways, and put what a round would send, or a few bytes without a model."""
    if "FL_SITE_STATE" not in os.environ:  # clients on this machine leave nothing behind
        os.environ["FL_SITE_STATE"] = stack.enter_context(TemporaryDirectory())
        stack.callback(os.environ.pop, "FL_SITE_STATE")
    transport = open_server_transport(federation.server_configs.comm_configs)
    stack.callback(transport.close)
    sealing = ServerKeys(ServerKeys.draw()) if _seals(federation, model) else None
    sent = [model or uuid.uuid4().bytes]
    ref = transport.put(*(sealing.seal_model(sent) if sealing else sent))
    stack.callback(evict, transport, ref)
    endpoints = open_endpoints(federation)
    stack.callback(endpoints.close)
    clock = RealClock()
    stack.callback(clock.close)
    keys = sealing.for_sites() if sealing else None
    return Ways(endpoints, transport, clock, ref, keys), told_way(ref, transport)


def _seals(federation: Federation, model: bytes | None) -> bool:
    """Whether what is sent is a model, and one that a run would seal."""
    return model is not None and federation.server_configs.comm_configs.sealing


def _told(federation: Federation, client: Client | None, item: Item) -> Check:
    """What was found of a site, or of the server, and what to do about it."""
    what = "" if item.outcome == "ok" else remedy(item, client, federation)
    name = SERVER if client is None else client.client_id
    return Check(name, item.check, item.outcome != "failed", item.message, what, item.seconds)
