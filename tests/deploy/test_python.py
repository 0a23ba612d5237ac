"""A login node whose Pythons are too old for Ansible.

No Python that old can be had from a package index, so one stands in for all that are on the path:
it says 3.6 and refuses whatever it is given, as 3.6 refuses Ansible's modules. The one that is
brought there is real: the interpreter and the library that run these tests.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.conftest import BIN, TOP

OLD = """#!/bin/sh
[ "$1" = --version ] && echo Python 3.6.8 && exit
echo "SyntaxError: future feature annotations is not defined" >&2
exit 1
"""


@pytest.fixture
def play(tmp_path):
    """Run the beginning of a play on such a node, with variables put in."""
    names = ("python3", *(f"python3.{minor}" for minor in range(8, 15)))
    for name in names:
        (tmp_path / name).write_text(OLD)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sites.ini").write_text(
        f"[server]\nhome ansible_connection=local\n[sites]\nhpc ansible_connection=local\n"
        f"[all:vars]\nfl_site_dir={tmp_path}/site\n"
        "fl_client_id=11111111-2222-4333-8444-555555555555\n"
    )
    # Ansible looks at these paths, too, where nobody has chosen one.
    (tmp_path / "ansible.cfg").write_text(
        f"[defaults]\nroles_path={TOP}/playbooks/roles\n"
        f"interpreter_python_fallback={tmp_path}/python3\n"
    )

    def _play(*words, **variables):
        playbook = [] if words[-1:] and words[-1].endswith(".yml") else ["tests/deploy/python.yml"]
        return subprocess.run(
            [
                BIN / "ansible-playbook",
                "-i",
                tmp_path / "sites.ini",
                "-e",
                json.dumps(variables),
                *words,
                *playbook,
            ],
            cwd=TOP,
            env=os.environ
            | {
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
            },
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return _play


def test_the_site_s_newer_python_is_what_ansible_works_with(play, tmp_path):
    newer = tmp_path / "module" / "python3"
    newer.parent.mkdir()
    newer.symlink_to(sys.executable)
    done = play(fl_environment_python=str(newer))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"by {newer}" in done.stdout


def test_where_there_is_none_a_line_says_what_to_set(play):
    done = play()
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert "hpc: no Python from 3.8 on, which Ansible needs there" in said
    assert "Set fl_environment_python to the path of one" in said
    assert "or fl_python_archive to an archive with one" in said


def test_a_deployment_whose_python_is_gone_is_not_taken_for_gone_itself(play, tmp_path):
    """Its daemons may run, and cron starts them again."""
    down = ("--limit", "hpc", "playbooks/teardown.yml")
    for name, left in (("logs", True), ("secrets", False), ("daemons", False)):
        (tmp_path / "site" / name).mkdir(parents=True)
        done = play(*down)
        said = " ".join(done.stdout.split())
        assert (done.returncode == 0) is left, done.stdout + done.stderr
        assert ("no deployment of ours stands there: nothing is done" in said) is left
        assert ("Set fl_environment_python to the path of one" in said) is not left
        (tmp_path / "site" / name).rmdir()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> dict[str, str]:
    """What the inventory says of an archive with a Python, laid out as their publishers do it."""
    packed = tmp_path_factory.mktemp("archive") / "python with a space.tar.gz"
    python, library = Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))
    with tarfile.open(packed, "w:gz", compresslevel=1) as made:
        made.add(python, "python/bin/python3")
        made.add(library, f"python/lib/{library.name}", filter=_wanted)
    return {
        "fl_python_archive": str(packed),
        "fl_python_archive_sha256": hashlib.sha256(packed.read_bytes()).hexdigest(),
    }


def _wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    left = re.search(r"/(site-packages|dist-packages|test|__pycache__|config-[^/]+)$", member.name)
    return None if left else member


def test_the_operator_s_python_is_brought_once_and_gone_after_teardown(play, tmp_path, archive):
    brought = tmp_path / "site" / f"python-{archive['fl_python_archive_sha256'][:12]}/bin/python3"
    check = play("--check", fl_python_absent="bring", **archive)
    assert check.returncode == 0, check.stdout + check.stderr
    assert "until a run without --check brings fl_python_archive" in " ".join(check.stdout.split())
    assert not (tmp_path / "site").exists()

    first = play(fl_python_absent="bring", **archive)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"by {brought}, and the venv's is {brought}" in first.stdout
    assert "changed=1" in first.stdout
    # Whole or not at all: nothing else is left of the way there.
    assert list((tmp_path / "site").iterdir()) == [brought.parents[1]]
    assert "changed=0" in play(fl_python_absent="bring", **archive).stdout

    down = play("--limit", "hpc", "playbooks/teardown.yml", **archive)
    assert down.returncode == 0, down.stdout + down.stderr
    assert not (tmp_path / "site").exists()
    again = play("--limit", "hpc", "playbooks/teardown.yml", **archive)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed=0" in again.stdout


def test_a_python_that_was_half_removed_is_brought_again(play, tmp_path, archive):
    folder = tmp_path / "site" / f"python-{archive['fl_python_archive_sha256'][:12]}"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python3").symlink_to("/nowhere")
    done = play(fl_python_absent="bring", **archive)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"by {folder}/bin/python3" in done.stdout


@pytest.mark.parametrize(
    ("content", "digest", "message"),
    [
        (b"<html>not found</html>", "0" * 64, f"its SHA-256 is not {'0' * 64}"),
        (b"<html>not found</html>", "", "tar cannot unpack it"),
        (b"\0" * 10240, "", "it has no bin/python3, nor a folder with one"),
    ],
)
def test_an_archive_that_is_not_one_leaves_nothing(play, tmp_path, content, digest, message):
    archive = tmp_path / "python.tar.gz"
    archive.write_bytes(content)
    digest = digest or hashlib.sha256(content).hexdigest()
    variables = {"fl_python_archive": str(archive), "fl_python_archive_sha256": digest}
    done = play(fl_python_absent="bring", **variables)
    assert done.returncode == 2
    assert f"hpc: {archive} was not unpacked there: {message}" in " ".join(done.stdout.split())
    assert list((tmp_path / "site").iterdir()) == []


def test_other_plays_say_who_brings_it(play, archive):
    done = play(**archive)
    assert done.returncode == 2
    assert "playbooks/environment.yml brings the one of fl_python_archive" in " ".join(
        done.stdout.split()
    )
