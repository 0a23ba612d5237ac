"""The one remote function: the only thing that an endpoint of this federation ever runs.

Request and answer are JSON objects. `admission` says which requests are let in, by the site's
policy. What goes wrong at the site comes back as an answer too, so that the server can name the
site, the fault and its place without unpickling an exception.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from fl.client import (
    algorithms,
    budget,
    built,
    control,
    data,
    devices,
    distributed,
    dp_sgd,
    frozen,
    jobs,
    local_dp,
    masking,
    nodes,
    outgoing,
    trainer,
)
from fl.client.admission import admitted
from fl.client.budget import BlockEnded
from fl.client.built import TrainingError
from fl.client.check import prove
from fl.client.corrections import Controlled, Correction, pull
from fl.client.kept import kept
from fl.client.policy import PolicyRefusal, may_tell, site_policy, told
from fl.client.request import (
    CheckRequest,
    EvaluateRequest,
    RehearseRequest,
    TrainRequest,
    read,
)
from fl.client.results import Evaluation, Training
from fl.client.spending import charge, require_accountant
from fl.client.warm import round_seed, seed_all
from fl.config import ProxystoreConfigs, TrainConfigs
from fl.privacy import Spent
from fl.sealing import open_model
from fl.tensors import Tensors, decode, require_same_layout
from fl.transport import Ref, Way, open_granted, open_transport


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the server asks, at the site.

    A process whose device an earlier task has broken ends: it is started anew, and the task is sent
    again.

    Args:
        request: `{"operation": one of OPERATIONS, ...}`; `fl.client.request` has a class for each
            that says what else, and `progress` here.

    Returns:
        `{"result": {...}}`, or `{"error": {"type", "message", "traceback"}}`.
    """
    if devices.is_broken():
        os._exit(1)  # in order, an interpreter would wait for the device
    try:
        with admitted(request) as task:
            result = OPERATIONS[request["operation"]](task.wanted)
            task.ended(result)
        return {"result": result}
    except Exception as error:
        built.forget()
        return {"error": _describe(error)}


def train(wanted: TrainRequest) -> dict[str, Any]:
    """One round's local training.

    Args:
        wanted: The request.

    Returns:
        `update` (a Ref), `num_samples`, `num_validation_samples` (where the model was evaluated
        before training), `steps`, `stopped` (`budget`, or `block` where the worker's block ends),
        `metrics` (of the trained model none where the block leaves no time for that), `seconds` by
        phase, and `job`.

    Raises:
        BlockEnded: The worker's block leaves no time for a step.
        PolicyRefusal: A data set is too small for the site's policy.
        FederationError: The model, loader or transport failed.
    """
    configs, policy = wanted.train_configs, site_policy()
    with jobs.Record(wanted.job) as record:
        phases = _Phases(record)
        received, controls = _fetch(wanted, phases)
        with phases("load"):
            model = _load(wanted, received)
            train_set, validation_set = data.datasets(wanted.data_configs, wanted.run_id)
            validates = configs.do_validation or configs.do_pre_validation
            policy.require_samples(_sizes(train_set, validation_set if validates else None))
            if wanted.masking is not None:
                masking.require_room(wanted.masking, data.count(train_set))
            require_accountant(configs)
            if configs.local_dp is not None:
                local_dp.require_parameters(model, received)
            correction = _correction(wanted, model, received, controls)
        seed = round_seed(wanted.model_configs.seed, wanted.client_id, wanted.round)
        until = _until(configs.block_margin, phases.seconds["get"])
        before = _before(configs, model, validation_set, seed, until, phases)
        metrics = _metrics("pre_val", before) if before else {}
        with phases("train"):
            training = _trained(wanted, model, train_set, received, correction, record, seed, until)
            metrics["train_loss"] = training.loss
            metrics |= _price(wanted, training)
            update = outgoing.update(wanted, model, received, correction)
        if configs.do_validation and validation_set is not None and training.stopped == "budget":
            with phases("validate"), suppress(BlockEnded):  # the update is worth more
                after = trainer.evaluate(model, validation_set, configs, until=until)
                metrics |= _metrics("val", after)
        with phases("put"):
            coded = outgoing.coded(
                wanted, model, update, training.num_samples, phases.seconds["get"]
            )
            sent = outgoing.put(
                outgoing.sealed(wanted, coded),
                _transport(wanted.proxystore_configs, wanted.upload),
            )
    return {
        "job": wanted.job,
        "update": sent.to_json(),
        "num_samples": training.num_samples,
        **({"num_validation_samples": before.num_samples} if before else {}),
        "steps": training.steps,
        "stopped": training.stopped,
        "metrics": policy.released(metrics),
        "seconds": phases.seconds,
    }


def _before(
    configs: TrainConfigs,
    model: nn.Module,
    validation_set: Dataset[Any] | None,
    seed: int,
    until: float | None,
    phases: _Phases,
) -> Evaluation | None:
    """What the model is worth before it is trained, where that is asked for."""
    if not configs.do_pre_validation or validation_set is None:
        return None
    with phases("pre_validate"):
        seed_all(seed)
        return trainer.evaluate(model, validation_set, configs, until=until)


def _trained(
    wanted: TrainRequest,
    model: nn.Module,
    train_set: Dataset[Any],
    received: Tensors,
    correction: Correction,
    record: jobs.Record,
    seed: int,
    until: float | None,
) -> Training:
    """Train the model in place: in this process, by several of its node, or over several nodes."""
    configs = wanted.train_configs
    if _by_ranks(configs):
        model.cpu()  # it was validated
        torch.cuda.empty_cache()
        together = nodes.train if configs.nnodes > 1 else distributed.train
        return together(
            wanted,
            model,
            travelling=list(received),
            seed=seed,
            until=until,
            on_step=record.count,
        )
    return trainer.train(
        model,
        train_set,
        configs,
        seed=seed,
        steps=wanted.steps,
        learning_rate_scale=wanted.learning_rate_scale,
        until=until,
        correction=correction,
        on_step=record.count,
    )


def evaluate(wanted: EvaluateRequest) -> dict[str, Any]:
    """Evaluate a model on the client's validation set.

    Args:
        wanted: The request.

    Returns:
        `loss` and `accuracy` (means over samples), `metric` (the experiment's own, if any),
        `num_samples`, `seconds` by phase, and `job`.

    Raises:
        FederationError: The model, loader or transport failed, or there is no validation set.
    """
    with jobs.Record(wanted.job) as record:
        phases = _Phases(record)
        received, _ = _fetch(wanted, phases)
        with phases("load"):
            model = _load(wanted, received)
            _, validation_set = data.datasets(wanted.data_configs, wanted.run_id)
        if validation_set is None:
            raise TrainingError(f"client {wanted.client_id} has no validation set")
        site_policy().require_samples(_sizes(validation_set))
        with phases("evaluate"):
            seed_all(wanted.model_configs.seed)
            evaluation = trainer.evaluate(model, validation_set, wanted.train_configs)
    found = {name: value for name, value in asdict(evaluation).items() if value is not None}
    return {"job": wanted.job, **found, "seconds": phases.seconds}


def progress(request: dict[str, Any]) -> dict[str, Any]:
    """What a task that was sent to this site is doing; see `fl.client.jobs.progress`.

    Args:
        request: `job`, its name.

    Returns:
        `recorded`, `phase`, `step`, `age_seconds`, `alive`.
    """
    return jobs.progress(str(request["job"]))


def enter(request: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001  (every operation is called like this)
    """Nothing: that it is answered says that a worker is there, through with the batch queue.

    Args:
        request: Nothing is asked of it.

    Returns:
        An empty object.
    """
    return {}


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Prove from inside a worker that models will move; see `fl.client.check.prove`.

    Args:
        request: A `CheckRequest`.

    Returns:
        What was found.
    """
    wanted = read(CheckRequest, request)
    return prove(wanted, lambda: _transport(wanted.proxystore_configs, wanted.upload))


def rehearse(wanted: RehearseRequest) -> dict[str, Any]:
    """Prove from inside a worker that this site can do its part in a run; see `check`.

    Args:
        wanted: The request.

    Returns:
        What was found: of the data, how many samples of what shape and which classes.
    """
    return prove(wanted, lambda: _transport(wanted.proxystore_configs, wanted.upload))


OPERATIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "train": train,
    "evaluate": evaluate,
    "progress": progress,
    "enter": enter,
    "check": check,
    "rehearse": rehearse,
    "advertise": masking.advertise,
    "share": masking.share,
    "confirm": masking.confirm,
    "unmask": masking.unmask,
}

_transports: dict[str, Way] = {}


def _transport(configs: ProxystoreConfigs, upload: dict[str, Any] | None) -> Way:
    """The way that the server grants, or the client's own, kept open while the worker lives."""
    if upload is not None:
        return open_granted(upload)
    key = configs.model_dump_json()
    if key not in _transports:
        _transports[key] = open_transport(configs)
    return _transports[key]


def _fetch(wanted: EvaluateRequest, phases: _Phases) -> tuple[Tensors, Tensors]:
    """The model that the server sent, and SCAFFOLD's control if it sent one."""
    with phases("get"):
        transport = _transport(wanted.proxystore_configs, wanted.upload)
        data = transport.get(Ref.from_json(wanted.model))
        if wanted.sealing is not None:
            data = open_model(data, wanted.sealing.model_key)
        return control.split(decode(data))


def _load(wanted: EvaluateRequest, received: Tensors) -> nn.Module:
    """The model with the weights that were received, where it will be used."""
    model = built.warm_model(wanted.model_configs, wanted.base)
    require_same_layout(frozen.travelling(model), received)
    model.load_state_dict(received, strict=False)  # the base is there
    return model.to(_device(wanted.train_configs))


def _device(configs: TrainConfigs) -> torch.device:
    """Where the model waits to be trained: out of the way where ranks have the devices."""
    return torch.device("cpu") if _by_ranks(configs) else devices.choose(configs.device)


def _by_ranks(configs: TrainConfigs) -> bool:
    return configs.nnodes > 1 or configs.nproc_per_node > 1


def _sizes(*sets: Dataset[Any] | None) -> list[int]:
    """Samples of the sets that will be used."""
    return [data.count(used) for used in sets if used is not None]


def _correction(
    wanted: TrainRequest, model: nn.Module, received: Tensors, controls: Tensors
) -> Correction:
    """What the client's trainer adds to gradients."""
    configs = wanted.train_configs
    device = _device(configs)
    if configs.trainer != "ScaffoldTrainer":
        return pull(configs, received, device)
    zero = {name: tensor.cpu() for name, tensor in algorithms.no_control(model).items()}
    require_same_layout(control.prefixed(zero), control.prefixed(controls))
    own = kept(wanted.run, wanted.client_id, wanted.control_version, wanted.control_saved, zero)
    return Controlled(controls, own, configs.optim_args.get("momentum", 0.0), device)


def _price(wanted: TrainRequest, training: Training) -> dict[str, float]:
    """What differential privacy has cost the site in this run, this round included."""
    configs, price = wanted.train_configs, {}
    if configs.dp_sgd is not None:
        rate = dp_sgd.sampling_rate(training.num_samples, configs)
        spent = Spent(configs.dp_sgd.noise_multiplier, rate, training.steps)
        price["epsilon"] = charge(
            wanted.run, wanted.client_id, "dp_sgd", spent, configs.dp_sgd.delta
        )
    if configs.local_dp is not None:
        spent = local_dp.spent(configs.local_dp)
        price["local_epsilon"] = charge(
            wanted.run, wanted.client_id, "local_dp", spent, configs.local_dp.delta
        )
    return price


def _until(margin: float, get_seconds: float) -> float | None:
    """When training must end, so that what it did is sent before the worker's block ends.

    An update is as large as the model that was received, and takes the same way: twice the time
    of that, or the margin where that is longer.
    """
    end = budget.block_end()
    return None if end is None else end - max(margin, 2 * get_seconds)


def _metrics(prefix: str, evaluation: Evaluation) -> dict[str, float]:
    values = asdict(evaluation)
    names = ["loss", "accuracy"] + ["metric"] * (evaluation.metric is not None)
    return {f"{prefix}_{name}": values[name] for name in names}


def _describe(error: Exception) -> dict[str, str]:
    """What the server is told; of a refusal the rule alone, no cause behind it."""
    traced = may_tell() and not isinstance(error, PolicyRefusal)
    return {
        "type": type(error).__name__,
        "message": told(error),
        "traceback": traceback.format_exc() if traced else "",
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
