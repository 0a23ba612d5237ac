"""The commands of the documentation, as they stand there, over two deployed sites."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.conftest import BIN, TOP
from tests.documented import NEEDS_CUDA, RUN, files

pytestmark = pytest.mark.daemons
CHECKOUT = ("deploy.yml", "ansible.cfg", "inventory", "playbooks")
# The session's own deployment, of all plays, stands already: here run those that an experiment
# concerns, and they write into this folder in place of the real checkout's.
PLAY = f"""#!/bin/bash
shift  # deploy.yml
plays="playbooks/environment.yml playbooks/federation.yml"
exec {BIN}/ansible-playbook $plays "$@" -e fl_federation_dir="$PWD/federation"
"""


@dataclass
class Shell:
    """A shell in a folder that looks like a checkout with its federation.

    Attributes:
        here: The folder.
        environment: Its variables.
        exported: What lines before said to export.
    """

    here: Path
    environment: dict[str, str]
    exported: list[str] = field(default_factory=list)

    def type(self, line: str) -> subprocess.CompletedProcess[str]:
        """Type a line."""
        if line.startswith("export "):
            self.exported.append(line)
        return subprocess.run(
            ["bash", "-c", "\n".join([*self.exported, line])],
            cwd=self.here,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def name_the_runs(self) -> None:
        """Give two of the runs that came to their end the names that the pages have."""
        runs = self.here / "runs"
        ended = sorted(model.parent for model in runs.glob("2*/model.safetensors"))
        for run, name in zip(ended, ("one", "other"), strict=False):
            if not os.path.lexists(runs / name):
                (runs / name).symlink_to(run)


@pytest.fixture(scope="module")
def shell(federation, tmp_path_factory):
    here = tmp_path_factory.mktemp("checkout")
    for name in CHECKOUT:
        (here / name).symlink_to(TOP / name)
    (here / ".venv").symlink_to(BIN.parent)
    (here / "audit.jsonl").symlink_to(federation.dir / "site-a" / "audit.jsonl")
    shutil.copytree(federation.federation_dir, here / "federation")
    (here / "bin").mkdir()
    play = here / "bin" / "ansible-playbook"
    play.write_text(PLAY)
    play.chmod(0o700)
    environment = {k: v for k, v in federation.environment.items() if k != "FL_SITE_CODE"}
    return Shell(here, environment | {"PATH": f"{play.parent}:{environment['PATH']}"})


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command(shell, line):
    if line.startswith("# "):
        (shell.here / line.removeprefix("# ")).write_text(files()[line])
        return
    if "runs/one" in line:
        shell.name_the_runs()
    if "3b0d..." in line:
        head = shell.type("fl audit verify audit.jsonl").stdout.split()[-1]
        line = line.replace("3b0d...", head)
    done = shell.type(line)
    if line == NEEDS_CUDA and not torch.cuda.is_available():
        assert done.returncode == 1, done.stdout + done.stderr
        assert "site-b: device 'cuda' is not here" in done.stderr
        assert "what their daemons said: ansible-playbook playbooks/collect-logs.yml" in done.stdout
        return
    assert done.returncode == 0, done.stdout + done.stderr
    if "$OWN_DATA" in line and "fl-run" in line:
        assert float(done.stdout.split("test accuracy:")[1]) > 0.8
