"""Where commands print, and what becomes of a run when that is lost."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from fl import run
from fl.cli import run_main
from fl.console import Output
from fl.progress import Progress
from fl.server.events import Warned
from tests import experiment
from tests.conftest import TOP
from tests.test_resume import ENVIRONMENT, rounds


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full_disk():
    return Path("/dev/full").open("w")


@pytest.mark.parametrize("lost", [closed_pipe, full_disk])
@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_lost_is_written_to_no_more(lost, terminal):
    with lost() as file:
        output = Output(file=file, force_terminal=terminal)
        with Progress(1, ["a"], output) as progress:
            progress(Warned("one"))
            progress(Warned("two"))
    assert output.quiet


RUN = """
from fl import run
from fl.cli import run_main
from tests.in_process import InProcess
run.open_endpoints = lambda federation: InProcess()
run_main()
"""
"""fl-run, its sites in its own process."""


@pytest.mark.parametrize("lost", [closed_pipe, full_disk])
def test_a_run_that_nobody_reads_any_more_goes_on(tmp_path, lost):
    experiment.write(tmp_path)
    with lost() as output:
        done = subprocess.run(
            [sys.executable, "-c", RUN, tmp_path],
            cwd=TOP,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            timeout=240,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert rounds(tmp_path) == [1, 2]


@pytest.mark.parametrize("lost", [closed_pipe, full_disk])
def test_a_run_whose_last_lines_nobody_reads_is_done_all_the_same(tmp_path, monkeypatch, lost):
    ended = run.Outcome(tmp_path, tmp_path / "model.safetensors", 0.5)
    monkeypatch.setattr(run, "run", lambda *_: ended)
    with lost() as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as left:
            run_main.main([str(tmp_path)])
    assert left.value.code == 0


def test_colons_are_no_emoji():
    output = Output(file=io.StringIO())
    output.print("/data/:cat:/runs", markup=False)
    assert output.file.getvalue() == "/data/:cat:/runs\n"


def test_what_is_no_terminal_gets_whole_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    output = Output(file=io.StringIO())
    table = Table(box=None, show_header=False)
    table.add_row("x" * 200)
    output.print(table)
    assert len(output.file.getvalue().splitlines()) == 1
