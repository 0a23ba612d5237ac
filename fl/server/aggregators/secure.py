"""Federated averaging of updates that the server sees in their sum alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch

from fl.config import PositiveInt, Seconds, Section
from fl.secure_sum import masks
from fl.secure_sum.fixed_point import MASKED, decoded, length
from fl.secure_sum.masks import Words
from fl.server.aggregators.base import Aggregator, Contribution
from fl.server.aggregators.settings import Positive
from fl.server.strategies import State, add_delta
from fl.tensors import Tensors


class SecureFedAvg(Aggregator):
    """Secure aggregation (Bonawitz et al. 2017, https://eprint.iacr.org/2017/281).

    Sites clip their differences to Euclid's norm `clip_norm`, weigh them, and add masks that vanish
    from the sum of all; `fl.server.masking` has what is said between them. `fl.secure_sum` states
    what fixed-point numbers are off. What is not floating stays as the server has it.

    A running sum is kept, modulo 2^64: eight bytes a number, whatever the number of clients.
    """

    clips = True

    class Settings(Section):
        """What sites agree on, and how long they may take."""

        client_weights_mode: Literal["sample_size", "equal"] = "sample_size"
        """By its number of samples, or all alike."""
        clip_norm: Positive = 100.0
        """The largest Euclidean norm of an update; sites scale a larger one down. The smaller it
        is, the finer are the numbers that are summed."""
        threshold: PositiveInt | None = None
        """Sites that a sum is of at least, and that unmask it; more than half of all, so that no
        two groups can be told of different drop-outs. Just more than half where not set."""
        phase_deadline: Seconds | None = None
        """Seconds for each of the small tasks before and after training; `round_deadline` where
        not set."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        count = len(clients)
        self.threshold = settings.threshold or count // 2 + 1
        if count < 2 or not count < 2 * self.threshold <= 2 * count:
            raise ValueError(
                f"threshold: a secure sum of {count} sites needs more than half of them, and two "
                f"at least, not {self.threshold}"
            )
        self.settings = settings
        self._sum: Words | None = None
        self._weight = 0

    @staticmethod
    def masked(weights: Tensors) -> Tensors:
        """What a site's update looks like on its way.

        Args:
            weights: The model.

        Returns:
            One tensor that takes no memory.
        """
        return {MASKED: torch.empty(length(weights), dtype=torch.int64, device="meta")}

    def extra(self, weights: Tensors) -> Tensors:  # noqa: ARG002 - others need the model
        """Nothing."""
        return {}

    def add(self, update: Tensors, contribution: Contribution) -> None:
        """Add one masked update; it is not kept."""
        words = update[MASKED].numpy().view(np.uint64)
        if self._sum is None:
            self._sum = np.zeros_like(words)
        self._sum += words
        equal = self.settings.client_weights_mode == "equal"
        self._weight += 1 if equal else contribution.num_samples

    def unmask(self, left: Iterable[tuple[bytes, bool]]) -> None:
        """Take masks off the sum.

        Args:
            left: The key of each mask that is left in it, and whether it has to be added.

        Raises:
            ValueError: Nothing was added.
        """
        total = self._added()
        for key, add in left:
            masks.apply(total, key, add=add)

    def step(self, weights: Tensors) -> Tensors:
        """Move the model by the mean; `unmask` comes before."""
        mean = decoded(self._added(), weights, self.settings.clip_norm, self._weight)
        self._sum, self._weight = None, 0
        return add_delta(weights, {**weights, **mean})

    def state(self) -> State:
        """Nothing: the masks of a sum are of one process's round, and go with it."""
        return {}

    def restore(self, state: State) -> None:
        """Go on from another's `state`."""
        if foreign := sorted(state):
            raise ValueError(f"{foreign[0]} is no state of {type(self).__name__}")

    def _added(self) -> Words:
        if self._sum is None:
            raise ValueError("no update to sum")
        return self._sum
