"""Debian packages that tests need: installed where this machine lets them, else named."""

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

DATABASE = Path("/var/lib/dpkg")
SECONDS = 240.0


def install(packages: Mapping[str, str]) -> str:
    """Install what is missing.

    Args:
        packages: Of each program that is needed, the package that it is in.

    Returns:
        Why that could not be done, in one line, or nothing.
    """
    if not (absent := missing(packages)):
        return ""
    if not shutil.which("apt-get"):
        return f"{', '.join(absent)} missing, and no apt-get to install them"
    with one_at_a_time():
        absent = missing(packages)  # another process may have installed it meanwhile
        return _install(absent) if absent else ""


def missing(packages: Mapping[str, str]) -> list[str]:
    """Packages whose programs are not here."""
    where = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [package for name, package in packages.items() if not shutil.which(name, path=where)]


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold off every other process that would install: apt-get itself does not wait."""
    folder = os.open(DATABASE, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _install(packages: list[str]) -> str:
    names = " ".join(packages)
    # One that took too long goes on without its shell: to end it would leave packages half set up.
    wait = "-o DPkg::Lock::Timeout=200"
    command = f"apt-get update && apt-get install -y --no-install-recommends {wait} {names}"
    try:
        done = subprocess.run(
            [*_machines_own_network(), "sh", "-c", command],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"apt-get did not install {names} within {SECONDS:g} s"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return f"apt-get could not install {names}: {said[-1] if said else ''}"
    return ""


def _machines_own_network() -> list[str]:
    """What lets a command reach a package mirror: `make test` runs in a network of its own.

    Whoever started that network is a parent of this process, and in the one outside.
    """
    here = Path("/proc/self/ns/net").readlink()
    for parent in psutil.Process().parents():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{parent.pid}/ns/net").readlink() != here:
                return ["nsenter", "--target", str(parent.pid), "--net"]
    return []
