"""The weighted mean of big updates, against Flower's and NVFlare's, and against an axpy.

    python -m benchmarks.sums [MB] [updates]

Claims: eight updates of 400 MB that are all there are averaged 1.5 times as fast as by NVFlare's
helper on torch tensors and 4 times as fast as by Flower, with no more than 64 MB beside the
updates, the first of which becomes the mean; one update at a time is folded in at 95 % of the speed
of an axpy, which moves the same three bytes for each byte of input. Everybody gets the same updates
in memory, a process of its own and the same threads, in turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

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

AXPY = """
total = {name: torch.zeros_like(tensor) for name, tensor in updates[0].items()}

def work():
    for update, weight in zip(updates, weights, strict=True):
        for name, tensor in update.items():
            total[name].add_(tensor, alpha=weight / sum(weights))
    return total

show(lambda result: result["layer.3"][5, 7], work)
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
        "axpy into warm memory": (Path(sys.executable), AXPY),
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
    ours = statistics.median(entry["seconds"] for entry in measured["ours, all at once"])
    print(f"{updates} updates of {megabytes} MB, seconds: median (least to most) of {REPEATS}")
    for name, entries in measured.items():
        seconds = [entry["seconds"] for entry in entries]
        median = statistics.median(seconds)
        rate = int(updates) * int(megabytes) / 1000 / median
        memory = statistics.median(entry["memory"] for entry in entries)
        print(
            f"  {name:22} {median:6.3f} ({min(seconds):.3f} to {max(seconds):.3f}), {rate:4.1f} GB "
            f"of updates/s, {memory:5.0f} MB more; all at once is {median / ours:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
