"""Models through ProxyStore endpoints, peer to peer: https://docs.proxystore.dev/latest/guides/endpoints/.

`EndpointConnector` finds the endpoint of this machine among the federation's; the bytes then go
through ProxyStore's own HTTP client, with a session of ours, because the connector's session
waits for ever. Raw bytes are stored, never ProxyStore's serialized objects: its deserializer
takes a pickle from anyone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

import requests
from proxystore.connectors.endpoint import EndpointConnector, EndpointConnectorError
from proxystore.endpoint import client

from fl.tensors import digest
from fl.transport.base import GoneError, Ref, TransportError, UnreachableError, verified

CONNECT_SECONDS = 10.0
# An endpoint answers a get only once it has the whole object from its peer. Peers have been
# measured at 29 MB/s on one host; a tenth of that is taken for dead.
BASE_SECONDS = 60.0
BYTES_PER_SECOND = 3e6
CHUNK_BYTES = 1_048_576
TEXT_BYTES = 65_536
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
        try:
            with EndpointConnector(list(endpoints)) as connector:
                self._address = connector.address
                self._endpoint_id = str(connector.endpoint_uuid)
        except (EndpointConnectorError, requests.RequestException, OSError) as error:
            raise UnreachableError(
                "no ProxyStore endpoint of this federation answers from here "
                f"({type(error).__name__}: {_one_line(error)})"
            ) from error
        self._known = {str(endpoint) for endpoint in endpoints}
        self._session = _DeadlineSession()

    def put(self, data: bytes) -> Ref:
        """See `Transport.put`."""
        object_id = str(uuid.uuid4())
        with self._deadline(len(data), "put"):
            client.put(self._address, object_id, data, self._endpoint_id, session=self._session)
        key = {"object_id": object_id, "endpoint_id": self._endpoint_id}
        return Ref(self.name, key, len(data), digest(data))

    def get(self, ref: Ref) -> bytes:
        """See `Transport.get`."""
        data = self._call(client.get, ref, "get", ref.size)
        if data is None:
            raise GoneError(
                f"model {ref.key['object_id']} is no longer at ProxyStore endpoint "
                f"{ref.key['endpoint_id']}"
            )
        return verified(ref, data)

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        self._call(client.evict, ref, "evict", 0)

    def exists(self, ref: Ref) -> bool:
        """Whether the endpoint still holds an object; raises as `Transport.get` does."""
        return bool(self._call(client.exists, ref, "exists", 0))

    def close(self) -> None:
        """Close the connection to the endpoint."""
        self._session.close()

    def _call(self, operation: Callable[..., Any], ref: Ref, name: str, size: int) -> Any:
        if ref.transport != self.name or not {"object_id", "endpoint_id"} <= ref.key.keys():
            raise TransportError(
                f"model was sent by {ref.transport}, but this side is set up for {self.name}"
            )
        if ref.key["endpoint_id"] not in self._known:  # a stranger's word must not lead elsewhere
            raise TransportError("model is at a ProxyStore endpoint that is not of this federation")
        with self._deadline(size, name):
            return operation(
                self._address, ref.key["object_id"], ref.key["endpoint_id"], session=self._session
            )

    @contextmanager
    def _deadline(self, size: int, name: str) -> Iterator[None]:
        self._session.seconds = BASE_SECONDS + size / BYTES_PER_SECOND
        self._session.most = max(size, TEXT_BYTES)
        try:
            yield
        except requests.RequestException as error:
            message = (
                f"ProxyStore {name} of {size / 1e6:.1f} MB at {self._address} failed: "
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
        response = super().request(*args, **kwargs)
        if kwargs.get("stream"):  # else it has been read by now, and is the endpoint's own words
            response.iter_content = partial(_at_most, self.most, response)  # type: ignore[method-assign]  # ProxyStore's client reads by it
        return response


def _at_most(most: int, response: requests.Response, *_: Any, **__: Any) -> Iterator[bytes]:
    """A response's bytes as they come, and no more of them than were announced."""
    read = 0
    for chunk in requests.Response.iter_content(response, CHUNK_BYTES):
        read += len(chunk)
        if read > most:
            raise TransportError(f"model is larger than the {most} bytes that its reference says")
        yield chunk


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
