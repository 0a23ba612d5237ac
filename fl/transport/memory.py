"""Models in this process's memory: for simulations, where sites and server are one process."""

from __future__ import annotations

from fl.tensors import digest
from fl.transport.base import GoneError, Ref, verified


class MemoryTransport:
    """Bytes stay in a dictionary until they are evicted."""

    name = "memory"

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._puts = 0

    def __len__(self) -> int:
        """Objects that were put and not evicted."""
        return len(self._objects)

    def put(self, data: bytes) -> Ref:
        """See `Transport.put`."""
        self._puts += 1
        key = str(self._puts)
        self._objects[key] = data
        return Ref(self.name, {"object": key}, len(data), digest(data))

    def get(self, ref: Ref) -> bytes:
        """See `Transport.get`."""
        key = ref.key.get("object", "")
        if key not in self._objects:
            raise GoneError("the model is no longer in memory: it was evicted")
        return verified(ref, self._objects[key])

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        self._objects.pop(ref.key.get("object", ""), None)

    def close(self) -> None:
        """See `Transport.close`."""
        self._objects.clear()
