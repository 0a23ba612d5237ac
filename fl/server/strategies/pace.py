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


def pace_weight(
    share: float, staleness: float, typical: float, *, balance: float = 0.5, bound: float = 4.0
) -> float:
    """An update's weight: more where its site has been away for longer than others.

    The opposite of a staleness discount. Where each site has data of its own kind, a discount
    leaves out what is only known where the queues are long; here such a site gets weight back:
    share ((1 + staleness) / typical)^balance, the ratio within `bound`.

    Args:
        share: The client's share of all clients' samples, positive.
        staleness: Server steps since the client got its model, 0 or more.
        typical: Running mean of 1 + staleness over all updates, positive.
        balance: 0 weighs by share alone, 1 in full proportion.
        bound: Largest ratio, up and down, at least 1.

    Returns:
        The weight, positive.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(share=share, typical=typical)
    if not (staleness >= 0 and balance >= 0 and bound >= 1):
        raise ValueError("staleness and balance are at least 0, bound is at least 1")
    ratio = min(max((1 + staleness) / typical, 1 / bound), bound)
    return float(share * ratio**balance)
