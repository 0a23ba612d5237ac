"""What `make lint` says of pip-audit's findings; pip-audit's JSON as its documentation has it."""

import subprocess

import pytest

from tests import audit

SAFE = '{"name": "safe", "version": "1.0", "vulns": []}'
HOLED = (
    '{"name": "holed", "version": "2.0", "vulns": '
    '[{"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": [], "description": "-"}]}'
)
UNTOLD = '{"name": "untold", "skip_reason": "not found on PyPI"}'


@pytest.fixture
def audited(monkeypatch, capsys):
    """The verdict on what pip-audit prints, and what is said of it."""

    def run(*packages, stdout=None):
        found = f'{{"dependencies": [{", ".join(packages)}]}}'
        out = found if stdout is None else stdout
        done = subprocess.CompletedProcess([], 0, out, "a warning\nno connection\n")
        monkeypatch.setattr(subprocess, "run", lambda *_args, **_keywords: done)
        return audit.main(), capsys.readouterr().out

    return run


def test_a_hole_fails_the_lint_and_names_what_mends_it(audited):
    assert audited(SAFE, HOLED) == (1, "holed 2.0: PYSEC-2026-1, mended in 2.1\n")


def test_a_waived_hole_does_not(audited, monkeypatch):
    monkeypatch.setattr(audit, "WAIVED", {"PYSEC-2026-1": "for this test"})
    assert audited(SAFE, HOLED) == (0, "")


def test_what_was_not_audited_is_said_and_by_name(audited):
    assert audited(SAFE, UNTOLD) == (0, "NOT AUDITED: untold\n")
    assert audited(UNTOLD) == (0, "NOT AUDITED: no advisory of the 1 pinned packages was had\n")
    assert "NOT AUDITED" in audited(stdout="")[1]
    assert "no connection" in audited(stdout="")[1]
