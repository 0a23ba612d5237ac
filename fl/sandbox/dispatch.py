"""Tasks out, results and heartbeats in: what the service does with its broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from globus_compute_common.messagepack import pack, unpack
from globus_compute_common.messagepack.message_types import (
    EPStatusReport,
    Result,
    ResultErrorDetails,
)
from globus_compute_common.messagepack.message_types import (
    Task as TaskMessage,
)

from fl.sandbox.link import BrokerUnavailableError, Link
from fl.sandbox.liveness import Liveness
from fl.sandbox.store import Endpoint, Function, Group, Store, Task

log = logging.getLogger(__name__)

EXCHANGE = "globus_compute"
RESULTS = "results"
HEARTBEATS = "heartbeats"


@dataclass(frozen=True)
class Address:
    """Where clients find the broker.

    Attributes:
        host_and_port: Of the sandbox's own broker, where each client has credentials of its own.
        url: Of a real RabbitMQ, which all share; the sandbox cannot make accounts there.
    """

    host_and_port: str = ""
    url: str = ""

    def url_for(self, user: str, password: str) -> str:
        """The URL with which a client connects."""
        if self.url:
            return self.url
        return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{self.host_and_port}/%2F"


def commands_queue(endpoint_id: str) -> str:
    """Name of the queue from which a manager takes its commands."""
    return f"{endpoint_id}.commands"


def tasks_queue(endpoint_id: str) -> str:
    """Name of the queue from which a user endpoint takes its tasks."""
    return f"{endpoint_id}.tasks"


def group_queue(group: Group) -> str:
    """Name of the queue of a task group's results, with the prefix that the SDK is told."""
    return f"{group.owner}.{group.id}"


Sends = dict[str, Callable[[], Awaitable[None]]]
"""What sends a task, by its id."""


async def _send(sends: Sends) -> None:
    """Send, and take out of the sends what the broker took: the rest is for another try."""
    tasks = list(sends)  # more may come meanwhile
    outcomes = await asyncio.gather(*(sends[i]() for i in tasks), return_exceptions=True)
    for task_id, outcome in zip(tasks, outcomes, strict=True):
        if outcome is None:
            del sends[task_id]
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, BrokerUnavailableError):
            raise outcome


@dataclass
class Start:
    """How often a user endpoint was asked to start in vain, and when to ask again (monotonic s)."""

    attempts: int = 0
    again_at: float = 0.0


class Dispatch:
    """The service's side of the broker.

    Attributes:
        liveness: Which endpoints are online.
        address: Where endpoints and SDKs are told to connect.
    """

    WATCH_S = 1.0
    RESTART_S = 5.0
    RESTART_MOST_S = 30.0
    RECONNECT_S = 1.0
    EXPIRE_S = 60.0

    def __init__(
        self,
        store: Store,
        address: Address,
        own_url: str,
        disconnect: Callable[[str, str], None],
    ) -> None:
        self.liveness = Liveness()
        self.address = address
        self._store = store
        self._own_url = own_url
        self._disconnect = disconnect
        self._link: Link | None = None
        self._starts: dict[str, Start] = {}
        self._sent_later: Sends = {}
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect, make the queues, and keep at it until `stop`.

        Raises:
            BrokerUnavailableError: the broker cannot be reached.
        """
        await self._connect()
        self._background = [
            asyncio.create_task(self._stay_connected()),
            asyncio.create_task(self._watch()),
        ]

    async def stop(self) -> None:
        """Disconnect."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._link:
            await self._link.close()

    async def _connect(self) -> None:
        link = await Link.open(self._own_url)
        try:
            await self._prepare(link)
        except Exception:
            self._link = None
            await link.close()
            raise

    async def _prepare(self, link: Link) -> None:
        """Make the queues, and read those that are the service's own."""
        await link.declare_exchange(EXCHANGE, "topic")
        for queue in (RESULTS, HEARTBEATS):
            await link.declare_queue(queue)
            await link.bind(queue, EXCHANGE, f"*.{queue}")
        for endpoint in self._store.endpoints():
            await link.declare_queue(
                tasks_queue(endpoint.id) if endpoint.parent else commands_queue(endpoint.id)
            )
        for group in self._store.groups():
            await link.declare_queue(group_queue(group))
        self._link = link
        await link.consume(RESULTS, self._on_result)
        await link.consume(HEARTBEATS, self._on_heartbeat)

    async def _stay_connected(self) -> None:
        while True:
            if self._link:
                await asyncio.shield(self._link.closed)
                self._link = None
                log.warning("lost the broker; connecting again")
            await asyncio.sleep(self.RECONNECT_S)
            try:
                await self._connect()
            except BrokerUnavailableError:
                continue
            except Exception:
                log.exception("could not connect again")

    @property
    def link(self) -> Link:
        """The connection to the broker.

        Raises:
            BrokerUnavailableError: there is none at the moment.
        """
        if self._link is None:
            raise BrokerUnavailableError("the broker cannot be reached at the moment")
        return self._link

    # Endpoints.

    async def admit(self, endpoint: Endpoint) -> dict[str, Any]:
        """Make a manager's queues and answer with what it needs to connect.

        Commands meant for an earlier start of the manager are dropped: it would act on them now.
        """
        self._disconnect(endpoint.id, "this endpoint registered again")
        self.liveness.lost(endpoint.id)
        await self.link.declare_queue(commands_queue(endpoint.id))
        await self.link.purge(commands_queue(endpoint.id))
        for child in self._store.children(endpoint.id):
            self._starts.pop(child.id, None)
        return {
            "endpoint_id": endpoint.id,
            "command_queue_info": {
                "connection_url": self.address.url_for(endpoint.id, endpoint.password),
                "queue": commands_queue(endpoint.id),
            },
            "heartbeat_queue_info": self._report_queue(endpoint, HEARTBEATS),
        }

    def _report_queue(self, endpoint: Endpoint, queue: str) -> dict[str, Any]:
        return {
            "connection_url": self.address.url_for(endpoint.id, endpoint.password),
            "exchange": EXCHANGE,
            "queue": queue,
            "queue_publish_kwargs": {
                "exchange": EXCHANGE,
                "routing_key": f"{endpoint.id}.{queue}",
                "mandatory": True,
                "properties": {"delivery_mode": 2, "content_type": "application/octet-stream"},
            },
        }

    def expel(self, endpoint: Endpoint) -> None:
        """Drop the connections of an endpoint; its credentials must have changed before."""
        self._disconnect(endpoint.id, "this endpoint was locked or deleted")
        self.liveness.lost(endpoint.id)

    async def remove(self, endpoint: Endpoint) -> None:
        """Drop an endpoint's connections and queues, and those of its user endpoints."""
        for child in self._store.children(endpoint.id):
            self.expel(child)
            await self.link.delete_queue(tasks_queue(child.id))
            await self._fail_tasks(child, "ENDPOINT_DELETED", f"Endpoint {endpoint.id} was deleted")
        self.expel(endpoint)
        await self.link.delete_queue(commands_queue(endpoint.id))

    # Tasks out.

    async def submit(
        self,
        group: Group,
        endpoint: Endpoint,
        calls: list[tuple[Function, str]],
        headers: Mapping[str, Any],
    ) -> list[str]:
        """Queue calls (a function, its packed arguments) for a user endpoint; returns their ids."""
        if group.queue:
            await self.link.declare_queue(group_queue(group))
        await self.link.declare_queue(tasks_queue(endpoint.id))
        ids = [str(uuid.uuid4()) for _ in calls]
        self._store.add_tasks(group, endpoint, ids)
        sends: Sends = {
            task_id: partial(self._send_task, endpoint, task_id, function, arguments, headers)
            for task_id, (function, arguments) in zip(ids, calls, strict=True)
        }
        try:
            await _send(sends)
        except Exception:  # whoever sent them has no ids, and nobody would send the rest
            self._store.drop_tasks(ids)
            raise
        if len(sends) == len(ids):
            self._store.drop_tasks(ids)
            raise BrokerUnavailableError("the broker took no task")
        # Were the batch refused, it would be sent again as a whole, and a part of it done twice.
        self._sent_later |= sends
        with contextlib.suppress(BrokerUnavailableError):  # the tasks are on their way all the same
            await self._wake(endpoint)
        return ids

    async def _send_task(
        self,
        endpoint: Endpoint,
        task_id: str,
        function: Function,
        arguments: str,
        headers: Mapping[str, Any],
    ) -> None:
        body = pack(TaskMessage(task_id=uuid.UUID(task_id), task_buffer=function.code + arguments))
        identity = {"function_uuid": function.id, "task_uuid": task_id}
        await self.link.publish(
            tasks_queue(endpoint.id), body, {"headers": {**headers, **identity}}
        )

    async def _watch(self) -> None:
        """Ask again for user endpoints whose start command was swallowed; forget what is old."""
        expire_at = 0.0
        while True:
            await asyncio.sleep(self.WATCH_S)
            try:
                if time.monotonic() >= expire_at:
                    expire_at = time.monotonic() + self.EXPIRE_S
                    await self._expire(time.time())
                await self._send_rest()
                for endpoint in self._store.waiting_endpoints():
                    await self._wake(endpoint)
            except BrokerUnavailableError:
                continue
            except Exception:  # a full disk, say
                log.exception("could not look after the tasks that wait")

    async def _expire(self, now: float) -> None:
        self._store.expire(now)
        for group in self._store.old_groups(now):
            if group.queue:
                await self.link.delete_queue(group_queue(group))
            self._store.delete_group(group.id)

    async def _send_rest(self) -> None:
        """Send what the broker did not take of a batch, unless it has ended meanwhile."""
        for task_id in [i for i in self._sent_later if not self._store.is_open(i)]:
            del self._sent_later[task_id]
        await _send(self._sent_later)

    async def _wake(self, endpoint: Endpoint) -> None:
        """Have the manager start a user endpoint, if tasks wait for one and the manager listens.

        A start command that meets a user endpoint on its way out has no effect, so it is sent
        again, ever more seldom; one that meets a live or a starting one does no harm.
        """
        tasks = await self.link.depth(tasks_queue(endpoint.id))
        start = self._starts.setdefault(endpoint.id, Start())
        if not tasks.messages or tasks.consumers or time.monotonic() < start.again_at:
            return
        manager = self._store.endpoint(endpoint.parent or "")
        if manager is None or not (await self.link.depth(commands_queue(manager.id))).consumers:
            return
        pause_s = min(self.RESTART_S * 2**start.attempts, self.RESTART_MOST_S)
        self._starts[endpoint.id] = Start(start.attempts + 1, time.monotonic() + pause_s)
        await self.link.publish(
            commands_queue(manager.id),
            json.dumps(self._start_command(manager, endpoint)).encode(),
            {"content_type": "application/json", "timestamp": int(time.time())},
        )
        log.info("asked %s to start user endpoint %s", manager.id, endpoint.id)

    def _start_command(self, manager: Endpoint, endpoint: Endpoint) -> dict[str, Any]:
        username = f"{endpoint.owner}@clients.auth.globus.org"
        return {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": {
                "name": f"uep.{manager.id}.{endpoint.id}",
                "user_opts": json.loads(endpoint.options or "{}"),
                "user_runtime": endpoint.registration,
                "amqp_creds": {
                    "endpoint_id": endpoint.id,
                    "task_queue_info": {
                        "connection_url": self.address.url_for(endpoint.id, endpoint.password),
                        "queue": tasks_queue(endpoint.id),
                    },
                    "result_queue_info": self._report_queue(endpoint, RESULTS),
                    "heartbeat_queue_info": self._report_queue(endpoint, HEARTBEATS),
                },
            },
            "globus_effective_identity": endpoint.owner,
            "globus_username": username,
            "globus_identity_set": [{"sub": endpoint.owner, "username": username}],
        }

    # Results and heartbeats in.

    async def _on_result(self, routing_key: str, body: bytes) -> None:
        result = unpack(body)
        if not isinstance(result, Result):
            raise TypeError(f"a {type(result).__name__} where a result belongs")
        task = self._store.task(str(result.task_id))
        if task is None or task.endpoint != routing_key.removesuffix(f".{RESULTS}"):
            log.warning(
                "%s sent a result for %s, which is not its task", routing_key, result.task_id
            )
        elif task.completed is None:
            await self._complete(task, result, body)

    async def _complete(self, task: Task, result: Result, body: bytes) -> None:
        group = self._store.group(task.group)
        if group and group.queue:
            await self.link.publish(group_queue(group), body, {"timestamp": int(time.time())})
        details = json.loads(json.dumps(result.details, default=str))
        self._store.complete_task(task.id, result.data, details, failed=result.is_error)

    async def _on_heartbeat(self, routing_key: str, body: bytes) -> None:
        report = unpack(body)
        if not isinstance(report, EPStatusReport):
            raise TypeError(f"a {type(report).__name__} where a heartbeat belongs")
        endpoint = self._store.endpoint(str(report.endpoint_id))
        if endpoint is None or endpoint.id != routing_key.removesuffix(f".{HEARTBEATS}"):
            log.warning("%s sent a heartbeat for %s", routing_key, report.endpoint_id)
        elif error := report.global_state.get("error"):
            await self._on_failed_start(endpoint, str(error))
        else:
            self.liveness.heard(endpoint.id, report.global_state)
            self._starts.pop(endpoint.id, None)

    async def _on_failed_start(self, endpoint: Endpoint, error: str) -> None:
        """Fail the tasks that wait for a user endpoint, with the reason why it cannot start."""
        if endpoint.parent is None or self.liveness.beat(endpoint.id):
            return
        log.warning("user endpoint %s did not start: %s", endpoint.id, error)
        await self.link.purge(tasks_queue(endpoint.id))
        self._starts.pop(endpoint.id, None)
        await self._fail_tasks(endpoint, "ENDPOINT_START_FAILED", error)

    async def _fail_tasks(self, endpoint: Endpoint, code: str, message: str) -> None:
        for task in self._store.open_tasks(endpoint.id):
            result = Result(
                task_id=uuid.UUID(task.id),
                data=message,
                error_details=ResultErrorDetails(code=code, user_message=message),
            )
            await self._complete(task, result, pack(result))
