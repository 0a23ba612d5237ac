"""A whole round of a big model over real daemons on one host, against the peers' daemons.

    python tests/private_loopback.py python -m benchmarks.daemon_rounds [MB ...]

Claim: with four sites that do not train, a round over Globus Compute's daemons, the model through
ProxyStore in files that all can reach, takes less time than one of `flwr run` with a SuperNode a
site, and than one of NVFlare's proof of concept. All in turns, in the same run; what each writes is
in memory, the others' for models of up to 400 MB; one that fails is named. Beside it, with 100 MB,
the way of sites apart: ProxyStore's endpoints as peers of each other, and what those endpoints hold
of memory after each run: after the last at most 5 % more than after the first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from benchmarks import verdict
from benchmarks.big_rounds import CODE, PEERS_MEGABYTES, of_medians, ratio, spread
from benchmarks.peer_rounds import flower_run, nvflare_poc, turn
from examples import leftovers

TOP = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SITES = ("site-a", "site-b", "site-c", "site-d")
ROUNDS, REPEATS = 4, 2
ENDPOINTS_MEGABYTES = 100
"""The largest model that goes by endpoints: it takes them 40 s a round on two cores."""


def main() -> None:
    """Deploy once, measure each size, take down."""
    with tempfile.TemporaryDirectory(prefix="fl-bench.") as name:
        sandbox = Sandbox(Path(name))
        try:
            sandbox.deploy()
            for megabytes in [int(argument) for argument in sys.argv[1:]] or [100]:
                compare(sandbox, megabytes)
        finally:
            sandbox.take_down()


def compare(sandbox: Sandbox, megabytes: int) -> None:
    """Measure everybody in turns, and print what was found."""
    held: list[float] = []

    def as_peers() -> list[float]:
        seconds = sandbox.rounds(megabytes, files=False)
        held.append(sandbox.memory())
        return seconds

    measured: dict[str, Callable[[], list[float]]] = {
        "ours, files": lambda: sandbox.rounds(megabytes, files=True)
    }
    if megabytes <= ENDPOINTS_MEGABYTES:
        measured["ours, endpoints as peers"] = as_peers
    if megabytes <= PEERS_MEGABYTES:
        measured["flwr run"] = lambda: flower_run(megabytes, len(SITES), ROUNDS)
        measured["NVFlare POC"] = lambda: nvflare_poc(megabytes, len(SITES), ROUNDS)
    times: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(REPEATS):
        for name, measure in measured.items():
            times[name] += measure() if name.startswith("ours") else turn(name, measure)
    print(f"{megabytes} MB, {len(SITES)} sites, seconds a round: median (least to most)")
    for name, values in times.items():
        said = "fails"
        if values:
            said = f"{spread(values)}  / ours: {ratio(values, times['ours, files'])}"
        print(f"  {name:26} {said}", flush=True)
    if held:
        print(f"  ProxyStore's endpoints hold, MB after {ROUNDS} rounds each: {held}", flush=True)
    report(times, held)


def report(times: dict[str, list[float]], held: list[float]) -> None:
    """The claims, of the peers that did not fail."""
    for name in ("flwr run", "NVFlare POC"):
        if times.get(name):
            ratio_to_ours = of_medians(times[name], times["ours, files"])
            verdict(f"{name} / ours, of medians", ratio_to_ours, at_least=1)
    if held:
        verdict("the endpoints' memory, last / first", held[-1] / held[0], at_most=1.05)


class Sandbox:
    """Sites over `fl sandbox`, all on this machine.

    Args:
        folder: Where all of it lives.
        sites: Their names.
    """

    def __init__(self, folder: Path, sites: Sequence[str] = SITES) -> None:
        self._folder, self._sites = folder, sites
        self._environment = {
            **os.environ,
            "FL_SANDBOX_DIR": str(folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def deploy(self) -> None:
        """Every daemon of the sites, and the model's code beside them."""
        more = "".join(f"{site}\n" for site in self._sites)
        (self._folder / "more.ini").write_text(f"[sites]\n{more}")
        self._call("fl", "sandbox", "up")
        self._play("deploy.yml")
        for place in ("home", *self._sites):
            (self._folder / place / "site_code" / "big.py").write_text(CODE)

    def rounds(self, megabytes: int, *, files: bool, sites: int | None = None) -> list[float]:
        """Seconds of each warm round of one run, of all sites or the first of them."""
        # Environments lie on disk: five of them would leave the peers too little memory.
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fl-bench.") as name:
            folder = Path(name)
            shared = {
                "enable_proxystore": True,
                "connector_type": "FileConnector",
                "connector_configs": {"store_dir": str(folder / "models")},
            }
            arguments = self._write(folder, megabytes, shared if files else None, sites)
            self._call("fl-run", *arguments)
            (metrics,) = folder.glob("runs/*/metrics.jsonl")
            lines = [json.loads(line) for line in metrics.read_text().splitlines()]
            return [line["seconds"]["total"] for line in lines][1:]

    def memory(self) -> float:
        """MB of memory that all ProxyStore endpoints have."""
        endpoints = (
            process
            for process in leftovers.processes(self._folder)
            if "proxystore-endpoint" in " ".join(process.cmdline())
        )
        return round(sum(process.memory_info().rss for process in endpoints) / 1e6)

    def take_down(self) -> None:
        """Every daemon; the sandbox also where a site cannot be taken down."""
        try:
            self._play("playbooks/teardown.yml")
        finally:
            self._call("fl", "sandbox", "down")

    def _write(
        self, folder: Path, megabytes: int, way: dict[str, object] | None, sites: int | None
    ) -> list[str]:
        """The deployment's two files, with the big model in them and another way for it."""
        deployed = self._folder / "federation"
        server = yaml.safe_load((deployed / "server.yaml").read_text())
        clients = yaml.safe_load((deployed / "clients.yaml").read_text())
        clients["clients"] = clients["clients"][:sites]
        server["client_configs"] |= {
            "model_configs": {
                "model_path": "big.py",
                "model_name": "Big",
                "model_kwargs": {"megabytes": megabytes},
            },
            "train_configs": {},
        }
        server["server_configs"] |= {
            "num_clients": len(clients["clients"]),
            "num_global_epochs": ROUNDS,
            "logging_output_dirname": str(folder / "runs"),
        }
        for evaluation in ("server_validation", "data_configs", "early_stopping"):
            server["server_configs"].pop(evaluation, None)
        for client in clients["clients"]:
            client["data_configs"] = {"dataset_path": "big.py", "dataset_name": "load"}
        if way:
            for configs in (server["server_configs"], *clients["clients"]):
                configs["comm_configs"]["proxystore_configs"] = way
        (folder / "server.yaml").write_text(yaml.safe_dump(server))
        (folder / "clients.yaml").write_text(yaml.safe_dump(clients))
        return ["--server", f"{folder}/server.yaml", "--clients", f"{folder}/clients.yaml"]

    def _play(self, playbook: str) -> None:
        inventories = ["-i", "inventory/sandbox.ini", "-i", str(self._folder / "more.ini")]
        # Both lie beside an inventory, unless it is said where: these sites' is the folder.
        variables = {
            "fl_federation_dir": str(self._folder / "federation"),
            "fl_wheelhouse": str(TOP / ".wheelhouse"),
        }
        self._call("ansible-playbook", *inventories, "-e", json.dumps(variables), playbook)

    def _call(self, *command: str) -> None:
        """Run a command; its output is shown if it fails."""
        done = subprocess.run(
            command, cwd=TOP, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
