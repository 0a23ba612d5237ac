"""Where a model is trained: a device by name, or the best that is here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from fl.errors import FederationError


class DeviceError(FederationError):
    """A device is not here, or cannot do what was asked."""


def choose(name: str) -> torch.device:
    """A device that works.

    Args:
        name: A torch device, or `auto` for the first that is here of cuda, xpu, mps and cpu.

    Returns:
        The device.

    Raises:
        DeviceError: It is not here.
    """
    try:
        device = torch.device(next(present()) if name == "auto" else name)
    except RuntimeError as error:  # its own message lists a dozen that nobody trains on
        raise DeviceError(
            f"device {name!r} is none that torch knows; cpu, cuda, cuda:0, xpu, mps or auto"
        ) from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise DeviceError(
            f"device {name!r} is not here, but {', '.join(present())} is: {reason}"
        ) from error
    return device


def of_rank(name: str, rank: int) -> torch.device:
    """The device of one of several processes that train together.

    Args:
        name: A kind of torch device, without an index, or `auto`.
        rank: The process's number, from 0.

    Returns:
        The device of that number; all processes share the cpu.

    Raises:
        DeviceError: There are not so many, or not so many cores.
    """
    device = choose(name)
    if device.index is not None:
        raise DeviceError(f"nproc_per_node takes device: {device.type}, not one of them ({name})")
    on_cpu = device.type == "cpu"
    count = len(os.sched_getaffinity(0)) if on_cpu else _count(device)
    if rank >= count:
        what = "cores" if on_cpu else f"{device.type} devices"
        raise DeviceError(
            f"nproc_per_node asks for {rank + 1} {what} or more, and this worker has {count}"
        )
    return device if on_cpu else torch.device(device.type, rank)


def _count(device: torch.device) -> int:
    """Devices of a kind; `torch.accelerator`, which says the same, came with torch 2.6."""
    return int(getattr(torch, device.type).device_count())


def is_broken() -> bool:
    """Whether a fault has broken cuda for this process: whatever it does there will fail, too."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def present() -> Iterator[str]:
    """The kinds of device that torch finds here, best first; cpu is always the last."""
    if torch.cuda.is_available():
        yield "cuda"
    if hasattr(torch, "xpu") and torch.xpu.is_available():  # since torch 2.3
        yield "xpu"
    if torch.backends.mps.is_available():
        yield "mps"
    yield "cpu"


def autocast(device: torch.device, amp: str | None) -> AbstractContextManager[Any]:
    """Mixed precision for the forward pass.

    Args:
        device: Where the model is.
        amp: `bfloat16`, `float16`, or None for full precision.

    Returns:
        The context of every forward pass.
    """
    # Not even a disabled autocast is built without need: older torch has none for some devices.
    return nullcontext() if amp is None else torch.autocast(device.type, getattr(torch, amp))


def scaler(device: torch.device, amp: str | None) -> torch.amp.GradScaler:
    """What keeps float16's small gradients from vanishing; it does nothing for other types.

    Args:
        device: Where the model is.
        amp: As for `autocast`.

    Returns:
        The scaler of a round.

    Raises:
        DeviceError: float16 was asked for on something else than cuda.
    """
    if amp == "float16" and device.type != "cuda":
        raise DeviceError(f"amp float16 needs a cuda device, not {device.type}; take bfloat16")
    return torch.amp.GradScaler(device.type, enabled=amp == "float16")
