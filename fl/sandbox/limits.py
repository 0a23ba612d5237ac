"""The hosted service's limits: how large a request may be, and how many of them it takes."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque

MAX_BODY_BYTES = 10_000_000
REQUESTS = 20
WINDOW_S = 10.0


class RateLimit:
    """At most so many requests of one client in any window of so many seconds."""

    def __init__(self, requests: int = REQUESTS, window_s: float = WINDOW_S) -> None:
        self._requests = requests
        self._window_s = window_s
        self._taken: defaultdict[str, deque[float]] = defaultdict(deque)

    def retry_after_s(self, client: str) -> int | None:
        """Take a request and return None; or, if there were too many, whole seconds to wait.

        A request that is refused does not count.
        """
        now = time.monotonic()
        taken = self._taken[client]
        while taken and taken[0] <= now - self._window_s:
            taken.popleft()
        if len(taken) < self._requests:
            taken.append(now)
            return None
        return max(1, math.ceil(taken[0] + self._window_s - now))
