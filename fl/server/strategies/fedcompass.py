"""FedCompass: clients in groups that arrive together (Li et al. 2024, arXiv 2309.14675)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fl.server.strategies.bounds import require_positive
from fl.server.strategies.staleness import Discount, polynomial


@dataclass(frozen=True)
class ArrivalGroup:
    """Clients that are to answer at the same time.

    Attributes:
        expected: When they should, in seconds on the caller's clock.
        latest: When the group is closed without those still missing, on that clock.
        fastest: Seconds a step of its fastest member, those included that have answered.
    """

    expected: float
    latest: float
    fastest: float


@dataclass(frozen=True)
class Assignment:
    """What a client is to do next.

    Attributes:
        key: The group that it joins, or None if it opens one.
        group: That group with the client in it, to be kept in its place.
        steps: Its local steps.
    """

    key: int | None
    group: ArrivalGroup
    steps: int


def fedcompass_assign(
    now: float,
    speed: float,
    groups: Mapping[int, ArrivalGroup],
    *,
    min_steps: int = 20,
    max_steps: int = 100,
    latest_time_factor: float = 1.5,
) -> Assignment:
    """Give a client that is free the local steps with which it arrives together with others.

    It joins the group whose expected arrival lets it do most steps, at least `min_steps` and at
    most `max_steps`. If there is none, it opens one, timed for the next arrival of a group that
    is still out: that one's latest arrival plus `max_steps` of its fastest member (Li et al.
    2024, arXiv 2309.14675, Algorithm 1: AssignGroup, JoinGroup and CreateGroup; defaults from its
    authors' example).

    Args:
        now: Seconds on the clock of `groups`.
        speed: The client's `seconds_per_step`.
        groups: Groups on their way; one that is being aggregated is no longer among them.
        min_steps: Qmin, positive.
        max_steps: Qmax, at least Qmin; also what a client does before its speed is known.
        latest_time_factor: lambda, at least 1: a group waits for this multiple of the time that
            its first member should take.

    Returns:
        The group, and the steps in it.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(speed=speed, min_steps=min_steps)
    if max_steps < min_steps or latest_time_factor < 1:
        raise ValueError("max_steps must be at least min_steps, latest_time_factor at least 1")
    fitting = {
        key: steps
        for key, group in groups.items()
        if min_steps <= (steps := math.floor((group.expected - now) / speed)) <= max_steps
    }
    if fitting:
        key = max(fitting, key=fitting.__getitem__)
        group = groups[key]
        fastest = min(group.fastest, speed)
        return Assignment(key, ArrivalGroup(group.expected, group.latest, fastest), fitting[key])
    steps = _steps_of_new_group(now, speed, groups, min_steps, max_steps)
    duration = steps * speed
    opened = ArrivalGroup(now + duration, now + duration * latest_time_factor, speed)
    return Assignment(None, opened, steps)


def fedcompass_weight(
    share: float, staleness: float, *, alpha: float = 0.9, discount: Discount = polynomial
) -> float:
    """An update's weight in FedCompass's running mean of differences, and part of its step's size.

    The paper's step is w + sum_i alpha p_i s(staleness_i) Delta_i (Li et al. 2024, Algorithm 1):
    `add_delta` of the weighted mean by the sum of the weights.

    Args:
        share: p_i, the client's share of all clients' samples (or 1/N), 0 < share <= 1.
        staleness: Server steps since the client got its model, 0 or more.
        alpha: Mixing of a fresh update, 0 < alpha <= 1.
        discount: A staleness function with its constants bound.

    Returns:
        The weight, 0 to 1; those of one step sum to at most `alpha` if each client has one.

    Raises:
        ValueError: An argument is out of range.
    """
    require_positive(share=share, alpha=alpha)
    if share > 1 or alpha > 1:
        raise ValueError(f"share and alpha are at most 1, not {share} and {alpha}")
    return alpha * share * discount(staleness)


def _steps_of_new_group(
    now: float,
    speed: float,
    groups: Mapping[int, ArrivalGroup],
    min_steps: int,
    max_steps: int,
) -> int:
    """CreateGroup's steps: most that still meet a group's next arrival, or Qmax if none can."""
    meetings = [
        math.floor((group.latest + group.fastest * max_steps - now) / speed)
        for group in groups.values()
        if now < group.latest
    ]
    within = [steps for steps in meetings if steps <= max_steps]
    return max(min_steps, *within) if within else max_steps
