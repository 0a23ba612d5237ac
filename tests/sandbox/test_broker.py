"""The built-in broker and a RabbitMQ answer the same to pika's clients."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ProbableAuthenticationError,
    UnroutableError,
)
from pika.frame import Heartbeat

from .conftest import Running, eventually

Connect = Callable[..., pika.BlockingConnection]
MESSAGES = 16
"""Of 1 MiB each: more than a socket's buffers hold."""


@pytest.fixture
def connect(running: Running) -> Iterator[Connect]:
    """Connections as the service's own account, which may do everything."""
    opened: list[pika.BlockingConnection] = []
    url = running.service.dispatch._own_url

    def open_one(**changes: Any) -> pika.BlockingConnection:
        parameters = pika.URLParameters(url)
        for name, value in changes.items():
            setattr(parameters, name, value)
        opened.append(pika.BlockingConnection(parameters))
        return opened[-1]

    yield open_one
    for connection in opened:
        # One that a test had fall silent is gone already, and finds that out here.
        with contextlib.suppress(AMQPError):
            connection.close()


@pytest.fixture
def queue() -> str:
    return f"test.{uuid.uuid4()}"


def ready(channel: Any, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def test_a_wrong_password_is_refused(running: Running) -> None:
    parameters = pika.ConnectionParameters(
        "127.0.0.1", running.broker_port, credentials=pika.PlainCredentials("guest", "wrong")
    )
    with pytest.raises(ProbableAuthenticationError, match="ACCESS_REFUSED") as refused:
        pika.BlockingConnection(parameters)
    assert "403" in str(refused.value)


def test_an_unknown_vhost_is_refused(connect: Connect) -> None:
    with pytest.raises(AMQPConnectionError):
        connect(virtual_host="nowhere")


def test_asking_after_a_missing_queue_closes_the_channel_alone(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(ChannelClosedByBroker) as closed:
        connection.channel().queue_declare("missing", passive=True)
    assert closed.value.reply_code == 404
    assert connection.channel().is_open


def test_asking_after_a_missing_exchange_closes_the_channel(connect: Connect) -> None:
    with pytest.raises(ChannelClosedByBroker) as closed:
        connect().channel().exchange_declare("missing", passive=True)
    assert closed.value.reply_code == 404


def test_a_second_consumer_of_an_exclusive_one_is_refused(connect: Connect, queue: str) -> None:
    one, other = connect().channel(), connect().channel()
    one.queue_declare(queue, durable=True)
    one.basic_consume(queue, lambda *_: None, exclusive=True)
    with pytest.raises(ChannelClosedByBroker) as closed:
        other.basic_consume(queue, lambda *_: None, exclusive=True)
    assert closed.value.reply_code == 403


def test_a_confirmed_message_is_in_the_queue(connect: Connect, queue: str) -> None:
    channel = connect().channel()
    channel.queue_declare(queue, durable=True)
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"body", mandatory=True)
    assert ready(channel, queue) == 1


def test_a_mandatory_message_that_goes_nowhere_comes_back(connect: Connect) -> None:
    channel = connect().channel()
    channel.confirm_delivery()
    with pytest.raises(UnroutableError) as returned:
        channel.basic_publish("", "missing", b"body", mandatory=True)
    assert returned.value.messages[0].body == b"body"
    assert returned.value.messages[0].method.reply_code == 312


def test_properties_arrive(connect: Connect, queue: str) -> None:
    channel = connect().channel()
    channel.queue_declare(queue, durable=True)
    headers = {"function_uuid": "f", "result_serializers": ["a", "b"], "n": 1, "flag": True}
    sent = pika.BasicProperties(content_type="application/json", timestamp=12, headers=headers)
    channel.basic_publish("", queue, b"body", sent)
    _, received, _ = channel.basic_get(queue, auto_ack=True)
    assert (received.content_type, received.timestamp) == ("application/json", 12)
    assert received.headers == headers


@pytest.mark.parametrize("frame_max", [4096, 131072])
@pytest.mark.parametrize("size", [0, 4088, 4089, 1_000_000])
def test_bodies_are_cut_into_frames_and_joined(
    connect: Connect, queue: str, frame_max: int, size: int
) -> None:
    channel = connect(frame_max=frame_max).channel()
    channel.queue_declare(queue, durable=True)
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    channel.basic_publish("", queue, body)
    assert channel.basic_get(queue, auto_ack=True)[2] == body


def test_what_was_not_acknowledged_is_delivered_again(connect: Connect, queue: str) -> None:
    first = connect()
    channel = first.channel()
    channel.queue_declare(queue, durable=True)
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", queue, body)
    tag = channel.basic_get(queue)[0].delivery_tag
    channel.basic_get(queue)
    channel.basic_ack(tag)
    first.close()
    channel = connect().channel()
    eventually("the message to come back", lambda: ready(channel, queue) == 2)
    method, _, body = channel.basic_get(queue)
    assert (body, method.redelivered) == (b"2", True)
    method, _, body = channel.basic_get(queue)
    assert (body, method.redelivered) == (b"3", False)


@pytest.mark.parametrize(("requeue", "left"), [(True, 1), (False, 0)])
def test_nack(connect: Connect, queue: str, requeue: bool, left: int) -> None:
    channel = connect().channel()
    channel.queue_declare(queue, durable=True)
    channel.basic_publish("", queue, b"body")
    channel.basic_nack(channel.basic_get(queue)[0].delivery_tag, requeue=requeue)
    # RabbitMQ does not answer a nack: it may be asked before it has seen it.
    eventually("the nack to be seen", lambda: ready(channel, queue) == left)


def test_ack_of_several(connect: Connect, queue: str) -> None:
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    for _ in range(3):
        channel.basic_publish("", queue, b"body")
    tags = [channel.basic_get(queue)[0].delivery_tag for _ in range(3)]
    channel.basic_ack(tags[1], multiple=True)
    channel.close()
    assert ready(connection.channel(), queue) == 1


def test_an_unknown_delivery_tag_closes_the_channel(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    channel.basic_ack(99)
    with pytest.raises(ChannelClosedByBroker) as closed:
        channel.queue_declare("", exclusive=True)
    assert closed.value.reply_code == 406


def test_prefetch_holds_back(connect: Connect, queue: str) -> None:
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    for number in range(5):
        channel.basic_publish("", queue, b"%d" % number)
    channel.basic_qos(prefetch_count=2)
    got: list[Any] = []
    channel.basic_consume(queue, lambda _c, method, _p, body: got.append((method, body)))
    other = connect().channel()
    eventually("two deliveries", lambda: connection.process_data_events(0.05) or len(got) == 2)
    connection.process_data_events(0.2)
    assert [body for _, body in got] == [b"0", b"1"]
    assert ready(other, queue) == 3
    channel.basic_ack(got[0][0].delivery_tag)
    eventually("the third", lambda: connection.process_data_events(0.05) or len(got) == 3)


def test_consumers_hear_that_their_queue_is_gone(connect: Connect, queue: str) -> None:
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    told: list[Any] = []
    channel.add_on_cancel_callback(told.append)
    channel.basic_consume(queue, lambda *_: None)
    connect().channel().queue_delete(queue)
    eventually("the cancel", lambda: connection.process_data_events(0.05) or told)


def test_a_topic_exchange_routes_by_pattern(connect: Connect, queue: str) -> None:
    channel = connect().channel()
    channel.queue_declare(queue, durable=True)
    channel.exchange_declare(queue, "topic", durable=True)
    channel.queue_bind(queue, queue, "*.results")
    channel.confirm_delivery()
    channel.basic_publish(queue, "a.results", b"body", mandatory=True)
    with pytest.raises(UnroutableError):
        channel.basic_publish(queue, "a.heartbeats", b"body", mandatory=True)
    assert ready(channel, queue) == 1


def test_a_client_that_falls_silent_is_dropped(connect: Connect, queue: str) -> None:
    silent, other = connect(heartbeat=1), connect().channel()
    channel = silent.channel()
    channel.queue_declare(queue, durable=True)
    channel.basic_publish("", queue, b"body")
    channel.basic_get(queue)
    began = time.monotonic()
    eventually("the silent client's message to come back", lambda: ready(other, queue) == 1)
    assert time.monotonic() - began > 1


def test_a_client_that_beats_is_kept(connect: Connect) -> None:
    connection = connect(heartbeat=1)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        connection.process_data_events(0.2)
    assert connection.channel().is_open


@pytest.mark.parametrize("broker_kind", ["built-in"])
class TestBuiltIn:
    """What depends on accounts, or on bytes that no client of pika's sends."""

    def test_an_endpoint_reaches_its_own_queues_only(self, running: Running) -> None:
        mine, other = running.endpoint(), running.endpoint()
        connection = running.connect(mine["command_queue_info"]["connection_url"])
        connection.channel().basic_consume(mine["command_queue_info"]["queue"], lambda *_: None)
        with pytest.raises(ChannelClosedByBroker) as closed:
            connection.channel().basic_consume(
                other["command_queue_info"]["queue"], lambda *_: None
            )
        assert closed.value.reply_code == 403
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(ChannelClosedByBroker):
            channel.basic_publish("globus_compute", f"{other['endpoint_id']}.results", b"forged")
        connection.close()

    def test_another_protocol_is_told_ours(self, running: Running) -> None:
        with socket.create_connection(("127.0.0.1", running.broker_port), 5) as client:
            client.sendall(b"GET / HT")
            assert client.recv(8) == b"AMQP\x00\x00\x09\x01"
            assert client.recv(8) == b""

    @pytest.mark.parametrize(
        ("rubbish", "code"),
        [
            (struct.pack(">BHI", 1, 0, 2**31), 501),  # a frame of 2 GiB
            (struct.pack(">BHI", 9, 0, 0) + b"\xce", 501),  # no such type
            (struct.pack(">BHI", 1, 0, 4) + b"\xff\xff\xff\xff\xce", 501),  # no such method
            (struct.pack(">BHI", 1, 0, 4) + b"\x00\x0a\x00\x0b\x00", 501),  # no end mark
            (struct.pack(">BHI", 2, 0, 2) + b"\x00\x00\xce", 501),  # half a header
            (  # a short table
                struct.pack(">BHI", 1, 0, 8) + b"\x00\x0a\x00\x0b\x00\x00\xff\xff\xce",
                501,
            ),
            (struct.pack(">BHI", 3, 7, 1) + b"x\xce", 504),  # a body on a channel not opened
        ],
    )
    def test_rubbish_ends_its_own_connection_only(
        self, connect: Connect, rubbish: bytes, code: int
    ) -> None:
        bystander, connection = connect(), connect()
        connection._impl._transport._sock.sendall(rubbish)
        with pytest.raises(ConnectionClosedByBroker) as closed:
            connection.process_data_events(5)
        assert closed.value.reply_code == code
        assert bystander.channel().is_open

    def test_a_strangers_rubbish_ends_its_connection(self, running: Running) -> None:
        with socket.create_connection(("127.0.0.1", running.broker_port), 5) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01" + struct.pack(">BHI", 9, 0, 0) + b"\xce")
            heard = b""
            while more := client.recv(65536):
                heard += more
        assert b"FRAME_ERROR" in heard

    def test_a_client_that_reads_nothing_is_dropped(self, connect: Connect, queue: str) -> None:
        """Though it beats, as pika's own threads may while their owner hangs."""
        other = connect().channel()
        deaf = self.deaf(connect(heartbeat=1), other, queue)

        def returned() -> bool:
            with contextlib.suppress(OSError):  # it was dropped
                deaf.send(Heartbeat().marshal())
            return ready(other, queue) == MESSAGES

        eventually("its messages to come back", returned)

    def test_what_a_client_did_not_read_is_kept_at_the_end(
        self, running: Running, connect: Connect, queue: str
    ) -> None:
        self.deaf(connect(), connect().channel(), queue)
        kept = running.call(running.service.stop())
        assert len(json.loads(kept)[queue]) == MESSAGES

    def deaf(self, connection: pika.BlockingConnection, other: Any, queue: str) -> Any:
        """The socket of a consumer that never reads what it was sent: more than any buffer holds.

        Args:
            connection: Its connection; pika reads only when it is called.
            other: The channel of somebody who fills the queue.
            queue: Of which it is the consumer.
        """
        other.queue_declare(queue, durable=True)
        connection.channel().basic_consume(queue, lambda *_: None)
        for _ in range(MESSAGES):
            other.basic_publish("", queue, b"x" * 2**20)
        eventually("all to be on their way", lambda: ready(other, queue) == 0)
        return connection._impl._transport._sock

    def test_what_the_subset_lacks_is_named(self, connect: Connect) -> None:
        channel = connect().channel()
        with pytest.raises(ConnectionClosedByBroker, match=r"NOT_IMPLEMENTED - Tx\.Select"):
            channel.tx_select()
