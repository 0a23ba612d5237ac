"""Time, as the round loop sees it: this machine's, or a simulation's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

Result = TypeVar("Result")

# Questions to the service that may be open at once; each is one small web request.
THREADS = 4


class Clock(Protocol):
    """What the loop waits by. Another clock turns the same loop into a simulation.

    Attributes:
        tick: Seconds between two looks at the sites that are waited for.
    """

    tick: float

    def now(self) -> float:
        """Seconds since some fixed moment; never backwards."""

    def wait(self, seconds: float) -> None:
        """Sleep until woken, but no longer than some seconds.

        Args:
            seconds: At most; 0 or less returns at once.
        """

    def wake(self) -> None:
        """End the sleep that is going on, or else the next one at once. Any thread may call it."""

    def call(self, question: Callable[[], Result]) -> Future[Result]:
        """Ask something that may take long, without holding the loop up.

        Args:
            question: What answers it.

        Returns:
            Its answer to come.
        """

    def close(self) -> None:
        """Let go of what was asked."""


class RealClock:
    """This machine's clock, with a few threads that ask."""

    tick = 1.0

    def __init__(self) -> None:
        self._woken = threading.Event()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fl-ask")

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """See `Clock.wait`."""
        self._woken.wait(max(seconds, 0))
        self._woken.clear()

    def wake(self) -> None:
        """See `Clock.wake`."""
        self._woken.set()

    def call(self, question: Callable[[], Result]) -> Future[Result]:
        """See `Clock.call`."""
        return self._threads.submit(question)

    def close(self) -> None:
        """See `Clock.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)
