"""A federation from its two files to its result: every part is built and joined here."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

from fl.client import data, trainer
from fl.config import ConfigError, Federation, Files, TrainConfigs
from fl.endpoints.base import Endpoints, JSONObject
from fl.endpoints.credentials import load_environment
from fl.endpoints.places import open_endpoints
from fl.errors import FederationError
from fl.progress import Progress
from fl.record import Record, Sent
from fl.server.aggregators import Aggregator, open_aggregator
from fl.server.checkpoint import Snapshot
from fl.server.clock import Clock, RealClock
from fl.server.events import Event, RoundEnded
from fl.server.federation import Evaluator, Parts, Server
from fl.server.schedulers import Scheduler, open_scheduler
from fl.server.sites import Task, require_clients
from fl.server.stopping import stalled
from fl.tensors import Tensors
from fl.transport import Transport, open_server_transport


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: The run's folder.
        model: Path of the final model, or None if it was stopped before its last round.
        accuracy: The final model's accuracy at the server, or None where it was not evaluated.
    """

    folder: Path
    model: Path | None
    accuracy: float | None


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
    prepare_environment(federation, files.server.parent)
    algorithm = Algorithm(federation, files.server)
    weights = algorithm.model.state_dict()
    with _ways(federation) as ways:
        _require_clients(federation, ways)
        record = Record.begin(federation, site_code=os.environ["FL_SITE_CODE"])
        start = Snapshot(0, weights, {}, {}, {})
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
    with _ways(federation) as ways:
        _require_clients(federation, ways)
        return _fit(federation, algorithm, ways, record, record.snapshot(), console)


def prepare_environment(federation: Federation, folder: Path) -> None:
    """Make the server's credentials, folders and code known to this process.

    Args:
        federation: The configuration.
        folder: Where models and loaders are, unless a deployment says otherwise.

    Raises:
        FederationError: An environment file cannot be read.
    """
    globus = federation.server_configs.comm_configs.globus_compute_configs
    if globus is not None:
        load_environment(Path(file) for file in globus.environment_files)
    os.environ.setdefault("FL_SITE_CODE", str(folder.resolve()))


class Algorithm:
    """The configuration's model, aggregator, scheduler and evaluation; what is wrong fails here.

    Args:
        federation: The configuration.
        file: Where it stands, for messages.

    Raises:
        ConfigError: The aggregator or the scheduler is unknown, or does not take its settings.
        FederationError: The model or the held-out set cannot be built at the server.
    """

    def __init__(self, federation: Federation, file: Path) -> None:
        self.model = trainer.build_model(federation.client_configs.model_configs)
        require_training(federation, self.model, file)
        self.aggregator, self.scheduler = open_steps(federation, self.model, file)
        self.evaluate = _evaluator(federation)


def open_steps(
    federation: Federation, model: nn.Module, file: Path
) -> tuple[Aggregator, Scheduler]:
    """What makes the next model, and what says when.

    Args:
        federation: The configuration.
        model: The run's.
        file: Where the configuration stands, for messages.

    Returns:
        The aggregator and the scheduler.

    Raises:
        ConfigError: One of them is unknown, does not take its settings, or does not go with the
            clients' trainer.
    """
    configs, weights = federation.server_configs, model.state_dict()
    aggregator = open_aggregator(
        configs.aggregator,
        configs.aggregator_kwargs,
        [client.client_id for client in federation.clients],
        buffers=[name for name, _ in model.named_buffers() if name in weights],
        file=file,
    )
    controls = bool(aggregator.extra(weights))
    for client in federation.clients:
        kind = federation.train_configs(client).trainer
        if controls != (kind == "ScaffoldTrainer"):
            raise ConfigError(
                f"{file}: {client.client_id} trains by {kind}, which does not go with "
                f"{configs.aggregator}: ScaffoldAggregator and ScaffoldTrainer need each other"
            )
    return aggregator, open_scheduler(configs, aggregator.updates_per_step, file=file)


def require_training(federation: Federation, model: nn.Module, file: Path) -> None:
    """See, before anything is sent, that every client's training settings can be meant.

    Args:
        federation: The configuration.
        model: The run's.
        file: Where the configuration stands, for messages.

    Raises:
        ConfigError: An optimizer, loss or schedule is unknown or refuses its arguments.
    """
    for client in federation.clients:
        try:
            trainer.require_settings(model, federation.train_configs(client))
        except trainer.TrainingError as error:
            raise ConfigError(f"{file}: {client.client_id}: {error}") from error


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
    configs = federation.server_configs
    needed = configs.min_clients or configs.num_clients
    require_clients(federation.clients, ways.endpoints, ways.clock, needed)


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

    def listen(event: Event) -> None:
        record(event)
        progress(event)
        if isinstance(event, RoundEnded):
            last[:] = [event]
            losses.append(event.loss)
            if over():
                server.stop()

    parts = Parts(
        endpoints=ways.endpoints,
        transport=ways.transport,
        scheduler=algorithm.scheduler,
        aggregator=algorithm.aggregator,
        clock=ways.clock,
        evaluate=algorithm.evaluate,
        listen=listen,
        save=record.keep,
        sent=lambda task, model: record.sent(task, ways.endpoints.session(), model),
    )
    server = Server(federation, parts, record.run_id)
    if over():  # an earlier process found so
        server.stop()
    recovered, left = _recover(record.outstanding(start), ways), record.left()
    with progress, _interruptible(server.stop, record.folder), _resumable(record, console):
        end = server.fit(start, recovered, left)
    model = record.save(end.weights) if end.version >= rounds or over() else None
    if model is None:
        record.ended("stopped by Ctrl-C")
    return Outcome(record.folder, model, last[0].accuracy if last else None)


def _recover(outstanding: list[Sent], ways: _Ways) -> list[Task]:
    """Tasks of an earlier process whose answers may still come."""
    found: dict[str, Future[JSONObject]] = {}
    for session in {sent.session for sent in outstanding if sent.session is not None}:
        jobs = [sent.job for sent in outstanding if sent.session == session]
        found |= ways.endpoints.recover(session, jobs)
    now = ways.clock.now()
    return [
        Task(sent.client_id, sent.version, sent.turn, sent.job, now, found[sent.job])
        for sent in outstanding
        if sent.job in found
    ]


@contextmanager
def _interruptible(stop: Callable[[], None], folder: Path) -> Iterator[None]:
    """Ctrl-C once ends the run with the round that goes on, twice at once.

    At once is as after kill -9, which a run survives: nothing is waited for, not even a worker that
    is about to start. Nor does a handler use the console, which it may have interrupted.
    """

    def first(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, second)
        os.write(2, b"stopping after this round; Ctrl-C again stops now\n")
        stop()

    def second(_signal: int, _frame: FrameType | None) -> None:
        show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
        os.write(2, show_cursor + f"{_go_on(folder)}\n".encode())
        os._exit(1)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _resumable(record: Record, console: Console) -> Iterator[None]:
    """Say where to look and how to go on, when a run is broken off."""
    try:
        yield
    except FederationError as error:
        look = (
            f"what happened: fl status {record.folder}\n"
            f"what sites said, with their tracebacks: {record.folder / 'log.jsonl'}"
        )
        console.print(f"{look}\n{_go_on(record.folder)}", markup=False, soft_wrap=True)
        record.ended(str(error))
        raise


def _go_on(folder: Path) -> str:
    return f"to go on with it: fl-run --resume {folder}"


def held_out(federation: Federation) -> tuple[Dataset[Any], TrainConfigs] | None:
    """What global models are evaluated on at the server.

    Args:
        federation: The configuration.

    Returns:
        The held-out set, and how to evaluate on it; None without `server_validation`.

    Raises:
        FederationError: The server's loader does not give it.
    """
    configs, shared = federation.server_configs, federation.client_configs.train_configs
    if not configs.server_validation or configs.data_configs is None:
        return None
    found = data.datasets(configs.data_configs)[1]
    if found is None:
        raise FederationError(
            f"{configs.data_configs.dataset_path}: server_validation needs a second data set, "
            "the loader returned None"
        )
    return found, TrainConfigs(
        loss_fn=shared.loss_fn,
        loss_fn_path=shared.loss_fn_path,
        loss_fn_name=shared.loss_fn_name,
        loss_fn_kwargs=shared.loss_fn_kwargs,
        val_batch_size=shared.val_batch_size,
        device=configs.device,
    )


def _evaluator(federation: Federation) -> Evaluator | None:
    """Evaluates global models at the server, where that is configured."""
    found = held_out(federation)
    if found is None:
        return None
    dataset, settings = found
    model = trainer.build_model(federation.client_configs.model_configs)

    def evaluate(weights: Tensors) -> trainer.Evaluation:
        model.load_state_dict(weights)
        return trainer.evaluate(model, dataset, settings)

    return evaluate
