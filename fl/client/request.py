"""What a site reads of a request: the schema of what `fl.server.requests` builds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from fl.client.site_state import NAME
from fl.config import (
    CompressorConfigs,
    DataConfigs,
    ModelConfigs,
    PositiveInt,
    ProxystoreConfigs,
    Section,
    TrainConfigs,
)
from fl.errors import FederationError
from fl.secure_sum.keys import Bundle

Name = Annotated[str, Field(pattern=NAME)]
MOST_SOURCE = 256_000
"""Characters of a file that a server may ship."""


Sources = Annotated[dict[str, Annotated[str, Field(max_length=MOST_SOURCE)]], Field(max_length=4)]


class RequestError(FederationError):
    """A request says something that this site's version does not understand."""


class Sealing(Section):
    """The server's keys, in base64."""

    update_key: str
    """Seals updates: the public half of the run's X25519 key."""
    model_key: str
    """Opens models."""


class EvaluateRequest(Section):
    """Evaluate a model on the client's validation set; what only training needs is left aside."""

    model_config = ConfigDict(extra="ignore")

    operation: Literal["evaluate"]
    client_id: Name
    """The client."""
    model: Any
    """A Ref to what travels of the model, or also to SCAFFOLD's control, which is left aside."""
    base: str | None = None
    """The digest of the rest, the parameters that the model marks frozen; None where none are."""
    job: Name | None = None
    """The server's name for the task; the answer repeats it."""
    run_id: Name | None = None
    """The run: what a worker has loaded, and the folder of what the site keeps between rounds."""
    train_configs: TrainConfigs
    """The loss, the device and the batch size."""
    model_configs: ModelConfigs
    """The model."""
    data_configs: DataConfigs
    """The client's data."""
    proxystore_configs: ProxystoreConfigs
    """The client's way for models."""
    sources: Sources = Field(default={})
    """Python source that the server ships, by the path that the configurations name it by: of the
    model, the loader, the loss and the metric. It runs where the site's policy lets it in."""
    upload: dict[str, Any] | None = None
    """The server's grant of its own way, which is then the client's as well: a training may put
    one object by it."""
    sealing: Sealing | None = None
    """What models are sealed by, and updates must be; None where they travel in clear."""


class Masking(Section):
    """How an update is masked before it leaves; see `fl.client.masking`."""

    session: Name
    """The sum's name."""
    group: Annotated[list[Name], Field(min_length=1)]
    """Whose masks are in it: the sites that have shared their keys, this one among them."""
    threshold: PositiveInt
    """Sites that are in the sum at least."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The largest Euclidean norm of the update; a larger one is scaled down."""
    weights: Literal["sample_size", "equal"]
    """What the update counts by."""


class TrainRequest(EvaluateRequest):
    """Train a model on the client's training set, for one round."""

    model_config = ConfigDict(extra="forbid")

    operation: Literal["train"]  # type: ignore[assignment]  # the one field that differs
    round: Annotated[int, Field(ge=0)]
    """The round; seeds derive from it."""
    compressor_configs: CompressorConfigs = CompressorConfigs()
    """The format of what is sent back."""
    update: Literal["difference", "model"] = "model"
    """What to send back: what training added to the model, or the trained model."""
    steps: PositiveInt | None = None
    """Minibatch steps, whatever budget `train_configs` has."""
    learning_rate_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Multiplies the optimizer's learning rate."""
    control_version: Annotated[int, Field(ge=0)] | None = None
    """SCAFFOLD, top-k: the last round of this client that the server has taken in, or None."""
    control_saved: Annotated[int, Field(ge=0)] | None = None
    """The same at the server's last checkpoint: what it may ask for again."""
    masking: Masking | None = None
    """How the update is masked; None where the server is to see it."""

    @property
    def run(self) -> str:
        """The run's id, by which a site keeps what it keeps between rounds, and seals an update.

        Raises:
            RequestError: There is none.
        """
        if self.run_id is None:
            raise RequestError("request: run_id: it is missing")
        return self.run_id


class SumRequest(Section):
    """Take part in a secure sum: what its four small tasks have in common."""

    operation: Literal["advertise", "share", "confirm", "unmask"]
    client_id: Name
    """The client."""
    run_id: Name
    """The run."""
    session: Name
    """The sum's name, one that no other has."""
    job: Name
    """The server's name for the task; the answer repeats it."""


class ShareRequest(SumRequest):
    """Leave shares of one's keys with every peer."""

    threshold: PositiveInt
    """Shares that give a key back."""
    roster: dict[Name, Bundle]
    """The keys of all who advertised some, by name."""


class ConfirmRequest(SumRequest):
    """Sign whose updates are in the sum."""

    survivors: list[Name]
    """Whose those are."""


class UnmaskRequest(SumRequest):
    """Give the shares that take the masks off the sum, and off nothing else."""

    signatures: dict[Name, str]
    """What survivors have confirmed it by; one that is of something else counts for nothing."""
    shares: dict[Name, str]
    """What peers have left for this client, sealed."""


UnixSeconds = Annotated[float, Field(allow_inf_nan=False)]


class CheckRequest(Section):
    """Prove that models reach this site, and the server from it; no data is touched."""

    operation: Literal["check"]
    client_id: Name
    """The client."""
    model: Any
    """A Ref to what the server put."""
    proxystore_configs: ProxystoreConfigs
    """The client's way for models."""
    upload: dict[str, Any] | None = None
    """As in `EvaluateRequest`."""
    until: UnixSeconds
    """When the server stops waiting: what is put later is never fetched."""


class RehearseRequest(EvaluateRequest):
    """Prove that, and do what a round does, with one step of training."""

    model_config = ConfigDict(extra="forbid")

    operation: Literal["rehearse"]  # type: ignore[assignment]  # the one field that differs
    threshold: PositiveInt | None = None
    """Sites that would be in a secure sum at least; None where the server would see updates."""
    rounds: PositiveInt
    """That the run would have."""
    until: UnixSeconds
    """As in `CheckRequest`."""


Request = TypeVar("Request", bound=Section)


def read(schema: type[Request], value: Any) -> Request:
    """Read a request.

    Args:
        schema: What it should be.
        value: What came; JSON has strings where the schema has ids.

    Returns:
        The request.

    Raises:
        RequestError: It is something else; the message names the first fault.
    """
    try:
        return schema.model_validate(value, strict=False)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            reason = "unknown here: is this site's fl older than the server's?"
        else:
            reason = fault["msg"].removeprefix("Value error, ")
        raise RequestError(f"request: {key}: {reason}") from error
