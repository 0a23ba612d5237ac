"""Site states, with a clock that only moves when something waits."""

from concurrent.futures import Future

import pytest

from fl.endpoints.base import EndpointError, EngineError
from fl.errors import FederationError
from fl.server import patience, sites
from fl.server.events import SiteChanged, Warned
from fl.server.sites import Sites, State

OFFLINE = "endpoint is offline"


class HandClock:
    tick = 1.0

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def wait(self, seconds):
        self.time += max(seconds, 0)

    def wake(self):
        pass

    def call(self, question):
        future = Future()
        try:
            future.set_result(question())
        except FederationError as error:
            future.set_exception(error)
        return future

    def close(self):
        pass


class Endpoints:
    """Hands out futures, and keeps them by client in the order of sending."""

    def __init__(self):
        self.health_of = {}
        self.sent = []

    def submit(self, client, request):
        self.sent.append((client.client_id, request, Future()))
        return self.sent[-1][2]

    def health(self, client):
        health = self.health_of.get(client.client_id)
        if isinstance(health, Exception):
            raise health
        return health

    def explain(self, error):
        return EngineError(str(error))


class World:
    """Two sites, and what happens to them."""

    def __init__(self, clients):
        self.clock, self.endpoints, self.events = HandClock(), Endpoints(), []
        self.sites = Sites(clients, self.endpoints, self.clock, self.events.append, patience=1000)
        self.arrivals = []

    def send(self, name, version=0, job="job"):
        self.sites.send(name, version, job, {"operation": "train"})
        return self.endpoints.sent[-1][2]

    def pass_time(self, seconds):
        """Let the loop wait; what arrives is kept."""
        end = self.clock.time + seconds
        while self.clock.time < end:
            self.arrivals += self.sites.wait(end)
        return self.arrivals

    def state(self, name):
        return self.sites[name].state

    def changes(self, name):
        return [
            event.state
            for event in self.events
            if isinstance(event, SiteChanged) and event.client_id == name
        ]

    def probes(self):
        return [future for _, request, future in self.endpoints.sent if "job" in request]


@pytest.fixture
def world(federation):
    return World(federation(["a", "b"], "3f0b7f0e-5a55-4d0c-8c1e-0d4b6a0f2b11").clients)


def answer(**result):
    return {"result": result}


def failure(kind):
    return {"error": {"type": kind, "message": f"a {kind}", "traceback": ""}}


def test_a_task_that_is_answered_leaves_its_site_ready(world):
    world.send("a").set_result(answer(steps=1))
    (arrival,) = world.pass_time(1)
    assert arrival.outcome == {"steps": 1}
    assert not arrival.repeated
    assert world.changes("a") == ["queued", "ready"]


def test_a_site_that_is_offline_twice_in_a_row_is_lost(world):
    world.send("a")
    world.endpoints.health_of["a"] = OFFLINE
    world.pass_time(sites.CHECK_SECONDS + 2)
    assert world.state("a") is State.QUEUED  # one miss may fall between two heartbeats
    world.pass_time(sites.CHECK_SECONDS + 2)
    assert world.state("a") is State.LOST
    assert world.sites["a"].offline
    assert world.sites["a"].reason == OFFLINE
    assert not world.sites["a"].idle


def test_one_miss_is_forgotten_by_the_next_good_check(world):
    world.send("a")
    world.endpoints.health_of["a"] = OFFLINE
    world.pass_time(sites.CHECK_SECONDS + 2)
    world.endpoints.health_of["a"] = None
    world.pass_time(sites.CHECK_SECONDS + 2)
    world.endpoints.health_of["a"] = OFFLINE
    world.pass_time(sites.CHECK_SECONDS + 2)
    assert world.state("a") is State.QUEUED


def test_a_check_that_was_asked_before_a_loss_brings_no_site_back(world):
    """It was asked of the endpoint as it was: the pause before the next task would be skipped."""
    task = world.send("a")
    while world.sites["a"].check is None:
        world.pass_time(1)
    task.set_result(failure("UnreachableError"))
    world.pass_time(patience.WAY_PAUSE_SECONDS - 2)
    assert world.state("a") is State.LOST
    world.pass_time(4)
    assert world.state("a") is State.BACK


def test_a_check_of_the_task_before_says_nothing_of_the_next(world):
    task = world.send("a")
    world.endpoints.health_of["a"] = OFFLINE
    while world.sites["a"].check is None:
        world.pass_time(1)
    task.set_result(answer())
    world.pass_time(0.5)
    world.send("a", job="next")
    world.pass_time(sites.CHECK_SECONDS - 2)
    assert world.sites["a"].misses == 0


def test_a_lost_site_that_is_online_again_takes_the_same_turn_again(world):
    world.send("a")
    world.endpoints.health_of["a"] = OFFLINE
    world.pass_time(3 * sites.CHECK_SECONDS)
    world.endpoints.health_of["a"] = None
    world.pass_time(2 * sites.CHECK_SECONDS)
    assert world.changes("a") == ["queued", "lost", "back"]
    assert world.sites["a"].idle
    assert world.sites.turn("a", 0) == 1  # its draws are those of the task that was lost
    assert world.sites.turn("a", 1) == 2  # another model, another training


def sent_twice(world, version=0):
    """A task of a site that was taken for lost, and the same turn's again, or a later version's."""
    first = world.send("a", job="first")
    world.endpoints.health_of["a"] = OFFLINE
    world.pass_time(3 * sites.CHECK_SECONDS)
    world.endpoints.health_of["a"] = None
    world.pass_time(2 * sites.CHECK_SECONDS)
    second = world.send("a", version, job="second")
    return first, second


def test_an_answer_that_comes_twice_counts_once(world):
    first, second = sent_twice(world)
    first.set_result(answer(steps=1))  # it was not lost after all
    second.set_result(answer(steps=1))
    world.pass_time(1)
    assert [arrival.repeated for arrival in world.arrivals] == [False, True]


def test_a_late_answer_of_an_earlier_turn_is_not_the_one_that_is_waited_for(world):
    first, second = sent_twice(world, version=1)  # the server has stepped meanwhile
    first.set_result(answer(steps=1))
    world.pass_time(1)
    assert not world.sites["a"].answered
    second.set_result(answer(steps=1))
    world.pass_time(1)
    assert [arrival.repeated for arrival in world.arrivals] == [True, False]


def test_an_answer_whose_update_is_gone_leaves_the_turn_to_its_twin(world):
    first, second = sent_twice(world)
    first.set_result(answer(steps=1))
    world.pass_time(1)
    assert world.sites.lose("a", 1, FederationError("its endpoint has forgotten it")) is None
    second.set_result(answer(steps=1))
    world.pass_time(1)
    assert [arrival.repeated for arrival in world.arrivals] == [False, False]


def test_a_task_that_fails_on_the_way_is_lost_and_its_site_asked_soon(world):
    world.send("a").set_exception(RuntimeError("the worker was killed"))
    assert world.pass_time(3) == []
    assert world.changes("a") == ["queued", "lost", "back"]


def test_a_site_that_loses_its_task_again_and_again_sits_out_until_the_next_step(world):
    for _ in range(patience.ATTEMPTS):
        world.send("a").set_exception(RuntimeError("killed"))
        world.pass_time(10)
    (arrival,) = world.arrivals
    assert str(arrival.outcome) == "killed"
    assert not world.sites["a"].idle
    world.sites.stepped(late=True)
    assert world.sites["a"].idle


def test_a_fault_of_the_sites_code_is_not_tried_again(world):
    world.send("a").set_result(failure("SiteCodeError"))
    (arrival,) = world.pass_time(30)
    assert str(arrival.outcome) == "a SiteCodeError"
    assert world.sites["a"].sits_out


@pytest.mark.parametrize(("kind", "missed"), [("GoneError", True), ("NoPlaceError", False)])
def test_what_another_try_may_mend_is_tried_again(world, kind, missed):
    """A model that went is put again; an upload that a bucket has ended is granted again."""
    world.send("a").set_result(failure(kind))
    assert world.pass_time(3) == []
    assert world.state("a") is State.BACK
    assert (world.sites["a"].missed is not None) == missed


@pytest.mark.parametrize("kind", ["UnreachableError", "BlockEnded"])
def test_a_way_that_is_interrupted_and_a_block_that_ends_are_given_time(world, kind):
    """A dead or deaf endpoint is found by cron within a minute, and may need half a minute more.

    A worker whose block ends takes tasks until it is killed, `block_margin` later.
    """
    waited = []
    for _ in range(patience.WAY_ATTEMPTS - 1):
        world.send("a").set_result(failure(kind))
        since = world.clock.now()
        world.pass_time(patience.WAY_PAUSE_SECONDS / 2)
        assert world.state("a") is State.LOST, "it was asked again at once"
        while world.state("a") is State.LOST:
            assert world.pass_time(1) == []
        waited.append(world.clock.now() - since)
    assert sum(waited) > 60 + 30 + 15
    world.send("a").set_result(failure(kind))
    (arrival,) = world.pass_time(2)
    assert str(arrival.outcome) == f"a {kind}"
    assert world.sites["a"].sits_out


def test_a_way_that_stays_broken_holds_no_later_round_up(world):
    for _ in range(patience.WAY_ATTEMPTS):
        world.send("a").set_result(failure("UnreachableError"))
        while world.state("a") is State.LOST or world.sites["a"].task:
            world.pass_time(1)
    world.sites.stepped(late=False)
    assert world.sites["a"].idle
    world.send("a", version=1).set_result(failure("UnreachableError"))
    world.pass_time(1)
    assert world.sites["a"].sits_out
    world.sites.stepped(late=False)
    world.send("a", version=2).set_result(answer())
    world.pass_time(1)
    world.sites.stepped(late=False)
    assert world.sites["a"].losses == 0, "it is trusted again"


def test_a_service_that_cannot_be_asked_says_nothing_of_its_sites(world):
    world.send("a")
    world.endpoints.health_of["a"] = EndpointError("the service is down")
    world.pass_time(10 * sites.CHECK_SECONDS)
    assert world.state("a") is State.QUEUED
    warnings = [event.message for event in world.events if isinstance(event, Warned)]
    assert warnings == ["waiting for the service: the service is down"]  # once


def test_a_task_that_is_out_for_long_is_looked_for_and_found(world):
    world.send("a", job="job-1")
    world.pass_time(sites.PROBE_SECONDS - 1)
    assert world.probes() == []
    world.pass_time(2)
    (probe,) = world.probes()
    probe.set_result(answer(recorded=True, alive=True))
    world.pass_time(2)
    assert world.state("a") is State.TRAINING


def test_a_job_that_is_gone_from_its_site_is_lost_once_its_answer_had_time_to_come(world):
    world.send("a", job="job-1")
    world.pass_time(sites.PROBE_SECONDS + 1)
    world.probes()[0].set_result(answer(recorded=True, alive=False))
    world.pass_time(2)
    assert world.state("a") is State.QUEUED
    world.pass_time(sites.GRACE_SECONDS + 1)
    assert world.changes("a") == ["queued", "lost"]
    world.pass_time(2)
    assert world.state("a") is State.BACK
    assert world.clock.time < 45


def test_an_answer_in_that_time_is_taken(world):
    task = world.send("a", job="job-1")
    world.pass_time(sites.PROBE_SECONDS + 1)
    world.probes()[0].set_result(answer(recorded=True, alive=False))
    world.pass_time(2)
    task.set_result(answer(steps=1))
    world.pass_time(sites.GRACE_SECONDS + 5)
    assert world.changes("a") == ["queued", "ready"]


def test_an_engine_that_fails_the_probe_has_lost_the_task_too(world):
    """A task that was sent to an engine at its end waits for nobody."""
    world.send("a", job="job-1")
    world.pass_time(sites.PROBE_SECONDS + 1)
    world.probes()[0].set_exception(RuntimeError("sbatch: error: Invalid partition"))
    world.pass_time(1)
    assert world.changes("a") == ["queued", "lost"]
    assert world.sites["a"].reason == "sbatch: error: Invalid partition"


def test_a_task_after_a_lost_one_is_looked_for_sooner(world):
    world.send("a").set_exception(RuntimeError("sbatch: error: Invalid partition"))
    world.pass_time(5)
    world.send("a", job="again")
    world.pass_time(sites.DOUBT_SECONDS + 1)
    assert len(world.probes()) == 1


def test_a_probe_that_could_not_be_sent_says_nothing_of_the_task(world):
    world.send("a", job="job-1")
    world.pass_time(sites.PROBE_SECONDS + 1)
    world.probes()[0].set_exception(EndpointError("the service is down"))
    world.endpoints.explain = lambda error: error
    world.pass_time(5)
    assert world.state("a") is State.QUEUED


def test_a_site_that_cannot_record_jobs_is_not_taken_for_dead(world):
    world.send("a", job="job-1")
    world.pass_time(sites.PROBE_SECONDS + 1)
    world.probes()[0].set_result(answer(recorded=False, alive=False))
    world.pass_time(sites.GRACE_SECONDS + 20)
    assert world.state("a") is State.QUEUED


def test_probes_that_get_no_answer_become_rare(world):
    world.send("a", job="job-1")
    world.pass_time(900)
    assert len(world.probes()) == 4  # after 30, 90, 210, 450 s; then 930


def test_a_site_that_takes_long_is_looked_for_later(world):
    task = world.send("a")
    world.pass_time(100)
    task.set_result(answer(steps=1))
    world.pass_time(1)
    before = len(world.probes())
    world.send("a", job="job-2")
    world.pass_time(199)
    assert len(world.probes()) == before


def test_a_task_is_late_after_its_patience_and_given_up_after_twice_that(world):
    world.send("a")
    world.pass_time(1002)
    assert world.state("a") is State.LATE
    world.pass_time(1002)
    assert world.changes("a") == ["queued", "late", "lost", "back"]
    (lost,) = [change for change in world.events if change.state == "lost"]
    assert lost.reason == "no answer within 2001 s"


def test_what_is_out_when_the_server_steps_is_late_if_it_is_of_no_use(world):
    world.send("a")
    world.sites.stepped(late=True)
    assert world.state("a") is State.LATE
    world.send("b")
    world.sites.stepped(late=False)
    assert world.state("b") is State.QUEUED


def test_a_refused_submit_is_a_lost_task(world):
    def refuse(client, request):
        raise EndpointError("refused")

    world.endpoints.submit, submit = refuse, world.endpoints.submit
    world.sites.send("a", 0, "job", {})
    world.pass_time(3)
    assert world.state("a") is State.BACK
    assert world.changes("a") == ["queued", "lost", "back"]
    world.endpoints.submit = submit


def test_why_a_site_sits_out_is_known_when_what_was_sent_ahead_arrives(world):
    world.sites.enter("a", "ahead")
    world.sites.sit_out("a", "w holds NaN")
    world.endpoints.sent[-1][2].set_result(answer())
    world.pass_time(1)
    assert (world.sites["a"].sits_out, world.sites["a"].reason) == (True, "w holds NaN")
    world.sites.stepped(late=False)
    assert world.sites["a"].idle


def test_a_site_that_is_sent_ahead_is_idle_again_once_a_worker_is_there(world):
    world.sites.enter("a", "ahead")
    assert world.state("a") is State.QUEUED and not world.sites["a"].idle
    world.pass_time(20)
    world.endpoints.sent[-1][2].set_result({"result": {}})
    assert world.pass_time(1) == []  # it is nobody's update
    assert world.sites["a"].idle and world.sites["a"].waited == 20
    world.send("a")
    assert world.sites["a"].task.waited == 20 and world.sites["a"].waited is None
    assert world.sites["a"].turn == 1
