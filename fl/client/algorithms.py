"""What some algorithms change in local training: FedProx's gradient and SCAFFOLD's controls.

Gradients are changed in place, after `backward` and before the optimizer's step. FedProx's term
belongs to the loss, so it comes before gradient clipping; SCAFFOLD's correction is of the step, so
it comes after. Parameters without a gradient in a step are left alone, as optimizers do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fl.tensors import Tensors, is_inexact


def delta(
    trained: Mapping[str, torch.Tensor],
    received: Mapping[str, torch.Tensor],
    *,
    in_place: bool = False,
) -> Tensors:
    """What training added to a model.

    Args:
        trained: The model after training.
        received: The model before it, of the same names, shapes and dtypes; any device.
        in_place: Write into the memory of `received` where that is on the same device: nobody
            needs it any more, and fresh memory takes longer to get than to fill.

    Returns:
        trained - received in the model's dtypes, on the device of `trained`: exactly zero where
        training changed nothing. Of integers and booleans it is no difference but `trained`'s
        value.
    """
    changes = {}
    for name, tensor in trained.items():
        after = tensor.detach()
        if is_inexact(after):
            before = received[name].to(after.device)
            after = torch.sub(after, before, out=before if in_place else None)
        changes[name] = after
    return changes


def add_proximal_gradient(model: nn.Module, received: Tensors, *, mu: float) -> None:
    """Add FedProx's gradient to the loss's, in place.

    That of mu/2 |w - w_t|^2, which is mu (w - w_t) (Li et al. 2020, arXiv 1812.06127, Algorithm
    2).

    Args:
        model: The model in training, after `backward`.
        received: w_t, the global model that training began with, as far as it is trained; best on
            the model's device.
        mu: How strongly the client is held back, 0 or more; the paper tries 0.001 to 1.

    Raises:
        ValueError: mu is negative.
    """
    if not mu >= 0:
        raise ValueError(f"mu must be at least 0, not {mu}")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name in received:
            start = received[name].to(parameter.device)
            parameter.grad.add_(parameter.detach() - start, alpha=mu)


def no_control(model: nn.Module) -> Tensors:
    """SCAFFOLD's first control variate: zero for every trainable parameter.

    Args:
        model: The model.

    Returns:
        Zeros of the trainable parameters' names, shapes and devices, float32 at least; by every
        name that tied weights have, as in `state_dict`.
    """
    return {
        name: torch.zeros_like(_wide(parameter.detach()))
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }


def control_correction(server_control: Tensors, client_control: Tensors) -> Tensors:
    """What SCAFFOLD adds to every gradient of a round: c - c_i.

    Args:
        server_control: c, as the server sent it.
        client_control: c_i, as this client kept it; the same names and shapes.

    Returns:
        The correction, to be made once a round and moved to the model's device.
    """
    return {name: control - client_control[name] for name, control in server_control.items()}


def add_control_correction(model: nn.Module, correction: Tensors) -> None:
    """Correct the gradients for client drift, in place: g_i(y) - c_i + c.

    Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1, line 10.

    Args:
        model: The model in training, after `backward`.
        correction: `control_correction`'s, by trainable parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parameter.grad.add_(correction[name].to(parameter.device))


def new_control(
    client_control: Tensors,
    server_control: Tensors,
    received: Tensors,
    trained: Tensors,
    *,
    distance: Mapping[str, float],
) -> tuple[Tensors, Tensors]:
    """SCAFFOLD's control variate after a round, option II, and what it changed by.

    c_i+ = c_i - c + (x - y_i) / (K eta): the mean of the gradients that were met, without their
    correction (Karimireddy et al. 2020, Algorithm 1, lines 12-13). The client keeps the first, the
    server takes the mean of the second.

    Args:
        client_control: c_i, by trainable parameter.
        server_control: c, as it was in this round's correction.
        received: x, the global model that training began with.
        trained: y_i, the model that it ended with, of the same dtypes.
        distance: K eta of each parameter: the sum of the learning rates of the K local steps in
            which it had a gradient. With SGD momentum, eta times
            `fl.server.strategies.fednova_norm`, by which its steps add gradients up; option II fits
            no adaptive optimizer and no weight decay. Where it is 0 the client has met no gradient,
            and knows no more than before.

    Returns:
        c_i+ and c_i+ - c_i, by trainable parameter, in the controls' dtypes.

    Raises:
        ValueError: A distance is negative.
    """
    if not all(far >= 0 for far in distance.values()):
        raise ValueError(f"distances must be at least 0, not {min(distance.values())}")
    change = {
        name: (_wide(received[name]) - _wide(trained[name])).div_(distance[name]).sub_(control)
        if distance[name]
        else torch.zeros_like(control)
        for name, control in server_control.items()
    }
    return {name: client_control[name] + step for name, step in change.items()}, change


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
