"""Models in a Redis server that all sides reach: https://redis.io/docs/latest/commands/.

As ProxyStore's `RedisConnector`, whose settings these are, but in parts, since Redis takes no value
of more than 512 MB; and each goes by itself after a week, should nobody be left to evict it.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from fl.tensors import Data
from fl.transport.base import (
    GoneError,
    Ref,
    TransportError,
    UnreachableError,
    receive,
    ref_to,
    wrong_way,
)
from fl.transport.parts import (
    CHUNK_BYTES,
    PART_BYTES,
    PAUSE_SECONDS,
    TIMEOUT,
    TRIES,
    VALID_SECONDS,
    Part,
    side_by_side,
    split,
)

NAME = re.compile(r"[0-9a-f]{32}")


class RedisTransport:
    """Objects in one Redis server.

    Args:
        hostname: Where it is.
        port: Where it listens.

    Raises:
        UnreachableError: It does not answer.
    """

    name = "redis"
    limit: int | None = None

    def __init__(self, hostname: str, port: int) -> None:
        self._hostname, self._port = hostname, port
        self._place = f"Redis at {hostname}:{port}"
        self._redis = self._client(TIMEOUT[1])
        with self._named():
            self._redis.ping()

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`."""
        name = uuid.uuid4().hex

        def put(numbered: tuple[int, Part]) -> None:
            number, part = numbered
            with self._named():
                self._redis.set(_key(name, number), b"".join(part.views), ex=VALID_SECONDS)

        ref = ref_to(self.name, {"object": name}, pieces)
        try:
            for _ in side_by_side(put, enumerate(split(pieces, PART_BYTES))):
                pass
        except TransportError:
            with suppress(TransportError):
                self.evict(ref)
            raise
        return ref

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:
        """See `Transport.get`."""
        keys, until = self._keys(ref), time.monotonic() + seconds
        at_once = PART_BYTES if math.isinf(seconds) else CHUNK_BYTES  # between two looks at a clock

        def ranges(key: str) -> Iterator[bytes]:
            # No more than a part: what a site has put is of any size.
            for begin in range(0, PART_BYTES, at_once):
                if time.monotonic() >= until:
                    late = f"{self._place}: a model took longer than {seconds:.0f} s"
                    raise UnreachableError(late)
                length = min(at_once, PART_BYTES - begin)
                with self._named():
                    found = cast(bytes, client.getrange(key, begin, begin + length - 1))
                yield found
                if len(found) < length:
                    return

        def get(key: str) -> bytes:
            part = b"".join(ranges(key))
            if not part:  # Redis has no empty values
                raise GoneError(f"{self._place}: the model is no longer there")
            return part

        with self._client(min(TIMEOUT[1], seconds)) as client:
            return receive(ref, side_by_side(get, keys))

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        with self._named():
            self._redis.unlink(*self._keys(ref))

    def exists(self, ref: Ref) -> bool:
        """See `Store.exists`."""
        keys = list(self._keys(ref))
        with self._named():
            return self._redis.exists(*keys) == len(keys)

    def grant(self, size: int | None) -> None:
        """See `Transport.grant`: sites reach the server themselves."""

    def close(self) -> None:
        """Close connections."""
        self._redis.close()

    def _client(self, silence: float) -> redis.Redis:
        """What asks the server, and bears so many seconds of silence."""
        pool = redis.ConnectionPool(
            connection_class=_Connection,
            host=self._hostname,
            port=self._port,
            protocol=2,  # older servers know no other
            socket_connect_timeout=min(TIMEOUT[0], silence),
            socket_timeout=silence,
            # Not after a silence: whoever waits for a model would wait for it four times.
            retry=Retry(
                ExponentialBackoff(base=PAUSE_SECONDS),
                TRIES - 1,
                supported_errors=(redis.ConnectionError,),
            ),
        )
        return redis.Redis.from_pool(pool)

    def _keys(self, ref: Ref) -> Iterator[str]:
        """Of each part; a reference of somebody else's never leads to what is none of ours."""
        name = ref.key.get("object", "")
        if ref.transport != self.name or not NAME.fullmatch(name):
            raise wrong_way(ref, self.name)
        return (_key(name, number) for number in range(max(1, -(-ref.size // PART_BYTES))))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say what failed in our words."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, redis.OutOfMemoryError) as error:
            raise UnreachableError(f"{self._place}: {error}") from error
        except redis.RedisError as error:
            raise TransportError(f"{self._place}: {error}") from error


class _Connection(redis.Connection):
    """Sends a little at a time: the limit of silence holds for each, not for a part as a whole."""

    def send_packed_command(self, command: Iterable[Data], check_health: bool = True) -> None:
        """See redis."""
        part = Part([memoryview(piece) for piece in command])
        super().send_packed_command(part, check_health)  # type: ignore[no-untyped-call]


def _key(name: str, number: int) -> str:
    return f"fl:{name}:{number}"
