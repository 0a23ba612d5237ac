"""A check on a terminal."""

import io

from rich.console import Console

from fl.check import Check
from fl.check_table import screen

REMEDY = "--set clients.site-a.train_configs.device=auto, or a queue whose nodes have it"


def test_what_to_do_stays_beside_its_arrow_however_narrow_the_terminal():
    found = [Check("site-a", "device", False, "device 'cuda' is not here", REMEDY, 0.01)]
    console = Console(file=io.StringIO(), width=80)
    console.print(screen(found, done=True))
    lines = console.file.getvalue().splitlines()
    first = next(number for number, line in enumerate(lines) if "-> " in line)
    beside = lines[first].index("-> ") + 3
    told = [line[beside:].strip() for line in lines[first:-2]]
    assert len(told) > 1
    assert " ".join(told) == REMEDY
    assert all(not line[:beside].strip() for line in lines[first + 1 : -2])
    assert lines[-1] == "1 checks: 1 failed, 0 warnings"


def test_a_sites_words_are_no_markup():
    found = [Check("site-a", "[/x]", True, "[/y]", "", 0.01)]
    console = Console(file=io.StringIO(), width=80)
    console.print(screen(found, done=True))
    assert "[/x]" in console.file.getvalue()
    assert "[/y]" in console.file.getvalue()
