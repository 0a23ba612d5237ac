"""Whether a task is still at work: a record that it keeps while it runs, for another to read.

The service never says that a task was lost. A task therefore leaves a small file in the site's
state folder, renews it as long as its process lives, and removes it at its end.
"""

from __future__ import annotations

import json
import os
import socket
import time
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Any

from fl.client import site_state
from fl.client.site_state import SiteStateError

BEAT_SECONDS = 5.0
"""How often a record is renewed: a thread does it, so that a long step or fetch looks alive."""

STALE_SECONDS = 60.0
"""How old a record of another host may be before its task counts as dead."""

FORGOTTEN_SECONDS = 7 * 24 * 3600.0
"""How old a record that a killed task has left behind may be before it is removed."""


class Record:
    """The record of one task, kept inside `with`.

    A folder that cannot be written costs the record and nothing else: others then see `unknown`.

    Args:
        job: The server's name for the task, or None to keep no record.

    Attributes:
        phase: What the task does.
        step: Training steps that it has done.
    """

    def __init__(self, job: str | None) -> None:
        self.phase = "start"
        self.step = 0
        self._file = None if job is None else _file(job)
        self._writing = Lock()

    def __enter__(self) -> Record:
        """Write the record, and begin to renew it."""
        if self._file is not None and self._write():
            _remove_forgotten(self._file.parent)
            _renewed(self)
        return self

    def count(self, step: int) -> None:
        """Note how many training steps are done; the file follows at the next beat."""
        self.step = step

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the record, however the task has ended."""
        if self._file is not None and self in _live:
            _live.discard(self)
            # For ever: a renewal would bring it back. A file system that hangs holds no answer.
            self._writing.acquire(timeout=BEAT_SECONDS)
            _remove(self._file)

    def renew(self) -> None:
        """Write the record anew, unless it was removed."""
        if self._writing.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._writing.release()

    def _write(self) -> bool:
        if self._file is None:
            return False
        state = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start_time": _own_start_time(os.getpid()),
            "phase": self.phase,
            "step": self.step,
            "updated": time.time(),
        }
        try:
            site_state.write(self._file, json.dumps(state).encode(), durable=False)
        except SiteStateError:
            return False  # a task without a record is still worth doing
        return True


_live: set[Record] = set()
"""The records of the tasks of this process."""
os.register_at_fork(after_in_child=_live.clear)  # those are its parent's
_beat = Thread()


def _renewed(record: Record) -> None:
    """Have a record renewed, by one thread for all: most tasks end before a first beat."""
    global _beat
    _live.add(record)
    if not _beat.is_alive():  # nor is it in a fork
        _beat = Thread(target=_renew, name="job records", daemon=True)
        _beat.start()


def _renew() -> None:
    while True:
        time.sleep(BEAT_SECONDS)
        for record in list(_live):
            record.renew()


def progress(job: str) -> dict[str, Any]:
    """What a task is doing, from any process of its site.

    Args:
        job: The server's name for the task.

    Returns:
        `recorded`, whether tasks can keep records here; `phase`, `step`, `age_seconds` since the
        record was renewed, and `alive`: on the task's own host by its process, elsewhere by the
        record's age. Without a record (the task has not begun, has ended, or cannot write one) the
        phase is `unknown`, the numbers are None and `alive` is False.

    Raises:
        SiteStateError: The job's name is no name for a file.
    """
    try:
        state = json.loads(_file(job).read_bytes())
        age = max(time.time() - state["updated"], 0.0)
        if state["host"] == socket.gethostname():
            alive = _is_running(state["pid"], state["start_time"])
        else:
            alive = age < STALE_SECONDS
        found = {"phase": state["phase"], "step": state["step"], "age_seconds": age, "alive": alive}
    except (OSError, ValueError, KeyError, TypeError):
        found = {"phase": "unknown", "step": None, "age_seconds": None, "alive": False}
    return {"recorded": site_state.is_writable("jobs"), **found}


def _file(job: str) -> Path:
    return site_state.path("jobs", f"{job}.json")


def _is_running(pid: int, start_time: str | None) -> bool:
    """Whether that very process runs: its number may be another's by now."""
    if start_time is not None:
        return _start_time(pid) == start_time
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start_time(pid: int) -> str | None:
    """When a process started, as Linux counts it; None without one (a zombie is none) or /proc."""
    try:
        # The name before the last parenthesis may hold anything; then come the state and numbers.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@cache
def _own_start_time(pid: int) -> str | None:
    """The same of this process, by its number: a fork has another."""
    return _start_time(pid)


def _remove_forgotten(jobs: Path) -> None:
    for file in jobs.iterdir():
        try:
            if time.time() - file.stat().st_mtime > FORGOTTEN_SECONDS:
                file.unlink(missing_ok=True)
        except OSError:
            continue  # another task has just removed it, or it is not ours


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        return  # it goes stale by itself
