import json
from pathlib import Path

import pytest

from fl.config import ConfigError, ServerConfigs
from fl.server.schedulers import Limits, View, open_scheduler
from fl.server.schedulers.compass import Compass

SETTINGS = {
    "scheduler": "CompassScheduler",
    "aggregator": "FedCompassAggregator",
    "scheduler_kwargs": {"min_local_steps": 20, "max_local_steps": 100},
}


def test_sites_join_groups_and_are_folded_together(simulate, site):
    # Both do 100 steps first. a answers at 100 and 200; at 250, b (2.5 s a step) joins a's group of
    # 300 with (300 - 250) / 2.5 = 20 steps, and at 300 that of 400 with 40.
    sites = {"a": site(0), "b": site(0, seconds_per_step=2.5)}
    assert simulate(sites, 5, **SETTINGS) == [
        (100, "a0"),
        (200, "a0"),
        (250, "b2"),
        (300, "a1 b0"),
        (400, "a0 b0"),
    ]
    asked = [(name, steps) for name, steps, _ in simulate.asked]
    assert asked == [
        *[("a", 100), ("b", 100), ("a", 100), ("a", 100)],
        *[("b", 20), ("a", 100), ("b", 40)],
    ]
    assert simulate.left == 0


def test_a_group_waits_until_its_latest_arrival_and_who_is_late_comes_alone(simulate, site):
    # As above, but b's second task waits for 200 s: a, there at 300, is folded at 200 + 1.5 * 100.
    sites = {"a": site(0), "b": site(0, 200, seconds_per_step=2.5)}
    assert simulate(sites, 6, **SETTINGS) == [
        (100, "a0"),
        (200, "a0"),
        (250, "b2"),
        (350, "a1"),
        (450, "a0"),
        (500, "b2"),
    ]


def test_a_lost_member_holds_no_group_up(simulate, site):
    sites = {"a": site(0), "b": site(0, seconds_per_step=2.5, offline=[(260, 1000)])}
    settings = SETTINGS | {
        "scheduler_kwargs": {**SETTINGS["scheduler_kwargs"], "latest_time_factor": 50.0}
    }
    trace = simulate(sites, 4, **settings)
    assert trace[:3] == [(100, "a0"), (200, "a0"), (250, "b2")]
    assert trace[3][1] == "a1" and trace[3][0] < 600  # found offline, not waited for till 5200


def test_speeds_survive_a_restart():
    before = Compass(Compass.Settings(), Limits(1, 100))
    before._speeds["a"] = 0.5
    after = Compass(Compass.Settings(), Limits(1, 100))
    after.restore(json.loads(json.dumps(before.state())))
    # Were it not known, its first steps would open no group.
    assert after.assign(View(0, 0, 0, ["a"], idle=["a"]))[0].steps == 100
    assert after._groups[0].times.expected == 50


def test_unordered_steps_are_refused():
    kwargs = {"min_local_steps": 20, "max_local_steps": 10}
    configs = ServerConfigs(
        num_clients=1, num_global_epochs=1, scheduler="CompassScheduler", scheduler_kwargs=kwargs
    )
    with pytest.raises(ConfigError, match="max_local_steps must be at least min_local_steps"):
        open_scheduler(configs, None, file=Path("server.yaml"))
