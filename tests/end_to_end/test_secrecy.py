"""What a deployment and a run leave, seen by who should not see it: the secret, and our files."""

import base64
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import OWN
from tests.end_to_end.test_fl_run import FL_RUN, wait_for, write_files

pytestmark = pytest.mark.daemons
SITES = ("home", "site-a", "site-b")
HOLDERS = {
    "home": {
        Path("client_secret"),
        *(Path(site, "secrets/credentials.env") for site in SITES if site != OWN),
    },
    OWN: {
        Path("clients", f"{OWN}.json"),
        Path(OWN, "secrets/credentials.env"),
        Path("home/secrets/clients", f"{OWN}.env"),
    },
}
"""Files that have a client's secret: that of all, and that of one site."""
# Walks a folder below the current one as `nobody`, and prints what it could look into.
STRANGER = """
import os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for folder, _, files in os.walk(sys.argv[1]):
    print(folder)
    for name in files:
        try:
            open(os.path.join(folder, name), "rb").close()
        except OSError:
            continue
        print(os.path.join(folder, name))
"""


def secret_forms(federation, site):
    """A site's secret in plain text, and as HTTP's Basic scheme has it with its client's id."""
    client_id, secret = (
        federation.credentials_of(site)[f"GLOBUS_COMPUTE_CLIENT_{name}"]
        for name in ("ID", "SECRET")
    )
    return secret.encode(), base64.b64encode(f"{client_id}:{secret}".encode())


def holders(folder, forms):
    """Files in a folder that have the secret in any form."""
    return {
        file.relative_to(folder)
        for file in folder.rglob("*")
        if file.is_file()
        and "site-packages" not in file.parts
        and any(form in file.read_bytes() for form in forms)
    }


def told_by_processes(forms):
    """Processes of this machine whose command line has the secret; daemons' environments may."""
    told = []
    for process in psutil.process_iter():
        try:
            command = "\0".join(process.cmdline())
            environment = "\0".join(process.environ().values())
        except psutil.Error:
            continue
        daemon = "globus-compute-endpoint" in command or "proxystore-endpoint" in command
        shown = command if daemon or "Globus Compute Endpoint" in command else command + environment
        if any(form.decode() in shown for form in forms):
            told.append(f"{process.pid}: {command[:80]!r}")
    return told


@dataclass(frozen=True)
class Ended:
    """A run that is over.

    Attributes:
        folder: Everything that it has written, what it has put out too.
        told: Processes that had a secret while it went on.
    """

    folder: Path
    told: list[str]


@pytest.fixture(scope="module")
def ended(federation, tmp_path_factory):
    forms = [form for site in HOLDERS for form in secret_forms(federation, site)]
    folder = tmp_path_factory.mktemp("ended")
    (folder / "scratch").mkdir()
    run = subprocess.Popen(
        [FL_RUN, *write_files(federation, folder)],
        env={**federation.environment, "TMPDIR": str(folder / "scratch")},
        stdout=(folder / "output").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(
            lambda: run.poll() is not None or list(folder.glob("runs/*/tasks.jsonl")), seconds=90
        )
        assert run.poll() is None, (folder / "output").read_text()
        told = told_by_processes(forms)
        assert run.wait(120) == 0, (folder / "output").read_text()
    finally:
        run.kill()
        run.wait()
    return Ended(folder, told)


def test_the_secret_is_in_nothing_that_a_deployment_and_a_run_leave(federation, ended):
    """Looked for in every file, log and process, while the run goes on and after it."""
    forms = {site: secret_forms(federation, site) for site in HOLDERS}
    all_forms = [form for of_one in forms.values() for form in of_one]
    assert ended.told == []
    for site, allowed in HOLDERS.items():
        assert holders(federation.dir, forms[site]) == allowed
    assert holders(ended.folder, all_forms) == set()
    metrics = next(ended.folder.glob("runs/*/metrics.jsonl"))
    assert json.loads(metrics.read_text().splitlines()[1])
    assert told_by_processes(all_forms) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as another user")
def test_another_user_of_the_login_node_sees_none_of_our_files(federation, ended, tmp_path):
    """The sites' folders and a run's, with nothing above them in the way; an open one they do."""
    opened = tmp_path / "open"
    opened.mkdir()
    (opened / "file").touch()
    assert look_as_stranger(opened) == ["open", "open/file"]
    (run,) = (ended.folder / "runs").iterdir()
    for folder in (*(federation.dir / site for site in SITES), run):
        assert look_as_stranger(folder) == []


def look_as_stranger(folder):
    """What another user finds in a folder whose parent is open to all."""
    parent = folder.parent
    before = stat.S_IMODE(parent.stat().st_mode)
    parent.chmod(0o711)
    try:
        looked = subprocess.run(
            [sys.executable, "-c", STRANGER, folder.name],
            cwd=parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        parent.chmod(before)
    return looked.stdout.splitlines()
