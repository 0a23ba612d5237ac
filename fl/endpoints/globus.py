"""Sites reached through Globus Compute: https://globus-compute.readthedocs.io/en/stable/sdk/.

Import this module only after the credentials are in the environment: the SDK reads them when it
is imported.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from uuid import UUID

import globus_sdk
from globus_compute_sdk import Client as ComputeClient
from globus_compute_sdk import Executor
from globus_compute_sdk.errors import ComputeError, TaskExecutionFailed
from globus_compute_sdk.sdk import executor as sdk
from globus_compute_sdk.serialize import JSONData

from fl.config import Client
from fl.endpoints.base import EndpointError, EngineError, JSONObject, legible
from fl.endpoints.credentials import read_environment
from fl.endpoints.serialization import JSONOnly
from fl.errors import FederationError, in_one_line

# The service takes 20 requests in 10 s from a client; the SDK's own, slower default would hold
# every round up for seconds.
BURST_LIMIT, BURST_WINDOW_SECONDS = 8, 4
# The service names a group of tasks in its answer to the first submit. So long it is waited for in
# all: of a service that says nothing every client's submit would have to.
GROUP_SECONDS = 30.0
# How often the SDK looks whether a result has come, which it has pushed to it: nobody is asked. By
# its default every answer would lie there for up to half a second, as long as a small round takes.
POLL_SECONDS, SDK_POLL_SECONDS = 0.05, 0.5
# An Executor sends what waits in one request, of up to so many tasks, and the service takes no
# request of more than 10 MB. A tenth of it is left for what the SDK writes around them.
BATCH_TASKS = 128
SHARED_BYTES = 9_000_000 // BATCH_TASKS
SAID = 500
"""Characters that are shown of what the SDK or a site's engine says."""


class _Client(ComputeClient):
    """The SDK's, which believes nothing that a site says of itself."""

    def _log_version_mismatch(self, worker_details: dict[Any, Any] | None) -> None:
        """Nothing: `fl check` compares versions.

        The SDK looks into whatever came with a result, outside of any `try`: a site's word could
        end the thread that hands on everybody's results.
        """


class _Executor(Executor):
    """The SDK's, whose results are waited for as long as we do.

    Attributes:
        closed: Nobody waits for its results any more.
    """

    closed = False

    def _get_result_watcher(self) -> Any:
        """What is told of results, from when a task was submitted on.

        By itself it gives up all tasks when it has not reached the broker five times, within half a
        minute, though they go on at their sites: they would be trained twice. It looks for results
        twice a second; where it has slowed itself down, it knows why.
        """
        if self.closed:
            # A submit that was under way would start another watcher, which keeps the interpreter
            # from its exit until a result is there. Of a thread's SystemExit nobody hears.
            raise SystemExit
        watcher = super()._get_result_watcher()
        watcher.connect_attempt_limit = math.inf
        if watcher.poll_period_s == SDK_POLL_SECONDS:
            watcher.poll_period_s = POLL_SECONDS
        return watcher


class GlobusEndpoints:
    """One SDK Executor for each endpoint, and for each client whose request is large.

    Tasks of one Executor travel in one request. Many clients of one endpoint would else take more
    requests than the service allows; and they would be refused together, for a size that none of
    them has alone, were theirs not small.

    Args:
        function_id: Id of the remote function, as this Globus client registered it.
        own: Files with the credentials of a site's own Globus client; without them, those of the
            environment are taken.

    Raises:
        EndpointError: Globus cannot be reached, or refuses the environment's credentials. Those of
            one site are found refused when it is asked for: they keep no other site from working.
        FederationError: A file cannot be read.
    """

    def __init__(self, function_id: UUID, own: Sequence[str] = ()) -> None:
        self._function_id = str(function_id)
        self._own = own
        self._app = _app_of(own) if own else None
        self._opened: ComputeClient | None = None
        self._task_group: UUID | None = None
        self._patience = GROUP_SECONDS
        self._executors: dict[UUID | str | None, _Executor] = {}
        self._last: dict[str, _Executor] = {}
        # Refusals reach people through the futures, a service that is away by what is asked of it;
        # the SDK's own log lines would say it twice, with tracebacks.
        logging.getLogger("globus_compute_sdk").setLevel(logging.CRITICAL)
        if not own:
            try:
                self._client()
            except globus_sdk.GlobusError as error:
                raise explain(error) from error

    def submit(self, client: Client, request: JSONObject) -> Future[JSONObject]:
        """See `Endpoints.submit`."""
        try:
            return self._send(client, request)
        except (globus_sdk.GlobusError, RuntimeError) as error:
            raise explain(error) from error

    def health(self, client: Client) -> str | None:
        """See `Endpoints.health`."""
        endpoint_id = _endpoint_id(client)
        try:
            status = self._client().get_endpoint_status(endpoint_id)["status"]
        except globus_sdk.GlobusAPIError as error:
            if self._own and error.http_status == 401:
                return f"{explain(error)} in {self._own[-1]}"
            if error.http_status in (403, 404):
                return f"endpoint {endpoint_id} is unknown to Globus Compute, or another's"
            raise explain(error) from error
        except globus_sdk.GlobusError as error:
            raise explain(error) from error
        if status != "online":
            return f"endpoint {endpoint_id} is {status}; is it running? (playbooks/health.yml)"
        return None

    def explain(self, error: BaseException) -> EndpointError:
        """See `Endpoints.explain`."""
        return explain(error)

    def session(self, client: Client) -> str | None:
        """See `Endpoints.session`: the service's name for the group of the client's last task."""
        last = self._last.get(client.client_id)
        group = self._task_group if last is None else last.task_group_id
        return None if group is None else str(group)

    def recover(self, session: str, jobs: Collection[str]) -> dict[str, Future[JSONObject]]:
        """See `Endpoints.recover`.

        The service lists a group's tasks, but not what they are; only an answer says whose it is.
        So a task that is still to come cannot be told from one that was lost: every job has a
        future, and it may never resolve.
        """
        found: dict[str, Future[JSONObject]] = {job: Future() for job in jobs}

        def hand_on(task: Future[JSONObject]) -> None:
            if task.cancelled() or task.exception() is not None:
                return
            match task.result():
                case {"result": {"job": str(job)}} if job in found and not found[job].done():
                    found[job].set_result(task.result())

        try:
            for task in self._executor(None, None).reload_tasks(session):
                task.add_done_callback(hand_on)
        except globus_sdk.GlobusAPIError as error:
            # The group is gone, or another client's; or a site's own secret is refused, which
            # `health` tells. Its tasks are sent again.
            if error.http_status in (403, 404) or (self._own and error.http_status == 401):
                return {}
            raise explain(error) from error
        except globus_sdk.GlobusError as error:
            raise explain(error) from error
        # The service knows it: what is submitted from now on belongs to it too.
        self._task_group = UUID(session)
        return found

    def close(self) -> None:
        """See `Endpoints.close`."""
        for executor in self._executors.values():
            executor.closed = True
            _shut_down(executor)
        # So would the interpreter at its exit: the SDK's result watchers end only with their last
        # future, whatever their Executor was told. Only the SDK's own registry leads to them.
        for watcher in list(sdk._RESULT_WATCHERS.values()):
            watcher.shutdown(wait=False, cancel_futures=True)

    def _client(self) -> ComputeClient:
        """The SDK's client; making it is the first that Globus hears of these credentials."""
        if self._opened is None:
            try:
                self._opened = _Client(app=self._app)
            except (ComputeError, ValueError) as error:  # it is too old, or has half of a secret
                raise EndpointError(in_one_line(error)) from error
        return self._opened

    def _send(self, client: Client, request: JSONObject) -> Future[JSONObject]:
        endpoint_id = _endpoint_id(client)
        name = endpoint_id if _travels_along(request) else client.client_id
        executor = self._executor(name, endpoint_id)
        try:
            future = self._submitted(executor, request)
        except RuntimeError:
            # A refused submit (413, say) has ended this Executor for good.
            _shut_down(self._executors.pop(name))
            executor = self._executor(name, endpoint_id)
            future = self._submitted(executor, request)
        self._last[client.client_id] = executor
        if self._task_group is None:
            began = time.monotonic()
            self._task_group = _group_of(executor, future, self._patience)
            self._patience -= time.monotonic() - began
        return future

    def _submitted(self, executor: _Executor, request: JSONObject) -> Future[JSONObject]:
        future: Future[JSONObject] = executor.submit_to_registered_function(
            self._function_id, args=(request,)
        )
        return future

    def _executor(self, name: UUID | str | None, endpoint_id: UUID | None) -> _Executor:
        """An endpoint's executor, or a client's own; the one for None submits nothing."""
        if name not in self._executors:
            executor = _Executor(
                endpoint_id=endpoint_id,
                client=self._client(),
                serializer=JSONOnly(),
                result_serializers=[JSONData],
                task_group_id=self._task_group,
                batch_size=BATCH_TASKS,
                api_burst_limit=BURST_LIMIT,
                api_burst_window_s=BURST_WINDOW_SECONDS,
            )
            # Without a group the SDK takes the process's last one, which may be another client's.
            executor.task_group_id = self._task_group
            self._executors[name] = executor
        return self._executors[name]


def _travels_along(request: JSONObject) -> bool:
    """Whether a request is small enough to be sent with others: it is JSON inside of JSON."""
    text = json.dumps(request)
    return len(text) <= SHARED_BYTES and len(json.dumps(text)) <= SHARED_BYTES


def _shut_down(executor: Executor) -> None:
    # wait=True would wait for ever on a task whose site has died.
    executor.shutdown(wait=False, cancel_futures=True)


def _app_of(files: Sequence[str]) -> globus_sdk.ClientApp:
    """A site's own Globus client, whose tokens are kept nowhere."""
    found: dict[str, str] = {}
    for file in files:
        found |= read_environment(Path(file))
    try:
        return globus_sdk.ClientApp(
            "fl",
            client_id=found["GLOBUS_COMPUTE_CLIENT_ID"],
            client_secret=found["GLOBUS_COMPUTE_CLIENT_SECRET"],
            config=globus_sdk.GlobusAppConfig(token_storage="memory"),  # noqa: S106  (a kind)  # nosec B106
        )
    except KeyError as error:
        raise FederationError(f"{files[-1]}: does not set {error.args[0]}") from error


def _group_of(executor: Executor, first: Future[JSONObject], seconds: float) -> UUID | None:
    """The group that the service makes for a first task: all tasks of a run share one."""
    until = time.monotonic() + seconds
    while executor.task_group_id is None and not first.done() and time.monotonic() < until:
        time.sleep(0.02)
    group: UUID | None = executor.task_group_id
    return group


def explain(error: BaseException) -> EndpointError:
    """What went wrong between here and a site.

    Args:
        error: An exception of the Globus SDKs.

    Returns:
        An error with a line for a person; an `EngineError` where the site's engine had the task.
    """
    match error:
        case EndpointError():
            return error
        case globus_sdk.AuthAPIError():
            return EndpointError(
                f"Globus refused the client credentials ({error.http_status} "
                f"{error.code or 'unauthorized'}); check GLOBUS_COMPUTE_CLIENT_ID and "
                "GLOBUS_COMPUTE_CLIENT_SECRET"
            )
        case globus_sdk.GlobusAPIError(http_status=413):
            return EndpointError(
                "Globus Compute refused a request of more than 10 MB; set "
                "comm_configs.proxystore_configs.enable_proxystore"
            )
        case globus_sdk.GlobusAPIError():
            refused = f"Globus Compute refused the task ({error.http_status}): {error.message}"
            return EndpointError(refused)
        case globus_sdk.NetworkError():
            return EndpointError(f"Globus Compute cannot be reached: {error}")
        case TaskExecutionFailed():
            return EngineError(
                f"the task failed at the site: {_said(_last_line(error.remote_data))}"
            )
    # Of an answer that is none, the SDK's error holds all.
    return EndpointError(f"the task was lost ({type(error).__name__}: {_said(str(error))})")


def _endpoint_id(client: Client) -> UUID:
    if not isinstance(client.endpoint_id, UUID):
        raise EndpointError(f"{client.client_id} has no Globus Compute endpoint")
    return client.endpoint_id


def _last_line(trace: str) -> str:
    """The exception's own line at the end of a worker's traceback."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", trace)]
    return next((line for line in reversed(lines) if line.strip("- ")), "no reason given")


def _said(text: str) -> str:
    """A text from elsewhere, in one line that a terminal may show."""
    return legible(text[:SAID])
