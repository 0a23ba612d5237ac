"""What is evicted, what is kept of it meanwhile, and what a store that is gone costs."""

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fl.server.objects import END_SECONDS, NOTED_CHARACTERS, Objects
from fl.transport import Ref, TransportError, UnreachableError
from tests.server.conftest import MemoryTransport

TRY_SECONDS = 40.0
"""What asking a store takes that is gone."""


class Clock:
    """Time that passes as it is told to; what is called is done at once."""

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def call(self, do):
        done = Future()
        done.set_result(do())
        return done


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def transport():
    return MemoryTransport()


@pytest.fixture
def told():
    return []


@pytest.fixture
def objects(transport, clock, told):
    return Objects(transport, clock, lambda event: told.append(event.message), patience=10.0)


def updates(count):
    return [Ref("memory", {"object": str(number)}, 1, "d") for number in range(count)]


def test_a_run_that_ends_does_not_wait_for_each_object_of_a_store_that_is_gone(
    objects, transport, clock, told
):
    def gone(ref):
        clock.time += TRY_SECONDS
        raise UnreachableError("out of reach")

    transport.evict = gone
    for ref in updates(100):
        objects.done_with(ref)
    objects.ends()
    objects.discard({"update": Ref("memory", {"object": "late"}, 1, "d").to_json()})
    objects.evict_all()
    assert clock.time < END_SECONDS + TRY_SECONDS
    assert told[-1] == "a model was not evicted: 99 more are left: 60 s are over"


@pytest.mark.parametrize("beside", [False, True], ids=["left", "being evicted"])
def test_updates_in_a_store_that_is_gone_keep_no_model_in_the_servers_own(
    objects, transport, clock, beside
):
    clock.call = lambda do: SimpleNamespace(result=do)  # it comes to it as it is waited for
    evict = transport.evict

    def gone(ref):
        if not transport.exists(ref):
            clock.time += TRY_SECONDS
        evict(ref)

    transport.evict = gone
    objects.put_model(3, [b"model"])
    for ref in updates(4):
        objects.done_with(replace(ref, key={"object": f"update {ref.key['object']}"}))
    objects.saved()
    if beside:
        objects.evict_used()
    objects.ends()
    objects.evict_all()
    assert clock.time > END_SECONDS and transport.objects == {}


def test_while_a_run_goes_on_every_object_is_tried(objects, transport, clock):
    asked = []

    def slow(ref):
        clock.time += TRY_SECONDS
        asked.append(ref)

    transport.evict = slow
    for ref in updates(5):
        objects.done_with(ref)
    objects.saved()
    objects.evict_used()
    assert asked == updates(5)


def test_a_checkpoint_keeps_no_reference_that_is_a_site_s_novel(objects):
    """References are JSON inside JSON, of a header that has a limit."""
    novel = Ref("memory", {"object": "0", "more": "x" * NOTED_CHARACTERS}, 1, "d")
    known = Ref("x" * NOTED_CHARACTERS, {"object": "1"}, 1, "d")
    for ref in (novel, known, *updates(1)):
        objects.done_with(ref)
    assert objects.outlived() == [updates(1)[0].to_json()]


def test_an_update_that_came_inside_its_answer_is_not_held(objects, transport):
    """Its reference is all of it."""
    asked = []
    transport.evict = asked.append
    objects.done_with(Ref("inline", {"data": "AAAA"}, 3, "d"))
    assert objects.outlived() == []
    objects.evict_all()
    assert asked == []


def test_what_a_site_says_of_its_update_is_told_cut_short(objects, transport, told):
    def refuse(ref):
        raise TransportError(f"{ref.transport} is another way")

    transport.evict = refuse
    objects.discard({"update": Ref("x" * 100_000, {}, 1, "d").to_json()})
    (message,) = told
    assert message.startswith("a model was not evicted: xxx")
    assert len(message) < 30_000
