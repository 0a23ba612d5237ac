"""What a worker proves before a run, each item by doing it.

A login node can have what a compute node has not, so everything is tried where training will be:
the way for models with one of the real size, the device, the model, the data, a step.
"""

from __future__ import annotations

import platform
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.filesize import decimal
from torch import nn
from torch.utils.data import Subset

import fl
from fl.client import built, control, data, devices, frozen, masking, nodes, site_state, trainer
from fl.client.policy import Policy, site_policy, told
from fl.client.ranks import Ranks
from fl.client.request import CheckRequest, RehearseRequest, RequestError
from fl.client.spending import require_accountant
from fl.client.warm import seed_all
from fl.config import TrainConfigs
from fl.errors import FederationError
from fl.sealing import open_model
from fl.tensors import Data, decode, digest, require_same_layout
from fl.transport import Ref, Way

Value = TypeVar("Value")

PACKAGES = ("fl-hpc", "torch", "globus-compute-sdk", "parsl", "dill", "proxystore", "numpy")
"""Packages whose versions server and sites compare."""
CODE = "fl's code"
"""What stands beside them."""

LEAST_FREE_BYTES = 100_000_000
"""Free space that a site's state folder should have, whatever the model's size."""


class Doubt(FederationError):  # noqa: N818  (a doubt, no error)
    """Nothing fails by it, but somebody should know."""


@dataclass(frozen=True)
class Item:
    """One thing that was tried.

    Attributes:
        check: What.
        outcome: `ok`, `warning` or `failed`.
        message: What was found, in one line.
        seconds: How long it took.
    """

    check: str
    outcome: str
    message: str
    seconds: float


class Items:
    """What was tried, in order; a fault of one item keeps no other from being tried."""

    def __init__(self) -> None:
        self.found: list[Item] = []

    def attempt(self, check: str, act: Callable[[], tuple[Value, str]]) -> Value | None:
        """Try something.

        Args:
            check: What.
            act: Does it; returns its value and what to say of it, or raises.

        Returns:
            The value, or None if it raised.
        """
        started = time.perf_counter()
        value: Value | None = None
        try:
            value, message = act()
            outcome = "ok"
        except Doubt as doubt:
            outcome, message = "warning", str(doubt)
        except Exception as error:
            outcome, message = "failed", told(error)
        self.found.append(Item(check, outcome, message, time.perf_counter() - started))
        return value


def prove(wanted: CheckRequest | RehearseRequest, connect: Callable[[], Way]) -> dict[str, Any]:
    """Try the way for models, and at a rehearsal everything else that a round would do here.

    Args:
        wanted: The request.
        connect: Opens the client's way for models.

    Returns:
        `host`; `versions`; `clock`, this machine's Unix seconds at start and end; `items`, as
        `Item`; and `sent`, a Ref to as many bytes as came, for the server to fetch and evict, or
        None.

    Raises:
        RequestError: The server has stopped waiting.
    """
    began = time.time()
    if began > wanted.until:
        raise RequestError(
            f"the server stopped waiting {began - wanted.until:.0f} s ago by this worker's clock"
        )
    items = Items()
    received, sent = _travel(items, wanted, connect)
    if isinstance(wanted, RehearseRequest) and received is not None:
        _rehearse(items, wanted, received)
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "clock": [began, time.time()],
        "items": [asdict(item) for item in items.found],
        "sent": None if sent is None else sent.to_json(),
    }


def versions() -> dict[str, str]:
    """Of Python, the packages that server and sites compare, and `fl`'s code, as they are here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found | {CODE: _code()}


@cache
def _code() -> str:
    """A digest of this installation's own modules: a checkout changes more often than its version.

    Returns:
        Eight digits in hex.
    """
    modules = sorted(Path(fl.__file__).parent.rglob("*.py"))
    return digest(*(module.read_bytes() for module in modules))[:8]


def told_way(ref: Ref, way: Way) -> str:
    """How an object travels, and how large one may be.

    Args:
        ref: The object's.
        way: What it travels by.

    Returns:
        Such as `models travel inside the request, 7.4 MB at most`.
    """
    most = "" if way.limit is None else f", {decimal(way.limit)} at most"
    return f"models travel {ref.way}{most}"


def _travel(
    items: Items, wanted: CheckRequest | RehearseRequest, connect: Callable[[], Way]
) -> tuple[Data | None, Ref | None]:
    """The server's bytes to here, and as many of this site's to where it can fetch them."""
    ref = Ref.from_json(wanted.model)

    def open_way() -> tuple[Way, str]:
        return (way := connect()), told_way(ref, way)

    way = items.attempt("way", open_way)
    if way is None:
        return None, None

    def receive() -> tuple[Data, str]:
        return way.get(ref), f"{decimal(ref.size)} from the server"

    received = items.attempt("download", receive)
    if received is None:
        return None, None

    def send() -> tuple[Ref, str]:
        return way.put(received), f"{decimal(ref.size)} put here"

    return received, items.attempt("upload", send)


def _rehearse(items: Items, wanted: RehearseRequest, received: Data) -> None:
    """What a round does between the two ways."""
    configs, policy = wanted.train_configs, site_policy()
    built.forget()  # the model that is built here takes its room
    items.attempt("policy", lambda: _policy(policy, wanted.rounds))
    items.attempt("disk", lambda: _disk(len(received)))
    if wanted.threshold is not None:
        items.attempt("identity", lambda: (None, f"in secure sums: {masking.identity()}"))
    device = items.attempt("device", lambda: _device(configs))
    model = items.attempt("model", lambda: _model(wanted, received))
    sets = items.attempt("data", lambda: _data(wanted, policy))
    try:
        if device is not None and model is not None and sets is not None:
            items.attempt("step", lambda: _step(model, sets, configs, policy))
            if _validates(configs):
                items.attempt("validation", lambda: _validation(model, sets, configs, policy))
    finally:
        built.forget()  # this model was trained, if only a little


def _policy(policy: Policy, rounds: int) -> tuple[None, str]:
    """What the site's owner lets the server do; what is not let in at all does not come to here."""
    for limit, per in ((policy.max_rounds, "run"), (policy.max_tasks_per_day, "day")):
        if limit is not None and rounds > limit:
            raise Doubt(f"lets in {limit} rounds a {per}, and the run has {rounds}")
    if policy.metrics is None:
        return None, "lets the run's tasks in"
    return None, f"lets the run's tasks in; metrics that leave: {', '.join(policy.metrics) or '-'}"


def _disk(model_bytes: int) -> tuple[None, str]:
    folder = site_state.folder()
    if not site_state.is_writable("jobs"):
        raise Doubt(
            f"{folder} cannot be written: that a task was lost will be seen late, and SCAFFOLD "
            "cannot be run"
        )
    free = shutil.disk_usage(folder).free
    # SCAFFOLD's control of this round and of the last one, each once more while it is written.
    needed = max(4 * model_bytes, LEAST_FREE_BYTES)
    if free < needed:
        raise FederationError(f"{decimal(free)} free in {folder}, {decimal(needed)} may be needed")
    return None, f"{decimal(free)} free in {folder}"


def _device(configs: TrainConfigs) -> tuple[torch.device, str]:
    device, size = devices.choose(configs.device), configs.nproc_per_node
    if configs.nnodes > 1:
        nodes.require(configs.nnodes)
    if size > 1 or configs.nnodes > 1:
        devices.of_rank(configs.device, size - 1)
        each = f" on each of {configs.nnodes} nodes" if configs.nnodes > 1 else ""
        return device, f"{device}, for {size} process{'es' if size > 1 else ''}{each}"
    if device.type != "cuda":
        return device, str(device)
    properties = torch.cuda.get_device_properties(device)
    return device, f"{device} ({properties.name}, {decimal(properties.total_memory)})"


def _model(wanted: RehearseRequest, received: Data) -> tuple[nn.Module, str]:
    model = built.build_model(wanted.model_configs)
    if wanted.sealing is not None:
        received = open_model(received, wanted.sealing.model_key)
    weights, _ = control.split(decode(received))
    frozen.require_base(frozen.base_digest(frozen.frozen(model)), wanted.base)
    require_same_layout(frozen.travelling(model), weights)
    model.load_state_dict(weights, strict=False)
    count = sum(parameter.numel() for parameter in model.parameters())
    return model, f"{count:,} parameters, of the server's names, shapes and types"


def _data(wanted: RehearseRequest, policy: Policy) -> tuple[data.Sets, str]:
    sets = data.datasets(wanted.data_configs, None)
    used = sets if _validates(wanted.train_configs) else sets[:1]  # as by a round
    sizes = [data.count(found) for found in used if found is not None]
    policy.require_samples(sizes)
    # Where a policy says which numbers may leave, nothing is told that a round would not tell.
    what = data.describe(sets[0]) if policy.metrics is None else f"{sizes[0]:,} samples"
    return sets, what + (f"; {sum(sizes[1:]):,} to validate on" if len(used) > 1 else "")


def _validates(configs: TrainConfigs) -> bool:
    return configs.do_validation or configs.do_pre_validation


def _step(
    model: nn.Module, sets: data.Sets, configs: TrainConfigs, policy: Policy
) -> tuple[None, str]:
    require_accountant(configs)
    configs = _of_rank(configs, data.count(sets[0]))
    training = trainer.train(model, sets[0], configs, seed=0, steps=1)
    # None of fewer samples than the owner wants; more of them than the run has might not fit.
    tells = configs.train_batch_size >= policy.min_samples
    loss = _loss(policy, "train_loss", training.loss) if tells else ""
    return None, f"one step of training{loss}"


def _of_rank(configs: TrainConfigs, samples: int) -> TrainConfigs:
    """With a minibatch of what a run's first rank has of one: a device may not hold the whole."""
    whole = min(configs.train_batch_size, samples)
    if configs.train_drop_last and whole < configs.train_batch_size:
        return configs  # a run refuses it, too
    part = Ranks(size=configs.nproc_per_node * configs.nnodes).part(list(range(whole)))
    return configs.model_copy(update={"train_batch_size": len(part)})


def _loss(policy: Policy, name: str, value: float) -> str:
    return "".join(f", loss {loss:.4g}" for loss in policy.released({name: value}).values())


def _validation(
    model: nn.Module, sets: data.Sets, configs: TrainConfigs, policy: Policy
) -> tuple[None, str]:
    if sets[1] is None:
        raise Doubt("the loader returns no validation set, so this site validates nothing")
    seed_all(0)
    # The loss of fewer would tell of single samples what the owner lets nobody know.
    size = max(configs.val_batch_size, policy.min_samples)
    few = Subset(sets[1], range(min(data.count(sets[1]), size)))
    found = trainer.evaluate(model, few, configs)
    return None, f"one minibatch{_loss(policy, 'val_loss', found.loss)}"
