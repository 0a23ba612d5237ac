"""The mean of all sites' latest models: our own, for few sites behind queues of any length."""

from __future__ import annotations

from fl.server.strategies.bounds import require_positive

KEPT = 0.95
"""What a step leaves of a model's weight: from 0.9 to 0.99 it makes no difference to be told."""


def latest_weight(samples: int, age: int) -> float:
    """What a site's latest model weighs: samples 0.95^age.

    Until its next one comes a site's model stays in the mean, since nobody else knows what it
    knows; and fades, so that a site that is gone for good is outgrown.

    Args:
        samples: The site's training samples, positive.
        age: Steps of the server since the model came, 0 or more.

    Returns:
        The weight, to be divided by the sum of all; 0 after some ten thousand steps.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(samples=samples)
    if age < 0:
        raise ValueError("the age is at least 0")
    return float(samples * KEPT**age)
