"""A check as people see it: a table that grows as sites answer."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fl.check import Check

MARKS = {"ok": "green", "warning": "yellow", "FAILED": "bold red"}


def show(checks: Iterable[Check], console: Console) -> list[Check]:
    """Show checks as they come: a table on a terminal, lines elsewhere.

    Args:
        checks: The checks.
        console: Where to show them.

    Returns:
        All of them.
    """
    found: list[Check] = []
    if not console.is_terminal:
        for check in checks:
            found.append(check)
            remedy = f"\n  -> {check.remedy}" if check.remedy else ""
            line = f"{check.client_id:12} {check.check:12} {mark(check):8} {check.message}{remedy}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return found
    with Live(screen(found, done=False), console=console) as live:
        for check in checks:
            found.append(check)
            live.update(screen(found, done=False))
        live.update(screen(found, done=True))
    return found


def _told(check: Check) -> RenderableType:
    """What was found, and what to do about it beside an arrow; both as they are."""
    if not check.remedy:
        return Text(check.message)
    remedy = Table.grid(padding=(0, 1))
    remedy.add_column(no_wrap=True)
    remedy.add_column(overflow="fold")
    remedy.add_row(Text("->", MARKS[mark(check)]), Text(check.remedy))
    return Group(Text(check.message), remedy)


def mark(check: Check) -> str:
    """A check's outcome in a word: `ok`, `warning` or `FAILED`."""
    if not check.ok:
        return "FAILED"
    return "warning" if check.remedy else "ok"


def screen(found: list[Check], *, done: bool) -> Group:
    """What a terminal shows: every site's checks together, in the order of their first ones.

    Args:
        found: The checks so far.
        done: Whether those are all.

    Returns:
        The table, with a line below it.
    """
    sites = list(dict.fromkeys(check.client_id for check in found))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("site", "check", "outcome", "seconds", "what was found"):
        # Texts from sites and files are shown as they are, in full.
        table.add_column(
            column, overflow="fold", justify="right" if column == "seconds" else "left"
        )
    for site in sites:
        if site != sites[0]:
            table.add_row()
        for number, check in enumerate(c for c in found if c.client_id == site):
            outcome = Text(mark(check), MARKS[mark(check)])
            name = Text(site if number == 0 else "")
            took = f"{check.seconds:.2f}"
            table.add_row(name, Text(check.check), outcome, took, _told(check))
    return Group(table, Text(f"\n{_summary(found)}" if done else "\nwaiting for the others ..."))


def _summary(found: list[Check]) -> str:
    failed = sum(mark(check) == "FAILED" for check in found)
    warnings = sum(mark(check) == "warning" for check in found)
    return f"{len(found)} checks: {failed} failed, {warnings} warnings"
