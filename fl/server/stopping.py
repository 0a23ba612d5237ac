"""When further rounds are of no use."""

from __future__ import annotations

import math
from collections.abc import Iterable


def stalled(losses: Iterable[float | None], patience: int, min_delta: float) -> bool:
    """Whether the loss has not fallen for a number of rounds.

    Early stopping as in Prechelt 1998 (https://doi.org/10.1007/3-540-49430-8_3), by the number of
    rounds since the best one.

    Args:
        losses: Of the global models so far, round by round; one that was not evaluated is None, and
            one that is not a number is worse than any.
        patience: Rounds without a better one that are enough.
        min_delta: By how much a loss must be lower than the best to be better.

    Returns:
        Whether the last `patience` rounds brought none that is better than those before.
    """
    best, since = math.inf, 0
    for loss in losses:
        if loss is not None and loss < best - min_delta:
            best, since = loss, 0
        else:
            since += 1
    return since >= patience
