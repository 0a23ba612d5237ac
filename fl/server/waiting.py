"""Answers that wait for a step: each one's update lies where its site put it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fl.server.schedulers import Answer

FETCHES = 4
"""Times that an update is asked for before its site is asked to train again."""
FETCH_PAUSE_SECONDS = 2.0
"""Before an update is asked for again; four times as long each time."""


class Waiting:
    """Answers that were neither used nor dropped, in the order of their coming."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, int], _Wait] = {}

    def __iter__(self) -> Iterator[Answer]:
        return (wait.answer for wait in self._waits.values())

    def holds(self, client_id: str, turn: int) -> bool:
        """Whether a site's answer waits.

        Args:
            client_id: The site.
            turn: Which of its trainings the answer is of.
        """
        return (client_id, turn) in self._waits

    def add(self, answer: Answer) -> None:
        """Have an answer wait.

        Args:
            answer: The only one of its site and turn.
        """
        self._waits[answer.client_id, answer.turn] = _Wait(answer)

    def remove(self, answer: Answer) -> None:
        """Forget an answer, which is used or of no use.

        Args:
            answer: One that waits.
        """
        del self._waits[answer.client_id, answer.turn]

    def postpone(self, answer: Answer, now: float) -> bool:
        """Use an answer later: its update did not come.

        Args:
            answer: One that waits.
            now: By the loop's clock.

        Returns:
            Whether its update is worth asking for again.
        """
        wait = self._waits[answer.client_id, answer.turn]
        wait.until = now + FETCH_PAUSE_SECONDS * 4.0**wait.failed
        wait.failed += 1
        return wait.failed < FETCHES

    def ready(self, now: float) -> list[Answer]:
        """Those whose updates may be asked for.

        Args:
            now: By the loop's clock.
        """
        return [wait.answer for wait in self._waits.values() if wait.until <= now]

    def postponed(self, now: float) -> set[str]:
        """Whose updates are asked for later.

        Args:
            now: By the loop's clock.
        """
        return {wait.answer.client_id for wait in self._waits.values() if wait.until > now}

    def next_retry(self, now: float) -> float:
        """When the next of those is due, infinity without any.

        Args:
            now: By the loop's clock.
        """
        return min(
            (wait.until for wait in self._waits.values() if wait.until > now), default=math.inf
        )


@dataclass
class _Wait:
    """An answer, how often its update was asked for in vain, and until when it is not again."""

    answer: Answer
    failed: int = 0
    until: float = -math.inf
