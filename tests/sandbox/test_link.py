from __future__ import annotations

import asyncio
import socket
import uuid

import pytest

from fl.sandbox.link import BrokerUnavailableError, Depth, Link

from .conftest import Running


def test_a_confirmed_message_is_counted(running: Running) -> None:
    async def scenario() -> Depth:
        link, queue = await Link.open(running.service.dispatch._own_url), str(uuid.uuid4())
        await link.declare_queue(queue)
        await asyncio.gather(*(link.publish(queue, b"body", {}) for _ in range(100)))
        depth = await link.depth(queue)
        await link.purge(queue)
        assert await link.depth(queue) == Depth(0, 0)
        await link.delete_queue(queue)
        await link.close()
        return depth

    assert asyncio.run(scenario()) == Depth(100, 0)


def test_a_message_for_no_queue_is_an_error(running: Running) -> None:
    async def scenario() -> None:
        link = await Link.open(running.service.dispatch._own_url)
        with pytest.raises(BrokerUnavailableError, match="there is no queue missing"):
            await link.publish("missing", b"body", {})
        await link.close()
        with pytest.raises(BrokerUnavailableError, match="closed"):
            await link.publish("missing", b"body", {})

    asyncio.run(scenario())


def test_messages_are_handled_in_order_and_kept_when_handling_fails(running: Running) -> None:
    async def scenario() -> list[bytes]:
        url, queue, got = running.service.dispatch._own_url, str(uuid.uuid4()), []
        link = await Link.open(url)
        await link.declare_queue(queue)

        async def fail(_: str, __: bytes) -> None:
            raise BrokerUnavailableError("gone")

        async def take(_: str, body: bytes) -> None:
            got.append(body)

        for body in (b"1", b"2"):
            await link.publish(queue, body, {})
        await link.consume(queue, fail)
        await asyncio.wait_for(link.closed, 5)
        again = await Link.open(url)
        await again.consume(queue, take)
        async with asyncio.timeout(5):
            while len(got) < 2:
                await asyncio.sleep(0.01)
        await again.delete_queue(queue)
        await again.close()
        return got

    assert asyncio.run(scenario()) == [b"1", b"2"]


def test_a_broker_that_does_not_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service tries again and again: each try would leave a connection."""
    monkeypatch.setattr(Link, "DEADLINE_S", 0.2)
    ended = list[bytes]()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(await reader.read())
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(BrokerUnavailableError, match="no answer"):
                await Link.open(f"amqp://127.0.0.1:{port}")
            async with asyncio.timeout(5):
                while not ended:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


@pytest.mark.parametrize("broker_kind", ["built-in"])
def test_what_is_wrong_with_a_broker_is_said_in_one_line(running: Running) -> None:
    good = f"127.0.0.1:{running.broker_port}/%2F"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        unheard = nobody.getsockname()[1]
        for url, said in (
            (f"amqp://guest:wrong@{good}", "ACCESS_REFUSED"),
            (f"amqp://127.0.0.1:{unheard}", "refused"),
            ("amqp://127.0.0.1:port", "not a URL"),
            (f"amqp://guest:hunter2/more@{good}", "not a URL"),
        ):
            with pytest.raises(BrokerUnavailableError, match=said) as error:
                asyncio.run(Link.open(url))
            assert "\n" not in str(error.value)
            assert "hunter2" not in str(error.value)
