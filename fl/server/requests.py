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
    upload: dict[str, Any] | None = None,
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
        upload: The server's grant to put the update, or None.

    Returns:
        JSON types only.
    """
    shared = federation.client_configs
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
        "train_configs": federation.train_configs(client).model_dump(mode="json"),
        "model_configs": shared.model_configs.model_dump(mode="json"),
        "compressor_configs": shared.comm_configs.compressor_configs.model_dump(mode="json"),
        "data_configs": client.data_configs.model_dump(mode="json"),
        "proxystore_configs": client.comm_configs.proxystore_configs.model_dump(mode="json"),
        "upload": upload,
    }


def check_request(
    client: Client, model: Ref | None = None, upload: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A request to prove the worker's way for models.

    Args:
        client: Who shall check.
        model: An object of the server's that the worker shall fetch too.
        upload: The server's grant to put an object as large, or None.

    Returns:
        JSON types only.
    """
    return {
        "operation": "check",
        "client_id": client.client_id,
        "model": None if model is None else model.to_json(),
        "proxystore_configs": client.comm_configs.proxystore_configs.model_dump(mode="json"),
        "upload": upload,
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
