"""A service in a thread for most tests, a whole sandbox where the SDK fixes the port."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import globus_sdk
import pika
import pytest
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.sdk.executor import _RESULT_WATCHERS
from globus_sdk import AccessTokenAuthorizer, ComputeClientV2, ComputeClientV3

from fl.sandbox import daemon
from fl.sandbox.folder import Folder
from fl.sandbox.identity import AUTH, COMPUTE, Identities
from fl.sandbox.limits import RateLimit
from fl.sandbox.options import Options
from fl.sandbox.ports import bind
from fl.sandbox.serve import Service
from fl.sandbox.store import Store

from .rabbitmq import RabbitMQ, need

DEADLINE_S = 20.0


def eventually(what: str, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The condition's value once it is true; fails, naming what was awaited, at the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {deadline_s} s in vain for {what}")
        time.sleep(0.02)
    return value


@pytest.fixture(scope="package")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    need()
    server = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="package", params=["built-in", "rabbitmq"])
def broker_kind(request: pytest.FixtureRequest) -> str:
    if request.param == "rabbitmq":
        request.getfixturevalue("rabbitmq")
    return str(request.param)


built_in_alone = pytest.mark.parametrize(
    "broker_kind", ["built-in"], indirect=True, scope="package"
)
"""For what takes the real SDK long, and is tried with both brokers by tests without it."""


@dataclass
class Running:
    """A service that runs in a thread of its own, and real clients for it."""

    service: Service
    loop: asyncio.AbstractEventLoop
    port: int
    broker_port: int
    clients: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE_S)

    def later(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on the service's own loop."""

        async def call() -> Any:
            return function(*args)

        return self.call(call())

    def token(self, client: int = 0, server: str = COMPUTE) -> str:
        return self.service.identities.issue(
            self.clients[client], server, f"secret of {self.clients[client]}"
        )

    def v2(self, client: int = 0) -> ComputeClientV2:
        return ComputeClientV2(
            base_url=self.url, authorizer=AccessTokenAuthorizer(self.token(client))
        )

    def v3(self, client: int = 0) -> ComputeClientV3:
        return ComputeClientV3(
            base_url=self.url, authorizer=AccessTokenAuthorizer(self.token(client))
        )

    def endpoint(self, client: int = 0, **registration: Any) -> dict[str, Any]:
        answer = self.v3(client).register_endpoint({"endpoint_name": "site", **registration})
        return dict(answer.data)

    def function(self, client: int = 0, **registration: Any) -> str:
        data = {"function_name": "f", "function_code": "2\ncode", **registration}
        return str(self.v3(client).register_function(data)["function_uuid"])

    def connect(self, url: str) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(url))


@pytest.fixture
def serving(broker_kind: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Running]]:
    """Starts services; each ends with the test."""
    stops: list[Callable[[], None]] = []

    def start(limit: RateLimit | None = None, lifetime_s: float = 3600.0, **kinds: Any) -> Running:
        web = bind(0, "the test")
        web_port = web.getsockname()[1]
        broker: Any = bind(0, "the test")
        broker_port = broker.getsockname()[1]
        if broker_kind == "rabbitmq":
            broker.close()
            server: RabbitMQ = request.getfixturevalue("rabbitmq")
            broker, broker_port = server.url("%2F"), server.port
        clients = [str(uuid.uuid4()), str(uuid.uuid4())]
        identities = Identities(lambda: {c: [f"secret of {c}"] for c in clients}, lifetime_s)
        limit = limit or RateLimit(requests=10_000)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def begin() -> Service:
            service = Service(Store(), identities, web, broker, limit, **kinds)
            await service.start()
            return service

        service = asyncio.run_coroutine_threadsafe(begin(), loop).result(DEADLINE_S)

        def stop() -> None:
            asyncio.run_coroutine_threadsafe(service.stop(), loop).result(DEADLINE_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(DEADLINE_S)
            service.store.close()
            web.close()

        stops.append(stop)
        return Running(service, loop, web_port, broker_port, clients)

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def running(serving: Callable[..., Running]) -> Running:
    return serving()


@pytest.fixture
def auth(running: Running) -> globus_sdk.AuthClient:
    return globus_sdk.AuthClient(
        base_url=running.url, authorizer=AccessTokenAuthorizer(running.token(server=AUTH))
    )


@dataclass(frozen=True)
class Up:
    """A whole sandbox that is up on the SDK's own port."""

    folder: Folder
    options: Options
    environment: dict[str, str]


@pytest.fixture(scope="package")
def sandbox(
    broker_kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Up]:
    folder = Folder(tmp_path_factory.mktemp("sandbox") / "box")
    broker = ""
    if broker_kind == "rabbitmq":
        broker = request.getfixturevalue("rabbitmq").url("other")
    options = Options(broker=broker)
    try:
        daemon.up(folder, options)
        record = json.loads(folder.record.read_text())
        secret = {
            "GLOBUS_COMPUTE_CLIENT_ID": record["client_id"],
            "GLOBUS_COMPUTE_CLIENT_SECRET": folder.secret.read_text().strip(),
        }
        yield Up(folder, options, {**record["environment"], **secret})
    finally:
        daemon.down(folder)


@pytest.fixture
def sdk(sandbox: Up, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Up:
    """Points this process's SDK at the sandbox."""
    for name, value in sandbox.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "globus_compute"))
    # A process's Executors share one task group, of which the next sandbox knows nothing.
    monkeypatch.setattr(Executor, "_default_task_group_id", None)
    return sandbox


@pytest.fixture
def sdk_client(sdk: Up) -> Iterator[Client]:
    yield Client()
    # The SDK's threads watch for results to the end of the process, sandbox or none.
    for watcher in list(_RESULT_WATCHERS.values()):
        watcher.shutdown(wait=False, cancel_futures=True)
