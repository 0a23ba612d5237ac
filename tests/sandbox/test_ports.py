from __future__ import annotations

import socket

import pytest

from fl.sandbox import ports
from fl.sandbox.folder import SandboxError


def test_a_port_that_somebody_has_is_said_to_be_in_use() -> None:
    with ports.bind(0, "one") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SandboxError, match=f"port {port}, which another needs, is in use by"):
            ports.bind(port, "another")


def test_a_port_that_nobody_may_have_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one below 1024 by anybody but root."""

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refused)
    with pytest.raises(SandboxError, match=r"port 80, .*cannot be had: Permission denied"):
        ports.bind(80, "the web service")
