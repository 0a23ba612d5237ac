"""The sandbox's one process: broker, web service and relay on one event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import Any

from hypercorn.asyncio import serve as serve_http
from hypercorn.config import Config
from quart import Quart

from fl.sandbox import errors, snapshot
from fl.sandbox.auth_routes import auth_routes
from fl.sandbox.broker import Broker
from fl.sandbox.compute_routes import Compute
from fl.sandbox.dispatch import Address, Dispatch
from fl.sandbox.folder import Folder, Identity, ProcessRecord, SandboxError
from fl.sandbox.identity import Identities
from fl.sandbox.limits import MAX_BODY_BYTES, RateLimit
from fl.sandbox.link import BrokerUnavailableError
from fl.sandbox.options import REQUEST, Options
from fl.sandbox.own_routes import own_routes
from fl.sandbox.ports import HOST, bind, free_port
from fl.sandbox.relay import Relay
from fl.sandbox.store import Store
from fl.sandbox.wire import Account

log = logging.getLogger(__name__)

SERVICE_USER = "service"


class Service:
    """Broker and web service, without relay or folder.

    Args:
        store: What is known.
        identities: Who may call.
        web: The listening socket of the web service.
        broker: The listening socket of the sandbox's own broker, or the URL of a RabbitMQ.
        limit: How often a client may call.
        queues: What `stop` of an earlier run gave.

    Raises:
        ValueError: that is not what it gave.
    """

    def __init__(
        self,
        store: Store,
        identities: Identities,
        web: socket.socket,
        broker: socket.socket | str,
        limit: RateLimit | None = None,
        queues: str = "",
    ) -> None:
        self.store = store
        self.identities = identities
        self.broker: Broker | None = None
        self._web = web
        self._listener = broker
        self._password = secrets.token_urlsafe(24)
        self._limit = limit or RateLimit()
        if isinstance(broker, str):
            address = Address(url=broker)
        else:
            self.broker = Broker(self._account)
            snapshot.load(self.broker.vhost, queues or "{}")
            address = Address(f"{HOST}:{broker.getsockname()[1]}")
        self.dispatch = Dispatch(
            store, address, address.url_for(SERVICE_USER, self._password), self._disconnect
        )
        self._stop_web = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start; both parts answer when this returns.

        Raises:
            BrokerUnavailableError: the RabbitMQ cannot be used.
        """
        if self.broker and not isinstance(self._listener, str):
            await self.broker.start(self._listener)
        await self.dispatch.start()
        self._serving = asyncio.create_task(self._serve())

    def _account(self, user: str, password: str) -> Account | None:
        """The broker's account of the service itself, of an endpoint, or of a client."""
        if user in self.identities.secrets:
            good = self.identities.is_broker_password(user, password)
            return Account(user, f"{user}.") if good else None
        if user == SERVICE_USER:
            expected, prefix = self._password, ""
        elif endpoint := self.store.endpoint(user):
            expected, prefix = endpoint.password, f"{user}."
        else:
            return None
        good = secrets.compare_digest(expected.encode(), password.encode())
        return Account(user, prefix) if good else None

    def _disconnect(self, user: str, reason: str) -> None:
        if self.broker:
            self.broker.disconnect(user, reason)

    def app(self) -> Quart:
        """The web application."""
        app = Quart(__name__)
        app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
        errors.install(app)
        app.register_blueprint(auth_routes(self.identities))
        compute = Compute(self.store, self.dispatch, self.identities, self._limit)
        app.register_blueprint(compute.blueprint())
        app.register_blueprint(own_routes(self.store, self.dispatch, self.identities))
        return app

    async def _serve(self) -> None:
        config = Config()
        config.bind = [f"fd://{self._web.detach()}"]  # Hypercorn closes it
        config.graceful_timeout = 2.0
        config.shutdown_timeout = 2.0
        config.keep_alive_timeout = 75.0
        config.loglevel = "WARNING"
        await serve_http(self.app(), config, shutdown_trigger=self._web_stopped)

    async def _web_stopped(self) -> None:
        await self._stop_web.wait()

    async def stop(self) -> str | None:
        """Stop taking requests, then stop the broker.

        Returns:
            What waits in the sandbox's own broker, for the next run; None where it has none.
        """
        self._stop_web.set()
        if self._serving:
            await asyncio.gather(self._serving, return_exceptions=True)
        await self.dispatch.stop()
        if self.broker is None:
            return None
        await self.broker.stop()
        return snapshot.dump(self.broker.vhost)


class Sandbox:
    """A service and a relay that live in a folder."""

    def __init__(self, folder: Folder, options: Options) -> None:
        self._folder = folder
        self._options = options
        self._record: dict[str, Any] = {}

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Run from start to ``stop``; sets ``ready`` when everything answers.

        Raises:
            SandboxError: something cannot start.
        """
        options, folder = self._options, self._folder
        web = bind(options.web_port, "the web service")
        identity = self._choose_ports(folder.identity())
        broker = options.broker or bind(identity.broker_port, "the broker")
        if isinstance(broker, socket.socket):
            identity = replace(identity, broker_port=broker.getsockname()[1])
        store = Store(folder.state)
        folder.state.chmod(0o600)
        identities = Identities(lambda: folder.accepted(identity.client_id))
        service = self._service(store, identities, web, broker)
        relay = Relay(identity.relay_port, folder.relay_log, self._relay_started)
        async with AsyncExitStack() as ends:  # each is done, whatever comes of the others
            ends.callback(folder.record.unlink, missing_ok=True)
            ends.callback(store.close)
            ends.push_async_callback(self._stop, service)
            ends.push_async_callback(relay.stop)
            try:
                await service.start()
            except BrokerUnavailableError as error:
                raise SandboxError(
                    f"cannot use the broker {_without_password(options.broker)}: {error}"
                ) from error
            if service.broker:
                # From now on it holds what waited. A later start after a kill would send it twice.
                folder.queues.unlink(missing_ok=True)
            self._record = self._describe(identity, service.dispatch.address)
            await relay.start()
            folder.remember(identity)  # not before: a port that is taken would be asked for again
            ready.set()
            await stop.wait()

    def _service(
        self, store: Store, identities: Identities, web: socket.socket, broker: socket.socket | str
    ) -> Service:
        file = self._folder.queues
        try:
            queues = file.read_text() if file.exists() else ""
            return Service(store, identities, web, broker, queues=queues)
        except (OSError, ValueError) as error:
            raise SandboxError(f"cannot read {file}: {error}") from error

    async def _stop(self, service: Service) -> None:
        waiting = await service.stop()
        if waiting is not None:
            self._folder.write(self._folder.queues, waiting)

    def _choose_ports(self, identity: Identity) -> Identity:
        options = self._options
        return replace(
            identity,
            broker_port=options.broker_port or identity.broker_port,
            relay_port=options.relay_port or identity.relay_port or free_port(),
        )

    def _describe(self, identity: Identity, address: Address) -> dict[str, Any]:
        port = self._options.web_port
        auth = f"http://{HOST}:{port}/"
        return {
            **_named(ProcessRecord.of(os.getpid())),
            "compute": f"http://localhost:{port}",
            "auth": auth,
            "broker": address.url or f"amqp://{address.host_and_port}/%2F",
            "relay": f"ws://{HOST}:{identity.relay_port}",
            "client_id": identity.client_id,
            "environment": {
                "GLOBUS_SDK_ENVIRONMENT": "local",
                "GLOBUS_SDK_SERVICE_URL_AUTH": auth,
                "no_proxy": f"localhost,{HOST}",
                "NO_PROXY": f"localhost,{HOST}",
            },
        }

    def _relay_started(self, pid: int) -> None:
        self._record |= _named(ProcessRecord.of(pid), "relay_")
        self._folder.write(self._folder.record, json.dumps(self._record, indent=1) + "\n")


def _named(record: ProcessRecord, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in asdict(record).items()}


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


async def main(folder: Folder, options: Options, ready_fd: int) -> None:
    """Run a sandbox until SIGTERM; writes ``ready``, or the error, to a file descriptor."""
    ready, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running = asyncio.create_task(Sandbox(folder, options).run(ready, stop))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    with os.fdopen(ready_fd, "w") as pipe:
        if not ready.is_set():
            waiting.cancel()
            pipe.write(_one_line(running.exception()))
            return
        pipe.write("ready")
    await running


def _one_line(error: BaseException | None) -> str:
    if isinstance(error, SandboxError):
        return str(error)
    log.error("the sandbox could not start", exc_info=error)
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    os.umask(0o077)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("pika").setLevel(logging.WARNING)
    request = json.loads(os.environ.pop(REQUEST))
    chosen = Folder()
    asyncio.run(main(chosen, Options(**request["options"]), request["ready_fd"]))
