"""Other programs that are told each round's numbers: TensorBoard, MLflow, Weights & Biases.

Or one by an entry point. Where their servers are, and who may write there, is in the variables that
these programs have for that.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from fl.config import ConfigError
from fl.errors import FederationError, in_one_line
from fl.server import registry
from fl.server.events import Event, Listener, RoundEnded, SitesEvaluated, Warned

GROUP = "fl.trackers"
"""The entry-point group of other packages' trackers."""


class Tracker(Protocol):
    """What a program is told through; its class is called with nothing, before a run is begun.

    Whatever it raises then ends the run, in one line; later on, it costs the tracker alone.
    """

    def begin(self, folder: Path) -> None:
        """A run begins, or goes on.

        Args:
            folder: The run's; its name is the run's.
        """
        ...

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """A round has ended, or sites have evaluated its model, which may be a round later.

        Args:
            numbers: See `numbers_of`.
            step: The round, from 1.
        """
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class TensorBoard:
    """Event files in the run's folder, for `tensorboard --logdir runs` (tensorboardX writes them).

    Raises:
        FederationError: The package is not installed.
    """

    def __init__(self) -> None:
        self._open = _package("tensorboardX", "tensorboard").SummaryWriter
        self._writer: Any = None

    def begin(self, folder: Path) -> None:
        """See `Tracker.begin`."""
        self._writer = self._open(str(folder))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()


class MLflow:
    """A run of MLflow's, in the experiment `MLFLOW_EXPERIMENT_NAME`, or `fl`.

    A run that is resumed goes on under its name. `MLFLOW_TRACKING_URI` says where that is: at a
    server; only the whole package mlflow writes into a file of this machine too.

    Raises:
        FederationError: The package is not installed, or does not know where to write.
    """

    def __init__(self) -> None:
        mlflow = _package("mlflow", "mlflow")
        # A round waits for each call: a server that is gone shall cost seconds, not minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            self._client = mlflow.MlflowClient()
        except mlflow.exceptions.MlflowException as error:
            raise FederationError(
                f"export MLFLOW_TRACKING_URI=http://ITS-SERVER:5000 first ({in_one_line(error)})"
            ) from error
        self._metric = mlflow.entities.Metric
        self._run, self._status = "", "FINISHED"

    def begin(self, folder: Path) -> None:
        """See `Tracker.begin`."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fl")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        mine = f"tags.`mlflow.runName` = '{folder.name}'"
        run = next(iter(self._client.search_runs([experiment], mine, max_results=1)), None)
        run = run or self._client.create_run(experiment, run_name=folder.name)
        self._run = run.info.run_id
        self._client.update_run(self._run, "RUNNING")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, number, now, step) for name, number in numbers.items()]
        for first in range(0, len(metrics), MLFLOW_BATCH):
            self._client.log_batch(self._run, metrics[first : first + MLFLOW_BATCH])

    def close(self) -> None:
        """See `Tracker.close`."""
        self._client.set_terminated(self._run, self._status)

    def fail(self) -> None:
        """The run ends before its last round did; it is closed next."""
        self._status = "FAILED"


MLFLOW_BATCH = 1000
"""The most metrics that MLflow's servers take at once."""


class WandB:
    """A run of Weights & Biases'; with `WANDB_MODE=offline`, files in the run's folder.

    Raises:
        FederationError: The package is not installed, or nobody is logged in.
    """

    def __init__(self) -> None:
        self._wandb = _package("wandb", "wandb")
        online = self._wandb.setup().settings.mode in ("online", "shared")
        if online and not self._wandb.login(prompt=False):
            raise FederationError("nobody is logged in: wandb login, or export WANDB_MODE=offline")
        self._run: Any = None
        self._exit_code = 0

    def begin(self, folder: Path) -> None:
        """See `Tracker.begin`."""
        # Its own lines would break the table that a terminal shows.
        settings = self._wandb.Settings(
            silent=True, console="off", init_timeout=30, finish_timeout=60
        )
        self._run = self._wandb.init(
            id=folder.name, name=folder.name, dir=folder, resume="allow", settings=settings
        )
        # Its own steps must not go back; what sites find of a round's model comes a round later.
        self._run.define_metric("*", step_metric="round")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        self._run.log({**numbers, "round": step})

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish(exit_code=self._exit_code)

    def fail(self) -> None:
        """The run ends before its last round did; it is closed next."""
        self._exit_code = 1


OURS: Mapping[str, type[Any]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
"""Trackers of this package by their names in server.yaml."""


class Trackers:
    """All trackers of a run, as one listener; one that fails is told of and left out.

    Args:
        trackers: By name.
        listen: Told of those that fail.
    """

    def __init__(self, trackers: Mapping[str, Tracker], listen: Listener) -> None:
        self._trackers, self._listen = dict(trackers), listen

    def begin(self, folder: Path) -> None:
        """See `Tracker.begin`."""
        for name in [*self._trackers]:
            self._call(name, "begin", folder)

    def __call__(self, event: Event) -> None:
        """Pass a round's numbers on."""
        if isinstance(event, RoundEnded | SitesEvaluated):
            for name in [*self._trackers]:
                self._call(name, "log", numbers_of(event), event.round)

    def close(self, *, finished: bool) -> None:
        """See `Tracker.close`.

        Args:
            finished: Whether the run had its last round: some show how it ended.
        """
        for name, tracker in [*self._trackers.items()]:
            if not finished and isinstance(tracker, MLflow | WandB):
                tracker.fail()
            self._call(name, "close")

    def _call(self, name: str, method: str, *arguments: Any) -> None:
        try:
            getattr(self._trackers[name], method)(*arguments)
        except Exception as error:  # of somebody else's program; no run should end by it
            del self._trackers[name]
            self._listen(Warned(f"tracker {name} is told no more: {in_one_line(error)}"))


def open_trackers(names: Sequence[str], *, file: Path = Path("server.yaml")) -> dict[str, Tracker]:
    """Build the trackers that server.yaml names.

    Args:
        names: `server_configs.trackers`: each of `OURS`, or of an entry point in `fl.trackers`.
        file: Where they stand, for messages.

    Returns:
        Each by its name.

    Raises:
        ConfigError: A name is unknown, or its tracker cannot be built, such as for a package that
            is missing.
    """
    where, trackers = f"{file}: server_configs.trackers", {}
    for name in names:
        kind = registry.find(where, name, OURS, GROUP)
        try:
            trackers[name] = kind()
        except Exception as error:
            raise ConfigError(f"{where}: {name}: {in_one_line(error)}") from error
    return trackers


def numbers_of(event: RoundEnded | SitesEvaluated) -> dict[str, float]:
    """A round, or what sites found of its model, as numbers by name, as curves are drawn of them.

    Args:
        event: Either.

    Returns:
        Of a round `loss`, `accuracy`, `bytes/up`, `bytes/down`, `updates`, `failures`,
        `seconds/PHASE`, `aggregator/NAME` and `sites/CLIENT/METRIC`, as far as there are; of an
        evaluation `at_sites/loss`, `at_sites/accuracy`, and both by `at_sites/CLIENT/`.
    """
    found = _of_round(event) if isinstance(event, RoundEnded) else _of_evaluation(event)
    return {name: float(number) for name, number in found.items() if number is not None}


def _of_round(event: RoundEnded) -> dict[str, float | None]:
    found = {
        "loss": event.loss,
        "accuracy": event.accuracy,
        "bytes/up": event.bytes_up,
        "bytes/down": event.bytes_down,
        "updates": len(event.updates),
        "failures": len(event.failures),
        **{f"seconds/{phase}": seconds for phase, seconds in event.seconds.items()},
        **{f"aggregator/{name}": number for name, number in event.aggregator.items()},
    }
    for update in event.updates:
        named = {_taken(name): number for name, number in update.metrics.items()}
        found |= {f"sites/{update.client_id}/{name}": number for name, number in named.items()}
    return found


def _taken(name: str) -> str:
    """A site's name for a metric as MLflow takes it: another would cost the run its tracker."""
    return re.sub(r"\W", "_", name) or "_"


def _of_evaluation(event: SitesEvaluated) -> dict[str, float | None]:
    parts = {"at_sites": event, **{f"at_sites/{name}": s for name, s in event.sites.items()}}
    return {
        f"{name}/{metric}": getattr(part, metric)
        for name, part in parts.items()
        for metric in ("loss", "accuracy")
    }


def _package(name: str, extra: str) -> ModuleType:
    """A package that not everybody needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FederationError(
            f"it needs one package more ({error}): pip install 'fl-hpc[{extra}]'"
        ) from error
