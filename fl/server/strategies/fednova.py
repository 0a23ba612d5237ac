"""FedNova: averaging after uneven local work."""

from __future__ import annotations

import numpy as np

from fl.server.strategies.bounds import require_fraction, require_positive


def fednova_norm(steps: int, *, momentum: float = 0.0, proximal: float = 0.0) -> float:
    """How often a client's training has added its gradients up: |a_i|_1 of FedNova.

    Plain SGD of any constant rate has |a_i|_1 = steps. Momentum counts a gradient again in every
    later step, FedProx forgets some of it (Wang et al. 2020, arXiv 2007.07481, section 4). This is
    how far a constant gradient of 1 takes a client at learning rate 1, FedProx's term being part
    of the gradient that momentum sees, as in `fl.client.algorithms`. Adaptive local optimizers
    have no such vector; their steps are the nearest.

    Args:
        steps: Local steps that were done, positive.
        momentum: The client's SGD momentum, 0 <= momentum < 1, without dampening or Nesterov, and
            started anew in every round.
        proximal: The client's learning rate times FedProx's mu, 0 <= proximal < 1.

    Returns:
        The norm, positive, without a unit.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(steps=steps)
    require_fraction(momentum=momentum, proximal=proximal)
    # A step makes (velocity, norm, 1) from the last ones; a power of it is all steps, however many.
    step = np.array([[momentum, -proximal, 1], [momentum, 1 - proximal, 1], [0, 0, 1]])
    return float(np.linalg.matrix_power(step, steps)[1, 2])


def fednova_weight(num_samples: float, norm: float) -> float:
    """An update's weight in FedNova's running mean of differences.

    FedNova (Wang et al. 2020, arXiv 2007.07481) goes from w to w + tau sum_i p_i Delta_i / a_i,
    with p_i = n_i / sum n and a_i the norms. The mean M of the Delta_i with weights c_i = n_i / a_i
    has sum_i c_i Delta_i = (sum c) M, so that step is w + tau (sum c / sum n) M: `add_delta` of a
    running mean by tau (sum c / sum n), which is `fednova_size`.

    Args:
        num_samples: The client's n_i, positive (or any other weight).
        norm: Its `fednova_norm`, positive.

    Returns:
        n_i / a_i, positive.

    Raises:
        ValueError: An argument is not positive.
    """
    require_positive(num_samples=num_samples, norm=norm)
    return num_samples / norm


def fednova_size(
    samples: float, work: float, weights: float, *, effective_steps: float | None = None
) -> float:
    """How far FedNova goes along its running mean, from running sums; see `fednova_weight`.

    Args:
        samples: sum n_i over the updates in the mean, positive.
        work: sum n_i a_i, positive.
        weights: sum n_i / a_i, positive.
        effective_steps: The paper's tau_eff, positive: sum_i p_i a_i when None.

    Returns:
        `add_delta`'s size; 1 when all norms are equal, else above 1 unless `effective_steps` is
        small.

    Raises:
        ValueError: An argument is not positive.
    """
    require_positive(samples=samples, work=work, weights=weights)
    if effective_steps is None:
        effective_steps = work / samples
    require_positive(effective_steps=effective_steps)
    return effective_steps * weights / samples
