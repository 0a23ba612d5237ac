"""The Compute service's routes, versions 2 and 3."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID, uuid4

from globus_compute_sdk.serialize import ComputeSerializer
from pydantic import BaseModel
from quart import Blueprint, Response, g, jsonify, request

from fl.sandbox.dispatch import Dispatch
from fl.sandbox.errors import ApiError
from fl.sandbox.identity import COMPUTE, Identities
from fl.sandbox.limits import RateLimit
from fl.sandbox.payloads import FunctionRegistration, Registration, Submission, TaskIds
from fl.sandbox.store import Endpoint, Function, Group, Store, Task

OLDEST_SDK = "2.0.0"
# The hosted service blocks registration "temporarily"; for how long is not documented.
LOCKED_S = 30.0
Model = TypeVar("Model", bound=BaseModel)
Owned = TypeVar("Owned", Endpoint, Function, Group, Task)


def parse_uuid(what: str, text: str) -> str:
    """An id in its canonical form.

    Raises:
        ApiError: it is not a UUID.
    """
    try:
        return str(UUID(text))
    except ValueError:
        raise ApiError(400, "INVALID_UUID", f"{what} id {text!r} is not a UUID") from None


def owned(what: str, text: str, find: Callable[[str], Owned | None]) -> Owned:
    """The thing of that id, if it is the caller's.

    Raises:
        ApiError: the id is malformed, unknown, or somebody else's.
    """
    found = find(parse_uuid(what, text))
    if found is None:
        raise ApiError(404, "RESOURCE_NOT_FOUND", f"{what} {text} could not be resolved")
    if found.owner != g.client:
        raise ApiError(403, "FORBIDDEN", f"{what} {text} belongs to somebody else")
    return found


async def body(model: type[Model]) -> Model:
    """The request's body.

    Raises:
        ApiError: it is not JSON.
        ValidationError: a field is missing or wrong.
    """
    try:
        content = json.loads(await request.get_data())
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise ApiError(400, "REQUEST_MALFORMED", "the request's body is not JSON") from None
    return model.model_validate(content)


class Compute:
    """The routes' work, one method a route.

    Args:
        store: What is known.
        dispatch: The way to the endpoints.
        identities: Who may call.
        limit: How often.
    """

    def __init__(
        self, store: Store, dispatch: Dispatch, identities: Identities, limit: RateLimit
    ) -> None:
        self.store = store
        self.dispatch = dispatch
        self.identities = identities
        self.limit = limit
        self._locked: dict[str, float] = {}  # until when (monotonic s)

    def blueprint(self) -> Blueprint:
        """The routes."""
        routes = Blueprint("compute", __name__)
        routes.before_request(self._admit)
        for method, path, view in (
            ("GET", "/v2/version", self.version),
            ("GET", "/v2/get_amqp_result_connection_url", self.result_queue),
            ("GET", "/v2/endpoints", self.endpoints),
            ("GET", "/v2/endpoints/<text>", self.endpoint),
            ("DELETE", "/v2/endpoints/<text>", self.delete_endpoint),
            ("GET", "/v2/endpoints/<text>/status", self.endpoint_status),
            ("POST", "/v2/endpoints/<text>/lock", self.lock_endpoint),
            ("POST", "/v3/endpoints", self.register_endpoint),
            ("PUT", "/v3/endpoints/<text>", self.update_endpoint),
            ("POST", "/v3/endpoints/<text>/lock", self.lock_endpoint),
            ("GET", "/v3/endpoints/<text>/allowed_functions", self.allowed_functions),
            ("POST", "/v3/endpoints/<text>/submit", self.submit),
            ("POST", "/v2/functions", self.register_function),
            ("POST", "/v3/functions", self.register_function),
            ("GET", "/v2/functions/<text>", self.function),
            ("DELETE", "/v2/functions/<text>", self.delete_function),
            ("GET", "/v2/tasks/<text>", self.task),
            ("POST", "/v2/batch_status", self.tasks),
            ("GET", "/v2/taskgroup/<text>", self.group),
        ):
            routes.add_url_rule(path, f"{method} {path}", view, methods=[method])
        return routes

    async def _admit(self) -> None:
        """Check the bearer's token and how often it was here.

        Raises:
            ApiError: 401, or 429 with the seconds after which to try again.
        """
        if request.path == "/v2/version":
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        client = self.identities.verify(token, COMPUTE) if scheme.lower() == "bearer" else None
        if client is None:
            message = "the bearer token is missing, expired, or not for this service"
            raise ApiError(401, "AUTHENTICATION_REQUIRED", message)
        wait_s = self.limit.retry_after_s(client)
        if wait_s is not None:
            message = f"too many requests; try again in {wait_s} s"
            raise ApiError(429, "RATE_LIMIT_EXCEEDED", message, {"Retry-After": str(wait_s)})
        g.client = client

    async def version(self) -> Response:
        """Which SDKs and endpoints the service accepts."""
        if request.args.get("service") != "all":
            return jsonify("1.0.0")
        return jsonify(
            {"api": "1.0.0", "min_sdk_version": OLDEST_SDK, "min_ep_version": OLDEST_SDK}
        )

    async def result_queue(self) -> Response:
        """Where the caller's results come out."""
        password = self.identities.broker_password(g.client)
        url = self.dispatch.address.url_for(g.client, password)
        return jsonify({"queue_prefix": f"{g.client}.", "connection_url": url})

    # Endpoints.

    def _manager(self, text: str) -> Endpoint:
        def find(endpoint_id: str) -> Endpoint | None:
            found = self.store.endpoint(endpoint_id)
            return found if found and found.parent is None else None

        return owned("Endpoint", text, find)

    async def register_endpoint(self) -> Response:
        """Register a new endpoint."""
        registration = (await body(Registration)).model_dump(mode="json")
        return jsonify(await self.dispatch.admit(self.store.add_endpoint(g.client, registration)))

    async def update_endpoint(self, text: str) -> Response:
        """Register an endpoint again; the credentials of the time before end here."""
        known = self._manager(text)
        wait_s = self._locked.get(known.id, 0.0) - time.monotonic()
        if wait_s > 0:
            message = f"Endpoint {known.id} is locked; try again in {math.ceil(wait_s)} s"
            raise ApiError(423, "ENDPOINT_LOCKED", message)
        registration = (await body(Registration)).model_dump(mode="json")
        return jsonify(await self.dispatch.admit(self.store.update_endpoint(known, registration)))

    async def lock_endpoint(self, text: str) -> Response:
        """Drop an endpoint's connections; it must register again to come back, once it may."""
        known = self._manager(text)
        self._locked[known.id] = time.monotonic() + LOCKED_S
        self.dispatch.expel(self.store.update_endpoint(known, known.registration))
        return jsonify({"endpoint_id": known.id})

    async def delete_endpoint(self, text: str) -> Response:
        """Forget an endpoint."""
        known = self._manager(text)
        await self.dispatch.remove(known)
        self.store.delete_endpoint(known.id)
        return jsonify({"result": "success", "endpoint_id": known.id})

    async def endpoints(self) -> Response:
        """The caller's endpoints."""
        return jsonify([self._brief(e) for e in self.store.managers(g.client)])

    async def endpoint(self, text: str) -> Response:
        """What an endpoint registered."""
        known = owned("Endpoint", text, self.store.endpoint)
        return jsonify({**known.registration, **self._brief(known)})

    def _brief(self, endpoint: Endpoint) -> dict[str, Any]:
        registration = endpoint.registration
        return {
            "uuid": endpoint.id,
            "name": registration.get("endpoint_name"),
            "display_name": registration.get("display_name"),
            "owner": endpoint.owner,
            "multi_user": registration.get("multi_user", False),
        }

    async def endpoint_status(self, text: str) -> Response:
        """Whether an endpoint is online, and its last report."""
        known = owned("Endpoint", text, self.store.endpoint)
        beat = self.dispatch.liveness.beat(known.id)
        return jsonify(
            {"status": "online" if beat else "offline", "details": beat.report if beat else {}}
        )

    async def allowed_functions(self, text: str) -> Response:
        """The only functions that an endpoint runs."""
        known = self._manager(text)
        allowed = known.allowed_functions
        return jsonify(
            {
                "endpoint_id": known.id,
                "restricted": allowed is not None,
                "functions": allowed or [],
            }
        )

    # Functions.

    async def register_function(self) -> Response:
        """Register a function."""
        registration = await body(FunctionRegistration)
        code = registration.function_code
        if not registration.serialized:
            code = ComputeSerializer.pack_buffers([f"st\n{registration.function_name}:{code}"])
        known = self.store.add_function(
            g.client, code, registration.model_dump(mode="json", exclude={"function_code"})
        )
        return jsonify({"function_uuid": known.id})

    async def function(self, text: str) -> Response:
        """What a function registered."""
        known = self._function(text)
        return jsonify(
            {**known.registration, "function_uuid": known.id, "function_code": known.code}
        )

    def _function(self, text: str) -> Function:
        known = self.store.function(parse_uuid("Function", text))
        if known and known.registration.get("public"):
            return known
        return owned("Function", text, self.store.function)

    async def delete_function(self, text: str) -> Response:
        """Forget a function."""
        known = owned("Function", text, self.store.function)
        self.store.delete_function(known.id)
        return jsonify({"result": "success", "function_uuid": known.id})

    # Tasks.

    async def submit(self, text: str) -> Response:
        """Send tasks to an endpoint."""
        manager = self._manager(text)
        submission = await body(Submission)
        functions = {str(i): self._permitted(manager, str(i)) for i in submission.tasks}
        group = self._group(submission)
        endpoint = self.store.user_endpoint(
            manager, g.client, submission.user_endpoint_config, submission.user_runtime
        )
        calls = [
            (functions[str(i)], packed) for i, calls in submission.tasks.items() for packed in calls
        ]
        ids = await self.dispatch.submit(group, endpoint, calls, self._headers(submission))
        tasks: dict[str, list[str]] = {}
        for (function, _), task_id in zip(calls, ids, strict=True):
            tasks.setdefault(function.id, []).append(task_id)
        return jsonify(
            {
                "tasks": tasks,
                "task_group_id": group.id,
                "request_id": str(uuid4()),
                "endpoint_id": manager.id,
            }
        )

    def _permitted(self, manager: Endpoint, function_id: str) -> Function:
        function = self._function(function_id)
        allowed = manager.allowed_functions
        if allowed is not None and function.id not in allowed:
            message = f"Function {function.id} not permitted on endpoint {manager.id}"
            raise ApiError(403, "FUNCTION_NOT_PERMITTED", message)
        return function

    def _group(self, submission: Submission) -> Group:
        if submission.task_group_id is None:
            group = self.store.add_group(g.client)
        else:
            group = owned("Task group", str(submission.task_group_id), self.store.group)
        if submission.create_queue and not group.queue:
            group = self.store.give_queue(group)
        return group

    def _headers(self, submission: Submission) -> dict[str, Any]:
        headers: dict[str, Any] = {}
        if submission.resource_specification:
            headers["resource_specification"] = json.dumps(submission.resource_specification)
        if submission.result_serializers:
            headers["result_serializers"] = submission.result_serializers
        return headers

    async def task(self, text: str) -> Response:
        """A task and, if it is there, its result."""
        return jsonify(self._report(owned("Task", text, self.store.task)))

    async def tasks(self) -> Response:
        """Several tasks at once; an unknown one is reported as failed, the others as they are."""
        asked = await body(TaskIds)
        results: dict[str, Any] = {}
        for task_id in map(str, asked.task_ids):
            known = self.store.task(task_id)
            if known is None or known.owner != g.client:
                reason = "Unknown task id"
                results[task_id] = {"task_id": task_id, "status": "failed", "reason": reason}
            else:
                results[task_id] = self._report(known)
        return jsonify({"response": "batch", "results": results})

    def _report(self, task: Task) -> dict[str, Any]:
        if task.completed is None:
            return {"task_id": task.id, "status": "waiting-for-ep"}
        return {
            "task_id": task.id,
            "status": "failed" if task.failed else "success",
            "exception" if task.failed else "result": task.data,
            "completion_t": str(task.completed),
            "details": task.details,
        }

    async def group(self, text: str) -> Response:
        """The tasks of a group."""
        known = owned("Task group", text, self.store.group)
        tasks = [{"id": task_id} for task_id in self.store.tasks_of(known)]
        return jsonify({"taskgroup_id": known.id, "tasks": tasks})
