"""Which ways between endpoints health.yml tries, with commands that say nothing."""

import json
import re
import subprocess
import sys

from tests.conftest import TOP, sandbox_environment

SITES = ("site-a", "site-b", "site-c")


def test_the_server_and_each_site_try_each_other_and_sites_do_not(tmp_path):
    """Models travel no other way, and pairs of sites would be thousands in a large federation."""
    (tmp_path / "bin").mkdir()
    for name, line in (("fl-site", 'exec "$@"'), ("daemon", ""), ("proxystore-endpoint", "")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o700)
    (tmp_path / "bin/fl").write_text("#!/bin/sh\necho '[]'\n")
    (tmp_path / "bin/fl").chmod(0o700)
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "fl_client_id": "11111111-2222-4333-8444-555555555555",
        "fl_environment_kind": "existing",
        "fl_environment_prefix": str(tmp_path),
        "fl_site_dir": str(tmp_path),
    }
    (tmp_path / "sites.ini").write_text(
        "[server]\nhome ansible_connection=local\n[sites]\n" + "\n".join(SITES) + "\n"
    )
    done = subprocess.run(
        [
            "ansible-playbook",
            "-i",
            tmp_path / "sites.ini",
            "-e",
            json.dumps(variables),
            "playbooks/health.yml",
        ],
        cwd=TOP,
        env=sandbox_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tried = re.findall(r"(\S+) +to (\S+) +ok", done.stdout)
    there, back = [("home", site) for site in SITES], [(site, "home") for site in SITES]
    assert sorted(tried) == sorted(there + back)
