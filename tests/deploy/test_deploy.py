"""deploy.yml, health.yml and teardown.yml over the sandbox, with the real daemons."""

import json
import os
import re
from pathlib import Path

import psutil
import pytest
import yaml

from examples import leftovers
from tests.conftest import BIN, OWN, TOP

pytestmark = pytest.mark.daemons
WRONG = "not-what-the-sandbox-gave"


@pytest.fixture(scope="module")
def spare(federation):
    """Plays over a second site-a, in a folder and with ids of its own, in this environment."""
    variables = {
        "fl_site_dir": "{{ fl_sandbox_dir }}/spare/{{ inventory_hostname }}",
        "fl_federation_name": "spare",
        "fl_environment_kind": "existing",
        "fl_environment_prefix": str(BIN.parent),
    }

    def play(*playbooks, check=True, arguments=(), **more):
        files = [f"playbooks/{name}.yml" for name in playbooks]
        return federation.play(
            *files, "--limit", "site-a", *arguments, check=check, **variables | more
        )

    yield play
    if (federation.dir / "spare" / "site-a").exists():
        play("teardown")


def secret(federation):
    return federation.credentials["GLOBUS_COMPUTE_CLIENT_SECRET"]


def test_a_second_run_changes_nothing(federation):
    done = federation.play("deploy.yml", "--diff")
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0", "0", "0"]
    assert done.stdout.count(" ok ") == 14  # the last play's, of health
    assert "FAILED" not in done.stdout
    assert secret(federation) not in done.stdout + done.stderr


def test_check_works_on_a_site_that_is_not_deployed_and_shows_no_secret(federation):
    done = federation.play(
        "deploy.yml",
        "--check",
        "--diff",
        "-vvv",
        fl_site_dir="{{ fl_sandbox_dir }}/never/{{ inventory_hostname }}",
    )
    assert secret(federation) not in done.stdout + done.stderr
    assert not (federation.dir / "never").exists()


def test_every_operation_can_be_checked_and_a_check_changes_nothing(federation):
    def there() -> dict[Path, tuple[int, int]]:
        kinds = ("bin/*", "daemons/*", "secrets/*", "site_code/*/*", "*.*")
        sites = (federation.dir / name for name in ("home", "site-a", "site-b"))
        files = [file for site in sites for kind in kinds for file in site.glob(kind)]
        files += federation.federation_dir.glob("*")
        return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}

    before = there()
    plays = ("restart", "upgrade", "rotate-credentials", "collect-logs", "teardown", "health")
    done = federation.play(*(f"playbooks/{name}.yml" for name in plays), "--check", "--diff")
    assert secret(federation) not in done.stdout + done.stderr
    assert there() == before
    for record in (file for file in before if file.suffix == ".running"):
        assert psutil.pid_exists(json.loads(record.read_text())["pid"])


def test_a_files_secret_is_its_owners_alone(federation):
    """Which files have one, `end_to_end/test_secrecy.py` sees."""
    names = [f"{site}/secrets/credentials.env" for site in ("home", "site-a", OWN)]
    for name in (*names, f"home/secrets/clients/{OWN}.env"):
        file = federation.dir / name
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700


def test_the_two_files_say_where_everything_is(federation):
    server = yaml.safe_load(federation.server_yaml.read_text())["server_configs"]
    clients = yaml.safe_load(federation.clients_yaml.read_text())["clients"]
    assert [client["client_id"] for client in clients] == ["site-a", "site-b"]
    assert [client["data_configs"]["dataset_kwargs"]["client_id"] for client in clients] == [0, 1]
    stores = server["comm_configs"]["proxystore_configs"]["connector_configs"]["endpoints"]
    assert len(set(stores)) == 3
    shared, own = (client["comm_configs"].get("globus_compute_configs") for client in clients)
    assert shared is None
    assert own["environment_files"] == [f"{federation.dir}/home/secrets/clients/{OWN}.env"]
    assert own["function_id"] != server["comm_configs"]["globus_compute_configs"]["function_id"]
    for client in clients:
        used = client["comm_configs"]["proxystore_configs"]["connector_configs"]["endpoints"]
        assert used == stores


def test_health_names_the_endpoint_that_is_down_and_deploying_mends_it(federation):
    (endpoint,) = [
        process
        for process in leftovers.processes(federation.dir / "site-b")
        if process.environ().get("FL_DAEMON") == str(federation.dir / "site-b" / "proxystore")
    ]
    endpoint.kill()
    sick = federation.play("playbooks/health.yml", check=False, fl_health_deadline=10)
    assert sick.returncode != 0
    assert re.search(r"site-b +proxystore +FAILED", sick.stdout)
    assert re.search(r"home +to site-b +FAILED", sick.stdout)
    assert re.search(r"site-b +worker +FAILED", sick.stdout)
    assert re.search(r"site-a +proxystore +ok", sick.stdout)
    assert "playbooks/proxystore.yml" in sick.stdout

    federation.play("playbooks/proxystore.yml", "--limit", "site-b")
    federation.play("playbooks/health.yml")


@pytest.mark.timeout(600)  # five plays and more, of minutes each on a slow machine
def test_faults_that_a_deployment_names_and_a_teardown_that_keeps_the_logs(federation, spare):
    """One spare site through its life: three ways to fail, then it runs, then it is gone."""
    spare("environment", "credentials", fl_client_secret=WRONG)
    wrong = spare("compute", check=False, fl_client_secret=WRONG)
    assert wrong.returncode == 2
    assert "Globus refused the credentials of client" in wrong.stdout
    assert "check fl_client_id and fl_client_secret" in wrong.stdout

    (listening,) = {
        connection.laddr.port
        for process in leftovers.processes(federation.dir / "site-a")
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and "proxystore" in " ".join(process.cmdline())
    }
    taken = spare("proxystore", check=False, fl_proxystore_port=listening)
    assert taken.returncode == 2
    assert f"port {listening} on 127.0.0.1 is in use by ProxyStore endpoint" in taken.stdout

    nobody = "ws://127.0.0.1:1"
    down = spare("proxystore", check=False, fl_proxystore_relay=nobody, fl_proxystore_deadline=4)
    assert down.returncode == 2
    assert f"the relay {nobody} cannot be reached from site-a" in " ".join(down.stdout.split())

    folder = federation.dir / "spare" / "site-a"
    # Of a process that is there and none of its own: this one.
    (folder / "proxystore/site-a/daemon.pid").write_text(f"{os.getpid()}\n")
    spare("credentials", "proxystore", "compute")
    assert len(leftovers.processes(folder)) >= 2
    spare("teardown", fl_keep_data=["logs", "federation"])
    assert leftovers.processes(folder) == []
    assert [path.name for path in folder.iterdir()] == ["logs"]
    spare("teardown")
    assert not folder.exists()
    again = spare("teardown")
    assert re.findall(r"changed=(\d+)", again.stdout) == ["0"]
    assert federation.server_yaml.exists()


def test_the_wheel_of_unchanged_code_is_unchanged(federation):
    wheels = TOP / "build" / "wheel"
    before = {file.name: file.read_bytes() for file in wheels.glob("*.whl")}
    (wheels / "built").unlink()
    federation.play("playbooks/environment.yml", "--limit", "home")
    assert before == {file.name: file.read_bytes() for file in wheels.glob("*.whl")}
