"""What we rely on in the SDK that its documentation does not name."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import globus_sdk
import pytest
import requests
from globus_compute_sdk.errors import TaskExecutionFailed, VersionMismatch
from globus_compute_sdk.sdk import executor as sdk
from globus_compute_sdk.sdk.batch import Batch as SDKBatch
from globus_compute_sdk.sdk.batch import create_user_runtime

from fl.endpoints import globus
from fl.endpoints.base import EndpointError, EngineError
from fl.endpoints.serialization import JSONOnly


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


class Batch:
    """What the SDK puts tasks into: the group they are for, and each request's arguments."""

    def __init__(self, group: Any) -> None:
        self.group, self.tasks = group, list[Any]()

    def add(self, function: str, args: Any, _: Any) -> None:
        self.tasks.append((function, args[0]))


class Service(globus._Client):
    """Globus Compute as far as submits and groups go.

    Attributes:
        groups: The status that it answers with where a group is asked for; 404 where it has none.
        sent: The group and the requests of every submit.
    """

    def __init__(self) -> None:
        self.groups: dict[str, int] = {}
        self.sent: list[tuple[str | None, list[Any]]] = []
        self.most = 2  # requests in a submit
        self._compute_web_client = SimpleNamespace(v2=SimpleNamespace(get_task_group=self.group))

    def group(self, group: Any) -> dict[str, Any]:
        if (status := self.groups.get(str(group), 404)) != 200:
            raise refusal(status)
        return {"taskgroup_id": str(group), "tasks": []}

    def create_batch(self, task_group_id: Any = None, **_: Any) -> Batch:
        return Batch(task_group_id and str(task_group_id))

    def batch_run(self, endpoint_id: Any, batch: Batch) -> dict[str, Any]:
        self.sent.append((batch.group, [request for _, request in batch.tasks]))
        if len(batch.tasks) > self.most:
            raise refusal(413)
        if batch.group is None:
            batch.group = str(uuid.uuid4())
            self.groups[batch.group] = 200
        self.group(batch.group)
        tasks: dict[str, list[str]] = {}
        for function, _ in batch.tasks:
            tasks.setdefault(function, []).append(str(uuid.uuid4()))
        return {
            "request_id": str(uuid.uuid4()),
            "task_group_id": batch.group,
            "endpoint_id": str(endpoint_id),
            "tasks": tasks,
        }


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """One that no watcher waits for, since nothing is connected to."""
    service = Service()
    monkeypatch.setattr(globus, "_Client", lambda **_: service)
    monkeypatch.setattr(sdk, "_RESULT_WATCHERS", {})
    monkeypatch.setattr(sdk._ResultWatcher, "start", lambda _watcher: None)
    monkeypatch.setattr(sdk.Executor, "_default_task_group_id", None)
    return service


@pytest.fixture
def endpoints(service: Service) -> Iterator[globus.GlobusEndpoints]:
    endpoints = globus.GlobusEndpoints(uuid.uuid4())
    yield endpoints
    endpoints.close()


ENDPOINT = uuid.uuid4()


def site(name: str = "a") -> Any:
    return SimpleNamespace(client_id=name, endpoint_id=ENDPOINT)


@pytest.mark.parametrize("status", [403, 404])
def test_a_group_that_is_gone_is_not_submitted_to(
    service: Service, endpoints: globus.GlobusEndpoints, status: int
) -> None:
    """A run that is resumed would send every task of its own into it, and each were refused."""
    gone = str(uuid.uuid4())
    service.groups[gone] = status
    assert endpoints.recover(gone, ["job"]) == {}
    assert endpoints.session(site()) is None
    endpoints.submit(site(), {})
    assert service.sent == [(None, [{}])]
    assert service.groups[str(endpoints.session(site()))] == 200


def test_every_session_is_asked_for_by_its_own_group(
    service: Service, endpoints: globus.GlobusEndpoints
) -> None:
    """A run that was resumed once before has two, and the first may be gone."""
    gone, there = str(uuid.uuid4()), str(uuid.uuid4())
    service.groups[there] = 200
    assert endpoints.recover(gone, ["one"]) == {}
    assert endpoints.recover(there, ["two"]).keys() == {"two"}
    assert endpoints.recover(gone, ["one"]) == {}
    assert endpoints.session(site()) == there


@pytest.fixture
def held(service: Service, endpoints: globus.GlobusEndpoints) -> threading.Event:
    """Until it is set the service answers nothing; a group is known before."""
    held, answer = threading.Event(), service.batch_run

    def busy(endpoint_id: Any, batch: Batch) -> dict[str, Any]:
        assert held.wait(20)
        return answer(endpoint_id, batch)

    service.batch_run = busy  # type: ignore[method-assign]
    group = str(uuid.uuid4())
    service.groups[group] = 200
    endpoints.recover(group, ["job"])
    return held


NAMES = [str(number) for number in range(5)]


def test_clients_that_share_an_endpoint_are_refused_each_for_itself(
    service: Service, endpoints: globus.GlobusEndpoints, held: threading.Event
) -> None:
    """What waits of an Executor travels together: none is too large, and all were refused."""
    service.most = 1
    for name in NAMES:
        endpoints.submit(site(name), {"for": name, "model": "x" * globus.SHARED_BYTES})
    held.set()
    eventually_sent(service, len(NAMES))
    assert sorted(request["for"] for _, (request,) in service.sent) == NAMES


def test_small_tasks_of_clients_that_share_an_endpoint_travel_together(
    service: Service, endpoints: globus.GlobusEndpoints, held: threading.Event
) -> None:
    """The service takes 20 requests in ten seconds, and a hundred clients may be one machine's."""
    service.most = len(NAMES)
    for name in NAMES:
        endpoints.submit(site(name), {"for": name})
    held.set()
    eventually_sent(service, len(NAMES))
    assert len(service.sent) <= 2, "the first, and what waited behind it"


def test_no_batch_of_small_tasks_is_refused_for_its_size(endpoints: globus.GlobusEndpoints) -> None:
    """They are JSON inside of JSON: quotes and letters from abroad grow twice."""
    sizes = [{"numbers": count * ['"ö']} for count in range(0, 10_000, 100)]
    largest = [request for request in sizes if globus._travels_along(request)][-1]
    assert largest != sizes[-1]
    batch = SDKBatch(uuid.uuid4(), serializer=JSONOnly(), user_runtime=create_user_runtime())
    for _ in range(endpoints._executor(ENDPOINT, ENDPOINT).batch_size):
        batch.add(uuid.uuid4(), (largest,))
    assert len(json.dumps(batch.prepare())) < 10_000_000


def test_tasks_are_looked_for_in_the_group_that_they_were_submitted_to(
    service: Service, endpoints: globus.GlobusEndpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a service that was slow to name the first group every Executor has its own."""
    monkeypatch.setattr(endpoints, "_patience", 0.0)
    answer, asked = service.batch_run, threading.Event()

    def slow(endpoint_id: Any, batch: Batch) -> dict[str, Any]:
        assert asked.wait(20)
        return answer(endpoint_id, batch)

    service.batch_run = slow  # type: ignore[method-assign]
    clients: list[Any] = [
        SimpleNamespace(client_id=name, endpoint_id=uuid.uuid4()) for name in "ab"
    ]
    tasks: list[Any] = [endpoints.submit(client, {}) for client in clients]
    assert [endpoints.session(client) for client in clients] == [None, None]
    asked.set()
    eventually(lambda: all(task.task_id for task in tasks))
    groups = [str(task._metadata["task_group_uuid"]) for task in tasks]
    assert len(set(groups)) == 2
    assert [endpoints.session(client) for client in clients] == groups
    endpoints.submit(clients[0], {})
    assert [endpoints.session(client) for client in clients] == groups


def eventually_sent(service: Service, count: int) -> None:
    eventually(lambda: sum(len(requests) for _, requests in service.sent) >= count)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_is_sent_its_next_task_after_one_that_was_refused(
    service: Service, endpoints: globus.GlobusEndpoints
) -> None:
    service.most = 0
    refused = endpoints.submit(site(), {"turn": 1})
    assert isinstance(refused.exception(20), globus_sdk.GlobusAPIError)
    next(iter(endpoints._executors.values()))._task_submitter.join(20)
    service.most = 1
    endpoints.submit(site(), {"turn": 2})
    eventually_sent(service, 2)
    assert service.sent[-1] == (None, [{"turn": 2}])


@pytest.mark.usefixtures("service")
def test_a_process_that_can_start_no_thread_says_so(
    endpoints: globus.GlobusEndpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Mock(side_effect=RuntimeError("can't start new thread"))
    monkeypatch.setattr(globus, "_Executor", full)
    with pytest.raises(EndpointError, match="can't start new thread"):
        endpoints.submit(site(), {})


def test_a_service_that_says_nothing_is_waited_for_once(
    service: Service, endpoints: globus.GlobusEndpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for every client: their submits come from one thread, which would do nothing else."""
    clock, silence = [0.0], threading.Event()
    service.batch_run = lambda *_: silence.wait(20)  # type: ignore[method-assign]
    monkeypatch.setattr(
        globus,
        "time",
        SimpleNamespace(
            monotonic=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s)
        ),
    )
    for name in "abc":
        endpoints.submit(site(name), {})
    silence.set()
    assert clock[0] < globus.GROUP_SECONDS + 1


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
