"""Server optimizers: FedAvg, and those that treat the mean difference as a gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fl.server.strategies.bounds import require_fraction, require_positive
from fl.server.strategies.steps import State, add_delta, each, last
from fl.tensors import Tensors


def fedavg(weights: Tensors, delta: Tensors, state: State) -> tuple[Tensors, State]:
    """FedAvg: go where the clients went on average (McMahan et al. 2017, arXiv 1602.05629).

    Algorithm 1's mean of models, w <- sum_k p_k w_k, is w + sum_k p_k (w_k - w).

    Args:
        weights: The global model.
        delta: Mean of the clients' differences, the model's names and shapes.
        state: Nothing, passed on.

    Returns:
        The new model, in its dtypes; and `state`.
    """
    return add_delta(weights, delta), state


def fedavgm(
    weights: Tensors,
    delta: Tensors,
    state: State,
    *,
    learning_rate: float = 1.0,
    momentum: float = 0.9,
) -> tuple[Tensors, State]:
    """FedAvgM: server momentum (Hsu et al. 2019, arXiv 1909.06335).

    With Delta the mean difference: v <- momentum v + Delta, w <- w + rate v.

    Args:
        weights: The global model.
        delta: Mean of the clients' differences, the model's names and shapes.
        state: `{"momentum"}`, or `{}` at first.
        learning_rate: The server's, positive; the paper has 1.
        momentum: Share of the last step that is kept, 0 <= momentum < 1.

    Returns:
        The new model and state; its tensors are float32, or float64 where the weights are.

    Raises:
        ValueError: A hyper-parameter is out of range, or the state is another model's.
    """
    require_positive(learning_rate=learning_rate)
    require_fraction(momentum=momentum)
    velocity: Tensors = {}

    def step(name: str, start: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        velocity[name] = change.add(last(state, "momentum", name, change), alpha=momentum)
        return start.add(velocity[name], alpha=learning_rate)

    return each(weights, delta, step), {"momentum": velocity}


def fedadagrad(
    weights: Tensors,
    delta: Tensors,
    state: State,
    *,
    learning_rate: float = 0.01,
    beta1: float = 0.0,
    tau: float = 1e-3,
) -> tuple[Tensors, State]:
    """FedAdagrad: v <- v + Delta^2 (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2).

    Delta is the mean difference; m <- beta1 m + (1 - beta1) Delta;
    w <- w + rate m / (sqrt(v) + tau); v starts at tau^2, m at 0, without bias correction.

    Args:
        weights: The global model.
        delta: Mean of the clients' differences, the model's names and shapes.
        state: `{"momentum", "second_moment"}`, or `{}` at first.
        learning_rate: The server's, positive; the paper tunes it for every task.
        beta1: First moment's decay, 0 <= beta1 < 1; the paper's FedAdagrad has none.
        tau: Adaptivity, positive: the smaller, the more adaptive.

    Returns:
        The new model and state; its tensors are float32, or float64 where the weights are.

    Raises:
        ValueError: A hyper-parameter is out of range, or the state is another model's.
    """
    return _adaptive(weights, delta, state, torch.add, learning_rate, beta1, tau)


def fedadam(
    weights: Tensors,
    delta: Tensors,
    state: State,
    *,
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[Tensors, State]:
    """FedAdam: v <- beta2 v + (1 - beta2) Delta^2 (Reddi et al. 2021, Algorithm 2).

    The rest is `fedadagrad`'s.

    Args:
        weights: The global model.
        delta: Mean of the clients' differences, the model's names and shapes.
        state: `{"momentum", "second_moment"}`, or `{}` at first.
        learning_rate: The server's, positive; the paper tunes it for every task.
        beta1: First moment's decay, 0 <= beta1 < 1.
        beta2: Second moment's decay, 0 <= beta2 < 1.
        tau: Adaptivity, positive: the smaller, the more adaptive.

    Returns:
        The new model and state; its tensors are float32, or float64 where the weights are.

    Raises:
        ValueError: A hyper-parameter is out of range, or the state is another model's.
    """
    require_fraction(beta2=beta2)

    def second_moment(previous: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return (beta2 * previous).add_(square, alpha=1 - beta2)

    return _adaptive(weights, delta, state, second_moment, learning_rate, beta1, tau)


def fedyogi(
    weights: Tensors,
    delta: Tensors,
    state: State,
    *,
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[Tensors, State]:
    """FedYogi: v <- v - (1 - beta2) Delta^2 sign(v - Delta^2) (Reddi et al. 2021, Algorithm 2).

    The rest is `fedadagrad`'s.

    Args:
        weights: The global model.
        delta: Mean of the clients' differences, the model's names and shapes.
        state: `{"momentum", "second_moment"}`, or `{}` at first.
        learning_rate: The server's, positive; the paper tunes it for every task.
        beta1: First moment's decay, 0 <= beta1 < 1.
        beta2: Second moment's decay, 0 <= beta2 < 1.
        tau: Adaptivity, positive: the smaller, the more adaptive.

    Returns:
        The new model and state; its tensors are float32, or float64 where the weights are.

    Raises:
        ValueError: A hyper-parameter is out of range, or the state is another model's.
    """
    require_fraction(beta2=beta2)

    def second_moment(previous: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return previous.sub((previous - square).sign_().mul_(square), alpha=1 - beta2)

    return _adaptive(weights, delta, state, second_moment, learning_rate, beta1, tau)


def _adaptive(
    weights: Tensors,
    delta: Tensors,
    state: State,
    second_moment: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    learning_rate: float,
    beta1: float,
    tau: float,
) -> tuple[Tensors, State]:
    """Algorithm 2 of Reddi et al. 2021, but for v: from the last v and Delta^2."""
    require_positive(learning_rate=learning_rate, tau=tau)
    require_fraction(beta1=beta1)
    m: Tensors = {}
    v: Tensors = {}

    def step(name: str, start: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        v[name] = second_moment(last(state, "second_moment", name, change, tau**2), change.square())
        m[name] = (beta1 * last(state, "momentum", name, change)).add_(change, alpha=1 - beta1)
        return start.addcdiv(m[name], v[name].sqrt().add_(tau), value=learning_rate)

    return each(weights, delta, step), {"momentum": m, "second_moment": v}
