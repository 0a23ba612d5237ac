"""FedQueue: sites behind batch queues (arXiv 2605.02125)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl.server.strategies.bounds import require_positive, require_smoothing
from fl.server.strategies.staleness import Discount, harmonic


@dataclass(frozen=True)
class QueueEstimate:
    """What is expected of a site's batch queue.

    FedQueue as published keeps the mean only and starts from a guess, `QueueEstimate(2.0, 0.0)` in
    its authors' code. The spread is ours.

    Attributes:
        mean: Seconds from submission to the task's start.
        spread: Mean absolute error of that prediction, in seconds.
    """

    mean: float
    spread: float


def observe_queue(
    previous: QueueEstimate | None, delay: float, *, smoothing: float = 0.5
) -> QueueEstimate:
    """Learn from a delay: exponentially weighted means of the delay and of the error made.

    The mean is FedQueue's; the spread is as TCP keeps that of its round trips (RFC 6298): the
    error is that of the prediction before it is corrected, and the first one is half the delay.

    Args:
        previous: The site's estimate before, or None.
        delay: Seconds that its task waited, 0 or more.
        smoothing: Weight of the new delay, 0 < smoothing <= 1.

    Returns:
        The estimate for the next task.

    Raises:
        ValueError: An argument is out of range.
    """
    require_smoothing(smoothing)
    if not delay >= 0:
        raise ValueError(f"a queue delay is at least 0 s, not {delay}")
    if previous is None:
        return QueueEstimate(delay, delay / 2)
    error = delay - previous.mean
    return QueueEstimate(
        previous.mean + smoothing * error,
        previous.spread + smoothing * (abs(error) - previous.spread),
    )


def fedqueue_budget(
    estimate: QueueEstimate,
    speed: float,
    *,
    cutoff: float,
    margin: float = 60.0,
    min_steps: int = 20,
    max_steps: int | None = None,
) -> int:
    """Local steps that should land a site's update before the round's cut-off.

    (cutoff - mean - margin) / speed, rounded down, at least `min_steps` (FedQueue, its authors'
    code). `max_steps` is ours.

    Args:
        estimate: Of the site's queue.
        speed: The site's `seconds_per_step`.
        cutoff: Seconds from the round's start to its cut-off, positive: FedQueue's T_sync.
        margin: Seconds for everything else, such as moving the model; 0 or more.
        min_steps: Fewest steps worth a task, positive.
        max_steps: Most steps, at least `min_steps`, or None.

    Returns:
        The steps.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(speed=speed, cutoff=cutoff, min_steps=min_steps)
    if margin < 0 or (max_steps is not None and max_steps < min_steps):
        raise ValueError("margin is at least 0, max_steps is at least min_steps")
    seconds = cutoff - estimate.mean - margin
    steps = max(min_steps, math.floor(seconds / speed))
    return steps if max_steps is None else min(steps, max_steps)


def fedqueue_learning_rate(base: float, steps: int, fewest: int) -> float:
    """A site's learning rate, so that more steps go no further: base fewest / steps.

    Args:
        base: The rate of the site that does fewest steps, positive.
        steps: This site's budget, at least `fewest`.
        fewest: The smallest budget of all sites, positive.

    Returns:
        The rate.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(base=base, fewest=fewest)
    if steps < fewest:
        raise ValueError(f"a budget of {steps} is below the fewest, {fewest}")
    return base * fewest / steps


def fedqueue_admits(
    delay: float,
    estimate: QueueEstimate,
    *,
    cutoff: float,
    tolerance: float = 0.2,
) -> bool:
    """Whether an update belongs to this round, rather than to the buffer for the next.

    Admitted is a delay of at most mean + tolerance cutoff (FedQueue, its authors' code, which
    closes a round when all have arrived, or at 1.15 times the cut-off).

    Args:
        delay: Seconds that the task waited in the queue.
        estimate: Of the site's queue when the task was submitted: without this delay.
        cutoff: Seconds from the round's start to its cut-off, positive.
        tolerance: Share of `cutoff` that a delay may exceed its prediction by, 0 or more.

    Returns:
        True if it is of this round.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(cutoff=cutoff)
    if tolerance < 0:
        raise ValueError(f"tolerance must be at least 0, not {tolerance}")
    return delay <= estimate.mean + tolerance * cutoff


def fedqueue_weight(base: float, staleness: float, *, discount: Discount = harmonic) -> float:
    """An update's weight in FedQueue's running mean: base s(staleness).

    Args:
        base: The client's, positive: its samples in the authors' code (APPFL 1.12), which leaves
            the local steps to the learning rate.
        staleness: Rounds since the client got its model: 0 if admitted to its own.
        discount: A staleness function with its constants bound; the authors offer `constant`,
            `harmonic` and `exponential`.

    Returns:
        The weight, positive; the mean divides by their sum.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(base=base)
    return base * discount(staleness)
