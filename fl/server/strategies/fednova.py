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
