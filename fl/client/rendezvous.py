"""Where a task and the nodes that train for it meet: a private folder that all of them see.

What they tell each other stands there as JSON and safetensors, and torch's own rendezvous is a file
beside it. The folder is its user's alone: nobody else can join, feed or read it, and no port is
opened for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from torch import distributed as dist

from fl.client.built import TrainingError
from fl.client.request import TrainRequest
from fl.config import Section
from fl.tensors import Tensors, decode, pieces, read_file

Value = TypeVar("Value")

AGAIN_SECONDS = 1.0
"""How long after a file system has failed it is tried again."""


class Order(Section):
    """What ranks are to do, whatever node they are on."""

    wanted: TrainRequest
    """The request, without what only the task needs."""
    seed: int
    """The round's."""
    until: float | None
    """Unix seconds by which training must have ended, or None."""
    sources: dict[str, str]
    """What the site has let in of the server's source, by path."""


class Failure(Section):
    """Why a node could not train."""

    kind: str
    """Name of the error's class."""
    message: str
    """What it says."""
    traceback: str
    """Where it was raised."""


class Node(Section):
    """What a node says of itself."""

    host: str
    """Its name."""
    beat: int = 0
    """Another number each time, as long as it lives."""
    steps: int = 0
    """Training steps that are done, as its first rank counts."""
    ended: bool = False
    """Whether this is its last word."""
    training: dict[str, Any] | None = None
    """What training did, as the first node's last word has it."""
    failure: Failure | None = None
    """Why it failed, in its last word."""


class Rendezvous:
    """The folder's files.

    Args:
        folder: The folder: it exists, is private, and has served no other training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, ranks: int, patience: timedelta) -> Any:
        """Where ranks find each other: not by a URL, whose escapes torch takes for a path's.

        Args:
            ranks: How many there are.
            patience: How long one waits there for the others.

        Returns:
            Torch's `FileStore`.
        """
        path = str(self.folder.absolute() / "store")
        store: Any = dist.FileStore(path, ranks)  # type: ignore[attr-defined]  # torch's
        store.set_timeout(patience)
        return store

    def give(self, order: Order, weights: Tensors) -> None:
        """Say what is to be done, and from which weights."""
        self.hand_over(weights)
        self._write("order", order.model_dump_json())
        self.beat(0)

    def order(self) -> Order:
        """What is to be done."""
        return Order.model_validate_json((self.folder / "order").read_bytes())

    def hand_over(self, weights: Tensors) -> None:
        """Put weights where the others get them: those to begin with, then the trained."""
        temporary = self.folder / ".weights"
        with temporary.open("wb") as out:
            out.writelines(pieces(weights))
        temporary.replace(self.folder / "weights")

    def weights(self) -> Tensors:
        """What was handed over last."""
        return decode(read_file(self.folder / "weights"))

    def take_place(self, most: int) -> int:
        """Take one of the nodes' places.

        Args:
            most: How many there are.

        Returns:
            Its number, from 0.

        Raises:
            TrainingError: All are taken.
        """
        for number in range(most):
            try:
                (self.folder / f"place-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return number
        raise TrainingError(f"the launcher started more than {most} agents")

    def say(self, number: int, node: Node) -> None:
        """Say how a node is."""
        self._write(f"node-{number}", node.model_dump_json())

    def nodes(self, most: int) -> dict[int, Node]:
        """What each node that has begun last said, by number."""
        said = {number: self._read(f"node-{number}") for number in range(most)}
        return {number: Node.model_validate_json(node) for number, node in said.items() if node}

    def beat(self, number: int) -> None:
        """Say that the task lives."""
        self._write("task", str(number))

    def task(self) -> str:
        """What the task last said; nothing once it has ended."""
        return self._read("task")

    def _write(self, name: str, text: str) -> None:
        """Replace a file at once; a folder that is gone stays gone."""
        temporary = self.folder / f".{name}.{uuid4().hex}"
        temporary.write_text(text)
        temporary.replace(self.folder / name)

    def _read(self, name: str) -> str:
        """What a file says, or nothing: it is not there yet, or no more."""
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return ""


def insist(act: Callable[[], Value], seconds: float) -> Value:
    """Do again what a shared file system fails at: some hang, or lose a file's handle, for a while.

    Args:
        act: Reads or writes.
        seconds: For how long it is tried.

    Returns:
        What it returns.

    Raises:
        OSError: It fails for so long, or the folder is gone.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return act()
        except FileNotFoundError:  # nobody meets there any more
            raise
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(AGAIN_SECONDS)


class Pulse:
    """For how long somebody has said nothing new, by this process's own clock."""

    def __init__(self) -> None:
        self._last: Any = None
        self._at = time.monotonic()

    def silence(self, said: Any) -> float:
        """Seconds since what was said last changed.

        Args:
            said: What is said now.
        """
        if said != self._last:
            self._last, self._at = said, time.monotonic()
        return time.monotonic() - self._at
