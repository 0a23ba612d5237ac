"""What the server sends: small JSON objects that `fl.client.task.run` understands."""

from __future__ import annotations

from typing import Any, Literal

from fl.config import Client, Federation
from fl.transport import Ref


def train_request(
    federation: Federation,
    client: Client,
    model: Ref,
    *,
    turn: int,
    job: str,
    run_id: str,
    update: Literal["difference", "model"] = "difference",
    steps: int | None = None,
    learning_rate_scale: float = 1.0,
    control_version: int | None = None,
) -> dict[str, Any]:
    """A request for local training.

    Args:
        federation: The configuration.
        client: Who shall train.
        model: Where the global model is.
        turn: Which of the client's trainings this is, from 1: its draws follow from it.
        job: The server's name for the task.
        run_id: The run's name.
        update: Whether to send back what training added, or the model.
        steps: Minibatch steps instead of what the client's `train_configs` say, or None.
        learning_rate_scale: Factor of the client's learning rate.
        control_version: The turn of the client's last update that was used, or None.

    Returns:
        JSON types only.
    """
    return {
        "operation": "train",
        "round": turn,
        "job": job,
        "run_id": run_id,
        "client_id": client.client_id,
        "model": model.to_json(),
        "update": update,
        "steps": steps,
        "learning_rate_scale": learning_rate_scale,
        "control_version": control_version,
        **_experiment(federation, client),
        "proxystore_configs": client.comm_configs.proxystore_configs.model_dump(mode="json"),
    }


def check_request(client: Client, model: Ref, *, until: float) -> dict[str, Any]:
    """A request to prove that models move.

    Args:
        client: Who shall prove it.
        model: What the server put.
        until: Unix seconds at which nobody waits for the answer any more.

    Returns:
        JSON types only.
    """
    return {
        "operation": "check",
        "client_id": client.client_id,
        "model": model.to_json(),
        "proxystore_configs": client.comm_configs.proxystore_configs.model_dump(mode="json"),
        "until": until,
    }


def rehearse_request(
    federation: Federation, client: Client, model: Ref, *, until: float
) -> dict[str, Any]:
    """A request to prove that a site can do its part in a run.

    Args:
        federation: The configuration.
        client: Who shall prove it.
        model: What would be sent in a round.
        until: As for `check_request`.

    Returns:
        JSON types only.
    """
    request = check_request(client, model, until=until)
    return {**request, "operation": "rehearse", **_experiment(federation, client)}


def _experiment(federation: Federation, client: Client) -> dict[str, Any]:
    """How a client trains what, and on what."""
    return {
        "train_configs": federation.train_configs(client).model_dump(mode="json"),
        "model_configs": federation.client_configs.model_configs.model_dump(mode="json"),
        "data_configs": client.data_configs.model_dump(mode="json"),
    }


def progress_request(client: Client, job: str) -> dict[str, Any]:
    """A request to look for a job's record at its site.

    Args:
        client: Where to look.
        job: The server's name for the task.

    Returns:
        JSON types only.
    """
    return {"operation": "progress", "client_id": client.client_id, "job": job}
