"""`fl audit show`: what a site's owner reads of the log that the site's own admission writes."""

import json

import pytest
from click.testing import CliRunner

from fl import run
from fl.audit_table import read_tasks
from fl.cli import main, run_main
from fl.client.audit import FIRST, open_log
from tests import experiment
from tests.in_process import InProcess


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A site's log; a run of two rounds over sites in this process writes it."""
    experiment.write(tmp_path)
    for name, value in (("CODE", tmp_path), ("STATE", tmp_path / "state")):
        monkeypatch.setenv(f"FL_SITE_{name}", str(value))
    monkeypatch.setenv("FL_SITE_AUDIT", str(tmp_path / "audit.jsonl"))
    monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "audit.jsonl"


def shown(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["audit", "show", *map(str, arguments)])


def test_a_run_as_the_sites_owner_sees_it(log):
    assert CliRunner().invoke(run_main, ["."]).exit_code == 0
    tasks = read_tasks(log)
    assert [(task.operation, task.round) for task in tasks] == [("train", "1")] * 2 + [
        ("train", "2")
    ] * 2
    assert all(task.code == "code.py: Net, code.py: load" for task in tasks)
    assert tasks[0].outcome.startswith("left: an update (")
    assert "the number of samples (" in tasks[0].outcome
    assert "train_loss" in tasks[0].outcome
    assert shown(log).output.endswith(
        "4 tasks in all; whether a line was changed, fl audit verify says\n"
    )
    assert shown(log, "--last", "1").output.count("train_loss") == 1


def test_what_a_server_shipped(log):
    code = {"path": "code.py", "name": "Net"}
    with open_log(log) as opened:
        opened.append({"event": "ended", "task": "a", "model": code, "shipped": ["code.py"]})
    assert "code.py: Net (shipped)" in shown(log).output


def test_what_failed(log):
    CliRunner().invoke(run_main, [".", "--set=clients.site-a.data_configs.dataset_name=load_badly"])
    assert read_tasks(log)[0].outcome.startswith("failed: code.py: load_badly raised OSError")


def test_what_was_refused(log, tmp_path, monkeypatch):
    (tmp_path / "policy.yaml").write_text("max_rounds: 1\n")
    monkeypatch.setenv("FL_SITE_POLICY", str(tmp_path / "policy.yaml"))
    CliRunner().invoke(run_main, ["."])
    assert read_tasks(log)[-1].outcome.startswith("refused by max_rounds: ")


def test_a_task_whose_end_nobody_noted_and_a_torn_line(log):
    with open_log(log) as opened:
        opened.append({"event": "admitted", "task": "a", "operation": "train"})
    with log.open("a") as file:
        file.write('{"previous": "0')
    (task,) = read_tasks(log)
    assert task.outcome.startswith("let in; no end was noted")


def test_a_servers_words_move_no_cursor(log):
    with open_log(log) as opened:
        opened.append({"event": "admitted", "task": "a", "operation": "train", "run_id": "\x1b[2J"})
    assert "\x1b[2J" not in shown(log).output


@pytest.mark.parametrize(
    "record",
    [
        {"at": "9999-12-31T23:59:59-23:59"},
        {"at": "0001-01-01T00:00:00+23:59"},
        {"at": "2026-01-01T00:00:00+00:00", "event": "ended", "metrics": None},
    ],
)
def test_a_line_that_no_site_of_ours_writes(log, record):
    log.write_text(json.dumps({"previous": FIRST, **record}) + "\n")
    done = shown(log)
    assert done.exit_code == 0, done.exception
    assert "tasks in all" in done.output


def test_a_file_of_something_else(log):
    log.write_text("to be or not to be\n")
    done = shown(log)
    assert done.exit_code == 1
    assert "is no audit log: none of its 1 lines is a task's" in done.output


def test_no_log(log):
    done = shown(log)
    assert done.exit_code == 1
    assert "cannot be read (No such file or directory)" in done.output
