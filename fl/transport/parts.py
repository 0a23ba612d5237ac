"""Objects in parts over HTTP: side by side, each tried again that fails or arrives cut short.

What the ways have in common that reach a store by URLs: S3's bucket, the hub, and ProxyStore's
endpoints.
"""

from __future__ import annotations

import math
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from threading import Timer
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import requests
from blake3 import blake3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from fl.tensors import Data, size
from fl.transport.base import (
    GoneError,
    NoPlaceError,
    Ref,
    TransportError,
    UnreachableError,
    require,
)

Given = TypeVar("Given")
Made = TypeVar("Made")

PART_BYTES = 16 << 20
THREADS = 4
TRIES = 4
PAUSE_SECONDS = 0.5
"""Before a second try; twice as long each time."""
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and of silence."""
LEAST_SECONDS = 1.0
"""What any try is given."""
CHUNK_BYTES = 1 << 20
"""What is read at once: it is still in the processor's cache when it is copied to its place."""
SEND_BYTES = 256 << 10
"""What is sent at once: the limit of silence holds for each, not for a part as a whole."""
PASSING = (408, 429)
"""Refusals, by HTTP status, that another try may mend."""
SLOW_CLIENT = "RequestTimeout"
"""S3's name for another, of status 400: what was sent came too slowly."""
TEXT_BYTES = 2000
"""Of an error, what is read."""
VALID_SECONDS = 7 * 24 * 3600
"""How long a URL lasts, for a task may wait in a batch queue for days; S3 allows no longer."""


class Part:
    """A stretch of an object that is sent from where it lies, a little at a time: once a try.

    Attributes:
        views: Its bytes, in order.
    """

    def __init__(self, views: Sequence[memoryview]) -> None:
        self.views = views

    def __iter__(self) -> Iterator[Any]:
        for view in self.views:  # requests' types know of bytes alone
            for begin in range(0, len(view), SEND_BYTES):
                yield view[begin : begin + SEND_BYTES]

    def __len__(self) -> int:
        return size(self.views)


class _Sending:
    """Of a connection: what is sent has the limit of silence; urllib3 gives it that to connect."""

    sock: socket.socket

    def connect(self) -> None:
        """See urllib3."""
        super().connect()  # type: ignore[misc]
        self.sock.settimeout(TIMEOUT[1])


class _Connection(_Sending, HTTPConnection):
    pass


class _TLSConnection(_Sending, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


POOLS = {"http": _Pool, "https": _TLSPool}


class Adapter(requests.adapters.HTTPAdapter):
    """Connects to a store, as often as parts are moved side by side."""

    def __init__(self) -> None:
        super().__init__(pool_maxsize=THREADS)

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        """See requests."""
        super().init_poolmanager(*arguments, **keywords)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        """See requests: behind a proxy, too; one of SOCKS has connections of its own."""
        manager = super().proxy_manager_for(proxy, **keywords)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = POOLS
        return manager


class _Session(requests.Session):
    """Asks at no other place than it was told to: a URL's signature is for that one."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: what leads elsewhere is a fault."""


class Parts:
    """Asks a store, and asks again where that may help.

    Args:
        store: Its name, for messages.
        meanings: What its refusals mean: HTTP status to text.
        adapter: How it is connected to.
        proxied: Whether by the proxy that the environment may name.
        silence: Seconds for which a request that is given longer may be without an answer.
        final: The least HTTP status of an error that another try would not mend.
    """

    def __init__(
        self,
        store: str,
        meanings: Mapping[int, str],
        adapter: Adapter | None = None,
        *,
        proxied: bool = True,
        silence: float = TIMEOUT[1],
        final: int = 600,
    ) -> None:
        self._store, self._meanings = store, meanings
        self._silence, self._final = silence, final
        self._session = _Session()
        # Or requests takes a password of ~/.netrc's for it, which is no store's business.
        self._session.auth = lambda request: request
        self._session.trust_env = proxied
        adapter = adapter or Adapter()
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def ask(
        self, method: str, url: str, data: Part | bytes | None = None, seconds: float = math.inf
    ) -> requests.Response:
        """One request, to its answer.

        Args:
            method: HTTP's.
            url: Where.
            data: What is sent.
            seconds: After which it is not waited for any more, nor asked again.

        Returns:
            The answer, whole.

        Raises:
            TransportError: It was refused.
            UnreachableError: It failed, however often it was tried.
        """
        until = time.monotonic() + seconds
        return self._tried(method, url, lambda: self._asked(method, url, data, until), until)

    def put(
        self,
        urls: Sequence[str],
        pieces: Sequence[Data],
        part_bytes: int,
        method: str = "PUT",
        each: float = math.inf,
    ) -> tuple[list[requests.Response], str]:
        """Send an object in parts.

        Args:
            urls: One a part: what the server has granted.
            pieces: The object.
            part_bytes: The length of all parts but the last.
            method: HTTP's.
            each: Seconds after which a part is not waited for any more, nor sent again.

        Returns:
            The answers, in order; and the object's digest.

        Raises:
            TransportError: It is larger than that, or as for `ask`.
        """
        if size(pieces) > part_bytes * len(urls):
            raise TransportError(
                f"model of {size(pieces)} bytes is larger than what the server has granted "
                f"({len(urls)} parts of {part_bytes} bytes)"
            )
        hashed = blake3()

        def parts() -> Iterator[tuple[str, Part]]:
            for url, part in zip(urls, split(pieces, part_bytes), strict=False):
                for view in part.views:
                    hashed.update(view)
                yield url, part

        def put(part: tuple[str, Part]) -> requests.Response:
            return self.ask(method, *part, each)

        answers = list(side_by_side(put, parts()))
        return answers, hashed.hexdigest()

    def read(
        self,
        ref: Ref,
        places: Iterable[tuple[str, int]],
        seconds: float = math.inf,
        each: float = math.inf,
    ) -> Data:
        """Fetch an object's parts.

        Args:
            ref: Its reference.
            places: Each part's URL, and where it begins in what is there.
            seconds: After which none is waited for any more, nor asked for again.
            each: Seconds after which that is so of one part.

        Returns:
            The bytes, which belong to the caller.

        Raises:
            TransportError: They are gone, out of reach, or not what the reference says.
        """
        # NumPy's memory is of huge pages and not written with zeros first: see `receive`.
        buffer, hashed = np.empty(ref.size, np.uint8).data, blake3()
        rooms = (buffer[begin : begin + PART_BYTES] for begin in range(0, ref.size, PART_BYTES))
        end = time.monotonic() + seconds

        def fill(part: tuple[tuple[str, int], memoryview]) -> memoryview:
            (url, begin), room = part
            until = min(end, time.monotonic() + each)
            self._tried("GET", url, lambda: self._filled(url, begin, room, until), until)
            return room

        for room in side_by_side(fill, zip(places, rooms, strict=False)):
            hashed.update(room)
        require(ref, ref.size, hashed.hexdigest())
        return buffer

    def close(self) -> None:
        """Close connections."""
        self._session.close()

    def _asked(
        self, method: str, url: str, data: Part | bytes | None, until: float
    ) -> tuple[requests.Response, str]:
        # What has no length at all would be sent in chunks, which S3 refuses.
        body = data or None
        response = self._session.request(method, url, data=body, timeout=self._limits(until))
        return response, _refusal(response) or _late_error(response)

    def _filled(
        self, url: str, begin: int, room: memoryview, until: float
    ) -> tuple[requests.Response, str]:
        """Read a range into its place; what is more than that is never read."""
        headers = {
            "Range": f"bytes={begin}-{begin + len(room) - 1}",
            "Accept-Encoding": "identity",
        }
        limits = self._limits(until)
        with self._session.get(url, headers=headers, timeout=limits, stream=True) as response:
            fault = _refusal(response)
            if not fault and begin > 0 and response.status_code != 206:
                fault = f"HTTP status {response.status_code} to a range: the store ignores them"
                raise TransportError(self._told("GET", url, fault))  # as it always will
            return response, fault or _cut_short(response, room, until)

    def _limits(self, until: float) -> tuple[float, float]:
        """Seconds to connect, and of silence, where nobody waits for longer than that."""
        left = max(until - time.monotonic(), LEAST_SECONDS)
        return min(TIMEOUT[0], left), min(self._silence, left)

    def _tried(
        self,
        method: str,
        url: str,
        act: Callable[[], tuple[requests.Response, str]],
        until: float = math.inf,
    ) -> requests.Response:
        """Do something until it has no fault."""
        fault, status, pause = "it was not asked in time", 0, 0.0
        for _ in range(TRIES):
            if time.monotonic() + pause >= until:
                break
            time.sleep(pause)
            pause = 2 * pause or PAUSE_SECONDS
            try:
                response, fault = act()
            except requests.RequestException as error:
                status, fault = 0, f"{type(error).__name__}: {_unsigned(str(error))}"
                continue
            status = response.status_code
            if not fault:
                return response
            if status >= self._final or is_final(status, fault):
                break
        raise self._failure(method, url, fault, status)

    def _failure(self, method: str, url: str, fault: str, status: int) -> TransportError:
        place = self._told(method, url, fault)
        if status == 404:
            if method in ("PUT", "POST"):
                return NoPlaceError(place)
            return GoneError(f"{place}: the model is no longer there")
        if status in self._meanings:
            return TransportError(f"{place}: {self._meanings[status]}")
        return TransportError(place) if is_final(status, fault) else UnreachableError(place)

    def _told(self, method: str, url: str, fault: str) -> str:
        """Name what failed; never by its query, which is as good as a key."""
        parts = urlsplit(url)
        return f"{self._store} {method} of {parts.netloc}{parts.path} failed: {fault}"


def is_final(status: int, fault: str) -> bool:
    """Whether a store has refused something for good.

    Args:
        status: HTTP's, or 0 where none came.
        fault: What it said.
    """
    return 300 <= status < 500 and status not in PASSING and SLOW_CLIENT not in fault


def side_by_side(do: Callable[[Given], Made], parts: Iterable[Given]) -> Iterator[Made]:
    """Do something with every part, a few at a time, and make no more of them than that.

    Args:
        do: What, in a thread.
        parts: With what.

    Yields:
        What came of each, in order.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        waiting: deque[Future[Made]] = deque()
        for part in parts:
            waiting.append(threads.submit(do, part))
            if len(waiting) == THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def split(pieces: Sequence[Data], part_bytes: int) -> Iterator[Part]:
    """All pieces' bytes, in parts of one length but for the last; one part at least.

    They are not copied: what is sent is what the pieces hold by then.

    Args:
        pieces: The object.
        part_bytes: The length.

    Yields:
        A part.
    """
    part: list[memoryview] = []
    room = part_bytes
    for piece in pieces:
        left = memoryview(piece)
        while left:
            part.append(left[:room])
            room -= len(part[-1])
            left = left[len(part[-1]) :]
            if room == 0:
                yield Part(part)
                part, room = [], part_bytes
    if part or size(pieces) == 0:
        yield Part(part)


def _refusal(response: requests.Response) -> str:
    if response.status_code < 300:
        return ""
    said = next(response.iter_content(TEXT_BYTES), b"").decode(errors="replace")
    code = re.search(r"<Code>(\w+)</Code>", said)
    plain = "" if said.lstrip().startswith("<") else _unsigned(said)
    told = f"{response.reason}: {plain}" if plain else response.reason
    return f"HTTP status {response.status_code} {code[1] if code else told}"


def _unsigned(text: str) -> str:
    """A text in one line; it may quote URLs, whose query is as good as a key."""
    return re.sub(r"\?\S*", "?...", " ".join(text.split()))[:300]


def _late_error(response: requests.Response) -> str:
    """S3 may say 200 before it knows, and name the error inside."""
    code = re.search(rb"<Error>.*<Code>(\w+)</Code>", response.content[:2000], re.DOTALL)
    return f"HTTP status {response.status_code} {code[1].decode()}" if code else ""


def _cut_short(response: requests.Response, room: memoryview, until: float) -> str:
    """Fill a room with what arrives, or say how much was missing."""
    end = 0
    try:
        with _no_longer_than(response, until):
            for chunk in response.iter_content(CHUNK_BYTES):
                chunk = chunk[: len(room) - end]
                room[end : end + len(chunk)] = chunk
                end += len(chunk)
                if end == len(room):
                    return ""
    except requests.RequestException:
        if time.monotonic() < until:
            raise
    if time.monotonic() >= until:
        return f"{end} of {len(room)} bytes arrived in time"
    return f"{end} bytes arrived instead of {len(room)}"


@contextmanager
def _no_longer_than(response: requests.Response, until: float) -> Iterator[None]:
    """End what is read of a response at a moment: where bytes drip there is no silence.

    Its socket is read in large chunks meanwhile: to look at the clock whenever some kB have come
    took three times the processor's time of a model over TLS.
    """
    if math.isinf(until):
        yield
        return

    def end() -> None:
        with suppress(RuntimeError, ValueError, OSError):  # it has all come
            response.raw.shutdown()

    _keep_tls(response.raw)
    timer = Timer(max(until - time.monotonic(), 0.0), end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _keep_tls(answer: Any) -> None:
    """Have urllib3's answer end its TCP connection alone, and leave TLS to who reads meanwhile.

    The shutdown of a TLS socket drops that first: what comes next would be read enciphered.
    """
    shutdown = getattr(answer, "_sock_shutdown", None)
    sock = getattr(shutdown, "__self__", None)  # a SOCKS proxy's connection, too
    if isinstance(sock, ssl.SSLSocket):
        answer._sock_shutdown = partial(socket.socket.shutdown, sock)
