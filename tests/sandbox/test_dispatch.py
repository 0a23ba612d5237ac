"""Tasks, start commands, results and heartbeats; pika plays the manager and user endpoint."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from globus_compute_common.messagepack import pack, unpack
from globus_compute_common.messagepack.message_types import (
    EPStatusReport,
    Result,
    ResultErrorDetails,
)
from pika.exceptions import AMQPError, ChannelClosedByBroker, ProbableAuthenticationError

from fl.sandbox.dispatch import Dispatch
from fl.sandbox.link import BrokerUnavailableError, Link
from fl.sandbox.store import Endpoint

from .conftest import Running, eventually


class Site:
    """A registered endpoint, its connections, and one function to send it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.registration = running.endpoint()
        self.id = self.registration["endpoint_id"]
        self.function = running.function()
        self.commands: list[dict[str, Any]] = []
        self._open: list[pika.BlockingConnection] = []

    def channel(self, url: str) -> Any:
        self._open.append(self.running.connect(url))
        channel = self._open[-1].channel()
        channel.confirm_delivery()
        return channel

    def close(self) -> None:
        for connection in self._open:
            # One that the service has dropped finds that out here.
            with contextlib.suppress(AMQPError):
                connection.close()

    def listen(self) -> Any:
        """Take commands as a manager does; returns the channel."""
        queue = self.registration["command_queue_info"]
        channel = self.channel(queue["connection_url"])
        channel.basic_consume(queue["queue"], self._on_command, auto_ack=True)
        return channel

    def _on_command(self, _: Any, __: Any, properties: Any, body: bytes) -> None:
        assert properties.content_type == "application/json"
        assert abs(properties.timestamp - time.time()) < 5
        self.commands.append(json.loads(body))

    def commanded(self, channel: Any, count: int = 1) -> dict[str, Any]:
        """The credentials in the last of so many commands."""
        connection = channel.connection

        def arrived() -> bool:
            connection.process_data_events(0.05)
            return len(self.commands) >= count

        eventually(f"{count} start commands", arrived)
        return dict(self.commands[-1]["kwargs"]["amqp_creds"])

    def submit(self, payload: str = "args", **more: Any) -> tuple[str, str]:
        answer = self.running.v3().submit(self.id, {"tasks": {self.function: [payload]}, **more})
        return answer["tasks"][self.function][0], answer["task_group_id"]

    def send(self, queue: dict[str, Any], message: Any) -> None:
        """Publish as the endpoint does, with what the service told it."""
        arguments = dict(queue["queue_publish_kwargs"])
        arguments["properties"] = pika.BasicProperties(**arguments["properties"])
        self.channel(queue["connection_url"]).basic_publish(body=pack(message), **arguments)

    def beat(self, registration: dict[str, Any] | None = None, **state: Any) -> None:
        known = registration or self.registration
        report = EPStatusReport(
            endpoint_id=uuid.UUID(known["endpoint_id"]), global_state=state, task_statuses={}
        )
        self.send(known["heartbeat_queue_info"], report)

    def status(self, endpoint: str | None = None) -> str:
        return str(self.running.v2().get_endpoint_status(endpoint or self.id)["status"])

    def taken(self, queue: str, count: int) -> list[str]:
        """The ids of so many tasks, as soon as they are in a queue."""
        owner = self.channel(self.running.service.dispatch._own_url)
        got: list[str] = []

        def all_() -> bool:
            _, properties, _ = owner.basic_get(queue, auto_ack=True)
            got.extend([properties.headers["task_uuid"]] if properties else [])
            return len(got) == count

        eventually(f"{count} tasks", all_)
        return sorted(got)

    def task(self, task_id: str) -> dict[str, Any]:
        return dict(self.running.v2().get_task(task_id).data)


@pytest.fixture
def site(running: Running) -> Iterator[Site]:
    site = Site(running)
    yield site
    site.close()


def test_a_start_command_is_what_the_manager_expects(site: Site) -> None:
    channel = site.listen()
    runtime = {"python": {"version": "3.11.7"}}
    site.submit(user_endpoint_config={"queue": "debug"}, user_runtime=runtime)
    credentials = site.commanded(channel)
    command = site.commands[0]
    child = credentials["endpoint_id"]
    assert command["command"] == "cmd_start_endpoint"
    assert command["kwargs"]["name"] == f"uep.{site.id}.{child}"
    assert command["kwargs"]["user_opts"] == {"queue": "debug"}
    assert command["kwargs"]["user_runtime"] == runtime
    client = site.running.clients[0]
    assert command["globus_effective_identity"] == client
    assert [i["sub"] for i in command["globus_identity_set"]] == [client]
    method, _, body = site.channel(credentials["task_queue_info"]["connection_url"]).basic_get(
        credentials["task_queue_info"]["queue"]
    )
    assert method is not None
    assert unpack(body).task_buffer == "2\ncodeargs"


def test_a_swallowed_start_command_is_sent_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatch, "RESTART_S", 0.5)
    channel = site.listen()
    site.submit()
    first = site.commanded(channel, 1)
    assert site.commanded(channel, 3) == first


def test_a_user_endpoint_that_reads_is_not_started_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatch, "RESTART_S", 0.1)
    channel = site.listen()
    site.submit()
    queue = site.commanded(channel)["task_queue_info"]
    site.channel(queue["connection_url"]).basic_consume(queue["queue"], lambda *_: None)
    site.submit()
    channel.connection.process_data_events(1.5)
    assert len(site.commands) == 1


def test_tasks_wait_for_a_manager_that_is_away(site: Site) -> None:
    site.submit()
    time.sleep(1.2)  # one turn of the watch
    commands = site.registration["command_queue_info"]["queue"]
    owner = site.channel(site.running.service.dispatch._own_url)
    assert owner.queue_declare(commands, passive=True).method.message_count == 0
    site.commanded(site.listen())
    assert len(site.commands) == 1


def test_commands_for_an_earlier_start_are_dropped(site: Site) -> None:
    channel = site.listen()
    site.submit()
    site.commanded(channel)
    queue = site.registration["command_queue_info"]["queue"]
    owner = site.channel(site.running.service.dispatch._own_url)
    channel.close()
    owner.basic_publish("", queue, b"old", mandatory=True)
    site.running.v3().update_endpoint(site.id, {"endpoint_name": "site"})
    assert owner.queue_declare(queue, passive=True).method.message_count == 0


@pytest.mark.parametrize("failed", [False, True])
def test_a_result_is_kept_and_goes_to_the_groups_queue(site: Site, failed: bool) -> None:
    channel = site.listen()
    task_id, group = site.submit(create_queue=True)
    credentials = site.commanded(channel)
    error = ResultErrorDetails(code="RemoteExecutionError", user_message="no") if failed else None
    result = Result(
        task_id=uuid.UUID(task_id), data="data", details={"os": "x"}, error_details=error
    )
    site.send(credentials["result_queue_info"], result)
    eventually("the result", lambda: "completion_t" in site.task(task_id))
    known = site.task(task_id)
    assert known["status"] == ("failed" if failed else "success")
    assert known["exception" if failed else "result"] == "data"
    assert known["details"] == {"os": "x"}
    assert float(known["completion_t"]) <= time.time()
    # A client that connects only now finds it all the same, and finds it once.
    answer = site.running.v2().get_result_amqp_url()
    results = site.channel(answer["connection_url"])
    queue = f"{answer['queue_prefix']}{group}"
    _, properties, body = results.basic_get(queue, auto_ack=True)
    assert unpack(body) == result
    assert abs(properties.timestamp - time.time()) < 5
    assert results.basic_get(queue)[0] is None


def test_a_result_that_comes_twice_counts_once(site: Site) -> None:
    channel = site.listen()
    task_id, _ = site.submit()
    credentials = site.commanded(channel)
    for data in ("first", "second"):
        result = Result(task_id=uuid.UUID(task_id), data=data)
        site.send(credentials["result_queue_info"], result)
        eventually("the result", lambda: "completion_t" in site.task(task_id))
    site.beat(heartbeat_period=30)
    eventually("what follows", lambda: site.status() == "online")
    assert site.task(task_id)["result"] == "first"


def test_another_endpoint_cannot_answer_for_it(site: Site) -> None:
    other = Site(site.running)
    channel, other_channel = site.listen(), other.listen()
    task_id, _ = site.submit()
    other_task, _ = other.submit()
    site.commanded(channel)
    queue = other.commanded(other_channel)["result_queue_info"]
    site.send(queue, Result(task_id=uuid.UUID(task_id), data="forged"))
    site.send(queue, Result(task_id=uuid.UUID(other_task), data="own"))
    eventually("its own result", lambda: "completion_t" in other.task(other_task))
    assert "completion_t" not in site.task(task_id)
    other.close()


def test_rubbish_for_a_result_does_not_stop_the_next(site: Site) -> None:
    channel = site.listen()
    task_id, _ = site.submit()
    queue = site.commanded(channel)["result_queue_info"]
    arguments = queue["queue_publish_kwargs"]
    results = site.channel(queue["connection_url"])
    beat = EPStatusReport(endpoint_id=uuid.uuid4(), global_state={}, task_statuses={})
    for rubbish in (b"", b"\x01rubbish", b"\xff", pack(beat)):
        results.basic_publish(arguments["exchange"], arguments["routing_key"], rubbish)
    site.send(queue, Result(task_id=uuid.UUID(task_id), data="data"))
    eventually("the result", lambda: "completion_t" in site.task(task_id))


def test_heartbeats_tell_who_is_online(site: Site) -> None:
    assert site.status() == "offline"
    site.beat(heartbeat_period=30)
    eventually("online", lambda: site.status() == "online")
    site.beat(heartbeat_period=0)
    eventually("the goodbye", lambda: site.status() == "offline")


def test_silence_is_offline(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl.sandbox.liveness.GRACE_S", 0.1)
    site.beat(heartbeat_period=0.3)
    eventually("online", lambda: site.status() == "online")
    began = time.monotonic()
    eventually("offline", lambda: site.status() == "offline")
    assert time.monotonic() - began < 2


def test_a_user_endpoint_says_goodbye_otherwise(site: Site) -> None:
    channel = site.listen()
    site.submit()
    child = site.commanded(channel)
    site.beat(child, heartbeat_period=30, active=True)
    eventually("online", lambda: site.status(child["endpoint_id"]) == "online")
    site.beat(child, heartbeat_period=30, active=False)
    eventually("offline", lambda: site.status(child["endpoint_id"]) == "offline")


def test_a_heartbeat_for_another_is_ignored(site: Site) -> None:
    other = Site(site.running)
    forged = {
        **other.registration,
        "heartbeat_queue_info": site.registration["heartbeat_queue_info"],
    }
    site.beat(forged, heartbeat_period=30)
    site.beat(heartbeat_period=30)
    eventually("its own", lambda: site.status() == "online")
    assert other.status() == "offline"


def test_a_failed_start_fails_the_tasks_that_wait(site: Site) -> None:
    channel = site.listen()
    task_id, _ = site.submit()
    child = site.commanded(channel)
    site.beat(child, error="no such template", heartbeat_period=3)
    eventually("the failure", lambda: "completion_t" in site.task(task_id))
    known = site.task(task_id)
    assert (known["status"], known["exception"]) == ("failed", "no such template")
    # The next task starts it anew.
    site.submit()
    site.commanded(channel, 2)


def test_a_late_failure_does_not_touch_a_user_endpoint_that_runs(site: Site) -> None:
    channel = site.listen()
    task_id, _ = site.submit()
    child = site.commanded(channel)
    site.beat(child, heartbeat_period=30)
    site.beat(child, error="command too old", heartbeat_period=3)
    site.beat(heartbeat_period=30)
    eventually("what follows", lambda: site.status() == "online")
    assert site.task(task_id)["status"] == "waiting-for-ep"


def test_tasks_of_a_deleted_endpoint_fail(site: Site) -> None:
    task_id, _ = site.submit()
    site.running.v2().delete_endpoint(site.id)
    assert site.task(task_id)["exception"] == f"Endpoint {site.id} was deleted"


def test_the_services_own_connection_comes_back(
    site: Site, broker_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatch, "RECONNECT_S", 0.1)
    dispatch = site.running.service.dispatch
    old = dispatch.link
    site.running.later(old._connection.close)
    eventually("a new connection", lambda: dispatch._link not in (None, old))
    site.beat(heartbeat_period=30)
    eventually("online", lambda: site.status() == "online")
    site.commanded(site.listen() if site.submit() else None)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queues of tasks that a broker does not take at first."""
    publish, refused = Link.publish, list[str]()

    async def refuse_once(link: Link, queue: str, *what: Any) -> None:
        if queue.endswith(".tasks") and not refused:
            refused.append(queue)
            raise BrokerUnavailableError("the broker did not answer")
        await publish(link, queue, *what)

    monkeypatch.setattr(Link, "publish", refuse_once)
    return refused


def test_a_batch_that_was_sent_in_part_is_not_sent_twice(site: Site, refused: list[str]) -> None:
    """The SDK sends the whole again where it is told that the service was not available."""
    v3 = site.running.v3()
    with v3.retry_config.tune(max_retries=0):
        answer = v3.submit(site.id, {"tasks": {site.function: ["one", "two"]}})
    assert site.taken(refused[0], 2) == sorted(answer["tasks"][site.function])


@pytest.mark.parametrize("broker_kind", ["built-in"])
@pytest.mark.parametrize("fault", ["store", "send"])
def test_what_was_not_sent_of_a_batch_survives_an_error(
    site: Site, refused: list[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """It would wait for ever, with nobody to send it."""
    store = site.running.service.store
    is_open, publish = store.is_open, Link.publish
    asked, sent = list[str](), list[str]()

    def ask(task_id: str) -> bool:
        asked.append(task_id)
        if fault == "store" and len(asked) == 1:
            raise sqlite3.OperationalError("database is locked")
        return is_open(task_id)

    async def send(link: Link, queue: str, *what: Any) -> None:
        if queue.endswith(".tasks"):
            sent.append(queue)
            if fault == "send" and len(sent) == 3:  # the first that is sent again
                raise RuntimeError("another")
        await publish(link, queue, *what)

    monkeypatch.setattr(Dispatch, "WATCH_S", 0.1)
    monkeypatch.setattr(store, "is_open", ask)
    monkeypatch.setattr(Link, "publish", send)
    answer = site.running.v3().submit(site.id, {"tasks": {site.function: ["one", "two"]}})
    assert site.taken(refused[0], 2) == sorted(answer["tasks"][site.function])


def test_a_batch_of_which_nothing_was_sent_is_refused(site: Site, refused: list[str]) -> None:
    v3 = site.running.v3()
    with v3.retry_config.tune(max_retries=0), pytest.raises(Exception, match="503"):
        v3.submit(site.id, {"tasks": {site.function: ["one"]}})
    assert refused and not site.running.later(site.running.service.store.waiting_endpoints)


@pytest.mark.parametrize("broker_kind", ["built-in"])
def test_a_batch_that_meets_an_error_leaves_no_task_that_waits(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sent it has no ids, and nobody would send the rest."""
    publish, sent = Link.publish, list[str]()

    async def fail_once(link: Link, queue: str, *what: Any) -> None:
        if queue.endswith(".tasks"):
            sent.append(queue)
            if len(sent) == 1:
                raise RuntimeError("another")
        await publish(link, queue, *what)

    monkeypatch.setattr(Link, "publish", fail_once)
    v3 = site.running.v3()
    with v3.retry_config.tune(max_retries=0), pytest.raises(Exception, match="500"):
        v3.submit(site.id, {"tasks": {site.function: ["one", "two"]}})
    assert len(sent) == 2
    assert not site.running.later(site.running.service.store.waiting_endpoints)


@pytest.mark.parametrize("error", [BrokerUnavailableError("no answer"), RuntimeError("another")])
def test_a_connection_that_cannot_be_used_is_closed_and_another_made(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It would be taken for one by which results are read."""
    monkeypatch.setattr(Dispatch, "RECONNECT_S", 0.1)
    consume, useless = Link.consume, list[Link]()

    async def fail_once(link: Link, *what: Any) -> None:
        if not useless:
            useless.append(link)
            raise error
        await consume(link, *what)

    monkeypatch.setattr(Link, "consume", fail_once)
    dispatch = site.running.service.dispatch
    old = dispatch.link
    site.running.later(old._connection.close)
    eventually("a try", lambda: useless)
    eventually("another", lambda: dispatch._link not in (None, old, useless[0]))
    assert useless[0].closed.done()
    site.beat(heartbeat_period=30)
    eventually("online", lambda: site.status() == "online")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is old is looked for at every turn; asked for before there is a service."""
    monkeypatch.setattr(Dispatch, "EXPIRE_S", 0.0)


@pytest.mark.usefixtures("soon")
def test_a_groups_queue_ends_with_the_group(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _, group = site.submit(create_queue=True)
    owner = site.channel(site.running.service.dispatch._own_url)
    queue = f"{site.running.clients[0]}.{group}"
    assert owner.queue_declare(queue, passive=True)
    monkeypatch.setattr("fl.sandbox.store.TASK_KEPT_S", 0)
    store = site.running.service.store
    eventually("its end", lambda: site.running.later(store.group, group) is None)
    with pytest.raises(ChannelClosedByBroker) as closed:
        owner.queue_declare(queue, passive=True)
    assert closed.value.reply_code == 404


def test_an_error_does_not_end_the_watch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dispatch, "RESTART_S", 0.5)
    store = site.running.service.store
    waiting, failed = store.waiting_endpoints, list[bool]()

    def full_once() -> list[Endpoint]:
        if not failed:
            failed.append(True)
            raise sqlite3.OperationalError("database or disk is full")
        return waiting()

    monkeypatch.setattr(store, "waiting_endpoints", full_once)
    channel = site.listen()
    site.submit()
    eventually("the error", lambda: failed)
    site.commanded(channel, 3)


def test_a_broker_that_is_away_is_said_to_be(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dispatch, "RECONNECT_S", 60.0)
    dispatch = site.running.service.dispatch
    site.running.later(dispatch.link._connection.close)
    eventually("the loss", lambda: dispatch._link is None)
    v3 = site.running.v3()
    with v3.retry_config.tune(max_retries=0), pytest.raises(Exception, match="503") as refused:
        v3.submit(site.id, {"tasks": {site.function: ["args"]}})
    assert "SERVICE_UNAVAILABLE" in str(refused.value)


@pytest.mark.parametrize("broker_kind", ["built-in"])
@pytest.mark.parametrize("how", ["register", "lock", "delete"])
def test_old_credentials_end(site: Site, how: str) -> None:
    channel = site.listen()
    v2, v3 = site.running.v2(), site.running.v3()
    act: dict[str, Callable[[], Any]] = {
        "register": lambda: v3.update_endpoint(site.id, {"endpoint_name": "site"}),
        "lock": lambda: v3.lock_endpoint(site.id),
        "delete": lambda: v2.delete_endpoint(site.id),
    }
    act[how]()

    def dropped() -> bool:
        try:
            channel.connection.process_data_events(0.05)
        except pika.exceptions.ConnectionClosedByBroker as closed:
            return closed.reply_code == 320
        return False

    eventually("the end of its connection", dropped)
    with pytest.raises(ProbableAuthenticationError):
        site.listen()


@pytest.mark.parametrize("broker_kind", ["built-in"])
def test_a_client_reads_its_own_results_only(site: Site) -> None:
    _, group = site.submit(create_queue=True)
    answer = site.running.v2(client=1).get_result_amqp_url()
    assert answer["queue_prefix"] != site.running.v2().get_result_amqp_url()["queue_prefix"]
    channel = site.channel(answer["connection_url"])
    with pytest.raises(ChannelClosedByBroker) as closed:
        channel.basic_get(f"{site.running.clients[0]}.{group}")
    assert closed.value.reply_code == 403
