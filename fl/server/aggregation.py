"""Averaging updates as they arrive, in the memory of one model."""

from __future__ import annotations

import torch

from fl.server.strategies.steps import State, wide
from fl.tensors import Tensors

ROLES = frozenset({"mean", "mean_of"})
"""What `WeightedMean.state` names its parts."""


class WeightedMean:
    """A running weighted mean; each update is folded in and can be forgotten.

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
            update: Tensors of the first update's names, shapes and dtypes; they are not kept.
            weight: Its weight, positive and finite.

        Raises:
            ValueError: The weight is not positive and finite.
        """
        if not 0 < weight < float("inf"):
            raise ValueError(f"an update's weight must be positive and finite, not {weight}")
        if self.count == 0:
            self._mean = {name: torch.empty_like(wide(tensor)) for name, tensor in update.items()}
        self.total += weight
        self.count += 1
        for name, mean in self._mean.items():
            if mean.is_floating_point() or mean.is_complex():
                _move(mean, update[name], weight / self.total)
            elif weight > self._greatest:
                mean.copy_(update[name])
            elif weight == self._greatest:
                torch.maximum(mean, update[name], out=mean)
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


def _move(mean: torch.Tensor, update: torch.Tensor, share: float) -> None:
    """Move a mean so that the update has that share of it; 1 for the first."""
    if share == 1:
        mean.copy_(update)
    else:
        mean.lerp_(update.to(mean.dtype), share)
