"""What every way of moving bytes has in common: the protocol, the reference, the check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fl.errors import FederationError
from fl.tensors import digest


class TransportError(FederationError):
    """Bytes could not be put, got or evicted, or arrived other than they left."""


class UnreachableError(TransportError):
    """A place that holds bytes did not answer: another try may mend it."""


class GoneError(TransportError):
    """The bytes are not where they were put: no try will mend that."""


LARGEST_BYTES = 2**40
"""No model is larger: what claims to be is no reference, and deadlines follow from the claim."""


@dataclass(frozen=True)
class Ref:
    """Where bytes are, how many, and what they hash to. It travels as JSON.

    Attributes:
        transport: Name of the way they were put by.
        key: What that way needs to find them again; strings only.
        size: Bytes.
        sha256: Their digest, in hex.
    """

    transport: str
    key: Mapping[str, str]
    size: int
    sha256: str

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
                "sha256": str(sha256),
            } if 0 <= size <= LARGEST_BYTES and all(map(_is_plain, [transport, *key.values()])):
                return cls(transport, key, size, sha256)
        raise TransportError("not a reference to a model: transport, key, size, sha256 expected")


def _is_plain(part: Any) -> bool:
    """Whether it is text that a message can show."""
    return isinstance(part, str) and part.isprintable()


class Transport(Protocol):
    """One way of moving bytes."""

    def put(self, data: bytes) -> Ref:
        """Make bytes reachable for the other side.

        Args:
            data: An encoded model.

        Returns:
            The reference to send instead of it.

        Raises:
            TransportError: They could not be put.
        """

    def get(self, ref: Ref) -> bytes:
        """Fetch bytes that the other side put, and check them against their reference.

        Args:
            ref: Their reference.

        Returns:
            The bytes.

        Raises:
            TransportError: They are gone, out of reach, or not what the reference says.
        """

    def evict(self, ref: Ref) -> None:
        """Forget bytes; those that are gone already are no error.

        Args:
            ref: Their reference.

        Raises:
            TransportError: The place that holds them could not be reached.
        """

    def close(self) -> None:
        """Release connections."""


def verified(ref: Ref, data: bytes) -> bytes:
    """Bytes that are what their reference says.

    Args:
        ref: The reference.
        data: What arrived.

    Returns:
        `data`.

    Raises:
        TransportError: Size or digest differ.
    """
    if len(data) != ref.size:
        raise TransportError(f"model arrived with {len(data)} bytes instead of {ref.size}")
    if digest(data) != ref.sha256:
        raise TransportError("model arrived damaged: its digest differs from its reference")
    return data
