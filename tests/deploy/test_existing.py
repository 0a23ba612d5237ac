"""A site whose environment somebody else made, and brings up to date."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import TOP, sandbox_environment

VERSIONS = {"Python": "3.11", "parsl": "2026.1.5"}


@pytest.fixture
def play(tmp_path):
    """Run the environment play for a site, where server and environment say the same versions."""
    (tmp_path / "sites.ini").write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={tmp_path}/site\n"
    )
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec cat {tmp_path}/versions\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)

    def _play(check: bool = True, **versions: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "ansible_python_interpreter": sys.executable,
            "fl_client_id": "11111111-2222-4333-8444-555555555555",
            "fl_federation_dir": f"{tmp_path}/federation",
            "fl_environment_kind": "existing",
            "fl_environment_prefix": f"{tmp_path}/env",
            "environment_server_versions": versions,
        }
        (tmp_path / "versions").write_text(json.dumps(versions))
        command = ["ansible-playbook", "-i", str(tmp_path / "sites.ini")]
        done = subprocess.run(
            [*command, "-e", json.dumps(variables), "playbooks/environment.yml"],
            cwd=TOP,
            env=sandbox_environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    return _play


def test_its_versions_are_written_down_for_the_daemons_to_be_restarted(play, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site").chmod(0o2775)
    play(**VERSIONS)
    mode = (tmp_path / "site").stat().st_mode & 0o777
    assert mode == 0o700, "a folder that was there before becomes its owner's alone"
    written = tmp_path / "site/versions.json"
    assert json.loads(written.read_text()) == VERSIONS
    assert re.findall(r"changed=(\d+)", play(**VERSIONS).stdout) == ["0"]
    newer = VERSIONS | {"parsl": "2026.2.1"}
    assert re.findall(r"changed=(\d+)", play(**newer).stdout) == ["1"]
    assert json.loads(written.read_text()) == newer


def test_one_that_is_not_there_is_named(play, tmp_path):
    (tmp_path / "env/bin/python").unlink()
    done = play(check=False)
    assert done.returncode == 2
    assert f"no Python at {tmp_path}/env/bin/python" in " ".join(done.stdout.split())
