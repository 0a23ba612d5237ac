"""Loopback ports: taking one, or saying who has it."""

from __future__ import annotations

import contextlib
import errno
import socket

import psutil

from fl.sandbox.folder import SandboxError

HOST = "127.0.0.1"


def bind(port: int, purpose: str) -> socket.socket:
    """A listening socket on loopback; port 0 picks a free one.

    Raises:
        SandboxError: the port is in use, or not to be had.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        used = error.errno == errno.EADDRINUSE
        why = f"is in use{holder(port)}" if used else f"cannot be had: {error.strerror}"
        raise SandboxError(f"port {port}, which {purpose} needs, {why}") from error
    listener.setblocking(False)
    return listener


def free_port() -> int:
    """A port that is free now."""
    with bind(0, "nothing") as listener:
        return int(listener.getsockname()[1])


def holder(port: int) -> str:
    """`` by NAME (pid N)`` of who listens on a port, or nothing if that cannot be known."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN
            if listening and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
