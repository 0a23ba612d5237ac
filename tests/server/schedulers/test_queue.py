import json

import pytest
import torch

from fl.server.aggregators import Contribution, open_aggregator
from fl.server.schedulers import Answer, Limits, View, arrivals
from fl.server.schedulers import queue as schedulers
from fl.server.strategies import pace_close, pace_steps
from fl.transport import Ref

FEDQUEUE = {
    "scheduler": "FedQueueScheduler",
    "aggregator": "FedQueueAggregator",
    "scheduler_kwargs": {"cutoff": 100.0, "margin": 0.0, "min_local_steps": 20},
}
PACE = {
    "scheduler": "PaceScheduler",
    "aggregator": "PaceAggregator",
    "scheduler_kwargs": {"local_steps": 10},
}


def answer(name, queued, seconds, steps):
    ref = Ref("memory", {}, 1, "")
    return Answer(name, 0, 1, ref, 1, steps, {}, {"train": seconds}, 0.0, queued + seconds)


def test_fedqueue_cuts_off_at_115_percent_and_takes_what_is_late_with_its_staleness(simulate, site):
    # a: 20 steps, then the cut-off less the delay that is expected, 1 s, then less. b's first task
    # waits for 300 s: in round 4 it is 3 rounds old, and b does 20 more steps within that round.
    trace = simulate({"a": site(0), "b": site(300, 10)}, 4, **FEDQUEUE)
    assert trace == [(115, "a0"), (214, "a0"), (313, "a0"), (412, "b3 b0 a0")]
    budgets = [(steps, pytest.approx(rate)) for name, steps, rate in simulate.asked if name == "a"]
    assert budgets == [(20, 1.0), (99, 20 / 99), (99, 20 / 99), (99, 20 / 99)]


def test_fedqueue_buffers_what_is_not_admitted(simulate, site):
    # b's delay of 60 s is more than the 2 + 0.2 * 100 s of its admission; then 31 s are expected.
    trace = simulate({"a": site(0), "b": site(60, 0)}, 2, **FEDQUEUE)
    assert trace == [(80, "a0"), (179, "b1 b0 a0")]
    assert ("b", 69) in [(name, steps) for name, steps, _ in simulate.asked]


def test_fedqueue_goes_on_where_nobody_is_admitted(simulate, site):
    assert simulate({"a": site(60, 0)}, 2, **FEDQUEUE) == [(80, "a0"), (149, "a0")]


def test_pace_gives_long_queues_more_steps_and_waits_for_nobody_in_them(simulate, site):
    trace = simulate({"a": site(100), "b": site(100), "c": site(1000)}, 11, **PACE)
    assert trace[:9] == [(110 * n, "a0 b0") for n in range(1, 10)]
    # c trains what is newest at 1000 s, not what was when it was sent.
    assert trace[9:] == [(1040, "c0"), (1100, "a0 b0")]
    assert [steps for name, steps, _ in simulate.asked if name == "c"] == [40]


def test_pace_waits_for_who_is_near_but_not_beyond_the_spread(simulate, site):
    # b's steps follow its wait. At 231 s the server steps, so that b trains on what a did. At 330 a
    # waits for b, expected at 361, and then to the end of b's spread, 0.7 * 55.
    trace = simulate({"a": site(100), "b": site(110, 110, 5000)}, 5, **PACE)
    assert trace == [(110, "a0"), (121, "b0"), (231, "a0"), (241, "b0"), (399.5, "a0")]


def test_pace_steps_by_as_many_as_it_is_told_if_they_can_come(simulate, site):
    settings = {**PACE, "scheduler_kwargs": {"local_steps": 10, "min_updates": 2}}
    trace = simulate({"a": site(100), "b": site(300)}, 2, **settings)
    assert trace[0] == (330, "a0 b0")
    settings["scheduler_kwargs"]["min_updates"] = 3
    assert simulate({"a": site(100), "b": site(300)}, 1, **settings) == [(330, "a0 b0")]


def test_pace_sends_nobody_ahead_where_hardly_any_queue_is_expected():
    scheduler = schedulers.Pace(schedulers.Pace.Settings(), Limits(1, 1000))
    for name, queued in (("calm", 5), ("long", 500)):
        scheduler.observe(answer(name, queued, 40.0, 20))
    names = ["calm", "long", "new", "there"]
    assigned = scheduler.assign(View(0, 1, 0, names, idle=names, entered={"there": 700.0}))
    assert {a.client_id: a.enters for a in assigned} == {
        "calm": False, "long": True, "new": True, "there": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", [schedulers.FedQueue, schedulers.Pace], ids=lambda kind: kind.__name__
)
def test_what_was_learnt_survives_a_restart(kind):
    settings = {schedulers.FedQueue: {"cutoff": 400.0}, schedulers.Pace: {}}[kind]
    build = lambda: kind(kind.Settings(**settings), Limits(1, 1000))  # noqa: E731
    before, after, fresh = build(), build(), build()
    for name, queued in (("a", 10), ("b", 100), ("c", 200)):
        before.observe(answer(name, queued, 40.0, 20))
    after.restore(json.loads(json.dumps(before.state())))
    view = View(0, 1, 0, ["a", "b", "c"], idle=["a", "b", "c"])
    assert after.assign(view) == before.assign(view)
    assert after.assign(view) != fresh.assign(view)


def test_pace_is_hopeless_where_everybody_failed():
    scheduler = schedulers.Pace(schedulers.Pace.Settings(), Limits(1, 1000))
    decision = scheduler.decide(View(5, 0, 0, ["a"], failed={"a": "out of memory"}))
    assert "a: out of memory" in decision.hopeless


def test_pace_steps_follow_the_queue_within_bounds():
    assert [pace_steps(delay, 100, 10) for delay in (50, 100, 200, 5000, 0)] == [5, 10, 20, 40, 2]
    assert pace_steps(0, 0, 10) == 10


def test_pace_closes_where_most_comes_in_a_second():
    assert pace_close(1, 0, 100, []) == 100
    assert pace_close(1, 0, 100, [141]) == 141  # sqrt(2) / 141 > 1 / 100
    assert pace_close(1, 0, 100, [142]) == 100
    assert pace_close(1, 0, 100, [142, 142, 142]) == 142  # a clump
    assert pace_close(1, 0, 100, [50]) == 100  # who is overdue is of no account


def contribution(share, staleness=0):
    return Contribution("a", 1, 1, staleness, share)


def pace():
    return open_aggregator("PaceAggregator", {}, ["a", "b", "c", "d"])


def test_paces_step_goes_by_its_weights_but_never_past_the_mean():
    zero = {"w": torch.zeros(1, dtype=torch.float64)}
    alone = pace()
    alone.add({"w": torch.ones(1, dtype=torch.float64)}, contribution(0.25, staleness=9))
    assert alone.step(zero)["w"].item() == pytest.approx(0.5)  # sqrt(0.25)
    together = pace()
    for value in (1.0, 2.0, 3.0, 4.0):
        together.add({"w": torch.tensor([value], dtype=torch.float64)}, contribution(0.25))
    assert together.step(zero)["w"].item() == pytest.approx(2.5)


def test_fedqueue_closes_when_those_have_answered_whom_a_process_before_it_had_sent(simulate):
    scheduler = schedulers.FedQueue(
        schedulers.FedQueue.Settings(cutoff=100.0), Limits(needed=1, deadline=1000.0)
    )
    waits = View(
        20.0, 0, 0.0, ["a", "b"], idle=["a"], busy={"b": 0}, folded=[answer("a", 1, 10, 9)]
    )
    assert not scheduler.decide(waits).close
    answered = View(20.0, 0, 0.0, ["a"], idle=["a"], folded=[answer("a", 1, 10, 20)])
    assert scheduler.decide(answered).close


def test_a_cutoff_that_no_round_lives_to_is_refused():
    with pytest.raises(ValueError, match=r"cutoff: a round closes at 1.15 times it, 1150 s"):
        schedulers.FedQueue(
            schedulers.FedQueue.Settings(cutoff=1000.0), Limits(needed=1, deadline=1100.0)
        )


def test_a_buffer_that_did_not_fill_says_what_was_in_it():
    scheduler = arrivals.Async(arrivals.Async.Settings(), Limits(1, 100.0, updates_per_step=5))
    have = [answer("a", 1, 1, 1), answer("b", 1, 1, 1), answer("a", 1, 1, 1)]
    decided = scheduler.decide(View(100.0, 0, 0.0, ["a", "b"], busy={"a": 0}, folded=have))
    assert decided.hopeless.startswith("3 of the 5 updates it needs")
