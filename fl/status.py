"""What a run is doing now, for another terminal and after a crash."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fl.config import Federation
from fl.config_files import read_federation
from fl.history import (
    STATES,
    EvaluatedModel,
    History,
    Owner,
    State,
    StateChange,
    read_history,
    resume_command,
)

ERRORS = 5
"""How many of the last errors are told."""
NAMED = 8
"""How many of the sites that a run waits for are named in its line; the table has all."""


@dataclass(frozen=True)
class SiteStatus:
    """What a site is doing.

    Attributes:
        client_id: The site.
        state: As `fl.server.sites` has it; `ready` too before it was sent its first task.
        since: In Unix seconds; None before its first task of this process.
        reason: Why it is lost, else empty.
    """

    client_id: str
    state: str
    since: float | None
    reason: str


@dataclass(frozen=True)
class Trouble:
    """Something that went wrong.

    Attributes:
        at: When, in Unix seconds.
        client_id: The site; empty for the run itself.
        message: What.
    """

    at: float
    client_id: str
    message: str


@dataclass(frozen=True)
class Status:
    """A run at one moment.

    Attributes:
        run: Its folder.
        state: Whether it goes on.
        owner: The process that has or had it open last.
        round: The latest that was begun, 0 before the first.
        rounds: How many there are to be.
        since: When that round began, in Unix seconds.
        deadline: When it ends at the latest, likewise; None if it has ended.
        done: Rounds that ended.
        loss: Of the last one's model at the server, where that is evaluated.
        accuracy: Likewise.
        at_sites: What sites found of the last model that they evaluated, or None.
        waits_for: What has to happen next.
        sites: All of them; of a run that is not going on, as they were.
        errors: The last ones, the newest last.
        resume: The command that goes on with the run; None unless it `ended`.
    """

    run: str
    state: State
    owner: Owner | None
    round: int
    rounds: int
    since: float | None
    deadline: float | None
    done: int
    loss: float | None
    accuracy: float | None
    at_sites: EvaluatedModel | None
    waits_for: str
    sites: list[SiteStatus]
    errors: list[Trouble]
    resume: str | None


def status(folder: Path) -> Status:
    """Read what a run is doing from its folder.

    Args:
        folder: The run's.

    Returns:
        What it is doing.

    Raises:
        FederationError: A file in the folder cannot be read.
    """
    history = read_history(folder)
    configs = (federation := read_federation(folder / "config.yaml")).server_configs
    state, sites = history.state, _sites(history, federation)
    begun = _begun(history)
    last = history.rounds[-1] if history.rounds else None
    done = last.round if last else 0
    goes_on = begun is not None and begun.number > done
    return Status(
        run=str(folder),
        state=state,
        owner=history.owner,
        round=begun.number if begun and goes_on else done,
        rounds=configs.num_global_epochs,
        since=begun.at if begun and goes_on else None,
        deadline=begun.at + configs.round_deadline if begun and goes_on else None,
        done=done,
        loss=last.loss if last else None,
        accuracy=last.accuracy if last else None,
        at_sites=history.evaluations[-1] if history.evaluations else None,
        waits_for=_waits_for(sites, goes_on) if state == "running" else "",
        sites=sites,
        errors=_errors(history),
        resume=resume_command(folder) if state == "ended" else None,
    )


def show(status: Status, now: float) -> RenderableType:
    """A run for a terminal. What sites said of themselves is text, and moves no cursor.

    Args:
        status: The run.
        now: Unix seconds.

    Returns:
        What rich can print, with `crop=False`: lines outside the table are broken by a terminal
        alone, so that a command in them can be copied.
    """
    lines = [
        f"{status.run}: {STATES[status.state]}",
        *([_by(status.owner, now)] if status.owner else []),
        _done(status),
        *([_at_sites(status.at_sites)] if status.at_sites else []),
        *_round(status, now),
    ]
    if status.waits_for:
        lines.append(f"waits for {status.waits_for}")
    table = Table("site", "state", "since", "reason", box=None, pad_edge=False, header_style="bold")
    for site in status.sites:
        since = "" if site.since is None else _ago(site.since, now)
        table.add_row(*map(plain, (site.client_id, site.state, since, site.reason)))
    errors = [
        f"{_clock(error.at, now)} {error.client_id or 'the run'}: {error.message}"
        for error in status.errors
    ]
    after = ["", "last errors:" if errors else "no errors", *errors]
    if status.resume:
        after += ["", f"to go on with it: {status.resume}"]
    return Group(*map(_line, [*lines, ""]), table, *map(_line, after))


@dataclass(frozen=True)
class _Begun:
    """A round that was begun, and when."""

    number: int
    at: float


def _begun(history: History) -> _Begun | None:
    """The last round that this process began."""
    begun = [
        _Begun(line.round, line.at)
        for line in history.log
        if line.event == "started" and line.round is not None and history.is_latest(line.at)
    ]
    return begun[-1] if begun else None


def _sites(history: History, federation: Federation) -> list[SiteStatus]:
    """Every site's last change; one of an earlier process says nothing of this one's tasks."""
    latest = {
        change.client_id: change for change in history.changes if history.is_latest(change.at)
    }
    return [_site(client.client_id, latest.get(client.client_id)) for client in federation.clients]


def _site(client_id: str, change: StateChange | None) -> SiteStatus:
    if change is None:
        return SiteStatus(client_id, "ready", None, "")
    return SiteStatus(client_id, change.state, change.at, change.reason)


def _waits_for(sites: list[SiteStatus], goes_on: bool) -> str:
    """What has to happen before the round is over."""
    out = [f"{site.client_id} ({site.state})" for site in sites if site.state in _AWAITED]
    if not goes_on or not out:
        return "the server: what it does between sites' answers and the next round's tasks"
    more = len(out) - NAMED
    return ", ".join(out[:NAMED]) + (f" and {more} more" if more > 0 else "")


_AWAITED = ("queued", "training", "lost", "back")


def _errors(history: History) -> list[Trouble]:
    """What went wrong, but for lost steps that were taken again by now."""
    over = {("lost", ended.round) for ended in history.rounds}
    said = [
        Trouble(line.at, line.client_id, line.message)
        for line in history.log
        if line.event != "started" and (line.event, line.round) not in over
    ]
    lost = [
        Trouble(change.at, change.client_id, f"{change.state}: {change.reason}")
        for change in history.changes
        if change.state == "lost"
    ]
    return sorted(said + lost, key=lambda trouble: trouble.at)[-ERRORS:]


def _by(owner: Owner, now: float) -> str:
    return f"process {owner.pid} on {owner.host}, begun at {_ago(owner.since, now)}"


def _done(status: Status) -> str:
    done = f"{status.done} of {status.rounds} rounds done"
    if status.accuracy is not None:
        done += f", accuracy {status.accuracy:.4f}"
    if status.loss is not None:
        done += f", loss {status.loss:.4f}"
    return done


def _at_sites(found: EvaluatedModel) -> str:
    measured = f"accuracy {found.accuracy:.4f}, loss {found.loss:.4f}"
    return f"at {len(found.sites)} sites, the model of round {found.round}: {measured}"


def _round(status: Status, now: float) -> list[str]:
    """The round that goes on, or went on at the end."""
    if status.since is None or status.deadline is None:
        return []
    sent = f"sent out at {_ago(status.since, now)}"
    if status.state != "running":
        return [f"round {status.round} was going on, {sent}"]
    deadline = _clock(status.deadline, now)
    return [f"round {status.round} goes on, {sent}", f"it ends by {deadline}, or fails"]


def _ago(at: float, now: float) -> str:
    seconds = max(now - at, 0.0)
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{_clock(at, now)}, {seconds / size:.0f} {unit} ago"
    return f"{_clock(at, now)}, {seconds:.0f} s ago"


def _clock(at: float, now: float) -> str:
    """Local time with its zone, and the day if that is another: people and sites are in many."""
    then, today = (datetime.fromtimestamp(moment).astimezone() for moment in (at, now))
    return then.strftime("%H:%M:%S %Z" if then.date() == today.date() else "%Y-%m-%d %H:%M:%S %Z")


def plain(text: str) -> Text:
    """Text without control characters, as rich can print it: a site's may hold any.

    Args:
        text: The text.
    """
    return Text(_printable(text), overflow="fold")


def _line(text: str) -> Text:
    return Text(_printable(text), no_wrap=True, overflow="ignore")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
