"""What a configuration names, built at the server: whatever of it cannot be meant fails here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from fl.client import built, data, devices, dp_sgd, frozen, local_dp, trainer
from fl.client.results import Evaluation
from fl.client.spending import PrivacyError
from fl.config import ConfigError, Federation, ServerConfigs, TrainConfigs
from fl.errors import FederationError
from fl.server.aggregators import (
    Aggregator,
    DPFedAvg,
    FedAdagrad,
    FedAdam,
    FedNova,
    FedYogi,
    Holding,
    Scaffold,
    SecureFedAvg,
    open_aggregator,
)
from fl.server.federation import Evaluator
from fl.server.schedulers import Scheduler, open_scheduler
from fl.server.sources import sources
from fl.tensors import Tensors
from fl.trackers import open_trackers

OF_REALS = (SecureFedAvg, DPFedAvg, Scaffold, FedAdagrad, FedAdam, FedYogi, Holding)
"""Aggregators that are no linear functions of updates, or count and order their numbers."""

SGD_RATE = inspect.signature(torch.optim.SGD).parameters["lr"].default
"""The learning rate of an SGD that is given none."""


class Algorithm:
    """All that the configuration names, built at the server; what is wrong fails here.

    Args:
        federation: The configuration.
        file: Where it stands, for messages.

    Attributes:
        model: The model, as it was built until `begin` is called.
        frozen: Its frozen parameters.

    Raises:
        ConfigError: The aggregator, the scheduler or a tracker is unknown, or does not take its
            settings.
        FederationError: The model or the held-out set cannot be built at the server.
    """

    def __init__(self, federation: Federation, file: Path) -> None:
        self.model = built.build_model(federation.client_configs.model_configs)
        require_training(federation, self.model, file)
        self.frozen = frozen.frozen(self.model)
        self.aggregator, self.scheduler = open_steps(federation, self.model, file)
        self.evaluate = _evaluator(federation, self.model)
        self.trackers = open_trackers(federation.server_configs.trackers, file=file)

    def begin(self) -> Tensors:
        """What travels of the model, as it was built.

        It is given away: beside the one that is trained, a server has memory for no other.
        """
        weights = frozen.travelling(self.model)
        _empty(self.model, weights)
        return weights


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
            model, the clients' trainer or the format of updates.
    """
    configs, weights = federation.server_configs, frozen.travelling(model)
    require_wide(weights, file)
    buffers = frozen.buffers(model)
    aggregator = open_aggregator(
        configs.aggregator,
        configs.aggregator_kwargs,
        [client.client_id for client in federation.clients],
        buffers=buffers & weights.keys(),
        file=file,
    )
    if isinstance(aggregator, OF_REALS):
        require_real(configs, weights, file)
    controls = bool(aggregator.extra(weights))
    for client in federation.clients:
        kind = federation.train_configs(client).trainer
        if controls != (kind == "ScaffoldTrainer"):
            raise ConfigError(
                f"{file}: {client.client_id} trains by {kind}, which does not go with "
                f"{configs.aggregator}: ScaffoldAggregator and ScaffoldTrainer need each other"
            )
    compressor = federation.client_configs.comm_configs.compressor_configs
    sparse = compressor.enable_compression and compressor.top_k is not None
    if sparse and (controls or aggregator.wants != "difference"):
        raise ConfigError(
            f"{file}: client_configs.comm_configs.compressor_configs.top_k needs an aggregator "
            f"that takes differences alone, which {configs.aggregator} does not"
        )
    if isinstance(aggregator, FedNova):
        _tell_of_descents(federation, aggregator, file)
    if isinstance(aggregator, SecureFedAvg):
        require_secure(federation, aggregator, file)
    if isinstance(aggregator, DPFedAvg):
        require_untied(configs, model, file)
        _require_rounds(configs, "a client is in a step once", file)
    if isinstance(aggregator, Holding):
        require_robust(configs, aggregator, file)
    return aggregator, open_scheduler(configs, aggregator.updates_per_step, file=file)


def _tell_of_descents(federation: Federation, aggregator: FedNova, file: Path) -> None:
    """Have FedNova count what clients do; of an optimizer other than SGD it counts the steps."""
    for client in federation.clients:
        configs = federation.train_configs(client)
        if configs.optim != "SGD":
            continue
        own, its = client.client_id, {"lr": SGD_RATE, "momentum": 0.0, **configs.optim_args}
        try:
            for name in ("nesterov", "dampening"):
                if its.get(name):
                    raise ValueError(f"{own} trains with {name}, which it cannot count")
            for name in ("lr", "momentum"):  # `fl check` comes here with what SGD has refused
                if not isinstance(its[name], int | float):
                    raise ValueError(f"{own}: optim_args.{name} is no number: {its[name]!r}")
            aggregator.descends(
                own, momentum=its["momentum"], proximal=its["lr"] * (configs.mu or 0.0)
            )
        except ValueError as error:
            raise ConfigError(
                f"{file}: server_configs.aggregator: FedNovaAggregator: {error}"
            ) from error


def require_wide(weights: Tensors, file: Path) -> None:
    """Refuse numbers that torch neither adds nor averages.

    Args:
        weights: What travels of the model.
        file: Where the configuration stands, for messages.

    Raises:
        ConfigError: A tensor is of eight-bit floats.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.itemsize == 1:
            raise ConfigError(
                f"{file}: the model's {name} is {tensor.dtype}, which is not averaged: have it "
                "trained in bfloat16 or wider, or frozen (requires_grad=False)"
            )


def require_real(configs: ServerConfigs, weights: Tensors, file: Path) -> None:
    """Refuse complex numbers where an aggregator would leave them out, or make nothing of them.

    Args:
        configs: The server's.
        weights: What travels of the model.
        file: Where the configuration stands, for messages.

    Raises:
        ConfigError: A tensor is complex.
    """
    for name, tensor in weights.items():
        if tensor.is_complex():
            raise ConfigError(
                f"{file}: server_configs.aggregator: {configs.aggregator} is for real numbers, and "
                f"the model's {name} is complex: keep its two parts, as torch.view_as_real does"
            )


def require_untied(configs: ServerConfigs, model: nn.Module, file: Path) -> None:
    """Refuse a weight of several names where noise is drawn for each.

    Args:
        configs: The server's.
        model: The run's.
        file: Where the configuration stands, for messages.

    Raises:
        ConfigError: Its names would stand for different numbers after a step.
    """
    if first := min(frozen.tied(model), default=None):
        raise ConfigError(
            f"{file}: server_configs.aggregator: {configs.aggregator}: {first} {frozen.TIED}"
        )


def require_robust(configs: ServerConfigs, aggregator: Holding, file: Path) -> None:
    """Refuse a rule against wrong updates where a step may have too few for it.

    Args:
        configs: The server's.
        aggregator: The rule.
        file: Where the configuration stands, for messages.

    Raises:
        ConfigError: Nobody would be outvoted.
    """
    _require_rounds(configs, "it compares the updates of one round", file)
    needed = configs.min_clients or configs.num_clients
    if needed < aggregator.least:
        raise ConfigError(
            f"{file}: {configs.aggregator} with these aggregator_kwargs leaves out none of fewer "
            f"than {aggregator.least} updates, and a round may have {needed} (server_configs."
            f"{'min_clients' if configs.min_clients else 'num_clients'})"
        )


def require_secure(federation: Federation, aggregator: SecureFedAvg, file: Path) -> None:
    """Refuse what cannot be had of updates that nobody sees.

    Args:
        federation: The configuration.
        aggregator: What sums them.
        file: Where the configuration stands, for messages.

    Raises:
        ConfigError: Something else asks for single updates, or a round may have too few.
    """
    configs = federation.server_configs
    _require_rounds(configs, "a sum is of the sites of one round", file)
    if federation.client_configs.comm_configs.compressor_configs.enable_compression:
        raise ConfigError(
            f"{file}: client_configs.comm_configs.compressor_configs.enable_compression does not "
            f"go with {configs.aggregator}: masked numbers cannot be made narrower, nor compressed"
        )
    needed = configs.min_clients or configs.num_clients
    if needed < aggregator.threshold:
        raise ConfigError(
            f"{file}: server_configs.min_clients is {needed}, but it takes {aggregator.threshold} "
            f"sites to unmask a sum (aggregator_kwargs.threshold)"
        )


def _require_rounds(configs: ServerConfigs, why: str, file: Path) -> None:
    if configs.scheduler != "SyncScheduler":
        raise ConfigError(
            f"{file}: server_configs.scheduler: {configs.scheduler} does not go with "
            f"{configs.aggregator}: {why}, as SyncScheduler has them"
        )


def require_training(federation: Federation, model: nn.Module, file: Path) -> None:
    """See, before anything is sent, that every client's training settings can be meant.

    Args:
        federation: The configuration.
        model: The run's.
        file: Where the configuration stands, for messages.

    Raises:
        ConfigError: An optimizer, loss or schedule is unknown or refuses its arguments; a model
            is not one that can be private; or source that is to be shipped cannot be.
    """
    for client in federation.clients:
        if federation.server_configs.ship_source:
            sources(federation, client)
        try:
            configs = federation.train_configs(client)
            built.require_settings(model, configs)
            if configs.dp_sgd is not None:
                dp_sgd.require_covered(model)
            if configs.local_dp is not None:
                local_dp.require_parameters(model, frozen.travelling(model))
        except (built.TrainingError, PrivacyError) as error:
            raise ConfigError(f"{file}: {client.client_id}: {error}") from error


def held_out(federation: Federation) -> tuple[Dataset[Any], TrainConfigs] | None:
    """What global models are evaluated on at the server.

    Args:
        federation: The configuration.

    Returns:
        The held-out set, and how to evaluate on it; None without `server_validation`.

    Raises:
        FederationError: The server's loader does not give it, or `device` is not here.
    """
    configs, shared = federation.server_configs, federation.client_configs.train_configs
    if not configs.server_validation or configs.data_configs is None:
        return None
    devices.choose(configs.device)  # before the first round, not after it
    found = data.datasets(configs.data_configs, None)[1]
    if found is None:
        raise FederationError(
            f"{configs.data_configs.dataset_path}: server_validation needs a second data set, "
            "the loader returned None"
        )
    if data.count(found) == 0:
        raise FederationError(
            f"{configs.data_configs.dataset_path}: server_validation needs samples, the second "
            "data set has none"
        )
    return found, TrainConfigs(
        loss_fn=shared.loss_fn,
        loss_fn_path=shared.loss_fn_path,
        loss_fn_name=shared.loss_fn_name,
        loss_fn_kwargs=shared.loss_fn_kwargs,
        val_batch_size=shared.val_batch_size,
        device=configs.device,
    )


def _evaluator(federation: Federation, model: nn.Module) -> Evaluator | None:
    """Evaluates global models at the server, where that is configured, in their own memory."""
    found = held_out(federation)
    if found is None:
        return None
    dataset, settings = found
    buffers = frozen.buffers(model)

    def evaluate(weights: Tensors) -> Evaluation:
        # A forward pass may count in a buffer, and the model that is trained is not to be changed.
        lent = {name: t.clone() if name in buffers else t for name, t in weights.items()}
        model.load_state_dict(lent, strict=False, assign=True)  # its frozen parameters are there
        try:
            return trainer.evaluate(model, dataset, settings)
        finally:
            _empty(model, weights)

    return evaluate


def _empty(model: nn.Module, weights: Tensors) -> None:
    """Have a model hold no memory for tensors of these names."""
    nothing = {name: tensor.to("meta") for name, tensor in weights.items()}
    model.load_state_dict(nothing, strict=False, assign=True)
