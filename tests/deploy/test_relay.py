"""A relay of our own, as its play deploys it: ProxyStore's relay and endpoints, by TLS."""

import asyncio
import json
import re
import shutil
import ssl
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
import requests
from proxystore.p2p.relay.client import RelayClient
from websockets.exceptions import InvalidStatus

from examples import leftovers
from tests.conftest import BIN, TOP, sandbox_environment
from tests.transport.nginx import certify, free_port

pytestmark = pytest.mark.daemons

INVENTORY = """
[server]
home
[sites]
site-a
[all:vars]
ansible_connection=local
"""
RELAY = "[relay]\nhome\n"
ENDPOINTS = ("home", "site-a")
MODEL = b"model" * 100_000


class Deployment:
    """A server, with a relay, and a site, as the plays before relay.yml leave them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.first = folder, ""
        (folder / "sites.ini").write_text(INVENTORY + RELAY)
        for name in ENDPOINTS:
            self._lay_out(folder / name)
        self.variables = {
            "ansible_python_interpreter": sys.executable,
            "fl_site_dir": f"{folder}/{{{{ inventory_hostname }}}}",
            "fl_federation_dir": str(folder / "federation"),
            "fl_environment_prefix": str(BIN.parent),
            "fl_client_id": "11111111-2222-4333-8444-555555555555",
            "fl_keep_up": "none",
            "fl_proxystore_host": "127.0.0.1",
            "fl_proxystore_ice_servers": [],
            "fl_proxystore_deadline": 20,
            "fl_relay_host": "127.0.0.1",
            "fl_relay_address": "127.0.0.1",
            "fl_relay_port": free_port(),
        }

    @staticmethod
    def _lay_out(site: Path) -> None:
        for name in ("bin", "daemons", "logs"):
            (site / name).mkdir(parents=True)
        for name in ("daemon", "validate", "collect"):
            shutil.copy(TOP / "templates/site" / f"{name}.py", site / "bin" / name)
        (site / "bin/fl-site").write_text(
            f'#!/bin/sh\nexport PROXYSTORE_HOME={site}/proxystore\nexec "$@"\n'
        )
        for program in (site / "bin").iterdir():
            program.chmod(0o700)

    def play(self, *arguments: str, check: bool = True, **more: object) -> str:
        """Run ansible-playbook, and answer with what it said."""
        values = json.dumps(self.variables | more)
        done = subprocess.run(
            ["ansible-playbook", "-i", self.folder / "sites.ini", "-e", values, *arguments],
            cwd=TOP,
            env=sandbox_environment(self.folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def deploy(self, *arguments: str) -> str:
        return self.play(*arguments, "playbooks/relay.yml", "playbooks/proxystore.yml")

    def stop(self) -> None:
        """Stop every daemon that is there, and see that nothing of them is left."""
        daemons = (("home", "relay"), ("home", "proxystore"), ("site-a", "proxystore"))
        stopped = [
            self.call(name, "bin/daemon", "stop", daemon)
            for name, daemon in daemons
            if (self.folder / name / "daemons" / f"{daemon}.json").exists()
        ]
        left = leftovers.processes(self.folder)
        for process in left:
            process.kill()
        assert [done.stderr for done in stopped if done.returncode] == []
        assert left == []

    def call(self, site: str, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of a site's, as its daemons run."""
        folder = self.folder / site
        return subprocess.run(
            [folder / "bin/fl-site", sys.executable, folder / program, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def endpoint(self, site: str) -> tuple[str, str]:
        """Its URL, and its id."""
        config = tomllib.loads((self.folder / site / "daemons/proxystore.toml").read_text())
        return f"http://127.0.0.1:{config['port']}", config["uuid"]

    @property
    def password(self) -> str:
        return (self.folder / "home/secrets/relay.key").read_text().strip()

    @property
    def ca(self) -> Path:
        return self.folder / "home/relay/127.0.0.1.pem"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relay")
    folder.chmod(0o700)
    deployed = Deployment(folder)
    try:
        deployed.first = deployed.deploy("--diff")
        yield deployed
    finally:
        deployed.stop()


def register(deployment, credential: str, ca: Path) -> None:
    """Register at the relay with ProxyStore's own client."""
    address = f"wss://{credential}127.0.0.1:{deployment.variables['fl_relay_port']}"

    async def connect() -> None:
        trust = ssl.create_default_context(cafile=ca)
        client = RelayClient(address, reconnect_task=False, ssl_context=trust)
        try:
            await client.connect(retry=False)
        finally:
            await client.close()

    asyncio.run(connect())


def test_an_object_moves_between_two_endpoints(deployment):
    (here, owner), (there, _) = (deployment.endpoint(name) for name in ENDPOINTS)
    put = requests.post(
        f"{here}/set",
        params={"key": "model"},
        data=MODEL,
        headers={"Content-Type": "application/octet-stream"},
        timeout=10,
    )
    assert put.ok, put.text
    got = requests.get(f"{there}/get", params={"key": "model", "endpoint": owner}, timeout=30)
    assert got.content == MODEL
    # That it knew the way is the relay's doing.
    assert "Transmitting message from" in (deployment.folder / "home/logs/relay.log").read_text()


def test_who_has_the_password_is_let_in(deployment):
    register(deployment, f"fl:{deployment.password}@", deployment.ca)


@pytest.mark.parametrize("credential", ["", "fl:guessed@", "fl:@"])
def test_a_stranger_is_refused_before_a_websocket_opens(deployment, credential):
    with pytest.raises(InvalidStatus, match="HTTP 401"):
        register(deployment, credential, deployment.ca)


def test_a_certificate_of_another_authority_is_refused(deployment, tmp_path):
    certify(tmp_path, "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        register(deployment, f"fl:{deployment.password}@", tmp_path / "other.pem")


def test_the_password_is_in_no_log_process_list_or_open_file(deployment):
    holds = {
        str(file.relative_to(deployment.folder))
        for file in deployment.folder.rglob("*")
        if file.is_file() and deployment.password in file.read_text(errors="replace")
    }
    configs = {f"{name}/daemons/proxystore.toml" for name in ENDPOINTS}
    copies = {f"{name}/proxystore/{name}/config.toml" for name in ENDPOINTS}
    assert holds == configs | copies | {"home/secrets/relay.key"}
    for file in holds:
        assert (deployment.folder / file).stat().st_mode & 0o077 == 0, file
    log = (deployment.folder / "home/logs/proxystore.log").read_text()
    assert "relay server at wss://fl:[redacted]@127.0.0.1" in log
    for process in psutil.process_iter(["cmdline", "environ"]):
        told = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
        assert not any(deployment.password in word for word in told), process


def test_a_bug_report_does_not_hold_it(deployment, tmp_path):
    done = deployment.call("home", "bin/collect", str(tmp_path / "report.tar.gz"))
    assert done.returncode == 0, done.stderr
    subprocess.run(["tar", "xzf", "report.tar.gz"], cwd=tmp_path, check=True, timeout=60)
    assert "fl:[redacted]@" in (tmp_path / "home/daemons/proxystore.toml").read_text()
    for file in (tmp_path / "home").rglob("*"):
        assert file.is_dir() or deployment.password not in file.read_text()


def checked(deployment) -> str:
    """What a site's health check says of the relay."""
    config = deployment.folder / "home/daemons/proxystore.toml"
    done = deployment.call("home", "bin/own-relay", "check", str(config))
    assert bool(done.returncode) == bool(done.stderr), done.stderr
    return done.stderr


def test_health_asks_as_the_endpoint_and_as_a_stranger(deployment, tmp_path):
    assert checked(deployment) == ""
    trusted = deployment.folder / "home/relay-ca.pem"
    ours = trusted.read_text()
    certify(tmp_path, "other")
    trusted.write_text((tmp_path / "other.pem").read_text())
    try:
        assert "it cannot be reached: [SSL: CERTIFICATE_VERIFY_FAILED]" in checked(deployment)
    finally:
        trusted.write_text(ours)


def test_no_diff_shows_the_password(deployment):
    assert "relay-ca.pem" in deployment.first
    assert deployment.password not in deployment.first


def test_a_second_run_changes_nothing(deployment):
    # As the keeper does once a log is long.
    record = deployment.folder / "home/daemons/relay.running"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"log_begins": 7}) + "\n")
    said = deployment.deploy()
    recap = re.findall(r"^(\S+) .*changed=(\d+)", said, re.MULTILINE)
    assert {host for host, _ in recap} == set(ENDPOINTS)
    assert all(changed == "0" for _, changed in recap), said


def test_one_that_the_inventory_no_longer_has_is_stopped(deployment):
    running = psutil.Process(int((deployment.folder / "home/relay/relay.pid").read_text()))
    (deployment.folder / "sites.ini").write_text(INVENTORY)
    deployment.play("playbooks/relay.yml")
    assert not running.is_running() or running.status() == psutil.STATUS_ZOMBIE
