"""That each defence still stands where the table says, and that its tests are there."""

import subprocess
import sys

import pytest

from tests.conftest import TOP
from tests.defences import DEFENCES
from tests.undefended import main, without


@pytest.mark.parametrize("row", DEFENCES, ids=lambda row: row.against)
def test_a_defence_can_be_taken_out_and_its_tests_are_there(row):
    for change in row.changes:
        text = (TOP / change.file).read_text()
        assert without(text, change) != text
    for file, name in row.tests:
        assert f"def test_{name.partition('[')[0]}" in (TOP / file).read_text()


def test_the_parameters_that_the_table_names_are_there():
    named = {test for row in DEFENCES for test in row.tests if "[" in test[1]}
    files = sorted({file for file, _ in named})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *files],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    there = done.stdout.splitlines()
    assert [
        (file, name)
        for file, name in named
        if not any(line.startswith(f"{file}::test_{name}") for line in there)
    ] == []


def test_a_word_that_no_row_has_is_named(capsys):
    assert main(["NaN", "nothing of that kind"]) == 2
    assert capsys.readouterr().err == "no row has: nothing of that kind\n"
