"""What a configuration names, built at a site: models, losses, metrics, optimizers, schedules."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from fl.client import site_code
from fl.client.frozen import require_base
from fl.client.warm import AsBuilt, Kept, seed_all
from fl.config import ModelConfigs, TrainConfigs
from fl.errors import FederationError


class TrainingError(FederationError):
    """Training settings name something that torch does not have, or training diverged."""


RATES = frozenset({"max_lr", "base_lr", "eta_min"})
"""Arguments of a schedule that are learning rates, and not shares of the optimizer's."""


def build_model(configs: ModelConfigs) -> nn.Module:
    """Build the model from the site's own code, its weights drawn from the seed.

    Args:
        configs: The model's file, name, arguments and seed.

    Returns:
        The model, on the CPU.

    Raises:
        SiteCodeError: The model is not the site's, or fails to import.
        TrainingError: Building it raised, or gave no `torch.nn.Module`.
    """
    factory = site_code.load(configs.model_path, configs.model_name)
    name = f"{configs.model_path}: {configs.model_name}"
    if isinstance(factory, nn.Module):
        raise TrainingError(f"{name} is a model; name the function or class that makes it")
    seed_all(configs.seed)
    try:
        model = factory(**configs.model_kwargs)
    except site_code.FAULTS as error:
        raise TrainingError(f"{name} raised {site_code.raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise TrainingError(f"{name} is no torch.nn.Module")
    return model


_model: Kept[AsBuilt] = Kept()
_optimizer: Kept[tuple[torch.optim.Optimizer, dict[str, Any]]] = Kept()


def warm_model(configs: ModelConfigs, base: str | None = None) -> nn.Module:
    """The model that `build_model` builds, or the last one again if nothing has changed.

    Args:
        configs: As for `build_model`.
        base: The digest of the frozen parameters that it must have; None where none are.

    Returns:
        The model on whatever device it was last, as it was built except for what travels.

    Raises:
        BaseError: Its frozen parameters are others.
        SiteCodeError: As `build_model`.
        TrainingError: As `build_model`.
    """
    factory = site_code.load(configs.model_path, configs.model_name)
    built = _model.get((factory, configs), lambda: _build_warm(configs))
    require_base(built.base, base)
    return built.restore()


def _build_warm(configs: ModelConfigs) -> AsBuilt:
    """A model to be kept; its predecessor's optimizer would hold that beside it."""
    _optimizer.forget()
    return AsBuilt(build_model(configs))


def require_settings(model: nn.Module, configs: TrainConfigs) -> None:
    """See that everything `configs` names is there and takes its arguments, without training.

    Args:
        model: A model of the run.
        configs: Optimizer, loss and learning-rate schedule.

    Raises:
        TrainingError: Something is unknown, or refuses its arguments.
        SiteCodeError: The experiment's own loss or metric is not in `site_code`.
    """
    loss(configs)
    Metric(configs)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise TrainingError("the model has no parameters to train")
    scheduler(_build_optimizer(trainable, configs)[0], configs)


def forget() -> None:
    """Let the kept model and optimizer go: a task that failed may have left them in any state."""
    _model.forget()
    _optimizer.forget()


class Metric:
    """The experiment's own metric, of a whole set: it need be no mean over samples.

    Args:
        configs: The metric's file and name, or neither.

    Raises:
        SiteCodeError: It is not in `site_code`.
    """

    def __init__(self, configs: TrainConfigs) -> None:
        self._name = f"{configs.metric_path}: {configs.metric_name}"
        self._function: Callable[..., Any] | None = None
        if configs.metric_path is not None and configs.metric_name is not None:
            self._function = site_code.load(configs.metric_path, configs.metric_name)
        self._labels: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []

    def add(self, labels: torch.Tensor, outputs: torch.Tensor) -> None:
        """Keep a minibatch, where there is a metric."""
        if self._function is not None:
            self._labels.append(labels.cpu())
            self._outputs.append(outputs.float().cpu())  # NumPy has no bfloat16

    def value(self) -> float | None:
        """What it says of all that was kept."""
        if self._function is None:
            return None
        labels, outputs = torch.cat(self._labels).numpy(), torch.cat(self._outputs).numpy()
        try:
            return float(self._function(labels, outputs))
        except site_code.FAULTS as error:
            raise TrainingError(f"{self._name} raised {site_code.raised(error)}") from error


def loss(configs: TrainConfigs) -> nn.Module:
    """The loss: the experiment's own, or torch's of that name.

    Args:
        configs: `loss_fn` or the file and name of an own one, and its arguments.

    Returns:
        The loss, on the CPU.

    Raises:
        SiteCodeError: The experiment's own is not in `site_code`.
        TrainingError: It is unknown, or refuses its arguments.
    """
    if configs.loss_fn_path is not None and configs.loss_fn_name is not None:
        own = site_code.load(configs.loss_fn_path, configs.loss_fn_name)
        name = f"{configs.loss_fn_path}: {configs.loss_fn_name}"
        try:
            return cast(nn.Module, own(**configs.loss_fn_kwargs))
        except site_code.FAULTS as error:
            raise TrainingError(
                f"{name} raised {site_code.raised(error)}; it is called with loss_fn_kwargs to "
                "make the loss, as a class of torch.nn is"
            ) from error
    factory = _named(nn, "loss_fn", configs.loss_fn)
    try:
        return cast(nn.Module, factory(**configs.loss_fn_kwargs))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"loss_fn_kwargs do not fit {configs.loss_fn}: {error}") from error


def warm_optimizer(model: nn.Module, configs: TrainConfigs) -> torch.optim.Optimizer:
    """The optimizer as new, built again only for other parameters or settings.

    Args:
        model: The model whose parameters it moves, those that are trained.
        configs: `optim` and its arguments.

    Returns:
        The optimizer.

    Raises:
        TrainingError: It is unknown, or refuses its arguments.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The optimizer that is kept keeps its parameters, and so their ids; their device may change.
    key = (
        [(id(parameter), parameter.device) for parameter in trainable],
        configs.optim,
        configs.optim_args,
    )
    optimizer, start = _optimizer.get(key, lambda: _build_optimizer(trainable, configs))
    # Settings torch copies itself; tensors of a state it takes as they are.
    optimizer.load_state_dict(copy.deepcopy(start) if start["state"] else start)
    return optimizer


def _build_optimizer(
    trainable: list[nn.Parameter], configs: TrainConfigs
) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """An optimizer, and its state before any step: some have one."""
    factory = _named(torch.optim, "optim", configs.optim)
    try:
        optimizer = cast(torch.optim.Optimizer, factory(trainable, **configs.optim_args))
    except Exception as error:  # whatever torch raises: an IndexError too
        raise TrainingError(f"optim_args do not fit {configs.optim}: {error}") from error
    return optimizer, copy.deepcopy(optimizer.state_dict())


def scheduler(
    optimizer: torch.optim.Optimizer, configs: TrainConfigs, scale: float = 1.0
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The schedule of an optimizer's learning rate.

    Args:
        optimizer: The optimizer, as new.
        configs: `lr_scheduler` and its arguments.
        scale: Multiplies the learning rates among these.

    Returns:
        The schedule, or None where the rate stays.

    Raises:
        TrainingError: It is unknown, or refuses its arguments.
    """
    name = configs.lr_scheduler
    if name is None:
        return None
    factory = _named(torch.optim.lr_scheduler, "lr_scheduler", name)
    if name == "ReduceLROnPlateau":
        raise TrainingError(f"lr_scheduler {name} waits for a metric that local training has not")
    try:
        arguments = {
            key: _scaled(value, scale) if key in RATES else value
            for key, value in configs.lr_scheduler_args.items()
        }
        return cast(torch.optim.lr_scheduler.LRScheduler, factory(optimizer, **arguments))
    except Exception as error:  # as above: a NotImplementedError too
        raise TrainingError(f"lr_scheduler_args do not fit {name}: {error}") from error


def _scaled(rate: Any, scale: float) -> Any:
    """A learning rate, or one for each group of parameters."""
    return [each * scale for each in rate] if isinstance(rate, list) else rate * scale


def _named(module: Any, key: str, name: str) -> Any:
    found = getattr(module, name, None)
    if isinstance(found, type):
        return found
    classes = [
        known
        for known, value in vars(module).items()
        if isinstance(value, type) and value.__module__.startswith(module.__name__)
    ]
    begun = [known for known in classes if known.startswith(name)]
    near = begun or difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise TrainingError(f"train_configs.{key}: {module.__name__} has no class {name!r}{hint}")
