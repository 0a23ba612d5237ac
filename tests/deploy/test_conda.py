"""conda prefixes: made, left alone, made whole again, and refused."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TOP, sandbox_environment
from tests.deploy import conda_channel

Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's folder, a lock and a command to install it."""
    made = tmp_path_factory.mktemp("conda")
    (made / "lock").write_text(conda_channel.publish(made / "channel"))
    conda_channel.write_command(made / "micromamba")
    return made


@pytest.fixture(scope="module")
def play(folder: Path) -> Play:
    """Run the environment play for one site."""
    inventory = folder / "sites.ini"
    inventory.write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={folder}/home\n"
        f"[sites]\nhpc ansible_connection=local fl_site_dir={folder}/site\n"
    )
    variables = {
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "fl_client_id": "d0f6b3a8-3d5b-4c53-9b0e-6a0f5b0f7a11",
        "fl_client_secret": "not one",
        "fl_data_configs": {"dataset_path": "digits/data.py", "dataset_name": "get_digits"},
        "fl_federation_dir": f"{folder}/federation",
        "fl_environment_kind": "conda",
        "fl_environment_conda": f"{folder}/micromamba",
        "fl_environment_lock": f"{folder}/lock",
        # Everything is imported from where the tests run: nothing is to be fetched.
        "fl_wheelhouse": f"{folder}/none",
    }

    def _play(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
        extra = json.dumps(variables | more)
        command = ["ansible-playbook", "-i", str(inventory), "-e", extra, "--limit", "hpc", *words]
        return subprocess.run(
            [*command, "playbooks/environment.yml"],
            cwd=TOP,
            env=sandbox_environment(folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    return _play


def changes(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"changed=(\d+)", done.stdout)[1])


@pytest.fixture(scope="module")
def deployed(folder: Path, play: Play) -> Path:
    """The prefix."""
    assert changes(play()) > 0
    return folder / "site" / "env"


def python(prefix: Path, code: str) -> str:
    """What a prefix's Python prints."""
    command = [prefix / "bin" / "python", "-c", code]
    done = subprocess.run(command, cwd=prefix, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


def test_the_locks_packages_and_this_checkout_are_in_the_prefix(deployed):
    records = [json.loads(file.read_text()) for file in (deployed / "conda-meta").glob("*.json")]
    assert [record["name"] for record in records] == ["python"]
    assert python(deployed, "import fl; print(fl.__file__)").startswith(str(deployed))
    # By it, daemons that follow versions alone are restarted for another lock.
    assert re.search(r"(?m)^lock [0-9a-f]{64}$", (deployed / ".fl-pins").read_text())


def test_an_unchanged_one_is_left_alone(deployed, play):
    before = (deployed / "conda-meta" / "history").stat().st_mtime_ns
    assert changes(play()) == 0
    assert (deployed / "conda-meta" / "history").stat().st_mtime_ns == before


def test_a_check_run_of_an_upgrade_says_what_is_to_come(deployed, folder, play):
    """The versions that are to be installed are not there yet, which is no fault then."""
    newer = {"environment_server_versions": {"Python": conda_channel.MINOR, "parsl": "2099.1.1"}}
    (folder / "newer").write_text(f"# newer\n{(folder / 'lock').read_text()}")
    before = (deployed / ".fl-installed").read_text()
    assert changes(play("--check", fl_environment_lock=f"{folder}/newer", **newer)) > 0
    assert (deployed / ".fl-installed").read_text() == before
    current = play("--check", **newer)
    assert current.returncode == 2
    assert "they must agree" in " ".join(current.stdout.split())


def test_one_without_its_python_is_made_whole_and_not_wiped(deployed, play):
    (deployed / "bin" / "python").unlink()
    (deployed / "notes.txt").write_text("somebody's")
    assert changes(play()) > 0
    assert python(deployed, "import fl; print(fl.__file__)").startswith(str(deployed))
    assert (deployed / "notes.txt").read_text() == "somebody's"


def test_one_whose_making_was_broken_off_is_made_anew(deployed, play):
    """Before conda's own record is written; ours names the prefix already."""
    (deployed / "conda-meta" / "history").unlink()
    (deployed / ".fl-installed").unlink()
    assert changes(play()) > 0
    assert python(deployed, "import fl; print(fl.__file__)").startswith(str(deployed))


def test_another_prefix_than_the_one_that_was_made_is_left_alone(deployed, folder, play):
    """The site has made one; that says nothing of whose this is."""
    mine = folder / "project"
    mine.mkdir()
    (mine / "results.csv").write_text("a year's work")
    done = play(fl_environment_prefix=str(mine))
    assert done.returncode == 2
    assert "no deployment of this site made it" in " ".join(done.stdout.split())
    assert (mine / "results.csv").read_text() == "a year's work"


def test_somebody_elses_prefix_is_left_alone(folder, play):
    theirs = folder / "theirs"
    (theirs / "conda-meta").mkdir(parents=True)
    (theirs / "conda-meta" / "history").write_text("theirs\n")
    done = play(fl_site_dir=f"{folder}/other", fl_environment_prefix=str(theirs))
    assert done.returncode == 2
    assert "no deployment of this site made it" in " ".join(done.stdout.split())
    assert [path.name for path in theirs.rglob("*")] == ["conda-meta", "history"]


def test_a_lock_that_does_not_fit_is_refused_before_anything_is_made(tmp_path, play):
    """Four sites, each with a fault of its own."""
    publish = conda_channel.publish
    faults = {
        "python=3.11\n": "has no line @EXPLICIT",
        re.sub("#[0-9a-f]{32}", "", publish(tmp_path / "a")): "names packages without a checksum",
        publish(tmp_path / "b", subdir="osx-arm64"): "has packages that are not for linux-64",
        publish(tmp_path / "c", version="3.9.1"): (
            f"has no Python {conda_channel.MINOR}, which the server runs"
        ),
    }
    for number, lock in enumerate(faults):
        (tmp_path / f"lock-{number}").write_text(lock)
    inventory = tmp_path / "sites.ini"
    sites = [
        f"site-{number} ansible_connection=local fl_site_dir={tmp_path}/{number}"
        for number in range(len(faults))
    ]
    inventory.write_text("\n".join(["[sites]", *sites, ""]))
    done = play(
        *("-i", str(inventory), "--limit", "sites:!hpc"),
        fl_environment_lock=f"{tmp_path}/lock-{{{{ inventory_hostname[-1] }}}}",
    )
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    for number, message in enumerate(faults.values()):
        assert f"site-{number}: {tmp_path}/lock-{number} {message}" in said
        assert not (tmp_path / str(number) / "bin").exists()
