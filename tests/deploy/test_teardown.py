"""What a teardown removes, and what it leaves though it lies in the folder that it is told."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BIN, TOP, sandbox_environment

OURS = [
    "bin/fl-site",
    "daemons/relay.lock",
    "env/bin/python",
    "fl_hpc-1.0.0-py3-none-any.whl",
    "log/audit",
    "logs/compute.log",
    "python-0123456789ab/bin/python3",
    "site.env",
    "site_code/digits/data.py",
    "state/jobs/one.json",
]


@pytest.fixture
def play(tmp_path):
    """Take down a site whose folder is `tmp_path`/site."""
    (tmp_path / "sites.ini").write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={tmp_path}/site\n"
    )
    variables = {
        "ansible_python_interpreter": sys.executable,
        "fl_client_id": "11111111-2222-4333-8444-555555555555",
        "fl_federation_dir": f"{tmp_path}/federation",
        "fl_audit_log": "{{ fl_site_dir }}/log/audit",
    }

    def _play(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
        extra = json.dumps(variables | more)
        return subprocess.run(
            [
                BIN / "ansible-playbook",
                "-i",
                tmp_path / "sites.ini",
                "-e",
                extra,
                *words,
                "playbooks/teardown.yml",
            ],
            cwd=TOP,
            env=sandbox_environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return _play


def lay_out(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def lay_out_a_daemon(site: Path, name: str) -> None:
    """What stops it, and says that there is one."""
    shutil.copy(TOP / "templates/site/daemon.py", site / "bin/daemon")
    (site / "bin/fl-site").write_text(f'#!/bin/sh\nPATH={site.parent}:$PATH exec "$@"\n')
    for program in ("daemon", "fl-site"):
        (site / "bin" / program).chmod(0o700)
    (site / f"daemons/{name}.json").write_text(
        json.dumps({"what": name, "mark": f"{site}/{name}", "pid_file": "pid", "restart_for": []})
    )


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_folder_in_which_no_site_was_is_left_as_it_is(play, tmp_path):
    """A home, mistyped for the folder in it."""
    lay_out(tmp_path / "site", ".bashrc", "bin/mine", "logs/mine", "notes.txt")
    done = play()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0"]
    assert "holds no site, and nothing in it was removed: .bashrc, notes.txt" in " ".join(
        done.stdout.split()
    )
    assert files(tmp_path / "site") == [".bashrc", "bin/mine", "logs/mine", "notes.txt"]


def test_what_somebody_else_put_beside_a_site_stays(play, tmp_path):
    site = tmp_path / "site"
    lay_out(site, *OURS, "notes.txt", "results/2026.csv")
    kept = play(fl_keep_data=["logs"])
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "stays, with what no deployment made: notes.txt, results" in " ".join(
        kept.stdout.split()
    )
    assert files(site) == ["logs/compute.log", "notes.txt", "results/2026.csv"]


def test_a_site_s_folder_goes_with_all_that_is_in_it(play, tmp_path):
    lay_out(tmp_path / "site", *OURS)
    for _ in range(2):
        done = play()
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (tmp_path / "site").exists()


def test_a_link_to_a_site_s_folder_goes_with_what_it_leads_to(play, tmp_path):
    """The usual way round a home's quota."""
    disk = tmp_path / "disk/fl"
    lay_out(disk, *OURS, "secrets/credentials.env", "notes.txt")
    (tmp_path / "site").symlink_to(disk)
    kept = play(fl_site_dir=f"{tmp_path}/site/")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert files(disk) == ["notes.txt"]
    lay_out(disk, *OURS)
    (disk / "notes.txt").unlink()
    for words in (["--check"], []):
        assert files(disk) == OURS
        done = play(*words, fl_site_dir=f"{tmp_path}/site/")
        assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("site")) == list((tmp_path / "disk").iterdir()) == []


def test_a_python_that_is_in_use_goes_after_all_else_or_is_told(play, tmp_path):
    """NFS keeps a folder of it, and what Ansible works with may be the one that was brought."""
    lay_out(tmp_path / "site", *OURS, "secrets/credentials.env")
    done = play(teardown_rest="exit 1")
    assert done.returncode == 2
    assert files(tmp_path / "site") == ["python-0123456789ab/bin/python3"]
    assert play().returncode == 0
    assert not (tmp_path / "site").exists()


def test_one_that_was_broken_off_is_finished_by_the_next(play, tmp_path):
    """What stops daemons may be gone then; what says that there are some has to go before it."""
    site = tmp_path / "site"
    lay_out(site, *OURS)
    lay_out_a_daemon(site, "relay")
    broken_off = play(teardown_gone="{{ nothing }}")
    assert broken_off.returncode == 2
    assert (site / "bin").exists()
    shutil.rmtree(site / "bin")
    done = play()
    assert done.returncode == 0, done.stdout + done.stderr
    assert not site.exists()


def test_what_is_written_after_a_look_into_the_folder_is_named(play, tmp_path):
    """By a job that goes on, say."""
    site = tmp_path / "site"
    lay_out(site, "site.env", "globus_compute/hpc/block-0/late")
    done = play(teardown_names=["lock", "site.env"])
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert f"home: fl: something still writes to {site}: end its jobs, run again" in said


def test_a_daemon_that_nothing_can_stop_is_named(play, tmp_path):
    """Its definition is there, and what stops it is not."""
    lay_out(tmp_path / "site", "daemons/relay.json")
    done = play()
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert f"{tmp_path}/site/bin/fl-site cannot be run; playbooks/environment.yml brings it" in said
    assert (tmp_path / "site/daemons/relay.json").exists()


SQUEUE = """#!/bin/sh
echo 'job 7 in partition cpu: RUNNING (None)|{0}/a'
echo 'job 8 in partition cpu: COMPLETING (None)|{0}/b'
echo 'job 9 in partition cpu: PENDING (Priority)|{0}/c'
"""
LEFT = (
    "still has job 7 in partition cpu: RUNNING (None); job 9 in partition cpu: PENDING (Priority)."
    " What does not end by itself, end there: scancel 7 9"
)
BUSY = "#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out' >&2\nexit 1\n"
UNKNOWN = "whether it has left jobs its scheduler does not tell: squeue: slurm_load_jobs error"


QSELECT = "#!/bin/sh\necho 7.pbs\n"
# Once a job has gone between the two questions.
QSTAT = """#!/bin/sh
[ -e {0}.asked ] || {{ touch {0}.asked; echo gone >&2; exit 153; }}
echo '{{"Jobs": {{"7.pbs": {{"queue": "q", "job_state": "R", "Output_Path": "login:{0}/out"}}}}}}'
"""
LEFT_THERE = "still has job 7.pbs in queue q: R (no comment)."
MUTE = "#!/bin/sh\n"
UNTOLD = "does not tell: qstat does not say more of 1 jobs"


@pytest.mark.parametrize(
    ("engine", "commands", "said"),
    [
        ("slurm", {"squeue": SQUEUE}, LEFT),
        ("slurm", {"squeue": BUSY}, UNKNOWN),
        ("pbspro", {"qselect": QSELECT, "qstat": QSTAT}, LEFT_THERE),
        ("pbspro", {"qselect": QSELECT, "qstat": MUTE}, UNTOLD),
    ],
)
def test_jobs_that_a_slow_scheduler_has_left_are_named(play, tmp_path, engine, commands, said):
    site = tmp_path / "site"
    lay_out(site, "bin/fl-site", "daemons/compute.lock", "site.env")
    lay_out_a_daemon(site, "compute")
    for name, text in commands.items():
        (tmp_path / name).write_text(text.format(site))
        (tmp_path / name).chmod(0o700)
    existing = {"fl_environment_kind": "existing", "fl_environment_prefix": str(BIN.parent)}
    done = play(fl_compute_engine=engine, **existing)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in " ".join(done.stdout.split())
    assert not site.exists()
