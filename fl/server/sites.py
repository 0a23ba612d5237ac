"""The state of every site, from its answers, its heartbeats and deadlines.

A task that was sent may never answer: the SDK's future has no time limit, and a task that was in an
engine when that died is lost, not redelivered. So no news is never taken for good news. A site is

    ready     free for a task
    queued    sent a task that no worker was seen at: it may be waiting in a batch queue
    training  sent a task that a worker was seen at
    late      sent a task that has outlived its round
    lost      its endpoint or its task is gone
    back      lost before, and online again: it gets the next task
    suspended its answers were not to be believed: it gets no task any more

An endpoint counts as offline after two checks in a row that say so. Where it is online but a task
is out for long, another small task looks for the first one's record at the site. If there is none,
and the answer does not come either, the first one died with its worker. If the engine fails the
second, the first is as lost: should its answer come after all, it is taken.

A site behind a batch queue can be sent ahead (`Sites.enter`): a task that asks nothing waits in the
queue, and what the site is to do is sent once that is answered. Nothing that is out of date by then
has waited with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum

from fl.config import Client
from fl.endpoints.base import Endpoints, EngineError, JSONObject, SiteError, answer_of, legible
from fl.errors import FederationError
from fl.server.checkpoint import SiteMemory
from fl.server.clock import Clock
from fl.server.events import Listener, SiteChanged, Warned
from fl.server.patience import GONE, PASSING, WAY_ATTEMPTS, patience_after
from fl.server.requests import enter_request, progress_request

CHECK_SECONDS = 10.0
"""Between two checks of a site."""
SPACING_SECONDS = 1.0
"""Between two checks of any: the hosted service takes 20 requests in 10 s."""
MISSES = 2
"""Checks in a row that must find an endpoint offline: one may fall between two heartbeats."""
PROBE_SECONDS = 30.0
"""A task that is out for longer, and for twice as long as the site's last, is looked for."""
DOUBT_SECONDS = 10.0
"""The same where the task before was lost: an engine whose job is refused takes its user endpoint
down with it, and now and then the failure that this was about to report."""
GRACE_SECONDS = 5.0
"""How long the answer may take once its record is gone: a task removes it before it answers."""


class State(StrEnum):
    """What a site is doing; see the module."""

    READY = "ready"
    QUEUED = "queued"
    TRAINING = "training"
    LATE = "late"
    LOST = "lost"
    BACK = "back"
    SUSPENDED = "suspended"


@dataclass(frozen=True)
class Task:
    """A task that was sent.

    Attributes:
        client_id: To whom.
        version: Steps that the server had taken: which model was sent.
        turn: Which of the site's trainings it is, from 1; sent again, it is the same.
        job: The server's name for it; sent again, it gets another.
        sent: When, by the loop's clock.
        future: Its answer to come.
        waited: Seconds that its site had waited for a worker before; 0 if it was not sent ahead.
        enters: Whether it only waits for a worker: it is of no version and no turn.
        recovered: Whether an earlier process sent it: how long it took is not known.
    """

    client_id: str
    version: int
    turn: int
    job: str
    sent: float
    future: Future[JSONObject]
    waited: float = 0.0
    enters: bool = False
    recovered: bool = False


@dataclass(frozen=True)
class Arrival:
    """A task that ended, with a result or with the reason why there is none.

    Attributes:
        task: The task.
        outcome: What the site returned, or why it returned nothing.
        repeated: Whether the answer of the same turn, or of a later one, has come before.
    """

    task: Task
    outcome: JSONObject | FederationError
    repeated: bool = False


@dataclass
class Site:
    """One site, and what is known of its task.

    Attributes:
        client: The site.
        state: What it is doing.
        reason: Why it is lost, or sits out; else empty.
        task: Its task, or None.
        turn: Its latest training, from 1; 0 before the first.
        version: The model that it was sent for that.
        answered: Whether that training's update has arrived.
        waited: Seconds that it waited for the worker which is there for its next task, or None.
        sits_out: Whether it gets no task before the server's next step.
        suspended: Why it gets none in this run any more, or empty.
        offline: Whether it was seen to be offline: a lost site may only have lost its task.
        losses: Times that its task was lost since the server's last step.
        misses: Checks in a row that found it offline.
        last_seconds: How long its last task took, or None.
        check: The check that is open, or None.
        next_check: When it is checked next.
        probe: The probe that is open, or None.
        next_probe: When its task is looked for.
        probe_pause: Seconds until it is looked for again.
        gone_since: When its task's record was found to be gone, or None.
        missed: When the task was sent that last found its model gone, or None.
    """

    client: Client
    state: State = State.READY
    reason: str = ""
    task: Task | None = None
    turn: int = 0
    version: int = -1
    answered: bool = True
    waited: float | None = None
    sits_out: bool = False
    suspended: str = ""
    offline: bool = False
    losses: int = 0
    misses: int = 0
    last_seconds: float | None = None
    check: Future[str | None] | None = None
    next_check: float = 0.0
    probe: Future[JSONObject] | None = None
    next_probe: float = 0.0
    probe_pause: float = PROBE_SECONDS
    gone_since: float | None = None
    missed: float | None = None

    @property
    def idle(self) -> bool:
        """Whether it can take a task now."""
        return self.task is None and self.state is not State.LOST and not self.sits_out

    @property
    def pending(self) -> bool:
        """Whether it is lost, but may be back as soon as it is asked."""
        return self.state is State.LOST and not self.offline and not self.sits_out


class Sites:
    """All sites of a federation.

    Args:
        clients: The sites.
        endpoints: Where they are.
        clock: What is waited by.
        listen: Told of every change.
        patience: Seconds after which a task is late; after twice as many it is given up.
    """

    def __init__(
        self,
        clients: Iterable[Client],
        endpoints: Endpoints,
        clock: Clock,
        listen: Listener,
        patience: float,
    ) -> None:
        self._endpoints, self._clock, self._listen = endpoints, clock, listen
        self._patience = patience
        self._sites = {client.client_id: Site(client) for client in clients}
        self._check_seconds = max(CHECK_SECONDS, len(self._sites) * SPACING_SECONDS)
        self._next_look = 0.0
        self._ended: deque[Task] = deque()  # appended to by the threads that resolve futures
        self._given_up: set[str] = set()
        self._warned = False

    def __iter__(self) -> Iterator[tuple[str, Site]]:
        return iter(self._sites.items())

    def __getitem__(self, client_id: str) -> Site:
        return self._sites[client_id]

    def restore(self, client_id: str, memory: SiteMemory) -> None:
        """Go on from where an earlier process left a site.

        Args:
            client_id: The site.
            memory: What is kept of it.
        """
        site = self._sites[client_id]
        site.turn, site.version, site.answered = memory.turn, memory.version, memory.answered

    def turn(self, client_id: str, version: int) -> int:
        """Which training a site does next: a lost one again, if the model is still the same.

        Args:
            client_id: An idle site.
            version: The model's.

        Returns:
            Its number, from 1.
        """
        site = self._sites[client_id]
        again = site.version == version and not site.answered
        return site.turn if again else site.turn + 1

    def send(self, client_id: str, version: int, job: str, request: JSONObject) -> Task:
        """Send a site the task of its next turn.

        Args:
            client_id: An idle site.
            version: The model's.
            job: A name that no other task has.
            request: What the site shall do.

        Returns:
            The task.
        """
        site, turn = self._sites[client_id], self.turn(client_id, version)
        future = self._submit(site, request)
        waited, site.waited = site.waited or 0.0, None
        task = Task(client_id, version, turn, job, self._clock.now(), future, waited)
        self.adopt(task)
        return task

    def enter(self, client_id: str, job: str) -> None:
        """Have a site wait in its batch queue; it is idle again once a worker is there.

        Args:
            client_id: An idle site.
            job: A name that no other task has.
        """
        site = self._sites[client_id]
        future = self._submit(site, enter_request(site.client, job))
        now = self._clock.now()
        self._await(site, Task(client_id, -1, site.turn, job, now, future, enters=True))

    def adopt(self, task: Task) -> None:
        """Wait for a task that is at its site.

        Args:
            task: The task of an idle site.
        """
        site = self._sites[task.client_id]
        site.turn, site.version, site.answered = task.turn, task.version, False
        self._await(site, task)

    def _await(self, site: Site, task: Task) -> None:
        """Look after a task until it ends."""
        site.task, site.gone_since, site.probe, site.check = task, None, None, None
        site.misses = 0
        site.next_check = task.sent + self._check_seconds
        pause = DOUBT_SECONDS if site.losses else PROBE_SECONDS
        site.probe_pause = max(pause, 2 * (site.last_seconds or 0.0))
        site.next_probe = task.sent + site.probe_pause
        self._turn(site, State.QUEUED)
        task.future.add_done_callback(lambda _: self._wake(task))

    def wait(self, until: float) -> list[Arrival]:
        """Wait for answers, and look after sites meanwhile.

        Args:
            until: How long at most, by the loop's clock.

        Returns:
            What ended, in the order of its ending; nothing if only a state changed or time is up.
        """
        if not self._ended:
            self._clock.wait(min(until, self._next_look) - self._clock.now())
        arrivals = [arrival for task in self._drain() if (arrival := self._end(task))]
        if self._clock.now() >= self._next_look:
            self._next_look = self._clock.now() + self._clock.tick
            arrivals += [arrival for _, site in self if (arrival := self._look(site))]
        return arrivals

    def sit_out(self, client_id: str, reason: str) -> None:
        """Give a site no task until the server's next step.

        Args:
            client_id: The site.
            reason: What was wrong with its answer.
        """
        site = self._sites[client_id]
        site.sits_out, site.reason = True, legible(reason)

    def suspend(self, client_id: str, reason: str) -> None:
        """Give a site no task in this run any more.

        Args:
            client_id: The site.
            reason: What was wrong with its answers.
        """
        site = self._sites[client_id]
        site.suspended, site.sits_out = reason, True
        self._turn(site, State.SUSPENDED)

    def lose(self, client_id: str, turn: int, error: FederationError) -> Arrival | None:
        """An answer came, but its update cannot be had: the site is to do that turn again.

        Args:
            client_id: The site.
            turn: The answer's.
            error: Why not.

        Returns:
            The end of it, if that has happened too often.
        """
        site = self._sites[client_id]
        if site.turn != turn:
            return None  # it is at its next turn already
        site.answered = False
        if site.task is not None:
            return None  # it was sent the turn twice: the other answer counts
        task = Task(client_id, site.version, turn, "", self._clock.now(), Future())
        return self._lose(site, task, error)

    def stepped(self, *, late: bool) -> None:
        """The server took a step: who sat out may try again.

        Args:
            late: Whether what is still out is late by that.
        """
        for _, site in self:
            # A way that all that patience did not bring back is tried once a round from then on.
            site.losses = WAY_ATTEMPTS - 1 if site.losses >= WAY_ATTEMPTS else 0
            site.sits_out = bool(site.suspended)
            if late and site.task is not None:
                self._turn(site, State.LATE)

    def _submit(self, site: Site, request: JSONObject) -> Future[JSONObject]:
        """Submit; a refusal comes by the future too, as one that comes later does."""
        try:
            return self._endpoints.submit(site.client, request)
        except FederationError as error:
            refused: Future[JSONObject] = Future()
            refused.set_exception(error)
            return refused

    def _wake(self, task: Task) -> None:
        self._ended.append(task)
        self._clock.wake()

    def _drain(self) -> Iterator[Task]:
        while self._ended:
            yield self._ended.popleft()

    def _end(self, task: Task) -> Arrival | None:
        """A task's future is done."""
        site = self._sites[task.client_id]
        given_up = task.job in self._given_up
        self._given_up.discard(task.job)
        try:
            result = answer_of(task.future, self._endpoints)
        except FederationError as error:
            return None if given_up else self._failed(site, task, error)
        if not given_up:
            site.task, site.misses = None, 0
            self._turn(site, State.READY)
        if task.enters:
            site.waited = site.waited if given_up else self._clock.now() - task.sent
            return None
        if not given_up:
            site.last_seconds = self._clock.now() - task.sent
        repeated = task.turn != site.turn or site.answered
        if task.turn == site.turn:  # an earlier one's answer says nothing of what is out
            site.answered = True
        return Arrival(task, result, repeated)

    def _failed(self, site: Site, task: Task, error: FederationError) -> Arrival | None:
        """A task ended without a result: for good, or worth another try."""
        if isinstance(error, SiteError) and error.kind not in PASSING:
            site.task, site.sits_out = None, True
            self._turn(site, State.READY, str(error))
            return Arrival(task, error)
        if isinstance(error, SiteError) and error.kind == GONE:
            site.missed = task.sent
        return self._lose(site, task, error)

    def _lose(self, site: Site, task: Task, error: FederationError) -> Arrival | None:
        """A site's task is gone; it is sent again once a check finds the site online."""
        site.task, site.check = None, None  # one that was asked before says nothing of now
        site.losses += 1
        attempts, pause = patience_after(error, site.losses)
        site.next_check = self._clock.now() + pause
        if site.losses >= attempts:
            site.sits_out = True
            self._turn(site, State.READY, str(error))
            return Arrival(task, error)
        self._turn(site, State.LOST, str(error))
        return None

    def _give_up(self, site: Site, task: Task, reason: str) -> Arrival | None:
        """Stop waiting for a task; should its answer come after all, it is passed on."""
        self._given_up.add(task.job)
        return self._lose(site, task, FederationError(reason))

    def _look(self, site: Site) -> Arrival | None:
        """Look after one site: its deadline, its heartbeat, its job."""
        now = self._clock.now()
        if site.task is None and site.state is not State.LOST:
            return None
        self._check(site, now)
        if site.task is None:
            return None
        if site.offline:
            return self._give_up(site, site.task, site.reason)
        age = now - site.task.sent
        if age > 2 * self._patience:
            return self._give_up(site, site.task, f"no answer within {age:.0f} s")
        if age > self._patience and site.state is not State.LATE:
            self._turn(site, State.LATE)
        if site.client.endpoint_id == "local":
            return None  # a process here cannot die unnoticed
        return self._probe(site, site.task, now)

    def _check(self, site: Site, now: float) -> None:
        """Ask the service whether the site is online; note what it said."""
        if site.check is None:
            if now >= site.next_check:
                site.check = self._clock.call(lambda: self._endpoints.health(site.client))
            return
        if not site.check.done():
            return
        check, site.check = site.check, None
        site.next_check = now + self._check_seconds
        try:
            down = check.result()
        except FederationError as error:
            self._warn(f"waiting for the service: {error}")
            return
        self._warned = False
        if down is None:
            site.misses, site.offline = 0, False
            if site.state is State.LOST:
                self._turn(site, State.BACK)
            return
        site.misses += 1
        if site.misses >= MISSES or site.state is State.LOST:
            site.offline, site.reason = True, down

    def _warn(self, message: str) -> None:
        """Say once what is waited for, until it is there again."""
        if not self._warned:
            self._warned = True
            self._listen(Warned(message))

    def _probe(self, site: Site, task: Task, now: float) -> Arrival | None:
        """Look for the job of a task that is out for long."""
        if site.gone_since is not None:
            if now - site.gone_since > GRACE_SECONDS:
                return self._give_up(site, task, "its worker died: the job is no longer there")
            return None
        if site.probe is not None and site.probe.done():
            probe, site.probe = site.probe, None
            return self._found(site, task, probe, now)
        if now >= site.next_probe:
            # One that got no answer may be as lost as what it looked for: another follows, later.
            site.probe_pause *= 2
            site.next_probe = now + site.probe_pause
            site.probe = self._submit(site, progress_request(site.client, task.job))
        return None

    def _found(
        self, site: Site, task: Task, probe: Future[JSONObject], now: float
    ) -> Arrival | None:
        """What a probe says of the site's task."""
        try:
            found = answer_of(probe, self._endpoints)
        except EngineError as error:
            return self._give_up(site, task, str(error))
        except FederationError:
            return None  # it says nothing of the task: a check or the next probe will
        if found.get("recorded") is not True:
            return None
        if found.get("alive") is not True:
            site.gone_since = now
        elif site.state is State.QUEUED:
            self._turn(site, State.TRAINING)
        return None

    def _turn(self, site: Site, state: State, reason: str = "") -> None:
        if site.suspended:
            state, reason = State.SUSPENDED, site.suspended
        if state is not State.LOST:
            site.offline = False
        reason = legible(reason)
        if reason or not site.sits_out:  # or it says why it does
            site.reason = reason
        if site.state is not state:
            site.state = state
            self._listen(SiteChanged(site.client.client_id, state.value, reason))
