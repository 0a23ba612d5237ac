"""A server among hostile sites: what is dropped, named and counted, and who is suspended."""

import json
import math
import threading
from concurrent.futures import Future

import pytest
import torch

from fl.endpoints.base import TEXT, SiteError, answer_of
from fl.record import Record
from fl.server.checkpoint import SiteMemory, Snapshot
from fl.server.events import ClientFailed, RoundStarted, SiteChanged, UpdateReceived, Warned
from fl.server.federation import REJECTIONS, RoundError
from fl.server.updates import HEADER_ROOM
from fl.tensors import TensorsError, decode, encode, largest_encoding
from fl.transport.base import LARGEST_BYTES, Ref, TransportError
from tests.server.conftest import train


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def hostile(change):
    """A client whose honest answer is changed: `change(result, request, transport)`."""

    def answer(request, transport):
        honest = train(1.0)(request, transport)
        change(honest["result"], request, transport)
        return honest

    return answer


def replayed():
    """Answers with what it answered first, whatever it is asked."""
    first = []

    def answer(request, transport):
        first.append(train(1.0)(request, transport))
        return first[0]

    return answer


def claims(size):
    return hostile(lambda result, *_: result["update"].update(size=size))


def names_its_tensors(name):
    """An update that decodes, and in which a tensor has such a name."""

    def change(result, request, transport):
        trained = decode(transport.get(Ref.from_json(result["update"])))
        data = encode({**trained, name: torch.zeros(1)})
        result["update"] = transport.put(data).to_json()

    return hostile(change)


def names_the_model(result, request, transport):
    transport.evict(Ref.from_json(result["update"]))
    result["update"] = request["model"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (train(1e6), "its update's norm is 2e+06, over 100 times"),
        (train(float("nan")), "NaN or infinity"),
        (hostile(lambda result, *_: result.update(job="run.b.1.000")), "of another task"),
        (hostile(lambda result, *_: result.pop("job")), "of another task"),
        (claims(2**63), "not a reference"),
        (claims(LARGEST_BYTES), "its update claims 1099511627776 bytes"),
        (hostile(names_the_model), "is the model that it was sent"),
        (hostile(lambda result, *_: result.update(num_samples="\x1b[2J" * 99)), r"\\x1b"),
        (names_its_tensors("\x1b[2J\nround 9: good is lost"), "unknown: ?[2J round 9: good"),
        (names_its_tensors("x" * 30_000), "missing or unknown: xxx"),
    ],
)
def test_what_is_not_believed_is_dropped_named_and_counted(fit, weights, script, expected):
    weights["w"] += 1
    result, events = fit({"good": train(1.0), "bad": script}, min_clients=1)
    torch.testing.assert_close(result["w"], torch.full((4,), 2.0))
    (failure,) = of(ClientFailed, events)
    assert (failure.client_id, failure.rejected) == ("bad", 1)
    reasons = [failure.reason, *(change.reason for change in of(SiteChanged, events))]
    assert all(reason == "" or reason.isprintable() for reason in reasons)
    assert max(map(len, reasons)) <= TEXT
    assert expected.replace(r"\\", "\\") in failure.reason


def test_what_claims_too_much_is_not_asked_for(fit, transport, weights, monkeypatch):
    asked = []
    get = transport.get
    monkeypatch.setattr(transport, "get", lambda ref, *_: asked.append(ref.size) or get(ref))
    most = int(1.01 * largest_encoding(weights)) + HEADER_ROOM
    fit({"good": train(1.0), "bad": claims(most + 1)}, min_clients=1)
    assert max(asked) <= most


@pytest.mark.parametrize("more", [{}, {"url": "another"}], ids=["as it is", "disguised"])
def test_no_site_has_the_model_evicted_that_others_fetch(fit, transport, more):
    """It names the model as its update, in an answer that is refused before another has begun."""

    def evil(request, transport):
        named = request["model"] | {"key": request["model"]["key"] | more, "size": 1}
        return {"result": {"update": named}}

    def begin_now():
        future, request = fit.endpoints.open["b"]
        try:
            future.set_result(train(1.0)(request, transport))
        except Exception as error:  # the model is gone
            future.set_exception(error)

    def begin_later(event):
        if isinstance(event, ClientFailed):
            threading.Timer(0.1, begin_now).start()

    scripts = {"a": evil, "b": lambda *_: None}
    result, _ = fit(scripts, on_event=begin_later, min_clients=1, round_deadline=5)
    torch.testing.assert_close(result["w"], torch.ones(4))
    assert transport.objects == {}


def test_a_replayed_answer_counts_once(fit):
    script = replayed()
    _, events = fit({"good": train(1.0), "bad": script}, min_clients=1, num_global_epochs=2)
    assert [update.client_id for update in of(UpdateReceived, events)].count("bad") == 1
    (failure,) = of(ClientFailed, events)
    assert "of another task" in failure.reason


def test_three_in_a_row_suspend_a_site_for_the_run(fit):
    asked = []

    def bad(request, transport):
        asked.append(request["round"])
        return train(float("inf"))(request, transport)

    result, events = fit({"good": train(1.0), "bad": bad}, min_clients=1, num_global_epochs=6)
    torch.testing.assert_close(result["w"], torch.full((4,), 6.0))
    assert asked == [1, 2, 3]
    assert of(SiteChanged, events)[-1].state == "ready"  # the good one's
    last = [event for event in of(SiteChanged, events) if event.client_id == "bad"][-1]
    assert last.state == "suspended"
    (warning,) = of(Warned, events)
    assert "bad is suspended for the rest of the run: 3 answers in a row" in warning.message
    failures = of(ClientFailed, events)
    assert [failure.rejected for failure in failures] == [1, 2, 3, 0, 0, 0]
    assert all("NaN or infinity" in failure.reason for failure in failures)


def test_what_a_suspended_site_had_sent_before_is_not_used(fit, transport):
    def suspend(event):
        if isinstance(event, RoundStarted):
            fit.server._sites.suspend("bad", "it lied")

    scripts = {"good": train(1.0), "bad": train(5.0)}
    result, events = fit(scripts, on_event=suspend, min_clients=1)
    torch.testing.assert_close(result["w"], torch.ones(4))
    (failure,) = of(ClientFailed, events)
    assert (failure.client_id, failure.reason) == ("bad", "it lied")
    assert transport.objects == {}


def test_one_that_is_believed_between_them_starts_the_count_anew(fit):
    def every_third(request, transport):
        return train(1.0 if request["round"] % 3 == 0 else float("nan"))(request, transport)

    _, events = fit({"good": train(1.0), "bad": every_third}, min_clients=1, num_global_epochs=7)
    assert [failure.rejected for failure in of(ClientFailed, events)] == [1, 2, 1, 2, 1]
    assert of(Warned, events) == []


def test_a_suspended_site_stays_so_when_the_run_is_resumed(fit, weights):
    memory = {"bad": SiteMemory(rejected=REJECTIONS), "good": SiteMemory()}
    start = Snapshot(0, weights, {}, {}, memory)
    scripts = {"good": train(1.0), "bad": train(1.0)}
    _, events = fit(scripts, start=start, min_clients=1)
    assert [update.client_id for update in of(UpdateReceived, events)] == ["good"]
    with pytest.raises(RoundError, match="bad: 3 answers in a row were refused"):
        fit(scripts, start=start)


def test_the_bound_can_be_taken_away(fit, weights):
    weights["w"] += 1
    result, _ = fit({"a": train(1e6)}, norm_bound=None)
    assert result["w"][0] > 1e5


def test_the_count_stands_in_metrics(fit, federation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Record.begin(federation(["good", "bad"]), str(tmp_path), {})
    fit({"good": train(1.0), "bad": train(float("nan"))}, min_clients=1, on_event=record)
    (line,) = (record.folder / "metrics.jsonl").read_text().splitlines()
    (failure,) = json.loads(line)["failures"]
    assert (failure["client_id"], failure["rejected"]) == ("bad", 1)


def test_numbers_that_no_float_holds_are_left_out(fit):
    metrics = {"loss": 10**400, "val_loss": 1, "pre_val_loss": -1.7e308, "epsilon": "4"}
    seconds = {"train": 2, "put": -1.7e308, "get": -1, "load": math.inf}
    _, events = fit({"a": train(1.0, metrics=metrics, seconds=seconds)})
    assert of(UpdateReceived, events)[0].metrics == {"val_loss": 1.0}
    assert of(UpdateReceived, events)[0].seconds == {"train": 2.0}


def test_of_a_sites_metrics_some_are_kept(fit):
    """All are in memory to the run's end, in a file, and on the screen."""
    metrics = {"\ud800": 1, "a\x1b": 1, "x" * 999: 1} | {f"m{index}": 0 for index in range(100_000)}
    _, events = fit({"a": train(1.0, metrics=metrics)})
    assert list(of(UpdateReceived, events)[0].metrics) == [f"m{index}" for index in range(64)]


def test_a_sites_words_do_nothing_to_a_terminal():
    class Done:
        def cancelled(self):
            return False

        def exception(self):
            return None

        def result(self):
            text = "\x1b[2Jgone\r" + "x" * 10**6
            return {"error": {"type": text, "message": text, "traceback": text}}

    with pytest.raises(SiteError) as caught:
        answer_of(Done(), None)
    for text in (str(caught.value), caught.value.kind, caught.value.traceback):
        assert text.startswith("?[2Jgone?x")
        assert len(text) == TEXT


def test_a_sites_message_forges_no_line():
    answer = Future()
    said = {"type": "A\nB", "message": "gone\nround 9: site-b is lost", "traceback": "one\ntwo"}
    answer.set_result({"error": said})
    with pytest.raises(SiteError) as caught:
        answer_of(answer, None)
    assert str(caught.value) == "gone round 9: site-b is lost"
    assert caught.value.kind == "A B"
    assert caught.value.traceback == "one\ntwo"


def test_no_encoding_is_larger_than_the_largest():
    for tensors in (
        {},
        {"w": torch.zeros(3, 5)},
        {f"layer.{n}.é\n": torch.zeros(*[1] * 8) for n in range(50)},
        {"empty": torch.zeros(0, 10**9), "b": torch.zeros(7, dtype=torch.bfloat16)},
    ):
        assert len(encode(tensors)) <= largest_encoding(tensors)


def test_a_header_of_2_63_bytes_in_an_update_is_dropped(fit, weights):
    def header(result, request, transport):
        data = (2**63).to_bytes(8, "little") + b"{}"
        transport.evict(Ref.from_json(result["update"]))
        result["update"] = transport.put(data).to_json()

    _, events = fit({"good": train(1.0), "bad": hostile(header)}, min_clients=1)
    (failure,) = of(ClientFailed, events)
    assert "not a safetensors model of 10 bytes" in failure.reason
    with pytest.raises(TensorsError):
        decode((2**63).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize("size", [2**63, LARGEST_BYTES + 1])
def test_a_reference_of_such_a_size_is_none(size):
    with pytest.raises(TransportError, match="not a reference"):
        Ref.from_json({"transport": "inline", "key": {}, "size": size, "digest": ""})


def test_what_a_site_says_of_its_samples_counts_once_its_update_is_believed(fit):
    """Or one absurd number made the others' shares, and PaceAggregator's steps, next to nothing."""
    settings = {"aggregator": "PaceAggregator", "scheduler": "AsyncScheduler", "min_clients": 1}
    liar = train(float("nan"), num_samples=2**53 - 1)
    moved = []
    for script in (liar, train(float("nan"), num_samples=100)):
        result, events = fit(
            {"good": train(1.0, num_samples=100), "bad": script},
            num_global_epochs=3,
            round_deadline=60,
            **settings,
        )
        assert of(ClientFailed, events)[0].client_id == "bad"
        moved.append(result["w"][0].item())
    assert moved[0] == pytest.approx(moved[1])
    assert moved[0] > 1


def test_a_model_of_before_is_not_evicted_on_a_sites_word_either(fit, transport):
    """It was put again for a site that missed it: another is still to fetch the first."""
    evicted = []

    def evil(request, transport):
        asked = [r for r in fit.endpoints.requests if r["client_id"] == "a"]
        if len(asked) == 1:
            return {"error": {"type": "GoneError", "message": "not here", "traceback": ""}}
        return {"result": {"update": {**asked[0]["model"], "size": 1}}}

    def begin(event):
        if isinstance(event, ClientFailed):
            evicted.append(fit.endpoints.open["b"][1]["model"]["key"]["object"])
            future, request = fit.endpoints.open["b"]
            threading.Timer(0.1, answer, (future, request)).start()

    def answer(future, request):
        try:
            future.set_result(train(1.0)(request, transport))
        except Exception as error:  # the model is gone
            future.set_exception(error)

    scripts = {"a": evil, "b": lambda *_: None}
    fit.prepared = None
    result, _ = fit(scripts, on_event=begin, min_clients=1, round_deadline=20)
    torch.testing.assert_close(result["w"], torch.ones(4))
    assert evicted
