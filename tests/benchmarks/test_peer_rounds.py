"""What a peer that fails leaves, and says."""

import socket
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks import peer_rounds

STARTS_A_DAEMON = """
import subprocess, sys, time
daemon = subprocess.Popen(["sleep", "600"], start_new_session=True)
open("pid", "w").write(str(daemon.pid))
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_python(monkeypatch):
    monkeypatch.setattr(peer_rounds, "python", lambda: Path(sys.executable))


def test_a_peer_that_takes_too_long_is_named_and_leaves_no_process(monkeypatch):
    monkeypatch.setattr(peer_rounds, "CALL_SECONDS", 10.0)
    with peer_rounds._folder() as folder:
        with pytest.raises(RuntimeError, match="timed out"):
            peer_rounds._call(folder, sys.executable, "-c", STARTS_A_DAEMON)
        daemon = psutil.Process(int((folder / "pid").read_text()))
        assert daemon.is_running()
    try:
        daemon.wait(10)
    finally:
        with suppress(psutil.NoSuchProcess):
            daemon.kill()


def test_another_listener_is_not_taken_for_the_daemon(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(RuntimeError, match="somebody else listens"),
            peer_rounds._daemon(tmp_path, "it", [sys.executable, "-c", "input()"], port=port),
        ):
            pytest.fail("it began")


def test_a_daemon_that_ends_is_not_waited_for(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", "print('no such option')"]
    with (
        pytest.raises(RuntimeError, match=f"does not listen on port {port}: no such option"),
        peer_rounds._daemon(tmp_path, "it", command, port=port),
    ):
        pytest.fail("it began")
