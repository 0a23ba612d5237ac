"""Rounds of secure sums, with sites that drop out of each of their tasks, and sites that lie."""

import base64
import json
import math
import time

import pytest
import torch

from fl.client import masking, task
from fl.client.request import TrainRequest, read
from fl.endpoints.base import EndpointError, EngineError
from fl.secure_sum.fixed_point import MASKED
from fl.secure_sum.keys import (
    SEALED_BYTES,
    Bundle,
    Private,
    _signed,
    advertise,
    identity_of,
    public,
    sign,
)
from fl.server import masking as server_masking
from fl.server import patience
from fl.server.checkpoint import Snapshot
from fl.server.events import ClientFailed
from fl.server.federation import RoundError
from fl.tensors import decode, encode
from fl.transport.base import Ref
from tests.server.conftest import ScriptedEndpoints
from tests.server.conftest import train as in_clear

NAMES = ["a", "b", "c", "d", "e"]
SAMPLES = dict(zip(NAMES, (10, 20, 30, 40, 50), strict=True))
SMALL = ("advertise", "share", "confirm", "unmask")


def delta(name):
    return 0.1 * (1 + NAMES.index(name)) * (-1) ** NAMES.index(name)


def site(name, silent=(), failing=(), change=lambda operation, answer: answer):
    """A site that says nothing when asked for some things, fails at others, or lies."""

    def answer(request, transport):
        operation = request["operation"]
        if operation in silent:
            return None
        if operation in failing:
            return {"error": {"type": "OSError", "message": "disk gone", "traceback": ""}}
        given = (trained if operation == "train" else small)(request, transport)
        return change(operation, given)

    def trained(request, transport):
        weights = decode(transport.get(Ref.from_json(request["model"])))
        update = {key: torch.full_like(tensor, delta(name)) for key, tensor in weights.items()}
        wanted = read(TrainRequest, json.loads(json.dumps(request)))
        tensors = masking.masked(update, wanted, wanted.masking, SAMPLES[name])
        return sent(request, transport, tensors, SAMPLES[name])

    return answer


def sent(request, transport, tensors, num_samples=1):
    update = transport.put(encode(tensors)).to_json()
    told = {"job": request["job"], "update": update, "num_samples": num_samples, "steps": 1}
    return {"result": told}


def small(request, transport):
    return json.loads(json.dumps(task.run(json.loads(json.dumps(request)))))


@pytest.fixture(autouse=True)
def hurried(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(server_masking, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)  # well within that


@pytest.fixture
def weights():
    return {"w": torch.zeros(4), "b": torch.zeros(3).half(), "count": torch.tensor(7)}


@pytest.fixture
def secure(fit):
    """Runs a federation of the five with secure sums; some of them are given."""

    def run(others=None, phase_deadline=0.2, **settings):
        scripts = {name: site(name) for name in NAMES} | (others or {})
        kwargs = {"phase_deadline": phase_deadline, "clip_norm": 10.0}
        kwargs |= settings.pop("aggregator_kwargs", {})
        configured = {"aggregator": "SecureFedAvgAggregator", "aggregator_kwargs": kwargs}
        return fit(scripts, **{**configured, "min_clients": 3, **settings})

    return run


def assert_mean(weights, names):
    """The plain weighted mean, within the rounding that `fl.secure_sum.fixed_point` states."""
    total = sum(SAMPLES[name] for name in names)
    mean = sum(SAMPLES[name] * delta(name) for name in names) / total
    rounding = len(names) * 10.0 / (2**33 * total)
    assert weights["w"].tolist() == pytest.approx([mean] * 4, abs=rounding + 2**-24)
    assert weights["b"].tolist() == pytest.approx([mean] * 3, abs=2**-11)
    assert weights["count"].item() == 7


def failures(events):
    return {event.client_id: event.reason for event in events if isinstance(event, ClientFailed)}


@pytest.mark.parametrize("gone", [[], ["b"], ["b", "e"]], ids=["none", "one", "the most"])
def test_the_sum_is_that_of_a_round_in_clear_whoever_drops_out(secure, fit, transport, gone):
    weights, events = secure({name: site(name, failing=["train"]) for name in gone})
    assert_mean(weights, [name for name in NAMES if name not in gone])
    assert failures(events) == dict.fromkeys(gone, "disk gone")
    assert transport.objects == {}
    clear = {name: in_clear(delta(name), SAMPLES[name]) for name in NAMES if name not in gone}
    plain, _ = fit(clear)
    assert weights["w"].tolist() == pytest.approx(plain["w"].tolist(), abs=1e-7)


def test_one_drop_out_more_is_one_line_and_no_model(secure):
    gone = {name: site(name, failing=["train"]) for name in "bde"}
    with pytest.raises(RoundError, match="round 1 can have 2 of the 3 updates it needs: b: disk"):
        secure(gone)


@pytest.mark.parametrize("operation", ["advertise", "share"])
@pytest.mark.parametrize("way", ["silent", "failing"])
def test_who_does_not_agree_on_masks_is_left_out_of_the_round(secure, fit, operation, way):
    weights, events = secure({"b": site("b", **{way: [operation]})})
    assert_mean(weights, ["a", "c", "d", "e"])
    assert (
        failures(events)["b"]
        == {
            "silent": "no answer to a small task within 0.2 s",
            "failing": "disk gone",
        }[way]
    )
    asked = [request for request in fit.endpoints.requests if request["client_id"] == "b"]
    assert "train" not in {request["operation"] for request in asked}


def test_too_few_that_agree_are_one_line(secure):
    silent = {name: site(name, failing=["advertise"]) for name in "abc"}
    with pytest.raises(RoundError, match=r"of the 3 updates it needs: .*2 sites agreed on masks"):
        secure(silent)


@pytest.mark.parametrize("operation", ["confirm", "unmask"])
@pytest.mark.parametrize("gone", [["b"], ["b", "e"]])
def test_sites_that_do_not_unmask_are_not_needed_while_enough_do(secure, operation, gone):
    weights, _ = secure({name: site(name, silent=[operation]) for name in gone})
    assert_mean(weights, NAMES)


def test_fewer_shares_than_are_needed_unmask_nothing(secure):
    silent = {name: site(name, silent=["unmask"]) for name in "bde"}
    expected = "round 1 cannot be unmasked: 2 sites gave a share of what unmasks a, 3 are needed"
    with pytest.raises(RoundError, match=rf"{expected}.*b: no answer to a small task"):
        secure(silent)


def test_a_site_that_does_not_confirm_is_named_where_shares_are_too_few(secure):
    gone = {"b": site("b", failing=["confirm"]), "d": site("d", silent=["unmask"])}
    expected = "2 sites gave a share of what unmasks a, 3 are needed: "
    with pytest.raises(RoundError, match=rf"{expected}d: no answer.*e: no answer.*b: disk gone"):
        secure({**gone, "e": site("e", silent=["unmask"])})


def test_too_few_that_confirm_are_one_line(secure):
    silent = {name: site(name, failing=["confirm"]) for name in "bde"}
    expected = "2 sites confirmed whose updates are in the sum, 3 are needed: b: disk gone; d: disk"
    with pytest.raises(RoundError, match=f"round 1 cannot be unmasked: {expected}"):
        secure(silent)


@pytest.mark.parametrize(
    "wrong",
    ["0" * 128, "é" * 128, "x", None, 7],
    ids=["zeros", "no digits", "too short", "none", "a number"],
)
def test_a_signature_that_is_wrong_unmasks_nothing_and_costs_nothing(secure, fit, wrong):
    weights, _ = secure({"b": site("b", change=replaced("confirm", signature=wrong))})
    assert_mean(weights, NAMES)
    asked = {r["client_id"]: r for r in fit.endpoints.requests if r["operation"] == "unmask"}
    assert asked.keys() == {"a", "c", "d", "e"} == asked["a"]["signatures"].keys()


def test_a_task_that_is_lost_is_sent_again(secure):
    lost = []

    def once(request, transport):
        if request["operation"] in SMALL and request["operation"] not in lost:
            lost.append(request["operation"])
            raise EndpointError("its worker died")
        return site("b")(request, transport)

    weights, events = secure({"b": once})
    assert_mean(weights, NAMES)
    assert lost == list(SMALL) and failures(events) == {}


def test_a_small_task_is_sent_again_after_a_pause(secure, monkeypatch):
    """What is sent to an engine that has just failed is lost as well."""
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.2)
    failed = []

    def taken_down(request, transport):
        if request["operation"] == "confirm" and (not failed or time.monotonic() < failed[0] + 0.1):
            failed.append(time.monotonic())
            raise EngineError("its engine failed")
        return site("b")(request, transport)

    weights, events = secure({"b": taken_down}, phase_deadline=5.0)
    assert_mean(weights, NAMES)
    assert len(failed) == 1 and failures(events) == {}


def test_a_training_that_is_lost_is_done_again_under_the_same_masks(secure):
    lost = []

    def once(request, transport):
        answer = site("b")(request, transport)  # it has masked its update before it is lost
        if request["operation"] == "train" and not lost:
            lost.append(request)
            raise EndpointError("its worker died")
        return answer

    weights, events = secure({"b": once})
    assert_mean(weights, NAMES)
    assert lost and failures(events) == {}


def test_an_offline_site_is_not_waited_for(secure, fit, transport):
    fit.prepared = ScriptedEndpoints(transport, {})
    fit.prepared.down["b"] = "endpoint is offline"
    weights, events = secure({"b": site("b", silent=["advertise"])}, phase_deadline=60.0)
    assert_mean(weights, ["a", "c", "d", "e"])
    assert failures(events) == {"b": "endpoint is offline"}


@pytest.mark.parametrize(("look", "counts"), [(3, True), (4, False)], ids=["in time", "late"])
def test_a_site_found_offline_has_answered_or_failed_and_never_both(
    secure, fit, transport, look, counts
):
    """Its keys would be shared, and it be in no count. It answers as `b`, or `c`, is looked at."""
    looks = []

    class Looking(ScriptedEndpoints):
        def health(self, client):
            looks.append(client.client_id)
            if len(looks) == look:
                self.answer("b")
            if len(looks) == 4:
                self.answer("c")
            return self.down.get(client.client_id)

        def answer(self, name):
            future, request = self.open.pop(name)
            future.set_result(site(name)(request, self.transport))

    fit.prepared = Looking(transport, {})
    fit.prepared.down["b"] = "endpoint is offline"
    late = {name: site(name, silent=["advertise"]) for name in "bc"}
    weights, events = secure(late, phase_deadline=60.0)
    assert looks[:4] == [*"bcbc"]
    shared = [r["client_id"] for r in fit.endpoints.requests if r["operation"] == "share"]
    assert ("b" in shared) == counts
    assert_mean(weights, NAMES if counts else ["a", "c", "d", "e"])
    assert failures(events) == ({} if counts else {"b": "endpoint is offline"})


def test_every_round_has_keys_of_its_own_and_so_has_a_run_that_is_resumed(secure, fit):
    secure(num_global_epochs=2)
    first = {r["session"] for r in fit.endpoints.requests if r["operation"] == "advertise"}
    start = fit.snapshots[-1]
    resumed = Snapshot(start.version, start.weights, start.aggregator, start.scheduler, start.sites)
    secure(start=resumed, num_global_epochs=3)
    second = {r["session"] for r in fit.endpoints.requests if r["operation"] == "advertise"}
    assert len(first) == 2 and len(second) == 1 and not first & second


def replaced(operation, **parts):
    """A site whose answer to something has other parts."""

    def change(asked, answer):
        return answer if asked != operation else {"result": {**answer["result"], **parts}}

    return change


EVE = Private.draw()
ANY = bytes(32)
"""A site's identity: which one it has, no other site minds unless it lists its peers."""
CLOSED = base64.b64encode(bytes(SEALED_BYTES)).decode()
"""What looks like sealed shares, and opens for nobody."""


def with_keys(choose):
    """A site that chooses keys, knowing the sum's name, signs them, and goes on with them."""

    def change(asked, answer):
        if asked == "share":
            return {"result": {"job": jobs[0], "shares": dict.fromkeys("acde", CLOSED)}}
        if asked != "advertise":
            return answer
        session = answer["result"]["job"].removesuffix(".advertise.b")
        jobs.append(f"{session}.share.b")
        channel, pairwise, own = choose(session)
        keys = {"channel": channel, "pairwise": pairwise, "own": own}
        signature = sign(ANY, _signed(session, "b", *keys.values()))
        bundle = Bundle(identity=identity_of(ANY), signature=signature, **keys)
        return {"result": {**answer["result"], "bundle": bundle.model_dump()}}

    jobs = []
    return change


def one_and_another(index, other):
    """Two good keys, and one that is chosen."""
    good = [public(EVE.channel), public(EVE.pairwise), public(EVE.own)]
    return lambda session: [*good[:index], other(session), *good[index + 1 :]]


def of_a(session):
    run = session.rsplit(".", 2)[0]
    return public(masking._Kept(run, "a", session).private().own)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (replaced("advertise", bundle=None), "has no keys"),
        (replaced("advertise", bundle={"identity": "x"}), "has no keys"),
        (
            replaced("advertise", bundle=advertise(EVE, bytes(32), "s", "b").model_dump()),
            "the keys of b are not signed",
        ),
        (replaced("advertise", job="another"), "of another task"),
        (replaced("share", shares={"a": "x"}), "not a share for every peer"),
        (replaced("share", shares=dict.fromkeys("acde", "x" * 9999)), "shares are none"),
        (replaced("share", shares=dict.fromkeys("acde", 7)), "shares are none"),
        pytest.param(
            with_keys(lambda _session: 3 * [public(EVE.own)]), "has a key twice", id="equal keys"
        ),
        *(
            pytest.param(
                with_keys(one_and_another(index, lambda _session: "00" * 32)),
                "no proper key",
                id=f"{name} of small order",
            )
            for index, name in enumerate(("channel", "pairwise", "own"))
        ),
        pytest.param(
            with_keys(one_and_another(1, of_a)), "one that another has", id="another's key"
        ),
        *(
            pytest.param(
                replaced("share", shares=dict.fromkeys("acde", text)), "shares are none", id=name
            )
            for name, text in (
                ("shares of one letter", "x"),
                ("shares in no base64", "!" * 112),
                ("shares that are too long", "A" * 112),
            )
        ),
    ],
)
def test_answers_are_not_believed(secure, change, expected):
    weights, events = secure({"b": site("b", change=change)})
    assert_mean(weights, ["a", "c", "d", "e"])
    assert expected in failures(events)["b"]


@pytest.mark.parametrize(
    "own",
    [
        dict.fromkeys(NAMES, "1"),
        dict.fromkeys(NAMES, "f" * 66),
        dict.fromkeys(NAMES, "0x1"),
        dict.fromkeys(NAMES, 1),
        {},
        None,
    ],
)
def test_shares_that_are_wrong_are_found_where_others_are_to_spare(secure, own):
    weights, _ = secure({"a": site("a", change=replaced("unmask", own=own))})
    assert_mean(weights, NAMES)


def test_shares_that_are_wrong_spoil_no_model_where_none_is_to_spare(secure):
    lying = site("a", change=replaced("unmask", own=dict.fromkeys(NAMES, "1")))
    gone = {name: site(name, silent=["unmask"]) for name in "de"}
    with pytest.raises(RoundError, match="do not fit its keys: those that it left are wrong"):
        secure({"a": lying, **gone})


def test_who_left_shares_that_do_not_open_is_named(secure):
    """The server sees no more of them than their length."""
    lying = site("b", change=replaced("share", shares=dict.fromkeys("acde", CLOSED)))
    expected = "1 sites gave a share of what unmasks b, 3 are needed: a: the shares that b left"
    with pytest.raises(RoundError, match=expected):
        secure({"b": lying})


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": torch.zeros(4), "b": torch.zeros(3).half(), "count": torch.tensor(7)},
        {MASKED: torch.zeros(8, dtype=torch.int64)},
        {MASKED: torch.zeros(7)},
    ],
    ids=["in clear", "another size", "another type"],
)
def test_an_update_is_masked_or_none(secure, tensors):
    def clear(request, transport):
        if request["operation"] != "train":
            return small(request, transport)
        return sent(request, transport, tensors)

    weights, events = secure({"b": clear})
    assert_mean(weights, ["a", "c", "d", "e"])
    assert "masked" in failures(events)["b"] or "unknown" in failures(events)["b"]


def test_equal_weights_and_a_small_clipping_norm(secure):
    kwargs = {"client_weights_mode": "equal", "clip_norm": 0.1}
    weights, _ = secure(aggregator_kwargs=kwargs)
    norms = [math.sqrt(7) * abs(delta(name)) for name in NAMES]
    clipped = [delta(n) * min(1, 0.1 / size) for n, size in zip(NAMES, norms, strict=True)]
    assert weights["w"].tolist() == pytest.approx([sum(clipped) / 5] * 4, abs=1e-5)
