import time

import pytest
import torch

from fl.client.trainer import Evaluation
from fl.errors import FederationError
from fl.server import sites
from fl.server.clock import RealClock
from fl.server.events import ClientFailed, RoundEnded, UpdateReceived
from fl.server.federation import RoundError
from fl.tensors import encode
from fl.transport.base import Ref
from tests.server.conftest import ScriptedEndpoints, train

NEVER = lambda *_: None  # noqa: E731  (a client that never answers, wherever a script may stand)


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def test_fedavg_weighs_by_samples(fit, transport):
    result, events = fit({"a": train(1.0, num_samples=3), "b": train(5.0, num_samples=1)})
    torch.testing.assert_close(result["w"], torch.full((4,), 2.0))
    (ended,) = of(RoundEnded, events)
    assert [update.client_id for update in ended.updates] == ["a", "b"]
    assert ended.bytes_up == sum(update.size for update in ended.updates)
    assert transport.objects == {}


def test_equal_weights(fit):
    scripts = {"a": train(1.0, num_samples=3), "b": train(5.0, num_samples=1)}
    result, _ = fit(scripts, aggregator_kwargs={"client_weights_mode": "equal"})
    torch.testing.assert_close(result["w"], torch.full((4,), 3.0))


def test_rounds_build_on_each_other_and_the_model_is_put_once_a_round(fit, transport):
    result, _ = fit({"a": train(1.0), "b": train(1.0)}, num_global_epochs=5)
    torch.testing.assert_close(result["w"], torch.full((4,), 5.0))
    assert transport.puts == 5 * (1 + 2)
    assert transport.objects == {}


def test_the_global_model_is_evaluated_each_round(fit):
    def evaluate(weights):
        return Evaluation(loss=1.0, accuracy=float(weights["w"][0]), num_samples=1)

    _, events = fit({"a": train(0.25)}, evaluate, num_global_epochs=2)
    assert [ended.accuracy for ended in of(RoundEnded, events)] == [0.25, 0.5]


def test_a_client_that_never_answers_ends_at_the_deadline(fit, transport):
    started = time.monotonic()
    with pytest.raises(RoundError, match=r"1 of the 2 updates.*b: no answer within 0\.2 s"):
        fit({"a": train(1.0), "b": NEVER}, round_deadline=0.2)
    assert time.monotonic() - started < 2
    assert transport.objects == {}


def test_with_a_quorum_the_round_goes_on_without_it(fit, transport):
    scripts = {"a": train(1.0), "b": NEVER}
    result, events = fit(scripts, round_deadline=0.2, min_clients=1)
    torch.testing.assert_close(result["w"], torch.ones(4))
    assert [failure.client_id for failure in of(ClientFailed, events)] == ["b"]
    assert transport.objects == {}


def test_an_update_that_comes_late_is_not_used_but_evicted(fit, transport):
    """Late in round 1, answered in round 2: dropped, and the site joins round 2."""
    rounds = []

    def late(request, transport):
        rounds.append(request["round"])
        return None if request["round"] == 1 else train(1.0)(request, transport)

    def answer_late(event):
        if isinstance(event, RoundEnded) and event.round == 1:
            future, first = fit.endpoints.open["b"]
            future.set_result(train(100.0)(first, transport))

    result, events = fit(
        {"a": train(1.0), "b": late},
        on_event=answer_late,
        round_deadline=0.3,
        min_clients=1,
        num_global_epochs=2,
    )
    torch.testing.assert_close(result["w"], torch.full((4,), 2.0))
    assert [len(ended.updates) for ended in of(RoundEnded, events)] == [1, 2]
    assert rounds == [1, 2]
    assert transport.objects == {}


def failing(message):
    def answer(request, transport):
        return {"error": {"type": "DataError", "message": message, "traceback": "Traceback..."}}

    return answer


def raising(request, transport):
    raise OSError("lost")


def test_a_failure_at_a_site_ends_the_round_at_once_when_all_are_needed(fit):
    started = time.monotonic()
    with pytest.raises(RoundError, match="a: no such loader"):
        fit({"a": failing("no such loader"), "b": NEVER}, round_deadline=60)
    assert time.monotonic() - started < 5
    (failure,) = of(ClientFailed, fit.events)
    assert failure.traceback == "Traceback..."


def bad(change):
    """A client whose honest answer is changed."""

    def answer(request, transport):
        honest = train(1.0)(request, transport)
        change(honest["result"], transport)
        return honest

    return answer


def replaced(tensors):
    def change(result, transport):
        transport.evict(Ref.from_json(result["update"]))
        result["update"] = transport.put(encode(tensors)).to_json()

    return bad(change)


def forgotten(result, transport):
    transport.evict(Ref.from_json(result.pop("update")))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (raising, "explained lost"),  # sent three times
        (lambda *_: {"result": "text"}, "no result"),
        (lambda *_: ["list"], "no result"),
        (bad(forgotten), "not a reference"),
        (bad(lambda result, _: result.update(num_samples=-5)), "num_samples is -5"),
        (bad(lambda result, _: result.update(num_samples=True)), "num_samples is True"),
        (bad(lambda result, _: result["update"].update(sha256="0" * 64)), "digest differs"),
        (replaced({"w": torch.zeros(5)}), "w is"),
        (replaced({"w": torch.full((4,), float("inf"))}), "NaN or infinity"),
        (replaced({"v": torch.zeros(4)}), "missing or unknown"),
    ],
)
def test_a_bad_answer_is_named_and_never_summed(fit, transport, script, expected):
    result, events = fit({"good": train(1.0), "bad": script}, min_clients=1)
    torch.testing.assert_close(result["w"], torch.ones(4))
    (failure,) = of(ClientFailed, events)
    assert failure.client_id == "bad"
    assert expected in failure.reason
    assert transport.objects == {}


def test_numbers_that_are_not_finite_are_left_out(fit):
    metrics = {"train_loss": float("nan"), "val_loss": 0.5, "note": "text"}
    _, events = fit({"a": train(1.0, metrics=metrics)})
    (update,) = of(UpdateReceived, events)
    assert update.metrics == {"val_loss": 0.5}


def test_sites_that_are_down_are_named_before_anything_is_sent(federation, transport):
    endpoints = ScriptedEndpoints(transport, {})
    endpoints.down = {"b": "endpoint is offline"}
    clients, clock = federation(["a", "b"]).clients, RealClock()
    with pytest.raises(FederationError, match=r"1 of 2 sites are down.*b: endpoint is offline"):
        sites.require_clients(clients, endpoints, clock, 2)
    sites.require_clients(clients, endpoints, clock, 1)
    clock.close()
