"""A client's training in several processes of a node, each with a device of its own.

The task's own process fetches, sends and answers to the policy; the ranks train, and are gone when
the process that started them is. With one node they speak to each other through its loopback and a
file alone; with several (`fl.client.nodes`) through the interface that the site names.
"""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from signal import Signals
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from fl.client import built, data, devices, site_code, trainer
from fl.client.built import TrainingError
from fl.client.corrections import pull
from fl.client.devices import DeviceError
from fl.client.ranks import Ranks
from fl.client.rendezvous import Order, Rendezvous
from fl.client.request import TrainRequest
from fl.client.results import Training
from fl.errors import FederationError, in_one_line
from fl.tensors import Tensors

LOOK_SECONDS = 0.2
"""How often the ranks of a node are looked after."""
SILENCE = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up: a step may take as long."""
BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
"""How ranks speak about tensors of a kind of device; about others by gloo."""
FAILED = 1
"""Exit code of a rank that has said why."""
MOST_SAID, MOST_TRACEBACK = 2000, 8000
"""Characters of what a rank says that fails, and of where: its pipe takes no more at once than
64 KiB, and is read once the rank has ended."""


class EndedError(TrainingError):
    """A process of the training ended without a word: it was killed."""


class LostError(TrainingError):
    """A rank lost the others: what ended them is the fault, and this its consequence."""


@dataclass(frozen=True)
class Place:
    """Where a node's ranks stand among all.

    Attributes:
        node: The node's number, from 0.
        interface: The network interface by which its ranks reach all others.
    """

    node: int = 0
    interface: str = "lo"


@dataclass(frozen=True)
class _Plan:
    """What every rank of a node does.

    Attributes:
        order: What is to be done.
        weights: What travels of the model, in memory that the node's ranks share; the trained
            model in the end, at the first node.
        steps: Steps that are done, one number, shared too.
        meeting: Where ranks find each other.
        place: The node's.
        answers: For what training did, or the error that ended a rank.
    """

    order: Order
    weights: Tensors
    steps: torch.Tensor
    meeting: Rendezvous
    place: Place
    answers: SimpleQueue[Training | FederationError]


def train(
    wanted: TrainRequest,
    model: nn.Module,
    *,
    travelling: list[str],
    seed: int,
    until: float | None = None,
    on_step: Callable[[int], None] = lambda _steps: None,
) -> Training:
    """Train a model in place by `train_configs.nproc_per_node` ranks; see `trainer.train`.

    Args:
        wanted: The request. Every rank builds its model and loads its data for itself.
        model: The model, with the weights to begin with.
        travelling: Which of its tensors are trained or otherwise change.
        seed: Decides shuffling and every draw that the model makes.
        until: Unix seconds by which training must have ended, or None.
        on_step: Told how many steps are done, now and then.

    Returns:
        What training did.

    Raises:
        DeviceError: There is not a device, or a core, for every rank.
        TrainingError: A rank was killed, or as `trainer.train` says.
        FederationError: What a rank raised.
    """
    order, weights = prepared(wanted, model, travelling=travelling, seed=seed, until=until)
    with tempfile.TemporaryDirectory(prefix="fl-ranks-") as folder:
        training, trained = train_node(order, weights, Rendezvous(Path(folder)), on_step=on_step)
    assert training is not None  # noqa: S101  (this is the first node)
    model.load_state_dict(trained, strict=False)
    return training


def prepared(
    wanted: TrainRequest, model: nn.Module, *, travelling: list[str], seed: int, until: float | None
) -> tuple[Order, Tensors]:
    """What ranks are told, and the weights that they begin with; see `train`."""
    configs = wanted.train_configs
    if configs.device == "auto":  # a node that lacks what the others have is a fault, not the cpu
        configs = configs.model_copy(update={"device": next(devices.present())})
    # What a task is sent by, and gets, is no rank's business.
    own: dict[str, Any] = {"model": None, "upload": None, "sealing": None, "sources": {}}
    order = Order(
        wanted=wanted.model_copy(update={**own, "train_configs": configs}),
        seed=seed,
        until=until,
        sources={path: source.decode() for path, source in site_code.let_in().items()},
    )
    whole = model.state_dict()
    return order, {name: whole[name].detach().cpu().clone() for name in travelling}


def train_node(
    order: Order,
    weights: Tensors,
    meeting: Rendezvous,
    *,
    place: Place = Place(),
    on_step: Callable[[int], None] = lambda _steps: None,
) -> tuple[Training | None, Tensors]:
    """Train by the ranks of this node, together with those of all others.

    Args:
        order: What is to be done.
        weights: What travels of the model, to begin with.
        meeting: Where all ranks meet.
        place: Where this node's stand among them.
        on_step: Told how many steps are done, now and then.

    Returns:
        What training did, and the trained weights, at the first node; at others None, and what
        they began with.

    Raises:
        DeviceError: There is not a device, or a core, for every rank.
        EndedError: A rank was killed.
        LostError: The ranks of another node were lost.
        FederationError: What the first rank has said that failed.
    """
    size = order.wanted.train_configs.nproc_per_node
    devices.of_rank(order.wanted.train_configs.device, size - 1)
    shared = {name: _shared(tensor) for name, tensor in weights.items()}
    steps = _shared(torch.zeros(1, dtype=torch.int64))
    spawn = mp.get_context("spawn")
    plan = _Plan(order, shared, steps, meeting, place, answers=spawn.SimpleQueue())
    # DDP warns of every model that uses all its parameters, which most do.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    ranks = [spawn.Process(target=_rank, args=(local, plan)) for local in range(size)]
    try:
        for process in ranks:
            process.start()
        _await(ranks, plan, on_step)
    finally:
        _end(ranks)
    training = plan.answers.get() if place.node == 0 else None
    assert not isinstance(training, FederationError)  # noqa: S101  (that has raised above)
    return training, shared


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, moved to memory that all ranks see."""
    tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch's
    return tensor


def _await(ranks: list[SpawnProcess], plan: _Plan, on_step: Callable[[int], None]) -> None:
    """Wait until all ranks have done; the first that fails ends all."""
    while True:
        codes = {local: process.exitcode for local, process in enumerate(ranks)}
        on_step(int(plan.steps.item()))
        # One that was killed ended before those that fail for want of it.
        for local, code in codes.items():
            if code not in (None, 0, FAILED):
                raise EndedError(f"{_named(local, plan)} ended: {_ending(code)}")
        if FAILED in codes.values():
            raise _told(plan)
        if not (alive := [ranks[local].sentinel for local in codes if codes[local] is None]):
            return
        wait(alive, timeout=LOOK_SECONDS)


def _ending(code: int) -> str:
    return Signals(-code).name if code < 0 else f"exit code {code}"


def _told(plan: _Plan) -> FederationError:
    """Why the first rank failed that did."""
    told = None if plan.answers.empty() else plan.answers.get()
    return told if isinstance(told, FederationError) else TrainingError("a rank gave no reason")


def _end(ranks: list[SpawnProcess]) -> None:
    """Whatever has happened, no rank outlives who started it."""
    for process in ranks:
        if process.pid is not None:
            process.kill()
            process.join()


def _rank(local: int, plan: _Plan) -> None:
    """What a rank is: a process of its own."""
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    sources = {path: source.encode() for path, source in plan.order.sources.items()}
    try:
        with site_code.shipped(sources):
            training, trained = _train(local, plan)
    except Exception as error:
        plan.answers.put(_failure(error, local, plan))
        os._exit(FAILED)
    if _number(local, plan) == 0:
        for name, tensor in plan.weights.items():
            tensor.copy_(trained[name])
        plan.answers.put(training)
    # Where the interpreter ends in order, threads of torch's own abort it now and then.
    os._exit(0)


def _end_with(starter: Any) -> None:
    """End once who started this has: it may have been killed, and signals may be ignored here."""
    starter.join()
    os._exit(FAILED)


def _number(local: int, plan: _Plan) -> int:
    """A rank's number among all."""
    return plan.place.node * plan.order.wanted.train_configs.nproc_per_node + local


def _size(plan: _Plan) -> int:
    """How many ranks there are."""
    configs = plan.order.wanted.train_configs
    return configs.nnodes * configs.nproc_per_node


def _named(local: int, plan: _Plan) -> str:
    """A rank, for people."""
    where = "" if plan.order.wanted.train_configs.nnodes == 1 else f" on {socket.gethostname()}"
    return f"rank {_number(local, plan)} of {_size(plan)}{where}"


def _failure(error: Exception, local: int, plan: _Plan) -> FederationError:
    """What ended a rank, for who started it; that it lost the others says nothing of why."""
    told = error if isinstance(error, FederationError) else TrainingError(in_one_line(error))
    if _is_of_others(error):
        told = LostError(f"the other ranks are lost: {in_one_line(error)}")
    where = f" ({_named(local, plan)})" if plan.order.wanted.train_configs.nnodes > 1 else ""
    told.args = (f"{str(told)[:MOST_SAID]}{where}",)
    lines = (line[:MOST_SAID] for line in traceback.format_exception(error))
    told.add_note("".join(lines)[-MOST_TRACEBACK:])  # it travels with the error
    return told


def _is_of_others(error: BaseException) -> bool:
    """Whether an error says that a connection to another rank broke: gloo has no type for it."""
    cause = error.__cause__
    of_torch = isinstance(error, dist.DistError) or "gloo" in str(error)
    return of_torch or (cause is not None and _is_of_others(cause))


def _train(local: int, plan: _Plan) -> tuple[Training, dict[str, Any]]:
    """Train with the others."""
    wanted = plan.order.wanted
    device = devices.of_rank(wanted.train_configs.device, local)
    configs = wanted.train_configs.model_copy(update={"device": str(device)})
    threads = len(os.sched_getaffinity(0)) // configs.nproc_per_node
    torch.set_num_threads(max(1, threads))
    model = built.warm_model(wanted.model_configs, wanted.base)
    model.load_state_dict(plan.weights, strict=False)
    dataset, _ = data.datasets(wanted.data_configs, wanted.run_id)
    ranks = Ranks(_number(local, plan), _size(plan), device)
    _meet(ranks, device, plan)
    try:
        ranks.require_same_set(data.count(dataset))
        training = trainer.train(
            model,
            dataset,
            configs,
            seed=plan.order.seed,
            steps=wanted.steps,
            learning_rate_scale=wanted.learning_rate_scale,
            until=plan.order.until,
            # The first rank writes the trained weights while another may be at its last step.
            correction=pull(configs, plan.weights, device, copy=True),
            on_step=lambda steps: _count(plan, local, steps),
            ranks=ranks,
        )
    finally:
        dist.destroy_process_group()
    return training, model.state_dict()


def _count(plan: _Plan, local: int, steps: int) -> None:
    """Tell who started this how far its ranks are."""
    if local == 0:
        plan.steps.fill_(steps)


def _meet(ranks: Ranks, device: torch.device, plan: _Plan) -> None:
    """Join the others; a node's own name need not lead anywhere."""
    interface = plan.place.interface
    here = [name for _, name in socket.if_nameindex()]
    if interface not in here:
        raise DeviceError(
            f"network interface {interface!r} is not on {socket.gethostname()}, which has "
            f"{', '.join(here)}"
        )
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = interface
    if device.type in BACKENDS:
        getattr(torch, device.type).set_device(device.index)
    dist.init_process_group(
        BACKENDS.get(device.type, "gloo"),
        store=plan.meeting.store(ranks.size, SILENCE),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=SILENCE,
    )
