import os

import pytest

from fl.endpoints.credentials import load_environment, read_environment
from fl.errors import FederationError


def test_reads_shell_syntax(tmp_path):
    file = tmp_path / "site.env"
    file.write_text("# comment\nA=1\nexport B='two words'\n\nC=\"x=y\"\n")
    assert read_environment(file) == {"A": "1", "B": "two words", "C": "x=y"}


def test_what_is_set_already_stays(tmp_path, monkeypatch):
    file = tmp_path / "site.env"
    file.write_text("FL_TEST_A=file\nFL_TEST_B=file\n")
    monkeypatch.setenv("FL_TEST_A", "caller")
    monkeypatch.delenv("FL_TEST_B", raising=False)
    load_environment([file])
    assert (os.environ["FL_TEST_A"], os.environ["FL_TEST_B"]) == ("caller", "file")
    monkeypatch.delenv("FL_TEST_B")


def test_a_fault_names_the_line_but_not_the_secret(tmp_path):
    file = tmp_path / "credentials.env"
    file.write_text("A=1\nhunter2\n")
    with pytest.raises(FederationError, match=r"credentials\.env:2") as caught:
        read_environment(file)
    assert "hunter2" not in str(caught.value)


def test_a_missing_file_says_who_writes_it(tmp_path):
    with pytest.raises(FederationError, match=r"deploy\.yml"):
        read_environment(tmp_path / "none.env")


@pytest.mark.parametrize("content", [b"A='x", b"A=\xff\n"])
def test_what_is_no_text_of_a_shell_is_one_line(tmp_path, content):
    file = tmp_path / "credentials.env"
    file.write_bytes(content)
    with pytest.raises(FederationError, match=r"credentials\.env"):
        read_environment(file)
