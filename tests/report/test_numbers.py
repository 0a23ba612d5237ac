"""What a report shows, from a folder that the real recorder wrote."""

import csv
import dataclasses
import io
import json
import math
import re
from concurrent.futures import Future

import pytest

from fl.history import read_history
from fl.report import numbers
from fl.report.numbers import (
    PHASES,
    SERVER,
    Missing,
    metrics_table,
    read_run,
    server_spans,
    site_spans,
    spans_table,
)
from fl.server.events import RoundEnded, SiteChanged
from fl.server.sites import Task
from fl.transport import Ref
from tests.recorded import Run


@pytest.fixture
def run(tmp_path):
    made = Run(["a", "b"], tmp_path / "runs")
    yield made
    made.close()


def test_the_way_that_models_travel(run):
    assert read_run(run.folder).sites[0].way == "-"
    run.begin(1)
    assert read_run(run.folder).sites[0].way == "inside the request"
    task = Task("a", 1, 2, "a.2", 0.0, Future())
    run.record.sent(task, None, Ref("proxystore", {"key": "k"}, 1000, "0" * 64))
    assert read_run(run.folder).sites[0].way == "by ProxyStore"
    assert read_run(run.folder).sites[0].bytes_down == 2000


class Counted(list):
    """A list that knows how often it was walked through."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()


def walks(monkeypatch, runs, sites):
    """How often a run's journal and rounds are walked through to read it."""
    run = Run([f"site-{number}" for number in range(sites)], runs)
    run.play(1)
    run.close()
    read = []

    def counted(folder):
        history = read_history(folder)
        rounds = [dataclasses.replace(e, updates=Counted(e.updates)) for e in history.rounds]
        counting = dataclasses.replace(history, tasks=Counted(history.tasks), rounds=rounds)
        read.append(counting)
        return counting

    monkeypatch.setattr(numbers, "read_history", counted)
    assert [site.updates for site in read_run(run.folder).sites] == [1] * sites
    return read[0].tasks.walks, read[0].rounds[0].updates.walks


def test_a_run_of_many_sites_is_walked_through_no_more_often(tmp_path, monkeypatch):
    few = walks(monkeypatch, tmp_path / "few", 2)
    assert walks(monkeypatch, tmp_path / "many", 20) == few


def rows(table):
    return list(csv.DictReader(io.StringIO(table)))


def test_a_sites_phases_follow_each_other(run):
    update = run.answer(1, "a", train=1.0)
    began, *ends = site_spans(update)
    took = [end - start for start, end in zip([began, *ends], ends, strict=False)]
    # Sent at 0.2; 1.5 s at the site; arrived at 0.7 s + 1.5 s.
    assert took == pytest.approx([0.5, 0.1, 1.2, 0.2, 0.2])
    assert began == 0.2


@pytest.mark.parametrize("seconds", [{"train": 1e9}, {"get": -5.0, "train": 1.0}, {}])
def test_what_a_site_says_of_its_time_ends_with_its_answer(run, seconds):
    update = dataclasses.replace(run.answer(1, "a"), seconds=seconds)
    spans = site_spans(update)
    assert spans == sorted(spans)
    assert max(spans[:-1]) <= update.arrived
    assert spans[-1] == update.after


def test_the_servers_phases_are_what_it_measured(run):
    run.play(1)
    (ended,) = read_run(run.folder).ended
    spans = dict(zip(PHASES, server_spans(ended)[1:], strict=True))
    assert spans["train"] == 0.0
    assert spans["send"] == pytest.approx(0.2)
    assert spans["wait"] - spans["send"] == pytest.approx(2.0)
    assert spans["evaluate"] == pytest.approx(2.8)


def test_every_update_and_the_server_has_a_row(run):
    run.play(1)
    run.play(2)
    found = [(row["round"], row["site"]) for row in rows(spans_table(read_run(run.folder)))]
    assert found == [(n, site) for n in "12" for site in ("a", "b", SERVER)]


def test_bytes_count_what_was_sent_again(run):
    run.begin(1)
    run.begin(1, sites=["a"])
    run.end(1, [run.answer(1, name) for name in run.names])
    assert [(s.bytes_down, s.bytes_up) for s in read_run(run.folder).sites] == [
        (2000, 1000),
        (1000, 1000),
    ]


def test_who_was_late_is_told_of_the_round_that_its_task_was_of(run):
    run.begin(1)
    run.end(1, [run.answer(1, "a")])
    run.record(SiteChanged("b", "late"))  # as the loop says it: after the round's end
    run.begin(2, sites=["a"])
    run.end(2, [run.answer(2, "a")])
    assert read_run(run.folder).missing == [Missing(1, "b", "late", "")]


def test_a_site_is_told_of_once_a_round_with_what_is_known(run):
    run.begin(1)
    failure = run.fail(1, "a", "its endpoint is offline")
    run.end(1, [run.answer(1, "b")], [failure])
    run.begin(2)
    failure = run.fail(2, "b", "CUDA is not there", state="ready")
    run.end(2, [run.answer(2, "a")], [failure])
    assert read_run(run.folder).missing == [
        Missing(1, "a", "lost", "its endpoint is offline"),
        Missing(2, "b", "failed", "CUDA is not there"),
    ]


def test_who_failed_in_the_round_that_broke_the_run_off_is_told(run):
    """It has no line among the rounds: they are of those that ended."""
    run.play(1)
    run.begin(2)
    run.fail(2, "b", "CUDA is not there", state="ready")
    assert read_run(run.folder).missing == [Missing(2, "b", "failed", "CUDA is not there")]


def test_every_phase_of_a_round_is_in_the_servers_row(run):
    """As `RoundEnded` names them."""
    run.play(1)
    (ended,) = read_run(run.folder).ended
    named = re.search(r"By phase: (.*?); and total", RoundEnded.__doc__, re.DOTALL)[1]
    phases = re.findall(r"\w+", re.sub(r"\(.*?\)|\band\b", "", named, flags=re.DOTALL))
    assert len(phases) == 10
    seconds = dict.fromkeys(phases, 1.0) | {"total": 10.0}
    assert server_spans(dataclasses.replace(ended, seconds=seconds))[-1] == 10.0


def test_a_run_is_read_while_it_goes_on(run):
    run.play(1)
    run.begin(2)
    run.record(SiteChanged("a", "lost", "gone"))
    found = read_run(run.folder)
    assert found.state == "running"
    assert [missing.round for missing in found.missing] == [2]


def test_a_run_that_may_go_on_elsewhere_is_not_called_ended(run):
    run.close()
    assert read_run(run.folder).state == "ended before its last round"
    owner = json.loads((run.folder / "lock").read_text())
    (run.folder / "lock").write_text(json.dumps({**owner, "host": "login2"}))
    assert read_run(run.folder).state == "not seen from this machine; ask on the other"


def test_of_equal_accuracies_the_lowest_loss_is_the_best(run):
    for number in (1, 2):
        run.play(number)
    found = read_run(run.folder)
    found.ended[:] = [dataclasses.replace(ended, accuracy=0.0) for ended in found.ended]
    assert found.best.round == 2


def test_metrics_that_are_no_numbers_are_left_out_of_plots(run):
    run.begin(1)
    run.end(1, [run.answer(1, "a", val_loss=1 / 3)])
    found = read_run(run.folder)
    found.ended[0].updates[0].metrics["train_loss"] = math.inf
    (row,) = rows(metrics_table(found))
    assert row == {
        "round": "1",
        "site": "a",
        "train_loss": "",
        "val_loss": "0.33333",
        "val_accuracy": "0.5",
    }


def test_a_client_is_found_by_its_name_in_the_settings(run):
    settings = read_run(run.folder).settings
    assert settings["clients.b.data_configs.dataset_path"] == "d.py"
    assert settings["server_configs.round_deadline"] == "60.0"
