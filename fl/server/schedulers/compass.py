"""FedCompass: sites get the local steps with which they arrive together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, model_validator

from fl.config import PositiveInt, Section
from fl.server.schedulers.base import Answer, Assignment, Decision, Limits, View
from fl.server.strategies import ArrivalGroup, fedcompass_assign, seconds_per_step


@dataclass
class _Group:
    """Sites that are to arrive together, by client_id, and when."""

    times: ArrivalGroup
    members: set[str] = field(default_factory=set)


class Compass:
    """Groups of sites that arrive together, each folded as one (Li et al. 2024, arXiv 2309.14675).

    A site's speed is measured from task to answer, its queue included. A group is closed when all
    its members have answered, are lost or have failed, or at its latest arrival; an answer of no
    open group makes a step on its own, as the first of every site does. That is ours for one that
    comes after its group: the authors' APPFL keeps it until the next group is folded. To be used
    with FedCompassAggregator.

    Speeds survive a restart, groups do not: what was under way then arrives on its own.

    Args:
        settings: See `Settings`.
        limits: The run's.
    """

    keeps_late = True

    class Settings(Section):
        """`scheduler_kwargs` of CompassScheduler, by APPFL's names."""

        min_local_steps: PositiveInt = 20
        """Qmin."""
        max_local_steps: PositiveInt = 100
        """Qmax; also what a site does before its speed is known."""
        speed_momentum: Annotated[float, Field(gt=0, le=1)] = 0.9
        """Weight of a new measurement of a site's speed."""
        latest_time_factor: Annotated[float, Field(ge=1)] = 1.5
        """How many times as long as it should take a group is waited for."""

        @model_validator(mode="after")
        def _ordered(self) -> Compass.Settings:
            if self.max_local_steps < self.min_local_steps:
                raise ValueError("max_local_steps must be at least min_local_steps")
            return self

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._settings, self._limits = settings, limits
        self._speeds: dict[str, float] = {}
        self._groups: dict[int, _Group] = {}
        self._opened = 0

    def assign(self, view: View) -> list[Assignment]:
        """See `Scheduler.assign`: whoever is idle and not waiting for a group joins one."""
        waiting = {answer.client_id for answer in view.waiting}
        return [self._join(name, view.now) for name in view.idle if name not in waiting]

    def decide(self, view: View) -> Decision:
        """See `Scheduler.decide`: a group that is complete or late, or an answer of none."""
        due = self._due(view)
        if due or view.folded:  # what was folded is of a group whose rest could not be fetched
            return Decision(fold=due, close=True)
        possible = len(view.clients) - len(view.failed)
        over = view.now >= view.began + self._limits.deadline
        if over and view.waiting:
            return Decision(fold=view.waiting, close=True)
        if over or possible < self._limits.needed:
            return Decision(hopeless=view.short(possible, self._limits.needed))
        return Decision()

    def wake(self, view: View) -> float:
        """See `Scheduler.wake`: when the next group is late."""
        latest = [group.times.latest for group in self._groups.values()]
        return min([view.began + self._limits.deadline, *latest])

    def observe(self, answer: Answer) -> None:
        """See `Scheduler.observe`: how fast a site is, from task to answer."""
        self._speeds[answer.client_id] = seconds_per_step(
            self._speeds.get(answer.client_id),
            max(answer.arrived - answer.sent, 1e-6),
            answer.steps,
            momentum=self._settings.speed_momentum,
        )

    def state(self) -> dict[str, Any]:
        """See `Scheduler.state`."""
        return {"speeds": dict(self._speeds)}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Scheduler.restore`."""
        self._speeds = dict(state.get("speeds", {}))

    def _join(self, name: str, now: float) -> Assignment:
        """Give a site a group and the steps with which it arrives with that."""
        for group in self._groups.values():  # a lost site may still be in one
            group.members.discard(name)
        if name not in self._speeds:
            return Assignment(name, self._settings.max_local_steps)
        chosen = fedcompass_assign(
            now,
            self._speeds[name],
            {key: group.times for key, group in self._groups.items()},
            min_steps=self._settings.min_local_steps,
            max_steps=self._settings.max_local_steps,
            latest_time_factor=self._settings.latest_time_factor,
        )
        key = self._opened if chosen.key is None else chosen.key
        self._opened = max(self._opened, key + 1)
        group = self._groups.setdefault(key, _Group(chosen.group))
        group.times = chosen.group
        group.members.add(name)
        return Assignment(name, chosen.steps)

    def _due(self, view: View) -> list[Answer]:
        """What makes a step now: the answers of a group that is over, or one of no group."""
        for key, group in list(self._groups.items()):
            if view.now < group.times.latest and not group.members.isdisjoint(view.busy):
                continue
            del self._groups[key]
            arrived = [answer for answer in view.waiting if answer.client_id in group.members]
            if arrived:
                return arrived
        grouped = {name for group in self._groups.values() for name in group.members}
        return [answer for answer in view.waiting if answer.client_id not in grouped][:1]
