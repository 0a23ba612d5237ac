"""What the round loop tells the world. Screens and files listen; the loop knows neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RoundStarted:
    """A round's model was sent out."""

    round: int
    clients: list[str]


@dataclass(frozen=True)
class UpdateReceived:
    """A client's update was folded in.

    Attributes:
        round: The round.
        client_id: Whose.
        num_samples: Samples it was trained on.
        steps: Minibatch steps it took.
        staleness: Steps that the server had taken since it sent the model.
        metrics: The client's own numbers.
        seconds: At the site, by phase.
        size: Bytes of the encoded update.
        sent: When its task was sent, in seconds from the start of the round; below 0 if before.
        arrived: When its answer came, likewise.
        after: When it was folded in, likewise.
    """

    round: int
    client_id: str
    num_samples: int
    steps: int
    staleness: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    size: int
    sent: float
    arrived: float
    after: float


@dataclass(frozen=True)
class ClientFailed:
    """A client gave no update in a round.

    Attributes:
        round: The round.
        client_id: Which.
        reason: Why.
        traceback: The site's, where its own code failed.
        rejected: How many of its answers in a row were not believed; 0 where it gave none.
    """

    round: int
    client_id: str
    reason: str
    traceback: str | None = None
    rejected: int = 0


@dataclass(frozen=True)
class RoundEnded:
    """A round's new global model is there.

    Attributes:
        round: The round.
        loss: The global model's at the server, or None without server_validation.
        accuracy: Likewise.
        updates: What was folded in.
        failures: Who gave nothing, and why.
        bytes_down: Size of the global model times the clients it was sent to.
        bytes_up: Sizes of all updates.
        seconds: By phase: checkpoint and evict (of the round before), agree (on masks), broadcast
            (encode and put), submit, wait (for answers), collect (get and check), unmask,
            aggregate, evaluate; and total.
        aggregator: The aggregator's own numbers, such as the epsilon spent so far; None
            in the record is one that is not finite.
    """

    round: int
    loss: float | None
    accuracy: float | None
    updates: list[UpdateReceived]
    failures: list[ClientFailed]
    bytes_down: int
    bytes_up: int
    seconds: dict[str, float]
    aggregator: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteEvaluation:
    """What a site found of a global model.

    Attributes:
        loss: Mean over its validation set.
        accuracy: Likewise.
        num_samples: In that set.
    """

    loss: float
    accuracy: float
    num_samples: int


@dataclass(frozen=True)
class SitesEvaluated:
    """Sites evaluated a round's global model on their own validation sets.

    Attributes:
        round: The round that made the model.
        during: The round in which their answers came.
        loss: Mean over all samples.
        accuracy: Likewise.
        num_samples: Of all sites.
        sites: What each found, by client_id.
    """

    round: int
    during: int
    loss: float
    accuracy: float
    num_samples: int
    sites: dict[str, SiteEvaluation]


@dataclass(frozen=True)
class SiteChanged:
    """A site's state changed.

    Attributes:
        client_id: Whose.
        state: ready, queued, training, late, lost, back or suspended; see `fl.server.sites`.
        reason: Why it is lost or suspended, else empty.
    """

    client_id: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Warned:
    """Something that people should know and that stops nothing."""

    message: str


Event = (
    RoundStarted
    | UpdateReceived
    | ClientFailed
    | RoundEnded
    | SitesEvaluated
    | SiteChanged
    | Warned
)
Listener = Callable[[Event], Any]
