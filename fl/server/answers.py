"""Reading what a site answers, with suspicion."""

from __future__ import annotations

import math
from typing import Any

from fl.endpoints.base import JSONObject
from fl.errors import FederationError
from fl.server.schedulers import Answer
from fl.server.sites import Task
from fl.transport import Ref


def read_answer(task: Task, result: JSONObject, now: float) -> Answer:
    """What a site says of its training.

    Args:
        task: What it was sent.
        result: What it returned: anything.
        now: When that came, by the loop's clock.

    Returns:
        The answer; numbers that are not finite are left out of its metrics and seconds.

    Raises:
        FederationError: It is of another task, names no update, or its counts are none.
    """
    if result.get("job") != task.job:
        raise FederationError("the site's answer is of another task than it was sent")
    return Answer(
        client_id=task.client_id,
        version=task.version,
        turn=task.turn,
        update=Ref.from_json(result.get("update")),
        num_samples=_count(result, "num_samples"),
        steps=_count(result, "steps"),
        metrics=_numbers(result, "metrics"),
        seconds=_numbers(result, "seconds"),
        sent=task.sent - task.waited,
        arrived=now,
        num_validation_samples=(
            _count(result, "num_validation_samples") if "num_validation_samples" in result else 0
        ),
    )


def _count(result: JSONObject, key: str) -> int:
    value = result.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**53:
        raise FederationError(f"the site's {key} is {value!r:.40}, a positive count was expected")
    return value


def _numbers(result: JSONObject, key: str) -> dict[str, float]:
    """The finite numbers among a site's; what else it sends is left out."""
    values: Any = result.get(key)
    if not isinstance(values, dict):
        return {}
    return {name: float(value) for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # JSON has integers that no float can hold
        return False
