"""The report: what is in it, that it stays text, that it can be read by everybody."""

import base64
import hashlib
import html
import json
import random
import re
import shlex
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import vl_convert
from click.testing import CliRunner

from fl.cli import main
from fl.history import EndedRound
from fl.report import charts
from fl.report.numbers import read_run
from fl.report.page import render
from fl.server.sites import Task
from fl.transport import Ref
from tests.recorded import Run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """A page's elements, its scripts by their number, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture
def made(tmp_path):
    """Runs that a test records."""
    runs = []

    def _made(names=("a", "b"), rounds=2, folder="runs", **settings):
        run = Run(list(names), tmp_path / folder, settings)
        runs.append(run)
        for number in range(1, rounds + 1):
            run.play(number)
        return run

    yield _made
    for run in runs:
        run.close()


def page_of(*runs):
    return render([read_run(run.folder) for run in runs], 1.8e9)


def charts_of(page):
    """Every chart with its tables, as the browser gets them."""
    charts, tables = (json.loads(script) for script in Page(page).scripts[:2])
    return {
        figure["data-chart"]: {
            **charts[figure["data-chart"]],
            "datasets": tables[figure["data-tables"]],
        }
        for figure in Page(page).all("figure")
    }


def svg(chart):
    """What a chart draws: Vega itself draws it, without a browser."""
    return html.unescape(vl_convert.vegalite_to_svg({**chart, "width": 600}))


def test_the_command_writes_it_beside_what_the_run_left(made):
    run = made()
    done = CliRunner().invoke(main, ["report", str(run.folder.parent)])
    assert done.output == f"report: {run.folder / 'report.html'}\n"
    text = Page((run.folder / "report.html").read_text()).text
    assert run.folder.name in text
    assert "0.7 (round 2)" in text


def test_the_commands_of_its_documentation_work_as_written(made, tmp_path, monkeypatch):
    for name in ("one", "other"):
        run = made()
        run.folder.rename(run.folder.with_name(name))
        run.close()
    text = (Path(__file__).parents[2] / "docs" / "read.md").read_text()
    commands = re.findall("^    fl (.*)$", text, re.M)
    assert len(commands) == 4
    monkeypatch.chdir(tmp_path)
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command))
        assert done.exit_code == 0, done.output
    assert (tmp_path / "both.html").exists()


def test_plots_draw_what_the_run_was(made):
    run = made(names=("site-a", "site-b"))
    run.begin(3)
    failure = run.fail(3, "site-b", "its endpoint is offline")
    run.end(3, [run.answer(3, "site-a")], [failure])
    drawn = {name: svg(chart) for name, chart in charts_of(page_of(run)).items()}
    assert set(drawn) == {
        "accuracy by round",
        "loss by round",
        "accuracy by time",
        "run 0 train_loss",
        "run 0 val_accuracy",
        "run 0 bytes",
        "run 0 gantt",
        "run 0 missing",
    }
    for name in ("run 0 bytes", "run 0 gantt", "run 0 missing"):
        assert "site-a" in drawn[name]
    assert run.folder.name in drawn["accuracy by round"]
    # The site's: queue, receive, train, send, wait. The server's: send, wait, aggregate, evaluate.
    bars = re.findall(r'<path [^>]*fill="var\(--', drawn["run 0 gantt"].split("mark-symbol")[0])
    assert len(bars) == 5 + 4
    assert ">lost<" in drawn["run 0 gantt"]


def dots_of(chart):
    return re.findall(r'<path [^>]*A[^>]* opacity="1"', svg(chart))


def test_one_round_is_a_dot_at_its_own_number(made):
    drawn = charts_of(page_of(made(rounds=1)))
    for name, lines, number in (
        ("accuracy by round", 1, "0.4"),
        ("run 0 val_accuracy", 2, "0.5"),
    ):
        assert len(dots_of(drawn[name])) == lines
        assert f">{number}<" in svg(drawn[name])
    assert dots_of(charts_of(page_of(made(rounds=2)))["accuracy by round"]) == []


def test_rounds_are_counted_in_whole_numbers(made):
    texts = re.findall(r">([^<>]+)</text>", svg(charts_of(page_of(made()))["accuracy by round"]))
    assert texts[:3] == ["1", "2", "round"]


@pytest.mark.parametrize(
    ("seconds", "unit"), [(5, "seconds"), (119, "seconds"), (120, "minutes"), (7200, "hours")]
)
def test_time_is_in_a_unit_that_fits(seconds, unit):
    (x,) = {
        layer["encoding"]["x"]["title"]
        for layer in charts.by_time("accuracy", ["a"], seconds)["layer"]
    }
    assert x == f"{unit} of rounds"


@pytest.mark.parametrize(("size", "unit"), [(10, "kB"), (2e6, "MB"), (2e9, "GB")])
def test_bytes_are_in_a_unit_that_fits(size, unit):
    assert charts.bytes_by_site(["a"], size)["encoding"]["x"]["title"] == unit


def test_bytes_by_way(made):
    run = made(rounds=1)
    assert "Inside the request: 2.0 kB down, 2.0 kB up." in page_of(run)
    task = Task("a", 1, 2, "a.2", 0.0, Future())
    run.record.sent(task, None, Ref("proxystore", {"key": "k"}, 999_000, "0" * 64))
    text = page_of(run)
    assert "By ProxyStore (a): 1.0 MB down, 1.0 kB up." in text
    assert "Inside the request (b): 1.0 kB down, 1.0 kB up." in text


def test_an_experiments_own_metric_is_drawn(made):
    run = made(rounds=1)
    run.begin(2)
    run.end(2, [run.answer(2, "a", val_metric=93.0)])
    assert "run 0 val_metric" in charts_of(page_of(run))


def test_of_many_sites_one_is_picked_out(made):
    chart = charts_of(page_of(made(names=[f"site-{n}" for n in range(20)])))["run 0 train_loss"]
    assert chart["params"][0]["bind"]["options"][3] == "site-3"
    assert svg(chart).count("mark-line") == 20 + 1


def test_what_sites_say_stays_text(made, tmp_path):
    run = made()
    run.begin(3)
    failure = run.fail(3, "a", EVIL)
    run.end(3, [run.answer(3, "b", **{EVIL: 1.0})], [failure])
    lines = (run.folder / "metrics.jsonl").read_text()
    evil = json.dumps(EVIL)[1:-1]
    (run.folder / "metrics.jsonl").write_text(
        lines.replace('"client_id": "b"', f'"client_id": "{evil}"')
    )
    (run.folder / "versions.json").write_text(json.dumps({EVIL: EVIL}))
    text = page_of(run)
    page = Page(text)
    assert len(page.scripts) == 4
    assert page.all("img") == []
    assert page.text.count(EVIL) >= 3
    charts_of(text)  # still JSON
    assert not any("onerror" in name for _, attributes in page.elements for name in attributes)


def test_a_runs_name_stays_text(made):
    run = made()
    text = render([replace(read_run(run.folder), name=EVIL)], 1.8e9)
    assert len(Page(text).scripts) == 4
    assert f"Run {EVIL}" in Page(text).text


def test_only_its_own_two_scripts_may_run_and_nothing_is_loaded(made):
    page = Page(page_of(made()))
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in page.scripts[2:]
    ]
    assert re.findall("'sha256-([^']+)'", policy) == digests
    assert policy.startswith("default-src 'none'; ")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    loaded = [a for _, attributes in page.elements for a in attributes if a in ("src", "srcset")]
    assert loaded == []
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert page.all("link") == []


def test_several_runs_are_laid_over_each_other(made):
    first, second = made(), made(folder="others", num_global_epochs=7)
    second.folder = second.folder.rename(second.folder.with_name("second"))
    text = page_of(first, second)
    colour = charts_of(text)["accuracy by round"]["layer"][0]["encoding"]["color"]
    assert colour["scale"]["domain"] == [first.folder.name, "second"]
    assert len(set(colour["scale"]["range"])) == 2
    differing = re.findall(r'<tr class="differs"><th scope="row">([^<]+)', text)
    assert "server_configs.num_global_epochs" in differing
    assert "client_configs.model_configs.model_name" not in differing


def test_runs_of_one_name_are_called_by_their_paths(made):
    first, second = made(), made(folder="others")
    if first.folder.name != second.folder.name:
        second.folder = second.folder.rename(second.folder.with_name(first.folder.name))
    text = Page(page_of(first, second)).text
    for run in (first, second):
        assert f"Run {run.folder.parent.name}/{run.folder.name}" in text


def test_a_run_before_its_first_round(made):
    page = Page(page_of(made(rounds=0)))
    assert "0 of 5" in page.text
    assert page.all("figure") == []


def test_fifty_sites_and_five_hundred_rounds_stay_below_five_megabytes(made):
    run = made(names=[f"site-{number:02}" for number in range(50)], rounds=1)
    few, draw = read_run(run.folder), random.Random(7)  # noqa: S311  (numbers, no secrets)

    def drawn(values):
        return {name: value * draw.uniform(0.1, 100.0) for name, value in values.items()}

    def another(ended: EndedRound, number: int) -> EndedRound:
        updates = [
            replace(
                update,
                round=number,
                metrics=drawn(
                    dict.fromkeys(("val_loss", "pre_val_loss", "pre_val_accuracy"), 1.0)
                    | update.metrics
                ),
                seconds=drawn(update.seconds),
                sent=draw.random(),
                arrived=draw.uniform(500.0, 1000.0),
                after=draw.uniform(1000.0, 2000.0),
            )
            for update in ended.updates
        ]
        return replace(ended, round=number, updates=updates)

    rounds = [another(few.ended[0], number) for number in range(1, 501)]
    many = replace(few, history=replace(few.history, rounds=rounds))
    size = len(render([many], 1.8e9).encode())
    assert 2 * MEGABYTE < size < 5 * MEGABYTE


def test_everybody_can_read_it(made):
    run = made()
    failure = run.fail(2, "a", "gone")
    run.end(3, [], [failure])
    page = Page(page_of(run))
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("header", "main", "footer", "h1")] == [1, 1, 1, 1]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(section["aria-labelledby"] in ids for section in page.all("section"))
    plots = [div for div in page.all("div") if div.get("class") == "plot"]
    assert len(plots) == len(page.all("figure"))
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    # What scrolls can be scrolled by keyboard, and is named.
    scrolling = [div for div in page.all("div") if div.get("class") == "scroll"]
    assert len(scrolling) == len(page.all("table"))
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in scrolling)
    assert all("scope" in cell for cell in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def luminance(colour):
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_differ_enough_from_the_ground(made, theme):
    """As https://www.w3.org/TR/WCAG22/ asks of texts (1.4.3) and of graphics (1.4.11)."""
    style = page_of(made())
    colours = dict(
        re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", style.split(":root {")[theme + 1])
    )
    for ground in ("ground", "card"):
        for text in ("ink", "soft", "bad", "link"):
            assert contrast(colours[text], colours[ground]) >= 4.5, text
        for mark in ("faint", *(f"series-{number}" for number in range(1, 9))):
            assert contrast(colours[mark], colours[ground]) >= 3.0, mark


def test_without_the_extra_the_command_that_installs_it_is_named(made):
    script = (
        "import sys; sys.modules['altair'] = None; "
        f"from fl.cli import main; main(['report', {str(made().folder)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: a report needs two packages more")
    assert done.stderr.endswith("pip install 'fl-hpc[report]'\n")


def test_a_file_that_cannot_be_written(made, tmp_path):
    arguments = ["report", str(made().folder), "--out", str(tmp_path / "none" / "report.html")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "cannot be written (No such file or directory)" in done.output


def test_what_the_aggregator_told_of_a_round_stands_in_the_rounds_table(made):
    run = made(rounds=1)
    assert "epsilon" not in page_of(run)
    run.begin(2)
    run.end(2, [run.answer(2, "a")], epsilon=1.3148, delta=None)
    text = Page(page_of(run)).text
    assert "epsilon" in text
    assert "1.315" in text


def test_what_sites_found_of_global_models(made):
    run = made(names=("site-a", "site-b"))
    run.evaluate(1, **{"site-a": 0.5, "site-b": 0.75})
    run.evaluate(2, **{"site-a": 0.9})
    text = page_of(run)
    assert "0.9 (round 2, 1 of 2 sites)" in Page(text).text
    drawn = {name: svg(chart) for name, chart in charts_of(text).items()}
    assert {"accuracy at sites", "loss at sites", "run 0 global loss"} <= set(drawn)
    assert run.folder.name in drawn["accuracy at sites"]
    assert "site-b" in drawn["run 0 global accuracy"]
    assert drawn["run 0 global accuracy"].count("mark-line") == 2


def test_sites_models_are_shown_where_the_server_evaluates_nothing(made):
    run = made()
    run.evaluate(2, a=0.9)
    found = read_run(run.folder)
    unseen = [replace(ended, accuracy=None, loss=None) for ended in found.ended]
    text = render([replace(found, history=replace(found.history, rounds=unseen))], 1.8e9)
    assert "accuracy at sites" in charts_of(text)
    assert "accuracy by round" not in charts_of(text)
    assert "server_validation is off" in text


def test_privacy_that_is_spent_is_drawn(made):
    run = made(rounds=0)
    for number, spent in ((1, 0.5), (2, 0.75)):
        run.begin(number)
        run.end(number, [run.answer(number, "a")], epsilon=spent, delta=1e-5)
    text = page_of(run)
    charts = charts_of(text)
    assert "Privacy spent (epsilon), by the aggregator" in Page(text).text
    assert "run 0 aggregator delta" not in charts  # it is the same in every round
    assert "mark-line" in svg(charts["run 0 aggregator epsilon"])
