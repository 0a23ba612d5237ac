"""Choosing a transport from a client's or the server's configuration."""

from __future__ import annotations

from pathlib import Path

from fl.config import ProxystoreConfigs, ServerCommConfigs
from fl.transport.base import Transport
from fl.transport.file import FileTransport
from fl.transport.inline import InlineTransport
from fl.transport.proxystore import ProxystoreTransport
from fl.transport.s3 import S3Transport


def open_server_transport(configs: ServerCommConfigs) -> Transport:
    """The server's way, connected.

    Args:
        configs: The server's `comm_configs`.

    Returns:
        S3 where it is enabled, else what `open_transport` gives.

    Raises:
        TransportError: The way cannot be opened from here.
    """
    if configs.s3_configs.enable_s3:
        return S3Transport(configs.s3_configs)
    return open_transport(configs.proxystore_configs)


def open_transport(configs: ProxystoreConfigs) -> Transport:
    """The configured way, connected.

    Args:
        configs: `comm_configs.proxystore_configs` of the side that asks.

    Returns:
        ProxyStore's endpoints or a folder where one is configured, else inline.

    Raises:
        TransportError: The way cannot be opened from here.
    """
    connector = configs.connector_configs
    if not configs.enable_proxystore or connector is None:
        return InlineTransport()
    if connector.store_dir is not None:
        return FileTransport(Path(connector.store_dir))
    return ProxystoreTransport(connector.endpoints)
