"""What differential privacy has cost a site in a run, by the site's own count."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from fl import privacy
from fl.client import site_state
from fl.config import TrainConfigs
from fl.errors import FederationError
from fl.privacy import Spent


class PrivacyError(FederationError):
    """A model or a site cannot train with differential privacy."""


def require_accountant(configs: TrainConfigs) -> None:
    """See that what a round costs can be told, before it is trained.

    Args:
        configs: What is wanted.

    Raises:
        PrivacyError: dp-accounting is not installed.
    """
    for wanted in (configs.dp_sgd, configs.local_dp):
        if wanted is not None:
            try:
                privacy.epsilon([], wanted.delta)
            except ValueError as error:
                raise PrivacyError(str(error)) from error


def charge(
    run: str, client: str, mechanism: Literal["dp_sgd", "local_dp"], spent: Spent, delta: float
) -> float:
    """Note what a round cost, before its update leaves; every sending of a round counts.

    Args:
        run: The run.
        client: The client.
        mechanism: Whose noise it was; each is counted by itself.
        spent: The round's steps.
        delta: The delta that epsilon is told for.

    Returns:
        Epsilon of all that this site did in the run up to now.

    Raises:
        SiteStateError: It cannot be noted.
        PrivacyError: What was noted before is not readable.
    """
    file = site_state.path(run, client, f"{mechanism}.json")
    with _alone(file):
        total = _added(file, spent)
        site_state.write(file, json.dumps(total).encode(), durable=True)
    try:
        return privacy.epsilon(total, delta)
    except ValueError as error:
        raise PrivacyError(str(error)) from error


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other workers of the site from adding to a file meanwhile."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = file.with_suffix(".lock").open("w")
    except OSError as error:
        raise PrivacyError(f"{file}: cannot be locked ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise PrivacyError(f"{file}: cannot be locked ({error.strerror})") from error
        yield


def _added(file: Path, spent: Spent) -> list[Spent]:
    """What a file says was spent, and one round more."""
    try:
        before = [Spent(*entry) for entry in json.loads(file.read_text())]
    except FileNotFoundError:
        before = []
    except (OSError, ValueError, TypeError) as error:
        raise PrivacyError(f"{file}: does not say what was spent ({error})") from error
    # Steps alike cost what they cost together: a round a line would make each slower to reckon.
    steps: dict[tuple[float, float], int] = {}
    for noise_multiplier, sampling_rate, count in [*before, spent]:
        alike = noise_multiplier, sampling_rate
        steps[alike] = steps.get(alike, 0) + count
    return [Spent(*alike, count) for alike, count in steps.items()]
