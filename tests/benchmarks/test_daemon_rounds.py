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


def test_peers_and_memory_are_judged_and_a_peer_that_failed_is_not(capsys):
    times = {"ours, files": [1.0], "flwr run": [0.9], "NVFlare POC": []}
    daemon_rounds.report(times, [100.0, 101.0])
    assert capsys.readouterr().out.splitlines() == [
        "claim missed: flwr run / ours, of medians: 0.900, to be at least 1",
        "claim missed: the endpoints' memory, last / first: 1.010, to be at most 1",
    ]
