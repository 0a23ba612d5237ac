"""From a name in server.yaml to an aggregator: ours, or a user's by an entry point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl.config import Arguments, ConfigError
from fl.server import registry
from fl.server.aggregators import arrivals, latest, private, robust, rounds, secure
from fl.server.aggregators.base import Aggregator

GROUP = "fl.aggregators"
"""The entry-point group of other packages' aggregators."""

OURS: Mapping[str, type[Any]] = {
    f"{kind.__name__}Aggregator": kind
    for kind in (
        rounds.FedAvg,
        rounds.FedAvgM,
        rounds.FedAdagrad,
        rounds.FedAdam,
        rounds.FedYogi,
        rounds.FedNova,
        rounds.Scaffold,
        private.DPFedAvg,
        secure.SecureFedAvg,
        arrivals.FedAsync,
        arrivals.FedBuff,
        arrivals.FedCompass,
        arrivals.FedQueue,
        arrivals.Pace,
        latest.Latest,
        robust.Median,
        robust.TrimmedMean,
        robust.MultiKrum,
    )
}
"""Aggregators of this package by their names in server.yaml."""


def open_aggregator(
    name: str,
    kwargs: Arguments,
    clients: Sequence[str],
    *,
    buffers: Iterable[str] = (),
    file: Path = Path("server.yaml"),
) -> Aggregator:
    """Build the aggregator that server.yaml names.

    Args:
        name: `server_configs.aggregator`: one of `OURS`, or of an entry point in `fl.aggregators`.
        kwargs: `server_configs.aggregator_kwargs`: its settings.
        clients: The ids of all clients.
        buffers: Names of the model's tensors that are no parameters (`named_buffers`).
        file: Where they stand, for messages.

    Returns:
        A fresh aggregator.

    Raises:
        ConfigError: The name is unknown or somebody else's too, its class cannot be loaded, a
            setting is unknown or out of range, the settings do not fit the clients, or it takes no
            model with buffers.
    """
    aggregator: Aggregator = registry.build("aggregator", name, kwargs, clients, OURS, GROUP, file)
    try:
        aggregator.buffers = frozenset(buffers)
    except ValueError as error:
        raise ConfigError(f"{file}: server_configs.aggregator: {name}: {error}") from error
    return aggregator
