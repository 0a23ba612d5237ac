"""Time to a target accuracy over sites behind batch queues, in virtual time.

    python -m benchmarks.queue_aware [--sites 4 12 32] [--queues calm bursty] [--seeds 3]
        [--picture FILE.svg]

Claim: where queues vary much, PaceScheduler takes at least 60 % less time than FedAvg, and no more
than FedAsync, FedBuff, FedCompass and FedQueue as published: with eight sites and more under
PaceAggregator, with up to six under LatestAggregator; four reach 43 to 65 %. Calm queues say what
it costs where they do not vary. A dozen sites, the default, take about eight minutes of one
core's time.

The loop, schedulers and aggregators are the product's; queues and speeds are drawn. Digits are
split by class_noniid (beyond ten sites, each of ten parts is shared evenly by several). Every site
trains a perceptron with 32 hidden units by minibatch SGD of one learning rate, written in numpy
because a thousand runs of it take minutes. Every algorithm gets the same tuning: four settings,
each tried on two drawings of a scenario that are not measured; the best is then measured on others.
The time is that of the first of three steps in a row whose model reaches the target on held-out
images.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import altair as alt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from benchmarks import verdict
from fl.client.partition import partition
from fl.client.results import Evaluation
from fl.config import Client, DataConfigs, Federation, ServerConfigs, SharedClientConfigs
from fl.endpoints.virtual import Trained, VirtualSite, VirtualSites
from fl.server.aggregators import open_aggregator
from fl.server.checkpoint import Snapshot
from fl.server.events import RoundEnded
from fl.server.federation import Parts, Server
from fl.server.schedulers import open_scheduler
from fl.transport.memory import MemoryTransport

TARGET = 0.94
IN_A_ROW = 3
LEARNING_RATE = 0.3
BATCH = 32
HIDDEN = 32
GIVE_UP_SECONDS = 1e6
GIVE_UP_UPDATES = 100  # of each site, on average
TRANSFER_SECONDS = 5.0
TUNING_SEEDS = (100, 101)
FEW_SITES = 6
"""Up to which `LatestAggregator` is faster than `PaceAggregator`."""
VARY_MUCH = ("log-normal, high", "bursty", "heavy-tailed")


@dataclass(frozen=True)
class Setting:
    """One way to run one algorithm."""

    scheduler: str
    aggregator: str
    steps: int = 80
    scheduler_kwargs: dict = field(default_factory=dict)
    aggregator_kwargs: dict = field(default_factory=dict)

    def __str__(self) -> str:
        kwargs = {**self.scheduler_kwargs, **self.aggregator_kwargs}
        shown = [f"{name} {value:.3g}" for name, value in kwargs.items()]
        own = {"local_steps", "min_local_steps"} & kwargs.keys()
        return ", ".join(shown if own else [f"steps {self.steps}", *shown])


def grids(sites: int) -> dict[str, list[Setting]]:
    """Four settings of each algorithm for a number of sites."""
    sync = partial(Setting, "SyncScheduler", "FedAvgAggregator")
    each = partial(Setting, "AsyncScheduler", "FedAsyncAggregator")
    buff = partial(Setting, "AsyncScheduler", "FedBuffAggregator")
    compass = partial(Setting, "CompassScheduler", "FedCompassAggregator")
    queue = partial(Setting, "FedQueueScheduler", "FedQueueAggregator")
    pace = partial(Setting, "PaceScheduler", "PaceAggregator")
    latest = partial(Setting, "PaceScheduler", "LatestAggregator")
    # FedBuff's K and server learning rate; alone, an update goes as far as Pace's.
    buffers = [(1, sites**-0.5), (max(2, sites // 4), 1.0)]
    return {
        "FedAvg": [sync(steps) for steps in (40, 80, 160, 320)],
        "FedAsync": [
            each(steps, aggregator_kwargs={"alpha": alpha})
            for steps in (40, 120)
            for alpha in (0.5, 0.9)
        ],
        "FedBuff": [
            buff(steps, aggregator_kwargs={"K": size, "server_learning_rate": rate})
            for steps in (40, 120)
            for size, rate in buffers
        ],
        "FedCompass": [
            compass(
                scheduler_kwargs={
                    "min_local_steps": fewest,
                    "max_local_steps": 5 * fewest,
                    "latest_time_factor": factor,
                }
            )
            for fewest in (20, 80)
            for factor in (1.2, 1.5)
        ],
        "FedQueue": [
            queue(scheduler_kwargs={"cutoff": cutoff, "min_local_steps": fewest})
            for cutoff in (300.0, 1000.0)
            for fewest in (40, 120)
        ],
        "Pace (ours)": [
            latest(scheduler_kwargs={"local_steps": steps, "most": 1.0})
            for steps in (80, 120, 160, 240)
        ]
        if sites <= FEW_SITES
        else [
            pace(
                scheduler_kwargs={"local_steps": steps},
                aggregator_kwargs={"server_learning_rate": rate},
            )
            for steps in (40, 120)
            for rate in (0.7, 1.0)
        ],
    }


class Bursts:
    """A queue that is short for hours and long for hours."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator, self._until = generator, 0.0
        self._long = generator.random() < 0.3

    def __call__(self, moment: float) -> float:
        """The delay of a task that is submitted at a moment."""
        while self._until <= moment:
            self._long = not self._long
            self._until += self._generator.exponential(7200 if self._long else 14400)
        typical = 5400 if self._long else 120
        return typical * math.exp(0.3 * self._generator.normal())


def log_normal(
    generator: np.random.Generator, between: float, within: float
) -> Callable[[float], float]:
    """A queue whose delays vary within the site as they do between sites, in log-seconds."""
    median = 300 * math.exp(between * generator.normal())
    return lambda _moment: median * math.exp(within * generator.normal())


def heavy(generator: np.random.Generator) -> Callable[[float], float]:
    """A queue with Pareto's tail, whose variance is infinite."""
    least = 100 * math.exp(0.5 * generator.normal())
    return lambda _moment: least * (1 + generator.pareto(1.2))


QUEUES: dict[str, Callable[[np.random.Generator], Callable[[float], float]]] = {
    "calm": partial(log_normal, between=0.1, within=0.1),
    "log-normal, low": partial(log_normal, between=0.5, within=0.5),
    "log-normal, high": partial(log_normal, between=1.0, within=1.5),
    "bursty": Bursts,
    "heavy-tailed": heavy,
}


class Perceptron:
    """Training at every site, and evaluation at the server."""

    def __init__(self, sites: int) -> None:
        images, labels = load_digits(return_X_y=True)
        self._images, self._held_images, self._labels, self._held_labels = train_test_split(
            (images / 16).astype(np.float32), labels, test_size=0.2, random_state=0, stratify=labels
        )
        self._targets = np.eye(10, dtype=np.float32)[self._labels]
        parts = partition(self._labels, min(sites, 10), "class_noniid")
        shares = [len(range(index, sites, len(parts))) for index in range(len(parts))]
        self._own = {
            name_of(site): parts[site % len(parts)][site // len(parts) :: shares[site % len(parts)]]
            for site in range(sites)
        }

    def initial(self, seed: int) -> dict[str, torch.Tensor]:
        """A model drawn from a seed."""
        draw = np.random.default_rng(seed).normal
        arrays = {"hidden": draw(0, 0.18, (64, HIDDEN)), "output": draw(0, 0.25, (HIDDEN, 10))}
        return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}

    def evaluate(self, weights: dict[str, torch.Tensor]) -> Evaluation:
        """Accuracy on the held-out images."""
        hidden = np.maximum(self._held_images @ weights["hidden"].numpy(), 0)
        scores = hidden @ weights["output"].numpy()
        right = float((scores.argmax(1) == self._held_labels).mean())
        return Evaluation(0.0, right, len(self._held_labels))

    def steps(self, request: dict, seconds_per_step: float) -> int:  # noqa: ARG002  (no budget in seconds)
        """See `fl.endpoints.virtual.Work`."""
        return request["steps"] or request["train_configs"]["num_local_steps"]

    def train(self, request: dict, weights: dict[str, torch.Tensor], steps: int) -> Trained:
        """See `fl.endpoints.virtual.Work`."""
        own = self._own[request["client_id"]]
        seed = zlib.crc32(f"{request['client_id']}/{request['round']}".encode())
        generator = np.random.default_rng(seed)
        rate = np.float32(LEARNING_RATE * request["learning_rate_scale"])
        moved = {name: tensor.numpy().copy() for name, tensor in weights.items()}
        size, order, at = min(BATCH, len(own)), generator.permutation(own), 0
        for _ in range(steps):
            if at + size > len(own):
                order, at = generator.permutation(own), 0
            batch = order[at : at + size]
            at += size
            descend(moved, self._images[batch], self._targets[batch], rate)
        if request["update"] != "model":
            moved = {name: array - weights[name].numpy() for name, array in moved.items()}
        return Trained({name: torch.from_numpy(w) for name, w in moved.items()}, len(own), {})


@cache
def perceptron(sites: int) -> Perceptron:
    """One a process and number of sites."""
    return Perceptron(sites)


def descend(
    weights: dict[str, np.ndarray], images: np.ndarray, targets: np.ndarray, rate: np.float32
) -> None:
    """One step of SGD on cross-entropy, in place."""
    hidden = images @ weights["hidden"]
    np.maximum(hidden, 0, out=hidden)
    scores = hidden @ weights["output"]
    scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
    error = np.exp(scores, out=scores)
    error /= np.add.reduce(error, axis=1, keepdims=True)
    error -= targets
    error *= rate / len(targets)
    back = error @ weights["output"].T
    back *= hidden > 0
    weights["output"] -= hidden.T @ error
    weights["hidden"] -= images.T @ back


def name_of(site: int) -> str:
    """A site's name."""
    return f"site-{site}"


def seconds_to_target(
    setting: Setting, queue: str, sites: int, seed: int, give_up: float = GIVE_UP_SECONDS
) -> float:
    """Virtual seconds until the target is reached, infinite if it is not."""
    work, transport = perceptron(sites), MemoryTransport()
    world = VirtualSites(places(queue, sites, seed), work, transport, tick=GIVE_UP_SECONDS)
    federation = configured(setting, sites)
    configs = federation.server_configs
    names = [client.client_id for client in federation.clients]
    aggregator = open_aggregator(configs.aggregator, configs.aggregator_kwargs, names)
    reached: list[float] = []
    updates = 0

    def listen(event: object) -> None:
        nonlocal updates
        if isinstance(event, RoundEnded):
            updates += len(event.updates)
            if (event.accuracy or 0.0) < TARGET:
                reached.clear()
            else:
                reached.append(world.now())
            over = world.now() > give_up or updates > GIVE_UP_UPDATES * sites
            if len(reached) == IN_A_ROW or (over and not reached):
                server.stop()

    parts = Parts(
        endpoints=world,
        transport=transport,
        scheduler=open_scheduler(configs, aggregator.updates_per_step),
        aggregator=aggregator,
        clock=world,
        evaluate=work.evaluate,
        listen=listen,
        save=lambda _snapshot: None,
        sent=lambda _task, _model: None,
    )
    server = Server(federation, parts, "simulated")
    server.fit(Snapshot(0, work.initial(seed), {}, {}, {}))
    return reached[0] if len(reached) == IN_A_ROW else math.inf


def places(queue: str, sites: int, seed: int) -> dict[str, VirtualSite]:
    """Sites with drawn queues and speeds: the same for every algorithm."""
    speeds = np.random.default_rng([seed, sites])
    return {
        name_of(site): VirtualSite(
            QUEUES[queue](np.random.default_rng([seed, sites, site])),
            math.exp(0.4 * speeds.normal()),
            TRANSFER_SECONDS,
        )
        for site in range(sites)
    }


def configured(setting: Setting, sites: int) -> Federation:
    """The federation of a setting."""
    data = DataConfigs(dataset_path="digits/data.py", dataset_name="get_digits")
    shared = {
        "train_configs": {"mode": "step", "num_local_steps": setting.steps},
        "model_configs": {"model_path": "digits/model.py", "model_name": "Perceptron"},
    }
    server = {
        "num_clients": sites,
        "num_global_epochs": 10**6,
        "scheduler": setting.scheduler,
        "scheduler_kwargs": setting.scheduler_kwargs,
        "aggregator": setting.aggregator,
        "aggregator_kwargs": setting.aggregator_kwargs,
        "round_deadline": 10 * GIVE_UP_SECONDS,
        "min_clients": sites if setting.scheduler == "SyncScheduler" else 1,
    }
    return Federation(
        client_configs=SharedClientConfigs.model_validate(shared),
        server_configs=ServerConfigs.model_validate(server),
        clients=[
            Client(endpoint_id="local", client_id=name_of(site), data_configs=data)
            for site in range(sites)
        ],
    )


@dataclass(frozen=True)
class Measured:
    """An algorithm in a scenario, tuned."""

    setting: Setting
    seconds: list[float]

    @property
    def median(self) -> float:
        """Of all seeds."""
        return statistics.median(self.seconds)


def measure(algorithm: str, queue: str, sites: int, seeds: int) -> Measured:
    """Tune on drawings that are not measured, then measure."""
    settings = grids(sites)[algorithm]
    best, least = settings[0], math.inf
    for setting in settings:
        total = 0.0
        for seed in TUNING_SEEDS:
            if total < least:
                limit = min(GIVE_UP_SECONDS, least - total)  # beyond that it cannot be the best
                total += seconds_to_target(setting, queue, sites, seed, limit)
        if total < least:
            best, least = setting, total
    return Measured(best, [seconds_to_target(best, queue, sites, seed) for seed in range(seeds)])


def report(queue: str, sites: int, results: dict[str, Measured]) -> None:
    """One scenario's table."""
    fedavg = results["FedAvg"].median
    print(f"\n{queue} queues, {sites} sites: kiloseconds to {TARGET:.0%}")
    print(f"  {'':16}  median  (least to most)    to FedAvg's   setting chosen")
    for name, measured in results.items():
        least, most = min(measured.seconds) / 1000, max(measured.seconds) / 1000
        print(
            f"  {name:16} {measured.median / 1000:7.2f}  ({least:.2f} to {most:.2f})".ljust(46),
            f"{less(measured.median, fedavg):>9}    {measured.setting}",
            flush=True,
        )


def less(seconds: float, others: float) -> str:
    """Time against another's, as what it is more or less."""
    if math.isinf(others):
        return "-" if math.isinf(seconds) else "reached"
    return f"{seconds / others - 1:+.0%}"


def one_thread() -> None:
    """The matrices are small and the processes many."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def main() -> None:
    """All scenarios, and a summary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, nargs="+", default=[12])
    parser.add_argument("--queues", nargs="+", choices=list(QUEUES), default=list(QUEUES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture")
    arguments = parser.parse_args()
    started = time.monotonic()
    summary = []
    with ProcessPoolExecutor(initializer=one_thread) as pool:
        scenarios = [(queue, sites) for queue in arguments.queues for sites in arguments.sites]
        futures = {
            (queue, sites): {
                name: pool.submit(measure, name, queue, sites, arguments.seeds)
                for name in grids(sites)
            }
            for queue, sites in scenarios
        }
        for (queue, sites), found in futures.items():
            results = {name: future.result() for name, future in found.items()}
            report(queue, sites, results)
            summary.append((queue, sites, results))
    if arguments.picture:
        draw(summary, arguments.picture)
    print("\nours against FedAvg, and against the best of the others")
    for queue, sites, results in summary:
        ours = results.pop("Pace (ours)").median
        if queue in VARY_MUCH:
            judge(f"{queue}, {sites} sites", sites, ours, results)
        best = min(results, key=lambda name: results[name].median)
        print(
            f"  {queue:17} {sites:3} sites  {less(ours, results['FedAvg'].median):>6} FedAvg"
            f"  {less(ours, results[best].median):>6} {best}"
        )
    print(f"\n{time.monotonic() - started:.0f} s in all")


def judge(where: str, sites: int, ours: float, others: dict[str, Measured]) -> None:
    """The claims, where queues vary much."""
    fedavg, best = others["FedAvg"].median, min(each.median for each in others.values())
    verdict(f"ours / FedAvg, {where}", ours / fedavg, at_most=0.57 if sites <= 4 else 0.4)
    verdict(f"ours / the best other, {where}", ours / best, at_most=1)


def draw(summary: list[tuple[str, int, dict[str, Measured]]], file: str) -> None:
    """Every drawing's time, a column of panels a kind of queue and a row a number of sites."""
    rows = [
        {"queue": queue, "sites": sites, "algorithm": name, "ks": seconds / 1000}
        for queue, sites, results in summary
        for name, measured in results.items()
        for seconds in measured.seconds
        if math.isfinite(seconds)
    ]
    chart = alt.Chart(width=150, height=110).encode(
        y=alt.Y("algorithm:N", title=None, sort=list(grids(1)))
    )
    seconds: dict[str, Any] = {"title": "kiloseconds", "scale": alt.Scale(type="log")}
    spread = chart.mark_rule().encode(x=alt.X("min(ks):Q", **seconds), x2="max(ks):Q")
    median = chart.mark_point(filled=True, size=60).encode(
        x=alt.X("median(ks):Q", **seconds), color=alt.Color("algorithm:N", legend=None)
    )
    alt.layer(spread, median, data=alt.Data(values=rows)).facet(
        column=alt.Column("queue:N", title=None, sort=list(QUEUES)),
        row=alt.Row("sites:O", title="sites"),
    ).save(file)


if __name__ == "__main__":
    main()
