"""What deploying to one and ten sites takes over ssh, and doing it again with nothing changed.

    python -m benchmarks.deploy_time [--repeats 3] [1 10]

Claim: with this checkout's ansible.cfg (pipelining, forks, kept connections) the plays take less
time, to one site and to ten, than with Ansible's own settings, which are measured in the same run;
who is first changes from one repeat to the next. The sites are real sshds on addresses of loopback.
They get folders, files, experiment and credentials, over this environment: what pip and the daemons
take is theirs, whatever Ansible's settings.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks import verdict
from benchmarks.big_rounds import of_medians, spread

TOP = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PORT = 20022
CONFIGS = ("ours", "plain")
PLAYS = ["playbooks/environment.yml", "playbooks/credentials.yml"]
SSHD = """\
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
StrictModes no
PasswordAuthentication no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""
INVENTORY = """\
[server]
home ansible_connection=local fl_site_dir={folder}/home
[sites]
{sites}
[all:vars]
ansible_port={port}
ansible_ssh_private_key_file={folder}/key
ansible_ssh_extra_args='-o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=no'
ansible_python_interpreter={python}
fl_environment_kind=existing
fl_environment_prefix={prefix}
fl_federation_dir={folder}/federation
fl_client_id=11111111-2222-4333-8444-555555555555
fl_client_secret=none
"""

Times = dict[tuple[str, str], float]
"""Seconds by configuration and run."""


def main() -> None:
    """Print what each takes for each number of sites, and who was how much faster."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hosts", type=int, nargs="*", default=[1, 10])
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    for hosts in asked.hosts:
        orders = [CONFIGS if turn % 2 == 0 else CONFIGS[::-1] for turn in range(asked.repeats)]
        report(hosts, [measure(hosts, order) for order in orders])


def report(hosts: int, measured: list[Times]) -> None:
    """Both configurations, to as many sites."""
    print(f"{hosts} sites, seconds: median (least to most) of {len(measured)}")
    ratios = {}
    for run in ("first", "unchanged"):
        ours, plain = ([times[config, run] for times in measured] for config in CONFIGS)
        print(f"  {run:9}  this ansible.cfg {spread(ours)}   a plain one {spread(plain)}")
        ratios[run] = of_medians(plain, ours)
    for run, ratio in ratios.items():
        verdict(f"plain / this ansible.cfg, {run}, {hosts} sites", ratio, at_least=1)


def measure(hosts: int, order: tuple[str, ...]) -> Times:
    """Seconds of a first and an unchanged run by each configuration, to new sites each."""
    times = {}
    for config in order:
        with sites(hosts) as folder:
            for run in ("first", "unchanged"):
                started = time.monotonic()
                said = deploy(folder, config)
                times[config, run] = time.monotonic() - started
            if set(re.findall(r"changed=(\d+)", said)) != {"0"}:
                sys.exit(f"the second run was not unchanged:\n{said}")
    return times


@contextmanager
def sites(hosts: int) -> Iterator[Path]:
    """A folder with an inventory of that many sites, each with an sshd of its own."""
    addresses = [f"127.0.1.{number}" for number in range(1, hosts + 1)]
    # Short, for ssh's sockets.
    with tempfile.TemporaryDirectory(prefix="fl-") as name, ExitStack() as stack:
        folder = Path(name)
        for key in ("host", "key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True
            )
        (folder / "sshd_config").write_text(SSHD.format(folder=folder))
        (folder / "ansible.cfg").write_text(f"[defaults]\nroles_path = {TOP}/playbooks/roles\n")
        (folder / "sites.ini").write_text(
            INVENTORY.format(
                folder=folder,
                port=PORT,
                python=sys.executable,
                prefix=sys.prefix,
                sites="\n".join(
                    f"site-{number} ansible_host={address} fl_site_dir={folder}/site-{number}"
                    for number, address in enumerate(addresses, 1)
                ),
            )
        )
        stack.callback(end, folder)
        if os.geteuid() == 0:  # where no init has started sshd yet
            Path("/run/sshd").mkdir(exist_ok=True)
        for address in addresses:
            serve(folder, address)
        yield folder


def serve(folder: Path, address: str) -> None:
    """Start an sshd, which goes to the background once it listens."""
    where = [f"ListenAddress={address}", f"Port={PORT}"]
    options = [word for option in where for word in ("-o", option)]
    subprocess.run(["/usr/sbin/sshd", "-f", folder / "sshd_config", *options], check=True)


def end(folder: Path) -> None:
    """End the sshds, and the connections that ssh has kept open."""
    for process in psutil.process_iter(["cmdline"]):
        if f"{folder}/" in " ".join(process.info["cmdline"] or []):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def deploy(folder: Path, config: str) -> str:
    """Run the plays over ssh; what they print."""
    file = TOP / "ansible.cfg" if config == "ours" else folder / "ansible.cfg"
    done = subprocess.run(
        ["ansible-playbook", "-i", folder / "sites.ini", "--limit", "sites", *PLAYS],
        cwd=TOP,
        env={
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(file),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": f"{folder}/cp",
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{config}, {folder} failed\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
