"""Models and data loaders by name, from the `site_code` folder that the site's owner filled.

The server names a file and a function in it, and what runs is what the site put there. Source that
the server ships is run in its place only where `admission` has let it in, by the site's policy.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from fl.errors import FederationError


class SiteCodeError(FederationError):
    """A named model or loader is not among the site's own code, or does not load."""


FAULTS = (Exception, SystemExit)
"""What code of others may raise: one that reads a command line ends the program by it."""

MOST_BYTES = 4_000_000
"""No file of code is larger; one of a model's weights would fill the worker's memory."""

_shipped: ContextVar[Mapping[str, bytes]] = ContextVar("shipped", default=MappingProxyType({}))
"""Source that was let in for the task at hand, by the path that requests name it by."""
_seen: ContextVar[dict[str, tuple[Path, bytes]]] = ContextVar("seen")
"""The site's own files that the task at hand has read, by path."""


def site_code_folder() -> Path:
    """The folder named by `FL_SITE_CODE`, else the current one."""
    return _resolved(Path(os.environ.get("FL_SITE_CODE") or "."))


def load(path: str, name: str) -> Callable[..., Any]:
    """Import a function or class from the site's own code.

    A file that has changed is loaded again by the next task: no worker runs yesterday's code.

    Args:
        path: The Python file, relative to `site_code`.
        name: What to take from it.

    Returns:
        The function or class.

    Raises:
        SiteCodeError: The file lies outside `site_code`, does not exist, fails to import, or
            defines no such name.
    """
    file, source = _read(path)
    module_name = f"fl_site_code_{_sha256(str(file).encode() + source)[:16]}"
    module = sys.modules.get(module_name) or _import(module_name, source, file, path)
    found = getattr(module, name, None)
    if not callable(found) or not _offers(module, name, found):
        near = difflib.get_close_matches(name, vars(module), n=1, cutoff=0.5)
        known = near and near[0] != name
        hint = f"did you mean {near[0]}?" if known else "one that it imports must be in its __all__"
        raise SiteCodeError(f"{path}: defines no function or class {name!r}; {hint}")
    return found  # type: ignore[no-any-return]  # callable() narrows to an untyped callable


def _offers(module: ModuleType, name: str, found: Any) -> bool:
    """Whether a file means a name for others, and did not just import it.

    A loader that imports `subprocess.run` for itself must not have a server call that by its name.
    Callables without a name of their own, such as a `functools.partial`, do not say where they were
    made, and are taken for the file's own.
    """
    if not hasattr(found, "__name__"):
        return True
    own = getattr(found, "__module__", None) == module.__name__
    return own or name in getattr(module, "__all__", ())


def identify(path: str) -> tuple[str, str]:
    """What a file of the site's own code is, whatever way leads to it.

    Args:
        path: The Python file, relative to `site_code`.

    Returns:
        Its path there, with `..` and links followed, and its SHA-256 in hex.

    Raises:
        SiteCodeError: The file lies outside `site_code` or does not exist.
    """
    file, source = _read(path)
    return file.relative_to(site_code_folder()).as_posix(), _sha256(source)


def foreign(sources: Mapping[str, str]) -> dict[str, bytes]:
    """Which of a server's sources are not the site's own files of that path, byte for byte.

    Args:
        sources: Python source by path, relative to `site_code`.

    Returns:
        Their bytes.

    Raises:
        SiteCodeError: A path leads out of `site_code`.
    """
    found = {path: source.encode() for path, source in sources.items()}
    return {path: source for path, source in found.items() if _own(path) != source}


def _own(path: str) -> bytes | None:
    """The bytes of the site's own file; None where there is none."""
    file = _inside(path)
    try:
        return _source(file, path)
    except OSError:
        return None


def let_in() -> dict[str, bytes]:
    """The source that was let in for the task at hand, by path."""
    return dict(_shipped.get())


@contextmanager
def shipped(sources: Mapping[str, bytes]) -> Iterator[None]:
    """Have source that was let in stand for files of `site_code`, inside `with`; none is written.

    Args:
        sources: Python source by path.
    """
    token = _shipped.set(sources)
    try:
        yield
    finally:
        _shipped.reset(token)


@contextmanager
def steady() -> Iterator[None]:
    """Read each file once inside `with`: what was let in is what runs, whatever is written."""
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def _read(path: str) -> tuple[Path, bytes]:
    """The file, and the bytes in it."""
    if path in (sources := _shipped.get()):
        return _inside(path), sources[path]
    seen = _seen.get({})  # outside of a task one that nobody has
    if path not in seen:
        seen[path] = _read_own(path)
    return seen[path]


def _read_own(path: str) -> tuple[Path, bytes]:
    """The site's own file, as it is now."""
    file = _inside(path)
    try:
        return file, _source(file, path)
    except OSError as error:
        raise SiteCodeError(
            f"{path}: not in this site's code folder {site_code_folder()} ({error.strerror})"
        ) from error


def _source(file: Path, path: str) -> bytes:
    """What is in a file that may be code; nothing of another is read."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
        raise SiteCodeError(f"{path}: is no file of code, of {MOST_BYTES:,} bytes at most")
    return file.read_bytes()


def raised(error: BaseException) -> str:
    """What the site's own code raised, and where in it, for messages.

    Args:
        error: The exception, caught around that code.

    Returns:
        Such as `KeyError: 'label' (data.py, line 12)`.
    """
    folder = site_code_folder()
    places = [
        f"({Path(frame.filename).name}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(folder)
    ]
    return " ".join([f"{type(error).__name__}: {error}", *places[-1:]])


def _inside(path: str) -> Path:
    """The file, links followed; refused where that leads out of the site's folder."""
    folder = site_code_folder()
    try:
        file = _resolved(folder / path)
    except ValueError as error:
        raise SiteCodeError(f"{path!r}: is no path ({error})") from error
    if not file.is_relative_to(folder):
        raise SiteCodeError(f"{path}: lies outside this site's code folder {folder}")
    return file


def _resolved(path: Path) -> Path:
    """What `Path.resolve` gives, in half its time: a task asks a dozen times."""
    return Path(os.path.realpath(path))


def _sha256(source: bytes) -> str:
    """As people have it from `sha256sum`."""
    return hashlib.sha256(source).hexdigest()


def _import(module_name: str, source: bytes, file: Path, path: str) -> ModuleType:
    """Run exactly the bytes that the module is named by.

    Python's own loader would read the file again, or its cached bytecode: that is told apart by
    time and size alone, and so may be an older version's.
    """
    module = ModuleType(module_name)
    module.__file__ = str(file)
    sys.modules[module_name] = module  # dataclasses and pickling look themselves up there
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # noqa: S102  (its own code)  # nosec B102
    except FAULTS as error:
        del sys.modules[module_name]
        raise SiteCodeError(f"{path} cannot be imported: {raised(error)}") from error
    return module
