"""The live table of a run."""

import io
import re
import weakref
from dataclasses import replace

from rich.console import Console

from fl.progress import Progress, describe
from fl.server.events import RoundEnded, RoundStarted, SiteChanged


def table_of(*rounds):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = Progress(len(rounds), ["a"], console)
    for ended in rounds:
        progress(ended)
    shown = Console(file=io.StringIO(), width=120)
    shown.print(progress.screen())
    return shown.file.getvalue()


def ended(number, **aggregator):
    return RoundEnded(
        round=number,
        loss=0.5,
        accuracy=0.5,
        updates=[],
        failures=[],
        bytes_down=0,
        bytes_up=0,
        seconds={"total": 1.0},
        aggregator=aggregator,
    )


def test_what_the_aggregator_tells_of_a_round_has_a_column():
    shown = table_of(ended(1, epsilon=1.3148, delta=1e-5), ended(2, epsilon=None, delta=1e-5))
    header, first, second = _rows(shown)
    assert header[-2:] == ["epsilon", "delta"]
    assert first[-2:] == ["1.315", "1e-05"]
    assert second[-2:] == ["-", "1e-05"]


def _rows(shown):
    return [line.split() for line in shown.partition("\n\n")[0].splitlines()]


def test_a_small_models_bytes_are_no_zero():
    small = replace(ended(1), bytes_down=4600, bytes_up=2300)
    assert "4.6 kB  2.3 kB" in table_of(small)
    assert " down=4.6 kB up=2.3 kB " in describe(small, 1)


def test_others_have_none():
    header, _ = _rows(table_of(ended(1)))
    assert header[-1] == "seconds"


def test_a_sites_state_is_broken_over_no_line():
    names = [f"site-{number:02}" for number in range(50)]
    console = Console(file=io.StringIO(), width=60)
    progress = Progress(3, names, console)
    progress(RoundStarted(1, names))
    for name in names:
        progress(SiteChanged(name, "queued"))
    console.print(progress.screen())
    shown = console.file.getvalue()
    assert "round 1 of 3" in shown
    assert [name for name in names if f"{name}: queued" not in shown] == []
    assert len(shown.splitlines()) < 25


def test_rounds_that_are_shown_no_more_are_not_kept():
    progress = Progress(50, ["a"], Console(file=io.StringIO(), force_terminal=True, width=120))
    first = ended(1)
    known = weakref.ref(first)
    progress(first)
    del first
    for number in range(2, 12):
        progress(ended(number))
    assert known() is None


def test_a_screen_is_made_as_often_as_it_is_looked_at(monkeypatch):
    """And not for every event: of a thousand sites a round has thousands."""
    made = []
    screen = Progress.screen
    monkeypatch.setattr(Progress, "screen", lambda self: made.append(1) or screen(self))
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(1, ["a"], console) as progress:
        for number in range(3000):
            progress(SiteChanged("a", "training" if number % 2 else "queued"))
    assert len(made) < 300
    assert "a: training" in console.file.getvalue()


def test_of_many_sites_those_are_shown_that_fit_and_first_those_in_trouble():
    names = [f"site-{number:03}" for number in range(1000)]
    console = Console(file=io.StringIO(), width=60, height=20)
    progress = Progress(3, names, console)
    for name in names:
        progress(SiteChanged(name, "queued"))
    progress(SiteChanged("site-777", "lost"))
    for number in range(1, 4):
        progress(ended(number))
    before = len(console.file.getvalue())
    console.print(progress.screen())
    shown = console.file.getvalue()[before:]
    assert len(shown.splitlines()) < 20
    assert "site-777: lost" in shown
    assert "site-000: queued" in shown
    assert int(re.search(r"and (\d+) more", shown)[1]) + shown.count("site-") == 1000
