"""The one remote function: the only thing that an endpoint of this federation ever runs.

Request and answer are JSON objects. What goes wrong at the site comes back as an answer too, so
that the server can name the site, the fault and its place without unpickling an exception.
"""

from __future__ import annotations

import os
import platform
import socket
import time
import traceback
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from fl import __version__
from fl.client import algorithms, budget, control, data, devices, jobs, trainer
from fl.client.corrections import Controlled, Correction, Proximal
from fl.client.request import EvaluateRequest, RequestError, TrainRequest, read
from fl.client.trainer import TrainingError
from fl.client.warm import seed_all
from fl.config import ProxystoreConfigs
from fl.errors import FederationError
from fl.tensors import Tensors, decode, encode, require_same_layout
from fl.transport import Ref, Transport, open_transport


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the server asks, at the site.

    Args:
        request: `{"operation": "train" | "evaluate" | "progress" | "check", ...}`; `TrainRequest`
            and `EvaluateRequest` in `fl.client.request` say what else, and `check` and `progress`
            here.

    Returns:
        `{"result": {...}}`, or `{"error": {"type", "message", "traceback"}}`.
    """
    try:
        operation = OPERATIONS[request["operation"]]
        return {"result": operation(request)}
    except Exception as error:
        trainer.forget()
        return {"error": _describe(error)}


def train(request: dict[str, Any]) -> dict[str, Any]:
    """One round's local training.

    Args:
        request: A `TrainRequest`.

    Returns:
        `update` (a Ref), `num_samples`, `steps`, `stopped` (`budget`, or `block` where the worker's
        block ends: then without validation), `metrics`, `seconds` by phase, and `job`.

    Raises:
        BlockEnded: The worker's block leaves no time for a step.
        FederationError: The model, loader or transport failed.
    """
    wanted = read(TrainRequest, request)
    configs = wanted.train_configs
    with jobs.Record(wanted.job) as record:
        phases = _Phases(record)
        received, controls = _fetch(wanted, phases)
        with phases("load"):
            model = _load(wanted, received)
            train_set, validation_set = data.datasets(wanted.data_configs)
            correction = _correction(wanted, model, received, controls)
        seed = _seed(wanted.model_configs.seed, wanted.client_id, wanted.round)
        metrics: dict[str, float] = {}
        if configs.do_pre_validation and validation_set is not None:
            with phases("pre_validate"):
                seed_all(seed)
                metrics |= _metrics("pre_val", trainer.evaluate(model, validation_set, configs))
        with phases("train"):
            training = trainer.train(
                model,
                train_set,
                configs,
                seed=seed,
                steps=wanted.steps,
                learning_rate_scale=wanted.learning_rate_scale,
                until=_until(configs.block_margin, phases.seconds["get"]),
                correction=correction,
                on_step=record.count,
            )
            metrics["train_loss"] = training.loss
            update = _update(wanted, model, received, correction)
        if configs.do_validation and validation_set is not None and training.stopped == "budget":
            with phases("validate"):
                metrics |= _metrics("val", trainer.evaluate(model, validation_set, configs))
        with phases("put"):
            sent = _transport(wanted.proxystore_configs).put(encode(update))
    return {
        "job": wanted.job,
        "update": sent.to_json(),
        "num_samples": training.num_samples,
        "steps": training.steps,
        "stopped": training.stopped,
        "metrics": metrics,
        "seconds": phases.seconds,
    }


def evaluate(request: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a model on the client's validation set.

    Args:
        request: An `EvaluateRequest`.

    Returns:
        `loss` and `accuracy` (means over samples), `num_samples`, `seconds` by phase, and `job`.

    Raises:
        FederationError: The model, loader or transport failed, or there is no validation set.
    """
    wanted = read(EvaluateRequest, request)
    with jobs.Record(wanted.job) as record:
        phases = _Phases(record)
        received, _ = _fetch(wanted, phases)
        with phases("load"):
            model = _load(wanted, received)
            _, validation_set = data.datasets(wanted.data_configs)
        if validation_set is None:
            raise TrainingError(f"client {wanted.client_id} has no validation set")
        with phases("evaluate"):
            seed_all(wanted.model_configs.seed)
            evaluation = trainer.evaluate(model, validation_set, wanted.train_configs)
    return {"job": wanted.job, **asdict(evaluation), "seconds": phases.seconds}


def progress(request: dict[str, Any]) -> dict[str, Any]:
    """What a task that was sent to this site is doing; see `fl.client.jobs.progress`.

    Args:
        request: `job`, its name.

    Returns:
        `recorded`, `phase`, `step`, `age_seconds`, `alive`.
    """
    return jobs.progress(str(request["job"]))


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Prove from inside a worker that models will move: put, get and evict through its transport.

    Args:
        request: The client's `proxystore_configs`; optionally `model`, a Ref to fetch from the
            server's side.

    Returns:
        Host name, versions, and `seconds` by phase.

    Raises:
        FederationError: The worker's way does not work, with the reason.
    """
    phases = _Phases(jobs.Record(None))
    with phases("connect"):
        transport = _transport(read(ProxystoreConfigs, request["proxystore_configs"]))
    with phases("round_trip"):
        probe = transport.put(uuid.uuid4().bytes)
        try:
            transport.get(probe)
        finally:
            transport.evict(probe)
    if request.get("model") is not None:
        with phases("get_from_server"):
            transport.get(Ref.from_json(request["model"]))
    return {
        "host": socket.gethostname(),
        "versions": {
            "python": platform.python_version(),
            "fl": __version__,
            "torch": torch.__version__,
        },
        "proxies": sorted(key for key in os.environ if key.lower().endswith("_proxy")),
        "seconds": phases.seconds,
    }


OPERATIONS = {"train": train, "evaluate": evaluate, "progress": progress, "check": check}

_transports: dict[str, Transport] = {}


def _transport(configs: ProxystoreConfigs) -> Transport:
    """The client's way, kept open while the worker lives."""
    key = configs.model_dump_json()
    if key not in _transports:
        _transports[key] = open_transport(configs)
    return _transports[key]


def _fetch(wanted: EvaluateRequest, phases: _Phases) -> tuple[Tensors, Tensors]:
    """The model that the server sent, and SCAFFOLD's control if it sent one."""
    with phases("get"):
        encoded = _transport(wanted.proxystore_configs).get(Ref.from_json(wanted.model))
        return control.split(decode(encoded))


def _load(wanted: EvaluateRequest, received: Tensors) -> nn.Module:
    """The model with the weights that were received, where it will be used."""
    model = trainer.warm_model(wanted.model_configs)
    require_same_layout(model.state_dict(), received)
    model.load_state_dict(received)
    return model.to(devices.choose(wanted.train_configs.device))


def _correction(
    wanted: TrainRequest, model: nn.Module, received: Tensors, controls: Tensors
) -> Correction:
    """What the client's trainer adds to gradients."""
    configs = wanted.train_configs
    device = devices.choose(configs.device)
    if configs.mu is not None:
        return Proximal(received, configs.mu, device)
    if configs.trainer != "ScaffoldTrainer":
        return Correction()
    zero = {name: tensor.cpu() for name, tensor in algorithms.no_control(model).items()}
    require_same_layout(control.prefixed(zero), control.prefixed(controls))
    own = control.kept(_run_id(wanted), wanted.client_id, wanted.control_version, zero)
    return Controlled(controls, own, configs.optim_args.get("momentum", 0.0), device)


def _update(
    wanted: TrainRequest, model: nn.Module, received: Tensors, correction: Correction
) -> Tensors:
    """What goes back; what SCAFFOLD keeps for the client's next round is kept before that."""
    trained = model.state_dict()
    update: Tensors = (
        algorithms.delta(trained, received) if wanted.update == "difference" else dict(trained)
    )
    if isinstance(correction, Controlled):
        own, change = correction.outcome(received, {n: t.cpu() for n, t in trained.items()})
        control.keep(_run_id(wanted), wanted.client_id, wanted.round, own)
        update |= control.prefixed(change)
    return update


def _run_id(wanted: TrainRequest) -> str:
    if wanted.run_id is None:
        raise RequestError("request: run_id: ScaffoldTrainer keeps a client's control by its run")
    return wanted.run_id


def _until(margin: float, get_seconds: float) -> float | None:
    """When training must end, so that what it did is sent before the worker's block ends.

    An update is as large as the model that was received, and takes the same way: twice the time
    of that, or the margin where that is longer.
    """
    end = budget.block_end()
    return None if end is None else end - max(margin, 2 * get_seconds)


def _seed(seed: int, client_id: str, round_number: int) -> int:
    """A seed of its own for each client and round, the same on every machine."""
    return zlib.crc32(f"{seed}/{client_id}/{round_number}".encode())


def _metrics(prefix: str, evaluation: trainer.Evaluation) -> dict[str, float]:
    values = asdict(evaluation)
    return {f"{prefix}_{name}": values[name] for name in ("loss", "accuracy")}


def _describe(error: Exception) -> dict[str, str]:
    known = isinstance(error, FederationError)
    return {
        "type": type(error).__name__,
        "message": str(error) if known else f"{type(error).__name__}: {error}",
        "traceback": traceback.format_exc(),
    }


class _Phases:
    """A task's phases: told to its record, and timed."""

    def __init__(self, record: jobs.Record) -> None:
        self.seconds: dict[str, float] = {}
        self._record = record

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._record.phase = name
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
