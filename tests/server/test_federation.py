import math
import resource
import threading
import time
import weakref
from concurrent.futures import Future

import pytest
import torch

from fl.client.results import Evaluation
from fl.compression import compress
from fl.config import CompressorConfigs
from fl.errors import FederationError
from fl.server import checkpoint
from fl.server import round as rounds
from fl.server.aggregators.base import HoldError
from fl.server.checkpoint import CheckpointError, Snapshot
from fl.server.clock import RealClock
from fl.server.events import (
    ClientFailed,
    RoundEnded,
    RoundStarted,
    SiteChanged,
    UpdateReceived,
    Warned,
)
from fl.server.federation import RoundError
from fl.server.schedulers.rounds import Sync
from fl.server.sites import Task
from fl.tensors import decode, encode
from fl.transport.base import Ref, TransportError, UnreachableError
from tests.server.conftest import ScriptedEndpoints, train

NEVER = lambda *_: None  # noqa: E731  (a client that never answers, wherever a script may stand)
BY_TWOS = {
    "scheduler": "AsyncScheduler",
    "aggregator": "FedBuffAggregator",
    "aggregator_kwargs": {"K": 2},
    "min_clients": 1,
}
"""Settings by which every second update is a step."""


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
        (bad(lambda result, _: result["update"].update(digest="0" * 64)), "digest differs"),
        (bad(lambda result, _: result["update"].update(size=2**39)), "its update claims"),
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


@pytest.mark.parametrize("lossy", ["bf16", "fp16", "int8"])
def test_updates_are_read_in_the_format_that_was_asked_for(fit, transport, lossy):
    wanted = {"enable_compression": True, "lossy_compressor": lossy, "param_cutoff": 0}

    def answer(request, transport):
        configs = CompressorConfigs.model_validate(request["compressor_configs"])
        honest = train(1.0)(request, transport)
        ref = Ref.from_json(honest["result"]["update"])
        plain = decode(transport.get(ref))
        transport.evict(ref)
        return replaced(compress(plain, configs))(request, transport)

    fit.shared = {"comm_configs": {"compressor_configs": wanted}}
    result, events = fit({"good": answer, "plain": train(1.0)}, min_clients=1)
    torch.testing.assert_close(result["w"], torch.ones(4))
    (failure,) = of(ClientFailed, events)
    assert failure.client_id == "plain"
    assert "was expected" in failure.reason or "missing" in failure.reason
    assert transport.objects == {}


def test_every_task_has_a_grant_of_the_servers_way(fit, transport):
    transport.grant = lambda size: {"size": size}
    fit({"a": train(1.0), "b": train(1.0)})
    uploads = [request["upload"] for request in fit.endpoints.requests]
    assert len(uploads) == 2
    assert all(upload["size"] > 16 for upload in uploads)


def test_numbers_that_are_not_finite_are_left_out(fit):
    metrics = {"train_loss": float("nan"), "val_loss": 0.5, "note": "text"}
    _, events = fit({"a": train(1.0, metrics=metrics)})
    (update,) = of(UpdateReceived, events)
    assert update.metrics == {"val_loss": 0.5}


def test_a_dead_site_does_not_hold_up_a_round_that_has_its_quorum(fit, transport):
    """Its task never ends; the checks find it offline, and the round goes on without it."""
    fit.prepared = ScriptedEndpoints(transport, {})
    fit.prepared.down = {"b": "endpoint is offline"}
    started = time.monotonic()
    _, events = fit({"a": train(1.0), "b": NEVER}, min_clients=1, round_deadline=600)
    assert time.monotonic() - started < 10
    (failure,) = of(ClientFailed, events)
    assert (failure.client_id, failure.reason) == ("b", "endpoint is offline")


def test_a_site_that_comes_back_within_the_round_is_sent_its_task_again(fit, transport):
    fit.prepared = ScriptedEndpoints(transport, {})
    fit.prepared.down = {"b": "endpoint is offline"}
    attempts = []

    def lost_at_first(request, transport):
        attempts.append(request["job"])
        return None if len(attempts) == 1 else train(3.0)(request, transport)

    def repair(event):
        if isinstance(event, SiteChanged) and (event.client_id, event.state) == ("b", "lost"):
            fit.prepared.down.clear()

    result, events = fit({"a": train(1.0), "b": lost_at_first}, on_event=repair, round_deadline=600)
    torch.testing.assert_close(result["w"], torch.full((4,), 2.0))
    states = [event.state for event in of(SiteChanged, events) if event.client_id == "b"]
    assert states == ["queued", "lost", "back", "queued", "ready"]
    assert [job.rpartition(".")[0] for job in attempts] == ["run.b.1", "run.b.1"]  # the same turn
    assert len(set(attempts)) == 2


def test_a_site_that_is_late_joins_a_later_round_and_holds_none_up(fit, transport):
    """Late in round 1; rounds 2 and 3 do not wait for it."""

    def slow(request, transport):
        return None if request["round"] == 1 else train(1.0)(request, transport)

    started = time.monotonic()
    _, events = fit(
        {"a": train(1.0), "b": slow}, min_clients=1, round_deadline=0.3, num_global_epochs=3
    )
    assert time.monotonic() - started < 1.0
    assert [len(ended.updates) for ended in of(RoundEnded, events)] == [1, 1, 1]


def test_an_update_that_cannot_be_fetched_is_asked_for_again(fit, transport, monkeypatch):
    monkeypatch.setattr("fl.server.waiting.FETCH_PAUSE_SECONDS", 0.05)
    get, tries = transport.get, []

    def interrupted(ref, seconds=math.inf):
        tries.append(ref)
        if 2 < len(tries) < 5:  # the models that "a" and "b" get; then two tries of the server's
            raise UnreachableError("no route to site")
        return get(ref)

    transport.get = interrupted
    result, events = fit({"a": train(1.0), "b": train(3.0)})
    torch.testing.assert_close(result["w"], torch.full((4,), 2.0))
    assert of(ClientFailed, events) == []
    assert transport.objects == {}


def test_a_way_that_is_stuck_keeps_no_round_beyond_its_deadline(fit, transport, monkeypatch):
    """As the server's ProxyStore endpoint while it waits for a dead peer: no get comes back."""
    monkeypatch.setattr("fl.server.updates.LEAST_FETCH_SECONDS", 0.05)
    get, given, models = transport.get, [], []

    def stuck(ref, seconds=math.inf):
        if seconds == math.inf:  # a site's
            return get(ref)
        given.append(seconds)
        if ref.digest == models[0]:
            return get(ref)
        time.sleep(seconds)
        raise UnreachableError("timed out")

    def lucky(request, transport):
        answer = train(1.0)(request, transport)
        models[:] = [answer["result"]["update"]["digest"]]
        return answer

    transport.get = stuck
    clients = {"a": lucky, "b": train(3.0), "c": train(5.0)}
    result, events = fit(clients, min_clients=1, round_deadline=0.5, num_global_epochs=2)
    torch.testing.assert_close(result["w"], torch.full((4,), 2.0))
    assert [len(ended.updates) for ended in of(RoundEnded, events)] == [1, 1]
    assert max(given) <= 0.5
    assert sum(given) < 3.0, "each waits for what those before it have left of the round"


def test_updates_are_evicted_once_the_next_tasks_are_out(fit, transport, monkeypatch):
    """A model that nobody needs goes before."""

    def at_once(_clock, question):
        done = Future()
        done.set_result(question())
        return done

    monkeypatch.setattr(RealClock, "call", at_once)
    held = []
    fit(
        {"a": train(1.0), "b": train(3.0)},
        num_global_epochs=3,
        on_event=lambda event: (
            held.append(len(transport.objects)) if isinstance(event, RoundStarted) else None
        ),
    )
    model, answers = 1, 2
    assert held == [model + answers, model + 2 * answers, model + 2 * answers]
    assert not transport.objects


def test_no_update_is_evicted_before_its_step_is_saved(fit, transport):
    """Whose server dies in the middle of a step needs it again: here one is in the next at once."""
    steps, in_step, evicted = [0], {}, {}
    get, evict = transport.get, transport.evict

    def fetch(ref, seconds=math.inf):
        if seconds < math.inf:  # the server, which waits for no longer than its round
            in_step[ref.key["object"]] = steps[0]
        return get(ref, seconds)

    def forget(ref):
        evicted[ref.key["object"]] = steps[0]
        evict(ref)

    def count(event):
        steps[0] += isinstance(event, RoundEnded)

    transport.get, transport.evict = fetch, forget
    fit(
        {name: train(1.0) for name in "abc"},
        on_event=count,
        num_global_epochs=6,
        **BY_TWOS,
    )
    assert len(in_step) == 12
    assert all(evicted[name] > step for name, step in in_step.items())


def test_an_answer_that_waits_over_a_step_is_asked_for_again_on_resume(fit):
    """The checkpoint has not what waits: whose answer that is, has not answered."""
    fit({name: train(1.0) for name in "abc"}, **BY_TWOS)
    (snapshot,) = fit.snapshots
    assert {name: site.answered for name, site in snapshot.sites.items()} == {
        "a": True,
        "b": True,
        "c": False,
    }


def test_no_round_waits_for_an_object_to_be_evicted(fit, transport):
    evict, over = transport.evict, threading.Event()

    def slow(ref):
        if ref.key["object"] in {"2", "3"}:  # of the first round
            assert over.wait(30)
        evict(ref)

    def end(event):
        if isinstance(event, RoundEnded) and event.round == 3:
            over.set()

    transport.evict = slow
    fit({"a": train(1.0), "b": train(3.0)}, num_global_epochs=3, on_event=end)
    assert not transport.objects


def test_what_cannot_be_evicted_is_told_and_no_other_is_left(fit, transport):
    evict, failed = transport.evict, []

    def unreachable(ref):
        if ref.key["object"] == "2":
            failed.append(ref)
            raise UnreachableError("timed out")
        evict(ref)

    transport.evict = unreachable
    _, events = fit({"a": train(1.0), "b": train(3.0)}, num_global_epochs=3)
    (warned,) = of(Warned, events)
    assert warned.message == "a model was not evicted: timed out"
    assert list(transport.objects) == ["2"]
    assert len(failed) == 1


def test_an_update_that_is_gone_is_trained_again(fit, transport):
    attempts = []

    def forgetful(request, transport):
        answer = train(1.0)(request, transport)
        attempts.append(request["round"])
        if len(attempts) == 1:
            transport.evict(Ref.from_json(answer["result"]["update"]))
        return answer

    result, _ = fit({"a": forgetful})
    torch.testing.assert_close(result["w"], torch.ones(4))
    assert attempts == [1, 1]


def test_a_model_that_the_servers_endpoint_has_lost_is_put_again(fit, transport):
    """Once, however many sites have missed it."""

    def after_a_restart(request, transport):
        if request["model"]["key"] == {"object": "1"}:
            transport.objects.pop("1", None)
            return {"error": {"type": "GoneError", "message": "no longer there", "traceback": ""}}
        return train(1.0)(request, transport)

    result, events = fit({"a": after_a_restart, "b": after_a_restart})
    torch.testing.assert_close(result["w"], torch.ones(4))
    assert of(ClientFailed, events) == []
    assert transport.puts == 2 + 2, "two models, two updates"
    assert transport.objects == {}


def test_the_servers_own_way_is_waited_for(fit, transport):
    put, tries = transport.put, []

    def interrupted(*pieces):
        tries.append(pieces)
        if len(tries) == 1:
            raise UnreachableError("endpoint restarts")
        return put(*pieces)

    transport.put = interrupted
    result, events = fit({"a": train(1.0)})
    torch.testing.assert_close(result["w"], torch.ones(4))
    (warning,) = of(Warned, events)
    assert "endpoint restarts" in warning.message


def test_a_way_that_refuses_the_model_ends_the_run(fit, transport):
    def refuse(*pieces):
        raise TransportError("too large")

    transport.put = refuse
    with pytest.raises(TransportError, match="too large"):
        fit({"a": train(1.0)})


def test_a_round_may_end_with_a_fraction_of_its_sites(fit):
    scripts = {"a": train(1.0), "b": train(1.0), "c": NEVER}
    started = time.monotonic()
    _, events = fit(scripts, min_clients=1, round_deadline=60, scheduler_kwargs={"fraction": 0.6})
    assert time.monotonic() - started < 5
    (failure,) = of(ClientFailed, events)
    assert failure.client_id == "c"


def test_a_share_of_the_sites_is_no_fewer_than_it_says(fit):
    """Half of five are three."""
    scripts = {**dict.fromkeys("ab", train(1.0)), **dict.fromkeys("cde", NEVER)}
    _, events = fit(scripts, min_clients=1, round_deadline=0.5, scheduler_kwargs={"fraction": 0.5})
    (ended,) = of(RoundEnded, events)
    assert {failure.client_id for failure in of(ClientFailed, events)} == {*"cde"}
    assert ended.seconds["total"] >= 0.5, "it waited for a third"


def test_a_checkpoint_of_an_aggregator_that_kept_something_else_is_named(fit):
    begin = Snapshot(1, {"w": torch.zeros(4)}, {"known 0": {"w": torch.zeros(4)}}, {}, {})
    with pytest.raises(FederationError, match=r"known 0 is no state of .*; resume with the"):
        fit({"a": train(1.0)}, start=begin, num_global_epochs=2)


@pytest.mark.parametrize(
    ("deterministic", "order"), [(True, ["a", "b", "c"]), (False, ["c", "b", "a"])]
)
def test_the_order_of_a_sum(fit, transport, deterministic, order):
    """c, b and a answer one after the other."""
    answering = {"c": "b", "b": "a"}

    def resolve(name):
        future, request = fit.endpoints.open[name]
        future.set_result(train(1.0)(request, transport))

    def next_one(event):
        if not isinstance(event, SiteChanged):
            return
        if (event.client_id, event.state) == ("c", "queued"):
            threading.Timer(0.05, resolve, "c").start()
        elif event.state == "ready" and event.client_id in answering:
            threading.Timer(0.05, resolve, answering[event.client_id]).start()

    _, events = fit(
        dict.fromkeys("abc", NEVER),
        on_event=next_one,
        scheduler_kwargs={"deterministic": deterministic},
    )
    assert [update.client_id for update in of(UpdateReceived, events)] == order


def test_a_run_that_was_left_goes_on_to_the_same_bytes(fit, transport):
    scripts = {"a": train(0.1, num_samples=3), "b": train(0.7, num_samples=2)}
    settings = {"aggregator": "FedAdamAggregator", "scheduler_kwargs": {"deterministic": True}}
    whole, _ = fit(scripts, num_global_epochs=6, **settings)
    fit(scripts, num_global_epochs=4, **settings)
    left = fit.snapshots[-1]
    assert left.version == 4
    resumed, events = fit(scripts, start=left, num_global_epochs=6, **settings)
    assert encode(resumed) == encode(whole)
    assert [ended.round for ended in of(RoundEnded, events)] == [5, 6]


def test_the_model_that_a_run_began_with_is_held_by_nobody_once_there_is_another(fit):
    start = Snapshot(0, {"w": torch.zeros(4)}, {"momentum": {"w": torch.ones(4)}}, {}, {})
    held = [weakref.ref(start.weights["w"]), weakref.ref(start.aggregator["momentum"]["w"])]
    alive = []

    def look(event):
        if isinstance(event, RoundStarted):
            alive.append([ref() is not None for ref in held])

    settings = {"aggregator": "FedAvgMAggregator", "num_global_epochs": 2}
    fit({"a": train(1.0)}, start=start, on_event=look, **settings)
    assert alive == [[True, True], [False, False]]


def test_an_optimizers_last_memory_is_held_by_nobody_once_there_is_the_next(fit):
    held = []

    def look(event):
        if isinstance(event, RoundStarted) and event.round == 2:
            held.append(weakref.ref(fit.snapshots.pop().aggregator["momentum"]["w"]))
        if isinstance(event, RoundEnded) and event.round == 2:
            assert held[0]() is None

    settings = {"aggregator": "FedAvgMAggregator", "num_global_epochs": 2}
    fit({"a": train(1.0)}, on_event=look, **settings)
    assert held


def test_turns_go_on_where_a_run_was_left(fit):
    scripts = {"a": train(1.0)}
    fit(scripts, num_global_epochs=2)
    fit(scripts, start=fit.snapshots[-1], num_global_epochs=3)
    assert [request["round"] for request in fit.endpoints.requests] == [3]


def test_stop_ends_the_run_with_its_round(fit):
    def stop(event):
        if isinstance(event, UpdateReceived) and event.round == 2:
            fit.server.stop()

    fit({"a": train(1.0)}, on_event=stop, num_global_epochs=5)
    assert fit.snapshots[-1].version == 2


def test_updates_are_kept_until_the_checkpoint_that_holds_them(fit, transport):
    held = []
    original = fit

    def look(event):
        if isinstance(event, RoundEnded):
            held.append(len(transport.objects))

    original({"a": train(1.0), "b": train(1.0)}, on_event=look)
    assert held == [3]  # the model and two updates
    assert transport.objects == {}


def test_fedasync_steps_at_every_update_and_never_waits(fit):
    scripts = {"a": train(1.0), "b": NEVER}
    _, events = fit(
        scripts,
        scheduler="AsyncScheduler",
        aggregator="FedAsyncAggregator",
        num_global_epochs=4,
        min_clients=1,
        round_deadline=60,
    )
    assert [len(ended.updates) for ended in of(RoundEnded, events)] == [1, 1, 1, 1]
    assert {update.client_id for update in of(UpdateReceived, events)} == {"a"}


def test_an_asynchronous_update_tells_its_staleness(fit):
    """b answers after a has made the server step twice."""

    def answer_b(event):
        if isinstance(event, RoundEnded) and event.round == 2:
            future, request = fit.endpoints.open["b"]
            future.set_result(train(1.0)(request, fit.endpoints.transport))

    _, events = fit(
        {"a": train(1.0), "b": NEVER},
        on_event=answer_b,
        scheduler="AsyncScheduler",
        aggregator="FedAsyncAggregator",
        num_global_epochs=6,
        min_clients=1,
        round_deadline=60,
    )
    late = [update.staleness for update in of(UpdateReceived, events) if update.client_id == "b"]
    assert late == [2]


def test_a_step_that_needs_more_updates_than_came_is_named(fit):
    with pytest.raises(RoundError, match=r"round 1: .*5"):
        fit(
            {"a": train(1.0), "b": train(1.0), "c": NEVER, "d": NEVER, "e": NEVER},
            aggregator="MultiKrumAggregator",
            aggregator_kwargs={"num_byzantine": 1},
            min_clients=2,
            round_deadline=0.2,
        )


def test_a_disk_without_room_for_updates_ends_the_run_and_blames_no_site(fit):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, unlimited[1]))
    try:
        with pytest.raises(HoldError, match=r"an update cannot be held there \(File too large\)"):
            fit({"a": train(1.0), "b": train(1.0)}, aggregator="MedianAggregator")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert not of(ClientFailed, fit.events)


def broken(*_):
    return {"error": {"type": "TrainingError", "message": "no such column", "traceback": ""}}


def recovered(job, answer):
    """What an earlier process sent to `a`, and its answer."""
    future = Future()
    future.set_result(answer)
    return Task("a", 0, 1, job, 0.0, future, recovered=True)


@pytest.mark.parametrize(("group", "left"), [("tasks of a service", 1), (None, 0)])
def test_what_a_run_that_fails_had_of_its_sites_is_there_for_who_goes_on(
    fit, transport, group, left
):
    """Where answers come again: else nobody could ask for the updates."""
    fit.prepared = ScriptedEndpoints(transport, {})
    fit.prepared.group = group
    with pytest.raises(RoundError, match="no such column"):
        fit({"a": train(1.0), "b": broken})
    updates = [decode(update)["w"].tolist() for update in transport.objects.values()]
    assert updates == [[1.0] * 4] * left


def test_a_run_that_goes_on_trains_no_site_again_whose_answer_comes_again(fit, transport):
    fit.prepared = ScriptedEndpoints(transport, {})
    fit.prepared.group = "tasks of a service"
    answers = []

    def keep(request, transport):
        answers.append((request["job"], train(1.0)(request, transport)))
        return answers[0][1]

    with pytest.raises(RoundError, match="no such column"):
        fit({"a": keep, "b": broken})
    task = recovered(*answers[0])
    result, _ = fit({"a": NEVER, "b": train(3.0)}, recovered=[task], round_deadline=30)
    torch.testing.assert_close(result["w"], torch.full((4,), 2.0))
    assert [request["client_id"] for request in fit.endpoints.requests] == ["a", "b", "b"]
    assert transport.objects == {}


def test_what_a_killed_server_had_no_time_to_evict_who_goes_on_evicts(fit, transport, monkeypatch):
    """Killed as soon as its step was saved: the updates in that are asked for no more."""
    with monkeypatch.context() as killed:
        killed.setattr(transport, "evict", lambda ref: None)
        fit({"a": train(1.0), "b": train(3.0)}, num_global_epochs=1)
    left = fit.snapshots[-1]
    updates = {ref["key"]["object"] for ref in left.outlived}
    assert len(updates) == 2
    assert updates < transport.objects.keys()
    fit({"a": train(1.0), "b": train(3.0)}, start=left, num_global_epochs=2)
    assert not updates & transport.objects.keys()


def test_a_run_that_ends_early_for_good_leaves_nothing(fit, transport):
    """It is stopped with updates that wait, and nobody goes on with it."""
    fit.prepared = ScriptedEndpoints(transport, {})
    fit.prepared.group = "tasks of a service"

    def stop(event):
        if isinstance(event, RoundEnded):
            fit.server.stop(final=True)
            fit.server.stop()  # Ctrl-C after it

    fit(
        {name: train(1.0) for name in "abc"},
        on_event=stop,
        num_global_epochs=9,
        **BY_TWOS,
    )
    assert fit.snapshots[-1].version == 1
    assert transport.objects == {}


def test_nothing_is_learnt_of_how_long_a_recovered_task_took(fit, transport, monkeypatch):
    observed = []
    monkeypatch.setattr(Sync, "observe", lambda self, answer: observed.append(answer.client_id))
    fit({"a": train(1.0), "b": train(1.0)})
    assert sorted(observed) == ["a", "b"]
    model = transport.put(encode({"w": torch.zeros(4)}))
    request = {**fit.endpoints.requests[0], "model": model.to_json()}
    task = recovered(request["job"], train(1.0)(request, transport))
    observed.clear()
    _, events = fit({"a": train(1.0), "b": train(1.0)}, recovered=[task])
    assert sorted(update.client_id for update in of(UpdateReceived, events)) == ["a", "b"]
    assert observed == ["b"]


def test_an_update_that_is_too_late_to_weigh_anything_is_no_lie(fit):
    """FedAsync with a weight that falls to nothing: b answers a step too late, again and again."""

    def answer_b(event):
        if isinstance(event, RoundEnded) and "b" in fit.endpoints.open:
            future, request = fit.endpoints.open.pop("b")
            future.set_result(train(1.0)(request, fit.endpoints.transport))

    _, events = fit(
        {"a": train(1.0), "b": NEVER},
        on_event=answer_b,
        scheduler="AsyncScheduler",
        aggregator="FedAsyncAggregator",
        aggregator_kwargs={"staleness_fn": "exponential", "staleness_fn_kwargs": {"beta": 800}},
        num_global_epochs=20,
        min_clients=1,
        round_deadline=60,
    )
    late = [failure for failure in of(ClientFailed, events) if failure.client_id == "b"]
    assert len(late) > 3
    assert all("cannot be weighed" in failure.reason for failure in late)
    assert {failure.rejected for failure in late} == {0}
    assert not [e for e in of(SiteChanged, events) if e.state == "suspended"]


def test_a_large_model_is_put_while_the_step_that_made_it_is_saved(
    fit, transport, tmp_path, monkeypatch
):
    """And sent once it is: a server that dies before goes back to the step before."""
    monkeypatch.setattr(rounds, "LARGE_BYTES", 1)
    fit.file = tmp_path / "checkpoint.safetensors"
    save, put, put_next = checkpoint.save, transport.put, threading.Event()
    sent = []

    def slowly(file, snapshot):
        if snapshot.version == 1:
            assert put_next.wait(10), "the next model is put after the save"
            sent.append(len(fit.endpoints.requests))
        save(file, snapshot)

    def noted(*pieces):
        ref = put(*pieces)
        if transport.puts == 3:  # a model, an update, and the next model
            put_next.set()
        return ref

    monkeypatch.setattr(checkpoint, "save", slowly)
    monkeypatch.setattr(transport, "put", noted)
    result, events = fit({"a": train(1.0)}, num_global_epochs=2)
    torch.testing.assert_close(result["w"], torch.full((4,), 2.0))
    assert sent == [1]
    assert transport.puts == 4 and transport.objects == {}
    assert {"checkpoint", "broadcast"} <= of(RoundEnded, events)[1].seconds.keys()


def test_a_step_that_cannot_be_saved_ends_the_run_whatever_was_put_meanwhile(
    fit, transport, tmp_path, monkeypatch
):
    monkeypatch.setattr(rounds, "LARGE_BYTES", 1)
    fit.file = tmp_path / "checkpoint.safetensors"
    save = checkpoint.save

    def full(file, snapshot):
        if snapshot.version == 1:
            raise CheckpointError("the disk is full")
        save(file, snapshot)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        fit({"a": train(1.0)}, num_global_epochs=2)
    assert transport.objects == {}
    assert len(fit.endpoints.requests) == 1
