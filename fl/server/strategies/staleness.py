"""Staleness: server steps between the model that a client received and its update's arrival."""

from __future__ import annotations

import math
from collections.abc import Callable

from fl.server.strategies.bounds import require_fraction, require_positive, require_staleness

Discount = Callable[[float], float]
"""A staleness function: server steps missed to a factor, 1 for none."""


def constant(staleness: float) -> float:
    """Staleness does not matter: 1 (Xie et al. 2019, arXiv 1903.03934).

    Raises:
        ValueError: The staleness is negative.
    """
    require_staleness(staleness)
    return 1.0


def polynomial(staleness: float, *, a: float = 0.5) -> float:
    """(1 + staleness)^-a (Xie et al. 2019); a = 1/2 is FedBuff's, too.

    Raises:
        ValueError: The staleness or `a` is negative.
    """
    require_staleness(staleness, a)
    return float((1 + staleness) ** -a)


def hinge(staleness: float, *, a: float = 10.0, b: float = 4.0) -> float:
    """1 up to b, then 1 / (a (staleness - b) + 1) (Xie et al. 2019).

    Raises:
        ValueError: The staleness, `a` or `b` is negative.
    """
    require_staleness(staleness, a, b)
    return 1 / (a * max(staleness - b, 0) + 1)


def harmonic(staleness: float, *, beta: float = 0.5) -> float:
    """1 / (1 + beta staleness): FedQueue's, beta as its authors' example has it.

    Raises:
        ValueError: The staleness or `beta` is negative.
    """
    require_staleness(staleness, beta)
    return 1 / (1 + beta * staleness)


def exponential(staleness: float, *, beta: float = 0.5) -> float:
    """e^(-beta staleness): FedQueue's other one.

    Raises:
        ValueError: The staleness or `beta` is negative.
    """
    require_staleness(staleness, beta)
    return math.exp(-beta * staleness)


def fedasync_rate(
    staleness: float, *, alpha: float = 0.6, discount: Discount = polynomial
) -> float:
    """How far FedAsync `mix`es an update in, on its arrival.

    alpha_t = alpha s(t - tau), x_t = (1 - alpha_t) x_(t-1) + alpha_t x_new (Xie et al. 2019,
    arXiv 1903.03934, Algorithm 1).

    Args:
        staleness: Server steps since the client got its model, 0 or more.
        alpha: Mixing of a fresh update, 0 < alpha < 1.
        discount: `constant`, `polynomial` or `hinge`, with its constants bound.

    Returns:
        The rate, 0 to 1.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(alpha=alpha)
    require_fraction(alpha=alpha)
    return alpha * discount(staleness)


def fedasync_weight(rate: float, total: float) -> float:
    """An update's weight in a running mean of models that stands for FedAsync's mixings in a row.

    Let the global model weigh 1 and the updates since then `total`: mixing the next one in at a
    rate makes its share of all that rate. `mix` of their mean at total / (1 + total), once, is
    where the mixings one by one would have led.

    Args:
        rate: The update's `fedasync_rate`, 0 < rate < 1.
        total: Sum of the weights before it, 0 or more.

    Returns:
        The weight, positive.

    Raises:
        ValueError: The rate is out of range.
    """
    require_positive(rate=rate)
    require_fraction(rate=rate)
    return rate / (1 - rate) * (1 + total)


def fedbuff_weight(staleness: float, *, discount: Discount = polynomial) -> float:
    """An update's weight in FedBuff's running mean of differences: s(staleness).

    Args:
        staleness: Server steps since the client got its model, 0 or more.
        discount: A staleness function with its constants bound; 1 / sqrt(1 + staleness) in Nguyen
            et al. 2022, arXiv 2106.06639.

    Returns:
        The weight, positive.

    Raises:
        ValueError: The staleness is negative.
    """
    return discount(staleness)


def fedbuff_size(weights: float, count: int, *, learning_rate: float = 1.0) -> float:
    """How far FedBuff goes along its running mean, when the buffer is full.

    The paper divides sum_i s_i Delta_i by the buffer's size K, the running mean by sum_i s_i:
    w + rate (sum s / K) mean is w + rate / K sum_i s_i Delta_i (Nguyen et al. 2022, Algorithm 1).

    Args:
        weights: Sum of the `fedbuff_weight`s of the updates in the buffer.
        count: How many they are.
        learning_rate: The server's, positive.

    Returns:
        `add_delta`'s size, at most `learning_rate`.

    Raises:
        ValueError: The buffer is empty, or the learning rate is out of range.
    """
    require_positive(learning_rate=learning_rate)
    if count < 1:
        raise ValueError("no update in the buffer")
    return learning_rate * weights / count
