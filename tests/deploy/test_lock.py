"""Who holds a site while plays change it, and on which login node that is."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from datetime import datetime

import psutil
import pytest
import yaml

from tests import packages
from tests.conftest import BIN, TOP

CLIENT = "11111111-2222-4333-8444-555555555555"
PLAY = "playbooks/credentials.yml"
# A number that no process has: the kernel's are below.
BEYOND = str(2**22)


@pytest.fixture
def play(tmp_path):
    """Give a site its credentials, once or more in one call."""
    (tmp_path / "site/daemons").mkdir(parents=True)
    (tmp_path / "sites.ini").write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={tmp_path}/site\n[all:vars]\n"
        f"ansible_python_interpreter={sys.executable}\nfl_client_id={CLIENT}\n"
        f"fl_client_secret=none\n"
    )

    def _play(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "ansible-playbook", "-i", tmp_path / "sites.ini", *words],
            cwd=TOP,
            env=os.environ | {"ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return _play


def test_of_two_playbooks_in_one_call_each_takes_the_site(play, tmp_path):
    """The first gives it back at its end, so the second must not believe that it still has it."""
    done = play(PLAY, PLAY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("TASK [lock : Take the site, or read who has it]") == 2
    assert not (tmp_path / "site" / "lock").exists()


@pytest.mark.parametrize("words", [[], ["--check"]])
def test_an_alias_that_leads_to_another_login_node_is_refused_before_anything(
    play, tmp_path, words
):
    record = tmp_path / "site/daemons/proxystore.running"
    record.write_text(json.dumps({"host": "login02", "pid": 1}) + "\n")
    done = play(PLAY, *words)
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert f"is {socket.gethostname()}, and this site's daemons are on login02" in said
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["daemons"]
    record.write_text(json.dumps({"host": socket.gethostname(), "pid": 1}) + "\n")
    assert play(PLAY, *words).returncode == 0


def name(*words: str) -> str:
    """What the role's program says."""
    command = [sys.executable, TOP / "templates/lock/holder.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def of_this_machine(process: str, since: str) -> str:
    """Bob's run on it."""
    (machine,) = re.findall(r"@(\S+) ", name())
    return f"bob@{machine} process {process} since {since}"


def test_a_second_operator_is_told_who_is_at_work(play, tmp_path):
    """Another's run, or this machine's own that still goes on, has the site; a dead one has not."""
    lock = tmp_path / "site" / "lock"
    here = psutil.Process()
    since = datetime.fromtimestamp(here.create_time()).isoformat(" ", "seconds")
    for holder, free in (
        ("ann@elsewhere process 1 since 2026-01-01 09:00:00", False),
        (of_this_machine(str(here.pid), since), False),
        (of_this_machine(str(here.pid), "2026-01-01 09:00:00"), True),
    ):
        lock.write_text(f"{holder}\n")
        done = play(PLAY)
        assert (done.returncode == 0) is free, done.stdout
        assert (f"home is being changed by {holder}" in " ".join(done.stdout.split())) is not free
        assert lock.exists() is not free


def test_a_machines_name_alone_does_not_say_that_a_run_is_over():
    """Laptops are called localhost, and cloud machines ubuntu."""
    dead = of_this_machine(BEYOND, "2026-01-01 09:00:00")
    assert name(dead) == "over"
    assert name(re.sub(r"@\S+", f"@{socket.gethostname()}", dead)) == "unknown"
    assert name(re.sub(r"@\S+", f"@{socket.gethostname()}/0f0f0f0f", dead)) == "unknown"


@pytest.mark.parametrize("hidden", [psutil.NoSuchProcess(1), psutil.AccessDenied(1)])
def test_a_run_that_proc_hides_is_not_over(monkeypatch, hidden):
    """Another user's, where users see their own processes alone (hidepid 2, and 1)."""

    def hide(pid: int) -> psutil.Process:
        raise hidden

    is_over = runpy.run_path(str(TOP / "templates/lock/holder.py"))["is_over"]
    lines = [of_this_machine(pid, "2026-01-01 09:00:00") for pid in ("1", BEYOND)]
    monkeypatch.setattr(psutil, "Process", hide)
    assert not is_over(lines[0])
    assert is_over(lines[1]) is isinstance(hidden, psutil.NoSuchProcess)


def test_of_two_runs_that_see_one_over_the_slower_is_refused(play, tmp_path):
    """Both have seen it, and the other's lock is there when this one comes to take it."""
    lock = tmp_path / "site/lock"
    lock.write_text(of_this_machine(BEYOND, "2026-01-01 09:00:00") + "\n")
    ann = "ann@elsewhere process 1 since 2026-01-01 09:00:00"
    faster = json.dumps({"lock_release": f'echo {ann} > "$1"'})
    done = play(PLAY, "-e", faster)
    assert done.returncode == 2
    assert f"home is being changed by {ann}" in " ".join(done.stdout.split())
    assert lock.read_text() == f"{ann}\n"


def test_a_lock_that_was_taken_amid_the_removal_of_a_dead_one_stays(tmp_path):
    """The faster run has removed the dead one, once this one had looked."""
    lock, looked = tmp_path / "lock", tmp_path / "looked"
    lock.write_text("dead\n")
    (tmp_path / "cat").write_text(
        f'#!/bin/sh\n/bin/cat "$@"\n[ -e {looked} ] || {{ touch {looked}; echo ann > {lock}; }}\n'
    )
    (tmp_path / "cat").chmod(0o700)
    release = yaml.safe_load((TOP / "playbooks/roles/lock/vars/main.yml").read_text())
    done = subprocess.run(
        ["sh", "-c", release["lock_release"], "lock", lock, "dead"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=False,
        timeout=20,
    )
    assert done.returncode == 0
    assert [path.read_text() for path in tmp_path.glob("lock*")] == ["ann\n"]


def test_an_empty_lock_of_a_full_disk_is_nobodys(play, tmp_path):
    """Who took it for their own held nothing, and left it there."""
    (tmp_path / "site/lock").touch()
    done = play(PLAY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "site").glob("lock*")] == []


def test_a_csh_as_login_shell_is_no_hindrance(play, tmp_path):
    """It reads what ssh is given, and its quotes do not go over the end of a line."""
    if reason := packages.install({"tcsh": "tcsh"}):
        pytest.skip(reason)
    ssh = tmp_path / "ssh"
    # As sshd does it: the last of the words goes to the login shell.
    ssh.write_text('#!/bin/sh\nfor command; do :; done\nexec tcsh -c "$command"\n')
    ssh.chmod(0o700)
    (tmp_path / "sites.ini").open("a").write(
        f"[sites]\nhpc ansible_ssh_executable={ssh} ansible_ssh_transfer_method=piped"
        f" fl_site_dir={tmp_path}/hpc\n"
    )
    (tmp_path / "hpc").mkdir()
    done = play(PLAY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "hpc").iterdir()] == ["secrets"]
