"""Rounds: everybody trains the same model, and the server waits for them, within limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from fl.config import Section
from fl.server.schedulers.base import Answer, Assignment, Decision, Limits, View


class Sync:
    """Every round asks all sites for the same model's update, and waits until its deadline.

    The round of McMahan et al. 2017 (https://arxiv.org/abs/1602.05629), with a quorum: with
    `min_clients` updates it ends as soon as nobody else can be expected, and at its deadline at the
    latest. A site that comes back while it goes on gets its task again. Updates of earlier rounds
    are dropped.

    Args:
        settings: See `Settings`.
        limits: The run's.
    """

    keeps_late = False

    class Settings(Section):
        """`scheduler_kwargs` of SyncScheduler."""

        same_init_model: Literal[True] = True
        """Every client starts from the server's model; APPFL's key, its other value is refused."""
        fraction: float = Field(default=1.0, gt=0, le=1)
        """Share of the sites, rounded up, whose updates end a round before its deadline."""
        deterministic: bool = False
        """Sum in the order of the clients, so that runs repeat bit for bit. An update then stays
        at its site until those before it are in."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._settings, self._limits = settings, limits

    def assign(self, view: View) -> list[Assignment]:
        """See `Scheduler.assign`: everybody once a round."""
        served = view.served()
        return [Assignment(name) for name in view.idle if name not in served]

    def decide(self, view: View) -> Decision:
        """See `Scheduler.decide`."""
        stale = [answer for answer in view.waiting if answer.version != view.version]
        fresh = [answer for answer in view.waiting if answer.version == view.version]
        over = view.now >= view.began + self._limits.deadline
        have = len(view.folded) + len(fresh)
        missing = self._missing(view)
        late = [name for name, version in view.busy.items() if version != view.version]
        possible = have if over else have + len(missing) + len(late) + len(view.offline)
        if possible < self._limits.needed:
            return Decision(drop=stale, hopeless=view.short(possible, self._limits.needed))
        # 0.07 * 100 is 7.000000000000001: a whole number that rounding has missed is meant as one.
        share = math.ceil(self._settings.fraction * len(view.clients) - 1e-9)
        enough = max(self._limits.needed, share)
        close = have >= self._limits.needed and (over or not missing or have >= enough)
        fold = fresh if close or not self._settings.deterministic else self._next(view, fresh)
        return Decision(fold=self._ordered(view, fold), drop=stale, close=close)

    def wake(self, view: View) -> float:
        """See `Scheduler.wake`: at the deadline."""
        return view.began + self._limits.deadline

    def observe(self, answer: Answer) -> None:
        """See `Scheduler.observe`: rounds do not learn from each other."""

    def state(self) -> dict[str, Any]:
        """See `Scheduler.state`."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Scheduler.restore`."""

    def _missing(self, view: View) -> set[str]:
        """Whose update of this round is waited for: not for those who are late with another's."""
        busy = (name for name, version in view.busy.items() if version == view.version)
        return {*view.idle, *busy, *view.pending} - view.served()

    def _ordered(self, view: View, answers: Sequence[Answer]) -> list[Answer]:
        """By client, so that those which arrived together are summed in one order."""
        return sorted(answers, key=lambda answer: view.clients.index(answer.client_id))

    def _next(self, view: View, fresh: Sequence[Answer]) -> list[Answer]:
        """Those before which no update is missing."""
        arrived = {answer.client_id: answer for answer in fresh}
        missing = {*view.idle, *view.busy, *view.pending, *view.offline} - view.served()
        following: list[Answer] = []
        for name in view.clients:
            if name in missing:
                break
            if name in arrived:
                following.append(arrived[name])
        return following
