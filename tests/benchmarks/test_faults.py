"""What the benchmark of faults kills, and what it leaves."""

import subprocess
import sys

import psutil
import pytest

from benchmarks import faults


@pytest.fixture
def lab(tmp_path):
    return faults.Lab(tmp_path)


def test_a_part_of_which_no_process_is_found_has_no_row(lab):
    for part in (faults.Part("relay", lambda _: []), faults.Part("worker", faults.Lab.worker)):
        with pytest.raises(SystemExit, match=f"{part.name}: there is no such process"):
            faults.kill(lab, part)


def test_what_is_found_is_killed_and_of_nothing_nothing_is(lab):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        faults.kill(lab, next(part for part in faults.PARTS if part.name == "nothing"))
        faults.kill(lab, faults.Part("it", lambda _: [psutil.Process(process.pid)]))
        assert process.wait(30) == -9


def test_a_run_ends_with_the_lab_and_the_sandbox_too_where_a_site_stays(lab, monkeypatch, tmp_path):
    program = tmp_path / "fl-run"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(faults, "BIN", tmp_path)
    called: list[str] = []

    def call(*command: str, check: bool) -> None:
        called.append(" ".join(command))
        if command[0] == "ansible-playbook":
            raise KeyboardInterrupt

    monkeypatch.setattr(lab, "call", call)
    run = lab.start()
    with pytest.raises(KeyboardInterrupt):
        lab.take_down()
    try:
        assert run.wait(30) == -9
    finally:
        run.kill()
    assert called[-1] == "fl sandbox down"
