"""Aggregators for updates as they arrive, from models of different age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from fl.config import PositiveInt, Section
from fl.server.aggregators.base import Contribution, Streaming
from fl.server.aggregators.settings import (
    ClientWeights,
    NotNegative,
    Positive,
    Staleness,
    StalenessFunction,
)
from fl.server.strategies import (
    add_delta,
    fedasync_rate,
    fedasync_weight,
    fedbuff_size,
    fedbuff_weight,
    fedcompass_weight,
    fedqueue_weight,
    mix,
    pace_weight,
)
from fl.tensors import Tensors


class FedAsync(Streaming):
    """Every update is mixed in on its arrival (Xie et al. 2019, arXiv 1903.03934).

    Some that came at once may be stepped at once: that leads to where mixing one by one does.
    """

    wants = "model"
    updates_per_step = 1

    class Settings(Staleness):
        """APPFL's names."""

        alpha: Annotated[float, Field(gt=0, lt=1)] = 0.6
        """Share that a fresh update gets of the new model."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:  # noqa: ARG002
        super().__init__()
        self._alpha = settings.alpha
        self._discount = settings.discount()

    def _weight(self, contribution: Contribution) -> float:
        rate = fedasync_rate(contribution.staleness, alpha=self._alpha, discount=self._discount)
        return fedasync_weight(rate, self._mean.total)

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        return mix(weights, mean, rate=self._mean.total / (1 + self._mean.total))


class FedBuff(Streaming):
    """A step for every K updates (Nguyen et al. 2022, arXiv 2106.06639)."""

    class Settings(Staleness):
        """APPFL's names."""

        K: PositiveInt = 10
        """Updates that fill the buffer."""
        server_learning_rate: Positive = 1.0
        """How far the buffer's mean takes the model."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:  # noqa: ARG002
        super().__init__()
        self.updates_per_step = settings.K
        self._learning_rate = settings.server_learning_rate
        self._discount = settings.discount()

    def _weight(self, contribution: Contribution) -> float:
        return fedbuff_weight(contribution.staleness, discount=self._discount)

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        size = fedbuff_size(self._mean.total, self._mean.count, learning_rate=self._learning_rate)
        return add_delta(weights, mean, size=size)


class FedCompass(Streaming):
    """Groups of clients that arrive together (Li et al. 2024, arXiv 2309.14675)."""

    class Settings(ClientWeights, Staleness):
        """APPFL's names."""

        alpha: Annotated[float, Field(gt=0, le=1)] = 0.9
        """How much of a fresh update by all clients counts."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        super().__init__()
        settings.require_weights_of(clients)
        self._settings = settings
        self._discount = settings.discount()
        self._num_clients = len(clients)

    def _share(self, contribution: Contribution) -> float:
        """The client's p_i: shares of all clients sum to 1."""
        if self._settings.client_weights_mode == "sample_size":
            return contribution.share
        weight = self._settings.weight(contribution)
        return weight / (sum(self._settings.client_weights.values()) or self._num_clients)

    def _weight(self, contribution: Contribution) -> float:
        return fedcompass_weight(
            self._share(contribution),
            contribution.staleness,
            alpha=self._settings.alpha,
            discount=self._discount,
        )

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        return add_delta(weights, mean, size=self._mean.total)


class FedQueue(Streaming):
    """Rounds cut off at a time, what is late goes into the next one (arXiv 2605.02125)."""

    class Settings(ClientWeights, Staleness):
        """APPFL's names."""

        staleness_fn: StalenessFunction = "harmonic"
        """The authors offer `constant`, `harmonic` and `exponential`."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        super().__init__()
        settings.require_weights_of(clients)
        self._settings = settings
        self._discount = settings.discount()

    def _weight(self, contribution: Contribution) -> float:
        base = self._settings.weight(contribution)
        return fedqueue_weight(base, contribution.staleness, discount=self._discount)

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        return add_delta(weights, mean)


class Pace(Streaming):
    """Our own, for PaceScheduler: see docs/queues.md.

    Every update moves the model by its weight, but a step never goes past the mean of its updates:
    many that were trained from one model and arrive together are averaged, as in FedAvg.
    """

    roles = frozenset({"staleness"})

    class Settings(Section):
        """How far and how evenly."""

        server_learning_rate: Positive = 2.0
        """How far one update of every client takes the model."""
        balance: NotNegative = 0.5
        """How much weight a site gets back for having been away: 0 none, 1 all."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:
        super().__init__()
        self._settings = settings
        self._num_clients = len(clients)

    def _weight(self, contribution: Contribution) -> float:
        return pace_weight(
            contribution.share,
            contribution.staleness,
            self._typical(1 + contribution.staleness),
            balance=self._settings.balance,
        )

    def _typical(self, age: float) -> float:
        """The mean of 1 + staleness over about the last update of every client."""
        known = self._memory.get("staleness", {}).get("typical")
        typical = age if known is None else float(known)
        typical += (age - typical) / self._num_clients
        self._memory["staleness"] = {"typical": torch.tensor(typical, dtype=torch.float64)}
        return typical

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        return add_delta(
            weights, mean, size=min(self._settings.server_learning_rate * self._mean.total, 1.0)
        )
