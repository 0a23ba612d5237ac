"""Source that a server ships with its tasks, the way of APPFL: where sites' policies let it in."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fl.client.request import MOST_SOURCE
from fl.client.site_code import site_code_folder
from fl.config import Client, ConfigError, Federation


def sources(federation: Federation, client: Client) -> dict[str, str]:
    """The files that a client's tasks run, as they were when a run first read them.

    Args:
        federation: The configuration.
        client: The client.

    Returns:
        Python source by path, relative to `FL_SITE_CODE`.

    Raises:
        ConfigError: One is not there, too large, or no text.
    """
    configs = federation.train_configs(client)
    named = (
        federation.client_configs.model_configs.model_path,
        client.data_configs.dataset_path,
        configs.loss_fn_path,
        configs.metric_path,
    )
    return {path: _read(site_code_folder(), path) for path in named if path is not None}


def digests(federation: Federation) -> dict[str, str]:
    """SHA-256 of every file that is shipped to any client, by path, as sites' policies list it.

    Args:
        federation: The configuration; of one that ships nothing, none.

    Raises:
        ConfigError: As `sources`.
    """
    clients = federation.clients if federation.server_configs.ship_source else []
    files = {path: text for client in clients for path, text in sources(federation, client).items()}
    return {path: hashlib.sha256(text.encode()).hexdigest() for path, text in sorted(files.items())}


@cache
def _read(folder: Path, path: str) -> str:
    try:
        text = (folder / path).read_bytes().decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"ship_source: {folder / path} cannot be read: {error}") from error
    if len(text) > MOST_SOURCE:
        raise ConfigError(f"ship_source: {path} has {len(text)} characters, {MOST_SOURCE} at most")
    return text
