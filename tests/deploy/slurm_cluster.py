"""A small supercomputer with real Slurm, in namespaces: what the deployment tests deploy to.

    wan 198.51.100.1 --+-- 198.51.100.10 login 10.77.0.1 --+-- 10.77.0.11 c1   no way out
                       +-- 198.51.100.3  proxy 10.77.0.3 --+-- 10.77.0.12 c2   but by the proxy

`wan` is the outside: there a person runs plays and `fl-run`, there the stand-in for the Globus
cloud runs. One account, `ada`, has a shell on login and compute nodes. The folder is the shared
file system.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.deploy.namespaces import Machine, MachineError

USER, UID = "ada", 61001
WAN, LOGIN, PROXY = "198.51.100.1", "198.51.100.10", "10.77.0.3"
LOGIN_INSIDE = "10.77.0.1"
INSIDE = {"login": LOGIN_INSIDE, "proxy": PROXY, "c1": "10.77.0.11", "c2": "10.77.0.12"}
NODES = ("c1", "c2")
PROXY_PORT = 3128
ACCOUNT = "physics"
UP_SECONDS = 30.0
SPOOL = "/var/spool/cron/crontabs"
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "sshd": "openssh-server",
    "tinyproxy": "tinyproxy",
    "ip": "iproute2",
    "curl": "curl",
    "crontab": "cron",
}

SLURM = """\
ClusterName=fl
SlurmctldHost=login({login})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
JobSubmitPlugins=lua
ReturnToService=2
MpiDefault=none
KillWait=2
StateSaveLocation={folder}/slurm/state
SlurmdSpoolDir={folder}/slurm/spool-%n
SlurmctldPidFile={folder}/slurm/slurmctld.pid
SlurmdPidFile={folder}/slurm/slurmd-%n.pid
SlurmctldLogFile={folder}/logs/slurmctld.log
SlurmdLogFile={folder}/logs/slurmd-%n.log
NodeName=c1 NodeAddr=10.77.0.11 CPUs=64 RealMemory=64000
NodeName=c2 NodeAddr=10.77.0.12 CPUs=64 RealMemory=64000
PartitionName=cpu Nodes=c1,c2 Default=YES MaxTime=60 State=UP
"""

# As a site's accounting does it: only who has an allocation may submit.
JOB_SUBMIT = """\
function slurm_job_submit(job, partitions, uid)
  if job.account ~= "{account}" then
    slurm.log_user("account " .. tostring(job.account) .. " has no allocation on this machine")
    return slurm.ESLURM_INVALID_ACCOUNT
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid)
  return slurm.SUCCESS
end
"""

# Compute nodes reach the world by it, and it reaches nothing inside.
TINYPROXY = """\
Port {port}
Listen {address}
Timeout 60
MaxClients 50
Filter "{folder}/etc/inside"
FilterExtended On
"""

SSHD = """\
Port 22
HostKey {folder}/etc/host_key
AuthorizedKeysFile {folder}/etc/key.pub
StrictModes no
PasswordAuthentication no
UsePAM no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
"""


class Cluster:
    """The machines and what runs on them.

    Attributes:
        folder: The shared file system; everything of the cluster is below it.
        python: The Python that runs the tests, which `ada` may run, too.
        home: ada's home.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fl-slurm-"))
        self.folder.chmod(0o755)
        self.python = Path(sys.base_prefix) / "bin" / PYTHON
        self.home = self.folder / "home" / USER
        self.machines: dict[str, Machine] = {}

    def up(self) -> None:
        """Start everything; what it raises leaves nothing behind after `down`."""
        self._write_files()
        for name in ("wan", "login", "proxy", *NODES):
            self.machines[name] = Machine.make(name)
        self._connect()
        for machine in self.machines.values():
            self._furnish(machine)
        self._start_daemons()

    def down(self) -> None:
        """End everything and remove the folder."""
        for machine in self.machines.values():
            machine.end()
        shutil.rmtree(self.folder)

    @property
    def wan(self) -> Machine:
        return self.machines["wan"]

    @property
    def login(self) -> Machine:
        return self.machines["login"]

    def reach(self, *ports: int) -> None:
        """Let the login node reach services that listen on wan's loopback, at its own localhost."""
        script = self.folder / "etc" / "forward.py"
        shutil.copy(Path(__file__).with_name("forward.py"), script)
        for machine, here, there in ((self.wan, WAN, "127.0.0.1"), (self.login, "127.0.0.1", WAN)):
            machine.start(
                str(self.python),
                str(script),
                here,
                there,
                *map(str, ports),
                log=self.folder / "logs" / f"forward-{machine.name}.log",
            )
            wanted = {f"{here}:{port}" for port in ports}
            self._await(lambda m=machine, w=wanted: w <= _listening(m), "the way to the sandbox")

    @property
    def ssh_options(self) -> list[str]:
        """What ssh needs to be let in as ada."""
        return [
            "-i",
            f"{self.folder}/etc/key",
            "-o",
            f"UserKnownHostsFile={self.folder}/etc/known_hosts",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
        ]

    def _write_files(self) -> None:
        for name in ("etc/slurm", "logs", "munge", "slurm/state", "python", "tmp", "wan"):
            (self.folder / name).mkdir(parents=True)
        self.home.mkdir(parents=True)
        os.chown(self.home, UID, UID)
        etc = self.folder / "etc"
        values = {
            "folder": self.folder,
            "login": LOGIN_INSIDE,
            "account": ACCOUNT,
            "port": PROXY_PORT,
            "address": PROXY,
        }
        for name, text in {
            "slurm/slurm.conf": SLURM,
            "slurm/job_submit.lua": JOB_SUBMIT,
            "tinyproxy.conf": TINYPROXY,
            "sshd_config": SSHD,
            "inside": "^10\\.77\\.\n^login$\n^c[12]$\n",
        }.items():
            (etc / name).write_text(text.format(**values) if name != "inside" else text)
        for name in ("passwd", "group", "shadow"):
            shutil.copy(f"/etc/{name}", etc / name)
        _append(etc / "passwd", f"{USER}:x:{UID}:{UID}::{self.home}:/bin/bash")
        _append(etc / "group", f"{USER}:x:{UID}:")
        _append(etc / "shadow", f"{USER}:*:19000:0:99999:7:::")
        (etc / "hosts").write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"{address} {name}\n" for name, address in INSIDE.items())
        )
        (etc / "hosts-wan").write_text(f"127.0.0.1 localhost\n{WAN} wan\n{LOGIN} login\n")
        self._write_keys(etc)

    def _write_keys(self, etc: Path) -> None:
        for name in ("key", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", etc / name], check=True
            )
        # Reached by a key that anybody may read, in a folder that anybody may enter.
        (etc / "key.pub").chmod(0o644)
        host_key = " ".join((etc / "host_key.pub").read_text().split()[:2])
        (etc / "known_hosts").write_text(f"{LOGIN},login,10.77.0.11,10.77.0.12 {host_key}\n")
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        munge.chmod(0o755)

    def _connect(self) -> None:
        wan, login, proxy = self.wan, self.login, self.machines["proxy"]
        wan.bridge("wan0", f"{WAN}/24")
        login.bridge("hsn0", f"{LOGIN_INSIDE}/24")
        for machine, address in ((login, LOGIN), (proxy, "198.51.100.3")):
            machine.join("wan0", wan, "wan0", f"to-{machine.name}")
            machine.address("wan0", f"{address}/24")
        for name in ("proxy", *NODES):
            self.machines[name].join("hsn0", login, "hsn0", f"to-{name}")
            self.machines[name].address("hsn0", f"{INSIDE[name]}/24")

    def _furnish(self, machine: Machine) -> None:
        """Give a machine its own names, accounts and configuration."""
        etc = self.folder / "etc"
        for name in ("passwd", "group", "shadow"):
            machine.mount(etc / name, f"/etc/{name}")
        machine.mount(etc / ("hosts-wan" if machine is self.wan else "hosts"), "/etc/hosts")
        machine.mount(etc / "slurm", "/etc/slurm")
        machine.call("mount", "-t", "tmpfs", "tmpfs", "/run")
        machine.call("mkdir", "/run/sshd")
        # The crontabs of this machine's users are none of the cluster's business.
        crontabs = machine.call("stat", "--format", "mode=%a,gid=%g", SPOOL).strip()
        machine.call("mount", "-t", "tmpfs", "-o", crontabs, "tmpfs", SPOOL)
        if machine is not self.wan:
            self._open_the_way_to_python(machine)

    def _open_the_way_to_python(self, machine: Machine) -> None:
        """Where Python lives in a folder that only root may enter, let ada have Python alone."""
        prefix = Path(sys.base_prefix)
        above = [prefix, *prefix.parents]
        shut = [folder for folder in above if not folder.stat().st_mode & 0o001]
        if shut:
            machine.mount(prefix, str(self.folder / "python"))
            machine.call("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(shut[-1]))
            machine.call("mkdir", "-p", str(prefix))
            machine.mount(self.folder / "python", str(prefix))

    def _start_daemons(self) -> None:
        folder, logs = self.folder, self.folder / "logs"
        munged = [
            f"--{name}={folder}/munge/{value}"
            for name, value in {
                "socket": "socket",
                "key-file": "key",
                "pid-file": "pid",
                "seed-file": "seed",
            }.items()
        ]
        self.login.start("munged", "--foreground", "--force", *munged, log=logs / "munged.log")
        self._await(lambda: (folder / "munge/socket").exists(), "munged")
        self.login.start("slurmctld", "-D", log=logs / "slurmctld.out")
        for name in NODES:
            node = self.machines[name]
            node.start("slurmd", "-D", "-N", name, log=logs / f"slurmd-{name}.out")
        for name in ("login", *NODES):
            sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", f"{folder}/etc/sshd_config"]
            self.machines[name].start(*sshd, log=logs / f"sshd-{name}.log")
        tinyproxy = ["tinyproxy", "-d", "-c", f"{folder}/etc/tinyproxy.conf"]
        self.machines["proxy"].start(*tinyproxy, log=logs / "tinyproxy.log")
        self._await(self._nodes_are_idle, "Slurm")

    def _nodes_are_idle(self) -> bool:
        said = self.login.run("sinfo", "--noheader", "-p", "cpu", "-o", "%T %D").stdout
        return said.split() == ["idle", str(len(NODES))]

    def _await(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + UP_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                logs = sorted((self.folder / "logs").iterdir())
                tails = "\n".join(f"{log.name}: {log.read_text()[-800:]}" for log in logs)
                raise MachineError(f"{what} is not up within {UP_SECONDS:g} s\n{tails}")
            time.sleep(0.1)


def _listening(machine: Machine) -> set[str]:
    return {line.split()[3] for line in machine.call("ss", "-Hltn").splitlines()}


def _append(file: Path, line: str) -> None:
    with file.open("a") as output:
        output.write(line + "\n")
