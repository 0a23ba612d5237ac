"""The weighted mean of big updates, against Flower's and NVFlare's, and against an axpy.

    python -m benchmarks.sums [MB] [updates]

Claims: eight updates of 400 MB that are all there are averaged 1.5 times as fast as by NVFlare's
helper on torch tensors and 4 times as fast as by Flower, with no more than 64 MB beside the
updates, the first of which becomes the mean; one update at a time is folded in at 95 % of the speed
of an axpy, which begins in the first update too, and moves the same three bytes for each byte of
the others. Everybody gets the same updates in memory, a process of its own and the same threads, in
turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import verdict
from benchmarks.big_rounds import ratio
from benchmarks.peers import python

REPEATS = 5

# What each is given: `updates`, a list of {name: float32 tensor}, `weights`, and `time_of`.
COMMON = """
import json, resource, sys, time
import torch

megabytes, count = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(2)
rows = megabytes * 250_000 // 10 // 1000
updates = [{f"layer.{i}": torch.randn(rows, 1000) for i in range(10)} for _ in range(count)]
weights = [10.0 * (index + 1) for index in range(count)]
arrays = [[tensor.numpy() for tensor in update.values()] for update in updates]
known = [update["layer.3"][5, 7].item() for update in updates]
expected = sum(w * value for w, value in zip(weights, known, strict=True)) / sum(weights)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

def show(mean, work):
    before = peak()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    assert abs(float(mean(result)) - expected) < 1e-5
    print(json.dumps({"seconds": seconds, "memory": peak() - before}))
"""

OURS = """
from fl.server.aggregation import WeightedMean

def work():
    mean = WeightedMean()
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update, weight)
    return mean.result()

show(lambda result: result["layer.3"][5, 7], work)
"""

ALL = """
from fl.server.aggregation import WeightedMean

def work():
    mean = WeightedMean()
    mean.add_all(list(zip(updates, weights, strict=True)))
    return mean.result()

show(lambda result: result["layer.3"][5, 7], work)
"""

# The sum in the first's weight: to scale it in the end would be one pass more than the limit needs.
AXPY = """
def work():
    total = updates[0]
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        for name, tensor in update.items():
            total[name].add_(tensor, alpha=weight / weights[0])
    return total

show(lambda result: result["layer.3"][5, 7] * weights[0] / sum(weights), work)
"""

FLOWER = """
from flwr.server.strategy.aggregate import aggregate

work = lambda: aggregate(list(zip(arrays, [int(weight) for weight in weights], strict=True)))
show(lambda result: result[3][5, 7], work)
"""

FLOWER_RECORDS = """
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

records = [
    RecordDict({"arrays": ArrayRecord({n: Array(t.numpy()) for n, t in update.items()}),
                "metrics": MetricRecord({"num-examples": weight})})
    for update, weight in zip(updates, weights, strict=True)
]
work = lambda: aggregate_arrayrecords(records, "num-examples")
show(lambda result: result["layer.3"].numpy()[5, 7], work)
"""

NVFLARE = """
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

def work():
    helper = WeightedAggregationHelper()
    for index, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        helper.add(update, weight, f"site-{index}", 0)
    return helper.get_result()

show(lambda result: result["layer.3"][5, 7], work)
"""


def main() -> None:
    """Measure all in turns."""
    megabytes, updates = (sys.argv[1:] + ["400", "8"][len(sys.argv) - 1 :])[:2]
    theirs = python()
    contestants = {
        "ours, one at a time": (Path(sys.executable), OURS),
        "ours, all at once": (Path(sys.executable), ALL),
        "axpy, into the first": (Path(sys.executable), AXPY),
        "NVFlare helper, torch": (theirs, NVFLARE),
        "Flower aggregate": (theirs, FLOWER),
        "Flower ArrayRecords": (theirs, FLOWER_RECORDS),
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, (interpreter, code) in contestants.items():
            command = [str(interpreter), "-c", COMMON + code, megabytes, updates]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured[name].append(json.loads(told.splitlines()[-1]))
    print(f"{updates} updates of {megabytes} MB, seconds: median (least to most) of {REPEATS}")
    report(measured, int(updates) * int(megabytes) / 1000)


def report(measured: dict[str, list[dict[str, float]]], gigabytes: float) -> None:
    """A row for each, and the claims."""
    seconds = {name: [entry["seconds"] for entry in told] for name, told in measured.items()}
    memory = {
        name: statistics.median(entry["memory"] for entry in told)
        for name, told in measured.items()
    }
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours, single = "ours, all at once", "ours, one at a time"
    for name, times in seconds.items():
        print(
            f"  {name:22} {medians[name]:6.3f} ({min(times):.3f} to {max(times):.3f}), "
            f"{gigabytes / medians[name]:4.1f} GB of updates/s, {memory[name]:5.0f} MB more; "
            f"all at once is {medians[name] / medians[ours]:.2f} times as fast"
        )
    axpy = "axpy, into the first"
    print(f"  axpy / one at a time: {ratio(seconds[axpy], seconds[single])}")
    flower = min(medians["Flower aggregate"], medians["Flower ArrayRecords"])
    verdict("NVFlare / all at once", medians["NVFlare helper, torch"] / medians[ours], at_least=1.5)
    verdict("the faster of Flower's / all at once", flower / medians[ours], at_least=4)
    verdict("MB beside the updates", max(memory[ours], memory[single]), at_most=64)
    verdict("axpy / one at a time, of medians", medians[axpy] / medians[single], at_least=0.95)


if __name__ == "__main__":
    main()
