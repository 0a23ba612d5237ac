"""What a run would send, and where, without sending it: `fl-run --dry-run`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

from rich.console import Console
from rich.table import Table

from fl.config import Federation, Files, ProxystoreConfigs
from fl.run import Algorithm, prepare_environment
from fl.server.requests import train_request
from fl.tensors import digest, encode
from fl.transport import Ref
from fl.transport.inline import InlineTransport


@dataclass(frozen=True)
class Shipment:
    """What one site is sent in one round.

    Attributes:
        client_id: The site.
        endpoint: Its Globus Compute endpoint, or `local`.
        way: How the model travels: `proxystore`, or `inline`, inside the request.
        device: What the site is asked to train on.
        request_bytes: Size of its request as JSON.
    """

    client_id: str
    endpoint: str
    way: str
    device: str
    request_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a run would send.

    Attributes:
        rounds: How many.
        parameters: Trainable numbers in the model.
        model_bytes: What is sent each way, a site and round: the encoded model, with what the
            aggregator adds to it.
        shipments: One a site.
        writes: The folder that would get the run's.
    """

    rounds: int
    parameters: int
    model_bytes: int
    shipments: list[Shipment]
    writes: str

    @property
    def total_bytes(self) -> int:
        """What all rounds move, both ways, if every site answers every round."""
        return 2 * self.rounds * len(self.shipments) * self.model_bytes


def plan(files: Files) -> Plan:
    """Work out what a run would send; nothing is connected to.

    Args:
        files: Where the federation is described.

    Returns:
        The plan.

    Raises:
        FederationError: As `fl.run.run`, for everything that it finds before it connects.
    """
    federation = files.load()
    prepare_environment(federation, files.server.parent)
    algorithm = Algorithm(federation, files.server)
    weights = algorithm.model.state_dict()
    encoded = encode({**weights, **algorithm.aggregator.extra(weights)})
    ref = _ref(federation.server_configs.comm_configs.proxystore_configs, encoded)
    return Plan(
        rounds=federation.server_configs.num_global_epochs,
        parameters=sum(p.numel() for p in algorithm.model.parameters() if p.requires_grad),
        model_bytes=len(encoded),
        shipments=_shipments(federation, ref),
        writes=federation.server_configs.logging_output_dirname,
    )


def _ref(configs: ProxystoreConfigs, encoded: bytes) -> Ref:
    """What stands for the model in a request, as large as it will be."""
    if not configs.enable_proxystore:
        return InlineTransport().put(encoded)
    nobody = str(UUID(int=0))
    key = {"object_id": nobody, "endpoint_id": nobody}
    return Ref("proxystore", key, len(encoded), digest(encoded))


def _shipments(federation: Federation, model: Ref) -> list[Shipment]:
    shipments = []
    for client in federation.clients:
        request = train_request(federation, client, model, turn=1, job="0" * 64, run_id="0" * 32)
        shipments.append(
            Shipment(
                client_id=client.client_id,
                endpoint=str(client.endpoint_id),
                way=model.transport,
                device=federation.train_configs(client).device,
                request_bytes=len(json.dumps(request)),
            )
        )
    return shipments


def show(found: Plan, console: Console) -> None:
    """Print a plan.

    Args:
        found: The plan.
        console: Where.
    """
    table = Table(box=None, pad_edge=False)
    for column in ("site", "endpoint", "device", "model travels", "request"):
        table.add_column(column, overflow="fold")
    for shipment in found.shipments:
        table.add_row(
            shipment.client_id,
            shipment.endpoint,
            shipment.device,
            "inside the request" if shipment.way == "inline" else "by ProxyStore",
            f"{shipment.request_bytes / 1e3:.1f} kB",
        )
    console.print(table)
    console.print(
        f"\n{found.rounds} rounds of {len(found.shipments)} sites, a model of "
        f"{found.parameters:,} parameters: {found.model_bytes / 1e6:.2f} MB each way, "
        f"{found.total_bytes / 1e6:.1f} MB in all\nwould write to {found.writes}/; "
        "nothing was sent",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
