"""Reading what a site answers, with suspicion."""

from __future__ import annotations

from itertools import islice
from typing import Any

from fl.endpoints.base import JSONObject
from fl.errors import FederationError
from fl.server.schedulers import Answer
from fl.server.sites import Task
from fl.transport import Ref

MOST_NUMBERS, NAME_CHARACTERS = 64, 64
"""A site's metrics that are taken, and the length of a name: all are kept, and shown."""
LARGEST = 1e100
"""Of a site's numbers: as many as there are samples can be added up."""


def read_answer(task: Task, result: JSONObject, now: float) -> Answer:
    """What a site says of its training.

    Args:
        task: What it was sent.
        result: What it returned: anything.
        now: When that came, by the loop's clock.

    Returns:
        The answer; what is no number, too large for one, or has no fit name is left out of its
        metrics and seconds, and so are seconds below 0.

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
        seconds={name: value for name, value in _numbers(result, "seconds").items() if value >= 0},
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
    """The first of the numbers among a site's; what else it sends is left out."""
    values: Any = result.get(key)
    if not isinstance(values, dict):
        return {}
    numbers = (
        (name, float(value))
        for name, value in values.items()
        if is_number(value) and len(name) <= NAME_CHARACTERS and name.isprintable()
    )
    return dict(islice(numbers, MOST_NUMBERS))


def is_number(value: Any) -> bool:
    """Whether what a site says is a number that sums and means can be made of."""
    return isinstance(value, int | float) and -LARGEST < value < LARGEST
