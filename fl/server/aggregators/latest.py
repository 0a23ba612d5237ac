"""The mean of every client's latest model, whenever that came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fl.config import Section
from fl.server.aggregation import WeightedMean
from fl.server.aggregators.base import Aggregator, Contribution, on_disk
from fl.server.aggregators.tiles import step_by_tile
from fl.server.strategies import State, each, latest_weight
from fl.tensors import Tensors


@dataclass
class _Latest:
    """A client's latest model, which lies on disk; its samples, and the steps since it came."""

    model: Tensors
    samples: int
    age: int = 0


class Latest(Aggregator):
    """Our own, for PaceScheduler and a few clients, whose models it keeps (docs/queues.md).

    The files of them have no name, as those of `Holding`.
    """

    wants = "model"

    class Settings(Section):
        """None."""

    def __init__(self, settings: Settings, clients: Sequence[str]) -> None:  # noqa: ARG002  (every aggregator is built like this)
        self._clients = list(clients)
        self._known: dict[str, _Latest] = {}

    def extra(self, weights: Tensors) -> Tensors:  # noqa: ARG002 - others need the model
        """Nothing."""
        return {}

    def add(self, update: Tensors, contribution: Contribution) -> None:
        """Keep a client's model in its last one's place.

        Raises:
            HoldError: The disk is full.
        """
        self._known[contribution.client_id] = _Latest(on_disk(update), contribution.num_samples)

    def step(self, weights: Tensors) -> Tensors:
        """Make the mean of the latest models, in the clients' order."""
        if all(latest.age for latest in self._known.values()):
            raise ValueError("no update to average")
        known = [self._known[client] for client in self._clients if client in self._known]
        weighed = [(its.model, latest_weight(its.samples, its.age)) for its in known]
        (first, weight), *others = [(model, weight) for model, weight in weighed if weight]
        mean = WeightedMean()
        mean.add_all([(_own(first), weight), *others])
        moved = step_by_tile(weights, mean.result(), _replace)
        for latest in self._known.values():
            latest.age += 1
        return moved

    def state(self) -> State:
        """Every client's latest model by the client's number, and what is known of it."""
        known = {str(self._clients.index(client)): its for client, its in self._known.items()}
        if not known:
            return {}
        return {
            "samples": {
                number: torch.tensor([its.samples, its.age]) for number, its in known.items()
            },
            **{f"latest {number}": its.model for number, its in known.items()},
        }

    def restore(self, state: State) -> None:
        """Go on from another's `state`."""
        roles = {f"latest {number}": client for number, client in enumerate(self._clients)}
        if foreign := sorted(state.keys() - roles.keys() - {"samples"}):
            raise ValueError(f"{foreign[0]} is no state of {type(self).__name__}")
        self._known = {}
        for role, client in roles.items():
            if role in state:
                samples, age = state["samples"][role.removeprefix("latest ")].tolist()
                self._known[client] = _Latest(on_disk(state[role]), samples, age)


def _own(model: Tensors) -> Tensors:
    """A copy in memory, for the mean to be made in."""
    return {name: tensor.clone() for name, tensor in model.items()}


def _replace(weights: Tensors, mean: Tensors) -> Tensors:
    """The mean, in the model's dtypes."""
    return each(weights, mean, lambda _name, _start, end: end)
