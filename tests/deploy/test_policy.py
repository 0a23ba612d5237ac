"""The site's policy as the play writes it: once, checked, and never again."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from fl.client.policy import Policy
from fl.config_files import load_section
from tests.conftest import BIN, TOP, sandbox_environment

RULES = {
    "experiments": ["digits"],
    "loaders": [{"path": "digits/data.py", "name": "load", "kwargs": {"client_id": 0}}],
    "min_samples": 100,
}


@pytest.fixture
def play(tmp_path):
    """Write the policy of a site whose folder is `tmp_path`/site."""

    def _play(policy):
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "fl_site_dir": str(tmp_path / "site"),
            "fl_environment_kind": "existing",
            "fl_environment_prefix": str(BIN.parent),
            "fl_client_id": "11111111-2222-4333-8444-555555555555",
            "fl_site_policy": policy,
        }
        return subprocess.run(
            [
                "ansible-playbook",
                "-i",
                "inventory/sites.ini",
                "--limit",
                "my-workstation",
                "-e",
                json.dumps(variables),
                "tests/deploy/policy.yml",
            ],
            cwd=TOP,
            env=sandbox_environment(tmp_path) | {"PYTHONPATH": str(TOP)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return _play


def test_a_policy_is_written_once_and_then_its_owners(play, tmp_path):
    first = play(RULES)
    assert first.returncode == 0, first.stdout
    file = tmp_path / "site" / "site-policy.yaml"
    assert load_section(file, Policy) == Policy.model_validate(RULES)
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("min_samples: 500\n")
    again = play(RULES | {"min_samples": 1})
    assert re.findall(r"changed=(\d+)", again.stdout) == ["0"]
    assert yaml.safe_load(file.read_text()) == {"min_samples": 500}


def test_a_policy_that_tasks_would_not_read_is_not_written(play, tmp_path):
    done = play({"min_sample": 3})
    assert done.returncode == 2
    assert "unknown key; did you mean min_samples?" in " ".join(done.stdout.split())
    assert not (tmp_path / "site" / "site-policy.yaml").exists()
