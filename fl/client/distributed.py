"""A client's training in several processes of its node, each with a device of its own.

The task's own process fetches, sends and answers to the policy; the ranks train, and are gone when
the task is. They speak to each other through this node's loopback and a file alone.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessException,
    ProcessExitedException,
    start_processes,
)

from fl.client import data, devices, site_code, trainer
from fl.client.corrections import Correction, Proximal
from fl.client.ranks import Ranks
from fl.client.request import TrainRequest
from fl.client.trainer import Training, TrainingError
from fl.errors import FederationError
from fl.tensors import Tensors

LOOK_SECONDS = 0.2
"""How often the task looks after its ranks."""
SILENCE = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up: a step may take as long."""
BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
"""How ranks speak about tensors of a kind of device; about others by gloo."""


@dataclass(frozen=True)
class _Plan:
    """What every rank does.

    Attributes:
        wanted: The request.
        received: What travels of the model, in memory that all ranks share; the trained model in
            the end.
        steps: Steps that are done, one number, shared too.
        seed: The round's.
        until: As for `trainer.train`.
        sources: What the site has let in of the server's source.
        meeting: A file that does not exist yet, by which ranks find each other.
        answers: For what training did, or the error that ended a rank.
    """

    wanted: TrainRequest
    received: Tensors
    steps: torch.Tensor
    seed: int
    until: float | None
    sources: dict[str, bytes]
    meeting: Path
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
    size = wanted.train_configs.nproc_per_node
    devices.of_rank(wanted.train_configs.device, size - 1)
    whole = model.state_dict()
    received = {name: _shared(whole[name].detach().cpu().clone()) for name in travelling}
    with tempfile.TemporaryDirectory(prefix="fl-ranks-") as folder:
        plan = _Plan(
            wanted,
            received,
            steps=_shared(torch.zeros(1, dtype=torch.int64)),
            seed=seed,
            until=until,
            sources=site_code.let_in(),
            meeting=Path(folder, "meeting"),
            answers=get_context("spawn").SimpleQueue(),
        )
        # DDP warns of every model that uses all its parameters, which most do.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        ranks: ProcessContext = start_processes(_rank, (plan,), nprocs=size, join=False)  # type: ignore[no-untyped-call]  # torch's
        try:
            _await(ranks, plan, on_step)
        finally:
            _end(ranks)
        training = plan.answers.get()
    assert isinstance(training, Training)  # noqa: S101  (a rank that failed has raised above)
    model.load_state_dict(received, strict=False)
    return training


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, moved to memory that all ranks see."""
    tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch's
    return tensor


def _await(ranks: ProcessContext, plan: _Plan, on_step: Callable[[int], None]) -> None:
    """Wait until all ranks have done; the first that fails ends all."""
    try:
        while not ranks.join(timeout=LOOK_SECONDS):
            on_step(int(plan.steps.item()))
    except ProcessExitedException as error:
        if not plan.answers.empty() and isinstance(told := plan.answers.get(), FederationError):
            raise told from None
        raise TrainingError(
            f"rank {error.error_index} of {plan.wanted.train_configs.nproc_per_node} ended: "
            f"{error.signal_name or f'exit code {error.exit_code}'}"
        ) from error
    except ProcessException as error:
        raise TrainingError(f"rank {error.error_index} failed: {error}") from error
    on_step(int(plan.steps.item()))


def _end(ranks: ProcessContext) -> None:
    """Whatever has happened, no rank outlives its task."""
    for process in ranks.processes:
        if process.is_alive():
            process.kill()
        process.join()


def _rank(rank: int, plan: _Plan) -> None:
    """What a rank is: a process of its own."""
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    try:
        with site_code.shipped(plan.sources):
            training, trained = _train(rank, plan)
    except FederationError as error:
        error.add_note(traceback.format_exc())  # it travels with the error
        plan.answers.put(error)
        os._exit(1)
    if rank == 0:
        for name, tensor in plan.received.items():
            tensor.copy_(trained[name])
        plan.answers.put(training)
    # Where the interpreter ends in order, threads of torch's own abort it now and then.
    os._exit(0)


def _end_with(task: Any) -> None:
    """End once the task's process has: it may have been killed, and signals may be ignored here."""
    task.join()
    os._exit(1)


def _train(rank: int, plan: _Plan) -> tuple[Training, dict[str, Any]]:
    """Train with the others."""
    wanted, size = plan.wanted, plan.wanted.train_configs.nproc_per_node
    device = devices.of_rank(wanted.train_configs.device, rank)
    configs = wanted.train_configs.model_copy(update={"device": str(device)})
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // size))
    model = trainer.warm_model(wanted.model_configs, wanted.base)
    model.load_state_dict(plan.received, strict=False)
    dataset, _ = data.datasets(wanted.data_configs)
    _meet(rank, size, device, plan.meeting)
    try:
        training = trainer.train(
            model,
            dataset,
            configs,
            seed=plan.seed,
            steps=wanted.steps,
            learning_rate_scale=wanted.learning_rate_scale,
            until=plan.until,
            correction=(
                Correction()
                if configs.mu is None
                else Proximal({n: t.clone() for n, t in plan.received.items()}, configs.mu, device)
            ),
            on_step=lambda steps: _count(plan, rank, steps),
            ranks=Ranks(rank, size, device),
        )
    finally:
        dist.destroy_process_group()
    return training, model.state_dict()


def _count(plan: _Plan, rank: int, steps: int) -> None:
    """Tell the task how far its ranks are."""
    if rank == 0:
        plan.steps.fill_(steps)


def _meet(rank: int, size: int, device: torch.device, meeting: Path) -> None:
    """Join the others of this node; a node's own name need not lead anywhere."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = "lo"
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group(
        BACKENDS.get(device.type, "gloo"),
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=size,
        timeout=SILENCE,
    )
