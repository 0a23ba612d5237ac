from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import requests
from globus_compute_common.messagepack import unpack
from globus_compute_sdk.serialize import ComputeSerializer
from globus_sdk import AccessTokenAuthorizer, ComputeAPIError, ComputeClientV2

from fl.sandbox import compute_routes
from fl.sandbox.identity import AUTH

from .conftest import Running

NOBODY = "00000000-0000-4000-8000-000000000000"


def refusal(call: Callable[[], Any]) -> tuple[int, str | None]:
    with pytest.raises(ComputeAPIError) as refused:
        call()
    assert refused.value.message
    return refused.value.http_status, refused.value.code


def test_the_versions_satisfy_the_sdk(running: Running) -> None:
    answer = running.v2().get_version(service="all")
    assert answer["min_sdk_version"] <= "4" and answer["min_ep_version"] <= "4"


@pytest.mark.parametrize("token", ["", "rubbish", "AUTH"])
def test_a_bearer_token_is_needed(running: Running, token: str) -> None:
    token = running.token(server=AUTH) if token == "AUTH" else token
    client = ComputeClientV2(base_url=running.url, authorizer=AccessTokenAuthorizer(token))
    assert refusal(client.get_endpoints) == (401, "AUTHENTICATION_REQUIRED")


def test_an_expired_token_is_refused(serving: Callable[..., Running]) -> None:
    assert refusal(serving(lifetime_s=-1).v2().get_endpoints)[0] == 401


def test_an_endpoint_registers_and_registers_again(running: Running) -> None:
    first = running.endpoint(display_name="Site", metadata={"hostname": "h"})
    again = running.v3().update_endpoint(first["endpoint_id"], {"endpoint_name": "site"})
    assert again["endpoint_id"] == first["endpoint_id"]
    assert again["command_queue_info"]["queue"] == first["command_queue_info"]["queue"]
    known = running.v2().get_endpoint(first["endpoint_id"])
    assert (known["name"], known["display_name"]) == ("site", None)
    assert [e["uuid"] for e in running.v2().get_endpoints()] == [first["endpoint_id"]]
    assert running.v2(client=1).get_endpoints().data == []


def test_a_locked_endpoint_registers_again_after_a_while_and_not_at_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, v3 = running.endpoint()["endpoint_id"], running.v3()

    def register() -> Any:
        return v3.update_endpoint(endpoint, {"endpoint_name": "site"})

    v3.lock_endpoint(endpoint)
    assert refusal(register) == (423, "ENDPOINT_LOCKED")
    monkeypatch.setattr(compute_routes, "LOCKED_S", 0.0)
    v3.lock_endpoint(endpoint)
    assert register()["endpoint_id"] == endpoint


def test_a_deleted_endpoint_is_unknown(running: Running) -> None:
    endpoint = running.endpoint()["endpoint_id"]
    running.v2().delete_endpoint(endpoint)
    assert refusal(lambda: running.v2().get_endpoint(endpoint)) == (404, "RESOURCE_NOT_FOUND")


def test_somebody_elses_things_are_refused(running: Running) -> None:
    endpoint, function = running.endpoint()["endpoint_id"], running.function()
    sent = running.v3().submit(endpoint, {"tasks": {function: ["args"]}})
    task, group = sent["tasks"][function][0], sent["task_group_id"]
    v2, v3 = running.v2(client=1), running.v3(client=1)
    own_endpoint, own = running.endpoint(client=1)["endpoint_id"], running.function(client=1)
    for call in (
        lambda: v2.get_endpoint(endpoint),
        lambda: v2.get_endpoint_status(endpoint),
        lambda: v2.delete_endpoint(endpoint),
        lambda: v3.lock_endpoint(endpoint),
        lambda: v3.update_endpoint(endpoint, {"endpoint_name": "mine"}),
        lambda: v3.get_endpoint_allowlist(endpoint),
        lambda: v3.submit(endpoint, {"tasks": {own: ["args"]}}),
        lambda: v3.submit(own_endpoint, {"tasks": {function: ["args"]}}),
        lambda: v3.submit(own_endpoint, {"tasks": {own: ["args"]}, "task_group_id": group}),
        lambda: v2.get_function(function),
        lambda: v2.delete_function(function),
        lambda: v2.get_task(task),
        lambda: v2.get_task_group(group),
    ):
        assert refusal(call) == (403, "FORBIDDEN")
    assert v2.get_task_batch([task])["results"][task]["reason"] == "Unknown task id"


def test_a_public_function_is_everybodys(running: Running) -> None:
    function = running.function(public=True)
    endpoint = running.endpoint(client=1)["endpoint_id"]
    assert running.v3(client=1).submit(endpoint, {"tasks": {function: ["args"]}}).data


def test_only_allowed_functions_run(running: Running) -> None:
    allowed, other = running.function(), running.function()
    endpoint = running.endpoint(allowed_functions=[allowed])["endpoint_id"]
    v3 = running.v3()
    listed = v3.get_endpoint_allowlist(endpoint)
    assert (listed["restricted"], listed["functions"]) == (True, [allowed])
    assert v3.submit(endpoint, {"tasks": {allowed: ["args"]}}).data
    for tasks in ({other: ["args"]}, {allowed: ["args"], other: ["args"]}):
        with pytest.raises(ComputeAPIError) as refused:
            v3.submit(endpoint, {"tasks": tasks})
        assert (refused.value.http_status, refused.value.code) == (403, "FUNCTION_NOT_PERMITTED")
        assert refused.value.message == f"Function {other} not permitted on endpoint {endpoint}"


def test_a_task_carries_code_and_arguments(running: Running) -> None:
    endpoint = running.endpoint()["endpoint_id"]
    function = running.function(function_code="4\ncode")
    answer = running.v3().submit(
        endpoint,
        {
            "tasks": {function: ["4\nargs", "5\nargs2"]},
            "resource_specification": {"num_nodes": 2},
            "result_serializers": ["a.B"],
        },
    )
    (child,) = running.later(running.service.store.children, endpoint)
    connection = running.connect(running.service.dispatch._own_url)
    channel = connection.channel()
    for task_id, packed in zip(answer["tasks"][function], ("4\nargs", "5\nargs2"), strict=True):
        _, properties, message = channel.basic_get(f"{child.id}.tasks", auto_ack=True)
        task = unpack(message)
        assert (str(task.task_id), task.task_buffer) == (task_id, f"4\ncode{packed}")
        assert properties.headers == {
            "function_uuid": function,
            "task_uuid": task_id,
            "resource_specification": '{"num_nodes": 2}',
            "result_serializers": ["a.B"],
        }
    connection.close()


def test_source_code_is_packed_as_the_sdk_would(running: Running) -> None:
    source = "def f():\n    return 7\n"
    function = running.function(function_code=source, function_name="f", serialized=False)
    packed = running.v2().get_function(function)["function_code"]
    (code,) = ComputeSerializer.unpack_buffers(packed)
    assert ComputeSerializer().deserialize(code)() == 7


def test_options_decide_which_user_endpoint_runs_a_task(running: Running) -> None:
    endpoint, function = running.endpoint()["endpoint_id"], running.function()
    for options in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}):
        running.v3().submit(
            endpoint, {"tasks": {function: ["args"]}, "user_endpoint_config": options}
        )
    assert len(running.later(running.service.store.children, endpoint)) == 2


def test_a_waiting_task_is_pending_everywhere(running: Running) -> None:
    endpoint, function = running.endpoint()["endpoint_id"], running.function()
    answer = running.v3().submit(endpoint, {"tasks": {function: ["args"]}})
    (task,) = answer["tasks"][function]
    v2 = running.v2()
    assert v2.get_task(task)["status"] == "waiting-for-ep"
    assert v2.get_task_batch([task])["results"][task]["status"] == "waiting-for-ep"
    assert v2.get_task_group(answer["task_group_id"])["tasks"] == [{"id": task}]


SUBMIT = f"/v3/endpoints/{NOBODY}/submit"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v2/endpoints/x", None, 400, "INVALID_UUID"),
        ("GET", "/v2/endpoints/x/status", None, 400, "INVALID_UUID"),
        ("GET", "/v2/functions/x", None, 400, "INVALID_UUID"),
        ("GET", "/v2/tasks/x", None, 400, "INVALID_UUID"),
        ("GET", "/v2/taskgroup/x", None, 400, "INVALID_UUID"),
        ("GET", f"/v2/endpoints/{NOBODY}", None, 404, "RESOURCE_NOT_FOUND"),
        ("GET", f"/v2/functions/{NOBODY}", None, 404, "RESOURCE_NOT_FOUND"),
        ("GET", f"/v2/tasks/{NOBODY}", None, 404, "RESOURCE_NOT_FOUND"),
        ("GET", f"/v2/taskgroup/{NOBODY}", None, 404, "RESOURCE_NOT_FOUND"),
        ("DELETE", f"/v2/endpoints/{NOBODY}", None, 404, "RESOURCE_NOT_FOUND"),
        ("PUT", f"/v3/endpoints/{NOBODY}", "{}", 404, "RESOURCE_NOT_FOUND"),
        ("POST", SUBMIT, '{"tasks": {}}', 404, "RESOURCE_NOT_FOUND"),
        ("GET", "/v2/nothing", None, 404, "NOT_FOUND"),
        ("POST", "/v2/version", None, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v3/endpoints", "", 400, "REQUEST_MALFORMED"),
        ("POST", "/v3/endpoints", "{", 400, "REQUEST_MALFORMED"),
        ("POST", "/v3/endpoints", b"\xff", 400, "REQUEST_MALFORMED"),
        ("POST", "/v3/endpoints", "[" * 100_000, 400, "REQUEST_MALFORMED"),
        ("POST", "/v3/endpoints", '{"endpoint_name": "\\ud800"}', 400, "REQUEST_MALFORMED"),
        ("POST", "/v3/endpoints", "9" * 5000, 400, "REQUEST_MALFORMED"),
        ("POST", "/v3/endpoints", "[]", 422, "SEMANTICALLY_INVALID"),
        ("POST", "/v3/endpoints", "{}", 422, "SEMANTICALLY_INVALID"),
        ("POST", "/v3/endpoints", '{"endpoint_name": 7}', 422, "SEMANTICALLY_INVALID"),
        (
            "POST",
            "/v3/endpoints",
            '{"endpoint_name": "n", "allowed_functions": ["x"]}',
            422,
            "SEMANTICALLY_INVALID",
        ),
        ("POST", "/v3/functions", '{"function_name": "f"}', 422, "SEMANTICALLY_INVALID"),
        ("POST", "/v2/batch_status", '{"task_ids": ["x"]}', 422, "SEMANTICALLY_INVALID"),
        ("POST", "/v2/batch_status", '{"task_ids": null}', 422, "SEMANTICALLY_INVALID"),
    ],
)
def test_malformed_requests_are_told_what_is_wrong(
    running: Running, method: str, path: str, body: Any, status: int, code: str
) -> None:
    headers = {"Authorization": f"Bearer {running.token()}", "Content-Type": "application/json"}
    answer = requests.request(method, running.url + path, data=body, headers=headers, timeout=5)
    said = answer.json()
    assert (answer.status_code, said["code"]) == (status, code)
    assert said["message"] and "Traceback" not in answer.text


@pytest.mark.parametrize(
    "submission",
    [
        {},
        {"tasks": {}},
        {"tasks": []},
        {"tasks": {"x": ["args"]}},
        {"tasks": {"FUNCTION": []}},
        {"tasks": {"FUNCTION": "args"}},
        {"tasks": {"FUNCTION": [7]}},
        {"tasks": {"FUNCTION": [""]}},
        {"tasks": {"FUNCTION": ["args"]}, "task_group_id": "x"},
        {"tasks": {"FUNCTION": ["args"]}, "user_endpoint_config": 7},
        {"tasks": {"FUNCTION": ["args"]}, "create_queue": "yes"},
    ],
)
def test_malformed_submissions_are_told_what_is_wrong(
    running: Running, submission: dict[str, Any]
) -> None:
    endpoint, function = running.endpoint()["endpoint_id"], running.function()
    filled = json.loads(json.dumps(submission).replace("FUNCTION", function))
    assert refusal(lambda: running.v3().submit(endpoint, filled)) == (422, "SEMANTICALLY_INVALID")
    assert running.later(running.service.store.children, endpoint) == []


@pytest.mark.parametrize("field", ["task_group_id", "function"])
def test_a_submission_for_the_unknown_is_refused(running: Running, field: str) -> None:
    endpoint, function = running.endpoint()["endpoint_id"], running.function()
    submission: dict[str, Any] = {"tasks": {function: ["args"]}, "task_group_id": NOBODY}
    if field == "function":
        submission = {"tasks": {NOBODY: ["args"]}}
    said = refusal(lambda: running.v3().submit(endpoint, submission))
    assert said == (404, "RESOURCE_NOT_FOUND")


def test_sandboxes_of_their_own_ask_with_a_secret(running: Running) -> None:
    url = f"{running.url}/sandbox/endpoints"
    assert requests.get(url, timeout=5).status_code == 401
    (secret,) = running.service.identities.secrets[running.clients[0]]
    headers = {"Authorization": f"Sandbox {secret}"}
    running.endpoint()
    (known,) = requests.get(url, headers=headers, timeout=5).json()
    assert (known["name"], known["status"]) == ("site", "offline")
    assert uuid.UUID(known["id"])
