"""From a shell outside, over ssh, to tasks on the compute nodes of a real Slurm cluster."""

import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests import packages
from tests.deploy import namespaces, slurm_cluster
from tests.deploy.slurm_cluster import LOGIN, NODES, PROXY, PROXY_PORT, USER, WAN
from tests.deploy.supercomputer import Supercomputer

pytestmark = pytest.mark.daemons
THROUGH_THE_PROXY = f"curl --silent --max-time 10 --proxy http://{PROXY}:{PROXY_PORT}"
DAEMON_SECONDS = 60.0
NOTED = """
import socket
import torch
from pathlib import Path
class DigitsCNN(DigitsCNN):
    def forward(self, images):
        if torch.distributed.is_initialized():
            name = f"rank-{torch.distributed.get_rank()}"
            Path(__file__).with_name(name).write_text(socket.gethostname())
        return super().forward(images)
"""
DIRECTLY = "curl --silent --max-time 3 --noproxy *"


@pytest.fixture(scope="module")
def hpc() -> Iterator[Supercomputer]:
    """The cluster, with the sandbox outside; nothing is deployed yet."""
    reason = namespaces.refusal() or packages.install(slurm_cluster.PACKAGES)
    if reason:
        pytest.skip(f"no cluster of namespaces here: {reason}")
    made = Supercomputer()
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def deployed(hpc) -> Supercomputer:
    done = hpc.play("deploy.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    hpc.deployment = done.stdout
    return hpc


def worker(table: str) -> str:
    """The row of the check that ran in a worker, and what to do about it."""
    return re.search(r"^ *hpc +worker .*(\n.*What to do: .*)?", table, re.MULTILINE)[0]


def crontab(hpc: Supercomputer) -> list[str]:
    """The lines of ada's that say when to run what."""
    text = hpc.cluster.login.run("crontab", "-l", user=USER).stdout
    return [line for line in text.splitlines() if not line.startswith("#")]


def running(hpc: Supercomputer, daemon: str) -> bool:
    """Whether the site itself says that a daemon runs, and answers."""
    folder = hpc.cluster.home / "fl/bin"
    command = (f"{folder}/fl-site", f"{folder}/daemon", "status", daemon)
    return hpc.cluster.login.run(*command, user=USER).returncode == 0


def await_(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DAEMON_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "the daemons are not back"
        time.sleep(0.5)


def test_the_cluster_is_as_sites_are(hpc):
    """No way out of a compute node but its proxy, and no way in through that."""
    node = hpc.cluster.machines["c1"]
    service = f"http://{WAN}:5000/v2/version"
    inside = "http://login:22/"
    assert "default" not in node.call("ip", "route")
    assert node.run(*DIRECTLY.split(), service).returncode != 0
    assert node.run(*THROUGH_THE_PROXY.split(), service).stdout.startswith('"')
    assert "403 Filtered" in node.run(*THROUGH_THE_PROXY.split(), inside).stdout
    for name in NODES:
        jump = f"ssh {' '.join(hpc.cluster.ssh_options)} -W %h:%p ada@login"
        options = [*hpc.cluster.ssh_options, "-o", f"ProxyCommand={jump}"]
        address = slurm_cluster.INSIDE[name]
        assert hpc.cluster.wan.call("ssh", *options, f"ada@{address}", "hostname").strip() == name


def test_deploy_yml_ends_with_a_worker_on_a_compute_node_that_has_the_model(deployed):
    assert "FAILED" not in deployed.deployment
    assert re.search(r"hpc +worker +ok +models reach worker c[12] ", deployed.deployment)
    jobs = deployed.cluster.login.call("squeue", "--noheader", "--format", "%u %P %T %a")
    assert jobs.split() == ["ada", "cpu", "RUNNING", "physics"]


def test_cron_brings_the_daemons_back_after_a_reboot_and_once_they_are_killed(deployed):
    """With a real crontab and cron, and with no more in its environment than cron gives."""
    login = deployed.cluster.login
    lines = crontab(deployed)
    assert [line.split(" ")[0] for line in lines] == ["@reboot", "*"] * 2
    login.run("pkill", "-KILL", "-u", USER)
    login.call("scancel", "--user", USER)
    assert not running(deployed, "proxystore")
    login.start("cron", "-f", log=deployed.cluster.folder / "logs/cron.log")  # a boot, to cron
    await_(lambda: running(deployed, "proxystore") and running(deployed, "compute"))

    login.run("pkill", "-KILL", "-u", USER)
    bare = ["env", "-i", f"HOME={deployed.cluster.home}", f"LOGNAME={USER}", "PATH=/usr/bin:/bin"]
    for line in (line for line in lines if not line.startswith("@")):
        login.call(*bare, "/bin/sh", "-c", line.split(" ", 5)[5], user=USER)
    # By these, or by the real ones, which may be at work on them.
    await_(lambda: running(deployed, "proxystore") and running(deployed, "compute"))


def test_restarting_leaves_cron_as_it_was(deployed):
    lines = crontab(deployed)
    check = deployed.play("playbooks/restart.yml", "--check", "--diff", "--limit", "hpc")
    assert check.returncode == 0, check.stdout + check.stderr
    assert crontab(deployed) == lines
    assert deployed.play("playbooks/restart.yml", "--limit", "hpc").returncode == 0
    assert crontab(deployed) == lines


def test_a_connection_that_a_one_time_password_opens(deployed):
    """Without one a play says how to open it; through it logs come, and no key is needed."""
    cluster, socket = deployed.cluster, str(deployed.outside / "connection")
    keyless = [
        word for word in cluster.ssh_options if word not in ("-i", f"{cluster.folder}/etc/key")
    ]
    way = {"ansible_control_path": socket, "ansible_ssh_common_args": " ".join(keyless)}
    shut = deployed.play("playbooks/collect-logs.yml", **way)
    assert shut.returncode == 2
    assert f"hpc: no connection to {LOGIN} is open. Open it" in " ".join(shut.stdout.split())
    master = ["-o", "ControlMaster=yes", "-o", f"ControlPath={socket}", "-N", "-f", f"ada@{LOGIN}"]
    deployed.must("ssh", *cluster.ssh_options, *master)
    through = deployed.play("playbooks/collect-logs.yml", **way)
    deployed.must("ssh", "-O", "exit", "-o", f"ControlPath={socket}", LOGIN)
    assert through.returncode == 0, through.stdout + through.stderr
    for site in ("home", "hpc"):
        archive = deployed.federation_dir / "logs" / f"{site}.tar.gz"
        assert "logs/proxystore.log" in deployed.must("tar", "-tzf", str(archive))
    assert not (cluster.home / "fl/logs/collected.tar.gz").exists()


def test_a_proxy_that_is_left_set_is_what_health_finds(deployed):
    """An upgrade brings the change, restarts what it concerns, and ends with the finding."""
    done = deployed.play("playbooks/upgrade.yml", fl_proxy="keep")
    assert done.returncode == 2
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0", "2"]
    assert re.search(r"hpc +local +ok", done.stdout), "the login node's own check sees no fault"
    assert "no ProxyStore endpoint of this federation answers from here" in worker(done.stdout)
    assert "fl_proxy: unset" in worker(done.stdout)


def test_fl_run_trains_through_slurm_and_past_a_proxy_with_a_no_proxy_that_works(deployed):
    kept = {"fl_proxy": "keep", "fl_no_proxy": "10.77.0.0/24"}
    assert deployed.play("playbooks/compute.yml", **kept).returncode == 0
    done = deployed.train()
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = float(re.search(r"test accuracy: ([\d.]+)", done.stdout)[1])
    assert accuracy > 0.9


def test_a_refused_account_in_the_schedulers_words(deployed):
    """As health says them, and as they end a run."""
    done = deployed.play(
        "playbooks/compute.yml", "playbooks/health.yml", fl_compute_account="chemistry"
    )
    assert done.returncode == 2
    assert "sbatch: error: Batch job submission failed: Invalid account" in worker(done.stdout)
    started = time.monotonic()
    run = deployed.train()
    assert run.returncode == 1
    assert "hpc: the task failed at the site: sbatch: error: " in run.stderr
    assert "Invalid account" in run.stderr
    assert time.monotonic() - started < 150  # its user endpoint may lose a failure in its own end


def test_a_full_machine_in_the_schedulers_words(deployed):
    """Somebody else's job has every node."""
    login = deployed.cluster.login
    login.call(
        "sbatch", "--account", "physics", "--nodes", "2", "--exclusive", "--wrap", "sleep 600"
    )
    try:
        done = deployed.play(
            "playbooks/compute.yml", "playbooks/health.yml", health_worker_seconds=6
        )
    finally:
        login.call("scancel", "--user", "root")
    assert done.returncode == 2
    assert re.search(r"in partition cpu: PENDING \((Resources|Priority)\)", worker(done.stdout))


def test_a_client_trains_over_both_compute_nodes(deployed):
    """One rank each, started by srun inside the job; each notes where it has trained."""
    code = deployed.cluster.home / "fl/site_code/digits"
    with (code / "model.py").open("a") as model:
        model.write(NOTED)
    together = {"fl_compute_multi_node": True, "fl_compute_nodes_per_block": 2}
    assert deployed.play("playbooks/compute.yml", **together).returncode == 0
    three = deployed.train("--set", "client_configs.train_configs.nnodes=3")
    assert "nnodes asks for 3 nodes, and this worker's job has 2" in three.stderr
    done = deployed.train(
        "--set=client_configs.train_configs.nnodes=2", "--set=server_configs.num_global_epochs=2"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.search(r"test accuracy: ([\d.]+)", done.stdout)[1]) > 0.5
    noted = {file.name: file.read_text() for file in code.glob("rank-*")}
    assert noted.keys() == {"rank-0", "rank-1"}
    assert set(noted.values()) == set(NODES)


def test_teardown_leaves_neither_job_nor_process_nor_file(deployed):
    done = deployed.play("playbooks/teardown.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    login = deployed.cluster.login
    assert login.call("squeue", "--noheader", "--user", "ada", "--states", "PD,R") == ""
    assert str(deployed.cluster.home / "fl") not in login.call("ps", "-e", "-o", "args")
    assert not (deployed.cluster.home / "fl").exists()
    assert crontab(deployed) == []
