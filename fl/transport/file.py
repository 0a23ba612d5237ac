"""Models as files in one folder: for clients here, and for sites that share a file system."""

from __future__ import annotations

import math
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fl.tensors import Data
from fl.transport.base import (
    GoneError,
    Ref,
    TransportError,
    UnreachableError,
    receive,
    ref_to,
    wrong_way,
)

NAME = re.compile(r"[0-9a-f]{32}")
BLOCK_BYTES = 1 << 20
GROUP_READS = stat.S_IRGRP | stat.S_IXGRP
PARTIAL = ".part"
PARTIAL_SECONDS = 24 * 3600.0
"""After which a file that is not whole is of a process that was killed."""


class FileTransport:
    """Files of random names in a folder that both sides see.

    Args:
        folder: The folder, made where it is missing. In memory (`/dev/shm`) it is fastest.

    Raises:
        UnreachableError: It cannot be made.
        TransportError: Every user of the machine can write there.
    """

    name = "file"
    limit: int | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            mode = folder.stat().st_mode
        except OSError as error:
            raise _unreachable(folder, error) from error
        if mode & stat.S_IWOTH:
            raise TransportError(
                f"{folder}: every user can write there: chmod o-w it, or name a folder of your own"
            )
        self._remove_partial()

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`; the file has its name once it is whole."""
        name = uuid.uuid4().hex
        partial = self._folder / f"{name}{PARTIAL}"
        try:
            with open(partial, "wb", opener=_of_group) as file:
                file.writelines(pieces)  # small ones together, large ones without a copy
            partial.rename(self._folder / name)
        except OSError as error:
            with suppress(OSError):  # what kept it from being written may keep it from this, too
                partial.unlink()
            raise _unreachable(partial, error) from error
        return ref_to(self.name, {"object": name}, pieces)

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:  # noqa: ARG002  (the protocol's)
        """See `Transport.get`; nothing is waited for."""
        path = self._path(ref)
        try:
            with open(path, "rb", buffering=0, opener=_regular) as file:
                return receive(ref, _blocks(file, ref.size))
        except FileNotFoundError as error:
            raise GoneError(f"{path}: the model is no longer there") from error
        except OSError as error:
            raise _unreachable(path, error) from error

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        path = self._path(ref)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unreachable(path, error) from error

    def exists(self, ref: Ref) -> bool:
        """See `Store.exists`."""
        return self._path(ref).exists()

    def grant(self, size: int | None) -> None:
        """See `Transport.grant`: sites see the folder."""

    def close(self) -> None:
        """Nothing is open."""

    def _remove_partial(self) -> None:
        """Remove what killed processes have left half written: in `/dev/shm` it takes memory."""
        with suppress(OSError):  # of a folder that cannot be listed: there is nothing to do
            for path in self._folder.glob(f"*{PARTIAL}"):
                with suppress(OSError):  # another may have done it
                    age = time.time() - path.lstat().st_mtime
                    if NAME.fullmatch(path.stem) and age > PARTIAL_SECONDS:
                        path.unlink()

    def _path(self, ref: Ref) -> Path:
        """Where a file is; a reference of somebody else's never leads out of the folder."""
        name = ref.key.get("object", "")
        if ref.transport != self.name or not NAME.fullmatch(name):
            raise wrong_way(ref, self.name)
        return self._folder / name


def _of_group(path: str, flags: int) -> int:
    """Opens what the folder's group may read, where it reads the folder, and no other user.

    Whose folder it is has chosen that; what a user's new files are to be otherwise says nothing.
    """
    descriptor = os.open(path, flags, 0o600)
    with suppress(OSError):  # of a group that the user is not in
        folder = Path(path).parent.stat()
        os.fchown(descriptor, -1, folder.st_gid)
        if folder.st_mode & GROUP_READS == GROUP_READS:
            os.fchmod(descriptor, 0o640)
    return descriptor


def _regular(path: str, flags: int) -> int:
    """Opens a file and nothing else: a pipe of a site's would be waited for for ever."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TransportError(f"{path}: is no file")
    return descriptor


def _blocks(file: BinaryIO, expected: int) -> Iterator[Data]:
    """A file's bytes through one small buffer, which stays in the processor's cache."""
    # No larger than need be: a megabyte of zeros takes longer than a small model.
    block = memoryview(bytearray(min(BLOCK_BYTES, max(expected, 1))))
    while count := os.readv(file.fileno(), [block]):
        yield block[:count]


def _unreachable(path: Path, error: OSError) -> UnreachableError:
    return UnreachableError(f"{path}: {error.strerror}")
