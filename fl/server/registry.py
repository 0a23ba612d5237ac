"""From a name in server.yaml to a class: ours, or of a user's package by an entry point."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fl.config import Arguments, ConfigError, Section
from fl.config_files import explain


def build(
    key: str,
    name: str,
    kwargs: Arguments,
    context: Any,
    ours: Mapping[str, type[Any]],
    group: str,
    file: Path,
) -> Any:
    """Build what a key of `server_configs` names, from the settings under KEY_kwargs.

    Args:
        key: The key: `aggregator` or `scheduler`.
        name: What stands there.
        kwargs: The settings.
        context: What the class is called with besides them.
        ours: Classes of this package by their names.
        group: The entry-point group of other packages' classes.
        file: Where key and settings stand, for messages.

    Returns:
        An instance.

    Raises:
        ConfigError: The name is unknown or somebody else's too, its class cannot be loaded, a
            setting is unknown or out of range, or the settings do not fit the context.
    """
    where = f"{file}: server_configs.{key}"
    kind = find(where, name, ours, group)
    settings = getattr(kind, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, Section)):
        raise ConfigError(f"{where}: {name} is no class that has Settings")
    place = "server_configs", f"{key}_kwargs"
    try:
        # Through JSON, as all of the file: strict mode takes fewer types from Python.
        settings = kind.Settings.model_validate_json(json.dumps(kwargs))
    except ValidationError as error:
        raise ConfigError(explain(file, kind.Settings, error, place)) from error
    try:
        return kind(settings, context)
    except ValueError as error:
        raise ConfigError(f"{file}: {'.'.join(place)}: {error}") from error


def find(where: str, name: str, ours: Mapping[str, type[Any]], group: str) -> type[Any]:
    """The one class of a name.

    Args:
        where: The file and the key that it stands under, for messages.
        name: What stands there.
        ours: Classes of this package by their names.
        group: The entry-point group of other packages' classes.

    Returns:
        The class.

    Raises:
        ConfigError: The name is unknown or somebody else's too, or its class cannot be loaded.
    """
    others = list(entry_points(group=group))
    claims = [point for point in others if point.name == name]
    owners = ["fl"] * (name in ours) + [_owner(point) for point in claims]
    if len(owners) > 1:
        raise ConfigError(f"{where}: {name} is claimed by {' and '.join(owners)}")
    if name in ours:
        return ours[name]
    if not claims:
        known = [*ours, *(point.name for point in others)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        raise ConfigError(f"{where}: {name} is unknown; {hint}")
    return _load(claims[0], where)


def _load(point: EntryPoint, where: str) -> type[Any]:
    """A user's class; whatever its import raises is told in one line."""
    named = f"{where}: {point.name} of {_owner(point)}"
    try:
        kind = point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{named} cannot be loaded ({reason})") from error
    if not isinstance(kind, type):
        raise ConfigError(f"{named} is no class")
    return kind


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} ({point.value})" if point.dist else point.value
