"""What a person sees while a run goes on: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fl.server.events import (
    ClientFailed,
    Event,
    RoundEnded,
    RoundStarted,
    SiteChanged,
    SitesEvaluated,
    UpdateReceived,
    Warned,
)

STYLES = {"failed": "bold red", "lost": "bold red", "suspended": "bold red", "late": "yellow"}
"""How a site's state is shown that somebody may have to do something about."""
SHOWN = 10
"""Rounds that a terminal shows, the last ones."""
GAP = 3
"""Blanks between sites."""


class Progress:
    """Listens to the round loop and shows it.

    Args:
        rounds: Rounds in all.
        clients: Client names, in order.
        console: Where to print; a terminal gets the table, anything else gets lines.
    """

    def __init__(self, rounds: int, clients: list[str], console: Console) -> None:
        self._rounds = rounds
        self._console = console
        self._states = dict.fromkeys(clients, "")
        self._history: list[RoundEnded] = []
        self._round = 0
        # It asks for a screen a few times a second; of many sites there are many more events.
        live = Live(get_renderable=self.screen, console=console) if console.is_terminal else None
        self._live = live

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case RoundStarted():
                self._round = event.round
            case SiteChanged():
                self._states[event.client_id] = event.state
                if event.state in ("lost", "back"):
                    reason = f" ({event.reason})" if event.reason else ""
                    self._say(f"round {self._round}: {event.client_id} is {event.state}{reason}")
            case UpdateReceived():
                self._states[event.client_id] = f"update after {event.after:.1f} s"
            case ClientFailed():
                self._states[event.client_id] = "failed"
                self._say(f"round {event.round}: {event.client_id}: {event.reason}")
            case RoundEnded():
                self._history = [*self._history, event][-SHOWN:]  # anew: it may be shown now
                if not self._live:
                    self._say(describe(event, self._rounds))
            case SitesEvaluated():
                self._say(
                    f"round {event.round}: at {len(event.sites)} sites"
                    f" accuracy={_number(event.accuracy)} loss={_number(event.loss)}"
                )
            case Warned():
                self._say(f"warning: {event.message}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def screen(self) -> Group:
        """What a terminal shows: the last rounds, and what each client is doing in this one."""
        begun = f"round {self._round} of {self._rounds}" if self._round else "no round yet"
        rounds = self._table()
        # The table's head, a blank line, the line of the round, and one to spare.
        sites = self._sites(self._console.height - rounds.row_count - 4)
        return Group(rounds, Text(f"\n{begun}", "bold"), sites)

    def _sites(self, lines: int) -> Text:
        """The sites' states, as many as fit; those in trouble come first where not all do.

        Beside each other they are put here, which rich's columns do in ten times the time.
        """
        sites = list(self._states.items())
        width = max((cell_len(f"{name}: {state or '-'}") for name, state in sites), default=0) + GAP
        beside = max((self._console.width + GAP) // width, 1)
        left = 0
        if len(sites) > lines * beside:
            sites.sort(key=lambda site: site[1] not in STYLES)
            room = max(lines - 1, 1) * beside
            sites, left = sites[:room], max(len(sites) - room, 0)
        rows = [
            Text.assemble(*(_state(*site, width) for site in sites[first : first + beside]))
            for first in range(0, len(sites), beside)
        ]
        shown = Text("\n").join([*rows, Text(f"and {left} more")] if left else rows)
        shown.no_wrap = True
        return shown

    def _table(self) -> Table:
        own = list(dict.fromkeys(name for ended in self._history for name in ended.aggregator))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("round", "accuracy", "loss", "updates", "down", "up", "seconds", *own):
            table.add_column(column, justify="right")
        for ended in self._history:
            table.add_row(
                str(ended.round),
                _number(ended.accuracy),
                _number(ended.loss),
                f"{len(ended.updates)}/{len(ended.updates) + len(ended.failures)}",
                decimal(ended.bytes_down),
                decimal(ended.bytes_up),
                f"{ended.seconds['total']:.1f}",
                *(_short(ended.aggregator.get(name)) for name in own),
            )
        return table


def _state(name: str, state: str, width: int) -> Text:
    told = Text.assemble(f"{name}: ", (state or "-", STYLES.get(state, "")))
    told.pad_right(width - told.cell_len)
    return told


def describe(ended: RoundEnded, rounds: int) -> str:
    """A finished round as one line for a log.

    Args:
        ended: The round.
        rounds: Rounds in all.

    Returns:
        One line.
    """
    own = "".join(f" {name}={n:.4g}" for name, n in ended.aggregator.items() if n is not None)
    failed = f" failed={','.join(failure.client_id for failure in ended.failures)}"
    return (
        f"round {ended.round}/{rounds}"
        f" accuracy={_number(ended.accuracy)} loss={_number(ended.loss)}"
        f" updates={len(ended.updates)}"
        f" down={decimal(ended.bytes_down)} up={decimal(ended.bytes_up)}"
        f" seconds={ended.seconds['total']:.1f}{own}" + (failed if ended.failures else "")
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
