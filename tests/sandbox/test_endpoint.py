"""The real, unmodified Globus Compute endpoint against a sandbox."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceTextInspect

from fl.sandbox import daemon

from .conftest import Up, built_in_alone, eventually

pytestmark = pytest.mark.daemons
SCRIPTS = sysconfig.get_path("scripts")
PATH = os.pathsep.join([SCRIPTS, os.environ["PATH"]])
THREADS: dict[str, Any] = {"type": "ThreadPoolEngine", "max_workers": 2}
PARSL: dict[str, Any] = {
    "type": "GlobusComputeEngine",
    "encrypted": False,
    "job_status_kwargs": {"strategy_period": 0.5, "max_idletime": 60},
    "address": {"type": "address_by_interface", "ifname": "lo"},
    "provider": {"type": "LocalProvider", "max_blocks": 1, "init_blocks": 1},
}
Make = Callable[..., "RealEndpoint"]


# Sent as source, these know nothing of this module, its imports included.
def double(value):
    return value * 2


def pid():
    import os

    return os.getpid()


def fail():
    raise ValueError("no luck")


@pytest.fixture
def client(sdk_client: Client) -> Client:
    sdk_client.fx_serializer = ComputeSerializer(strategy_code=PureSourceTextInspect())
    return sdk_client


class RealEndpoint:
    """An endpoint in a folder of its own, driven by its own command line."""

    def __init__(self, home: Path, engine: dict[str, Any]) -> None:
        self.home = home
        self.folder = home / "site"
        self.began = time.time()
        self._environment = {**os.environ, "GLOBUS_COMPUTE_USER_DIR": str(home), "PATH": PATH}
        # Root's endpoints are for several users unless told otherwise.
        made = self.command(
            "configure", "--multi-user", "false", "--contact-email", "a@example.org"
        )
        assert made.returncode == 0, made.stdout + made.stderr
        with (self.folder / "config.yaml").open("a") as config:
            config.write("heartbeat_period: 5\n")
        template = yaml.safe_dump({"heartbeat_period": 5, "engine": engine})
        (self.folder / "user_config_template.yaml.j2").write_text(template)
        variables = {"PATH": PATH, "GLOBUS_COMPUTE_USER_DIR": str(home)}
        (self.folder / "user_environment.yaml").write_text(yaml.safe_dump(variables))

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = Path(SCRIPTS) / "globus-compute-endpoint"
        return subprocess.run(
            [str(program), *words, "site"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def id(self) -> str:
        return str(json.loads((self.folder / "endpoint.json").read_text())["endpoint_id"])

    def start(self) -> None:
        done = self.command("start", "--detach")
        assert done.returncode == 0, done.stdout + done.stderr
        eventually("endpoint.json", (self.folder / "endpoint.json").exists)

    def processes(self) -> list[psutil.Process]:
        """The manager, its user endpoints and their workers."""
        found = {}
        for record in self.home.glob("*/daemon.pid"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                process = psutil.Process(int(record.read_text()))
                if process.create_time() >= self.began - 1:  # not somebody's who has its id now
                    found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        return list(found.values())

    def end(self) -> None:
        """Whatever the test left."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture
def endpoint(sdk: Up, tmp_path: Path) -> Iterator[Make]:
    made: list[RealEndpoint] = []

    def make(engine: dict[str, Any]) -> RealEndpoint:
        made.append(RealEndpoint(tmp_path / "endpoint", engine))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_an_endpoint_from_start_to_stop(endpoint: Make, client: Client, sandbox: Up) -> None:
    """With a restart of the sandbox in between, which it outlives."""
    site = endpoint(THREADS)
    site.start()
    with Executor(site.id, client=client) as executor:
        assert executor.submit(double, 21).result(timeout=60) == 42
        with pytest.raises(TaskExecutionFailed, match="no luck"):
            executor.submit(fail).result(timeout=30)
        futures = [executor.submit(double, number) for number in range(200)]
        assert sum(f.result(timeout=30) for f in futures) == 199 * 200
        assert len(executor.submit(double, b"x" * 3_500_000).result(timeout=30)) == 7_000_000
    assert client.get_endpoint_status(site.id)["status"] == "online"
    daemon.down(sandbox.folder)
    daemon.up(sandbox.folder, sandbox.options)
    with Executor(site.id, client=client) as executor:
        assert executor.submit(double, 2).result(timeout=90) == 4
    eventually("heartbeat", lambda: client.get_endpoint_status(site.id)["status"] == "online")
    running = site.processes()
    site.command("stop")  # which gives up after 10 s, whatever the endpoint does
    _, alive = psutil.wait_procs(running, timeout=30)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert client.get_endpoint_status(site.id)["status"] == "offline"


@built_in_alone
def test_the_engine_for_clusters(endpoint: Make, client: Client) -> None:
    site = endpoint(PARSL)
    site.start()
    with Executor(site.id, client=client) as executor:
        assert executor.submit(double, 21).result(timeout=90) == 42


@built_in_alone
def test_an_engine_that_cannot_start_fails_the_task(endpoint: Make, client: Client) -> None:
    site = endpoint({"type": "NoSuchEngine"})
    site.start()
    with Executor(site.id, client=client) as executor:
        future = executor.submit(double, 21)
        with pytest.raises(TaskExecutionFailed, match="NoSuchEngine"):
            future.result(timeout=60)


@built_in_alone
def test_a_killed_user_endpoint_is_started_again(endpoint: Make, client: Client) -> None:
    """Its start command may meet it while it dies; the task runs all the same."""
    site = endpoint(THREADS)
    site.start()
    with Executor(site.id, client=client) as executor:
        first = executor.submit(pid).result(timeout=60)
        # The service takes a refused start for a failure of one that it has never heard of.
        (folder,) = site.home.glob("uep.*")
        user = folder.name.rpartition(".")[2]
        eventually("heartbeat", lambda: client.get_endpoint_status(user)["status"] == "online")
        os.kill(first, signal.SIGKILL)
        assert executor.submit(pid).result(timeout=60) != first


@built_in_alone
def test_a_wrong_secret_stops_an_endpoint_with_the_reason(
    endpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", "wrong")
    done = endpoint(THREADS).command("start", "--detach")
    assert done.returncode != 0
    assert "invalid_client" in done.stdout + done.stderr
