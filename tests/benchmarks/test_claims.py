"""Every benchmark that claims something says whether its run has met it."""

import ast
from pathlib import Path

import pytest

import benchmarks

CLAIMING = [
    file
    for file in sorted(Path(benchmarks.__file__).parent.glob("*.py"))
    if "\nClaim" in (ast.get_docstring(ast.parse(file.read_text())) or "")
]
TABLE = {"faults"}
"""What is claimed of these stands in the rows of a table, whose columns are the claim's."""


@pytest.mark.parametrize("file", CLAIMING, ids=lambda file: file.stem)
def test_a_claim_has_its_verdict(file):
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if hasattr(node, "func")]
    judged = any(isinstance(call, ast.Name) and call.id == "verdict" for call in calls)
    assert judged != (file.stem in TABLE)
