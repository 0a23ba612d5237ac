"""The cluster of `slurm_cluster`, with the stand-in for the Globus cloud outside, as a site."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import BIN, CALL_SECONDS, TOP
from tests.deploy.slurm_cluster import ACCOUNT, LOGIN, PROXY, PROXY_PORT, USER, Cluster


class Supercomputer:
    """A cluster, an inventory that names it, and a person at `wan` who deploys to it.

    Attributes:
        outside: The person's folder.
        federation_dir: Where the deployment writes server.yaml and clients.yaml.
        deployment: What the first deployment printed.
    """

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.outside = self.cluster.folder / "wan"
        self.inventory = self.outside / "inventory"
        self.federation_dir = self.outside / "federation"
        self.deployment = ""

    def up(self) -> None:
        """Start the cluster and the sandbox, and write the inventory."""
        self.cluster.up()
        self.must("fl", "sandbox", "up")
        service = json.loads((self.outside / "sandbox" / "service.json").read_text())
        addresses = (service["compute"], service["broker"], service["relay"])
        self.cluster.reach(*(int(url.rpartition(":")[2].partition("/")[0]) for url in addresses))
        self._write_inventory(service)

    def down(self) -> None:
        """End everything."""
        self.cluster.down()

    def _write_inventory(self, service: dict[str, Any]) -> None:
        """As a user would: the groups of the checkout, and one file for the new machine."""
        shutil.copytree(TOP / "inventory" / "group_vars", self.inventory / "group_vars")
        secret = (self.outside / "sandbox" / "client_secret").read_text().strip()
        everybody = {
            "fl_client_id": service["client_id"],
            "fl_client_secret": secret,
            "fl_service_environment": service["environment"],
            "fl_federation_dir": str(self.federation_dir),
            "fl_proxystore_relay": service["relay"],
            "fl_proxystore_relay_auth": "none",
            "fl_proxystore_ice_servers": [],
            "fl_compute_amqp_port": 0,
        }
        groups = self.inventory / "group_vars"
        known = yaml.safe_load((groups / "all.yml").read_text())
        (groups / "all.yml").write_text(yaml.safe_dump(known | everybody))
        (groups / "cluster.yml").write_text(yaml.safe_dump(self._machine()))
        (self.inventory / "sites.ini").write_text(
            f"[server]\nhome ansible_connection=local fl_site_dir={self.outside}/server\n"
            f"[cluster]\nhpc ansible_host={LOGIN} ansible_user={USER}"
            f" fl_site_dir={self.cluster.home}/fl\n"
            "[sites:children]\ncluster\n[slurm:children]\ncluster\n"
        )

    def _machine(self) -> dict[str, Any]:
        """What group_vars says of this machine, as of any other."""
        profile = self.cluster.folder / "etc" / "compute-node.sh"
        proxy = f"http://{PROXY}:{PROXY_PORT}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        profile.write_text("".join(f"export {name}={proxy}\n" for name in names))
        python = str(self.cluster.python)
        return {
            "ansible_ssh_common_args": " ".join(self.cluster.ssh_options),
            "ansible_python_interpreter": python,
            "fl_environment_python": python,
            "fl_wheelhouse_from": str(TOP / ".wheelhouse"),
            "fl_compute_queue": "cpu",
            "fl_compute_account": ACCOUNT,
            "fl_compute_interface": "hsn0",
            "fl_compute_walltime": "00:30:00",
            "fl_compute_strategy_period": 0.5,
            "fl_compute_heartbeat_period": 5,
            "fl_compute_heartbeat_threshold": 30,
            # The site's own profile sets the proxy of its compute nodes.
            "fl_compute_worker_init": [f". {profile}"],
            "fl_proxy": "unset",
        }

    def call(self, *words: str, cwd: Path = TOP) -> subprocess.CompletedProcess[str]:
        """Run a command of this checkout at wan."""
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        environment = kept | {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.outside),
            "USER": "root",
            "FL_SANDBOX_DIR": str(self.outside / "sandbox"),
            "ANSIBLE_NOCOLOR": "1",
        }
        return self.cluster.wan.run(*words, env=environment, cwd=cwd, seconds=CALL_SECONDS)

    def must(self, *words: str) -> str:
        """Run a command at wan that has to succeed."""
        done = self.call(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def play(self, *arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
        """Run ansible-playbook at wan, whatever comes of it."""
        inventory = str(self.inventory / "sites.ini")
        return self.call(
            "ansible-playbook", "-i", inventory, "-e", json.dumps(variables), *arguments
        )

    def train(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run fl-run at wan."""
        files = [
            word
            for name in ("server", "clients")
            for word in (f"--{name}", f"{self.federation_dir}/{name}.yaml")
        ]
        return self.call("fl-run", *files, *arguments, cwd=self.outside)
