"""The unmodified SDK on its own fixed port, pointed at a sandbox by environment variables alone."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import globus_sdk
import pika
import pytest
from globus_compute_common.messagepack import pack, unpack
from globus_compute_common.messagepack.message_types import Result
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.serialize import ComputeSerializer, JSONData

from fl.sandbox import daemon

from .conftest import Up, built_in_alone, eventually

pytestmark = pytest.mark.daemons  # Globus's one port: no two of these at a time


class EchoSite:
    """A manager and user endpoint in one thread, which answer each task with its arguments."""

    def __init__(self, client: Client, again: str | None = None, **registration: Any) -> None:
        answer = client.register_endpoint("echo", again, **registration)
        self.id = str(answer["endpoint_id"])
        self._commands = answer["command_queue_info"]
        self._connection = pika.BlockingConnection(
            pika.URLParameters(self._commands["connection_url"])
        )
        self._channel = self._connection.channel()
        self._channel.basic_consume(self._commands["queue"], self._start, auto_ack=True)
        self._open = [self._connection]
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop = True
        if self._thread.is_alive():
            self._thread.join(10)
        for connection in self._open:
            connection.close()

    def _run(self) -> None:
        while not self._stop:
            for connection in list(self._open):
                connection.process_data_events(0.02)

    def _start(self, _: Any, __: Any, ___: Any, body: bytes) -> None:
        if len(self._open) > 1:
            return  # the service asks again where a start takes long; a manager starts one
        credentials = json.loads(body)["kwargs"]["amqp_creds"]
        queue = credentials["task_queue_info"]
        connection = pika.BlockingConnection(pika.URLParameters(queue["connection_url"]))
        self._open.append(connection)
        channel = connection.channel()
        arguments = credentials["result_queue_info"]["queue_publish_kwargs"]
        where = {k: arguments[k] for k in ("exchange", "routing_key", "mandatory")}

        def work(_: Any, method: Any, __: Any, packed: bytes) -> None:
            task = unpack(packed)
            _, sent, _ = ComputeSerializer.unpack_buffers(task.task_buffer)
            result = Result(task_id=task.task_id, data=sent)
            channel.basic_publish(body=pack(result), **where)
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume(queue["queue"], work, exclusive=True)


def echo(*values: Any) -> Any:
    return values


def send(client: Client, site: EchoSite, *numbers: int) -> tuple[list[str], str]:
    """Submit and go away, as an Executor does not; returns the tasks' ids and their group's."""
    function = client.register_function(echo)
    batch = client.create_batch(create_websocket_queue=True)
    for number in numbers:
        batch.add(function, (number,))
    sent = client.batch_run(site.id, batch)
    return sent["tasks"][function], sent["task_group_id"]


@pytest.fixture
def client(sdk_client: Client) -> Client:
    sdk_client.fx_serializer = ComputeSerializer(strategy_data=JSONData())
    return sdk_client


@pytest.fixture
def site(client: Client) -> Iterator[EchoSite]:
    site = EchoSite(client)
    yield site
    site.stop()


def test_an_executor_gets_its_results(client: Client, site: EchoSite) -> None:
    site.start()
    with Executor(site.id, client=client) as executor:
        futures = [executor.submit(echo, number) for number in range(100)]
        assert [f.result(timeout=20) for f in futures] == [[n] for n in range(100)]


@built_in_alone
def test_large_arguments_and_results_go_through(client: Client, site: EchoSite) -> None:
    site.start()
    text = "x" * 9_000_000
    with Executor(site.id, client=client) as executor:
        assert executor.submit(echo, text).result(timeout=20) == [text]


@built_in_alone
def test_a_payload_over_10_mb_ends_in_one_error(client: Client, site: EchoSite) -> None:
    with Executor(site.id, client=client) as executor:
        future = executor.submit(echo, "x" * 11_000_000)
        with pytest.raises(globus_sdk.GlobusAPIError) as refused:
            future.result(timeout=20)
    assert (refused.value.http_status, refused.value.code) == (413, "TASK_PAYLOAD_TOO_LARGE")


@built_in_alone
def test_a_foreign_function_ends_in_one_error(client: Client) -> None:
    site = EchoSite(client, allowed_functions=[str(uuid.uuid4())])
    with Executor(site.id, client=client) as executor:
        future = executor.submit(echo, 1)
        with pytest.raises(globus_sdk.GlobusAPIError) as refused:
            future.result(timeout=20)
    assert (refused.value.http_status, refused.value.code) == (403, "FUNCTION_NOT_PERMITTED")
    site.stop()


@built_in_alone
def test_a_client_that_connects_later_finds_the_results(client: Client, site: EchoSite) -> None:
    site.start()
    tasks, group = send(client, site, 0, 1, 2)
    later = Client()

    def done() -> bool:
        time.sleep(0.5)  # the service takes 20 requests in 10 s
        found = later.get_batch_result(tasks)
        return not any(found[task]["pending"] for task in tasks)

    eventually("the results", done)
    assert [later.get_result(task) for task in tasks] == [[0], [1], [2]]
    with Executor(site.id, client=client) as executor:
        futures = executor.reload_tasks(group)
        assert [f.result(timeout=20) for f in futures] == [[0], [1], [2]]


@built_in_alone
def test_an_executor_that_comes_back_waits_for_what_is_open(client: Client, site: EchoSite) -> None:
    _, group = send(client, site, 7)
    with Executor(site.id, client=client) as executor:
        (future,) = executor.reload_tasks(group)
        site.start()
        assert future.result(timeout=20) == [7]


@built_in_alone
def test_a_wrong_secret_ends_in_one_error(sdk: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", "wrong")
    with pytest.raises(globus_sdk.AuthAPIError) as refused:
        Client()
    assert refused.value.http_status == 401
    assert "invalid_client" in refused.value.text


def test_a_stop_and_a_start_lose_nothing(client: Client, sandbox: Up) -> None:
    """A task that waited when the sandbox went down, and its endpoint, are there when it is up."""
    before = EchoSite(client)
    before.stop()
    _, group = send(client, before, 7)
    daemon.down(sandbox.folder)
    daemon.up(sandbox.folder, sandbox.options)
    after = EchoSite(client, again=before.id)
    after.start()
    with Executor(after.id, client=client) as executor:
        (future,) = executor.reload_tasks(group)
        assert future.result(timeout=20) == [7]
    after.stop()
