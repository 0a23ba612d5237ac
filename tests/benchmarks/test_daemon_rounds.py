"""What is taken down of a sandbox, and what is said of peers and of memory."""

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


@pytest.mark.parametrize(("last", "met"), [(105.0, "met: "), (106.0, "missed: ")])
def test_peers_and_memory_are_judged_and_a_peer_that_failed_is_not(capsys, last, met):
    times = {"ours, files": [1.0], "flwr run": [0.9], "NVFlare POC": []}
    daemon_rounds.report(times, [100.0, last])
    assert capsys.readouterr().out.splitlines() == [
        "claim missed: flwr run / ours, of medians: 0.900, to be at least 1",
        f"claim {met}the endpoints' memory, last / first: {last / 100:.3f}, to be at most 1.05",
    ]


class Deployed:
    """In place of a sandbox."""

    def rounds(self, megabytes, *, files):
        return [1.0, 2.0, 3.0]

    def memory(self):
        return 100.0


def fail(*_, **__):
    raise RuntimeError("no memory")


def test_a_peer_that_fails_in_every_turn_is_named_and_others_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(daemon_rounds, "flower_run", fail)
    monkeypatch.setattr(daemon_rounds, "nvflare_poc", lambda *_: [4.0])
    daemon_rounds.compare(Deployed(), 100)
    said = capsys.readouterr()
    assert "  flwr run                   fails\n" in said.out
    assert "claim met: NVFlare POC / ours" in said.out
    assert "claim met: flwr run" not in said.out
    assert said.err == "flwr run: no memory\n" * daemon_rounds.REPEATS


def test_our_own_failure_ends_the_benchmark(monkeypatch):
    monkeypatch.setattr(Deployed, "rounds", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        daemon_rounds.compare(Deployed(), 100)
