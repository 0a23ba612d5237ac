"""Who trains when and how much, and when the server takes its next step.

A scheduler sees times and counts, never a model. The loop shows it a `View`; it answers with
assignments for idle sites, and with what becomes of the updates that have arrived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fl.transport import Ref


@dataclass(frozen=True)
class Answer:
    """An update that has arrived and lies where its site put it.

    Attributes:
        client_id: Whose.
        version: Steps that the server had taken when it sent the model.
        turn: Which of the site's trainings it is, from 1.
        update: Where the update is.
        num_samples: Samples it was trained on.
        steps: Minibatch steps it took.
        metrics: The client's own numbers.
        seconds: At the site, by phase.
        sent: When the task was sent, by the loop's clock; as much earlier as its site had waited
            for a worker, where it was sent ahead.
        arrived: When its answer came.
        num_validation_samples: Samples that it evaluated the model on before training, or 0.
    """

    client_id: str
    version: int
    turn: int
    update: Ref
    num_samples: int
    steps: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    sent: float
    arrived: float
    num_validation_samples: int = 0

    @property
    def queue_seconds(self) -> float:
        """What the site did not work on it: in a queue and on the way, 0 at least."""
        return max(self.arrived - self.sent - sum(self.seconds.values()), 0.0)


@dataclass(frozen=True)
class Limits:
    """What a run asks of every scheduler.

    Attributes:
        needed: Updates that a round needs to count; sites that must be there where there are none.
        deadline: Seconds from a round's start until it has to be over.
        updates_per_step: Updates that a step is made of, or None where the aggregator leaves that
            to the scheduler.
    """

    needed: int
    deadline: float
    updates_per_step: int | None = None


@dataclass(frozen=True)
class View:
    """What a scheduler decides by.

    Attributes:
        now: The loop's clock, in seconds.
        version: Steps that the server has taken.
        began: When it took the last one.
        clients: Every site, in the configuration's order.
        idle: Sites that can take a task now.
        entered: Those of them where a worker is there for a task, and the seconds that it took.
        busy: Sites with a task, and the version that each was sent.
        entering: Sites that wait for a worker, and no more.
        pending: Lost sites of which it is not known yet whether they are offline.
        offline: Lost sites that are, each with the reason.
        waiting: Updates that have arrived and were neither folded in nor dropped.
        folded: Updates in the sum of the next step.
        failed: Sites that get no task before the next step, each with the reason.
    """

    now: float
    version: int
    began: float
    clients: Sequence[str]
    idle: Sequence[str] = ()
    entered: Mapping[str, float] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    entering: Sequence[str] = ()
    pending: Sequence[str] = ()
    offline: dict[str, str] = field(default_factory=dict)
    waiting: Sequence[Answer] = ()
    folded: Sequence[Answer] = ()
    failed: dict[str, str] = field(default_factory=dict)

    def served(self) -> set[str]:
        """Whose update of this version has arrived."""
        answers = [*self.folded, *self.waiting]
        return {answer.client_id for answer in answers if answer.version == self.version}

    def short(self, possible: int, needed: int) -> str:
        """Why a round cannot get what it needs, site by site.

        Args:
            possible: Updates that it could have; where these are enough, its time is up.
            needed: Updates that it needs.

        Returns:
            What follows "round 3 can have".
        """
        waited = f"no answer within {self.now - self.began:.1f} s"
        silent = dict.fromkeys([*self.busy, *self.entering, *self.pending], waited)
        named = "; ".join(
            f"{name}: {reason}" for name, reason in (silent | self.offline | self.failed).items()
        )
        have = possible if possible < needed else len(self.folded) + len(self.waiting)
        return f"{have} of the {needed} updates it needs: {named}"


@dataclass(frozen=True)
class Assignment:
    """What a site shall do next.

    Attributes:
        client_id: The site.
        steps: Minibatch steps, or None for what `train_configs` say.
        learning_rate_scale: Factor of its learning rate.
        enters: Whether it shall only wait for a worker, and be idle again once one is there: the
            model that it is sent then is the newest.
    """

    client_id: str
    steps: int | None = None
    learning_rate_scale: float = 1.0
    enters: bool = False


@dataclass(frozen=True)
class Decision:
    """What becomes of the updates that have arrived, and of the round.

    Attributes:
        fold: Those to be folded into the sum, in this order.
        drop: Those that will not be used.
        close: Whether the server takes its step once they are folded in.
        hopeless: Why the round cannot get what it needs any more, or None.
    """

    fold: Sequence[Answer] = ()
    drop: Sequence[Answer] = ()
    close: bool = False
    hopeless: str | None = None


class Scheduler(Protocol):
    """Decides who trains and when the server steps.

    A class of these has its settings, a `fl.config.Section`, as `Settings`, and is called with one
    of them and the run's `Limits`.

    Attributes:
        keeps_late: Whether updates of earlier versions are of use.
    """

    keeps_late: bool

    def assign(self, view: View) -> list[Assignment]:
        """Give idle sites work.

        Args:
            view: What is known.

        Returns:
            Work for some of `view.idle`, each at most once.
        """

    def decide(self, view: View) -> Decision:
        """Say what becomes of the updates that have arrived, and whether to step.

        Args:
            view: What is known.

        Returns:
            The decision.
        """

    def wake(self, view: View) -> float:
        """When to be asked again if nothing else happens before.

        Args:
            view: What is known.

        Returns:
            A moment of the loop's clock.
        """

    def observe(self, answer: Answer) -> None:
        """Learn from an answer, before anything is decided about it.

        Args:
            answer: The answer.
        """

    def state(self) -> dict[str, Any]:
        """What it has learnt, as JSON types, for the checkpoint."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; a run that begins does not ask for it."""
