"""Averaging updates as they arrive, in the memory of one model."""

from __future__ import annotations

import torch

from fl.server.strategies.steps import State, wide_dtype
from fl.tensors import Tensors

TILE = 1 << 18
"""Numbers that are widened, or stepped, at a time: what lies between takes no model's memory."""

ROLES = frozenset({"mean", "mean_of"})
"""What `WeightedMean.state` names its parts."""


class WeightedMean:
    """A running weighted mean, in the memory of the first update; the others can be forgotten.

    Floating-point tensors are averaged in their own precision, but at least float32. The mean is
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
        if not 0 < weight < float("inf"):
            raise ValueError(f"an update's weight must be positive and finite, not {weight}")
        self.total += weight
        self.count += 1
        if self.count == 1:  # fresh memory for the mean would cost more than the sum itself
            self._mean = {name: _begun(tensor) for name, tensor in update.items()}
        else:
            self._fold(update, weight)
        self._greatest = max(self._greatest, weight)

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

    def _fold(self, update: Tensors, weight: float) -> None:
        """Give an update its share, the total of which it is in."""
        for name, mean in self._mean.items():
            if mean.is_floating_point() or mean.is_complex():
                _move(mean, update[name], weight / self.total)
            elif weight > self._greatest:
                mean.copy_(update[name])
            elif weight == self._greatest:
                torch.maximum(mean, update[name], out=mean)


def _begun(update: torch.Tensor) -> torch.Tensor:
    """A mean of one update: as wide as means are, in the update's own memory where that is.

    What is not floating gets memory of its own: a model goes on with it after the step, and would
    hold the whole update.
    """
    if not (update.is_floating_point() or update.is_complex()):
        return update.clone()
    return update.to(wide_dtype(update.dtype)).contiguous()


def _move(mean: torch.Tensor, update: torch.Tensor, share: float) -> None:
    """Move a mean so that the update has that share of it."""
    if update.dtype == mean.dtype:
        mean.lerp_(update, share)
    else:  # by tiles, so that the widened update stays in the processor's cache
        tiles = torch.split(mean.view(-1), TILE), torch.split(update.reshape(-1), TILE)
        for part, narrow in zip(*tiles, strict=True):
            part.lerp_(narrow.to(part.dtype), share)
