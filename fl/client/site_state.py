"""What a site keeps between tasks: a private folder, and files that are whole or not there."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from fl.client import site_code
from fl.errors import FederationError

# A name that comes from the server becomes one part of a path, and nothing more.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class SiteStateError(FederationError):
    """The site's state folder cannot be written or read, or lacks what a task builds on."""


def folder() -> Path:
    """The folder named by `FL_SITE_STATE`, else `state` beside the site's code folder.

    Without a deployment, where `FL_SITE_CODE` is not set either, it is `state` in the current one.
    """
    if named := os.environ.get("FL_SITE_STATE"):
        return Path(named)
    return (
        site_code.site_code_folder().parent if "FL_SITE_CODE" in os.environ else Path()
    ) / "state"


def path(*names: str) -> Path:
    """A file or folder inside the state folder.

    Args:
        names: Its parts, each a plain name.

    Raises:
        SiteStateError: A name would lead elsewhere.
    """
    for name in names:
        if not re.fullmatch(NAME, name):
            raise SiteStateError(f"{name!r} is no name for a file")
    return folder().joinpath(*names)


def write(file: Path, data: bytes, *, durable: bool) -> None:
    """Replace a file, readable by its owner alone, at once.

    Args:
        file: A path from `path`; missing folders are made, private too.
        data: Its content.
        durable: Wait until the disk has it.

    Raises:
        SiteStateError: It cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        try:
            _write(temporary, data, durable)
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            _sync(file.parent)
    except OSError as error:
        raise SiteStateError(f"{file}: cannot be written ({error.strerror})") from error


def write_once(file: Path, data: bytes) -> bytes:
    """Write a file that is never written again, whoever tries and whoever dies.

    Args:
        file: A path from `path`; missing folders are made, private too.
        data: Its content.

    Returns:
        What it holds: `data`, or what another has written before.

    Raises:
        SiteStateError: It cannot be written or read.
    """
    temporary = file.with_name(f".{file.name}.{uuid4().hex}")  # two hosts share pids
    try:
        try:
            _write(temporary, data, durable=True)
            with suppress(FileExistsError):
                os.link(temporary, file)  # whole or not at all, and never over another
        finally:
            temporary.unlink(missing_ok=True)
        _sync(file.parent)
        return file.read_bytes()
    except OSError as error:
        raise SiteStateError(f"{file}: cannot be written ({error.strerror})") from error


def is_writable(*names: str) -> bool:
    """Whether files can be kept in a folder inside the state folder; it is made if need be.

    Args:
        names: Its parts, each a plain name.
    """
    try:
        _make(path(*names))
    except OSError:
        return False
    return os.access(path(*names), os.W_OK)


def _make(parent: Path) -> None:
    top = folder()
    top.parent.mkdir(parents=True, exist_ok=True)
    for made in [*reversed([up for up in parent.parents if up.is_relative_to(top)]), parent]:
        made.mkdir(mode=0o700, exist_ok=True)


def _write(file: Path, data: bytes, durable: bool) -> None:
    with os.fdopen(_opened(file), "wb") as out:
        out.write(data)
        if durable:
            out.flush()
            os.fsync(out.fileno())


def _opened(file: Path) -> int:
    """A file to be written; its folders are looked at where they are missing alone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(file, flags, 0o600)
    except FileNotFoundError:
        _make(file.parent)
        return os.open(file, flags, 0o600)


def _sync(parent: Path) -> None:
    """A renamed file outlives a crash only once its folder is on disk."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
