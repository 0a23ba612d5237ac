"""The model inside the task itself: for models below Globus Compute's 10 MB, and for tests."""

from __future__ import annotations

import base64
import math

from fl.tensors import Data, size
from fl.transport.base import Ref, TransportError, ref_to, verified, wrong_way

# A submit request may hold 10 MB. Base64 takes 4 characters for 3 bytes, the SDK's own packing a
# few more; what is left is for the rest of the request.
LIMIT_BYTES = 7_400_000


class InlineTransport:
    """Bytes travel in the reference, as base64."""

    name = "inline"
    limit: int | None = LIMIT_BYTES

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`; models over `LIMIT_BYTES` are refused before they are sent."""
        if (total := size(pieces)) > LIMIT_BYTES:
            raise TransportError(
                f"model of {total / 1e6:.1f} MB is too large to travel inside a task "
                f"({LIMIT_BYTES / 1e6:.1f} MB at most); set "
                "comm_configs.proxystore_configs.enable_proxystore in server.yaml and clients.yaml"
                " (with connector_type FileConnector where all clients are on this machine)"
            )
        key = {"base64": base64.b64encode(b"".join(pieces)).decode()}
        return ref_to(self.name, key, pieces)

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:  # noqa: ARG002  (the protocol's)
        """See `Transport.get`; nothing is waited for."""
        if ref.transport != self.name or "base64" not in ref.key:
            raise wrong_way(ref, self.name)
        try:
            data = base64.b64decode(ref.key["base64"], validate=True)
        except ValueError as error:  # also of what is not ASCII
            raise TransportError(f"model arrived damaged: {error}") from error
        return verified(ref, data)

    def evict(self, ref: Ref) -> None:
        """Nothing is kept anywhere."""

    def grant(self, size: int | None) -> None:
        """See `Transport.grant`: an answer carries its model."""

    def close(self) -> None:
        """Nothing is open."""
