"""A relay that ends, or is slow, or cannot be started for a while; a small program plays it."""

from __future__ import annotations

import asyncio
import sysconfig
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fl.sandbox.folder import SandboxError
from fl.sandbox.ports import free_port
from fl.sandbox.relay import Relay

from .conftest import DEADLINE_S

LISTENS = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[-1]))):
    time.sleep(600)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "proxystore-relay"
    program.write_text(LISTENS)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(Relay, "RESTART_S", 0.1)
    return program


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def answers(port: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                return writer.close()


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("why", ["it is slow", "its log cannot be opened"])
def test_a_restart_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """And leaves none of the processes that it tried with."""
    logs, away, port, pids = tmp_path / "logs", tmp_path / "away", free_port(), list[int]()
    logs.mkdir()

    async def scenario() -> None:
        relay = Relay(port, logs / "relay.log", pids.append)
        try:
            await relay.start()
            if why == "it is slow":
                monkeypatch.setattr(Relay, "READY_S", 0.0)
            else:
                logs.rename(away)
            psutil.Process(pids[0]).kill()
            await until(lambda: caplog.text.count("did not start") > 1)
            monkeypatch.setattr(Relay, "READY_S", DEADLINE_S)
            if away.exists():
                away.rename(logs)
            await answers(port)
        finally:
            await relay.stop()

    asyncio.run(scenario())
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_relay_that_never_answers_is_said_and_ended(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(Relay, "READY_S", 0.1)
    pids = list[int]()
    with pytest.raises(SandboxError, match="did not answer"):
        asyncio.run(Relay(free_port(), tmp_path / "relay.log", pids.append).start())
    assert not psutil.pid_exists(*pids)
