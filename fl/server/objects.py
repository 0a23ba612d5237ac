"""What the server puts for its sites, and when that and what they put is evicted.

A model is put once for all who need it, and stays as long as a site has a task with it. An update
stays until the step that it is in is safe: a server that dies before then needs it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import TypeVar

from fl.endpoints.base import JSONObject, legible
from fl.errors import FederationError
from fl.server.clock import Clock
from fl.server.events import Listener, Warned
from fl.tensors import Data
from fl.transport import Ref, Transport, TransportError, UnreachableError
from fl.transport.inline import InlineTransport

Put = TypeVar("Put")

PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
"""Between two tries while the server's own way is down: the first, and the longest."""
END_SECONDS = 60.0
"""What evicting all that is left may take: where a store is gone, each object is waited for."""
NOTED_CHARACTERS = 4096
"""A reference that a checkpoint keeps is no longer: sites write them."""


class Objects:
    """Models that the server has put, and updates that are of no more use.

    Args:
        transport: Where they are.
        clock: What is waited by.
        listen: Told of what cannot be put or evicted.
        patience: Seconds that the server's own way may be down.
    """

    def __init__(
        self, transport: Transport, clock: Clock, listen: Listener, patience: float
    ) -> None:
        self._transport, self._clock, self._listen = transport, clock, listen
        self._patience = patience
        self._models: dict[int, Ref] = {}
        self._put_at = -math.inf
        self._in_step: list[Ref] = []
        self._used: list[Ref] = []
        self._leaving: list[Ref] = []
        self._kept: list[Ref] = []
        self._evicting: Future[list[FederationError]] = Future()
        self._evicting.set_result([])
        self._until = math.inf

    def keep(self, refs: Collection[Ref]) -> None:
        """Have objects evicted at the run's end: a task that is on its way may need them."""
        self._kept += refs

    def model(self, version: int, missed: float | None) -> Ref | None:
        """The model of a version, or None if it is to be put.

        Args:
            version: Steps that the server had taken.
            missed: When the latest task was sent that found its model gone, if any did.
        """
        if missed is not None and missed >= self._put_at and version in self._models:
            self.keep([self._models.pop(version)])
        return self._models.get(version)

    def put_model(self, version: int, encoded: Sequence[Data]) -> Ref:
        """Put the model of a version.

        Args:
            version: As for `model`.
            encoded: Its bytes, in pieces.

        Raises:
            TransportError: It cannot be put.
        """
        self._put_at = self._clock.now()
        self._models[version] = self.insist(lambda: self._transport.put(*encoded))
        return self._models[version]

    def insist(self, put: Callable[[], Put]) -> Put:
        """Try again while the server's own way is down, up to the round's deadline."""
        give_up = self._clock.now() + self._patience
        pause = PAUSE_SECONDS
        while True:
            try:
                return put()
            except UnreachableError as error:
                if self._clock.now() + pause > give_up:
                    raise
                self._listen(Warned(f"waiting for the server's way for models: {error}"))
                self._pause(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def is_model(self, ref: Ref) -> bool:
        """Whether an object is a model of ours, whoever names it."""
        return any(ref.names(model) for model in [*self._models.values(), *self._kept])

    def done_with(self, ref: Ref) -> None:
        """Have an update evicted once the next step is saved."""
        if ref.transport != InlineTransport.name:  # which is nowhere but here
            self._in_step.append(ref)

    def saved(self) -> None:
        """The step is: what it was made of is of no more use."""
        self._used += self._in_step
        self._in_step = []

    def outlived(self) -> list[JSONObject]:
        """Updates that are done with and may not be evicted yet, for a checkpoint.

        A server that is killed before it comes to them leaves them to the one that goes on.
        """
        refs = [*self._leaving, *self._used, *self._in_step]
        return [ref.to_json() for ref in refs if _length(ref) <= NOTED_CHARACTERS]

    def evict_models(self, needed: Collection[int]) -> None:
        """Evict models that no site has a task with.

        Args:
            needed: Versions that a site has a task with.
        """
        for version in [version for version in self._models if version not in needed]:
            self._tell(self._evict([self._models.pop(version)]))

    def evict_used(self) -> None:
        """Have updates evicted that are in a saved step, beside the loop.

        An endpoint that is at work for others may come to it late. What is done with meanwhile
        waits for a later call.
        """
        if self._evicting.done():
            self._tell(self._evicting.result())
            leaving, self._used = self._not_models(self._used), []
            self._leaving = leaving
            self._evicting = self._clock.call(lambda: self._evict(leaving))

    def ends(self) -> None:
        """The run does: from now on a store that is gone is not waited for over and over."""
        self._until = self._clock.now() + END_SECONDS

    def evict_all(self, spared: Collection[Ref] = ()) -> None:
        """Evict all that is left; the server's own first, whose store is there.

        Args:
            spared: Updates that stay where they are.
        """
        own = [*self._models.values(), *self._kept]
        self._models, self._kept = {}, []
        self._tell(self._evict(own))
        self._tell(self._evicting.result())
        updates = [*self._used, *(ref for ref in self._in_step if ref not in spared)]
        self._used, self._in_step = [], []
        self._tell(self._evict(updates))

    def discard(self, result: JSONObject) -> None:
        """Evict the update of an answer that is of no use."""
        try:
            update = Ref.from_json(result.get("update"))
        except TransportError:
            return  # it names none
        self._tell(self._evict(self._not_models([update])))

    def _not_models(self, refs: Sequence[Ref]) -> list[Ref]:
        """A site may name any object as its update: a model that others still fetch stays."""
        return [ref for ref in refs if not self.is_model(ref)]

    def _evict(self, refs: Sequence[Ref]) -> list[FederationError]:
        """Evict; returns what kept objects from it, which is worth a line, not the run."""
        failed: list[FederationError] = []
        for number, ref in enumerate(refs):
            if self._clock.now() >= self._until:
                left = f"{len(refs) - number} more are left: {END_SECONDS:.0f} s are over"
                return [*failed, TransportError(left)]
            try:
                self._transport.evict(ref)
            except FederationError as error:
                failed.append(error)
        return failed

    def _tell(self, failed: Sequence[FederationError]) -> None:
        for error in failed:
            # A site's own words may be in it: what it says of its update.
            self._listen(Warned(f"a model was not evicted: {legible(str(error))}"))

    def _pause(self, seconds: float) -> None:
        """Wait, whatever happens at the sites."""
        until = self._clock.now() + seconds
        while (left := until - self._clock.now()) > 0:
            self._clock.wait(left)
        self._clock.wake()  # what happened meanwhile is looked at next


def _length(ref: Ref) -> int:
    """How many characters a reference has."""
    return len(ref.transport) + sum(len(key) + len(text) for key, text in ref.key.items())
