"""What we rely on in the SDK that its documentation does not name."""

from __future__ import annotations

import inspect
import uuid
from typing import Any
from unittest.mock import Mock

import pytest
from globus_compute_sdk.sdk import executor as sdk

from fl.endpoints import globus


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The SDK's own, which is not started: nothing is connected to."""
    monkeypatch.setattr(sdk, "_RESULT_WATCHERS", {})
    return sdk._ResultWatcher(uuid.uuid4(), client=None)


def test_the_sdk_looks_for_results_as_often_as_it_is_told(watcher: Any) -> None:
    """By an attribute that its own loop reads before every look."""
    assert watcher.poll_period_s == globus.SDK_POLL_SECONDS
    assert "call_later(self.poll_period_s" in inspect.getsource(watcher._event_watcher)
    globus._look_often()
    assert watcher.poll_period_s == globus.POLL_SECONDS


def test_a_submit_has_results_looked_for_often(
    watcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Mock(task_group_id=uuid.uuid4())
    monkeypatch.setattr(globus, "ComputeClient", Mock())
    monkeypatch.setattr(globus, "Executor", Mock(return_value=executor))
    client = Mock(endpoint_id=uuid.uuid4())
    globus.GlobusEndpoints(uuid.uuid4()).submit(client, {})
    executor.submit_to_registered_function.assert_called_once()
    assert watcher.poll_period_s == globus.POLL_SECONDS


def test_a_watcher_that_has_slowed_itself_down_is_left_alone(watcher: Any) -> None:
    """As it does where results have to be asked for one by one."""
    watcher.poll_period_s = 4
    globus._look_often()
    assert watcher.poll_period_s == 4
