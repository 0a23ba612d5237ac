"""No rounds: everybody trains all the time, and the server steps as updates arrive."""

from __future__ import annotations

from typing import Any

from fl.config import Section
from fl.server.schedulers.base import Answer, Assignment, Decision, Limits, View


class Async:
    """Every site trains all the time; the server steps when its buffer is full.

    FedAsync (Xie et al. 2019, https://arxiv.org/abs/1903.03934) steps at every update, FedBuff
    (Nguyen et al. 2022, https://arxiv.org/abs/2106.06639) at every K-th: the aggregator says.

    Args:
        settings: See `Settings`.
        limits: The run's; `updates_per_step` is the buffer's size.
    """

    keeps_late = True

    class Settings(Section):
        """`scheduler_kwargs` of AsyncScheduler: none."""

    def __init__(self, settings: Settings, limits: Limits) -> None:  # noqa: ARG002  (every scheduler is built like this)
        self._limits = limits
        self._buffer_size = limits.updates_per_step or 1

    def assign(self, view: View) -> list[Assignment]:
        """See `Scheduler.assign`: whoever is idle."""
        return [Assignment(name) for name in view.idle]

    def decide(self, view: View) -> Decision:
        """See `Scheduler.decide`."""
        fold = view.waiting[: self._buffer_size - len(view.folded)]
        have = len(view.folded) + len(fold)
        possible = len(view.clients) - len(view.failed)
        close = have >= self._buffer_size
        over = view.now >= view.began + self._limits.deadline
        if not close and possible < self._limits.needed:
            return Decision(hopeless=view.short(possible, self._limits.needed))
        if not close and over:
            return Decision(hopeless=view.short(self._buffer_size, self._buffer_size))
        return Decision(fold=fold, close=close)

    def wake(self, view: View) -> float:
        """See `Scheduler.wake`."""
        return view.began + self._limits.deadline

    def observe(self, answer: Answer) -> None:
        """See `Scheduler.observe`: it learns nothing."""

    def state(self) -> dict[str, Any]:
        """See `Scheduler.state`."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Scheduler.restore`."""
