#!/usr/bin/env python3
"""ProxyStore by a relay of the federation's own: `own-relay start NAME | check CONFIG`.

`start` is `proxystore-endpoint start --no-detach` that believes the certificates of ../relay-ca.pem
and nothing else, and whose log tells no password: it stands in the relay's address, which
ProxyStore writes into its log. `check` asks the relay of a configuration as the endpoint does, then
as a stranger: one line, and exit code 1 where the first is refused or the second let in.
"""

import asyncio
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List

from proxystore.endpoint.cli import cli
from proxystore.endpoint.config import EndpointConfig
from proxystore.p2p.relay.client import RelayClient
from proxystore.utils.config import load
from websockets.exceptions import InvalidStatus, WebSocketException

CA_FILE = Path(__file__).absolute().parent.parent / "relay-ca.pem"
PASSWORD = re.compile(r"(wss?://[^\s:/@]*:)[^\s@/]+(?=@)")
ANSWER_SECONDS = 10


def trust() -> None:
    """Have OpenSSL take our file for the world's authorities, unless it is empty."""
    if CA_FILE.stat().st_size:
        os.environ["SSL_CERT_FILE"] = str(CA_FILE)


def keep_passwords_out_of_logs() -> None:
    """Redact every record before any handler has it."""
    make = logging.getLogRecordFactory()

    def redacted(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = make(*arguments, **more)
        record.msg, record.args = PASSWORD.sub(r"\1[redacted]", record.getMessage()), ()
        return record

    logging.setLogRecordFactory(redacted)


def start(name: str) -> None:
    """Be the endpoint until it ends."""
    keep_passwords_out_of_logs()
    cli(["start", "--no-detach", name], prog_name="proxystore-endpoint")


async def register(address: str) -> None:
    """Register at the relay as a peer that nobody knows, and go."""
    client = RelayClient(
        address, client_name="fl-health", reconnect_task=False, timeout=ANSWER_SECONDS
    )
    try:
        await client.connect(retry=False)
    finally:
        await client.close()


async def found(address: str) -> str:
    """What is wrong with the relay, or nothing."""
    try:
        await register(address)
    except InvalidStatus as error:
        return f"it refuses this site's password (HTTP {error.response.status_code})"
    except (OSError, asyncio.TimeoutError, WebSocketException) as error:
        return f"it cannot be reached: {error or type(error).__name__}"
    try:
        await register(re.sub("//.*@", "//", address))
    except InvalidStatus as error:
        return "" if error.response.status_code == 401 else f"a stranger is told {error}"
    except (OSError, asyncio.TimeoutError, WebSocketException) as error:
        return f"a stranger ends in {type(error).__name__} where HTTP 401 was due"
    return "it lets strangers in"


def check(file: str) -> None:
    """Ask the relay that a configuration names."""
    with Path(file).open("rb") as stream:
        address = load(EndpointConfig, stream).relay.address
    if problem := asyncio.run(found(str(address))):
        sys.exit(problem)


WORDS: Dict[str, Any] = {"start": start, "check": check}


def main(arguments: List[str]) -> None:
    """Do what the word says."""
    if len(arguments) != 2 or arguments[0] not in WORDS:
        sys.exit("usage: own-relay start NAME | check CONFIG")
    trust()
    WORDS[arguments[0]](arguments[1])


if __name__ == "__main__":
    main(sys.argv[1:])
