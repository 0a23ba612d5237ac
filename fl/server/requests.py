"""What the server sends: small JSON objects that `fl.client.task.run` understands."""

from __future__ import annotations

from typing import Any, Literal

from fl.config import Client, Federation
from fl.server.sources import sources
from fl.transport import Ref


def training(federation: Federation, client: Client) -> dict[str, Any]:
    """What all requests for a client's local training have in common, in a whole run.

    Args:
        federation: The configuration.
        client: Who shall train.

    Returns:
        JSON types only.
    """
    compressor = federation.client_configs.comm_configs.compressor_configs
    return {
        "operation": "train",
        "client_id": client.client_id,
        **_experiment(federation, client),
        "compressor_configs": compressor.model_dump(mode="json"),
        "proxystore_configs": client.comm_configs.proxystore_configs.model_dump(mode="json"),
    }


def train_request(
    common: dict[str, Any],
    model: Ref,
    *,
    turn: int,
    job: str,
    run_id: str,
    base: str | None = None,
    evaluate: bool = False,
    update: Literal["difference", "model"] = "difference",
    steps: int | None = None,
    learning_rate_scale: float = 1.0,
    control_version: int | None = None,
    control_saved: int | None = None,
    upload: dict[str, Any] | None = None,
    sealing: dict[str, str] | None = None,
    masking: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A request for local training.

    Args:
        common: What `training` says of the client.
        model: Where the global model is.
        turn: Which of the client's trainings this is, from 1: its draws follow from it.
        job: The server's name for the task.
        run_id: The run's name.
        base: SHA-256 of the model's frozen parameters, which the client has, or None.
        evaluate: Whether the client evaluates the model before training, whatever its own settings.
        update: Whether to send back what training added, or the model.
        steps: Minibatch steps instead of what the client's `train_configs` say, or None.
        learning_rate_scale: Factor of the client's learning rate.
        control_version: The turn of the client's last update that was used, or None.
        control_saved: The same at the last checkpoint.
        upload: The server's grant to put the update, or None.
        sealing: The keys of `fl.sealing.ServerKeys.for_sites`, or None.
        masking: What `fl.server.masking.Masking.terms` says, or None.

    Returns:
        JSON types only.
    """
    configs = common["train_configs"]
    validates = configs["do_pre_validation"] or evaluate
    return {
        **common,
        "train_configs": {**configs, "do_pre_validation": validates},
        "round": turn,
        "job": job,
        "run_id": run_id,
        "model": model.to_json(),
        "base": base,
        "update": update,
        "steps": steps,
        "learning_rate_scale": learning_rate_scale,
        "control_version": control_version,
        "control_saved": control_saved,
        "upload": upload,
        "sealing": sealing,
        "masking": masking,
    }


def evaluate_request(
    federation: Federation,
    client: Client,
    model: Ref,
    *,
    job: str,
    run_id: str,
    base: str | None = None,
    upload: dict[str, Any] | None = None,
    sealing: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A request to evaluate a model on the client's validation set.

    Args:
        federation: The configuration.
        client: Who shall.
        model: Where the global model is.
        job: The server's name for the task.
        run_id: The run's name: its workers have the data set.
        base: As for `train_request`.
        upload: As for `train_request`: by the same way the model is fetched.
        sealing: As for `train_request`.

    Returns:
        JSON types only.
    """
    return {
        "operation": "evaluate",
        "client_id": client.client_id,
        "model": model.to_json(),
        "base": base,
        "job": job,
        "run_id": run_id,
        **_experiment(federation, client),
        "proxystore_configs": client.comm_configs.proxystore_configs.model_dump(mode="json"),
        "upload": upload,
        "sealing": sealing,
    }


def check_request(
    client: Client, model: Ref, *, until: float, upload: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A request to prove that models move.

    Args:
        client: Who shall prove it.
        model: What the server put.
        until: Unix seconds at which nobody waits for the answer any more.
        upload: The server's grant to put an object as large, or None.

    Returns:
        JSON types only.
    """
    return {
        "operation": "check",
        "client_id": client.client_id,
        "model": model.to_json(),
        "proxystore_configs": client.comm_configs.proxystore_configs.model_dump(mode="json"),
        "until": until,
        "upload": upload,
    }


def rehearse_request(
    federation: Federation,
    client: Client,
    model: Ref,
    *,
    until: float,
    base: str | None = None,
    upload: dict[str, Any] | None = None,
    sealing: dict[str, str] | None = None,
    threshold: int | None = None,
) -> dict[str, Any]:
    """A request to prove that a site can do its part in a run.

    Args:
        federation: The configuration.
        client: Who shall prove it.
        model: What would be sent in a round.
        until: As for `check_request`.
        base: As for `train_request`.
        upload: As for `check_request`.
        sealing: As for `train_request`.
        threshold: Sites that updates would be summed of, unseen, or None.

    Returns:
        JSON types only.
    """
    experiment = _experiment(federation, client)
    if federation.server_configs.federated_evaluation is not None:
        experiment["train_configs"]["do_pre_validation"] = True  # as some rounds will have it
    return {
        **check_request(client, model, until=until, upload=upload),
        "operation": "rehearse",
        "base": base,
        **experiment,
        "sealing": sealing,
        "threshold": threshold,
        "rounds": federation.server_configs.num_global_epochs,
    }


def _experiment(federation: Federation, client: Client) -> dict[str, Any]:
    """How a client trains what, and on what."""
    ships = federation.server_configs.ship_source
    return {
        "train_configs": federation.train_configs(client).model_dump(mode="json"),
        "model_configs": federation.client_configs.model_configs.model_dump(mode="json"),
        "data_configs": client.data_configs.model_dump(mode="json"),
        **({"sources": sources(federation, client)} if ships else {}),
    }


def enter_request(client: Client, job: str) -> dict[str, Any]:
    """A request that asks nothing: its answer says that a worker is there.

    Args:
        client: Whose site.
        job: The server's name for the task.

    Returns:
        JSON types only.
    """
    return {"operation": "enter", "client_id": client.client_id, "job": job}


def progress_request(client: Client, job: str) -> dict[str, Any]:
    """A request to look for a job's record at its site.

    Args:
        client: Where to look.
        job: The server's name for the task.

    Returns:
        JSON types only.
    """
    return {"operation": "progress", "client_id": client.client_id, "job": job}
