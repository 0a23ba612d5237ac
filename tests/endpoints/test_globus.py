"""What we rely on in the SDK that its documentation does not name."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import uuid
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import globus_sdk
import pytest
import requests
from globus_compute_sdk.errors import TaskExecutionFailed, VersionMismatch
from globus_compute_sdk.sdk import executor as sdk

from fl.endpoints import globus
from fl.endpoints.base import EndpointError, EngineError


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose watchers are not started: nothing is connected to."""
    monkeypatch.setattr(sdk, "_RESULT_WATCHERS", {})
    monkeypatch.setattr(sdk._ResultWatcher, "start", lambda _watcher: None)
    executor = globus._Executor.__new__(globus._Executor)
    executor._task_group_id, executor.client, executor.amqp_port = uuid.uuid4(), None, None
    return executor


def test_results_are_looked_for_often_and_for_as_long_as_we_wait(executor: Any) -> None:
    """By attributes that the SDK's own loops read before every look, and before every try."""
    plain = sdk._ResultWatcher(uuid.uuid4(), client=None)
    assert plain.poll_period_s == globus.SDK_POLL_SECONDS
    assert "call_later(self.poll_period_s" in inspect.getsource(plain._event_watcher)
    assert "while self._connection_tries < self.connect_attempt_limit" in inspect.getsource(
        plain.run
    )
    watcher = executor._get_result_watcher()
    assert watcher.poll_period_s == globus.POLL_SECONDS
    assert watcher.connect_attempt_limit == math.inf


def test_a_watcher_that_has_slowed_itself_down_is_left_alone(
    executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where results have to be asked for one by one."""
    slow = Mock(poll_period_s=4, is_alive=lambda: True)
    monkeypatch.setitem(sdk._RESULT_WATCHERS, executor.task_group_id, slow)
    assert executor._get_result_watcher().poll_period_s == 4


LATE = """
import threading, uuid
from globus_compute_sdk.sdk import executor as sdk
from fl.endpoints import globus

answer, asked = threading.Event(), threading.Event()

class Service(globus._Client):
    def __init__(self, **_):
        pass
    def create_batch(self, *_, **__):
        class Batch:
            tasks = []
            def add(self, *_, **__):
                pass
        return Batch()
    def batch_run(self, *_, **__):
        asked.set()
        answer.wait()
        group = str(uuid.uuid4())
        return {"request_id": "r", "task_group_id": group, "endpoint_id": "e",
                "tasks": {FUNCTION: [str(uuid.uuid4())]}}

FUNCTION = str(uuid.uuid4())
globus._Client = Service
globus.GROUP_SECONDS = 0.0
endpoints = globus.GlobusEndpoints(uuid.UUID(FUNCTION))
class Site:
    client_id, endpoint_id = "a", uuid.uuid4()
endpoints.submit(Site, {})
assert asked.wait(20)
endpoints.close()
answer.set()
"""


def test_a_submit_that_is_under_way_keeps_no_process_from_its_end() -> None:
    """Its watcher would be waited for at the interpreter's exit, and it for an answer."""
    done = subprocess.run(
        [sys.executable, "-c", LATE], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_a_site_says_of_itself_ends_nobodys_results(executor: Any) -> None:
    """The SDK looks into it after it has taken everybody's futures off its list."""
    client = globus._Client.__new__(globus._Client)
    client.fx_serializer = SimpleNamespace(deserialize=lambda data: data)
    watcher = sdk._ResultWatcher(uuid.uuid4(), client=client)
    futures = [sdk.ComputeFuture(task_id=str(uuid.uuid4())) for _ in range(2)]
    for future, details in zip(futures, ({"endpoint_id": []}, None), strict=True):
        result = SimpleNamespace(details=details, is_error=False, data="{}")
        watcher._open_futures[future.task_id] = future
        watcher._received_results[future.task_id] = (SimpleNamespace(headers=None), result)
    watcher._match_results_to_futures()
    assert all(future.done() for future in futures)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            Exception("Malformed or unexpected data structure. Data: \x1b[2J" + "x" * 10**7),
            EndpointError,
        ),
        (TaskExecutionFailed("Traceback\nValueError: \x1b]0;owned\x07" + "x" * 10**7), EngineError),
    ],
)
def test_what_a_site_says_is_cut_and_moves_no_cursor(error: Exception, kind: type) -> None:
    explained = globus.explain(error)
    assert isinstance(explained, kind)
    assert str(explained).isprintable()
    assert len(str(explained)) < 1000


def refusal(status: int) -> globus_sdk.GlobusAPIError:
    answer = requests.Response()
    answer.status_code, answer.request = status, requests.Request("POST", "http://g").prepare()
    return globus_sdk.AuthAPIError(answer)


@pytest.fixture
def own(tmp_path: Any) -> str:
    file = tmp_path / "credentials.env"
    identity = uuid.uuid4()
    file.write_text(f"GLOBUS_COMPUTE_CLIENT_ID={identity}\nGLOBUS_COMPUTE_CLIENT_SECRET=s\n")
    return str(file)


def test_a_site_whose_own_secret_is_refused_keeps_no_run_from_going_on(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus, "_Client", Mock(side_effect=refusal(401)))
    session = str(uuid.uuid4())
    assert globus.GlobusEndpoints(uuid.uuid4(), [own]).recover(session, ["job"]) == {}


def test_an_sdk_that_is_too_old_is_named(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(globus, "_Client", Mock(side_effect=VersionMismatch("too old")))
    with pytest.raises(EndpointError, match="too old"):
        globus.GlobusEndpoints(uuid.uuid4())
    site = Mock(endpoint_id=uuid.uuid4())
    with pytest.raises(EndpointError, match="too old"):
        globus.GlobusEndpoints(uuid.uuid4(), [own]).health(site)
