"""One round, from a step of the server to the next, and the account that is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

from fl.client.results import Evaluation
from fl.server.checkpoint import Snapshot
from fl.server.clock import Clock
from fl.server.events import ClientFailed, RoundEnded, UpdateReceived
from fl.server.schedulers import Answer
from fl.tensors import Tensors, norm

LARGE_BYTES = 1 << 25
"""A smaller model is held all the time: it takes less than reading it again is worth."""


class Round:
    """A round as it goes on: what is in its sum, who failed, and where the time went.

    Args:
        snapshot: The run after the last step.
        clock: What its time is told by.
        reload: Reads the model again, which is kept somewhere; None where it is not.

    Attributes:
        number: The round, from 1.
        version: Steps that the server has taken.
        layout: The model's names, shapes and dtypes, in tensors without memory.
        started: Whether anything was sent yet.
        folded: What is in the sum.
        failures: Who gave nothing, and why.
        bytes_down: Sizes of the models that were sent.
        began: When it began.
        opened: When its deadline began to run: later, where sites had to agree on masks before.
    """

    def __init__(
        self, snapshot: Snapshot, clock: Clock, reload: Callable[[], Tensors] | None = None
    ) -> None:
        self.version, self._weights = snapshot.version, snapshot.weights
        self.layout = {name: tensor.to("meta") for name, tensor in snapshot.weights.items()}
        self._reload = reload
        self.number = snapshot.version + 1
        self.started = False
        self.folded: list[Answer] = []
        self.failures: list[ClientFailed] = []
        self.bytes_down = 0
        self.began = self.opened = clock.now()
        self._clock = clock
        self._updates: list[UpdateReceived] = []
        self._seconds: dict[str, float] = {}

    def age(self) -> float:
        """Seconds since the round began."""
        return self._clock.now() - self.began

    @property
    def weights(self) -> Tensors:
        """The model after the last step, read again where it is not held."""
        if self._reload is not None and not self._weights:
            self._weights.update(self._reload())
        return self._weights

    def let_go(self) -> None:
        """Hold a large model no longer: beside the sum and an update, it would be the third."""
        if self._reload is not None and self.is_large:
            self._weights.clear()

    @property
    def is_large(self) -> bool:
        """Whether the model is too large to be held, or put, without a thought."""
        return sum(tensor.nbytes for tensor in self.layout.values()) >= LARGE_BYTES

    @cached_property
    def model_norm(self) -> float:
        """The global model's norm."""
        return norm(self.weights)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done inside as time of a phase."""
        started = self.age()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self.age() - started

    def received(self, answer: Answer) -> UpdateReceived:
        """Note an update that was folded in."""
        update = UpdateReceived(
            round=self.number,
            client_id=answer.client_id,
            num_samples=answer.num_samples,
            steps=answer.steps,
            staleness=self.version - answer.version,
            metrics=answer.metrics,
            seconds=answer.seconds,
            size=answer.update.size,
            sent=answer.sent - self.began,
            arrived=answer.arrived - self.began,
            after=self.age(),
        )
        self._updates.append(update)
        return update

    def ended(self, evaluation: Evaluation | None, aggregator: dict[str, float]) -> RoundEnded:
        """The round's account."""
        return RoundEnded(
            round=self.number,
            loss=evaluation.loss if evaluation else None,
            accuracy=evaluation.accuracy if evaluation else None,
            updates=self._updates,
            failures=self.failures,
            bytes_down=self.bytes_down,
            bytes_up=sum(update.size for update in self._updates),
            seconds={**self._seconds, "total": self.age()},
            aggregator=aggregator,
        )
