"""Schedulers for sites behind batch queues: FedQueue as published, and ours."""

from __future__ import annotations

import math
import statistics
from typing import Annotated, Any

from pydantic import Field

from fl.config import PositiveInt, Seconds, Section
from fl.server.schedulers.base import Answer, Assignment, Decision, Limits, View
from fl.server.strategies import (
    QueueEstimate,
    fedqueue_admits,
    fedqueue_budget,
    fedqueue_learning_rate,
    observe_queue,
    pace_close,
    pace_steps,
    seconds_per_step,
)

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]

GUESS = QueueEstimate(2.0, 0.0)
"""What FedQueue's authors expect of a queue that they have not seen."""
PATIENCE = 1.15
"""Cut-offs after which FedQueue's authors close a round."""
CALM_SECONDS = 30.0
"""A queue that is expected to be shorter is not worth going ahead: that costs a round trip."""


class FedQueue:
    """Rounds with a cut-off that sites behind queues are to meet (FedQueue, arXiv 2605.02125).

    Each site gets the steps that should land its update before the cut-off, and a learning rate
    that falls with them. A round is closed when all who have its model have answered, or at 1.15
    times the cut-off; an update that waited longer in its queue than was admitted, or that comes
    after the close, goes into the next round with its staleness. To be used with
    FedQueueAggregator.

    Args:
        settings: See `Settings`.
        limits: The run's.
    """

    keeps_late = True

    class Settings(Section):
        """`scheduler_kwargs` of FedQueueScheduler."""

        cutoff: Seconds
        """Seconds from a round's start to its cut-off: the paper's T_sync."""
        margin: NotNegative = 60.0
        """Seconds of it for everything but queue and training."""
        tolerance: NotNegative = 0.2
        """Share of the cut-off by which a delay may exceed its prediction."""
        min_local_steps: PositiveInt = 20
        """Fewest steps worth a task."""
        max_local_steps: PositiveInt | None = None
        """Most steps; no limit as published."""
        smoothing: Share = 0.5
        """Weight of a new delay, and of a new measurement of the speed."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        if PATIENCE * settings.cutoff > limits.deadline:
            raise ValueError(
                f"cutoff: a round closes at {PATIENCE} times it, {PATIENCE * settings.cutoff:g} s, "
                f"and round_deadline ends it after {limits.deadline:g} s"
            )
        self._settings, self._limits = settings, limits
        self._sites = _Predictor(settings.smoothing)
        self._late: set[tuple[str, int]] = set()
        self._sent = -1  # the version that somebody was sent

    def assign(self, view: View) -> list[Assignment]:
        """See `Scheduler.assign`: everybody once a round, timed for its cut-off."""
        served = view.served() | {answer.client_id for answer in view.waiting}
        names = [name for name in view.idle if name not in served]
        left = max(view.began + self._settings.cutoff - view.now, 1e-6)
        fewest = min((self._budget(name, left) for name in view.clients), default=0)
        budgets = {name: self._budget(name, left) for name in names}
        self._sent = view.version if names else self._sent
        return [
            Assignment(name, steps, fedqueue_learning_rate(1.0, steps, fewest))
            for name, steps in budgets.items()
        ]

    def decide(self, view: View) -> Decision:
        """See `Scheduler.decide`: fold what is admitted, step when all are in or time is up."""
        self._late = {late for late in self._late if late[1] >= view.version}
        fold = [answer for answer in view.waiting if self._admitted(answer, view.version)]
        fresh = {name for name, version in view.busy.items() if version == view.version}
        # Tasks of a process before this one were sent, too: their answers tell.
        answered = (self._sent == view.version or bool(view.served())) and not fresh
        over = answered or view.now >= view.began + PATIENCE * self._settings.cutoff
        if over and not fold and not view.folded:
            fold = list(view.waiting)  # the round would be empty, and these of the next one
        close = over and len(view.folded) + len(fold) > 0
        possible = len(view.clients) - len(view.failed)
        hopeless = possible < self._limits.needed
        if not close and (hopeless or view.now >= view.began + self._limits.deadline):
            return Decision(hopeless=view.short(possible, self._limits.needed))
        return Decision(fold=fold, close=close)

    def wake(self, view: View) -> float:
        """See `Scheduler.wake`: at the close."""
        close = view.began + PATIENCE * self._settings.cutoff
        return close if view.now < close else view.began + self._limits.deadline

    def observe(self, answer: Answer) -> None:
        """See `Scheduler.observe`: queue and speed of a site, and whether it is admitted."""
        expected = self._sites.queues.get(answer.client_id, GUESS)
        cutoff, tolerance = self._settings.cutoff, self._settings.tolerance
        if not fedqueue_admits(answer.queue_seconds, expected, cutoff=cutoff, tolerance=tolerance):
            self._late.add((answer.client_id, answer.version))
        training = answer.seconds.get("train", 0.0)  # the margin is for the rest
        self._sites.observe(answer, training, GUESS)

    def state(self) -> dict[str, Any]:
        """See `Scheduler.state`."""
        return self._sites.state()

    def restore(self, state: dict[str, Any]) -> None:
        """See `Scheduler.restore`."""
        self._sites.restore(state)

    def _admitted(self, answer: Answer, version: int) -> bool:
        """Whether an update is of this round: admitted to it, or late for an earlier one."""
        return answer.version < version or (answer.client_id, answer.version) not in self._late

    def _budget(self, name: str, cutoff: float) -> int:
        """A site's steps; the fewest before its speed is known."""
        settings = self._settings
        if name not in self._sites.speeds:
            return settings.min_local_steps
        return fedqueue_budget(
            self._sites.queues[name],
            self._sites.speeds[name],
            cutoff=cutoff,
            margin=settings.margin,
            min_steps=settings.min_local_steps,
            max_steps=settings.max_local_steps,
        )


class Pace:
    """Our own: every site always works, and the server steps when that brings most per second.

    A site is sent ahead into its batch queue and gets its task once a worker is there: however
    long that took, it trains the newest model, and it queues while its last update waits for
    others. That is left out where hardly any queue is expected. A site gets local steps in
    proportion to the queue that it went through for them, so that one with long queues does its
    part. When updates are there, the arrivals that are predicted say
    whether to wait for more (`pace_close`): sites whose queues are alike arrive together and are
    averaged; none waits for a queue that is longer than its update is worth, and what comes later
    goes into a later step. A site that outlives its prediction by the queue's spread is no longer
    expected. To be used with PaceAggregator.

    Args:
        settings: See `Settings`.
        limits: The run's.
    """

    keeps_late = True

    class Settings(Section):
        """`scheduler_kwargs` of PaceScheduler."""

        local_steps: PositiveInt = 80
        """Minibatch steps of a site with the median queue."""
        most: Annotated[float, Field(ge=1)] = 4.0
        """Largest factor, up and down, for sites with longer and shorter queues."""
        smoothing: Share = 0.3
        """Weight of a new delay, and of a new measurement of the speed."""
        min_updates: PositiveInt = 1
        """Updates that a step needs if more can come. A model is kept as long as a site trains it:
        with hundreds of sites, larger steps keep fewer models."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._settings, self._limits = settings, limits
        self._sites = _Predictor(settings.smoothing)
        self._expected: dict[str, tuple[float, float]] = {}

    def assign(self, view: View) -> list[Assignment]:
        """See `Scheduler.assign`: who is there and whose last update is used; others go ahead."""
        waiting = {answer.client_id for answer in view.waiting}
        there = {name for name in view.idle if name in view.entered or self._is_calm(name)}
        ahead = [self._ahead(name, view.now) for name in view.idle if name not in there]
        return ahead + [
            self._task(name, view) for name in view.idle if name in there and name not in waiting
        ]

    def decide(self, view: View) -> Decision:
        """See `Scheduler.decide`."""
        have = len(view.waiting) + len(view.folded)
        over = view.now >= view.began + self._limits.deadline
        if have:
            close = over or self._moment(view, have) <= view.now
            return Decision(fold=view.waiting if close else (), close=close)
        possible = len(view.clients) - len(view.failed)
        if over or possible < self._limits.needed:
            return Decision(hopeless=view.short(possible, self._limits.needed))
        return Decision()

    def wake(self, view: View) -> float:
        """See `Scheduler.wake`: at the moment that was chosen."""
        deadline = view.began + self._limits.deadline
        have = len(view.waiting) + len(view.folded)
        return min(self._moment(view, have), deadline) if have else deadline

    def observe(self, answer: Answer) -> None:
        """See `Scheduler.observe`: queue and speed of a site."""
        self._sites.observe(answer, sum(answer.seconds.values()))

    def state(self) -> dict[str, Any]:
        """See `Scheduler.state`."""
        return self._sites.state()

    def restore(self, state: dict[str, Any]) -> None:
        """See `Scheduler.restore`."""
        self._sites.restore(state)

    def _is_calm(self, name: str) -> bool:
        """Whether so little queue is expected of a site that going ahead is not worth it."""
        queue = self._sites.queues.get(name)
        return queue is not None and queue.mean + queue.spread < CALM_SECONDS

    def _ahead(self, name: str, now: float) -> Assignment:
        """Have a site wait for a worker; when its answer is expected is kept."""
        self._expect(name, now, self._sites.queues.get(name), self._steps(name))
        return Assignment(name, enters=True)

    def _task(self, name: str, view: View) -> Assignment:
        """A site's steps; when its answer is expected is kept."""
        steps = self._steps(name, view.entered.get(name))
        queue = QueueEstimate(0.0, 0.0) if name in view.entered else self._sites.queues.get(name)
        self._expect(name, view.now, queue, steps)
        return Assignment(name, steps)

    def _steps(self, name: str, waited: float | None = None) -> int:
        """In proportion to the queue that it has gone through, or else is expected to."""
        typical = self._sites.typical_delay()
        if waited is None:
            waited = self._sites.queues.get(name, QueueEstimate(typical, 0.0)).mean
        return pace_steps(waited, typical, self._settings.local_steps, most=self._settings.most)

    def _expect(self, name: str, now: float, queue: QueueEstimate | None, steps: int) -> None:
        """Keep when a site's answer is expected, where that is known."""
        self._expected.pop(name, None)
        if queue is not None and name in self._sites.speeds:
            arrival = now + queue.mean + steps * self._sites.speeds[name]
            self._expected[name] = arrival, arrival + queue.spread

    def _moment(self, view: View, have: int) -> float:
        """When to step; one that is overdue is expected at the end of its spread."""
        waiting = {answer.client_id for answer in view.waiting}  # they train after the step
        under_way = {*view.busy, *view.entering} - waiting
        if have < self._settings.min_updates and (under_way or {*view.idle} - waiting):
            return math.inf
        expected = [self._expected[name] for name in under_way if name in self._expected]
        moments = [mean if mean > view.now else latest for mean, latest in expected]
        return pace_close(have, view.began, view.now, moments)


class _Predictor:
    """What is expected of every site's queue and speed.

    Args:
        smoothing: Weight of a new measurement.
    """

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self.queues: dict[str, QueueEstimate] = {}
        self.speeds: dict[str, float] = {}

    def observe(self, answer: Answer, busy: float, guess: QueueEstimate | None = None) -> None:
        """Learn from an answer that took some seconds' work; of a new site, from a guess."""
        name = answer.client_id
        self.queues[name] = observe_queue(
            self.queues.get(name, guess), answer.queue_seconds, smoothing=self._smoothing
        )
        self.speeds[name] = seconds_per_step(
            self.speeds.get(name),
            max(busy, 1e-6),
            answer.steps,
            momentum=self._smoothing,
        )

    def typical_delay(self) -> float:
        """The median site's queue delay, 0 if none is known."""
        delays = [queue.mean for queue in self.queues.values()]
        return statistics.median(delays) if delays else 0.0

    def state(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "queues": {name: [queue.mean, queue.spread] for name, queue in self.queues.items()},
            "speeds": dict(self.speeds),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        queues = state.get("queues", {})
        self.queues = {name: QueueEstimate(*numbers) for name, numbers in queues.items()}
        self.speeds = dict(state.get("speeds", {}))
