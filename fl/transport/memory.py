"""Models in this process's memory: for simulations, where sites and server are one process."""

from __future__ import annotations

import math

from fl.tensors import Data
from fl.transport.base import GoneError, Ref, ref_to, verified


class MemoryTransport:
    """Bytes stay in a dictionary until they are evicted."""

    name = "memory"
    limit: int | None = None

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._puts = 0

    def __len__(self) -> int:
        """Objects that were put and not evicted."""
        return len(self._objects)

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`."""
        self._puts += 1
        key = str(self._puts)
        self._objects[key] = b"".join(pieces)
        return ref_to(self.name, {"object": key}, pieces)

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:  # noqa: ARG002  (the protocol's)
        """See `Transport.get`; nothing is waited for."""
        key = ref.key.get("object", "")
        if key not in self._objects:
            raise GoneError("the model is no longer in memory: it was evicted")
        return verified(ref, self._objects[key])

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        self._objects.pop(ref.key.get("object", ""), None)

    def grant(self, size: int | None) -> None:
        """See `Transport.grant`: everybody is in this process."""

    def close(self) -> None:
        """See `Transport.close`."""
        self._objects.clear()
