"""A federation from its two files to its result: every part is opened and joined here."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console

from fl.algorithm import Algorithm
from fl.client import frozen
from fl.config import Federation
from fl.config_files import Files
from fl.endpoints.base import Endpoints, JSONObject
from fl.endpoints.credentials import prepare_environment
from fl.endpoints.local import STARTING
from fl.endpoints.places import open_endpoints
from fl.errors import INTERRUPTED, FederationError
from fl.history import resume_command
from fl.progress import Progress
from fl.record import Record, Sent
from fl.sealing import ServerKeys
from fl.server.checkpoint import Snapshot
from fl.server.clock import Clock, RealClock
from fl.server.evaluation import at_sites
from fl.server.events import Event, Listener, RoundEnded, SitesEvaluated, Warned
from fl.server.federation import REJECTIONS, Parts, Server
from fl.server.sites import Task
from fl.server.stopping import stalled
from fl.tensors import Tensors
from fl.trackers import Trackers
from fl.transport import Transport, TransportError, open_server_transport

SHOW_CURSOR = "\x1b[?25h"
"""What a terminal is told whose table is left half way."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: The run's folder.
        model: Path of the final model, or None if it was stopped before its last round.
        accuracy: The final model's accuracy at the server, or None where it was not evaluated.
        at_sites: What sites found of the final model, or None.
    """

    folder: Path
    model: Path | None
    accuracy: float | None
    at_sites: SitesEvaluated | None = None


@dataclass(frozen=True)
class _Ways:
    """How the server reaches its clients."""

    endpoints: Endpoints
    transport: Transport
    clock: Clock


def run(files: Files, console: Console) -> Outcome:
    """Train a model over a federation.

    Args:
        files: Where it is described.
        console: Where progress is shown.

    Returns:
        Where the model is, and how good.

    Raises:
        FederationError: Anything that a person can put right, in one line.
    """
    federation = files.load()
    for note in federation.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    prepare_environment(federation, files.site_code)
    algorithm = Algorithm(federation, files.server)
    with _ways(federation) as ways:
        _require_clients(federation, ways)
        site_code = os.environ["FL_SITE_CODE"]
        record = Record.begin(federation, site_code, algorithm.frozen)
        start = Snapshot(0, algorithm.begin(), {}, {}, {})
        record.keep(start)
        return _fit(federation, algorithm, ways, record, start, console)


def resume(folder: Path, console: Console) -> Outcome:
    """Go on with a run that ended before its last round did, however it ended.

    Args:
        folder: The run's folder.
        console: Where progress is shown.

    Returns:
        Where the model is, and how good.

    Raises:
        FederationError: Anything that a person can put right, in one line.
    """
    record = Record.reopen(folder)
    federation = record.federation()
    prepare_environment(federation, record.site_code())
    algorithm = Algorithm(federation, folder / "config.yaml")
    record.complete_with(algorithm.frozen)
    built = _layout(algorithm.begin())  # the checkpoint has the model that takes its place
    start = record.snapshot()
    _require_the_same(folder, built, _layout(start.weights))
    with _ways(federation) as ways:
        _require_clients(federation, ways)
        return _fit(federation, algorithm, ways, record, start, console)


def _layout(weights: Tensors) -> dict[str, str]:
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in weights.items()}


def _require_the_same(folder: Path, built: dict[str, str], kept: dict[str, str]) -> None:
    """Refuse to go on with a model that is another's by now: its code may have been changed."""
    for name in sorted(built.keys() | kept.keys()):
        here, there = built.get(name, "nothing"), kept.get(name, "nothing")
        if here != there:
            raise FederationError(
                f"{folder}: {name} is {there} in its checkpoint, and {here} in the model that is "
                "built now: the model's code, or what it is built from, has changed"
            )


@contextmanager
def _ways(federation: Federation) -> Iterator[_Ways]:
    """Open the ways to clients, and close them whatever happens."""
    with ExitStack() as stack:
        endpoints = open_endpoints(federation)
        stack.callback(endpoints.close)
        transport = open_server_transport(federation.server_configs.comm_configs)
        stack.callback(transport.close)
        clock = RealClock()
        stack.callback(clock.close)
        yield _Ways(endpoints, transport, clock)


def _require_clients(federation: Federation, ways: _Ways) -> None:
    """Ask every client's site at once whether it takes tasks, before anything is sent."""
    health, call = ways.endpoints.health, ways.clock.call
    asked = {client.client_id: call(partial(health, client)) for client in federation.clients}
    down = {name: reason for name, answer in asked.items() if (reason := answer.result())}
    configs = federation.server_configs
    needed = configs.min_clients or configs.num_clients
    if len(asked) - len(down) < needed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in down.items())
        raise FederationError(
            f"{len(down)} of {len(asked)} sites are down ({needed} needed): {reasons}"
        )


def _fit(
    federation: Federation,
    algorithm: Algorithm,
    ways: _Ways,
    record: Record,
    start: Snapshot,
    console: Console,
) -> Outcome:
    """The rounds that are left, seen and kept."""
    # What clients in processes of this one keep between rounds; a site has a folder of its own.
    os.environ.setdefault("FL_SITE_STATE", str((record.folder / "state").resolve()))
    configs = federation.server_configs
    rounds, stopping = configs.num_global_epochs, configs.early_stopping
    progress = Progress(rounds, [client.client_id for client in federation.clients], console)
    last: list[RoundEnded] = []
    losses = record.losses()

    def over() -> bool:
        return stopping is not None and stalled(losses, stopping.patience, stopping.min_delta)

    def tell(event: Event) -> None:
        record(event)
        progress(event)

    trackers = Trackers(algorithm.trackers, tell)

    def listen(event: Event) -> None:
        tell(event)
        trackers(event)
        if isinstance(event, RoundEnded):
            last[:] = [event]
            losses.append(event.loss)
            if over():
                server.stop(final=True)

    parts = _parts(federation, algorithm, ways, record, listen)
    server = Server(federation, parts, record.run_id)
    if over():  # an earlier process found so
        server.stop(final=True)
    recovered, left = _recover(record.outstanding(start), ways), record.left()
    model: Path | None = None
    with progress, ExitStack() as stack, _resumable(federation, record, console):
        stack.callback(lambda: trackers.close(finished=model is not None))
        trackers.begin(record.folder)
        with _interruptible(server.stop, record.folder):
            end = server.fit(start, recovered, left)
            final = end.version >= rounds or over()
            model = record.save(end.weights) if final else None  # whatever sites do then
        found = _at_sites(federation, ways, end, record.run_id, parts, listen) if final else None
    if model is None:
        record.ended("stopped by Ctrl-C")
    return Outcome(record.folder, model, last[0].accuracy if last else None, found)


def _parts(
    federation: Federation, algorithm: Algorithm, ways: _Ways, record: Record, listen: Listener
) -> Parts:
    """What the server of a run works with."""
    sealing = federation.server_configs.comm_configs.sealing
    clients = {client.client_id: client for client in federation.clients}
    return Parts(
        endpoints=ways.endpoints,
        transport=ways.transport,
        scheduler=algorithm.scheduler,
        aggregator=algorithm.aggregator,
        clock=ways.clock,
        evaluate=algorithm.evaluate,
        listen=listen,
        save=record.keep,
        reload=record.model,
        sent=lambda task, model: record.sent(
            task, ways.endpoints.session(clients[task.client_id]), model
        ),
        base=frozen.base_digest(algorithm.frozen),
        sealing=ServerKeys(record.sealing_secret()) if sealing else None,
    )


def _at_sites(
    federation: Federation, ways: _Ways, end: Snapshot, run_id: str, parts: Parts, listen: Listener
) -> SitesEvaluated | None:
    """What sites find of the final model, where that is asked for; it is there whatever they do."""
    if federation.server_configs.federated_evaluation is None:
        return None
    suspended = {name for name, site in end.sites.items() if site.rejected >= REJECTIONS}
    believed = [client for client in federation.clients if client.client_id not in suspended]
    try:
        found = at_sites(
            federation,
            believed,
            endpoints=ways.endpoints,
            transport=ways.transport,
            clock=ways.clock,
            weights=end.weights,
            version=end.version,
            run_id=run_id,
            base=parts.base,
            sealing=parts.sealing,
            warn=lambda message: listen(Warned(message)),
        )
    except (TransportError, KeyboardInterrupt) as error:
        reason = str(error) or "stopped by Ctrl-C"
        listen(Warned(f"sites do not evaluate the final model: {reason}"))
        return None
    if found is not None:
        listen(found)
    return found


def _recover(outstanding: list[Sent], ways: _Ways) -> list[Task]:
    """Tasks of an earlier process whose answers may still come."""
    found: dict[str, Future[JSONObject]] = {}
    for session in {sent.session for sent in outstanding if sent.session is not None}:
        jobs = [sent.job for sent in outstanding if sent.session == session]
        found |= ways.endpoints.recover(session, jobs)
    now = ways.clock.now()
    return [
        Task(
            sent.client_id, sent.version, sent.turn, sent.job, now, found[sent.job], recovered=True
        )
        for sent in outstanding
        if sent.job in found
    ]


@contextmanager
def _interruptible(stop: Callable[[], None], folder: Path) -> Iterator[None]:
    """Ctrl-C once ends the run with the round that goes on, twice at once.

    At once is as after kill -9, which a run survives: nothing is waited for but a worker that is
    half started. Nor does a handler use the console, which it may have interrupted.
    """

    def first(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, second)
        _write(2, "stopping after this round; Ctrl-C again stops now\n")
        stop()

    def second(_signal: int, _frame: FrameType | None) -> None:
        if os.isatty(1):
            _write(1, SHOW_CURSOR)
        _write(2, f"{_go_on(folder)}\n")
        STARTING.acquire(timeout=1.0)  # this thread may itself hold it
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _resumable(federation: Federation, record: Record, console: Console) -> Iterator[None]:
    """Say where to look and how to go on, when a run is broken off."""
    try:
        yield
    except FederationError as error:
        collect = "ansible-playbook playbooks/collect-logs.yml -i INVENTORY"
        remote = any(client.endpoint_id != "local" for client in federation.clients)
        look = [
            f"what happened: fl status {shlex.quote(str(record.folder))}",
            f"what sites said, with their tracebacks: {record.folder / 'log.jsonl'}",
            *([f"what their daemons said: {collect}"] if remote else []),
            "what to do about it: fl check, with the same files and options",
            _go_on(record.folder),
        ]
        console.print("\n".join(look), markup=False, soft_wrap=True)
        record.ended(str(error))
        raise


def _write(descriptor: int, text: str) -> None:
    with suppress(OSError):  # nobody may read it any more
        os.write(descriptor, os.fsencode(text))


def _go_on(folder: Path) -> str:
    return f"to go on with it: {resume_command(folder)}"
