"""How much a client trains in a round: steps, epochs or seconds, within its block of the machine.

A task that outlives its block is lost with all it did, so training stops early enough to send.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any, Literal

from torch.utils.data import DataLoader

from fl.client.ranks import ALONE, Ranks
from fl.config import TrainConfigs
from fl.errors import FederationError

Stopped = Literal["budget", "block"]
STATES: tuple[Stopped | None, ...] = (None, "budget", "block")

BLOCK_END_VARIABLES = ("FL_BLOCK_END", "SLURM_JOB_END_TIME")
"""Unix seconds at which the worker's job is killed; the first that is set counts.

Slurm 22.05 and later set the second. PBS Pro and OpenPBS tell a job neither its end nor its wall
time: there worker_init, which runs when the job starts, sets the first.
"""


class BlockEnded(FederationError):  # noqa: N818  (an end, and named so in answers)
    """The worker's block ends before a first step could be done and sent."""


def block_end() -> float | None:
    """When the scheduler will end this worker's job.

    Returns:
        Unix seconds, or None where nothing tells.

    Raises:
        FederationError: A variable holds something else than seconds.
    """
    for name in BLOCK_END_VARIABLES:
        if value := os.environ.get(name):
            if not re.fullmatch(r"\d+(\.\d+)?", value):
                raise FederationError(f"{name} is {value!r}, unix seconds were expected")
            return float(value)
    return None


class Countdown:
    """A round's local work, counted down from when this is built.

    Args:
        steps: Minibatch steps after which it is done, or None.
        seconds: Seconds after which it is done, or None.
        until: Unix seconds by which it must have ended in any case, or None.

    Attributes:
        done: Steps that were done.
        stopped: Why it ended; None before.

    Raises:
        BlockEnded: `until` has passed already.
    """

    def __init__(
        self, *, steps: int | None = None, seconds: float | None = None, until: float | None = None
    ) -> None:
        self.done = 0
        self.stopped: Stopped | None = None
        self._steps, self._seconds = steps, seconds
        self._began = self._last = time.monotonic()
        self._left = None if until is None else until - time.time()
        if self._left is not None and self._left <= 0:
            raise BlockEnded(
                "this worker's block ends too soon for a first step and its update "
                f"(by {-self._left:.0f} s)"
            )

    def step(self) -> None:
        """Count a step, and see whether another one fits in: as long as this one took."""
        now = time.monotonic()
        age, took, self._last = now - self._began, now - self._last, now
        self.done += 1
        if self._reached(self._steps, self.done) or self._reached(self._seconds, age):
            self.stopped = "budget"
        elif self._reached(self._left, age + took):
            self.stopped = "block"

    @staticmethod
    def _reached(limit: float | None, value: float) -> bool:
        return limit is not None and value >= limit


def countdown(
    configs: TrainConfigs, epoch: int, *, steps: int | None = None, until: float | None = None
) -> Countdown:
    """Start counting a client's budget down.

    Args:
        configs: Its budget, in epochs, steps or seconds.
        epoch: Minibatches of an epoch.
        steps: The server's budget in minibatch steps, instead of `configs`', or None.
        until: Unix seconds by which training must have ended in any case, or None.

    Returns:
        The countdown.

    Raises:
        BlockEnded: `until` has passed already.
    """
    if steps is not None:
        return Countdown(steps=steps, until=until)
    match configs.mode:
        case "epoch":
            return Countdown(steps=configs.num_local_epochs * epoch, until=until)
        case "step":
            return Countdown(steps=configs.num_local_steps, until=until)
        case "seconds":
            return Countdown(seconds=configs.num_local_seconds, until=until)


def within(left: Countdown, batches: DataLoader[Any], ranks: Ranks = ALONE) -> Iterator[Any]:
    """Minibatches, epoch after epoch, until the countdown has stopped; each one is counted."""
    while left.stopped is None:
        for batch in batches:
            yield batch
            left.step()
            left.stopped = STATES[ranks.agreed(STATES.index(left.stopped))]
            if left.stopped is not None:
                return
