"""That each defence still stands where the table says, and that its tests are there."""

import pytest

from tests.conftest import TOP
from tests.defences import DEFENCES
from tests.undefended import without


@pytest.mark.parametrize("row", DEFENCES, ids=lambda row: row.against)
def test_a_defence_can_be_taken_out_and_its_tests_are_there(row):
    for change in row.changes:
        text = (TOP / change.file).read_text()
        assert without(text, change) != text
    for file, name in row.tests:
        assert f"def test_{name.partition('[')[0]}" in (TOP / file).read_text()
