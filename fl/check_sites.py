"""What a worker at every site finds, all of them asked at the same time."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.filesize import decimal

from fl.check_server import Sent
from fl.client.check import Item, versions
from fl.config import Client, Federation
from fl.endpoints.base import Endpoints, EngineError, JSONObject, SiteError, answer_of, legible
from fl.errors import FederationError, in_one_line
from fl.server.clock import Clock
from fl.server.requests import check_request, progress_request, rehearse_request
from fl.transport import Ref, Transport, TransportError

Found = tuple[Client, Item]
"""One thing that was tried at a site."""

NAMED = {"SiteCodeError": "site code", "PolicyRefusal": "policy"}
"""What is at fault where a site refuses the whole task, by the kind of its error; else a worker."""

SKEW_SECONDS = 5.0
"""How far a worker's clock may be from the server's before logs of both are hard to read."""

LEAST_FETCH_SECONDS = 10.0
"""What fetching a site's upload is given, though the deadline is near."""

LOOK_SECONDS = 30.0
"""A site that is silent for longer, and for twice as long each time, is sent a small task: an
engine whose job is refused takes its user endpoint down with it, and now and then the failure that
this was about to report. The small task then brings that failure."""


@dataclass(frozen=True)
class Ways:
    """How the server reaches sites, and the bytes that they shall fetch."""

    endpoints: Endpoints
    transport: Transport
    clock: Clock
    model: Ref
    sealing: dict[str, str] | None


def evict(transport: Transport, ref: Ref) -> None:
    """Take back what was put.

    Args:
        transport: Where.
        ref: The object.
    """
    with suppress(FederationError):  # the check has said already what does not answer
        transport.evict(ref)


class Sites:
    """All sites, asked at the same time; one that is silent holds no other up.

    Args:
        federation: The configuration.
        ways: How they are reached.
        deadline: Seconds that a site may take to answer.
        model: What a round would send, or None to try the way alone.
    """

    def __init__(
        self, federation: Federation, ways: Ways, deadline: float, model: Sent | None
    ) -> None:
        self._federation, self._ways = federation, ways
        self._deadline, self._model = deadline, model
        self._began = time.monotonic()
        self._until = time.time() + deadline
        self._tasks: dict[Future[JSONObject], tuple[Client, float]] = {}
        self._looks: dict[Future[JSONObject], Client] = {}

    def online(self) -> Iterator[Found]:
        """Whether the service sees each site's endpoint, as it says so.

        Yields:
            What it says of each.
        """
        asked = {
            self._ways.clock.call(partial(self._ways.endpoints.health, client)): client
            for client in self._federation.clients
        }
        for answer in self._as_they_come(asked):
            client = asked.pop(answer)
            try:
                down = answer.result()
            except FederationError as error:
                down = str(error)
            yield self._found(client, "endpoint", down, "online")
        for client in asked.values():
            silent = f"the service did not answer within {self._deadline:g} s"
            yield self._found(client, "endpoint", silent, "")

    def ask(self, client: Client) -> Iterator[Found]:
        """Send a site its task.

        Args:
            client: The site.

        Yields:
            The fault, if that is refused at once.
        """
        sent = time.time()
        try:
            request = self._request(client)
            self._tasks[self._ways.endpoints.submit(client, request)] = (client, sent)
        except FederationError as error:
            yield self._found(client, "worker", str(error), "")

    def _request(self, client: Client) -> JSONObject:
        ref, until = self._ways.model, self._until
        upload = self._ways.transport.grant(ref.size)
        if self._model is None:
            return check_request(client, ref, until=until, upload=upload)
        base, sealing = self._model.base, self._ways.sealing
        return rehearse_request(
            self._federation,
            client,
            ref,
            until=until,
            base=base,
            upload=upload,
            sealing=sealing,
            threshold=self._model.threshold,
        )

    def answers(self) -> Iterator[Found]:
        """What the workers found.

        Yields:
            Each site's as it answers.
        """
        ends, next_look = self._began + self._deadline, self._began + LOOK_SECONDS
        while self._tasks:
            until = min(ends, next_look)
            left = max(until - time.monotonic(), 0)
            done, _ = wait([*self._tasks, *self._looks], left, return_when=FIRST_COMPLETED)
            # A task's own answer says more than what a look at it found at the same time.
            for future in sorted(done, key=self._looks.__contains__):
                yield from self._taken(future)
            if done:
                continue
            if until == ends:
                break
            self._look()
            next_look += next_look - self._began
        for client, _ in self._tasks.values():
            silent = f"no worker answered within {self._deadline:g} s"
            yield self._found(client, "worker", silent, "")

    def _taken(self, future: Future[JSONObject]) -> Iterator[Found]:
        """What a task answered, or the failure that a look at a silent one found."""
        if future in self._tasks:
            client, sent = self._tasks.pop(future)
            yield from self._answer(client, future, sent)
            return
        client = self._looks.pop(future)
        silent = [task for task, (asked, _) in self._tasks.items() if asked == client]
        try:
            answer_of(future, self._ways.endpoints)
        except EngineError as error:
            for task in silent:
                del self._tasks[task]
                yield self._found(client, "worker", str(error), "")
        except FederationError:
            return  # it says nothing of the task

    def _look(self) -> None:
        """Send every site that is silent another task, which asks next to nothing."""
        for client, _ in self._tasks.values():
            with suppress(FederationError):
                request = progress_request(client, f"look-{uuid.uuid4()}")
                self._looks[self._ways.endpoints.submit(client, request)] = client

    def _as_they_come(self, futures: Iterable[Future[Any]]) -> Iterator[Future[Any]]:
        """Those that are done before the deadline."""
        left = self._deadline - (time.monotonic() - self._began)
        with suppress(TimeoutError):
            yield from as_completed(list(futures), timeout=max(left, 0))

    def _answer(self, client: Client, task: Future[JSONObject], sent: float) -> Iterator[Found]:
        try:
            found = answer_of(task, self._ways.endpoints)
            items = [_item(**item) for item in found["items"]]
            host = legible(str(found["host"]))
            theirs = {str(name): legible(str(said)) for name, said in found["versions"].items()}
            began, ended = (float(moment) for moment in found["clock"])
        except SiteError as error:
            yield self._found(client, NAMED.get(error.kind, "worker"), str(error), "")
            return
        except FederationError as error:
            yield self._found(client, "worker", str(error), "")
            return
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            yield self._found(client, "worker", "it answers as another version of fl would", "")
            return
        yield self._found(client, "worker", None, host)
        for item in (_versions(theirs), _skew(sent, began, ended, time.time()), *items):
            yield client, self._fetched(found.get("sent"), item)

    def _fetched(self, sent: Any, item: Item) -> Item:
        """An upload is one when the server has it."""
        if item.check != "upload" or item.outcome == "failed":
            return item
        started = time.perf_counter()
        try:
            ref = self._upload(sent)
            left = self._began + self._deadline - time.monotonic()
            try:
                size = len(self._ways.transport.get(ref, max(left, LEAST_FETCH_SECONDS)))
            finally:
                evict(self._ways.transport, ref)
        except FederationError as error:
            return Item("upload", "failed", f"to the server: {in_one_line(error)}", item.seconds)
        took = item.seconds + time.perf_counter() - started
        return Item("upload", "ok", f"{decimal(size)} to the server", took)

    def _upload(self, sent: Any) -> Ref:
        """What a site says it has put: as much as it was sent, and not the server's own object."""
        ref, ours = Ref.from_json(sent), self._ways.model
        if ref.size != ours.size or ("object" in ref.key and ref.names(ours)):
            raise TransportError("what the site names is not what it was to put")
        return ref

    def _found(self, client: Client, what: str, fault: str | None, fine: str) -> Found:
        seconds = time.monotonic() - self._began
        return client, Item(what, "failed" if fault else "ok", fault or fine, seconds)


def _item(check: str, outcome: str, message: str, seconds: float) -> Item:
    """What a site says of one thing that it tried: any text, any number."""
    return Item(legible(check), legible(outcome), legible(message), float(seconds))


def _versions(theirs: dict[str, str]) -> Item:
    """A site's versions beside the server's: only another `fl` may not understand requests."""
    ours = versions()
    others = [
        f"{name} {theirs.get(name, 'missing')} (server: {version})"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]
    if not others:
        return Item("versions", "ok", "the server's: " + _named(ours), 0.0)
    outcome = "warning" if theirs.get("fl-hpc") == ours["fl-hpc"] else "failed"
    return Item("versions", outcome, ", ".join(others), 0.0)


def _named(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _skew(sent: float, began: float, ended: float, received: float) -> Item:
    """How far a worker's clock must at least be from ours: its task lies between two of our looks.

    Args:
        sent: When the server sent the task, in its Unix seconds.
        began: When the worker began it, in the worker's.
        ended: When the worker ended it, in the worker's.
        received: When the server had the answer, in its own.
    """
    behind, ahead = sent - began, ended - received
    off = max(behind, ahead)
    if off <= SKEW_SECONDS:
        return Item("clock", "ok", "agrees with the server's", 0.0)
    direction = "behind" if behind > ahead else "ahead of"
    return Item("clock", "warning", f"{off:.0f} s or more {direction} the server's", 0.0)
