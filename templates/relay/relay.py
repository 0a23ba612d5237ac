#!/usr/bin/env python3
"""Serves ProxyStore's relay by TLS, for a password: `relay CONFIG PASSWORD_FILE PID_FILE`.

`proxystore-relay` lets in whoever comes, or by Globus Auth who shows a token for ProxyStore's own
application, about which Globus tells that application alone. So a password is asked for before a
websocket opens, by HTTP's basic authentication: an endpoint sends what stands before the @ of its
relay's address.
"""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import List

from proxystore.p2p.relay.authenticate import get_authenticator
from proxystore.p2p.relay.config import RelayServingConfig
from proxystore.p2p.relay.server import RelayServer
from websockets.asyncio.server import basic_auth
from websockets.asyncio.server import serve as serve_websockets

USER = "fl"
# A certificate is renewed weeks before its end. A restart would cut every endpoint off for good.
RENEWAL_SECONDS = 3600

log = logging.getLogger("relay")


def certified(config: RelayServingConfig) -> ssl.SSLContext:
    """A context with the certificate and key as the files are now.

    Raises:
        OSError: a file cannot be read, or one does not fit the other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(config.certfile), config.keyfile)
    return context


async def renew(context: ssl.SSLContext, config: RelayServingConfig) -> None:
    """Take a renewed certificate for new connections, if it and its key are whole."""
    while True:
        await asyncio.sleep(RENEWAL_SECONDS)
        try:
            certified(config)
            context.load_cert_chain(str(config.certfile), config.keyfile)
        except OSError as error:
            log.warning("the certificate of %s stays as it was: %s", config.certfile, error)


async def serve(config: RelayServingConfig, password: str, pid_file: Path) -> None:
    """Serve until a signal ends it; the pid file is written once it listens."""
    context, stop = certified(config), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    relay = RelayServer(get_authenticator(config.auth), max_message_bytes=config.max_message_bytes)
    async with serve_websockets(
        relay.handler,
        config.host,
        config.port,
        ssl=context,
        process_request=basic_auth("relay", credentials=(USER, password)),
    ):
        pid_file.write_text(f"{os.getpid()}\n")
        renewal = asyncio.create_task(renew(context, config))
        await stop.wait()
        renewal.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewal


def main(arguments: List[str]) -> None:
    """Read what the play wrote, and serve."""
    config = RelayServingConfig.from_toml(arguments[0])
    logging.basicConfig(
        level=config.logging.default_level, format="[%(asctime)s] %(levelname)s %(message)s"
    )
    logging.getLogger("websockets").setLevel(config.logging.websockets_level)
    password = Path(arguments[1]).read_text().strip()
    asyncio.run(serve(config, password, Path(arguments[2])))


if __name__ == "__main__":
    main(sys.argv[1:])
