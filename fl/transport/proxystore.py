"""Models through ProxyStore endpoints, peer to peer: https://docs.proxystore.dev/latest/guides/endpoints/.

The endpoint of this machine is found among the federation's as `EndpointConnector` does it, and the
bytes go to and from its HTTP interface, with requests of ours: the connector's wait for ever, also
for an endpoint that ProxyStore has ended half and that only listens, and ProxyStore's own functions
hold an object three times and take whatever size comes. Raw bytes
are stored, never ProxyStore's serialized objects: its deserializer takes a pickle from anyone.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import requests
from proxystore.endpoint import client
from proxystore.endpoint.config import EndpointConfig, get_configs
from proxystore.utils.environment import home_dir

from fl.tensors import Data, size
from fl.transport.base import (
    GoneError,
    Ref,
    TransportError,
    UnreachableError,
    receive,
    ref_to,
    wrong_way,
)

CONNECT_SECONDS = 10.0
# An endpoint answers a get only once it has the whole object from its peer. Peers have been
# measured at 29 MB/s on one host; a tenth of that is taken for dead.
BASE_SECONDS = 60.0
BYTES_PER_SECOND = 3e6
# What is to be evicted is so, once the peer comes to it, whether that is waited for or not.
EVICT_SECONDS = 10.0
CHUNK_BYTES = 1 << 20
TEXT_BYTES = 1 << 16
"""What an endpoint may say that is no model: an error."""


class ProxystoreTransport:
    """Objects put at this machine's endpoint and got by way of it, each operation with a deadline.

    Args:
        endpoints: ProxyStore endpoint ids of the federation; one of them must be configured in
            `PROXYSTORE_HOME` and answer.

    Raises:
        TransportError: None of them does.
    """

    name = "proxystore"

    def __init__(self, endpoints: Sequence[UUID]) -> None:
        here = _endpoint_here(set(endpoints))
        self._address, self._endpoint_id = _address(here), here.uuid
        self.limit: int | None = here.storage.max_object_size
        self._known = {str(endpoint) for endpoint in endpoints}
        self._session = _DeadlineSession()

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`."""
        key = {"object": str(uuid.uuid4()), "endpoint_id": self._endpoint_id}
        with self._deadline(size(pieces), "put"):
            response = self._session.post(
                f"{self._address}/set", params=_parameters(key), data=_chunks(pieces)
            )
            _require_ok(response)
        return ref_to(self.name, key, pieces)

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:
        """See `Transport.get`."""
        self._require_ours(ref)
        with self._deadline(ref.size, "get", seconds):
            url = f"{self._address}/get"
            with self._session.get(url, params=_parameters(ref.key), stream=True) as response:
                if response.status_code == requests.codes.not_found:
                    raise GoneError(
                        f"model {ref.key['object']} is no longer at ProxyStore endpoint "
                        f"{ref.key['endpoint_id']}"
                    )
                _require_ok(response)
                return receive(ref, response.iter_content(CHUNK_BYTES))

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        self._call(client.evict, ref, "evict", EVICT_SECONDS)

    def grant(self, size: int) -> None:
        """See `Transport.grant`: sites have endpoints of their own."""

    def exists(self, ref: Ref) -> bool:
        """See `Store.exists`."""
        return bool(self._call(client.exists, ref, "exists"))

    def close(self) -> None:
        """Close the connection to the endpoint."""
        self._session.close()

    def _call(
        self, operation: Callable[..., Any], ref: Ref, name: str, seconds: float = math.inf
    ) -> Any:
        self._require_ours(ref)
        with self._deadline(0, name, seconds):
            return operation(
                self._address, ref.key["object"], ref.key["endpoint_id"], session=self._session
            )

    def _require_ours(self, ref: Ref) -> None:
        if ref.transport != self.name or not {"object", "endpoint_id"} <= ref.key.keys():
            raise wrong_way(ref, self.name)
        if ref.key["endpoint_id"] not in self._known:  # a stranger's word must not lead elsewhere
            raise TransportError("model is at a ProxyStore endpoint that is not of this federation")

    @contextmanager
    def _deadline(self, total: int, name: str, seconds: float = math.inf) -> Iterator[None]:
        self._session.seconds = min(BASE_SECONDS + total / BYTES_PER_SECOND, seconds)
        try:
            yield
        except requests.RequestException as error:
            message = (
                f"ProxyStore {name} of {total / 1e6:.1f} MB at {self._address} failed: "
                f"{_one_line(error)}"
            )
            if error.response is not None and name == "put":
                hint = "is the object over the endpoint's max_object_size?"
                raise TransportError(f"{message}; {hint}") from error
            raise UnreachableError(message) from error


class _DeadlineSession(requests.Session):
    """A session whose requests all have a limit of time and of bytes, set before each call."""

    seconds = BASE_SECONDS
    most = TEXT_BYTES

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", (CONNECT_SECONDS, self.seconds))
        kwargs.setdefault("proxies", {"http": ""})  # the endpoint is on this machine or beside it
        return super().request(*args, **kwargs)


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


def _parameters(key: Mapping[str, str]) -> dict[str, str]:
    return {"key": key["object"], "endpoint": key["endpoint_id"]}


def _chunks(pieces: Iterable[Data]) -> Iterator[bytes]:
    for piece in pieces:
        for begin in range(0, len(piece), CHUNK_BYTES):
            yield bytes(piece[begin : begin + CHUNK_BYTES])


def _require_ok(response: requests.Response) -> None:
    if not response.ok:
        said = next(response.iter_content(TEXT_BYTES), b"").decode(errors="replace")
        raise requests.RequestException(
            f"the endpoint returned HTTP status {response.status_code}: {said}",
            response=response,
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
