"""What would keep a run from working at the server itself, before any site is asked."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal
from torch import nn
from torch.utils.data import Subset

from fl.algorithm import held_out, open_steps, require_training
from fl.client import built, data, frozen, trainer
from fl.client.check import LEAST_FREE_BYTES, Doubt, Items
from fl.config import Federation
from fl.errors import FederationError
from fl.server.aggregators import Aggregator, SecureFedAvg
from fl.server.sources import digests
from fl.tensors import encode, pieces, size
from fl.trackers import open_trackers


@dataclass(frozen=True)
class Sent:
    """What a round would send of the model, and what it would say of that.

    Attributes:
        encoded: What is sent.
        base: The digest of what is not.
        threshold: Sites that updates would be summed of, unseen; None where the server sees them.
    """

    encoded: bytes
    base: str | None
    threshold: int | None


def check_server(items: Items, federation: Federation, file: Path) -> Sent | None:
    """Try everything that a run does at the server itself.

    Args:
        items: Gets what is found.
        federation: The configuration.
        file: Where it stands, for messages.

    Returns:
        What a round would send, if the model can be built.
    """
    items.attempt("files", lambda: _files(federation))
    configs = federation.server_configs
    if configs.ship_source:
        items.attempt("source", lambda: _source(federation))
    model = items.attempt("model", lambda: _model(federation))
    found = None
    if model is not None:
        items.attempt("training", lambda: _training(federation, model, file))
        weights = frozen.travelling(model)
        aggregator = items.attempt("algorithm", lambda: _algorithm(federation, model, file))
        base = frozen.base_digest(frozen.frozen(model))
        extra = aggregator.extra(weights) if aggregator is not None else {}
        threshold = aggregator.threshold if isinstance(aggregator, SecureFedAvg) else None
        found = Sent(encode({**weights, **extra}), base, threshold)
        if configs.server_validation:
            items.attempt("held-out set", lambda: _held_out(federation, model))
    folder, sent = Path(configs.logging_output_dirname), len(found.encoded) if found else 0
    items.attempt("run folder", lambda: _run_folder(folder, sent))
    return found


def _files(federation: Federation) -> tuple[None, str]:
    if federation.notes:
        raise Doubt("; ".join(federation.notes))
    rounds = federation.server_configs.num_global_epochs
    return None, f"{len(federation.clients)} sites, {rounds} rounds"


def _source(federation: Federation) -> tuple[None, str]:
    """What sites are sent to run, by the digests that their owners list."""
    told = (f"{path} (sha256 {digest})" for path, digest in digests(federation).items())
    return None, f"ships {', '.join(told)}"


def _model(federation: Federation) -> tuple[nn.Module, str]:
    model = built.build_model(federation.client_configs.model_configs)
    count = sum(parameter.numel() for parameter in model.parameters())
    whole, sent = size(pieces(model.state_dict())), size(pieces(frozen.travelling(model)))
    travels = f", of which {decimal(sent)} travel" if sent < whole else ""
    return model, f"{count:,} parameters, {decimal(whole)}{travels}"


def _training(federation: Federation, model: nn.Module, file: Path) -> tuple[None, str]:
    require_training(federation, model, file)
    configs = federation.client_configs.train_configs
    return None, f"{configs.trainer}, {configs.optim}, {configs.loss_fn}"


def _algorithm(federation: Federation, model: nn.Module, file: Path) -> tuple[Aggregator, str]:
    """Aggregator and scheduler."""
    aggregator, _ = open_steps(federation, model, file)
    configs = federation.server_configs
    open_trackers(configs.trackers, file=file)
    return aggregator, f"{configs.aggregator} under {configs.scheduler}"


def _held_out(federation: Federation, model: nn.Module) -> tuple[None, str]:
    found = held_out(federation)
    if found is None:
        return None, "none"
    dataset, settings = found
    few = Subset(dataset, range(min(data.count(dataset), settings.val_batch_size)))
    loss = trainer.evaluate(model, few, settings).loss
    return None, f"{data.describe(dataset)}; loss before training {loss:.4g}"


def _run_folder(folder: Path, sent: int) -> tuple[None, str]:
    """A folder that can be written, with room for what a run leaves: four models."""
    try:
        there = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    except OSError as error:
        raise FederationError(f"{folder}: cannot be looked at ({error.strerror})") from error
    if not there.is_dir():
        raise FederationError(f"{folder}: cannot be made, {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FederationError(f"{folder}: cannot be written")
    free = shutil.disk_usage(there).free
    if free < max(4 * sent, LEAST_FREE_BYTES):
        raise FederationError(f"{folder}: has only {decimal(free)} free")
    return None, f"{folder}: {decimal(free)} free"
