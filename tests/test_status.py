"""`fl status`: what a run's folder says while it goes on, and after a crash."""

import errno
import io
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl.cli import main
from fl.console import Output
from fl.errors import FederationError
from fl.history import find_run
from fl.record import Record
from fl.server.checkpoint import Snapshot
from fl.server.events import SiteChanged, Warned
from fl.status import show, status
from tests import experiment
from tests.recorded import Run
from tests.test_resume import ENVIRONMENT, begin, none_goes_on, wait_for
from tests.test_run import FL_RUN

__all__ = ["none_goes_on"]  # a fixture


@pytest.fixture
def run(tmp_path):
    made = Run(["a", "b", "c"], tmp_path / "runs")
    yield made
    made.close()


def states(found):
    return {site.client_id: site.state for site in found.sites}


def fl_status(*arguments):
    return CliRunner().invoke(main, ["status", *map(str, arguments)])


def test_a_run_that_goes_on(run):
    run.play(1)
    run.begin(2)
    run.record(SiteChanged("b", "training"))
    run.answer(2, "a")
    found = status(run.folder)
    assert (found.state, found.round, found.rounds, found.done) == ("running", 2, 5, 1)
    assert states(found) == {"a": "ready", "b": "training", "c": "queued"}
    assert found.waits_for == "b (training), c (queued)"
    assert found.deadline == found.since + 60
    assert found.accuracy == pytest.approx(0.4)
    assert found.resume is None


def test_what_sites_found_of_its_model(run):
    run.play(1)
    assert status(run.folder).at_sites is None
    run.evaluate(1, a=0.5, b=0.75)
    assert json.loads(fl_status(run.folder, "--json").output)["at_sites"]["accuracy"] == 0.625
    line = "at 2 sites, the model of round 1: accuracy 0.6250, loss 0.3750"
    assert line in fl_status(run.folder).output


def test_a_run_that_waits_for_its_own_server(run):
    run.begin(1)
    for name in run.names:
        run.answer(1, name)
    assert status(run.folder).waits_for.startswith("the server")


def test_many_sites_are_waited_for_in_one_line(tmp_path):
    run = Run([f"site-{number}" for number in range(50)], tmp_path)
    run.begin(1)
    assert status(run.folder).waits_for.endswith("site-7 (queued) and 42 more")


def test_a_process_that_is_gone(run):
    run.play(1)
    run.begin(2)
    run.close()
    found = status(run.folder)
    assert found.state == "ended"
    assert found.round == 2
    assert found.resume == f"fl-run --resume {run.folder}"
    assert found.waits_for == ""


def test_a_process_on_another_machine_may_live(run):
    run.close()
    owner = json.loads((run.folder / "lock").read_text())
    (run.folder / "lock").write_text(json.dumps({**owner, "host": "login2"}))
    assert status(run.folder).state == "elsewhere"
    assert "login2" in fl_status(run.folder).output


def test_what_an_earlier_process_waited_for_is_not_waited_for_now(run):
    run.begin(1)
    run.close()
    record = Record.reopen(run.folder)
    found = status(run.folder)
    assert (found.state, found.round) == ("running", 0)
    assert set(states(found).values()) == {"ready"}
    record(SiteChanged("a", "queued"))
    assert states(status(run.folder))["a"] == "queued"


def test_the_last_errors_are_told_in_their_order(run):
    run.begin(1)
    for number in range(6):
        run.record(Warned(f"warning {number}"))
    run.fail(1, "a", "CUDA is not there", state="ready")
    run.record(SiteChanged("b", "lost", "its endpoint is offline"))
    run.record.ended("no more disk")
    errors = status(run.folder).errors
    assert [(error.client_id, error.message) for error in errors] == [
        ("", "warning 4"),
        ("", "warning 5"),
        ("a", "CUDA is not there"),
        ("b", "lost: its endpoint is offline"),
        ("", "no more disk"),
    ]


def test_a_lost_step_is_no_error_once_it_was_taken_again(run):
    run.record.keep(Snapshot(0, {}, {}, {}, {}))
    run.play(1)
    run.close()
    run.record = Record.reopen(run.folder)
    run.record.snapshot()
    (error,) = status(run.folder).errors
    assert error.message == "round 1's step was told of, but not saved: it is taken again"
    run.play(1)
    assert status(run.folder).errors == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "sites.jsonl", "log.jsonl", "lock"])
def test_a_torn_last_line_is_left_out(run, name):
    run.play(1)
    run.close()
    with (run.folder / name).open("a") as file:
        file.write('{"at": 17')
    assert status(run.folder).done == 1


def test_what_follows_a_torn_line_is_not_lost_with_it(run):
    run.begin(1)
    run.close()
    with (run.folder / "log.jsonl").open("a") as file:
        file.write('{"at": 17')
    Record.reopen(run.folder).ended("found again")
    assert status(run.folder).errors[-1].message == "found again"


def test_a_line_of_another_version_is_named(run):
    (run.folder / "metrics.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(FederationError, match=r"metrics.jsonl: line 1: loss: .*versions.json"):
        status(run.folder)


def test_what_a_site_says_moves_no_cursor(run):
    run.begin(1)
    run.fail(1, "a", "\x1b[2J\x1b]0;owned\x07[bold]no\nmarkup")
    said = fl_status(run.folder).output
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "[bold]no markup" in said


@pytest.mark.parametrize("terminal", [True, False])
def test_the_command_that_goes_on_can_be_copied(tmp_path, terminal):
    run = Run(["a"], tmp_path / ("x" * 90))
    run.close()
    console = Output(file=io.StringIO(), force_terminal=terminal, width=80)
    console.print(show(status(run.folder), 0.0), crop=False)
    assert f"to go on with it: fl-run --resume {run.folder}" in console.file.getvalue().split("\n")


def test_half_a_character_hides_no_round(run):
    """JSON can say it and no text can hold it: the line is whole all the same."""
    run.begin(1)
    run.end(1, [run.answer(1, "a")], [run.fail(1, "b", "tensors unknown: \ud800", state="ready")])
    found = status(run.folder)
    assert found.done == 1
    assert found.errors[-1].message == "tensors unknown: ?"
    assert json.loads(fl_status(run.folder, "--json").output)["done"] == 1


def test_the_newest_of_a_folder_of_runs(tmp_path):
    for name in ("20260101T000000Z-9", "20261231T000000Z-1", "20261231T000001Z-2"):
        (tmp_path / name).mkdir()
    for seconds, name in enumerate(("result-20260101T000000Z-9", "20261231T000000Z-1")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "run.json").write_text("{}")
        os.utime(tmp_path / name / "run.json", (seconds, seconds))
    assert find_run(tmp_path).name == "20261231T000000Z-1"


def test_a_folder_that_may_not_be_looked_at(monkeypatch):
    def refuse(*_arguments, **_how):  # root, who may run this, may look at everything
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(FederationError, match=r"locked: cannot be read \(Permission denied\)"):
        find_run(Path("locked"))


def test_a_folder_that_is_no_run(tmp_path):
    done = fl_status(tmp_path)
    assert done.exit_code == 1
    assert done.output == (
        f"error: {tmp_path}: is no run's folder, nor are there any in it; "
        "name one that fl-run made\n"
    )


def test_json_is_the_same(run):
    run.begin(1)
    found = json.loads(fl_status(run.folder, "--json").output)
    assert found["state"] == "running"
    assert found["sites"][0]["state"] == "queued"
    assert found["owner"]["pid"] > 0


def test_a_killed_run_goes_on_by_the_command_that_status_names(tmp_path):
    folder = experiment.write(tmp_path)
    process = begin(folder)
    wait_for(lambda: any(file.read_text() for file in folder.glob("runs/*/log.jsonl")))
    assert status(find_run(folder / "runs")).owner.pid == process.pid
    process.kill()
    process.communicate()
    ended = status(find_run(folder / "runs"))
    assert (ended.state, ended.round) == ("ended", 1)
    _, *arguments = shlex.split(ended.resume)
    subprocess.run(
        [FL_RUN, *arguments], env=ENVIRONMENT, check=True, capture_output=True, timeout=120
    )
    assert status(find_run(folder / "runs")).state == "finished"


def test_why_a_run_failed_is_kept(tmp_path):
    def missing_loader(server, clients):
        clients["clients"][1]["data_configs"]["dataset_path"] = "none.py"

    folder = experiment.write(tmp_path, missing_loader)
    process = begin(folder)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    found = status(find_run(folder / "runs"))
    assert found.state == "ended"
    assert any("none.py" in error.message for error in found.errors)
    assert "round 1 can have" in found.errors[-1].message
