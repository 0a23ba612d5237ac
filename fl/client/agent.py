"""What runs on each node of a client that trains over several: `python -m fl.client.agent FOLDER`.

The task starts it by the site's launcher. It starts its node's ranks, says how they are, and ends
with the task: by the launcher's hand, or by itself once nothing is heard of the task any more.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread

from fl.client import distributed
from fl.client.distributed import FAILED, Place
from fl.client.rendezvous import Failure, Node, Order, Pulse, Rendezvous, insist
from fl.errors import FederationError, in_one_line

INTERFACE = "FL_NODE_INTERFACE"
"""The network interface by which ranks of several nodes reach each other."""
BEAT_SECONDS = 2.0
"""How often a task and its nodes say that they live."""
SILENCE_SECONDS = 60.0
"""How long one of them may say nothing before the others take it for dead: shared file systems
hang now and then."""


class Life:
    """Says that this node lives inside `with`, and ends it once the task lives no more.

    Args:
        meeting: Where the task and its nodes meet.
        number: The node's.
    """

    def __init__(self, meeting: Rendezvous, number: int) -> None:
        self._meeting, self._number = meeting, number
        self._node = Node(host=socket.gethostname())
        self._ended = Event()
        self._beats = Thread(target=self._beat, name="life", daemon=True)

    def __enter__(self) -> Life:
        """Begin to say so."""
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Say the last word, whatever has happened."""
        self._ended.set()
        self._beats.join()
        self.note(ended=True)
        insist(lambda: self._meeting.say(self._number, self._node), SILENCE_SECONDS)

    def note(self, **facts: object) -> None:
        """Note something of this node; the others hear it at the next beat."""
        self._node = self._node.model_copy(update=facts)

    def _beat(self) -> None:
        task, said, beat = Pulse(), "nothing yet", 0
        while not self._ended.wait(BEAT_SECONDS if beat else 0):
            with suppress(OSError):  # of a file system that hangs now and then
                said = self._meeting.task()
            if not said or task.silence(said) > SILENCE_SECONDS:
                os._exit(FAILED)  # and with this process end its ranks
            beat += 1
            with suppress(OSError):
                self._meeting.say(self._number, self._node.model_copy(update={"beat": beat}))


def main(folder: str) -> int:
    """Train by this node's ranks.

    Args:
        folder: Where the task and its nodes meet.

    Returns:
        The exit code.
    """
    meeting = Rendezvous(Path(folder))
    order = insist(meeting.order, SILENCE_SECONDS)
    # Once: who tries again after a lost answer would have two places.
    number = meeting.take_place(order.wanted.train_configs.nnodes)
    with Life(meeting, number) as life:
        try:
            _train(meeting, order, number, life)
        except Exception as error:
            life.note(failure=_failure(error))
            return FAILED
    return 0


def _train(meeting: Rendezvous, order: Order, number: int, life: Life) -> None:
    """Train, and hand over what comes of it."""
    if INTERFACE not in os.environ:
        raise FederationError(f"the site's launcher does not hand {INTERFACE} on to its nodes")
    training, trained = distributed.train_node(
        order,
        insist(meeting.weights, SILENCE_SECONDS),
        meeting,
        place=Place(number, os.environ[INTERFACE]),
        on_step=lambda steps: life.note(steps=steps),
    )
    if training is not None:
        insist(lambda: meeting.hand_over(trained), SILENCE_SECONDS)
        life.note(training=asdict(training))


def _failure(error: Exception) -> Failure:
    """An error for the task, with the node's name."""
    host, message = socket.gethostname(), in_one_line(error)
    if host not in message:
        message += f" (on {host})"
    return Failure(kind=type(error).__name__, message=message, traceback=traceback.format_exc())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
