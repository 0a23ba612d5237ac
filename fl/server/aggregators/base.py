"""What an aggregator is, and the two ways of being one: a running mean, or all updates at once."""

from __future__ import annotations

import mmap
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from fl.errors import FederationError
from fl.server.aggregation import ROLES, WeightedMean
from fl.server.aggregators.tiles import step_by_tile
from fl.server.strategies import State, add_delta
from fl.tensors import Tensors, decode, pieces

Wants = Literal["difference", "model"]


@dataclass(frozen=True)
class Contribution:
    """What the server knows of an update besides its tensors.

    Attributes:
        client_id: Whose it is.
        num_samples: Training samples of the client, positive.
        steps: Local steps that it did, positive.
        staleness: Server steps since the client got its model, 0 or more.
        share: The client's share of all clients' samples as known so far, or 1/N; above 0, at
            most 1.
    """

    client_id: str
    num_samples: int
    steps: int
    staleness: int
    share: float


class Aggregator(Protocol):
    """What the round loop holds: updates go in one by one, the next model comes out.

    A class of these has its settings, a `fl.config.Section`, as `Settings`, and is called with one
    of them and the ids of all clients. It raises ValueError if they do not fit each other.

    Attributes:
        wants: What clients send: what training added to the model that they received, in its
            dtypes, or the trained model itself. Integers are the trained value in both.
        updates_per_step: Updates that a step is made of where nobody waits for a round: 1 for
            FedAsync, K for FedBuff. None leaves that to the scheduler.
        buffers: Names of the model's tensors that are no parameters, such as batch norm's running
            variance. They are averaged: an optimizer's step could make a variance negative. Setting
            them raises ValueError where there may be none.
        clips: Whether it bounds the updates' norms itself. The server's own bound is then not
            asked: whom that drops depends on the others' norms, which tells of them.
    """

    wants: Wants = "difference"
    updates_per_step: int | None = None
    buffers: frozenset[str] = frozenset()
    clips: bool = False

    def extra(self, weights: Tensors) -> Tensors:
        """More tensors to broadcast with a model; updates carry differences of the same names.

        Args:
            weights: The model; or its layout alone, in tensors of the device `meta`.

        Returns:
            The tensors, of names that no model has; `{}` for most.
        """
        ...

    def add(self, update: Tensors, contribution: Contribution) -> None:
        """Fold one update in.

        Args:
            update: Tensors of the model's names, shapes and dtypes, and those of `extra`, which
                belong to the aggregator from now on.
            contribution: What is known of it.

        Raises:
            ValueError: It weighs nothing, such as one that is stale beyond what numbers can tell.
            FederationError: The server itself has no room for it.
        """
        ...

    def step(self, weights: Tensors) -> Tensors:
        """Make the next model from what was added since the last step, and forget that.

        Args:
            weights: The model as it is; it is not changed.

        Returns:
            The next model, in the dtypes of `weights`.

        Raises:
            ValueError: Nothing was added, or too little.
        """
        ...

    def report(self) -> dict[str, float]:
        """Numbers of its own for the round's record, after a step; `{}` for most."""
        return {}

    def state(self) -> State:
        """What a checkpoint has to keep, by role and name: memory, and what was not stepped yet."""
        ...

    def restore(self, state: State) -> None:
        """Go on from another's `state`, to the last bit.

        Args:
            state: Of an aggregator of the same class and settings.

        Raises:
            ValueError: It is another class's.
        """
        ...

    def lost(self, steps: int) -> None:
        """Told, after `restore`, of steps that came after its state: what they made was seen.

        Args:
            steps: How many, positive.
        """


class Streaming(Aggregator, ABC):
    """Folds updates into one running mean: one model's memory, whatever the number of clients."""

    roles: ClassVar[frozenset[str]] = frozenset()
    """What it remembers from step to step."""

    def __init__(self) -> None:
        self._memory: State = {}
        self._mean = WeightedMean()

    def extra(self, weights: Tensors) -> Tensors:  # noqa: ARG002 - others need the model
        """Nothing."""
        return {}

    def add(self, update: Tensors, contribution: Contribution) -> None:
        """Fold one update in; the memory of a step's first becomes the mean's."""
        self._mean.add(update, self._weight(contribution))

    def step(self, weights: Tensors) -> Tensors:
        """Make the next model from the mean."""
        moved = self._move(weights, self._mean.result())
        self._mean = WeightedMean()
        return moved

    def state(self) -> State:
        """The memory by `roles`, and the mean as it is."""
        memory = {role: dict(its) for role, its in self._memory.items()}
        return {**memory, **self._mean.state()}

    def restore(self, state: State) -> None:
        """Go on from another's `state`."""
        if foreign := sorted(state.keys() - self.roles - ROLES):
            raise ValueError(f"{foreign[0]} is no state of {type(self).__name__}")
        self._memory = {role: dict(state[role]) for role in self.roles & state.keys()}
        self._mean = WeightedMean()
        self._mean.restore(state)

    @abstractmethod
    def _weight(self, contribution: Contribution) -> float:
        """An update's weight in the mean, positive."""

    @abstractmethod
    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        """The next model, from the mean of what `wants` says."""


class HoldError(FederationError):
    """The server's disk has no room for a round's updates."""


class Holding(Aggregator, ABC):
    """Holds every update until the step, as rules need that compare updates.

    They lie in files, in `tempfile.gettempdir()`, which have no name any more and are read a slice
    at a time: N models of disk, and no more memory than the kernel has to spare.

    Attributes:
        least: Updates that a step must be made of for its rule to leave any out.
    """

    least = 1

    def __init__(self) -> None:
        self._updates: list[Tensors] = []

    def extra(self, weights: Tensors) -> Tensors:  # noqa: ARG002 - others need the model
        """Nothing."""
        return {}

    def add(self, update: Tensors, contribution: Contribution) -> None:  # noqa: ARG002 - all alike
        """Keep one update.

        Raises:
            HoldError: The disk is full.
        """
        self._updates.append(on_disk(update))

    def step(self, weights: Tensors) -> Tensors:
        """Make the next model from all updates."""
        moved = step_by_tile(weights, self._combine(self._updates), add_delta)
        self._updates = []
        return moved

    def state(self) -> State:
        """The updates that were not stepped yet, in the order in which they came."""
        return {f"update {index}": update for index, update in enumerate(self._updates)}

    def restore(self, state: State) -> None:
        """Go on from another's `state`."""
        roles = [f"update {index}" for index in range(len(state))]
        if foreign := sorted(state.keys() - set(roles)):
            raise ValueError(f"{foreign[0]} is no state of {type(self).__name__}")
        self._updates = [on_disk(state[role]) for role in roles]

    @abstractmethod
    def _combine(self, updates: Sequence[Tensors]) -> Tensors:
        """One difference of many."""


def on_disk(tensors: Tensors) -> Tensors:
    """The same tensors as views of a file in `tempfile.gettempdir()`, which goes when they do.

    Args:
        tensors: They can be forgotten.

    Returns:
        Tensors that are not to be written to.

    Raises:
        HoldError: The disk is full.
    """
    try:
        with tempfile.TemporaryFile(prefix="fl-update.") as file:
            file.writelines(pieces(tensors))
            file.flush()
            return decode(memoryview(mmap.mmap(file.fileno(), 0)))
    except OSError as error:
        raise HoldError(
            f"{tempfile.gettempdir()}: an update cannot be held there ({error.strerror}); make "
            "room, or name another folder in TMPDIR"
        ) from error
