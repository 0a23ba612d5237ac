"""What a site reads of a request: the schema of what `fl.server.requests` builds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from fl.client.site_state import NAME
from fl.config import (
    DataConfigs,
    ModelConfigs,
    PositiveInt,
    ProxystoreConfigs,
    Section,
    TrainConfigs,
)
from fl.errors import FederationError

Name = Annotated[str, Field(pattern=NAME)]


class RequestError(FederationError):
    """A request says something that this site's version does not understand."""


class EvaluateRequest(Section):
    """Evaluate a model on the client's validation set; what only training needs is left aside."""

    model_config = ConfigDict(extra="ignore")

    operation: Literal["evaluate"]
    client_id: Name
    """The client."""
    model: Any
    """A Ref to the model, or to a round's model with SCAFFOLD's control, which is left aside."""
    job: Name | None = None
    """The server's name for the task; the answer repeats it."""
    train_configs: TrainConfigs
    """The loss, the device and the batch size."""
    model_configs: ModelConfigs
    """The model."""
    data_configs: DataConfigs
    """The client's data."""
    proxystore_configs: ProxystoreConfigs
    """The client's way for models."""


class TrainRequest(EvaluateRequest):
    """Train a model on the client's training set, for one round."""

    model_config = ConfigDict(extra="forbid")

    operation: Literal["train"]  # type: ignore[assignment]  # the one field that differs
    round: Annotated[int, Field(ge=0)]
    """The round; seeds derive from it."""
    update: Literal["difference", "model"] = "model"
    """What to send back: what training added to the model, or the trained model."""
    steps: PositiveInt | None = None
    """Minibatch steps, whatever budget `train_configs` has."""
    learning_rate_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Multiplies the optimizer's learning rate."""
    run_id: Name | None = None
    """The run: the folder of what the site keeps between rounds."""
    control_version: Annotated[int, Field(ge=0)] | None = None
    """SCAFFOLD: the last round of this client that the server has taken in; None before one."""


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
    until: UnixSeconds
    """When the server stops waiting: what is put later is never fetched."""


class RehearseRequest(EvaluateRequest):
    """Prove that, and do what a round does, with one step of training."""

    model_config = ConfigDict(extra="forbid")

    operation: Literal["rehearse"]  # type: ignore[assignment]  # the one field that differs
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
        raise RequestError(
            f"request: {key}: {fault['msg'].removeprefix('Value error, ')}"
        ) from error
