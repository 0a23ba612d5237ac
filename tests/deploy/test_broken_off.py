"""A deployment that is killed at drawn tasks, and run again, becomes the one that was meant."""

import random
import re
import subprocess
import sys

import pytest

from examples import leftovers
from tests.conftest import BIN, TOP, sandbox_environment

DAEMONS = ["playbooks/proxystore.yml", "playbooks/compute.yml"]
KILLS, BETWEEN = 3, 16
# The same of what comes before any daemon, which costs less.
QUIET_KILLS = {"playbooks/environment.yml": (3, 27), "playbooks/credentials.yml": (4, 10)}


@pytest.fixture
def site(federation):
    """Plays over a second site-a, in a folder and with ids of its own."""
    variables = {
        "fl_site_dir": "{{ fl_sandbox_dir }}/broken/{{ inventory_hostname }}",
        "fl_federation_name": "broken",
        "fl_environment_kind": "existing",
        "fl_environment_prefix": str(BIN.parent),
    }
    yield lambda *plays: federation.playbook(*plays, "--limit", "site-a", **variables)
    federation.play("playbooks/teardown.yml", "--limit", "site-a", **variables)


def kill_at(environment: dict[str, str], command: list[str], number: int) -> None:
    """Start a run and kill it as its task of that number begins."""
    run = subprocess.Popen(command, cwd=TOP, env=environment, stdout=subprocess.PIPE, text=True)
    seen = 0
    for line in run.stdout:
        seen += line.startswith("TASK [")
        if seen == number:
            run.kill()
            break
    run.stdout.close()
    assert run.wait(60) == -9, f"the run has ended before its task {number}"


@pytest.mark.daemons
@pytest.mark.timeout(600)  # three broken runs and three whole ones
def test_killed_at_drawn_tasks_and_run_again(federation, site):
    """Each kill falls later than the one before, so it falls on something new."""
    folder = federation.dir / "broken" / "site-a"
    done = federation.call(*site(*QUIET_KILLS))
    assert done.returncode == 0, done.stdout + done.stderr
    draw = random.Random(11)  # noqa: S311  (no secret)
    for before in range(KILLS):
        number = before * BETWEEN + draw.randint(1, BETWEEN)
        kill_at(federation.environment, site(*DAEMONS), number)
    done = federation.call(*site(*DAEMONS))
    assert done.returncode == 0, done.stdout + done.stderr
    again = federation.call(*site(*QUIET_KILLS, *DAEMONS))
    assert set(re.findall(r"changed=(\d+)", again.stdout)) == {"0"}, again.stdout
    commands = [" ".join(process.cmdline()) for process in leftovers.processes(folder)]
    assert sum("proxystore-endpoint start" in command for command in commands) == 1
    assert sum("Globus Compute Endpoint" in command for command in commands) == 1
    assert not (folder / "lock").exists()


def test_killed_at_drawn_tasks_before_there_is_a_daemon(tmp_path):
    inventory = tmp_path / "sites.ini"
    inventory.write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={tmp_path}/site\n[all:vars]\n"
        f"ansible_python_interpreter={sys.executable}\nfl_environment_kind=existing\n"
        f"fl_environment_prefix={BIN.parent}\nfl_client_secret=none\n"
        "fl_client_id=11111111-2222-4333-8444-555555555555\n"
    )
    environment = sandbox_environment(tmp_path)
    command = ["ansible-playbook", "-i", str(inventory)]
    draw = random.Random(11)  # noqa: S311  (no secret)
    for play, (kills, tasks) in QUIET_KILLS.items():
        for number in sorted(draw.sample(range(1, tasks), kills)):
            kill_at(environment, [*command, play], number)
    for _ in range(2):
        done = subprocess.run(
            [*command, *QUIET_KILLS],
            cwd=TOP,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}, done.stdout
    assert (tmp_path / "site/secrets/credentials.env").exists()
    assert not (tmp_path / "site/lock").exists()
