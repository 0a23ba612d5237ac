"""APPFL's keys that are not ours: taken for what they mean here, or refused with what to write.

The other keys of its files are those of `fl.config`, by the same names; docs/appfl.md lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """One of APPFL's keys that `fl.config` does not have.

    Attributes:
        means: The values that ask for nothing but what is done here in any case.
        instead: What to write in place of any other.
        note: What people should know of it, where its value has no effect.
    """

    means: Callable[[Any], bool]
    instead: str
    note: str = ""


def _only(value: Any) -> Callable[[Any], bool]:
    return lambda given: given is value


def _anything(_value: Any) -> bool:
    return True


def _nothing(_value: Any) -> bool:
    return False


def _switched_off(switch: str, settings: set[str]) -> Callable[[Any], bool]:
    """A section that is off, and has no key but those that APPFL reads in it."""
    return lambda given: (
        given is None
        or (
            isinstance(given, dict)
            and given.get(switch, False) is False
            and given.keys() <= {switch, *settings}
        )
    )


TRAIN = {
    "use_dp": Key(
        _only(False), "clients have dp_sgd for it (docs/algorithms.md): use_dp: false, or no key"
    ),
    "epsilon": Key(_anything, ""),
    "dp_mechanism": Key(_anything, ""),
    "dp_config": Key(_anything, ""),
    "val_data_shuffle": Key(
        _only(False), "validation keeps the data's order, which changes no result: leave it out"
    ),
    "send_gradient": Key(
        lambda given: isinstance(given, bool),
        "leave it out: what clients send follows from the aggregator",
    ),
    "optimize_memory": Key(
        _only(True), "updates are never held longer than the aggregator needs them: leave it out"
    ),
    "trainer_path": Key(
        _nothing, "sites run this package's trainers alone: leave it out and set trainer"
    ),
}
"""In train_configs. Those of differential privacy mean nothing while `use_dp` is off."""

LOGGING = {
    name: Key(
        _anything,
        "",
        "has no effect: a site's log is its endpoint's, and its metrics are in the run's folder",
    )
    for name in ("logging_output_dirname", "logging_output_filename")
}
"""In a client's train_configs."""

COMM = {
    "compressor_configs": Key(
        _switched_off(
            "enable_compression",
            {
                "lossy_compressor",
                "lossless_compressor",
                "error_bounding_mode",
                "error_bound",
                "param_cutoff",
            },
        ),
        "updates have one format for all: client_configs.comm_configs.compressor_configs of the "
        "server's file",
    ),
    "s3_configs": Key(
        _switched_off("enable_s3", {"s3_bucket", "s3_creds_file", "s3_temp_dir"}),
        "the bucket and its keys are the server's: server_configs.comm_configs.s3_configs",
    ),
}
"""In comm_configs, of whichever section: where it is ours, what is switched on is left there."""

BUCKET = {"s3_temp_dir": Key(_anything, "", "has no effect: nothing is written before it is sent")}
"""In s3_configs."""

SERVER = {
    "val_data_configs": Key(
        _nothing,
        "write data_configs (dataset_path, dataset_name, dataset_kwargs), whose loader returns two "
        "sets as a client's does, and server_validation: true",
    ),
}

CLIENT = {
    "wandb_configs": Key(
        _switched_off("enable_wandb", {"entity", "project", "exp_name"}),
        "the server tells it: server_configs.trackers: [wandb], and here enable_wandb: false",
    ),
    "mlflow_configs": Key(
        _switched_off("enable_mlflow", set()),
        "leave it out: the server tells it, by server_configs.trackers: [mlflow]",
    ),
}

SCHEDULER = {
    "same_init_model": Key(_only(True), "every client starts from the server's model: true"),
}

AGGREGATOR = {
    "gradient_based": Key(
        lambda given: isinstance(given, bool),
        "leave it out: what clients send follows from the aggregator",
    ),
}

FORMATS = (None, "bf16", "fp16", "int8", "zstd", "auto")


def translate(content: Any) -> Iterator[str]:
    """Turn APPFL's server or client file into ours, in place.

    Args:
        content: What the file's YAML says; what is no mapping is left for validation to refuse.

    Yields:
        A note for each key that has no effect here.

    Raises:
        ValueError: A key asks for what is not done here; the message says what to write instead.
    """
    if not isinstance(content, dict):
        return
    shared = _mapping(content, "client_configs")
    server = _mapping(content, "server_configs")
    yield from _take(shared, "train_configs", TRAIN, "client_configs.")
    yield from _ways(shared, "client_configs.", "compressor_configs")
    _require_format(_mapping(_mapping(shared, "comm_configs"), "compressor_configs"))
    yield from _of(server, SERVER, "server_configs.")
    yield from _take(server, "scheduler_kwargs", SCHEDULER, "server_configs.")
    yield from _take(server, "aggregator_kwargs", AGGREGATOR, "server_configs.")
    yield from _ways(server, "server_configs.", "s3_configs")
    bucket = _mapping(_mapping(server, "comm_configs"), "s3_configs")
    yield from _of(bucket, BUCKET, "server_configs.comm_configs.s3_configs.")
    clients = content.get("clients")
    for number, client in enumerate(clients if isinstance(clients, list) else []):
        if isinstance(client, dict):
            yield from _of_client(client, f"clients.{number}.")


def _of_client(client: dict[str, Any], place: str) -> Iterator[str]:
    yield from _of(client, CLIENT, place)
    yield from _take(client, "train_configs", TRAIN | LOGGING, place)
    yield from _ways(client, place)
    if client.get("endpoint_id") and "client_id" not in client:
        client["client_id"] = client["endpoint_id"]


def _ways(section: dict[str, Any], place: str, ours: str = "") -> Iterator[str]:
    here = _mapping(section, "comm_configs")
    kept = {n: key for n, key in COMM.items() if n != ours or key.means(here.get(n))}
    yield from _take(section, "comm_configs", kept, place)
    proxystore = _mapping(_mapping(section, "comm_configs"), "proxystore_configs")
    if proxystore.get("connector_type") == "GlobusConnector":
        raise ValueError(
            f"{place}comm_configs.proxystore_configs.connector_type: no model travels by Globus "
            "Transfer here: connector_type: EndpointConnector, and the endpoints' ids in "
            "connector_configs.endpoints"
        )


def _require_format(compressor: dict[str, Any]) -> None:
    """Refuse APPFL's compressors, which are switched on, by naming ours."""
    bounds = {"error_bounding_mode", "error_bound"} & compressor.keys()
    names = [compressor.get("lossy_compressor"), compressor.get("lossless_compressor")]
    if bounds or any(name not in FORMATS for name in names):
        raise ValueError(
            "client_configs.comm_configs.compressor_configs: lossy_compressor: bf16, fp16 or int8, "
            "lossless_compressor: zstd or auto, either or both, and no error bounds; or "
            "enable_compression: false"
        )


def _take(parent: dict[str, Any], name: str, keys: dict[str, Key], place: str) -> Iterator[str]:
    yield from _of(_mapping(parent, name), keys, f"{place}{name}.")


def _of(section: dict[str, Any], keys: dict[str, Key], place: str) -> Iterator[str]:
    """Take APPFL's keys out of a section."""
    for name, key in keys.items():
        if name not in section:
            continue
        if not key.means(section[name]):
            raise ValueError(f"{place}{name}: {key.instead}")
        if key.note:
            yield f"{place}{name} {key.note}"
        del section[name]


def _mapping(parent: dict[str, Any], name: str) -> dict[str, Any]:
    """A section, or an empty one in place of what is none."""
    found = parent.get(name)
    return found if isinstance(found, dict) else {}
