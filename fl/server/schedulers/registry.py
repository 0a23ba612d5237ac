"""From a name in server.yaml to a scheduler: ours, or a user's by an entry point."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.config import ServerConfigs
from fl.server import registry
from fl.server.schedulers import arrivals, compass, queue, rounds
from fl.server.schedulers.base import Limits, Scheduler

GROUP = "fl.schedulers"
"""The entry-point group of other packages' schedulers."""

OURS: Mapping[str, type[Any]] = {
    f"{kind.__name__}Scheduler": kind
    for kind in (rounds.Sync, arrivals.Async, compass.Compass, queue.FedQueue, queue.Pace)
}
"""Schedulers of this package by their names in server.yaml."""


def open_scheduler(
    configs: ServerConfigs, updates_per_step: int | None, *, file: Path = Path("server.yaml")
) -> Scheduler:
    """Build the scheduler that server.yaml names.

    Args:
        configs: `server_configs`.
        updates_per_step: What the aggregator wants.
        file: Where they stand, for messages.

    Returns:
        A fresh scheduler.

    Raises:
        ConfigError: The name is unknown, its class cannot be loaded, or a setting is unknown, out
            of range, or does not fit the run.
    """
    limits = Limits(
        needed=configs.min_clients or configs.num_clients,
        deadline=configs.round_deadline,
        updates_per_step=updates_per_step,
    )
    scheduler: Scheduler = registry.build(
        "scheduler", configs.scheduler, configs.scheduler_kwargs, limits, OURS, GROUP, file
    )
    return scheduler
