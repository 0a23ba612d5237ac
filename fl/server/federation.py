"""The loop: send models, gather updates, take a step; federated averaging and what came after it.

It knows clients, requests and sums. It knows no Globus, no ProxyStore, no screen and no algorithm:
those come in as `Endpoints`, `Transport`, listeners, a `Scheduler` (who trains, and when the server
steps) and an `Aggregator` (what a step is). A round is what happens between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from uuid import uuid4

from fl.client.results import Evaluation
from fl.config import Federation
from fl.endpoints.base import Endpoints, SiteError, legible
from fl.errors import FederationError
from fl.sealing import ServerKeys
from fl.secure_sum.keys import SecureSumError
from fl.server.aggregators import Aggregator, Contribution, SecureFedAvg
from fl.server.answers import read_answer
from fl.server.checkpoint import SiteMemory, Snapshot
from fl.server.clock import Clock
from fl.server.evaluation import is_due, of_answers
from fl.server.events import ClientFailed, Listener, RoundStarted, Warned
from fl.server.masking import Masking
from fl.server.objects import Objects
from fl.server.requests import train_request, training
from fl.server.round import Round
from fl.server.schedulers import Answer, Assignment, Scheduler, View
from fl.server.sites import Arrival, Sites, State, Task
from fl.server.updates import Updates
from fl.server.waiting import Waiting
from fl.tensors import Data, Tensors, pieces
from fl.transport import GoneError, Ref, Store, Transport, TransportError, UnreachableError

Evaluator = Callable[[Tensors], Evaluation]

REJECTIONS = 3
"""Answers in a row that are not believed before their site gets no more tasks."""


class RoundError(FederationError):
    """A round cannot get the updates that it needs."""


@dataclass(frozen=True)
class Parts:
    """What a server works with.

    Attributes:
        endpoints: Where clients run.
        transport: The server's way for models.
        scheduler: Decides who trains, and when the server steps.
        aggregator: Makes the step.
        clock: What is waited by.
        evaluate: Evaluates a global model at the server, or None.
        listen: Told of everything that happens.
        save: Given a snapshot after every step; it returns once that cannot be lost any more.
        reload: Reads the model of the last snapshot that was saved; None has it held in memory.
        sent: Told of every task that was sent, and of its model.
        base: The digest of the model's frozen parameters, which sites have; None where none are.
        sealing: The run's keys, where models and updates are sealed.
    """

    endpoints: Endpoints
    transport: Transport
    scheduler: Scheduler
    aggregator: Aggregator
    clock: Clock
    evaluate: Evaluator | None
    listen: Listener
    save: Callable[[Snapshot], None]
    sent: Callable[[Task, Ref], None]
    reload: Callable[[], Tensors] | None = None
    base: str | None = None
    sealing: ServerKeys | None = None


class Server:
    """The server of one federation.

    Args:
        federation: The configuration.
        parts: What it works with.
        run_id: The run's name.
    """

    def __init__(self, federation: Federation, parts: Parts, run_id: str) -> None:
        self._federation, self._run_id, self._base = federation, run_id, parts.base
        self._transport = parts.transport
        self._scheduler, self._aggregator = parts.scheduler, parts.aggregator
        self._clock, self._evaluate = parts.clock, parts.evaluate
        self._listen, self._save, self._sent = parts.listen, parts.save, parts.sent
        self._reload = parts.reload
        self._sealing, self._endpoints = parts.sealing, parts.endpoints
        self._masking = (
            Masking(federation, parts.endpoints, parts.aggregator, run_id)
            if isinstance(parts.aggregator, SecureFedAvg)
            else None
        )
        self._rounds = federation.server_configs.num_global_epochs
        self._patience = federation.server_configs.round_deadline
        self._sites = Sites(
            federation.clients, parts.endpoints, parts.clock, parts.listen, self._patience
        )
        self._names = [client.client_id for client in federation.clients]
        self._training = {c.client_id: training(federation, c) for c in federation.clients}
        self._memory = {name: SiteMemory() for name in self._names}
        self._saved: dict[str, int | None] = {}
        self._objects = Objects(parts.transport, parts.clock, parts.listen, self._patience)
        self._waiting = Waiting()
        self._updates = Updates(
            federation,
            run_id,
            parts.transport,
            self._objects,
            parts.aggregator,
            parts.clock,
            parts.sealing,
        )
        self._stopping = self._final = False

    def stop(self, *, final: bool = False) -> None:
        """End the run with the round that goes on.

        Args:
            final: Whether it then has what it was to have: nobody goes on with it.
        """
        self._stopping, self._final = True, self._final or final

    def fit(
        self, start: Snapshot, recovered: Sequence[Task] = (), left: Sequence[Ref] = ()
    ) -> Snapshot:
        """Train.

        Args:
            start: What travels of the initial global model, or what an earlier run left. Its
                tensors are taken out of it: who holds it to the end does not hold them.
            recovered: Tasks that an earlier process sent and whose answers may still come.
            left: Models that it put and could not evict: those tasks may need them to the end.

        Returns:
            What there is after the last step: that of round `num_global_epochs`, or an earlier
            one if `stop` was called. What the aggregator remembers is in what was saved alone.

        Raises:
            RoundError: A round cannot get the updates that it needs.
            FederationError: The server's own transport or disk failed.
        """
        self._restore(start)
        self._objects.keep(left)
        for ref in start.outlived:
            self._objects.done_with(Ref.from_json(ref))
        # What is still out of an earlier process's secure sum, nobody can take the masks off.
        for task in recovered if self._masking is None else ():
            if self._scheduler.keeps_late or task.version == start.version:
                self._sites.adopt(task)
        snapshot = replace(start, weights=start.weights.copy(), aggregator={})
        start.weights.clear()
        start.aggregator.clear()
        this = Round(snapshot, self._clock, self._reload)
        self._updates.expect(this.layout)
        try:
            while snapshot.version < self._rounds and not self._stopping:
                self._gather(this)
                snapshot, this = self._step(this)
        finally:
            self._forget(this, over=self._final or snapshot.version >= self._rounds)
        return snapshot

    def _gather(self, this: Round) -> None:
        """Have sites train until the scheduler has what it wants for a step."""
        while not self._decide(this):
            view = self._view(this)
            if assignments := self._masked(this, self._scheduler.assign(view)):
                self._assign(this, assignments)
                view = self._view(this)
            with this.phase("wait"):
                retry = self._waiting.next_retry(self._clock.now())
                arrivals = self._sites.wait(min(self._scheduler.wake(view), retry))
            for arrival in arrivals:
                self._receive(this, arrival)

    def _decide(self, this: Round) -> bool:
        """Do with updates what the scheduler says; true to step."""
        while True:
            decision = self._scheduler.decide(self._view(this))
            if decision.hopeless is not None:
                raise RoundError(f"round {this.number} can have {decision.hopeless}")
            for answer in decision.drop:
                self._done_with(answer)
            folded = [self._fold(this, answer) for answer in decision.fold]
            if not decision.close or all(folded):
                return decision.close
            # Too little may be left for the step now: that is decided anew.

    def _assign(self, this: Round, assignments: Sequence[Assignment]) -> None:
        """Send idle sites the tasks that the scheduler has for them."""
        ahead = [assignment.client_id for assignment in assignments if assignment.enters]
        trained = [assignment for assignment in assignments if not assignment.enters]
        with this.phase("submit"):
            for name in ahead:
                self._sites.enter(name, self._job(name, "enter"))
        if trained:
            model = self._model(this)
            with this.phase("submit"):
                for assignment in trained:
                    self._send(this, assignment, model)
        if not this.started:
            this.started = True
            self._listen(RoundStarted(this.number, [a.client_id for a in assignments]))
            with this.phase("evict"):  # now that the sites are busy
                self._objects.evict_used()

    def _masked(self, this: Round, assignments: list[Assignment]) -> list[Assignment]:
        """Those whose updates may be in the sum; sites agree on its masks before the first."""
        if self._masking is None or not assignments:
            return assignments
        if not this.started:
            names = [assignment.client_id for assignment in assignments]
            with this.phase("agree"):
                failed = self._masking.begin(this.number, names)
            for name, error in failed.items():
                self._fail(this, name, error)
            for name in self._names:
                if self._masking.terms(name) is None:
                    late = "it was not there when the round's sites agreed on masks"
                    self._sites.sit_out(name, str(failed.get(name, late)))
            this.opened = self._clock.now()
        return [a for a in assignments if self._masking.terms(a.client_id) is not None]

    def _model(self, this: Round) -> Ref:
        """The round's model, put once for all who need it, and again if that was lost."""
        missed = [site.missed for _, site in self._sites if site.missed is not None]
        model = self._objects.model(this.version, max(missed, default=None))
        if model is None:
            with this.phase("broadcast"):
                sent = {**this.weights, **self._aggregator.extra(this.weights)}
                encoded: Sequence[Data] = pieces(sent)
                if self._sealing is not None:
                    encoded = list(self._sealing.seal_model(encoded))
                model = self._objects.put_model(this.version, encoded)
        return model

    def _job(self, name: str, what: object) -> str:
        """A name unlike any other task's, of a process too that was killed and whose tasks live."""
        return f"{self._run_id}.{name}.{what}.{uuid4().hex[:12]}"

    def _send(self, this: Round, assignment: Assignment, model: Ref) -> None:
        """Send one site its task."""
        name = assignment.client_id
        turn = self._sites.turn(name, this.version)
        job = self._job(name, turn)
        most = self._updates.most_bytes(model.size)
        request = train_request(
            self._training[name],
            model,
            turn=turn,
            job=job,
            run_id=self._run_id,
            base=self._base,
            evaluate=is_due(self._federation, this.version),
            update=self._aggregator.wants,
            steps=assignment.steps,
            learning_rate_scale=assignment.learning_rate_scale,
            control_version=self._memory[name].accepted,
            control_saved=self._saved.get(name),
            upload=self._objects.insist(lambda: self._transport.grant(most)),
            sealing=self._sealing.for_sites() if self._sealing is not None else None,
            masking=self._masking.terms(name) if self._masking is not None else None,
        )
        task = self._sites.send(name, this.version, job, request)
        this.bytes_down += model.size
        self._sent(task, model)

    def _receive(self, this: Round, arrival: Arrival) -> None:
        """Read an answer with suspicion; its update waits where it is."""
        task, outcome = arrival.task, arrival.outcome
        if isinstance(outcome, FederationError):
            self._fail(this, task.client_id, outcome)
            return
        try:
            answer = read_answer(task, outcome, self._clock.now())
        except FederationError as error:
            self._reject(this, task.client_id, error)
            self._objects.discard(outcome)
            return
        if arrival.repeated:
            self._objects.done_with(answer.update)
        else:
            if not task.recovered:
                self._scheduler.observe(answer)
            self._waiting.add(answer)

    def _fold(self, this: Round, answer: Answer) -> bool:
        """Fetch an update, check it and fold it in; false if that cannot be done, or not yet."""
        if self._sites[answer.client_id].suspended:
            self._done_with(answer)
            return False
        memory = self._memory[answer.client_id]
        try:
            with this.phase("collect"):
                update = self._updates.fetch(this, answer)
                size = self._updates.require_norm(this, update, self._norms())
        except (UnreachableError, GoneError) as error:
            self._ask_again(this, answer, error)
            return False
        except FederationError as error:
            self._refuse(this, answer, error)
            return False
        memory.num_samples = answer.num_samples
        try:
            with this.phase("aggregate"):
                self._aggregator.add(update, self._contribution(this, answer))
        except ValueError as error:  # it came too late to weigh anything: nobody lied
            self._done_with(answer)
            reason = FederationError(f"its update cannot be weighed: {error}")
            self._sites.sit_out(answer.client_id, str(reason))
            self._fail(this, answer.client_id, reason)
            return False
        self._done_with(answer)
        memory.accepted, memory.norm, memory.rejected = answer.turn, size, 0
        this.folded.append(answer)
        self._listen(this.received(answer))
        return True

    def _norms(self) -> Iterator[float]:
        """Of each site's last update that was used."""
        return (memory.norm for memory in self._memory.values() if memory.norm is not None)

    def _refuse(self, this: Round, answer: Answer, error: FederationError) -> None:
        """An update is not believed."""
        self._done_with(answer)
        self._reject(this, answer.client_id, error)

    def _reject(self, this: Round, name: str, error: FederationError) -> None:
        """A site's answer is not believed: it is named and counted, and not borne for ever."""
        memory = self._memory[name]
        memory.rejected += 1
        self._sites.sit_out(name, str(error))
        self._fail(this, name, error, memory.rejected)
        if memory.rejected >= REJECTIONS:
            self._suspend(name, f"{memory.rejected} answers in a row were refused, last: {error}")

    def _suspend(self, name: str, reason: str) -> None:
        self._sites.suspend(name, reason)
        told = legible(reason)
        self._listen(Warned(f"{name} is suspended for the rest of the run: {told}"))

    def _ask_again(self, this: Round, answer: Answer, error: TransportError) -> None:
        """An update did not come: ask for it later, or in the end have its site train again."""
        worthwhile = self._waiting.postpone(answer, self._clock.now())
        if isinstance(error, GoneError) or not worthwhile:
            self._done_with(answer)
            if arrival := self._sites.lose(answer.client_id, answer.turn, error):
                self._receive(this, arrival)

    def _done_with(self, answer: Answer) -> None:
        """An answer is used, or of no use: its update is evicted after the next step."""
        self._waiting.remove(answer)
        self._objects.done_with(answer.update)

    def _contribution(self, this: Round, answer: Answer) -> Contribution:
        known = [memory.num_samples for memory in self._memory.values() if memory.num_samples]
        everybody = sum(known) / len(known) * len(self._memory)
        return Contribution(
            client_id=answer.client_id,
            num_samples=answer.num_samples,
            steps=answer.steps,
            staleness=this.version - answer.version,
            share=min(answer.num_samples / everybody, 1.0),
        )

    def _step(self, this: Round) -> tuple[Snapshot, Round]:
        """Take the step, and keep its result: what it was made of may be evicted from then on."""
        self._unmask(this)
        with this.phase("aggregate"):
            weights = self._aggregate(this)
        this.let_go()
        with this.phase("evaluate"):
            evaluation = self._evaluate(weights) if self._evaluate else None
        if not self._scheduler.keeps_late:
            self._name_the_missing(this)
        for found in of_answers(this.folded, this.number):
            self._listen(found)
        self._listen(this.ended(evaluation, self._aggregator.report()))
        self._note_turns()
        snapshot = self._snapshot(this.number, weights)
        following = Round(snapshot, self._clock, self._reload)
        self._keep(snapshot, following)
        self._note_saved()
        self._sites.stepped(late=not self._scheduler.keeps_late)
        with following.phase("evict"):
            tasks = [site.task for _, site in self._sites]
            needed = {task.version for task in tasks if task is not None}
            self._objects.evict_models({following.version, *needed})
        # An optimizer's memory may be two models, which the next step replaces.
        return replace(snapshot, aggregator={}), following

    def _keep(self, snapshot: Snapshot, following: Round) -> None:
        """Save a step; a large model that all get next is put meanwhile, which takes as long."""
        goes_on = snapshot.version < self._rounds and not self._stopping
        with ThreadPoolExecutor(1) as thread:
            saving = thread.submit(self._save, snapshot)
            try:
                if goes_on and following.is_large and not self._scheduler.keeps_late:
                    self._model(following)
            finally:
                with following.phase("checkpoint"):
                    saving.result()
                self._objects.saved()

    def _unmask(self, this: Round) -> None:
        """Take the masks off the sum, where there are any."""
        if self._masking is None:
            return
        try:
            with this.phase("unmask"):
                self._masking.unmask([answer.client_id for answer in this.folded])
        except SecureSumError as error:
            raise RoundError(f"round {this.number} cannot be unmasked: {error}") from error

    def _aggregate(self, this: Round) -> Tensors:
        try:
            return self._aggregator.step(this.weights)
        except ValueError as error:
            raise RoundError(f"round {this.number}: {error}") from error

    def _name_the_missing(self, this: Round) -> None:
        """Who gave nothing to a round that is over, and why."""
        named = {*(a.client_id for a in this.folded), *(f.client_id for f in this.failures)}
        for name, site in self._sites:
            if name not in named:
                waited = f"no answer within {this.age():.1f} s"
                gone = site.state in (State.LOST, State.SUSPENDED)
                reason = site.reason if gone else waited
                self._fail(this, name, FederationError(reason))

    def _view(self, this: Round) -> View:
        """What the scheduler decides by."""
        now = self._clock.now()
        postponed = self._waiting.postponed(now)
        idle, busy, entering, pending = [], {}, [], [*postponed]
        entered, offline, failed = {}, {}, {}
        for name, site in self._sites:  # once, for all: this is done for every arrival
            if site.waited is not None:
                entered[name] = site.waited
            if site.task is not None and site.task.enters:
                entering.append(name)
            elif site.task is not None:
                busy[name] = site.version
            elif site.idle:
                if name not in postponed:
                    idle.append(name)
            elif site.pending:
                pending.append(name)
            if site.offline:
                offline[name] = site.reason
            if site.sits_out:
                failed[name] = site.reason
        return View(
            now=now,
            version=this.version,
            began=this.opened,
            clients=self._names,
            idle=idle,
            entered=entered,
            busy=busy,
            entering=entering,
            pending=pending,
            offline=offline,
            waiting=self._waiting.ready(now),
            folded=this.folded,
            failed=failed,
        )

    def _note_turns(self) -> None:
        """Where every site is: a later process goes on from there."""
        for name, site in self._sites:
            memory = self._memory[name]
            memory.turn, memory.version = site.turn, site.version
            # Who goes on from here has not what waits: it is asked for again.
            memory.answered = site.answered and not self._waiting.holds(name, site.turn)

    def _snapshot(self, version: int, weights: Tensors) -> Snapshot:
        return Snapshot(
            version=version,
            weights=weights,
            aggregator=self._aggregator.state(),
            scheduler=self._scheduler.state(),
            sites=self._memory,
            outlived=self._objects.outlived(),
        )

    def _note_saved(self) -> None:
        """Whose updates a checkpoint has taken in: a server that is killed goes back to that."""
        self._saved = {name: memory.accepted for name, memory in self._memory.items()}

    def _restore(self, snapshot: Snapshot) -> None:
        if snapshot.aggregator:  # a run that begins has none
            try:
                self._aggregator.restore(snapshot.aggregator)
            except ValueError as error:
                raise FederationError(
                    f"the checkpoint cannot be gone on from: {error}; resume with the version of "
                    "fl that wrote it (versions.json names it)"
                ) from error
        if snapshot.lost:
            self._aggregator.lost(snapshot.lost)
        if snapshot.scheduler:
            self._scheduler.restore(snapshot.scheduler)
        for name, memory in snapshot.sites.items():
            self._memory[name] = memory
            self._sites.restore(name, memory)
            if memory.rejected >= REJECTIONS:
                self._suspend(name, f"{memory.rejected} answers in a row were refused")
        self._note_saved()

    def _fail(self, this: Round, name: str, error: FederationError, rejected: int = 0) -> None:
        trace = error.traceback if isinstance(error, SiteError) else None
        # An update's own words may be in it, such as its tensors' names.
        failure = ClientFailed(this.number, name, legible(str(error)), trace, rejected)
        this.failures.append(failure)
        self._listen(failure)

    def _forget(self, this: Round, *, over: bool) -> None:
        """The run has ended: evict all that it put or was sent.

        Where it may be gone on with, what a later process gets the answer of again stays at its
        site, which evicts it in the end by itself.
        """
        self._objects.ends()
        for arrival in self._sites.wait(self._clock.now()):
            if isinstance(arrival.outcome, FederationError):
                continue
            if over or not self._is_told_again(arrival.task.client_id):
                self._objects.discard(arrival.outcome)
        unsaved = [*this.folded, *self._waiting]
        for answer in list(self._waiting):
            self._done_with(answer)
        spared = [a.update for a in unsaved if not over and self._is_told_again(a.client_id)]
        self._objects.evict_all(spared)

    def _is_told_again(self, name: str) -> bool:
        """Whether a later process gets a site's answers again, and their updates lie there."""
        if self._masking is not None or not isinstance(self._transport, Store):
            return False
        return self._endpoints.session(self._sites[name].client) is not None
