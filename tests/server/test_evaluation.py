"""The final model at sites that answer as a test tells them to."""

import threading

import pytest

from fl.errors import FederationError
from fl.server.clock import RealClock
from fl.server.evaluation import at_sites
from fl.server.events import SiteEvaluation
from tests.server.conftest import ScriptedEndpoints


def found(loss, num_samples=10):
    """A site that evaluates what it is sent."""
    return lambda request, _transport: {
        "result": {
            "job": request["job"],
            "loss": loss,
            "accuracy": 0.5,
            "num_samples": num_samples,
        }
    }


@pytest.fixture
def evaluate(federation, transport, weights):
    """Have scripted sites evaluate a model; gives what they found, and what was warned of."""
    clock = RealClock()

    def _evaluate(endpoints):
        configured, warned = federation(list(endpoints.scripts), round_deadline=0.2), []
        evaluated = at_sites(
            configured,
            configured.clients,
            endpoints=endpoints,
            transport=transport,
            clock=clock,
            weights=weights,
            version=3,
            run_id="run",
            base=None,
            sealing=None,
            warn=warned.append,
        )
        assert transport.objects == {}
        return evaluated, warned

    yield _evaluate
    clock.close()


def test_who_is_online_is_asked_of_all_at_once(evaluate, transport):
    """With a hundred sites, one after another would be a hundred round trips in a row."""
    endpoints = ScriptedEndpoints(transport, {"a": found(1.0), "b": found(2.0)})
    met = threading.Barrier(2, timeout=10)

    def health(_client):
        try:
            met.wait()
        except threading.BrokenBarrierError:
            return "it was asked alone"
        return None

    endpoints.health = health
    evaluated, warned = evaluate(endpoints)
    assert warned == []
    assert evaluated.sites == {"a": SiteEvaluation(1.0, 0.5, 10), "b": SiteEvaluation(2.0, 0.5, 10)}


def test_whoever_gives_nothing_is_named_and_holds_no_other_up(evaluate, transport):
    scripts = {name: found(1.0) for name in ("down", "unknown", "liar", "good")}
    endpoints = ScriptedEndpoints(transport, scripts | {"silent": lambda *_: None})
    endpoints.scripts["liar"] = found(1.0, num_samples=-1)

    def health(client):
        if client.client_id == "unknown":
            raise FederationError("the service does not answer")
        return "endpoint is offline" if client.client_id == "down" else None

    endpoints.health = health
    evaluated, warned = evaluate(endpoints)
    assert list(evaluated.sites) == ["good"]
    assert (evaluated.round, evaluated.during, evaluated.num_samples) == (3, 4, 10)
    assert warned == [
        f"{name} does not evaluate the model: {reason}"
        for name, reason in [
            ("down", "endpoint is offline"),
            ("unknown", "the service does not answer"),
            ("liar", "its num_samples is -1"),
            ("silent", "no answer within 0.2 s"),
        ]
    ]


def test_where_nobody_finds_anything_there_is_no_mean(evaluate, transport):
    endpoints = ScriptedEndpoints(transport, {"a": found(1.0)})
    endpoints.down = {"a": "endpoint is offline"}
    assert evaluate(endpoints)[0] is None
