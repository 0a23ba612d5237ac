"""From a name in server.yaml to an aggregator: ours, or a user's by an entry point."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fl.config import Arguments, ConfigError, Section, explain
from fl.server.aggregators import arrivals, robust, rounds
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
        arrivals.FedAsync,
        arrivals.FedBuff,
        arrivals.FedCompass,
        arrivals.FedQueue,
        arrivals.Pace,
        robust.Median,
        robust.TrimmedMean,
        robust.MultiKrum,
    )
}
"""Aggregators of this package by their names in server.yaml."""


def open_aggregator(
    name: str, kwargs: Arguments, clients: Sequence[str], *, file: Path = Path("server.yaml")
) -> Aggregator:
    """Build the aggregator that server.yaml names.

    Args:
        name: `server_configs.aggregator`: one of `OURS`, or of an entry point in `fl.aggregators`.
        kwargs: `server_configs.aggregator_kwargs`: its settings.
        clients: The ids of all clients.
        file: Where they stand, for messages.

    Returns:
        A fresh aggregator.

    Raises:
        ConfigError: The name is unknown or somebody else's too, its class cannot be loaded, a
            setting is unknown or out of range, or the settings do not fit the clients.
    """
    kind = _class(name, file)
    place = "server_configs", "aggregator_kwargs"
    try:
        # Through JSON, as all of the file: strict mode takes fewer types from Python.
        settings = kind.Settings.model_validate_json(json.dumps(kwargs))
    except ValidationError as error:
        raise ConfigError(explain(file, kind.Settings, error, place)) from error
    try:
        aggregator: Aggregator = kind(settings, clients)
    except ValueError as error:
        raise ConfigError(f"{file}: {'.'.join(place)}: {error}") from error
    return aggregator


def _class(name: str, file: Path) -> type[Any]:
    """The one class of a name."""
    where = f"{file}: server_configs.aggregator"
    others = list(entry_points(group=GROUP))
    claims = [point for point in others if point.name == name]
    owners = ["fl"] * (name in OURS) + [_owner(point) for point in claims]
    if len(owners) > 1:
        raise ConfigError(f"{where}: {name} is claimed by {' and '.join(owners)}")
    if name in OURS:
        return OURS[name]
    if not claims:
        known = [*OURS, *(point.name for point in others)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        raise ConfigError(f"{where}: {name} is unknown; {hint}")
    return _load(claims[0], where)


def _load(point: EntryPoint, where: str) -> type[Any]:
    """A user's class; whatever its import raises is told in one line."""
    try:
        kind = point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{where}: {point.name} of {_owner(point)} cannot be loaded ({reason})"
        ) from error
    settings = getattr(kind, "Settings", None)
    if not (
        isinstance(kind, type) and isinstance(settings, type) and issubclass(settings, Section)
    ):
        raise ConfigError(f"{where}: {point.name} of {_owner(point)} is no class that has Settings")
    return kind


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} ({point.value})" if point.dist else point.value
