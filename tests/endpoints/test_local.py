"""Worker processes on this machine: killed, closed, forgotten."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest

from fl.config import Client, DataConfigs
from fl.endpoints import local
from fl.endpoints.base import EngineError
from fl.endpoints.local import LocalEndpoints
from tests.conftest import TOP

CLIENT = Client(
    endpoint_id="local", client_id="a", data_configs=DataConfigs(dataset_path="d", dataset_name="l")
)
ENTER = {"operation": "enter"}
SECONDS = 60
"""For a task; a worker takes some to start."""


@pytest.fixture
def endpoints(monkeypatch):
    """Several clients, and one worker for them all."""
    no_other_children()
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    opened = LocalEndpoints(3)
    yield opened
    opened.close()
    no_other_children()


def no_other_children():
    """A run that is over has told its workers to end, and does not wait until they have."""
    for process in multiprocessing.active_children():
        process.join(SECONDS)
    assert multiprocessing.active_children() == []


def worker():
    """The worker, as soon as it was started."""
    deadline = time.monotonic() + SECONDS
    while not (children := multiprocessing.active_children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (process,) = children
    return process


def test_a_worker_that_is_killed_takes_its_own_task_with_it_and_none_that_waits(endpoints):
    first, *others = [endpoints.submit(CLIENT, ENTER) for _ in range(3)]
    worker().kill()
    with pytest.raises(EngineError, match="the local process failed: one was killed"):
        raise endpoints.explain(first.exception(SECONDS))
    assert [other.result(SECONDS) for other in others] == [{"result": {}}] * 2


def test_a_worker_that_is_killed_between_two_tasks_is_replaced_unnoticed(endpoints):
    endpoints.submit(CLIENT, ENTER).result(SECONDS)
    idle = worker()
    idle.kill()
    idle.join(SECONDS)
    assert endpoints.submit(CLIENT, ENTER).result(SECONDS) == {"result": {}}


def test_closing_withdraws_what_waits_and_ends_what_runs(endpoints):
    first, *others = [endpoints.submit(CLIENT, ENTER) for _ in range(3)]
    process = worker()
    endpoints.close()
    assert all(other.cancelled() for other in others)
    with pytest.raises(EngineError):
        raise endpoints.explain(first.exception(SECONDS))
    process.join(SECONDS)
    assert process.exitcode == -signal.SIGTERM
    assert multiprocessing.active_children() == []


def test_closing_ends_no_process_of_anybody_else(endpoints):
    """A user's aggregator or loss at the server may have some of its own."""
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(SECONDS,))
    other.start()
    try:
        endpoints.close()
        other.join(1)
        assert other.is_alive()
    finally:
        other.kill()


def test_a_process_that_cannot_be_started_is_this_machines_failure(endpoints, monkeypatch):
    """Whoever explains it: where sites are elsewhere too, that is Globus Compute's place."""

    def full():
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(local, "_start_worker", full)
    error = endpoints.submit(CLIENT, ENTER).exception(SECONDS)
    assert isinstance(error, EngineError)
    assert "the local process failed (BlockingIOError: [Errno" in str(error)


def test_of_a_worker_that_has_died_nothing_is_kept(endpoints, monkeypatch):
    """Two descriptors each, until the run were over."""
    workers = [Mock(**{"is_alive.return_value": alive}) for alive in (False, True, False, True)]
    started = iter(workers)
    monkeypatch.setattr(local, "_start_worker", lambda: (next(started), Mock()))
    for _ in workers:
        endpoints._start()
    assert endpoints._workers == [workers[1], workers[3]]


FORGETFUL = """
import multiprocessing
from pathlib import Path
from fl.endpoints.local import LocalEndpoints
from tests.endpoints.test_local import CLIENT, ENTER, SECONDS

endpoints = LocalEndpoints(1)
endpoints.submit(CLIENT, ENTER).result(SECONDS)
(worker,) = multiprocessing.active_children()
print(Path(f"/proc/{worker.pid}/status").read_text())
"""


def test_a_worker_never_sees_a_ctrl_c_and_a_program_ends_that_forgets_to_close():
    command = [sys.executable, "-c", FORGETFUL]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=2 * SECONDS)
    assert done.returncode == 0 and not done.stderr, done.stderr
    blocked = int(re.search(r"SigBlk:\s*(\w+)", done.stdout)[1], 16)
    assert blocked & 1 << (signal.SIGINT - 1)
