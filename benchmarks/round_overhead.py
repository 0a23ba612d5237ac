"""From deploy to the first round's end, and what a warm round costs beside training.

    make bench

Claim: a warm round's overhead (everything but the site's two seconds of training, and its
validation) is within 10 % of the time of one bare task by the SDK as it is. A bare task is our
function's check of a model of no bytes: sites let no other function in. Both are measured in the
same run, over the same two sandbox sites, the bare tasks before and after the rounds, and two
seconds apart: the SDK submits at most twice a second, and what goes sooner waits for that, whatever
it costs. Beside it bare tasks whose results are looked for as often as a run of ours does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks import verdict
from benchmarks.big_rounds import of_medians, ratio

TOP = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ROUNDS, BARE_TASKS = 20, 10
TRAIN_SECONDS = 2
"""Longer than the half second that the SDK leaves between two submissions."""

# In a process of its own: the SDK reads its credentials when it is imported.
BARE = """
import json, sys, time
from pathlib import Path
from concurrent.futures import wait
from fl.config import ClientCommConfigs
from fl.config_files import load_federation
from fl.endpoints.places import open_endpoints
from fl.server.requests import check_request
from fl.transport.inline import InlineTransport

server, clients, polled, count, apart = sys.argv[1:]
federation = load_federation(Path(server), Path(clients))
endpoints = open_endpoints(federation)
if polled == "sdk":
    from fl.endpoints import globus  # no earlier: it takes its credentials when it is imported
    globus.POLL_SECONDS = globus.SDK_POLL_SECONDS
bare = {"comm_configs": ClientCommConfigs()}
inline = [client.model_copy(update=bare) for client in federation.clients]
nothing = InlineTransport().put(b"")
times = []
for _ in range(int(count)):
    time.sleep(float(apart))
    started = time.monotonic()
    requests = [check_request(client, nothing, until=time.time() + 120) for client in inline]
    wait([endpoints.submit(*pair) for pair in zip(inline, requests, strict=True)], 120)
    times.append(time.monotonic() - started)
endpoints.close()
print(json.dumps(times))
"""


def main() -> None:
    """Deploy, train, compare, take down."""
    with tempfile.TemporaryDirectory(prefix="fl-bench.") as folder:
        environment = {
            **os.environ,
            "FL_SANDBOX_DIR": folder,
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        bench = Bench(Path(folder), environment)
        try:
            bench.measure()
        finally:
            bench.take_down()


class Bench:
    """One federation, from nothing to its last round."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.federation = folder / "federation"
        self.runs = folder / "runs"

    def measure(self) -> None:
        """Print where the time goes."""
        started = time.monotonic()
        self.call("fl", "sandbox", "up")
        up = time.monotonic() - started
        started = time.monotonic()
        self.play("deploy.yml")
        deployed = time.monotonic() - started
        started = time.monotonic()
        self.play("deploy.yml")
        again = time.monotonic() - started
        self.set_rounds()
        before = self.bare_tasks("sdk"), self.bare_tasks("ours")
        started = time.monotonic()
        self.call("fl-run", *self.files())
        trained = time.monotonic() - started
        after = self.bare_tasks("sdk"), self.bare_tasks("ours")
        (run,) = self.runs.iterdir()
        rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        first = trained - sum(entry["seconds"]["total"] for entry in rounds[1:])
        print(f"fl sandbox up            {up:7.1f} s")
        print(f"deploy.yml, from nothing {deployed:7.1f} s")
        print(f"deploy.yml, unchanged    {again:7.1f} s")
        print(
            f"fl-run to round 1's end  {first:7.1f} s  (start of the process and imports included)"
        )
        print(f"from deploy to the first round's end: {deployed + first:.1f} s")
        report(rounds[1:], *(one[1:] + other[1:] for one, other in zip(before, after, strict=True)))

    def bare_tasks(self, polled: str) -> list[float]:
        """Seconds of bare tasks, one to each site at once; polled as by the SDK, or by us."""
        numbers = (str(BARE_TASKS), str(TRAIN_SECONDS))
        out = self.call(sys.executable, "-c", BARE, *self.files()[1::2], polled, *numbers)
        times: list[float] = json.loads(out.splitlines()[-1])
        return times

    def set_rounds(self) -> None:
        """As many rounds as the benchmark wants, and as long; runs in its own folder."""
        path = self.federation / "server.yaml"
        server = yaml.safe_load(path.read_text())
        server["client_configs"]["train_configs"] |= {
            "mode": "seconds",
            "num_local_seconds": TRAIN_SECONDS,
        }
        server["server_configs"] |= {
            "num_global_epochs": ROUNDS,
            "logging_output_dirname": str(self.runs),
        }
        path.write_text(yaml.safe_dump(server))

    def files(self) -> list[str]:
        """fl-run's arguments."""
        server, clients = self.federation / "server.yaml", self.federation / "clients.yaml"
        return ["--server", str(server), "--clients", str(clients)]

    def take_down(self) -> None:
        """Every daemon; the sandbox also where a site cannot be taken down."""
        try:
            self.play("playbooks/teardown.yml")
        finally:
            self.call("fl", "sandbox", "down")

    def play(self, playbook: str) -> None:
        """Run a playbook over the sandbox's inventory."""
        extra = f"fl_federation_dir={self.federation}"
        self.call("ansible-playbook", "-i", "inventory/sandbox.ini", "-e", extra, playbook)

    def call(self, *command: str) -> str:
        """Run a command; its output is shown if it fails."""
        done = subprocess.run(
            command, cwd=TOP, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed\n{done.stdout}{done.stderr}")
        return done.stdout


def report(rounds: list[dict], as_is: list[float], often: list[float]) -> None:
    """Warm rounds, by part, against the bare tasks."""
    overheads: list[float] = []
    parts: dict[str, list[float]] = {}
    for entry in rounds:
        site = max(entry["updates"], key=lambda update: update["after"])["seconds"]
        overheads.append(entry["seconds"]["total"] - site["train"] - site["validate"])
        for name, seconds in entry["seconds"].items():
            parts.setdefault(f"server: {name}", []).append(seconds)
        for name, seconds in site.items():
            parts.setdefault(f"slowest site: {name}", []).append(seconds)
    print(f"\nwarm rounds ({len(rounds)}), seconds: median (least to most)")
    for name, values in parts.items():
        print(f"  {name:26} {spread(values)}")
    print(f"bare tasks ({len(as_is)})              {spread(as_is)}")
    print(f"the same, polled as by us    {spread(often)}")
    print(f"overhead, all but training and validation at the site {spread(overheads)}")
    print(f"overhead / bare task: {ratio(overheads, as_is)}")
    print(f"overhead / bare task polled as by us: {ratio(overheads, often)}")
    verdict("overhead / bare task, of medians", of_medians(overheads, as_is), at_most=1.1)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):7.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
