"""Choosing a transport from a client's or the server's configuration.

A way and its libraries are imported once it is chosen: all of them take a worker 13 MB and a fifth
of a second, and many file reads where its environment is on a parallel file system.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.config import ProxystoreConfigs, ServerCommConfigs
from fl.transport.base import Transport, TransportError, Way
from fl.transport.inline import InlineTransport


def open_server_transport(configs: ServerCommConfigs) -> Transport:
    """The server's way, connected.

    Args:
        configs: The server's `comm_configs`.

    Returns:
        S3 or the hub where one is enabled, else what `open_transport` gives.

    Raises:
        TransportError: The way cannot be opened from here.
    """
    if configs.s3_configs.enable_s3:
        from fl.transport.s3 import S3Transport

        return S3Transport(configs.s3_configs)
    if configs.hub_configs.enable_hub:
        from fl.transport.hub import HubTransport

        return HubTransport(configs.hub_configs)
    return open_transport(configs.proxystore_configs)


def open_transport(configs: ProxystoreConfigs) -> Transport:
    """The configured way, connected.

    Args:
        configs: `comm_configs.proxystore_configs` of the side that asks.

    Returns:
        ProxyStore's endpoints, a folder or Redis where one is configured, else inline.

    Raises:
        TransportError: The way cannot be opened from here.
    """
    connector = configs.connector_configs
    if not configs.enable_proxystore or connector is None:
        return InlineTransport()
    if connector.store_dir is not None:
        from fl.transport.file import FileTransport

        return FileTransport(Path(connector.store_dir))
    if connector.hostname is not None:
        from fl.transport.redis import RedisTransport

        return RedisTransport(connector.hostname, connector.port)
    from fl.transport.proxystore import ProxystoreTransport

    return ProxystoreTransport(connector.endpoints)


def open_granted(grant: Mapping[str, Any]) -> Way:
    """The way that the server grants a site.

    Args:
        grant: What the server's `Transport.grant` gave.

    Returns:
        That way.

    Raises:
        TransportError: It is none of this version's, or cannot be used.
    """
    way = grant.get("transport")
    if way == "s3":
        from fl.transport.s3 import SignedS3

        return SignedS3(grant)
    if way == "hub":
        from fl.transport.hub import SignedHub

        return SignedHub(grant)
    raise TransportError(f"the server grants a way named {str(way)[:40]!r}: of another version?")
