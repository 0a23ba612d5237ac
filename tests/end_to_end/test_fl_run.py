"""fl-run over two deployed sites, with the real daemons."""

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from examples import leftovers
from fl.tensors import decode

pytestmark = pytest.mark.daemons
FL_RUN = Path(sys.executable).with_name("fl-run")


def as_deployed(server, clients):
    """Change nothing."""


def write_files(federation, folder, change=as_deployed):
    """The deployed federation's two files, changed as a test likes; the words that name them."""
    server = yaml.safe_load(federation.server_yaml.read_text())
    clients = yaml.safe_load(federation.clients_yaml.read_text())
    server["server_configs"] |= {
        "num_global_epochs": 2,
        "round_deadline": 90,
        "logging_output_dirname": str(folder / "runs"),
    }
    change(server, clients)
    (folder / "server.yaml").write_text(yaml.safe_dump(server))
    (folder / "clients.yaml").write_text(yaml.safe_dump(clients))
    return ["--server", folder / "server.yaml", "--clients", folder / "clients.yaml"]


@pytest.fixture
def fl_run(federation, tmp_path):
    """Run fl-run over the deployed federation, its server.yaml changed as a test likes."""

    def files(change):
        return write_files(federation, tmp_path, change)

    def _run(change=as_deployed, timeout=200, **environment):
        return subprocess.run(
            [FL_RUN, *files(change)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**federation.environment, **environment},
            check=False,
        )

    _run.files = files
    return _run


def one_error(done, code=1):
    """The one line of a run that failed."""
    assert done.returncode == code, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: ")
    return line


def test_two_sites_train_a_model_and_leave_nothing_in_the_stores(fl_run, federation, tmp_path):
    def rounds(server, clients):
        server["server_configs"]["num_global_epochs"] = 4

    stored = leftovers.stores(federation.dir)
    done = fl_run(rounds)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["accuracy"] > 0.9
    assert {update["client_id"] for update in lines[-1]["updates"]} == {"site-a", "site-b"}
    assert all(line["bytes_up"] > 300_000 for line in lines)
    assert decode((run / "model.safetensors").read_bytes())
    assert len(list(federation.dir.rglob("objects.db"))) == 3
    assert leftovers.stores(federation.dir) == stored


def test_a_wrong_client_secret(fl_run, tmp_path):
    done = fl_run(
        GLOBUS_COMPUTE_CLIENT_SECRET="wrong", GLOBUS_COMPUTE_USER_DIR=str(tmp_path / "tokens")
    )
    line = one_error(done)
    assert "Globus refused the client credentials" in line
    assert "GLOBUS_COMPUTE_CLIENT_SECRET" in line


def test_an_unknown_endpoint(fl_run):
    def unknown(server, clients):
        clients["clients"][1]["endpoint_id"] = "3f0b7f0e-5a55-4d0c-8c1e-0d4b6a0f2b11"

    assert "unknown to Globus Compute" in one_error(fl_run(unknown))


def test_a_site_that_dies_and_comes_back(fl_run, federation, tmp_path):
    """Killed in a round: the deadline ends it. Down: named at once. Deployed again: it trains."""

    def long_at_b(server, clients):
        server["server_configs"]["round_deadline"] = 25  # a cold first round takes half of it
        clients["clients"][1]["train_configs"] |= {"mode": "seconds", "num_local_seconds": 60}

    def kill_b_once_it_trains():
        """All but Parsl's interchange, which lives on when the endpoint above it is killed."""
        wait_for(lambda: site_a_answered(tmp_path), seconds=60)
        processes = leftovers.processes(federation.dir / "site-b")
        orphans = [process for process in processes if "HTEX interchange" in process.cmdline()[0]]
        for process in processes:
            if process not in orphans:
                with suppress(psutil.NoSuchProcess):  # it may end with one before it
                    process.kill()
        return orphans

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill_b_once_it_trains)
        started = time.monotonic()
        line = one_error(fl_run(long_at_b))
        orphans = killer.result()
    assert re.search(r"site-b: (no answer within 2[5-9]\.\d s|endpoint .* is offline)", line)
    assert "site-a" not in line
    assert time.monotonic() - started < 90

    def hurried(server, clients):
        server["server_configs"]["round_deadline"] = 3

    down = "1 of 2 sites are down (2 needed): site-b: endpoint"
    wait_for(lambda: down in one_error(fl_run(hurried)), seconds=60)

    federation.play("playbooks/proxystore.yml", "playbooks/compute.yml", "--limit", "site-b")
    assert orphans
    assert [process for process in orphans if alive(process)] == []
    done = fl_run()
    assert done.returncode == 0, done.stdout + done.stderr


def site_a_answered(folder):
    """Whether it has trained; the other got the model when it did, and trains on."""
    return any(
        '"site-a"' in line and '"ready"' in line
        for file in folder.glob("runs/*/sites.jsonl")
        for line in file.read_text().splitlines()
    )


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)


def alive(process):
    """Whether a process still does anything: one that has ended may wait for its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
