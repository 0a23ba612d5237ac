"""Local training and evaluation: what a client does with a model and its data.

Local descent between two averagings is FedAvg's client side (McMahan et al. 2017,
https://arxiv.org/abs/1602.05629, ClientUpdate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from fl.client import budget, built, data, devices, dp_sgd, site_code
from fl.client.budget import BlockEnded
from fl.client.built import TrainingError
from fl.client.corrections import Correction
from fl.client.ranks import ALONE, Ranks
from fl.client.results import Evaluation, Training
from fl.client.warm import seed_all
from fl.config import TrainConfigs
from fl.errors import FederationError

LEAST_SCALE = 1e-4
"""Of float16's gradients, which begin with 65,536: what overflows by it has no finite gradient."""


def train(
    model: nn.Module,
    dataset: Dataset[Any],
    configs: TrainConfigs,
    *,
    seed: int,
    steps: int | None = None,
    learning_rate_scale: float = 1.0,
    until: float | None = None,
    correction: Correction | None = None,
    on_step: Callable[[int], None] = lambda _steps: None,
    ranks: Ranks = ALONE,
) -> Training:
    """Train a model in place.

    Args:
        model: The model, moved to `configs.device`.
        dataset: Samples of (input, label).
        configs: Optimizer, loss, budget.
        seed: Decides shuffling and every draw that the model makes.
        steps: Minibatch steps, instead of `configs`' budget.
        learning_rate_scale: Multiplies the optimizer's learning rate.
        until: Unix seconds by which training must have ended, or None.
        correction: What the trainer adds to gradients.
        on_step: Told how many steps are done, after each.
        ranks: Who trains together; all call this with a model that is the same.

    Returns:
        What training did.

    Raises:
        TrainingError: The optimizer, loss or scheduler is unknown, the model does not take the
            data, or the loss is not finite.
        DeviceError: The device is not here.
        BlockEnded: There is no time for a first step.
    """
    seed_all(seed + ranks.rank)
    batches = (
        data.training_batches(dataset, configs, seed, ranks)
        if configs.dp_sgd is None
        else dp_sgd.batches(dataset, configs)
    )
    if len(batches) == 0:
        raise TrainingError("train_drop_last leaves no minibatch: train_batch_size is too large")
    total = 0.0
    with dp_sgd.applied(model.train(), configs) as wrap:
        descent = _Descent(
            model, configs, correction or Correction(), learning_rate_scale, wrap, ranks
        )
        left = budget.countdown(configs, len(batches), steps=steps, until=until)
        read = _read(budget.within(left, batches, ranks))
        for number, (inputs, labels) in enumerate(read, start=1):
            with _naming(inputs, labels):
                total += descent.step(inputs, labels, number)
            descent.advance(end_of_epoch=number % len(batches) == 0)
            on_step(number)
        descent.let_go()
    assert left.stopped is not None  # noqa: S101  (within() ends no earlier)
    return Training(total / left.done, left.done, data.count(dataset), left.stopped)


def _read(batches: Iterable[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Minibatches; what reading a sample raises is told as the loader's."""
    left = iter(batches)
    while True:
        try:
            inputs, labels = next(left)
        except StopIteration:
            return
        except FederationError:
            raise
        except site_code.FAULTS as error:
            raise TrainingError(
                f"the data set's samples make no minibatch of inputs and labels: "
                f"{site_code.raised(error)}"
            ) from error
        yield inputs, labels


@contextmanager
def _naming(inputs: torch.Tensor, labels: torch.Tensor) -> Iterator[None]:
    """Tell what a model or loss raised with the shapes that it raised it on."""
    try:
        yield
    except FederationError:
        raise
    except site_code.FAULTS as error:
        raise TrainingError(
            f"the model or its loss raised {site_code.raised(error)} on a minibatch of inputs "
            f"{_shape(inputs)} and labels {_shape(labels)}"
        ) from error


def _shape(batch: Any) -> str:
    if not isinstance(batch, torch.Tensor):
        return f"that are a {type(batch).__name__}, no tensor"
    return f"{list(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"


def _scalar(loss: Any) -> torch.Tensor:
    """What a loss gives, if that is one number."""
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return loss
    found = _shape(loss) if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
    raise TrainingError(
        f"the loss gives {found}; one number for a minibatch was expected, its samples' mean"
    )


class _Descent:
    """Steps of minibatch descent on one model."""

    def __init__(
        self,
        model: nn.Module,
        configs: TrainConfigs,
        correction: Correction,
        scale: float,
        wrap: dp_sgd.Wrap,
        ranks: Ranks,
    ) -> None:
        self._device = devices.choose(configs.device)
        self._model = model.to(self._device).train()
        self._ranks, self._forward = ranks, ranks.wrapped(self._model)
        self._configs, self._correction = configs, correction
        self._loss = built.loss(configs).to(self._device)
        optimizer = built.warm_optimizer(model, configs)
        for group in optimizer.param_groups:
            group["lr"] *= scale
        self._scheduler = built.scheduler(optimizer, configs, scale)
        self._optimizer = wrap(optimizer)
        self._autocast = devices.autocast(self._device, configs.amp)
        self._scaler = devices.scaler(self._device, configs.amp)

    def step(self, inputs: torch.Tensor, labels: torch.Tensor, number: int) -> float:
        """Do one step; returns its minibatch's loss."""
        while True:
            scale = self._scaler.get_scale()
            loss = self._try(inputs, labels, number)
            if self._scaler.get_scale() >= scale:
                return loss
            # Gradients overflowed, and the step was left out: a round may have few others.
            if scale < LEAST_SCALE:
                raise TrainingError(
                    f"the gradients of step {number} are no finite numbers, whatever amp float16 "
                    "scales them by"
                )

    def _try(self, inputs: torch.Tensor, labels: torch.Tensor, number: int) -> float:
        """Do a step, unless its gradients overflow: then their scale is lower for the next try."""
        self._optimizer.zero_grad()
        if len(inputs) == 0:  # as a Poisson sample may be
            dp_sgd.no_samples(self._model)
            self._optimizer.step()
            return 0.0
        with self._autocast:
            outputs = self._forward(inputs.to(self._device))
            loss = self._mean_loss(outputs, labels.to(self._device))
        loss, value = self._ranks.weighed(loss, len(inputs))
        if not math.isfinite(value):
            hint = "lower optim_args.lr" if number > 1 else "are the inputs finite?"
            raise TrainingError(f"loss became {value} at step {number}; {hint}")
        torch.autograd.backward(self._scaler.scale(loss))
        if self._configs.dp_sgd is not None:
            dp_sgd.require_each(self._model, len(inputs))
        self._scaler.unscale_(self._optimizer)
        self._correction.to_loss(self._model)
        if self._configs.clip_grad:
            nn.utils.clip_grad_norm_(
                self._model.parameters(), self._configs.clip_value, self._configs.clip_norm
            )
        self._correction.to_step(self._model, float(self._optimizer.param_groups[0]["lr"]))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return value

    def _mean_loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return _scalar(self._loss(outputs, labels))

        if self._configs.dp_sgd is None:
            return loss(outputs, labels)
        return dp_sgd.mean_of_samples(loss, outputs, labels)

    def advance(self, *, end_of_epoch: bool) -> None:
        """Let the learning rate follow its schedule."""
        if self._scheduler and (end_of_epoch or self._configs.lr_scheduler_unit == "step"):
            self._scheduler.step()

    def let_go(self) -> None:
        """Let gradients and the optimizer's memory go: what follows may need their room."""
        self._model.zero_grad(set_to_none=True)
        self._optimizer.zero_grad(set_to_none=True)  # Opacus keeps more beside each parameter
        self._optimizer.state.clear()


def evaluate(
    model: nn.Module, dataset: Dataset[Any], configs: TrainConfigs, *, until: float | None = None
) -> Evaluation:
    """Evaluate a classifier.

    Args:
        model: The model, moved to `configs.device`.
        dataset: Samples of (input, label); labels are class indices, one a sample or, as for the
            characters of a text, one a place.
        configs: Loss, device and batch size.
        until: Unix seconds by which it must have ended, or None.

    Returns:
        Mean loss over samples and accuracy over labels, 0 where those are no class indices.

    Raises:
        TrainingError: The set is empty, the loss is unknown, or the model does not take the data.
        DeviceError: The device is not here.
        BlockEnded: There is no time for the whole set.
    """
    if data.count(dataset) == 0:
        raise TrainingError("no samples to evaluate on")
    device = devices.choose(configs.device)
    model.to(device).eval()
    loss_fn = built.loss(configs).to(device)
    loss, correct, labelled, seen = 0.0, 0, 0, 0
    metric, batches = built.Metric(configs), data.validation_batches(dataset, configs)
    left = budget.Countdown(steps=len(batches), until=until)
    with torch.no_grad():
        for inputs, labels in _read(budget.within(left, batches)):
            with _naming(inputs, labels):
                outputs, expected = model(inputs.to(device)), labels.to(device)
                loss += _scalar(loss_fn(outputs, expected)).item() * len(labels)
                correct += _correct(outputs, expected)
            labelled += labels.numel()
            seen += len(labels)
            metric.add(labels, outputs)
    if left.stopped == "block":
        raise BlockEnded("this worker's block ends before the validation set does")
    return Evaluation(loss / seen, correct / labelled, seen, metric.value())


def _correct(outputs: torch.Tensor, labels: torch.Tensor) -> int:
    """How many labels have the largest output; none where they are no class indices."""
    if outputs.ndim < 2:
        return 0
    found = outputs.argmax(dim=1)
    # Of another shape, each would be compared with each.
    return int((found == labels).sum().item()) if found.shape == labels.shape else 0
