import pytest

PACE = {"scheduler": "PaceScheduler", "aggregator": "PaceAggregator"}
COMPASS = {"scheduler": "CompassScheduler", "aggregator": "FedCompassAggregator"}
FEDQUEUE = {
    "scheduler": "FedQueueScheduler",
    "aggregator": "FedQueueAggregator",
    "scheduler_kwargs": {"cutoff": 100.0},
}


def test_a_round_waits_for_a_site_that_comes_back(simulate, site):
    # b is lost at 5 s with its task, seen to be offline, and sent the task again at 200 s or soon.
    sites = {"a": site(0), "b": site(0, offline=[(5, 200)])}
    ((ended, folded),) = simulate(sites, 1, min_clients=2)
    assert folded == "a0 b0" and 210 <= ended < 400
    assert [name for name, _, _ in simulate.asked] == ["a", "b", "b"]


@pytest.mark.parametrize("settings", [PACE, COMPASS, FEDQUEUE], ids=lambda s: s["scheduler"])
def test_the_others_go_on_while_a_site_is_away_and_it_joins_when_it_is_back(
    simulate, site, settings
):
    sites = {"a": site(20), "b": site(20, offline=[(50, 2000)])}
    trace = simulate(sites, 100, **settings)
    away = [folded for moment, folded in trace if 200 < moment < 2000]
    assert len(away) > 5 and all("a" in folded and "b" not in folded for folded in away)
    back = [moment for moment, folded in trace if moment >= 2000 and "b" in folded]
    assert back and back[0] < 2500
    assert simulate.left <= 1  # what a site is still training from
