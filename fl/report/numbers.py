"""What a report shows, as numbers: read from a run's folder, and summed."""

from __future__ import annotations

import bisect
import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from fl.config import Federation
from fl.config_files import read_federation
from fl.errors import FederationError
from fl.history import (
    STATES,
    EndedRound,
    EvaluatedModel,
    History,
    SentTask,
    merit,
    read_history,
)
from fl.server.events import UpdateReceived
from fl.transport import WAYS

PHASES = ("queue", "receive", "train", "send", "wait", "aggregate", "evaluate")
"""What a round's time is divided into, in the order in which a site's update goes through them."""

SERVER = "(server)"
"""The server's row among the sites': no site can have that name."""

SITE_METRICS = (
    "train_loss",
    "val_loss",
    "val_accuracy",
    "val_metric",
    "pre_val_loss",
    "pre_val_accuracy",
    "pre_val_metric",
    "epsilon",
    "local_epsilon",
)
"""What sites measure; see `fl.client.task.train`."""


@dataclass(frozen=True)
class Missing:
    """A round that a site gave nothing to, or was late or lost in.

    Attributes:
        round: Which.
        client_id: Who.
        kind: failed, late or lost.
        reason: Why, in the site's or the server's words.
    """

    round: int
    client_id: str
    kind: str
    reason: str


@dataclass(frozen=True)
class SiteTotals:
    """What a site did over a run.

    Attributes:
        client_id: The site.
        way: How models reach it and updates leave it.
        updates: That were folded in.
        missing: Times that it failed, was late, or was lost.
        bytes_down: Of models that were sent to it.
        bytes_up: Of its updates.
        seconds: Means over its updates, by phase.
        metrics: Of its last update.
    """

    client_id: str
    way: str
    updates: int
    missing: Counter[str]
    bytes_down: int
    bytes_up: int
    seconds: dict[str, float]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One run as a report has it.

    Attributes:
        name: Its folder's.
        history: What its folder says.
        rounds: How many there were to be.
        settings: Every key of its configuration and its value, as text.
        versions: Of what it ran with.
        sites: Its sites' totals.
        missing: Who was late or lost, in their order.
    """

    name: str
    history: History
    rounds: int
    settings: dict[str, str]
    versions: dict[str, str]
    sites: list[SiteTotals]
    missing: list[Missing]

    @property
    def ended(self) -> list[EndedRound]:
        """Its rounds."""
        return self.history.rounds

    @property
    def evaluations(self) -> list[EvaluatedModel]:
        """What its sites found of its models."""
        return self.history.evaluations

    @property
    def state(self) -> str:
        """Whether it goes on, is finished, or neither, in words."""
        return STATES[self.history.state]

    @property
    def ways(self) -> dict[str, list[SiteTotals]]:
        """Its sites by the way that models take to them, of those that were sent one."""
        used = dict.fromkeys(site.way for site in self.sites if site.bytes_down)
        return {way: [site for site in self.sites if site.way == way] for way in used}

    @property
    def seconds(self) -> float:
        """That its rounds took; what lay between two processes of it is not counted."""
        return sum(ended.seconds.get("total", 0.0) for ended in self.ended)

    @property
    def best(self) -> EndedRound | None:
        """The round with the best model by what the server found of it."""
        known = [ended for ended in self.ended if ended.accuracy is not None]
        return max(known, key=lambda ended: merit(ended.accuracy, ended.loss), default=None)

    @property
    def measured(self) -> list[str]:
        """Which of the known metrics its sites sent."""
        sent = {name for ended in self.ended for update in ended.updates for name in update.metrics}
        return [name for name in SITE_METRICS if name in sent]

    @property
    def aggregated(self) -> list[str]:
        """Names of the aggregator's own numbers, such as the epsilon spent."""
        return list(dict.fromkeys(name for ended in self.ended for name in ended.aggregator))

    @property
    def changing(self) -> list[str]:
        """Those of them that differ between rounds."""
        told = {name: {e.aggregator.get(name) for e in self.ended} for name in self.aggregated}
        return [name for name, values in told.items() if len(values) > 1]


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Args:
        folder: The folder.

    Returns:
        The run.

    Raises:
        FederationError: A file in it cannot be read.
    """
    history = read_history(folder)
    federation = read_federation(folder / "config.yaml")
    missing = _missing(history)
    tasks, absent = _by_site(history.tasks), _by_site(missing)
    updates = _by_site(update for ended in history.rounds for update in ended.updates)
    names = [client.client_id for client in federation.clients]
    return Run(
        name=folder.resolve().name,
        history=history,
        rounds=federation.server_configs.num_global_epochs,
        settings=_settings(federation),
        versions=_versions(folder / "versions.json"),
        sites=[_site(name, tasks[name], updates[name], absent[name]) for name in names],
        missing=missing,
    )


def rounds_table(runs: Iterable[Run]) -> str:
    """Every round of every run as CSV: run, round, loss, accuracy, seconds of rounds until then."""
    rows: list[list[Any]] = []
    for run in runs:
        times = accumulate(ended.seconds.get("total", 0.0) for ended in run.ended)
        rows += [
            [run.name, ended.round, _short(ended.loss), _short(ended.accuracy), _short(passed)]
            for ended, passed in zip(run.ended, times, strict=True)
        ]
    return _csv(["run", "round", "loss", "accuracy", "seconds"], rows)


def evaluations_table(runs: Iterable[Run]) -> str:
    """Means of what sites found of every run's models as CSV: run, round, loss, accuracy."""
    rows = [
        [run.name, found.round, _short(found.loss), _short(found.accuracy)]
        for run in runs
        for found in run.evaluations
    ]
    return _csv(["run", "round", "loss", "accuracy"], rows)


def at_sites_table(run: Run) -> str:
    """What each site found of a run's models as CSV: round, site, loss, accuracy."""
    rows = [
        [found.round, name, _short(at_site.loss), _short(at_site.accuracy)]
        for found in run.evaluations
        for name, at_site in found.sites.items()
    ]
    return _csv(["round", "site", "loss", "accuracy"], rows)


def aggregator_table(run: Run) -> str:
    """The aggregator's own numbers as CSV: round, name, number."""
    rows = [
        [ended.round, name, _short(number)]
        for ended in run.ended
        for name, number in ended.aggregator.items()
    ]
    return _csv(["round", "name", "number"], rows)


def metrics_table(run: Run) -> str:
    """Every update's metrics as CSV: round, site, and those of `SITE_METRICS` that there are."""
    measured = run.measured
    rows = [
        [ended.round, update.client_id, *(_short(update.metrics.get(m)) for m in measured)]
        for ended in run.ended
        for update in ended.updates
    ]
    return _csv(["round", "site", *measured], rows)


def spans_table(run: Run) -> str:
    """When each phase began and ended, as CSV: a row an update, and one a round for the server.

    The columns are round, site, `began` and the end of every one of `PHASES`, in seconds from the
    start of the round.
    """
    rows = [
        [ended.round, name, *map(_short, spans)]
        for ended in run.ended
        for name, spans in (
            *((update.client_id, site_spans(update)) for update in ended.updates),
            (SERVER, server_spans(ended)),
        )
    ]
    return _csv(["round", "site", "began", *PHASES], rows)


def missing_table(run: Run) -> str:
    """Who was late, lost or failed as CSV: round, site, kind, reason."""
    rows = [[m.round, m.client_id, m.kind, m.reason] for m in run.missing]
    return _csv(["round", "site", "kind", "reason"], rows)


def bytes_table(run: Run) -> str:
    """Bytes by site as CSV: site, way, direction, bytes."""
    rows = [
        [site.client_id, site.way, direction, size]
        for site in run.sites
        for direction, size in (("models down", site.bytes_down), ("updates up", site.bytes_up))
    ]
    return _csv(["site", "way", "direction", "bytes"], rows)


def site_spans(update: UpdateReceived) -> list[float]:
    """When an update's phases ended.

    A site's clock is its own, so only how long its phases took is known, and when the server sent
    the task and had the answer. What is left of that is taken for time in the queue, although the
    answer's way back is in it.

    Args:
        update: The update.

    Returns:
        When its task was sent, and the ends of those of `PHASES` that a site's update goes through,
        in seconds from the start of the round.
    """
    took = {name: max(seconds, 0.0) for name, seconds in update.seconds.items()}
    receive, send = took.get("get", 0.0), took.get("put", 0.0)
    train = sum(took.values()) - receive - send
    queue = max(update.arrived - update.sent - receive - train - send, 0.0)
    ends = accumulate([queue, receive, train, send], initial=update.sent)
    at_site = [min(end, update.arrived) for end in ends]
    return [*at_site, update.after]


def server_spans(ended: EndedRound) -> list[float]:
    """How long the server did what in a round; it does these things by turns, not one by one.

    Args:
        ended: The round.

    Returns:
        0, and the ends of `PHASES`, each as long as its parts took together. Sending is all that
        there is to do before sites can work: the last round's checkpoint and eviction too.
    """
    took = ended.seconds
    parts: dict[str, Sequence[str]] = {
        "send": ("checkpoint", "evict", "agree", "broadcast", "submit"),
        "wait": ("wait",),
        "aggregate": ("collect", "unmask", "aggregate"),
        "evaluate": ("evaluate",),
    }
    lengths = [sum(took.get(part, 0.0) for part in parts.get(phase, ())) for phase in PHASES]
    return list(accumulate(lengths, initial=0.0))


def _missing(history: History) -> list[Missing]:
    """Who failed, was late or lost: once a round and site, with the most that is known of it."""
    found = {
        (ended.round, failure.client_id): Missing(
            ended.round, failure.client_id, "failed", failure.reason
        )
        for ended in history.rounds
        for failure in ended.failures
    }
    over = history.rounds[-1].round if history.rounds else 0
    found |= {  # of a round that never ended, the log alone knows
        (line.round, line.client_id): Missing(line.round, line.client_id, "failed", line.message)
        for line in history.log
        if line.event == "failed" and line.round is not None and line.round > over
    }
    ends = [ended.at for ended in history.rounds]
    sent: dict[str, float] = {}
    for change in history.changes:
        if change.state == "queued":
            sent[change.client_id] = change.at
        if change.state in ("late", "lost"):
            # A task is called late after the end of the round that it was sent in.
            at = sent.get(change.client_id, change.at) if change.state == "late" else change.at
            key = _round_at(at, history, ends), change.client_id
            reason = change.reason or (found[key].reason if key in found else "")
            found[key] = Missing(*key, change.state, reason)
    return sorted(found.values(), key=lambda missing: missing.round)


def _round_at(at: float, history: History, ends: list[float]) -> int:
    """The round that went on at a time, or the one after the last that ended."""
    index = bisect.bisect_left(ends, at)
    if index < len(history.rounds):
        return history.rounds[index].round
    return history.rounds[-1].round + 1 if history.rounds else 1


Sited = TypeVar("Sited", SentTask, UpdateReceived, Missing)


def _by_site(found: Iterable[Sited]) -> defaultdict[str, list[Sited]]:
    """What there is of each site, in its order."""
    sites: defaultdict[str, list[Sited]] = defaultdict(list)
    for one in found:
        sites[one.client_id].append(one)
    return sites


def _site(
    name: str, tasks: list[SentTask], updates: list[UpdateReceived], absent: list[Missing]
) -> SiteTotals:
    return SiteTotals(
        client_id=name,
        way=_way(tasks[-1].model) if tasks else "-",
        updates=len(updates),
        missing=Counter(missing.kind for missing in absent),
        bytes_down=sum(task.size for task in tasks),
        bytes_up=sum(update.size for update in updates),
        seconds=_mean_seconds(updates),
        metrics=updates[-1].metrics if updates else {},
    )


def _way(model: Mapping[str, Any]) -> str:
    """How a model of this Ref travels, in people's words."""
    name = str(model.get("transport", "inline"))
    return WAYS.get(name, name)


def _mean_seconds(updates: list[UpdateReceived]) -> dict[str, float]:
    """Means by phase, of those that a site's update goes through."""
    if not updates:
        return {}
    totals = dict.fromkeys(PHASES[:5], 0.0)
    for update in updates:
        began, *ends = site_spans(update)
        for phase, start, end in zip(totals, [began, *ends], ends, strict=False):
            totals[phase] += end - start
    return {phase: total / len(updates) for phase, total in totals.items()}


def _settings(federation: Federation) -> dict[str, str]:
    """Every key's path and its value; a client is found by its name, not by its place."""
    tree = federation.model_dump(mode="json")
    tree["clients"] = {client.pop("client_id"): client for client in tree["clients"]}
    return dict(_leaves(tree, ""))


def _leaves(value: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _versions(file: Path) -> dict[str, str]:
    try:
        return {str(name): str(version) for name, version in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise FederationError(f"{file}: cannot be read ({error})") from error


def _short(number: float | None) -> str:
    """A number as a plot needs it: five digits; what is no number is left out."""
    return "" if number is None or not math.isfinite(number) else f"{number:.5g}"


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    return table.getvalue()
