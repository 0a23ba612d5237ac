"""What the round loop holds of an algorithm: updates go in, the next model comes out.

The mathematics are `fl.server.strategies` and `fl.server.robust`; here is what a run of them has to
remember. `docs/algorithms.md` lists them with their settings.
"""

from __future__ import annotations

from fl.server.aggregators.arrivals import FedAsync, FedBuff, FedCompass, FedQueue, Pace
from fl.server.aggregators.base import Aggregator, Contribution, Holding
from fl.server.aggregators.latest import Latest
from fl.server.aggregators.private import DPFedAvg
from fl.server.aggregators.registry import open_aggregator
from fl.server.aggregators.robust import Median, MultiKrum, TrimmedMean
from fl.server.aggregators.rounds import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedYogi,
    Scaffold,
)
from fl.server.aggregators.secure import SecureFedAvg

__all__ = [
    "Aggregator",
    "Contribution",
    "DPFedAvg",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedCompass",
    "FedNova",
    "FedQueue",
    "FedYogi",
    "Holding",
    "Latest",
    "Median",
    "MultiKrum",
    "Pace",
    "Scaffold",
    "SecureFedAvg",
    "TrimmedMean",
    "open_aggregator",
]
