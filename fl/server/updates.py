"""An update on its way in: fetched, opened and looked at with suspicion before it is summed."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fl.compression import decompress
from fl.config import Federation
from fl.sealing import SealError, ServerKeys, training_name
from fl.server.aggregators import Aggregator, SecureFedAvg
from fl.server.clock import Clock
from fl.server.norms import require_norm
from fl.server.objects import Objects
from fl.server.round import Round
from fl.server.schedulers import Answer
from fl.tensors import (
    Data,
    Tensors,
    decode,
    largest_encoding,
    norm,
    require_finite,
    require_layout,
)
from fl.transport import Ref, Transport, TransportError

LEAST_FETCH_SECONDS, LEAST_BYTES_PER_SECOND = 10.0, 1e7
"""What an update is given that is fetched as its round ends, however that goes over time."""
HEADER_ROOM = 1_000_000
"""Bytes that an update may have beyond the model's."""


class Updates:
    """Fetches updates, and refuses those that are none.

    Args:
        federation: The configuration.
        run_id: The run's name.
        transport: The server's way for models.
        objects: The models that the server has put, which no site may send back.
        aggregator: Says what an update is like.
        clock: What deadlines are told by.
        sealing: The run's keys, where updates are sealed.
    """

    def __init__(
        self,
        federation: Federation,
        run_id: str,
        transport: Transport,
        objects: Objects,
        aggregator: Aggregator,
        clock: Clock,
        sealing: ServerKeys | None,
    ) -> None:
        self._run_id, self._transport, self._objects = run_id, transport, objects
        self._aggregator, self._clock, self._sealing = aggregator, clock, sealing
        self._compressor = federation.client_configs.comm_configs.compressor_configs
        self._norm_bound = federation.server_configs.norm_bound
        self._patience = federation.server_configs.round_deadline
        self._bytes = 0

    def expect(self, layout: Tensors) -> None:
        """Be told the model: no update is larger than one of it.

        Args:
            layout: The model's names, shapes and dtypes.
        """
        self._bytes = largest_encoding(self._expected(layout))

    def most_bytes(self, model: int = 0) -> int:
        """What an update may have; zstd makes what it cannot compress a little longer.

        Args:
            model: What the model has as it travels.
        """
        return int(1.01 * max(model, self._bytes)) + HEADER_ROOM

    def fetch(self, this: Round, answer: Answer) -> Tensors:
        """An update, once it is known that there is room for it, and that it is one.

        Args:
            this: The round that it is for.
            answer: What its site said of it.

        Returns:
            Tensors of the names, shapes and dtypes that the aggregator wants.

        Raises:
            FederationError: It cannot be fetched, or is not what it should be.
        """
        if this.folded:  # there is a sum already
            this.let_go()
        layout, ref = self._expected(this.layout), answer.update
        if ref.size > (most := self.most_bytes()):
            raise TransportError(f"its update claims {ref.size} bytes, {most} are the most")
        if self._objects.is_model(ref):
            raise TransportError("its update is the model that it was sent")
        data, buffers = self._opened(this, answer), self._aggregator.buffers
        update = decompress(decode(data), layout, self._compressor, buffers)
        require_layout(layout, update)
        return update

    def require_norm(self, this: Round, update: Tensors, last: Iterable[float]) -> float | None:
        """Refuse an update that is no number, or too large.

        Args:
            this: The round that it is for.
            update: The update.
            last: The norm of each site's last update that was used.

        Returns:
            Its norm, where any is asked for.

        Raises:
            FederationError: It is refused.
        """
        if self._norm_bound is None or self._aggregator.clips:
            require_finite(update)
            return None
        found = norm(update)
        if not math.isfinite(found):  # or what is large alone, which is looked at next
            require_finite(update)
        require_norm(found, self._norm_bound, this.model_norm, last)
        return found

    def _expected(self, layout: Tensors) -> Tensors:
        """What an update looks like."""
        if isinstance(self._aggregator, SecureFedAvg):
            return self._aggregator.masked(layout)
        return {**layout, **self._aggregator.extra(layout)}

    def _opened(self, this: Round, answer: Answer) -> Data:
        """An update's bytes, which are its own site's and of this training where it is sealed."""
        data = self._transport.get(answer.update, self._seconds(this, answer.update))
        if self._sealing is None:
            return data
        training = training_name(self._run_id, answer.client_id, answer.turn)
        try:
            return self._sealing.open_update(data, training)
        except SealError as error:
            raise SealError(f"its update does not open: {error}") from error

    def _seconds(self, this: Round, ref: Ref) -> float:
        """How long an update may take: no longer than its round, but what any needs."""
        left = this.opened + self._patience - self._clock.now()
        return max(left, LEAST_FETCH_SECONDS + ref.size / LEAST_BYTES_PER_SECOND)
