"""What a command leaves with: the table of docs/commands.md, row by row."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl import check, run
from fl.cli import main, run_main
from fl.errors import INTERRUPTED
from tests import experiment
from tests.conftest import BIN
from tests.in_process import InProcess

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    for module in (check, run):
        monkeypatch.setattr(module, "open_endpoints", lambda federation: InProcess())
    return experiment.write(tmp_path)


def test_the_page_has_the_codes_that_are_tried_here():
    assert re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE) == ["0", "1", "2", "130"]


NO_FOLDER = "--set=server_configs.logging_output_dirname=/dev/null"
MISSING = "--set=clients.site-b.data_configs.dataset_path=none.py"
ENDPOINT = "--set=clients.site-b.endpoint_id=3f0b7f0e-5a55-4d0c-8c1e-0d4b6a0f2b11"


@pytest.mark.parametrize(
    ("command", "arguments", "code", "said"),
    [
        (run_main, [], 0, "model: "),
        (main, ["check"], 0, "site-b +validation +ok"),
        (run_main, [MISSING], 1, "error: .*site-b: none.py: not in this site's code folder"),
        (main, ["check", MISSING], 1, "FAILED .*none.py"),
        (
            run_main,
            [NO_FOLDER],
            1,
            "error: /dev/null",
        ),
        (run_main, ["--set=server_configs.rounds=2"], 2, "error: .*server_configs.rounds"),
        (run_main, [ENDPOINT], 2, "error: .*globus_compute_configs is missing"),
        (run_main, ["--no-such-option"], 2, "Error: .*no-such-option"),
        (main, ["check", "--deadline=inf"], 2, "Error: .*inf is not in the range"),
        (main, ["check", "--deadline=nan"], 2, "Error: .*nan is no number of seconds"),
        (main, ["check", "--deadline=1e10"], 2, "Error: .*10000000000.0 is not in the range"),
    ],
)
def test_done_failed_or_not_meant(folder, command, arguments, code, said):
    named = 1 if command is main else 0
    typed = [*arguments[:named], str(folder), *arguments[named:]]
    done = CliRunner().invoke(command, typed)
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    assert re.search(f"^.*{said}", done.output, re.MULTILINE), done.output
    if said.startswith("error: "):
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_run_that_did_not_reach_its_end_is_no_success(folder, monkeypatch):
    monkeypatch.setattr(run, "run", lambda *_: run.Outcome(folder, None, None))
    assert CliRunner().invoke(run_main, [str(folder)]).exit_code == INTERRUPTED


def test_ctrl_c_before_the_first_round(folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupted)
    done = CliRunner().invoke(run_main, [str(folder)])
    assert done.exit_code == INTERRUPTED
    assert done.stderr == "stopped by Ctrl-C\n"


@pytest.mark.parametrize(
    ("program", "typed", "completed"),
    [("fl", "hea", "health"), ("fl", "ini", "init"), ("fl-run", "--dry", "--dry-run")],
)
def test_bash_completes_by_what_the_page_says_to_type(program, typed, completed):
    (line,) = re.findall(
        rf'^    (eval "\$\(_\w+=bash_source {program}\)")$', PAGE.read_text(), re.M
    )
    function = f"_{program.replace('-', '_')}_completion"
    script = (
        f"{line}; complete -p {program} >&2; COMP_WORDS=({program} {typed}); COMP_CWORD=1; "
        f'{function} {program}; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [completed]
    assert function in done.stderr
