"""A RabbitMQ of the tests' own: its node name, ports and folders are nobody else's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pika
import pytest

from tests import packages

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_S = 90.0


def need() -> None:
    """Skip the test that asks where no RabbitMQ can be run."""
    if reason := packages.install({"rabbitmq-server": "rabbitmq-server"}):
        pytest.skip(f"the built-in broker is tested alone: {reason}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RabbitMQ:
    """Starts one with two virtual hosts: ``/`` and ``other``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"fl{os.getpid()}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        }

    def url(self, vhost: str) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def start(self) -> None:
        definitions = self._folder / "definitions.json"
        definitions.write_text(json.dumps(DEFINITIONS))
        (self._folder / "rabbitmq.conf").write_text(f"load_definitions = {definitions}\n")
        (self._folder / "plugins").write_text("[].\n")
        program = PROGRAM if PROGRAM.exists() else "rabbitmq-server"
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [str(program)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"RabbitMQ did not start:\n{(self._folder / 'output').read_text()}"
                )
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            pika.BlockingConnection(pika.URLParameters(self.url("other"))).close()
        except pika.exceptions.AMQPError:
            return False
        return True

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(30)
        # The Erlang port mapper outlives its node; this one, on its own port, is ours.
        subprocess.run(["epmd", "-kill"], env=self._environment, capture_output=True, check=False)


DEFINITIONS = {
    "users": [{"name": "guest", "password": "guest", "tags": "administrator"}],
    "vhosts": [{"name": "/"}, {"name": "other"}],
    "permissions": [
        {"user": "guest", "vhost": v, "configure": ".*", "write": ".*", "read": ".*"}
        for v in ("/", "other")
    ],
}
