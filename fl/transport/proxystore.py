"""Models through ProxyStore endpoints, peer to peer: https://docs.proxystore.dev/latest/guides/endpoints/.

The endpoint of this machine is found among the federation's as `EndpointConnector` does it, and the
bytes go to and from its HTTP interface, with requests of ours: the connector's wait for ever, also
for an endpoint that ProxyStore has ended half and that only listens, and ProxyStore's own functions
hold an object three times and take whatever size comes. A request that takes too long is given up
and left open. Raw bytes are stored, in parts, so that one that is lost on the way is sent again and
not all of them; never ProxyStore's serialized objects: its deserializer takes a pickle from anyone.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import Thread
from urllib.parse import urlencode
from uuid import UUID

import requests
from blake3 import blake3
from proxystore.endpoint.config import EndpointConfig, get_configs
from proxystore.utils.environment import home_dir

from fl.tensors import Data, size
from fl.transport.base import GoneError, Ref, TransportError, UnreachableError, wrong_way
from fl.transport.parts import PART_BYTES, THREADS, Adapter, Parts, side_by_side

CONNECT_SECONDS = 10.0
# An endpoint answers a get only once it has the whole part from its peer, which answers its peers
# one after the other: all of a federation's may have asked for as many parts before. Peers have
# been measured at 29 MB/s on one host; a tenth of that is taken for dead.
BASE_SECONDS = 60.0
BYTES_PER_SECOND = 3e6
# How long a request stays open, waited for or not; that is said by each operation.
SILENCE_SECONDS = 3600.0
CLOSE_SECONDS = 30.0
"""What requests that nobody waits for any more are given to be answered, when all is closed."""
# What is to be evicted is so, once its peer comes to it, whether that is waited for or not.
EVICT_SECONDS, LONGEST_EVICT_SECONDS = 10.0, 60.0
EVICT_BYTES_PER_SECOND = 1e9


class ProxystoreTransport:
    """Objects put at this machine's endpoint and got by way of it, each operation with a deadline.

    Args:
        endpoints: ProxyStore endpoint ids of the federation; one of them must be configured in
            `PROXYSTORE_HOME` and answer.

    Raises:
        TransportError: None of them does.
    """

    name = "proxystore"
    limit: int | None = None

    def __init__(self, endpoints: Sequence[UUID]) -> None:
        here = _endpoint_here(set(endpoints))
        self._address, self._endpoint_id = _address(here), here.uuid
        self._known = {str(endpoint) for endpoint in endpoints}
        self._parts = connect()

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`."""
        key = {"object": str(uuid.uuid4()), "endpoint_id": self._endpoint_id}
        ref = Ref(self.name, key, size(pieces), "")
        urls = list(self._urls("set", ref))
        try:
            # To this machine's own endpoint: no peer's wait comes before it.
            _, digest = self._parts.put(urls, pieces, PART_BYTES, "POST", BASE_SECONDS)
        except TransportError:
            with suppress(TransportError):
                self.evict(ref)
            raise
        return Ref(self.name, key, ref.size, digest)

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:
        """See `Transport.get`."""
        self._require_ours(ref)
        places = ((url, 0) for url in self._urls("get", ref))
        try:
            return self._parts.read(ref, places, seconds, self._patience(ref))
        except GoneError as error:
            raise GoneError(
                f"model {ref.key['object']} is no longer at ProxyStore endpoint "
                f"{ref.key['endpoint_id']}"
            ) from error

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        self._require_ours(ref)
        patience = min(EVICT_SECONDS + ref.size / EVICT_BYTES_PER_SECOND, LONGEST_EVICT_SECONDS)
        until = time.monotonic() + patience

        def evict(url: str) -> None:
            if time.monotonic() >= until:
                return  # what is left is its site's: see `fl.client.unclaimed`
            try:
                self._parts.ask("POST", url, seconds=until - time.monotonic())
            except UnreachableError:
                if time.monotonic() < until:
                    raise  # else it is left open, and done once the peer comes to it

        for _ in side_by_side(evict, self._urls("evict", ref)):
            pass

    def grant(self, size: int | None) -> None:
        """See `Transport.grant`: sites have endpoints of their own."""

    def exists(self, ref: Ref) -> bool:
        """See `Store.exists`."""
        self._require_ours(ref)
        urls = self._urls("exists", ref)
        asked = (self._parts.ask("GET", url, seconds=BASE_SECONDS) for url in urls)
        return all(answer.json()["exists"] for answer in asked)

    def close(self) -> None:
        """Close the connection to the endpoint."""
        self._parts.close()

    def _patience(self, ref: Ref) -> float:
        """Seconds that getting a part of an object may take."""
        before = len(self._known) * THREADS
        return BASE_SECONDS + before * min(ref.size, PART_BYTES) / BYTES_PER_SECOND

    def _urls(self, operation: str, ref: Ref) -> Iterator[str]:
        """Of each part, in order.

        A part's name follows from its object's and from it one way alone: no name that a site may
        give leads to a part of another object.
        """
        for number in range(max(1, -(-ref.size // PART_BYTES))):
            name = blake3(f"{ref.key['object']} {number}".encode()).hexdigest(length=16)
            query = urlencode({"key": name, "endpoint": ref.key["endpoint_id"]})
            yield f"{self._address}/{operation}?{query}"

    def _require_ours(self, ref: Ref) -> None:
        if ref.transport != self.name or not {"object", "endpoint_id"} <= ref.key.keys():
            raise wrong_way(ref, self.name)
        if ref.key["endpoint_id"] not in self._known:  # a stranger's word must not lead elsewhere
            raise TransportError("model is at a ProxyStore endpoint that is not of this federation")


def connect() -> Parts:
    """What asks an endpoint: it is on this machine or beside it.

    One that says 500 has waited for its peer, and is not asked again.
    """
    return Parts("ProxyStore", {}, _LeftOpen(), proxied=False, silence=SILENCE_SECONDS, final=500)


class _LeftOpen(Adapter):
    """Stops waiting for an answer, and leaves the request open until there is one.

    ProxyStore 1.1's endpoint cancels what it waits for when its client hangs up, and ends, with all
    the objects that it has in memory, when the peer's answer to that comes after all.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given_up: set[Future[requests.Response]] = set()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float, float] | tuple[float, None] | None = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request; raises ReadTimeout once its answer has taken too long."""
        connect, seconds = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        answer: Future[requests.Response] = Future()
        ask = super().send

        def send() -> None:
            try:
                limits = (connect or CONNECT_SECONDS, SILENCE_SECONDS)
                answer.set_result(ask(request, stream, limits, verify, cert, proxies))
            except Exception as error:  # whoever waits raises it
                answer.set_exception(error)

        Thread(target=send, name="ProxyStore request", daemon=True).start()
        try:
            response = answer.result(seconds)
        except TimeoutError:
            self._given_up.add(answer)
            answer.add_done_callback(self._drop)
            raise requests.ReadTimeout(f"Read timed out. (read timeout={seconds})") from None
        if socket := getattr(response.raw.connection, "sock", None):
            socket.settimeout(seconds)  # the rest comes from this endpoint alone
        return response

    def close(self) -> None:
        """Close connections, but none at once that an endpoint may still be answering."""
        wait(set(self._given_up), CLOSE_SECONDS)
        self._given_up.clear()  # they have had their time
        super().close()

    def _drop(self, answer: Future[requests.Response]) -> None:
        self._given_up.discard(answer)
        if answer.exception() is None:
            answer.result().close()


def _endpoint_here(endpoints: Collection[UUID]) -> EndpointConfig:
    """The endpoint of this machine: configured in `PROXYSTORE_HOME`, and it answers as itself."""
    why = f"none is configured in {home_dir()}"
    for config in get_configs(home_dir()):
        if UUID(config.uuid) not in endpoints or config.host is None:
            continue
        try:
            # By the environment's proxy, as ProxyStore's own clients go: one that stands between
            # this machine and its endpoint is to be told at once.
            limits = (CONNECT_SECONDS, BASE_SECONDS)
            answer = requests.get(f"{_address(config)}/endpoint", timeout=limits)
            if answer.ok and answer.json()["uuid"] == config.uuid:
                return config
            why = f"what answers at {_address(config)} is another"
        except (requests.RequestException, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {_one_line(error)}"
    raise UnreachableError(f"no ProxyStore endpoint of this federation answers from here ({why})")


def _address(config: EndpointConfig) -> str:
    return f"http://{config.host}:{config.port}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
