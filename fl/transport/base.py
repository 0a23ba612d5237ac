"""What every way of moving bytes has in common: the protocol, the reference, the check."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from blake3 import blake3

from fl.errors import FederationError
from fl.tensors import Data, digest, size


class TransportError(FederationError):
    """Bytes could not be put, got or evicted, or arrived other than they left."""


class UnreachableError(TransportError):
    """A place that holds bytes did not answer: another try may mend it."""


class GoneError(TransportError):
    """The bytes are not where they were put: no try will mend that."""


class NoPlaceError(TransportError):
    """Where bytes were to be put, the store knows no place for them: it takes another grant."""


WAYS = {
    "inline": "inside the request",
    "proxystore": "by ProxyStore",
    "file": "through a folder",
    "redis": "through Redis",
    "s3": "through a bucket",
    "hub": "through the hub",
}
"""Transports by their names, as people read them."""

LARGEST_BYTES = 2**40
"""No model is larger: what claims to be is no reference, and deadlines follow from the claim."""


@dataclass(frozen=True)
class Ref:
    """Where bytes are, how many, and what they hash to. It travels as JSON.

    Attributes:
        transport: Name of the way they were put by.
        key: What that way needs to find them again; strings only. Where they lie somewhere,
            `object` is their name there.
        size: Bytes.
        digest: `fl.tensors.digest` of them.
    """

    transport: str
    key: Mapping[str, str]
    size: int
    digest: str

    @property
    def way(self) -> str:
        """How the bytes travel, for people."""
        return WAYS.get(self.transport, self.transport)

    def names(self, other: Ref) -> bool:
        """Whether another reference is to the same object, whatever else its key says."""
        name = self.key.get("object")
        return self.key == other.key or (name is not None and name == other.key.get("object"))

    def to_json(self) -> dict[str, Any]:
        """The reference as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Ref:
        """Read a reference that came from elsewhere.

        Args:
            value: What `to_json` gave, or anything else.

        Returns:
            The reference.

        Raises:
            TransportError: The value is not a reference.
        """
        match value:
            case {
                "transport": str(transport),
                "key": dict(key),
                "size": int(size),
                "digest": str(digest),
            } if 0 <= size <= LARGEST_BYTES and all(map(_is_plain, [transport, *key.values()])):
                return cls(transport, key, size, digest)
        raise TransportError("not a reference to a model: transport, key, size, digest expected")


def _is_plain(part: Any) -> bool:
    """Whether it is text that a message can show."""
    return isinstance(part, str) and part.isprintable()


class Way(Protocol):
    """One way of moving bytes, as a site that is granted it knows it.

    Attributes:
        limit: The most bytes that an object may have, or None where the way sets no limit.
    """

    limit: int | None

    def put(self, *pieces: Data) -> Ref:
        """Make bytes reachable for the other side.

        Args:
            pieces: An encoded model, whole or as `fl.tensors.pieces` gives it.

        Returns:
            The reference to send instead of it.

        Raises:
            TransportError: They could not be put.
        """

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:
        """Fetch bytes that the other side put, and check them against their reference.

        Args:
            ref: Their reference; no more memory is taken than it says.
            seconds: After which they are not waited for any more.

        Returns:
            The bytes, which belong to the caller.

        Raises:
            TransportError: They are gone, out of reach, or not what the reference says.
        """

    def close(self) -> None:
        """Release connections."""


class Transport(Way, Protocol):
    """One way of moving bytes."""

    def evict(self, ref: Ref) -> None:
        """Forget bytes; those that are gone already are no error.

        Args:
            ref: Their reference.

        Raises:
            TransportError: The place that holds them could not be reached.
        """

    def grant(self, size: int | None) -> dict[str, Any] | None:
        """What a site needs to get objects by this way, and to put one.

        Args:
            size: The most bytes that it will put, or None where it will put nothing.

        Returns:
            JSON types; None where sites need nothing from the server.

        Raises:
            TransportError: The place for it could not be reached.
        """


@runtime_checkable
class Store(Transport, Protocol):
    """A way by which objects stay at the side that put them, until someone evicts them there."""

    def exists(self, ref: Ref) -> bool:
        """Whether bytes are still there.

        Args:
            ref: Their reference.

        Raises:
            TransportError: The place that holds them could not be reached, or is another's.
        """


def ref_to(transport: str, key: Mapping[str, str], pieces: Sequence[Data]) -> Ref:
    """The reference to bytes that were put."""
    return Ref(transport, key, size(pieces), digest(*pieces))


def receive(ref: Ref, chunks: Iterable[Data]) -> Data:
    """Bytes that arrive bit by bit, in a buffer of their reference's size, hashed meanwhile.

    Args:
        ref: The reference.
        chunks: What arrives; no more of it is taken than the reference says.

    Returns:
        The buffer.

    Raises:
        TransportError: Size or digest differ.
    """
    # NumPy's memory is of huge pages and not written with zeros first: ten times faster to fill.
    buffer, hashed, end = np.empty(ref.size, np.uint8).data, blake3(), 0
    for chunk in chunks:
        begin, end = end, end + len(chunk)
        if end > ref.size:
            raise TransportError(f"model arrived with more than its {ref.size} bytes")
        buffer[begin:end] = chunk
        hashed.update(chunk)
    require(ref, end, hashed.hexdigest())
    return buffer


def verified(ref: Ref, data: Data) -> Data:
    """Bytes that are what their reference says.

    Args:
        ref: The reference.
        data: What arrived.

    Returns:
        `data`.

    Raises:
        TransportError: Size or digest differ.
    """
    require(ref, len(data), digest(data))
    return data


def wrong_way(ref: Ref, way: str) -> TransportError:
    """What to raise where a reference is not of this side's way.

    Args:
        ref: The reference.
        way: This side's.
    """
    told = f"model was sent by {ref.transport}, but this side is set up for {way}"
    if ref.transport == way:
        told += ", which knows no such reference: has the other side another version of fl?"
    return TransportError(told)


def require(ref: Ref, received: int, found: str) -> None:
    """Refuse bytes that are not what their reference says.

    Args:
        ref: The reference.
        received: How many bytes arrived.
        found: What they hash to.

    Raises:
        TransportError: Size or digest differ.
    """
    if received != ref.size:
        raise TransportError(f"model arrived with {received} bytes instead of {ref.size}")
    if found != ref.digest:
        raise TransportError("model arrived damaged: its digest differs from its reference")
