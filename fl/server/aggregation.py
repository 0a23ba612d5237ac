"""Averaging updates as they arrive, in the memory of one model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fl.server.strategies.steps import State, wide_dtype
from fl.tensors import Tensors, is_inexact

TILE = 1 << 18
"""Numbers that are widened, or stepped, at a time: what lies between takes no model's memory."""

ROLES = frozenset({"mean", "mean_of"})
"""What `WeightedMean.state` names its parts."""


class WeightedMean:
    """A running weighted mean, in the memory of the first update; the others can be forgotten.

    Real and complex tensors are averaged in their own precision, but at least float32. The mean is
    moved towards each update rather than divided at the end: of equal values it is exactly that
    value, so what no client changed stays to the last bit. Integers and booleans (counters such as
    batch norm's, which have no meaningful mean) are taken from the update of the greatest weight;
    of equal weights, whoever came first, the greatest.

    The first update says what the names, shapes and dtypes of all are.

    Attributes:
        total: Sum of the weights.
        count: How many updates it is of.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0
        self._greatest = 0.0
        self._mean: Tensors = {}

    def add(self, update: Tensors, weight: float) -> None:
        """Fold an update in.

        Args:
            update: Tensors of the first update's names, shapes and dtypes, which share no memory.
                The first's belong to the mean from now on, the others are not kept.
            weight: Its weight, positive and finite.

        Raises:
            ValueError: The weight is not positive and finite.
        """
        self.add_all([(update, weight)])

    def add_all(self, updates: Sequence[tuple[Tensors, float]]) -> None:
        """Fold updates in that are all there: a tile of the mean is read and written once for all.

        Args:
            updates: Each with its weight, as for `add`, in the order in which they are averaged.

        Raises:
            ValueError: A weight is not positive and finite; nothing is folded in.
        """
        for _, weight in updates:
            if not 0 < weight < float("inf"):
                raise ValueError(f"an update's weight must be positive and finite, not {weight}")
        others: list[tuple[Tensors, float, float]] = []
        for update, weight in updates:
            self.total += weight
            self.count += 1
            if self.count == 1:  # fresh memory for the mean would cost more than the sum itself
                self._mean = {name: _begun(tensor) for name, tensor in update.items()}
                self._greatest = weight
            else:
                others.append((update, weight, weight / self.total))
        for name, mean in self._mean.items():
            if is_inexact(mean):
                _move(mean, [(update[name], share) for update, _, share in others])
            else:
                _choose(
                    mean, [(update[name], weight) for update, weight, _ in others], self._greatest
                )
        self._greatest = max([self._greatest, *(weight for _, weight, _ in others)])

    def result(self) -> Tensors:
        """The mean of what was added.

        Returns:
            Tensors as wide as they were averaged; they are the running mean's own, so this is the
            last thing to ask for.

        Raises:
            ValueError: Nothing was added.
        """
        if self.count == 0:
            raise ValueError("no update to average")
        return self._mean

    def state(self) -> State:
        """A copy of the mean and its numbers, by `ROLES`; nothing if nothing was added."""
        if self.count == 0:
            return {}
        numbers = [self.total, self.count, self._greatest]
        return {
            "mean": {name: tensor.clone() for name, tensor in self._mean.items()},
            "mean_of": {"numbers": torch.tensor(numbers, dtype=torch.float64)},
        }

    def restore(self, state: State) -> None:
        """Go on from another's `state`; what is not of `ROLES` is left alone."""
        if "mean" in state:
            self.total, count, self._greatest = state["mean_of"]["numbers"].tolist()
            self.count = int(count)
            self._mean = {name: tensor.clone() for name, tensor in state["mean"].items()}


def _begun(update: torch.Tensor) -> torch.Tensor:
    """A mean of one update: as wide as means are, in the update's own memory where that is.

    Integers and booleans get memory of their own: a model goes on with them after the step, and
    would hold the whole update.
    """
    if not is_inexact(update):
        return update.clone()
    return update.to(wide_dtype(update.dtype)).contiguous()


def _move(mean: torch.Tensor, updates: Sequence[tuple[torch.Tensor, float]]) -> None:
    """Move a mean so that each update in turn has its share of it."""
    if len(updates) == 1 and updates[0][0].dtype == mean.dtype:
        mean.lerp_(*updates[0])
        return
    # By tiles, so that the mean, and updates that are widened, stay in the processor's cache.
    shares = [share for _, share in updates]
    parts = [torch.split(update.reshape(-1), TILE) for update, _ in updates]
    for tile, *theirs in zip(torch.split(mean.view(-1), TILE), *parts, strict=True):
        for part, share in zip(theirs, shares, strict=True):
            tile.lerp_(part.to(tile.dtype), share)


def _choose(
    mean: torch.Tensor, updates: Sequence[tuple[torch.Tensor, float]], greatest: float
) -> None:
    """Take the values of the greatest weight; of equal weights, the greatest."""
    for update, weight in updates:
        if weight > greatest:
            mean.copy_(update)
        elif weight == greatest:
            np.maximum(mean.numpy(), update.numpy(), out=mean.numpy())  # torch's takes no uint64
        greatest = max(greatest, weight)
