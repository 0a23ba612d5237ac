"""What a run's folder says, to anyone and at any time: while its run goes on, and after a crash.

The folder is read, and nothing in it is believed: a last line that is torn is left out, one that
means nothing to this version is named.
"""

from __future__ import annotations

import fcntl
import json
import math
import shlex
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from fl.errors import FederationError
from fl.server.events import RoundEnded, SiteChanged, SitesEvaluated

State = Literal["running", "finished", "ended", "elsewhere"]
"""Of a run: it goes on; it is finished; it ended before its last round did; or another machine
began it, and whether it still runs cannot be seen from this one."""
STATES: Mapping[State, str] = {
    "running": "running",
    "finished": "finished",
    "ended": "ended before its last round",
    "elsewhere": "not seen from this machine; ask on the other",
}
"""The same in people's words."""


@dataclass(frozen=True)
class Owner:
    """The process that has, or had, a run open: what its `lock` file holds.

    Attributes:
        pid: Its number.
        host: Where that means something.
        since: When it opened the run, in Unix seconds.
    """

    pid: int
    host: str
    since: float


@dataclass(frozen=True, kw_only=True)
class EndedRound(RoundEnded):
    """A line of `metrics.jsonl`: a round, and when it ended in Unix seconds."""

    at: float


@dataclass(frozen=True, kw_only=True)
class StateChange(SiteChanged):
    """A line of `sites.jsonl`: a site's new state, and since when in Unix seconds."""

    at: float


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel(SitesEvaluated):
    """A line of `evaluations.jsonl`: what sites found of a model, and when in Unix seconds."""

    at: float


@dataclass(frozen=True)
class SentTask:
    """What is read of a line of `tasks.jsonl`.

    Attributes:
        client_id: To whom the task was sent.
        version: Steps that the server had taken.
        size: Bytes of its model.
        model: Where that is; nothing of one that was inside the task.
    """

    client_id: str
    version: int
    size: int
    model: Mapping[str, Any]


@dataclass(frozen=True)
class LogLine:
    """A line of `log.jsonl`: what else happened.

    Attributes:
        at: When, in Unix seconds.
        event: A round was started, a client failed in it, a person was warned, the run ended
            before its last round did, or a round's step was lost before it was saved.
        round: Which round, of `started`, `failed` and `lost`.
        client_id: Who, of `failed`.
        message: Why, of all but `started`.
        traceback: The site's, of `failed` in its own code.
    """

    at: float
    event: Literal["started", "failed", "warned", "ended", "lost"]
    round: int | None = None
    client_id: str = ""
    message: str = ""
    traceback: str | None = None


@dataclass(frozen=True)
class History:
    """A run so far.

    Attributes:
        folder: The run's.
        owner: Who has or had it open last, or None where that cannot be read.
        is_open: Whether a process has it open, as far as this machine can see.
        is_finished: Whether the model of its last round is there.
        rounds: That ended, in their order.
        evaluations: Of global models by sites, in their order.
        tasks: That were sent, in their order.
        changes: Of sites' states, in their order.
        log: What else happened, in its order.
    """

    folder: Path
    owner: Owner | None
    is_open: bool
    is_finished: bool
    rounds: list[EndedRound]
    evaluations: list[EvaluatedModel]
    tasks: list[SentTask]
    changes: list[StateChange]
    log: list[LogLine]

    @property
    def state(self) -> State:
        """Whether the run goes on, is finished, or neither, as far as this machine can see."""
        if self.is_open:
            return "running"
        if self.is_finished:
            return "finished"
        said_so = any(line.event == "ended" for line in self.log if self.is_latest(line.at))
        # A lock is not seen across every shared file system.
        here = self.owner is None or self.owner.host == socket.gethostname()
        return "ended" if said_so or here else "elsewhere"

    def is_latest(self, at: float) -> bool:
        """Whether something happened to the process that has or had the run open last."""
        return self.owner is None or at >= self.owner.since


def merit(accuracy: float | None, loss: float | None) -> tuple[float, float]:
    """What models are compared by: their accuracy, and of equal ones the loss.

    Args:
        accuracy: At the server; None of a model that was not evaluated.
        loss: Likewise.

    Returns:
        The greater, the better; what is not known, or no finite number, is the worst.
    """
    cost = math.inf if loss is None or not math.isfinite(loss) else loss
    return -math.inf if accuracy is None else accuracy, -cost


def find_run(folder: Path) -> Path:
    """A run's folder: the one given, or the newest in a folder of runs.

    Args:
        folder: Either.

    Returns:
        The run's folder.

    Raises:
        FederationError: It is neither.
    """
    try:
        if (folder / "run.json").is_file():
            return folder
        # It is written once, when a run begins; a folder may have any name.
        files = sorted((file.stat().st_mtime_ns, file) for file in folder.glob("*/run.json"))
    except OSError as error:
        raise _unreadable(folder, error) from error
    if not files:
        raise FederationError(
            f"{folder}: is no run's folder, nor are there any in it; name one that fl-run made"
        )
    return files[-1][1].parent


def resume_command(folder: Path) -> str:
    """What a person types to go on with a run.

    Args:
        folder: The run's.
    """
    return f"fl-run --resume {shlex.quote(str(folder))}"


def read_history(folder: Path) -> History:
    """Read a run's folder.

    Args:
        folder: The folder.

    Returns:
        The run so far.

    Raises:
        FederationError: A file cannot be read, or a line in it is none of this version's.
    """
    return History(
        folder=folder,
        owner=next(_lines(folder / "lock", Owner), None),
        is_open=_is_open(folder / "lock"),
        is_finished=(folder / "model.safetensors").exists(),
        rounds=list(_lines(folder / "metrics.jsonl", EndedRound)),
        evaluations=list(_lines(folder / "evaluations.jsonl", EvaluatedModel)),
        tasks=list(_lines(folder / "tasks.jsonl", SentTask)),
        changes=list(_lines(folder / "sites.jsonl", StateChange)),
        log=list(_lines(folder / "log.jsonl", LogLine)),
    )


def _is_open(lock: Path) -> bool:
    """Whether a process holds a run's lock; to look is to hold it too, for a moment."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(lock, error) from error
    return False


Line = TypeVar("Line")


def _lines(file: Path, kind: type[Line]) -> Iterator[Line]:
    """A file's lines, but for those that a crash or a full disk has torn."""
    adapter = TypeAdapter(kind)
    try:
        lines = file.read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(file, error) from error
    for number, line in enumerate(lines, 1):
        try:
            yield _line(adapter, line)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in fault["loc"])
            raise FederationError(
                f"{file}: line {number}: {place}: {fault['msg']}; "
                "was this folder written by another version of fl? versions.json says which"
            ) from error
        except ValueError:  # it is torn
            continue


def _line(adapter: TypeAdapter[Line], line: str) -> Line:
    try:
        return adapter.validate_json(line)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] != "json_invalid":
            raise
    # JSON can spell half a character, which pydantic takes for no JSON.
    whole = json.dumps(json.loads(line), ensure_ascii=False).encode(errors="replace")
    return adapter.validate_json(whole)


def _unreadable(file: Path, error: OSError) -> FederationError:
    return FederationError(f"{file}: cannot be read ({error.strerror})")
