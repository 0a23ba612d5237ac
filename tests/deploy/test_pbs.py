"""Polaris's own file, from deploy.yml to tasks that ran, through stand-ins for PBS's commands."""

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import BIN, TOP, Federation
from tests.deploy.pbs import WAITING

NAME = "my-polaris"


def install(folder: Path) -> Path:
    """Put qsub, qselect, qstat, qdel and mpiexec into a folder."""
    folder.mkdir()
    for name in ("qsub", "qselect", "qstat", "qdel", "mpiexec"):
        shutil.copy(Path(__file__).with_name("pbs.py"), folder / name)
        (folder / name).chmod(0o700)
    return folder


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    folder = install(tmp_path / "pbs")
    monkeypatch.setenv("PATH", f"{folder}:{BIN}:/usr/bin:/bin")
    return folder


@pytest.fixture(scope="module")
def polaris(federation) -> Iterator[Federation]:
    """A federation of one site, with everything that inventory/ says of Polaris."""
    folder = federation.dir / "pbs"
    commands = install(folder)
    shutil.copytree(TOP / "inventory" / "group_vars", folder / "inventory" / "group_vars")
    inventory = folder / "inventory" / "sites.ini"
    inventory.write_text(
        "[server]\nhome\n[polaris]\nmy-polaris fl_compute_account=my-project\n"
        "[sites:children]\npolaris\n[pbs:children]\npolaris\n"
        # What the sandbox says of any site stands in a group above the machine's.
        "[sandbox:children]\nserver\npbs\n[sandbox:vars]\nansible_connection=local\n"
    )
    # This machine has no hsn0, no GPU and no /opt/pbs/bin.
    variables = {
        "fl_federation_dir": str(folder / "federation"),
        "fl_federation_name": "pbs",
        "fl_site_dir": "{{ fl_sandbox_dir }}/pbs/{{ inventory_hostname }}",
        "fl_environment_kind": "existing",
        "fl_environment_prefix": str(BIN.parent),
        "fl_train_configs": {"device": "cpu"},
        "fl_path": [str(commands)],
    }
    made = replace(federation, inventory=inventory, variables=variables)
    try:
        yield made
    finally:
        made.play("playbooks/teardown.yml")


def jobs(federation: Federation) -> dict[str, dict]:
    answer = federation.call(str(federation.dir / "pbs" / "qstat"), "-x", "-f", "-F", "json")
    return json.loads(answer.stdout)["Jobs"]


@pytest.mark.daemons
def test_a_task_runs_in_a_job_of_polaris(polaris):
    done = polaris.play("deploy.yml")
    assert re.search(rf"{NAME} +worker +ok", done.stdout)
    (job,) = jobs(polaris).values()
    assert job["queue"] == "debug"
    assert job["job_state"] == "R"
    again = polaris.play("playbooks/compute.yml")
    assert set(re.findall(r"changed=(\d+)", again.stdout)) == {"0"}


@pytest.mark.daemons
def test_a_project_that_is_refused_in_pbss_words(polaris):
    done = polaris.play(
        "playbooks/compute.yml",
        "playbooks/health.yml",
        check=False,
        fl_compute_account="not-mine",
    )
    assert done.returncode == 2
    assert re.search(rf"{NAME} +worker +FAILED .*qsub: Invalid account", done.stdout)
    assert [job["job_state"] for job in jobs(polaris).values()] == ["F"], "the first job was ended"


def test_what_the_scheduler_says_of_a_sites_jobs(commands, tmp_path):
    """The site's own and no other's, each with the scheduler's reason."""
    for site in ("mine", "mine-too", "mine"):
        script = tmp_path / f"{site}.sh"
        script.write_text(
            f"#PBS -N {site}\n#PBS -l filesystems=home\n"
            f"#PBS -o {tmp_path}/{site}/out\n#PBS -e {tmp_path}/{site}/err\nsleep 60\n"
        )
        (tmp_path / site).mkdir(exist_ok=True)
        submit = ["qsub", "-q", "debug", "-A", "my-project", script]
        subprocess.run(submit, check=True, timeout=30)
    said = ask("pbspro", tmp_path / "mine")
    subprocess.run(["qdel", "1", "2", "3"], check=True, timeout=30)
    assert said.stdout.splitlines() == [
        "job 1.pbs-stand-in in queue debug: R (Job run at now)",
        f"job 3.pbs-stand-in in queue debug: Q ({WAITING})",
    ]
    assert ask("pbspro", tmp_path / "mine").stdout == ""


def test_jobs_of_a_site_whose_folder_is_a_link_are_its_own(tmp_path):
    """Globus Compute writes their scripts by the path that the link leads to."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "site").symlink_to("disk")
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho 'job 1|{tmp_path}/disk/script'\n")
    (tmp_path / "squeue").chmod(0o700)
    said = ask("slurm", tmp_path / "site", f"{tmp_path}:/usr/bin:/bin")
    assert (said.returncode, said.stdout) == (0, "job 1\n")


def test_a_scheduler_that_is_not_there_is_named(tmp_path):
    done = ask("slurm", tmp_path, path=str(tmp_path))
    assert done.returncode == 1
    assert "squeue" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_slow_scheduler_has_as_long_as_the_inventory_says(tmp_path):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nsleep 2\necho 'job 1|{tmp_path}/script'\n")
    (tmp_path / "squeue").chmod(0o700)
    path = f"{tmp_path}:/usr/bin:/bin"
    slow = ask("slurm", tmp_path, path, seconds=0.5)
    assert (slow.returncode, slow.stdout) == (1, "")
    assert "timed out after 0.5 seconds" in slow.stderr
    assert ask("slurm", tmp_path, path).stdout == "job 1\n"


def ask(
    engine: str, folder: Path, path: str = "", seconds: float = 30
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOP / "templates/compute/jobs.py", engine, folder, f"{seconds:g}"],
        env={"PATH": path} if path else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def qstat_says(tmp_path, said, code=0):
    """What `jobs` makes of a user with two jobs, one of them the site's."""
    for name, text, ends in (("qselect", "1.pbs\n2.pbs\n", 0), ("qstat", said, code)):
        (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / name).write_text(
            f'#!/bin/sh\ncat "$0.txt"\necho "$@" > "$0.asked"\nexit {ends}\n'
        )
        (tmp_path / name).chmod(0o700)
    command = [sys.executable, TOP / "templates/compute/jobs.py", "pbspro", "/sites/a", "30"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_no_job_of_anothers_keeps_the_scheduler_from_answering(tmp_path):
    """PBS makes no JSON of some environments: it is asked for this user's jobs alone."""
    job = {"queue": "debug", "job_state": "Q", "Output_Path": "login:/sites/a/out", "comment": "no"}
    done = qstat_says(tmp_path, json.dumps({"Jobs": {"1.pbs": job}}))
    assert (done.returncode, done.stdout) == (0, "job 1.pbs in queue debug: Q (no)\n")
    assert (tmp_path / "qstat.asked").read_text() == "-f -F json 1.pbs 2.pbs\n"
    assert getpass.getuser() in (tmp_path / "qselect.asked").read_text()


@pytest.mark.parametrize(("said", "code"), [('{"Jobs": "\\x"}', 0), ("Unknown Job Id", 153)])
def test_what_cannot_be_read_is_an_answer_all_the_same(tmp_path, said, code):
    done = qstat_says(tmp_path, said, code)
    assert (done.returncode, done.stdout) == (0, "")
    assert "qstat does not say more of 2 jobs" in done.stderr
