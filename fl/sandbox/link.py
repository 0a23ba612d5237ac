"""The service's own connection to its broker, whichever broker that is: pika, made awaitable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import AMQPError
from pika.spec import Basic, BasicProperties

log = logging.getLogger(__name__)

PERSISTENT = 2
OnMessage = Callable[[str, bytes], Awaitable[None]]


class BrokerUnavailableError(Exception):
    """The broker does not answer, or the connection to it was lost."""


@dataclass(frozen=True)
class Depth:
    """What a queue holds: messages that no consumer has yet, and the consumers it has."""

    messages: int
    consumers: int


class Link:
    """One connection, one channel with publisher confirms; every wait has a deadline."""

    DEADLINE_S = 10.0

    def __init__(self, connection: AsyncioConnection, channel: Any) -> None:
        self._connection = connection
        self._channel = channel
        self._published = 0
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect.

        Raises:
            BrokerUnavailableError: no broker answers there, or it refuses the credentials.
        """
        opened: asyncio.Future[AsyncioConnection] = asyncio.get_running_loop().create_future()
        try:
            parameters = pika.URLParameters(url)
        except ValueError:  # whose text may hold a part of the password
            escaped = "in its password, / is written %2F, # %23, ? %3F and @ %40"
            raise BrokerUnavailableError(f"not a URL for AMQP; {escaped}") from None
        connection = AsyncioConnection(
            parameters,
            on_open_callback=lambda c: _settle(opened, c),
            on_open_error_callback=lambda _, error: _settle(opened, _unavailable(error)),
        )
        try:
            async with asyncio.timeout(cls.DEADLINE_S):
                await opened
                channel = await _channel(connection)
        except TimeoutError as error:
            if not (connection.is_closing or connection.is_closed):
                connection.close()
            raise BrokerUnavailableError(f"no answer within {cls.DEADLINE_S:.0f} s") from error
        link = cls(connection, channel)
        connection.add_on_close_callback(lambda _, reason: link._lost(reason))
        channel.add_on_close_callback(lambda _, reason: link._lost(reason))
        channel.add_on_return_callback(link._returned)
        try:
            await link._call(channel.confirm_delivery, link._confirmed)
        except BrokerUnavailableError:
            await link.close()
            raise
        return link

    async def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call one of the channel's methods and await the broker's answer."""
        if self.closed.done():
            raise BrokerUnavailableError("the connection to the broker is closed")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with _translated():
            method(*args, callback=lambda frame: _settle(answer, frame), **kwargs)
        return await self._within(answer)

    async def _within(self, answer: asyncio.Future[Any]) -> Any:
        done, _ = await asyncio.wait(
            [answer, self.closed], timeout=self.DEADLINE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if answer not in done:
            raise BrokerUnavailableError("the broker did not answer")
        return answer.result()

    async def declare_exchange(self, name: str, kind: str) -> None:
        """Make a durable exchange if it is not there."""
        await self._call(
            self._channel.exchange_declare, exchange=name, exchange_type=kind, durable=True
        )

    async def declare_queue(self, name: str) -> None:
        """Make a durable queue if it is not there."""
        await self._call(self._channel.queue_declare, queue=name, durable=True)

    async def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Route an exchange's messages of that key to a queue."""
        await self._call(self._channel.queue_bind, queue, exchange, routing_key=routing_key)

    async def depth(self, queue: str) -> Depth:
        """What a queue holds. Declares it too: to ask after a missing one closes the channel."""
        frame = await self._call(self._channel.queue_declare, queue=queue, durable=True)
        return Depth(frame.method.message_count, frame.method.consumer_count)

    async def purge(self, queue: str) -> None:
        """Empty a queue."""
        await self._call(self._channel.queue_purge, queue=queue)

    async def delete_queue(self, queue: str) -> None:
        """Remove a queue."""
        await self._call(self._channel.queue_delete, queue=queue)

    async def consume(self, queue: str, on_message: OnMessage) -> None:
        """Hand over a queue's messages, as routing key and body; acknowledge each afterwards."""
        inbox: asyncio.Queue[tuple[Any, bytes]] = asyncio.Queue()
        worker = asyncio.create_task(self._work(inbox, on_message))
        self.closed.add_done_callback(lambda _: worker.cancel())
        await self._call(
            self._channel.basic_consume,
            queue,
            lambda _c, deliver, _p, body: inbox.put_nowait((deliver, body)),
        )

    async def _work(self, inbox: asyncio.Queue[tuple[Any, bytes]], on_message: OnMessage) -> None:
        while True:
            deliver, body = await inbox.get()
            try:
                await on_message(deliver.routing_key, body)
            except BrokerUnavailableError as error:
                # Not acknowledged: the broker delivers it again to the next connection.
                self._lost(error)
                return
            except Exception:
                log.exception("a message with key %s was dropped", deliver.routing_key)
            self._channel.basic_ack(deliver.delivery_tag)

    async def publish(self, queue: str, body: bytes, properties: dict[str, Any]) -> None:
        """Send a persistent message to a queue and await the broker's confirmation.

        Raises:
            BrokerUnavailableError: it was not confirmed, or there is no such queue.
        """
        if self.closed.done():
            raise BrokerUnavailableError("the connection to the broker is closed")
        self._published += 1
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unconfirmed[self._published] = confirmed
        known = BasicProperties(
            delivery_mode=PERSISTENT, message_id=str(self._published), **properties
        )
        with _translated():
            self._channel.basic_publish("", queue, body, known, mandatory=True)
        await self._within(confirmed)

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tags = (
            [t for t in self._unconfirmed if t <= method.delivery_tag]
            if method.multiple
            else [method.delivery_tag]
        )
        for tag in tags:
            refused = BrokerUnavailableError("the broker refused the message")
            good = isinstance(method, Basic.Ack)
            _settle(self._unconfirmed.pop(tag), None if good else refused)

    def _returned(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        missing = BrokerUnavailableError(f"there is no queue {method.routing_key}")
        _settle(self._unconfirmed[int(properties.message_id)], missing)

    def _lost(self, reason: Any) -> None:
        if not self.closed.done():
            log.info("connection to the broker closed: %s", reason)
            self.closed.set_result(None)
        if self._connection.is_open:
            self._connection.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection.is_open:
            self._connection.close()
        await asyncio.wait([self.closed], timeout=self.DEADLINE_S)


async def _channel(connection: AsyncioConnection) -> Any:
    opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    connection.channel(on_open_callback=lambda c: _settle(opened, c))
    return await opened


@contextmanager
def _translated() -> Iterator[None]:
    """Turn pika's complaint that a channel is closed into ours."""
    try:
        yield
    except AMQPError as error:
        raise BrokerUnavailableError(f"the connection to the broker failed: {error!r}") from error


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    """Give a future its result, or an exception; one that is done stays as it is."""
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


def _unavailable(error: BaseException) -> BrokerUnavailableError:
    """The innermost of the exceptions that pika wraps around each other."""
    while inner := _inner(error):
        error = inner
    return BrokerUnavailableError(str(error) or type(error).__name__)


def _inner(error: BaseException) -> BaseException | None:
    candidates = [
        *getattr(error, "exceptions", [])[-1:],
        getattr(error, "exception", None),
        *error.args,
    ]
    return next((c for c in candidates if isinstance(c, BaseException)), None)
