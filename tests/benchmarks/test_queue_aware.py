"""What is claimed of sites behind queues that vary much."""

import math

import pytest

from benchmarks.queue_aware import Measured, Setting, judge

SETTING = Setting("SyncScheduler", "FedAvgAggregator")


@pytest.mark.parametrize(
    ("sites", "ours", "said"),
    [
        (8, 40.0, ["met", "met"]),
        (8, 41.0, ["missed", "missed"]),
        (4, 41.0, ["met", "missed"]),
        (8, math.inf, ["missed", "missed"]),
    ],
)
def test_ours_is_compared_with_fedavg_and_with_the_best_other(capsys, sites, ours, said):
    others = {"FedAvg": Measured(SETTING, [100.0]), "FedBuff": Measured(SETTING, [40.0])}
    judge("bursty", sites, ours, others)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"claim {word}" for word in said]
