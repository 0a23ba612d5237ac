"""What a person sees while a run goes on: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table

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
        self._live = Live(self._table(), console=console) if console.is_terminal else None

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
                self._history.append(event)
                if not self._live:
                    self._say(describe(event, self._rounds))
            case SitesEvaluated():
                self._say(
                    f"round {event.round}: at {len(event.sites)} sites"
                    f" accuracy={_number(event.accuracy)} loss={_number(event.loss)}"
                )
            case Warned():
                self._say(f"warning: {event.message}")
        if self._live:
            self._live.update(self._table())

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        """The last rounds, and what each client is doing in this one."""
        table = Table(title=f"round {self._round} of {self._rounds}")
        shown = self._history[-10:]
        own = list(dict.fromkeys(name for ended in shown for name in ended.aggregator))
        for column in ("round", "accuracy", "loss", "updates", "down/up", "seconds", *own):
            table.add_column(column, justify="right")
        for ended in shown:
            table.add_row(
                str(ended.round),
                _number(ended.accuracy),
                _number(ended.loss),
                f"{len(ended.updates)}/{len(ended.updates) + len(ended.failures)}",
                f"{decimal(ended.bytes_down)}/{decimal(ended.bytes_up)}",
                f"{ended.seconds['total']:.1f}",
                *(_short(ended.aggregator.get(name)) for name in own),
            )
        table.caption = "   ".join(
            f"{name}: {state or '-'}" for name, state in self._states.items()
        )
        return table


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
