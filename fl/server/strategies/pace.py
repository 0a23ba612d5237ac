"""Pace: our own numbers for sites behind batch queues of every length."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fl.server.strategies.bounds import require_positive


def pace_steps(delay: float, typical: float, base: int, *, most: float = 4.0) -> int:
    """Local steps in proportion to the queue that a site has to go through for them.

    A site that waits twice as long as others answers half as often: with twice the steps it does
    as much. Bounded, since many steps on one site's data drift away from all others'.

    Args:
        delay: Queue delay that is expected of the site, in seconds, 0 or more.
        typical: That of the federation's median site, 0 or more.
        base: Steps of that one, positive.
        most: Largest factor, up and down, at least 1.

    Returns:
        The steps, at least 1.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(base=base)
    if not (delay >= 0 and typical >= 0 and most >= 1):
        raise ValueError("delays are at least 0, most is at least 1")
    ratio = delay / typical if typical > 0 else 1.0
    return max(1, round(base * min(max(ratio, 1 / most), most)))


def pace_close(arrived: int, began: float, now: float, expected: Iterable[float]) -> float:
    """The moment at which a step brings most per second, from arrivals that are expected.

    The noise in a mean of n updates falls with sqrt(n), so a step of n at time t is worth
    sqrt(n) / (t - began). Where arrivals come in clumps, that waits for the clump; where the next
    one is far away, for nobody.

    Args:
        arrived: Updates that are there, positive.
        began: When the last step was taken.
        now: The moment, not before `began`.
        expected: When others are expected, on the same clock.

    Returns:
        `now` to step, else the moment to wait for.

    Raises:
        ValueError: Nothing has arrived.
    """
    require_positive(arrived=arrived)
    moments = [now, *sorted(moment for moment in expected if moment > now)]
    worth = [
        math.sqrt(arrived + more) / max(moment - began, 1e-9) for more, moment in enumerate(moments)
    ]
    return moments[worth.index(max(worth))]


def pace_size(weights: float, *, learning_rate: float = 1.0) -> float:
    """How far a step goes along the mean of its updates: learning_rate sqrt(weights), at most 1.

    Of n updates of N equal clients that is sqrt(n / N). A step of them all is FedAvg's. A smaller
    one goes less far, since what it leaves out pulls elsewhere, but further than in proportion:
    those of a whole turn come one after the other, each from a model that has the others in it.
    The sum is not discounted for staleness: where every site has data of its own kind, that would
    leave out what is only known where the queues are long.

    Args:
        weights: Sum of the shares of the updates in the mean, positive.
        learning_rate: How far a step of every client's updates goes, positive.

    Returns:
        `add_delta`'s size, at most 1.

    Raises:
        ValueError: An argument is not positive.
    """
    require_positive(weights=weights, learning_rate=learning_rate)
    return min(learning_rate * math.sqrt(weights), 1.0)
