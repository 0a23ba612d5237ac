"""The site's audit log: a line a happening, each bound to the one before by its SHA-256.

A line is a JSON object whose `previous` is the digest of the line before it (of its bytes without
the newline), or zeros in the first. So a line that is changed, cut out or moved breaks the chain
behind it. What is cut off at the end breaks nothing: that shows only against a head, the digest of
the last line, that was noted elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl.errors import FederationError

FIRST = "0" * 64
"""What the first line has as `previous`."""
LINE_BYTES = 65536
"""No line is longer: what a request says is cut before it is written."""
LOCK_SECONDS = 30.0
"""How long the other workers of a site may hold the log."""
POLL_SECONDS, LONGEST_POLL_SECONDS = 0.0005, 0.02
"""Between two tries to get it, the first and the longest: a line takes less time to write."""


class AuditError(FederationError):
    """The audit log cannot be written, or its chain is broken."""


@dataclass(frozen=True)
class Verified:
    """An audit log whose chain holds.

    Attributes:
        lines: How many lines it has.
        head: The last one's digest in hex: what to keep elsewhere.
    """

    lines: int
    head: str


class AuditLog:
    """A log that is locked: nobody else reads or writes it meanwhile. `open_log` gives one.

    Args:
        descriptor: The file, open for reading and appending.
        file: Its path, for messages.
    """

    def __init__(self, descriptor: int, file: Path) -> None:
        self._descriptor, self._file = descriptor, file

    def append(self, happening: dict[str, Any]) -> None:
        """Write a line.

        Args:
            happening: JSON types; `previous` and `at`, the time, are put before them.

        Raises:
            AuditError: It cannot be written.
        """
        last = next(self._backwards(), b"")
        record = {"previous": _digest(last) if last else FIRST, "at": _now(), **happening}
        line = json.dumps(record).encode() + b"\n"
        # A crash in the middle of a line leaves it without an end; `verify` names that line.
        if self._size() and os.pread(self._descriptor, 1, self._size() - 1) != b"\n":
            line = b"\n" + line
        if len(line) > LINE_BYTES:
            raise AuditError(f"{self._file}: a line of {len(line)} bytes is too long")
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise _unusable(self._file, error) from error
        if written != len(line):
            raise AuditError(f"{self._file}: cannot be written (the disk is full)")

    def since(self, seconds: float) -> Iterator[dict[str, Any]]:
        """The records of the last so many seconds, the latest first.

        Args:
            seconds: How far to look back.
        """
        begin = time.time() - seconds
        for line in self._backwards():
            try:
                record = parse(line)
            except AuditError:
                continue  # torn by a crash, before its task had begun
            if datetime.fromisoformat(record["at"]).timestamp() < begin:
                return
            yield record

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _backwards(self) -> Iterator[bytes]:
        """Lines from the last one, without their newlines; a block is read at a time."""
        end, rest = self._size(), b""
        while end > 0:
            begin = max(0, end - LINE_BYTES)
            rest = os.pread(self._descriptor, end - begin, begin) + rest
            end = begin
            rest, *lines = rest.split(b"\n")
            yield from (line for line in reversed(lines) if line)
            if len(rest) > LINE_BYTES:
                raise AuditError(f"{self._file}: has a line of more than {LINE_BYTES} bytes")
        if rest:
            yield rest


@contextmanager
def open_log(file: Path) -> Iterator[AuditLog]:
    """Open a log and lock it, against the other workers of the site too.

    Args:
        file: Its path; it is made, readable by its owner alone, if it is not there.

    Raises:
        AuditError: It cannot be opened, or not be locked within `LOCK_SECONDS`.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(file, error) from error
    try:
        _lock(descriptor, file)
        yield AuditLog(descriptor, file)
    finally:
        os.close(descriptor)  # and with it the lock


def verify(file: Path, head: str | None = None) -> Verified:
    """Follow a log's chain from its first line to its last.

    Args:
        file: The log.
        head: A head that was noted earlier, to see that its line is still there.

    Returns:
        How many lines there are, and the head that they have now.

    Raises:
        AuditError: It cannot be read, a line is not what the line behind it says, or the noted
            head is no line's; the message names the first line that is wrong.
    """
    previous, number, found = FIRST, 0, head in (None, FIRST)
    try:
        with file.open("rb") as stream:
            while line := stream.readline(LINE_BYTES + 1):
                number += 1
                previous = _follow(line, previous, f"{file}: line {number}")
                found = found or previous == head
    except OSError as error:
        raise AuditError(f"{file}: cannot be read ({error.strerror})") from error
    if not found:
        raise AuditError(
            f"{file}: none of its {number} lines is the noted head {head}: "
            "lines are cut off at its end, or the log was replaced"
        )
    return Verified(number, previous)


def parse(line: bytes) -> dict[str, Any]:
    """Read one line.

    Args:
        line: Its bytes, without the newline.

    Returns:
        The record.

    Raises:
        AuditError: It is none.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AuditError("is no JSON") from error
    match record:
        case {"previous": str(), "at": str(at)} if _is_time(at):
            return dict(record)
    raise AuditError("is no record of an audit log")


def _follow(line: bytes, previous: str, place: str) -> str:
    """Check a line against the digest of the one before; returns its own."""
    if not line.endswith(b"\n"):
        raise AuditError(f"{place}: is not whole")
    try:
        record = parse(line[:-1])
    except AuditError as error:
        raise AuditError(f"{place}: {error}") from error
    if record["previous"] != previous:
        raise AuditError(
            f"{place}: does not follow the line before it: "
            "one was changed, cut out, put in or moved"
        )
    return _digest(line[:-1])


def _lock(descriptor: int, file: Path) -> None:
    give_up, pause = time.monotonic() + LOCK_SECONDS, POLL_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up:
                raise AuditError(f"{file}: another worker holds it for too long") from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_SECONDS)
        except OSError as error:
            raise AuditError(
                f"{file}: cannot be locked ({error.strerror}): name a place on another file system"
            ) from error
        else:
            return


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_time(text: str) -> bool:
    try:
        moment = datetime.fromisoformat(text)
        moment.astimezone()  # a reader's own zone may have no such year
    except (ValueError, OverflowError):
        return False
    return moment.tzinfo is not None


def _unusable(file: Path, error: OSError) -> AuditError:
    return AuditError(f"{file}: cannot be written ({error.strerror})")
