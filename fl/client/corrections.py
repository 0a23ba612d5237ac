"""What a trainer adds to the gradients of local descent, and keeps between its steps."""

from __future__ import annotations

import torch
from torch import nn

from fl.client.algorithms import (
    add_control_correction,
    add_proximal_gradient,
    control_correction,
    new_control,
)
from fl.config import TrainConfigs
from fl.tensors import Tensors


class Correction:
    """VanillaTrainer's: none."""

    def to_loss(self, model: nn.Module) -> None:
        """Add what belongs to the loss, and so is clipped with its gradient."""

    def to_step(self, model: nn.Module, rate: float) -> None:
        """Add what belongs to the step, after clipping.

        Args:
            model: The model in training, after `backward`.
            rate: The step's learning rate.
        """


class Proximal(Correction):
    """FedProxTrainer's: the pull of the global model.

    Args:
        received: The global model.
        mu: How strongly it pulls.
        device: Where the model is trained.
        copy: Whether `received` may change before training ends.
    """

    def __init__(
        self, received: Tensors, mu: float, device: torch.device, *, copy: bool = False
    ) -> None:
        self._received = {name: tensor.to(device, copy=copy) for name, tensor in received.items()}
        self._mu = mu

    def to_loss(self, model: nn.Module) -> None:
        """See `Correction.to_loss`."""
        add_proximal_gradient(model, self._received, mu=self._mu)


def pull(
    configs: TrainConfigs, received: Tensors, device: torch.device, *, copy: bool = False
) -> Correction:
    """The pull of the global model where FedProxTrainer is asked for, or none; see `Proximal`."""
    if configs.mu is None:
        return Correction()
    return Proximal(received, configs.mu, device, copy=copy)


class Controlled(Correction):
    """ScaffoldTrainer's: the difference of the server's and the client's control variates.

    Args:
        server: c, by trainable parameter.
        own: c_i, likewise.
        momentum: The optimizer's.
        device: Where the model is trained.
    """

    def __init__(
        self, server: Tensors, own: Tensors, momentum: float, device: torch.device
    ) -> None:
        self._server, self._own, self._momentum = server, own, momentum
        self._correction = {
            name: tensor.to(device) for name, tensor in control_correction(server, own).items()
        }
        self._velocity = dict.fromkeys(server, 0.0)
        self._distance = dict.fromkeys(server, 0.0)

    def to_step(self, model: nn.Module, rate: float) -> None:
        """See `Correction.to_step`; counts how far gradients of 1 would have gone."""
        add_control_correction(model, self._correction)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter.grad is not None:  # an optimizer leaves the others alone
                self._velocity[name] = self._momentum * self._velocity[name] + 1
                self._distance[name] += rate * self._velocity[name]

    def outcome(self, received: Tensors, trained: Tensors) -> tuple[Tensors, Tensors]:
        """The client's control variate after training, and what it changed by.

        Args:
            received: The model that training began with.
            trained: The model that it ended with, on the same device.
        """
        return new_control(self._own, self._server, received, trained, distance=self._distance)
