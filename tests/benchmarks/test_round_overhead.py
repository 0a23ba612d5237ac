"""What of a round is overhead, and what is taken down."""

from pathlib import Path

import pytest

from benchmarks import round_overhead


def warm_round(total: float) -> dict[str, object]:
    site = {"train": 2.0, "validate": 0.1}
    return {"seconds": {"total": total}, "updates": [{"after": 2.2, "seconds": site}]}


@pytest.mark.parametrize(("total", "met"), [(2.32, "met"), (2.33, "missed")])
def test_all_but_training_and_validation_is_compared_with_a_bare_task(capsys, total, met):
    round_overhead.report([warm_round(total)] * 3, [0.2] * 3, [0.1] * 3)
    assert f"claim {met}: overhead / bare task" in capsys.readouterr().out


def test_training_takes_longer_than_the_sdk_waits_between_submissions(monkeypatch, tmp_path):
    bench = round_overhead.Bench(tmp_path, {})
    bench.federation.mkdir()
    (bench.federation / "server.yaml").write_text(
        "{client_configs: {train_configs: {mode: step}}, server_configs: {}}"
    )
    bench.set_rounds()
    written = (bench.federation / "server.yaml").read_text()
    assert f"num_local_seconds: {round_overhead.TRAIN_SECONDS}" in written
    asked: list[str] = []
    monkeypatch.setattr(bench, "call", lambda *command: asked.extend(command) or "[1.0]")
    bench.bare_tasks("sdk")
    assert asked[-1] == str(round_overhead.TRAIN_SECONDS), "bare tasks are as far apart"


def test_the_sandbox_goes_also_where_a_site_cannot_be_taken_down(monkeypatch):
    called: list[str] = []

    def call(_bench: object, *command: str) -> str:
        called.append(" ".join(command))
        if command[0] == "ansible-playbook":
            raise SystemExit("a site is out of reach")
        return ""

    monkeypatch.setattr(round_overhead.Bench, "call", call)
    with pytest.raises(SystemExit):
        round_overhead.Bench(Path("/nowhere"), {}).take_down()
    assert called[-1] == "fl sandbox down"
