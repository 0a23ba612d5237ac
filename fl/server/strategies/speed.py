"""A client's speed, as FedCompass and FedQueue estimate it."""

from __future__ import annotations

from fl.server.strategies.bounds import require_positive, require_smoothing


def seconds_per_step(
    previous: float | None, seconds: float, steps: int, *, momentum: float = 0.9
) -> float:
    """A client's time for a local step, smoothed over its updates.

    Args:
        previous: What this returned for the client's last update, or None.
        seconds: From the client's start on these steps to its answer; positive.
        steps: Local steps that were done, positive.
        momentum: Weight of the new measurement, 0 < momentum <= 1: FedCompass's authors use 0.9,
            FedQueue's 0.5.

    Returns:
        Seconds a step, positive; the measurement itself when there is no previous one.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(seconds=seconds, steps=steps)
    require_smoothing(momentum)
    measured = seconds / steps
    return measured if previous is None else previous + momentum * (measured - previous)
