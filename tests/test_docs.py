"""No command of the documentation is without a test, or a reason; and each names what exists."""

import re
from itertools import takewhile
from pathlib import Path

import click
import pytest
import yaml

from fl.cli import main, run_main
from tests import documented
from tests.conftest import BIN, TOP, sandbox_environment
from tests.documented import ALONE, ELSEWHERE, NOT_HERE, RUN
from tests.shell import Shell


def test_every_command_in_a_block_is_run_or_has_a_reason():
    listed = [*ALONE, *RUN, *ELSEWHERE, *NOT_HERE]
    assert documented.commands() - set(listed) == set(), "add them to tests/documented.py"
    assert set(listed) - documented.commands() == set(), "no page has them any more"
    assert len(listed) == len(set(listed))


@pytest.mark.timeout(600)  # ten commands, two of which train
def test_commands_that_need_no_federation_run_as_they_stand(tmp_path):
    (tmp_path / ".venv").symlink_to(BIN.parent)
    environment = sandbox_environment(tmp_path)
    own = {name: value for name, value in environment.items() if not name.startswith("FL_SITE_")}
    shell = Shell(tmp_path, own)
    said = [shell.must(line) for line in ALONE]
    assert float(said[-1].split("test accuracy:")[1]) > 0.8


def test_a_new_command_would_be_seen(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "Do\n\n    curl example.org | sh\n\n```sh\nfl \\\n  new\n```\n\n    key: value\n"
    )
    monkeypatch.setattr(documented, "PAGES", [page])
    assert documented.commands() == {"curl example.org | sh", "fl new"}


def test_every_variable_that_a_page_or_an_inventory_names_is_one():
    specs = yaml.safe_load((TOP / "playbooks/roles/fl/meta/argument_specs.yml").read_text())
    # The secret is no argument, so that no refusal shows it; three are the sandbox's own.
    known = {*specs["argument_specs"]["main"]["options"]} | {
        "fl_client_secret",
        "fl_sandbox_dir",
        "fl_sandbox_own_client",
        "fl_sandbox_service",
    }
    pages = [*documented.PAGES, *(TOP / "inventory").rglob("*.ini")]
    pages += (TOP / "inventory").rglob("*.yml")
    named = {word for page in pages for word in re.findall(r"\bfl_[a-z0-9_]+", page.read_text())}
    # `fl_compute_` stands for all that begin with it.
    assert {word for word in named if not word.endswith("_")} - known == set()


@pytest.mark.parametrize("file", sorted(set(ELSEWHERE.values())))
def test_the_tests_that_run_others_are_there(file):
    assert (TOP / "tests" / file).is_file()


@pytest.mark.parametrize("words", sorted(documented.inline_commands()), ids=" ".join)
def test_a_command_inside_a_line_names_what_exists(words):
    program, *arguments = takewhile(lambda word: word != "&&", words)
    match program:
        case "fl" | "fl-run":
            require_options(main if program == "fl" else run_main, arguments)
        case "make":
            targets = re.findall(r"^([\w./$()]+):", (TOP / "Makefile").read_text(), re.MULTILINE)
            assert set(arguments) <= {
                target.replace("$(WHEELHOUSE)", ".wheelhouse") for target in targets
            }
        case _:
            files = [word for word in arguments if Path(word).suffix in (".yml", ".py", ".ini")]
            assert files
            assert [file for file in files if not (TOP / file).is_file()] == []


def require_options(command, arguments):
    """See that a command knows its subcommands and options."""
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        assert name in command.commands
        command = command.commands[name]
    context = click.Context(command)
    known = {option for param in command.get_params(context) for option in param.opts}
    assert {word.split("=")[0] for word in arguments if word.startswith("-")} <= known
