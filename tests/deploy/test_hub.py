"""The play of the hub, alone: what it writes is served, and what it no longer wants is stopped."""

import json
import os
import shutil
import subprocess
import time

import psutil
import pytest

from fl.config import HubConfigs
from fl.transport.hub import HubTransport
from tests.conftest import TOP, sandbox_environment
from tests.transport import nginx


@pytest.fixture
def play(tmp_path):
    """Run hub.yml over a server's folder as the plays before it leave it."""
    nginx.need()
    service = {"client_id": "11111111-2222-4333-8444-555555555555", "environment": {}}
    (tmp_path / "service.json").write_text(json.dumps(service | {"relay": "ws://127.0.0.1:1"}))
    (tmp_path / "client_secret").write_text("hush\n")
    for name in ("bin", "daemons", "logs", "secrets"):
        (tmp_path / "home" / name).mkdir(parents=True)
    shutil.copy(TOP / "templates/site/daemon.py", tmp_path / "home/bin/daemon")
    (tmp_path / "home/bin/fl-site").write_text('#!/bin/sh\nexec "$@"\n')
    for program in (tmp_path / "home/bin").iterdir():
        program.chmod(0o700)
    variables = {
        "fl_federation_dir": str(tmp_path / "federation"),
        "fl_hub_host": "127.0.0.1",
        "fl_hub_address": "127.0.0.1",
        "fl_hub_port": nginx.free_port(),
    }

    def _play(**more):
        values = json.dumps(variables | more)
        command = ["ansible-playbook", "-i", "inventory/sandbox.ini", "--limit", "home"]
        done = subprocess.run(
            [*command, "-e", values, "playbooks/hub.yml"],
            cwd=TOP,
            env=sandbox_environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return f"https://127.0.0.1:{variables['fl_hub_port']}"

    yield _play
    subprocess.run([tmp_path / "home/bin/daemon", "stop", "hub"], check=False, timeout=60)


def test_a_hub_is_deployed_and_stopped_again(play, tmp_path):
    home = tmp_path / "home"
    configs = HubConfigs(
        enable_hub=True,
        hub_url=play(fl_hub=True),
        hub_secret_file=str(home / "secrets/hub.key"),
        hub_ca_file=str(home / "hub/127.0.0.1.pem"),
    )
    transport = HubTransport(configs)
    ref = transport.put(b"model")
    assert transport.get(ref) == b"model"
    transport.evict(ref)
    old, young = (transport.put(data).key["object"] for data in (b"old", b"young"))
    (home / "hub/incoming/0000000001").write_bytes(b"of an nginx that was killed")
    (home / "hub/incoming/0000000002").write_bytes(b"arrives")
    nine_days_ago = time.time() - 9 * 24 * 3600
    for path in (home / "hub/objects/fl" / old, home / "hub/incoming/0000000001"):
        os.utime(path, (nine_days_ago, nine_days_ago))
    play(fl_hub=True)
    assert [path.name for path in (home / "hub/objects/fl").iterdir()] == [young]
    assert [path.name for path in (home / "hub/incoming").iterdir()] == ["0000000002"]
    transport.close()
    for file in (home / "secrets").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    running = psutil.Process(int((home / "hub/nginx.pid").read_text()))
    play(fl_hub=False)
    assert not running.is_running() or running.status() == psutil.STATUS_ZOMBIE
