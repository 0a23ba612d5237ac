"""Aggregators for updates as they arrive, from models of different age."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import Field

from fl.config import PositiveInt, Section
from fl.server.aggregators.base import Contribution, Streaming
from fl.server.aggregators.settings import (
    ClientWeights,
    Positive,
    Staleness,
    StalenessFunction,
)
from fl.server.aggregators.tiles import step_by_tile
from fl.server.strategies import (
    add_delta,
    fedasync_rate,
    fedasync_weight,
    fedbuff_size,
    fedbuff_weight,
    fedcompass_weight,
    fedqueue_weight,
    mix,
    pace_size,
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

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:  # noqa: ARG002  (every aggregator is built like this)
        super().__init__()
        self._alpha = settings.alpha
        self._discount = settings.discount()

    def _weight(self, contribution: Contribution) -> float:
        rate = fedasync_rate(contribution.staleness, alpha=self._alpha, discount=self._discount)
        return fedasync_weight(rate, self._mean.total)

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        return step_by_tile(
            weights, mean, partial(mix, rate=self._mean.total / (1 + self._mean.total))
        )


class FedBuff(Streaming):
    """A step for every K updates (Nguyen et al. 2022, arXiv 2106.06639)."""

    class Settings(Staleness):
        """APPFL's names."""

        K: PositiveInt = 10
        """Updates that fill the buffer."""
        server_learning_rate: Positive = 1.0
        """How far the buffer's mean takes the model."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:  # noqa: ARG002  (every aggregator is built like this)
        super().__init__()
        self.updates_per_step = settings.K
        self._learning_rate = settings.server_learning_rate
        self._discount = settings.discount()

    def _weight(self, contribution: Contribution) -> float:
        return fedbuff_weight(contribution.staleness, discount=self._discount)

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        size = fedbuff_size(self._mean.total, self._mean.count, learning_rate=self._learning_rate)
        return step_by_tile(weights, mean, partial(add_delta, size=size))


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
        return step_by_tile(weights, mean, partial(add_delta, size=self._mean.total))


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
        return step_by_tile(weights, mean, add_delta)


class Pace(Streaming):
    """Our own, for PaceScheduler: every update by its share, whenever it comes (docs/queues.md)."""

    class Settings(Section):
        """How far a step goes."""

        server_learning_rate: Positive = 1.0
        """How far a step of every client's updates goes along their mean, 1 at most."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:  # noqa: ARG002  (every aggregator is built like this)
        super().__init__()
        self._learning_rate = settings.server_learning_rate

    def _weight(self, contribution: Contribution) -> float:
        return contribution.share

    def _move(self, weights: Tensors, mean: Tensors) -> Tensors:
        size = pace_size(self._mean.total, learning_rate=self._learning_rate)
        return step_by_tile(weights, mean, partial(add_delta, size=size))
