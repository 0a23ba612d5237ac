from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import requests
from globus_sdk import ComputeAPIError

from fl.sandbox.limits import MAX_BODY_BYTES, RateLimit

from .conftest import Running


def test_a_window_admits_so_many_requests_of_each_client() -> None:
    limit = RateLimit(requests=2, window_s=100)
    assert [limit.retry_after_s("a") for _ in range(3)] == [None, None, 100]
    assert limit.retry_after_s("b") is None


def test_a_refused_request_does_not_count() -> None:
    limit = RateLimit(requests=1, window_s=0.2)
    assert limit.retry_after_s("a") is None
    assert limit.retry_after_s("a") == 1
    time.sleep(0.2)
    assert limit.retry_after_s("a") is None


def test_the_hosted_services_limit_is_the_default(serving: Callable[..., Running]) -> None:
    running = serving(limit=RateLimit())
    v2 = running.v2()
    with v2.retry_config.tune(max_retries=0):
        for _ in range(20):
            v2.get_endpoints()
        with pytest.raises(ComputeAPIError) as refused:
            v2.get_endpoints()
        running.v2(client=1).get_endpoints()
        v2.get_version()  # which every Client asks first, is free
    assert (refused.value.http_status, refused.value.code) == (429, "RATE_LIMIT_EXCEEDED")
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 10


def test_the_sdk_waits_as_told_and_goes_on(serving: Callable[..., Running]) -> None:
    v2 = serving(limit=RateLimit(requests=3, window_s=1.0)).v2()
    began = time.monotonic()
    for _ in range(7):
        v2.get_endpoints()
    assert 2 <= time.monotonic() - began < 5


def test_a_megabyte_is_a_million_bytes() -> None:
    """As Globus writes its limit; what passes here is to pass there."""
    assert MAX_BODY_BYTES == 10_000_000


@pytest.mark.parametrize("surplus", [1, 8 * 1024 * 1024, 80 * 1024 * 1024])
def test_a_submit_over_10_mb_is_refused(running: Running, surplus: int) -> None:
    endpoint, function = running.endpoint()["endpoint_id"], running.function()
    frame = len('{"tasks": {"": [""]}}') + len(function)
    payload = "x" * (MAX_BODY_BYTES - frame + surplus)
    with pytest.raises(ComputeAPIError) as refused:
        running.v3().submit(endpoint, {"tasks": {function: [payload]}})
    assert (refused.value.http_status, refused.value.code) == (413, "TASK_PAYLOAD_TOO_LARGE")
    payload = "x" * (MAX_BODY_BYTES - frame)
    running.v3().submit(endpoint, {"tasks": {function: [payload]}})


def test_a_body_of_unknown_length_is_measured(running: Running) -> None:
    endpoint = running.endpoint()["endpoint_id"]
    pieces = (b"x" * 1024 * 1024 for _ in range(12))
    answer = requests.post(
        f"{running.url}/v3/endpoints/{endpoint}/submit",
        data=pieces,
        headers={"Authorization": f"Bearer {running.token()}"},
        timeout=10,
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "TASK_PAYLOAD_TOO_LARGE")
