"""An AMQP 0-9-1 broker on one loopback port: enough of RabbitMQ for pika's clients.

It reads and writes frames with pika's own codec.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from pika import spec
from pika.exceptions import AMQPError
from pika.frame import (
    Frame,
    Heartbeat,
    Method,
    ProtocolHeader,
    decode_frame,
)

from fl.sandbox.channel import NOT_ALLOWED, Channel
from fl.sandbox.queues import ACCESS_REFUSED, VirtualHost
from fl.sandbox.wire import Account, ConnectionFaultError

log = logging.getLogger(__name__)

CONNECTION_FORCED = 320
FRAME_ERROR = 501
CHANNEL_ERROR = 504
PROTOCOL = ProtocolHeader().marshal()
SERVER = {
    "product": "fl sandbox",
    "capabilities": {
        "authentication_failure_close": True,
        "basic.nack": True,
        "consumer_cancel_notify": True,
        "per_consumer_qos": True,
        "publisher_confirms": True,
    },
}
Authenticate = Callable[[str, str], Account | None]


class Connection:
    """A client's connection, from the protocol header to its close.

    Attributes:
        account: Who logged in.
        vhost: The queues and exchanges that all connections share.
        frame_max: The largest frame in bytes that both ends accept.
    """

    HANDSHAKE_S = 10.0
    CLOSE_S = 2.0

    def __init__(
        self, broker: Broker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.vhost = broker.vhost
        self.account = Account("", "\0")
        self.frame_max = broker.frame_max
        self._broker = broker
        self._reader = reader
        self._writer = writer
        self._channels: dict[int, Channel] = {}
        self._heartbeat_s = 0

    def write(self, frames: Iterable[Frame]) -> None:
        """Send frames to the client."""
        self._writer.write(b"".join(frame.marshal() for frame in frames))

    def forget(self, number: int) -> None:
        """Drop a channel that has closed."""
        self._channels.pop(number, None)

    async def run(self) -> None:
        """Serve the client until either end closes."""
        beats: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self.HANDSHAKE_S):
                if not await self._handshake():
                    return
            beats = asyncio.create_task(self._beat())
            await self._serve()
        except ConnectionFaultError as fault:
            await self._close(fault)
        except (TimeoutError, EOFError, OSError) as error:
            log.info("connection of %s lost: %r", self.account.user or "a stranger", error)
        finally:
            if beats:
                beats.cancel()
            self._release()

    async def _handshake(self) -> bool:
        """Agree on version, account and sizes; False if the client speaks something else."""
        if await self._reader.readexactly(len(PROTOCOL)) != PROTOCOL:
            self._writer.write(PROTOCOL)
            return False
        self._send(spec.Connection.Start(server_properties=SERVER))
        self.account = self._login(await self._expect(spec.Connection.StartOk))
        broker = self._broker
        self._send(spec.Connection.Tune(broker.channel_max, broker.frame_max, broker.heartbeat_s))
        tuned = await self._expect(spec.Connection.TuneOk)
        self._heartbeat_s = tuned.heartbeat
        self.frame_max = min(tuned.frame_max or broker.frame_max, broker.frame_max)
        opened = await self._expect(spec.Connection.Open)
        if opened.virtual_host != "/":
            raise ConnectionFaultError(
                NOT_ALLOWED, f"NOT_ALLOWED - vhost {opened.virtual_host} not found"
            )
        self._send(spec.Connection.OpenOk())
        return True

    def _login(self, answer: Any) -> Account:
        account = None
        _, _, credentials = answer.response.decode(errors="replace").partition("\0")
        user, _, password = credentials.partition("\0")
        if answer.mechanism == "PLAIN":
            account = self._broker.authenticate(user, password)
        if account is None:
            raise ConnectionFaultError(
                ACCESS_REFUSED,
                "ACCESS_REFUSED - Login was refused using authentication mechanism"
                f" {answer.mechanism}. For details see the broker logfile.",
            )
        return account

    async def _expect(self, kind: type[Any]) -> Any:
        frame = await self._read()
        if not isinstance(getattr(frame, "method", None), kind):
            raise ConnectionFaultError(FRAME_ERROR, f"COMMAND_INVALID - expected {kind.NAME}")
        return frame.method

    async def _serve(self) -> None:
        silence_s = 2 * self._heartbeat_s or None
        while True:
            async with asyncio.timeout(silence_s):
                frame = await self._read()
                if frame.channel_number:
                    self._channel(frame).handle(frame)
                elif isinstance(getattr(frame, "method", None), spec.Connection.Close):
                    self._send(spec.Connection.CloseOk())
                    return
                await self._writer.drain()  # for as long: a client may send and read nothing

    async def _read(self) -> Frame:
        """The next frame.

        Raises:
            ConnectionFaultError: it is malformed, or larger than agreed.
        """
        head = await self._reader.readexactly(spec.FRAME_HEADER_SIZE)
        size = struct.unpack(">BHL", head)[2]
        if size + spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE > self.frame_max:
            raise ConnectionFaultError(
                FRAME_ERROR, f"FRAME_ERROR - frame of {size} bytes is too large"
            )
        rest = await self._reader.readexactly(size + spec.FRAME_END_SIZE)
        try:
            _, frame = decode_frame(head + rest)
        except (AMQPError, KeyError, ValueError, IndexError, struct.error) as error:
            raise ConnectionFaultError(
                FRAME_ERROR, f"FRAME_ERROR - cannot decode: {error}"
            ) from error
        return frame

    def _channel(self, frame: Frame) -> Channel:
        number = frame.channel_number
        opening = isinstance(getattr(frame, "method", None), spec.Channel.Open)
        if opening == (number in self._channels) or number > self._broker.channel_max:
            raise ConnectionFaultError(
                CHANNEL_ERROR, f"CHANNEL_ERROR - unexpected frame on channel {number}"
            )
        return self._channels.setdefault(number, Channel(self, number))

    async def _beat(self) -> None:
        while self._heartbeat_s:
            await asyncio.sleep(self._heartbeat_s / 2)
            self.write([Heartbeat()])

    def _send(self, method: Any) -> None:
        self.write([Method(0, method)])

    def kick(self, reason: str) -> None:
        """Close the connection from the broker's side."""
        fault = ConnectionFaultError(CONNECTION_FORCED, f"CONNECTION_FORCED - {reason}")
        self._send(spec.Connection.Close(fault.code, fault.text, 0, 0))
        self._hang_up()

    async def _close(self, fault: ConnectionFaultError) -> None:
        log.info("closing the connection of %s: %s", self.account.user or "a stranger", fault.text)
        self._send(spec.Connection.Close(fault.code, fault.text, 0, 0))
        # The client reads our reason only if its own last bytes meet an open socket.
        with contextlib.suppress(TimeoutError, EOFError, OSError):
            async with asyncio.timeout(self.CLOSE_S):
                while await self._reader.read(65536):
                    pass

    def _release(self) -> None:
        for channel in list(self._channels.values()):
            channel.release()
        self._channels.clear()
        self.vhost.release(self)
        self._hang_up()

    def _hang_up(self) -> None:
        """Close; of a client that does not read what was sent it, not for ever."""
        self._writer.close()
        asyncio.get_running_loop().call_later(self.CLOSE_S, self._writer.transport.abort)


class Broker:
    """The broker: a listening socket, its connections and their virtual host.

    Attributes:
        authenticate: Gives the account for a user and a password, or None.
        frame_max: Largest frame in bytes.
        channel_max: Highest channel number.
        heartbeat_s: Heartbeat period offered to clients; twice that silence ends a connection.
    """

    def __init__(
        self,
        authenticate: Authenticate,
        *,
        frame_max: int = 131072,
        channel_max: int = 2047,
        heartbeat_s: int = 60,
    ) -> None:
        self.authenticate = authenticate
        self.frame_max = frame_max
        self.channel_max = channel_max
        self.heartbeat_s = heartbeat_s
        self.vhost = VirtualHost()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Listen on a socket that is bound already."""
        self._server = await asyncio.start_server(self._accept, sock=listener)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def disconnect(self, user: str, reason: str) -> None:
        """Close every connection of an account."""
        for connection in [c for c in self._connections if c.account.user == user]:
            connection.kick(reason)

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.kick("broker forced connection closure with reason 'shutdown'")
        # Until each has given its messages back, to be kept.
        deadline = asyncio.get_running_loop().time() + 2 * Connection.CLOSE_S
        while self._connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
