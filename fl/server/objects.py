"""What the server puts for its sites, and when that and what they put is evicted.

A model is put once for all who need it, and stays as long as a site has a task with it. An update
stays until the step that it is in is safe: a server that dies before then needs it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from fl.endpoints.base import JSONObject
from fl.errors import FederationError
from fl.server.clock import Clock
from fl.server.events import Listener, Warned
from fl.tensors import Data
from fl.transport import Ref, Transport, TransportError, UnreachableError

Put = TypeVar("Put")

PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
"""Between two tries while the server's own way is down: the first, and the longest."""


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
        self._used: list[Ref] = []
        self._kept: list[Ref] = []

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
        return any(ref.names(model) for model in self._models.values())

    def done_with(self, ref: Ref) -> None:
        """Have an update evicted after the next step."""
        self._used.append(ref)

    def evict_models(self, needed: Collection[int]) -> None:
        """Evict models that no site has a task with.

        Args:
            needed: Versions that a site has a task with.
        """
        for version in [version for version in self._models if version not in needed]:
            self._evict(self._models.pop(version))

    def evict_used(self) -> None:
        """Evict updates that are in a kept step.

        Once nobody answers where one of them is, the others are left for the next step: whoever
        waited for each would hold the sites up.
        """
        while self._used and self._evict(self._used.pop(0)):
            pass

    def evict_all(self) -> None:
        """The run is over: evict all that is left."""
        self._used += [*self._models.values(), *self._kept]
        self._models, self._kept = {}, []
        while self._used:
            self._evict(self._used.pop(0))

    def discard(self, result: JSONObject) -> None:
        """Evict the update of an answer that is of no use."""
        try:
            self._evict(Ref.from_json(result.get("update")))
        except TransportError:
            return  # it names none

    def _evict(self, ref: Ref) -> bool:
        """Evict; an object that cannot be evicted is worth a line, not the run.

        A site may name any object as its update: a model that others still fetch stays.

        Returns:
            Whether somebody answered there.
        """
        if self.is_model(ref):
            return True
        try:
            self._transport.evict(ref)
        except FederationError as error:
            self._listen(Warned(f"a model was not evicted: {error}"))
            return not isinstance(error, UnreachableError)
        return True

    def _pause(self, seconds: float) -> None:
        """Wait, whatever happens at the sites."""
        until = self._clock.now() + seconds
        while (left := until - self._clock.now()) > 0:
            self._clock.wait(left)
        self._clock.wake()  # what happened meanwhile is looked at next
