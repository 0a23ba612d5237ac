"""What a run would send, and where, without sending it: `fl-run --dry-run`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fl.algorithm import Algorithm
from fl.client.frozen import base_digest, travelling
from fl.config import Federation, ServerCommConfigs
from fl.config_files import Files
from fl.endpoints.credentials import prepare_environment
from fl.sealing import ServerKeys
from fl.server.aggregators import SecureFedAvg
from fl.server.requests import train_request, training
from fl.server.sources import digests
from fl.tensors import digest, encode, largest_encoding
from fl.transport import WAYS, Ref
from fl.transport.inline import InlineTransport

NOBODY = str(UUID(int=0))


@dataclass(frozen=True)
class Shipment:
    """What one site is sent in one round.

    Attributes:
        client_id: The site.
        endpoint: Its Globus Compute endpoint, or `local`.
        way: How the model travels: a name of `fl.transport.WAYS`.
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
        model_bytes: What is sent to a site in a round: the encoded model without what it marks
            frozen, with what the aggregator adds to it.
        updates: Of which a round, or a step by arrival, is made, if every site answers.
        update_bytes: What a site sends back, before compression.
        compressed: Whether `compressor_configs` make that smaller.
        shipments: One a site.
        writes: The folder that would get the run's.
        sources: Files whose source travels with every task, with their SHA-256.
    """

    rounds: int
    parameters: int
    model_bytes: int
    updates: int
    update_bytes: int
    compressed: bool
    shipments: list[Shipment]
    writes: str
    sources: dict[str, str]

    @property
    def total_bytes(self) -> int:
        """What all rounds move, both ways, if every site answers every round."""
        return self.rounds * self.updates * (self.model_bytes + self.update_bytes)


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
    prepare_environment(federation, files.site_code)
    algorithm = Algorithm(federation, files.server)
    weights = travelling(algorithm.model)
    encoded = encode({**weights, **algorithm.aggregator.extra(weights)})
    secure = isinstance(algorithm.aggregator, SecureFedAvg)
    masked = SecureFedAvg.masked(weights)
    ref = _ref(federation.server_configs.comm_configs, encoded)
    return Plan(
        rounds=federation.server_configs.num_global_epochs,
        parameters=sum(p.numel() for p in algorithm.model.parameters() if p.requires_grad),
        model_bytes=len(encoded),
        updates=algorithm.aggregator.updates_per_step or len(federation.clients),
        update_bytes=largest_encoding(masked) if secure else len(encoded),
        compressed=federation.client_configs.comm_configs.compressor_configs.enable_compression,
        shipments=_shipments(federation, ref, base_digest(algorithm.frozen)),
        writes=federation.server_configs.logging_output_dirname,
        sources=digests(federation),
    )


def _ref(configs: ServerCommConfigs, encoded: bytes) -> Ref:
    """What stands for the model in a request, about as large as it will be."""
    proxystore = configs.proxystore_configs
    if configs.s3_configs.enable_s3:
        way, key = "s3", {"object": NOBODY, "url": 10 * NOBODY}
    elif configs.hub_configs.enable_hub:
        way, key = "hub", {"object": NOBODY, "url": 3 * NOBODY, "query": NOBODY, "ca": 30 * NOBODY}
    elif not proxystore.enable_proxystore or proxystore.connector_configs is None:
        return InlineTransport().put(encoded)
    elif proxystore.connector_configs.store_dir is not None:
        way, key = "file", {"object": NOBODY}
    elif proxystore.connector_configs.hostname is not None:
        way, key = "redis", {"object": NOBODY}
    else:
        way, key = "proxystore", {"object": NOBODY, "endpoint_id": NOBODY}
    return Ref(way, key, len(encoded), digest(encoded))


def _shipments(federation: Federation, model: Ref, base: str | None) -> list[Shipment]:
    shipments = []
    sealed = federation.server_configs.comm_configs.sealing
    sealing = ServerKeys(ServerKeys.draw()).for_sites() if sealed else None
    for client in federation.clients:
        request = train_request(
            training(federation, client),
            model,
            turn=1,
            job="0" * 64,
            run_id="0" * 32,
            base=base,
            sealing=sealing,
        )
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
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("site", "endpoint", "device", "model travels", "request"):
        table.add_column(column, overflow="fold")
    for shipment in found.shipments:
        table.add_row(
            shipment.client_id,
            shipment.endpoint,
            shipment.device,
            WAYS[shipment.way],
            decimal(shipment.request_bytes),
        )
    console.print(table)
    down, up = decimal(found.model_bytes), decimal(found.update_bytes)
    back = f"{up} back before compression" if found.compressed else f"{up} back"
    some = f"{found.updates} updates of " if found.updates != len(found.shipments) else ""
    console.print(
        f"\n{found.rounds} rounds of {some}{len(found.shipments)} sites, a model of "
        f"{found.parameters:,} parameters: {down} "
        + (f"to a site, {back}, " if down != up or found.compressed else "each way, ")
        + f"{decimal(found.total_bytes)} in all\n"
        + "".join(f"ships {path}, sha256 {digest}\n" for path, digest in found.sources.items())
        + f"would write to {found.writes}/; "
        "nothing was sent",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
