"""The commands of the documentation, as they stand there, over two deployed sites.

`ansible-playbook deploy.yml` alone has a stand-in, which runs two of its plays.
"""

import shutil

import pytest
import torch

from tests.conftest import BIN, TOP
from tests.documented import ALONE, NEEDS_CUDA, RUN
from tests.shell import Shell

pytestmark = pytest.mark.daemons
CHECKOUT = ("deploy.yml", "ansible.cfg", "inventory", "playbooks")
# The session's own deployment, of all plays, stands already: here run those that an experiment
# concerns, and they write into this folder in place of the real checkout's. No other is named.
PLAY = f"""#!/bin/bash
[ "$1" = deploy.yml ] || {{ echo "no stand-in for $1" >&2; exit 2; }}
shift
plays="playbooks/environment.yml playbooks/federation.yml"
exec {BIN}/ansible-playbook $plays "$@" -e fl_federation_dir="$PWD/federation"
"""


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
    typed = Shell(here, environment | {"PATH": f"{play.parent}:{environment['PATH']}"})
    for line in (line for line in ALONE if not line.startswith("fl-run")):
        typed.must(line)
    return typed


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command(shell, line):
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
