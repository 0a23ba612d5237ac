"""Machines of namespaces leave nothing behind, whatever becomes of who made them."""

import subprocess
import sys
import time

import psutil
import pytest

from tests import packages
from tests.conftest import TOP
from tests.deploy import namespaces, slurm_cluster
from tests.deploy.namespaces import Machine, MachineError

MAKER = """
import time
from pathlib import Path
from tests.deploy.namespaces import Machine
machine = Machine.make("orphan")
machine.start("sleep", "601", log=Path("/dev/null"))
print(machine.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _possible():
    if reason := namespaces.refusal() or packages.install(slurm_cluster.PACKAGES):
        pytest.skip(f"no machines of namespaces here: {reason}")


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_machine_has_a_name_and_a_network_of_its_own():
    machine = Machine.make("alone")
    try:
        assert machine.call("hostname").strip() == "alone"
        assert machine.call("ip", "-brief", "link").split()[0] == "lo"
        assert machine.call("ps", "-e", "-o", "pid=").split()[0] == "1"
        with pytest.raises(MachineError, match="alone: false"):
            machine.call("false")
    finally:
        machine.end()
    assert gone(machine.pid)


def test_kill_9_of_who_made_a_machine_ends_all_that_runs_on_it():
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER], cwd=TOP, stdout=subprocess.PIPE, text=True
    )
    pid = int(maker.stdout.readline())
    children = psutil.Process(maker.pid).children(recursive=True)
    assert any("601" in child.cmdline() for child in children)
    maker.kill()
    maker.wait()
    maker.stdout.close()
    assert gone(pid)
    assert all(gone(child.pid) for child in children)
