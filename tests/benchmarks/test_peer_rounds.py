"""What a peer that fails leaves, and says."""

import socket
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest

from benchmarks import peer_rounds

STARTS_A_DAEMON = "setsid sleep 600 & echo $! > pid; exec sleep 600"
"""In a shell's words: it has begun long before a Python would."""


@pytest.fixture(autouse=True)
def _own_python(monkeypatch):
    monkeypatch.setattr(peer_rounds, "python", lambda: Path(sys.executable))


def test_a_peer_that_takes_too_long_is_named_and_leaves_no_process(monkeypatch):
    monkeypatch.setattr(peer_rounds, "CALL_SECONDS", 3.0)
    with peer_rounds._folder() as folder:
        with pytest.raises(RuntimeError, match="timed out"):
            peer_rounds._call(folder, "sh", "-c", STARTS_A_DAEMON)
        daemon = psutil.Process(int((folder / "pid").read_text()))
        assert daemon.is_running()
    try:
        deadline = time.monotonic() + 10
        while not has_ended(daemon):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        with suppress(psutil.NoSuchProcess):
            daemon.kill()


def has_ended(process):
    """Whether a process does nothing any more: its parent may never ask for its end."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_another_listener_is_not_taken_for_the_daemon(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(RuntimeError, match="somebody else listens"),
            peer_rounds._daemon(tmp_path, "it", [sys.executable, "-c", "input()"], port=port),
        ):
            pytest.fail("it began")


def test_a_daemon_that_ends_is_not_waited_for(tmp_path):
    command = [sys.executable, "-c", "print('no such option')"]
    with socket.socket() as held:  # and does not listen: nobody else gets its port meanwhile
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with (
            pytest.raises(RuntimeError, match=f"does not listen on port {port}: no such option"),
            peer_rounds._daemon(tmp_path, "it", command, port=port),
        ):
            pytest.fail("it began")


def log_of(rounds):
    """What NVFlare's server logs at the start of each round, a second apart."""
    line = "-" * 80
    return "".join(
        f"2026-01-01 00:00:0{number},000 - FedAvg - INFO - \n{line}\n   Round {number} started.\n"
        for number in range(rounds)
    )


def job_that_leaves(*logs):
    """In place of NVFlare's job: it fetches these logs."""

    def job(folder, *_):
        for number, log in enumerate(logs):
            workspace = folder / f"poc/p/prod/admin/transfer/{number}/workspace"
            workspace.mkdir(parents=True)
            (workspace / "log.txt").write_text(log)
        return "".join(logs)

    return job


def test_a_jobs_rounds_are_those_that_it_logged(monkeypatch):
    monkeypatch.setattr(peer_rounds, "_nvflare", job_that_leaves(log_of(4)))
    assert peer_rounds.nvflare_poc(1, 4, 4) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("logs", "said"),
    [
        ([], "0 logs of the job were fetched"),
        ([log_of(4), log_of(4)], "2 logs of the job were fetched"),
        ([log_of(2)], "2 of 4 rounds were begun: 2026-01-01"),
    ],
)
def test_a_job_that_broke_off_has_failed(monkeypatch, logs, said):
    monkeypatch.setattr(peer_rounds, "_nvflare", job_that_leaves(*logs))
    with pytest.raises(RuntimeError, match=said):
        peer_rounds.nvflare_poc(1, 4, 4)


@pytest.mark.parametrize("peer", [peer_rounds.flower_run, peer_rounds.flower_simulation])
def test_a_run_that_ended_before_its_last_round_has_failed(monkeypatch, peer):
    monkeypatch.setattr(peer_rounds, "_daemon", lambda *_, **__: nullcontext())
    monkeypatch.setattr(peer_rounds, "_call", lambda *_: "no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        peer(1, 4, 4)
