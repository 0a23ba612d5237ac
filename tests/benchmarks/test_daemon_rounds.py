"""What is taken down of a sandbox."""

from pathlib import Path

import pytest

from benchmarks import daemon_rounds


def test_the_sandbox_goes_also_where_a_site_cannot_be_taken_down(monkeypatch):
    called: list[str] = []

    def call(_sandbox: object, *command: str) -> None:
        called.append(" ".join(command))
        if command[0] == "ansible-playbook":
            raise RuntimeError("a site is out of reach")

    monkeypatch.setattr(daemon_rounds.Sandbox, "_call", call)
    with pytest.raises(RuntimeError):
        daemon_rounds.Sandbox(Path("/nowhere")).take_down()
    assert called[-1] == "fl sandbox down"
