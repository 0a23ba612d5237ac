"""What kill -9 of each part does to a run, over real daemons.

    make .venv/ready .wheelhouse/ready
    .venv/bin/python tests/private_loopback.py .venv/bin/python -m benchmarks.faults [PART ...]

Claim: whatever dies in the middle of a round, with two other sites healthy, the run ends by itself;
a lost task is noticed within a minute and sent again once its site is there. Every row is a run of
its own: three sites, training that takes about as long in every round, `min_clients: 2`. What cron
does at a site, `daemon keep`, and an operator here, `fl sandbox up`, is done REPAIR_SECONDS after
the kill and every minute from then on, where the part does not come back by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

TOP = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
VICTIM, SITES = "site-b", ("site-a", "site-b", "site-c")
SERVER = "home"
TRAIN_SECONDS, ROUNDS, DEADLINE = 12, 4, 240
REPAIR_SECONDS, CRON_SECONDS = 15, 60
LIMIT_SECONDS = 600


@dataclass(frozen=True)
class Part:
    """Something that can die.

    Attributes:
        name: The row's.
        processes: Finds what to kill, or None where nothing of the sites and the sandbox is.
        repair: What an operator does then, or None where nothing needs to be done.
    """

    name: str
    processes: Callable[[Lab], list[psutil.Process]] | None = None
    repair: Callable[[Lab], None] | None = None


class Lab:
    """A deployed federation of three sites, and runs over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.environment = {
            **os.environ,
            "FL_SANDBOX_DIR": str(folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        (folder / "more.ini").write_text("[sites]\nsite-c\n\n[sandbox:children]\nsites\n")

    def call(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of this checkout."""
        done = subprocess.run(
            command, cwd=TOP, env=self.environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise SystemExit(f"{command[0]}: {done.stdout}{done.stderr}")
        return done

    def play(self, *arguments: str, check: bool = True) -> None:
        """Run a playbook over the three sites."""
        variables = {
            "fl_federation_dir": str(self.folder / "federation"),
            "fl_wheelhouse": str(TOP / ".wheelhouse"),
            "ansible_connection": "local",
        }
        inventories = ("-i", "inventory/sandbox.ini", "-i", str(self.folder / "more.ini"))
        self.call(
            "ansible-playbook", *inventories, "-e", json.dumps(variables), *arguments, check=check
        )

    def configure(self) -> None:
        """Rounds that are long enough to be hit."""
        file = self.folder / "federation" / "server.yaml"
        server = yaml.safe_load(file.read_text())
        server["client_configs"]["train_configs"] |= {
            "mode": "seconds",
            "num_local_seconds": TRAIN_SECONDS,
        }
        server["server_configs"] |= {
            "num_global_epochs": ROUNDS,
            "min_clients": 2,
            "round_deadline": DEADLINE,
            "logging_output_dirname": str(self.folder / "runs"),
        }
        file.write_text(yaml.safe_dump(server))

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start fl-run, which ends with the lab at the latest."""
        process = subprocess.Popen(
            [BIN / "fl-run", *arguments],
            cwd=TOP,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def take_down(self) -> None:
        """Every run and every daemon; the sandbox also where a site cannot be taken down."""
        for process in self.started:
            process.kill()
        try:
            self.play("playbooks/teardown.yml", check=False)
        finally:
            self.call("fl", "sandbox", "down", check=False)

    def of(self, site: str) -> list[psutil.Process]:
        """All processes of a site."""
        mark = str(self.folder / site) + "/"
        return [process for process in psutil.process_iter() if _names(process, mark)]

    def worker(self) -> list[psutil.Process]:
        """The victim's worker: of its node's processes, the one that has computed most."""
        managers = self.titled("process_worker_pool")
        children = [child for manager in managers for child in manager.children()]
        return sorted(children, key=lambda process: sum(process.cpu_times()[:2]))[-1:]

    def titled(self, text: str) -> list[psutil.Process]:
        """The victim's processes whose command has a text in it."""
        return [process for process in self.of(VICTIM) if text in " ".join(process.cmdline())]

    def sandbox(self, text: str) -> list[psutil.Process]:
        """The sandbox's processes whose command has a text in it."""
        service = json.loads((self.folder / "service.json").read_text())["pid"]
        tree = [psutil.Process(service), *psutil.Process(service).children(recursive=True)]
        return [process for process in tree if text in " ".join(process.cmdline())]

    def ensure(self, daemon: str) -> None:
        """What cron does at a site, by this benchmark's own clock."""
        self.ensure_at(VICTIM, daemon)

    def ensure_at(self, site: str, daemon: str) -> None:
        """Have a site's daemon running, as the line in a crontab has it."""
        programs = self.folder / site / "bin"
        self.call(programs / "fl-site", programs / "daemon", "keep", daemon)

    def up(self) -> None:
        """Have the sandbox and every daemon running."""
        self.call("fl", "sandbox", "up")
        daemons = [(site, daemon) for site in SITES for daemon in ("proxystore", "compute")]
        daemons.append((SERVER, "proxystore"))
        # Each site has a cron of its own, and one may have to wait for an endpoint to answer.
        with ThreadPoolExecutor(len(daemons)) as pool:
            list(pool.map(lambda each: self.ensure_at(*each), daemons))


def _names(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in word for word in [*process.cmdline(), *process.environ().values()])
    except psutil.Error:
        return False


PARTS = [
    Part("nothing"),
    Part("worker", Lab.worker),
    Part("engine's manager", lambda lab: lab.titled("process_worker_pool")),
    Part("user endpoint", lambda lab: lab.titled(", uep.")),
    Part(
        "whole endpoint",
        lambda lab: lab.titled("Globus Compute Endpoint"),
        lambda lab: lab.ensure("compute"),
    ),
    Part(
        "ProxyStore endpoint",
        lambda lab: lab.titled("proxystore-endpoint"),
        lambda lab: lab.ensure("proxystore"),
    ),
    Part("relay", lambda lab: lab.sandbox("proxystore-relay"), Lab.up),
    Part("service", lambda lab: lab.sandbox("fl.sandbox.serve"), Lab.up),
    Part("server"),
    Part(
        "interchange",
        lambda lab: lab.titled("HTEX interchange"),
        lambda lab: lab.ensure("compute"),
    ),
    # Nothing is repaired after this one, so no row may follow it.
    Part("site, for good", lambda lab: lab.of(VICTIM)),
]


def main(wanted: list[str]) -> None:
    """Deploy, kill, repair, print the table, take down."""
    with tempfile.TemporaryDirectory(prefix="fl-faults.") as folder:
        lab = Lab(Path(folder))
        try:
            lab.call("fl", "sandbox", "up")
            lab.play("deploy.yml")
            lab.configure()
            print(HEADING)
            for part in PARTS:
                if not wanted or part.name in wanted:
                    lab.up()
                    print(row(lab, part), flush=True)
        finally:
            lab.take_down()


HEADING = (
    "| killed in round 2 | noticed after | how | back after | sent again | updates a round |"
    " accuracy | run ended | exit |\n|---|---|---|---|---|---|---|---|---|"
)


def row(lab: Lab, part: Part) -> str:
    """One run with one fault."""
    files = lab.folder / "federation"
    process = lab.start("--server", files / "server.yaml", "--clients", files / "clients.yaml")
    run = wait_for(lambda: next(iter(sorted((lab.folder / "runs").glob("*"))), None))
    wait_for(lambda: lines(run / "metrics.jsonl") or process.poll() is not None)
    wait_for(lambda: [job for job in records(lab) if ".2." in job] or process.poll() is not None)
    time.sleep(2)
    killed = time.time()
    if part.name == "server":
        process.kill()
        process.communicate()
        process = lab.start("--resume", run)
    kill(lab, part)
    if part.repair is not None:
        time.sleep(REPAIR_SECONDS)
        keep(process, part.repair, lab)
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    text = describe(run, killed, time.time(), process.returncode)
    (run / "output.txt").write_text(output)
    if process.returncode:
        print(output)
    run.rename(lab.folder / f"done-{part.name.replace(' ', '-')}")
    return f"| {part.name} | {text}"


def kill(lab: Lab, part: Part) -> None:
    """Kill a part's processes.

    Raises:
        SystemExit: There are none, and the row would be of a run that nothing has hit.
    """
    if part.processes is None:
        return
    victims = part.processes(lab)
    if not victims:
        raise SystemExit(f"{part.name}: there is no such process to kill")
    for victim in victims:
        victim.kill()


def keep(process: subprocess.Popen[str], repair: Callable[[Lab], None], lab: Lab) -> None:
    """Repair, and look again every minute, until the run has ended."""
    until = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < until:
        repair(lab)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CRON_SECONDS)


def describe(run: Path, killed: float, ended: float, code: int) -> str:
    """A run's columns, from what it has kept."""
    changes = [
        change
        for change in lines(run / "sites.jsonl")
        if change["client_id"] == VICTIM and change["at"] > killed
    ]
    lost = next((change for change in changes if change["state"] == "lost"), None)
    back = next((change for change in changes if change["state"] == "back"), None)
    turns = [
        (task["client_id"], task["version"], task["turn"]) for task in lines(run / "tasks.jsonl")
    ]
    rounds = lines(run / "metrics.jsonl")
    columns = [
        seconds(lost, killed),
        lost["reason"][:70] if lost else "-",
        seconds(back, killed),
        str(len(turns) - len(set(turns))),
        " ".join(str(len(line["updates"])) for line in rounds),
        f"{rounds[-1]['accuracy']:.4f}" if rounds else "-",
        f"{ended - killed:.0f} s",
        str(code),
    ]
    return " | ".join(columns) + " |"


def seconds(change: dict[str, Any] | None, since: float) -> str:
    """How long after the kill a change came."""
    return f"{change['at'] - since:.1f} s" if change else "-"


def lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file that may not be there yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def records(lab: Lab) -> list[str]:
    """Jobs that the victim is at."""
    return [file.name for file in (lab.folder / VICTIM / "state" / "jobs").glob("*.json")]


def wait_for(look: Callable[[], Any]) -> Any:
    """Wait until something is there."""
    until = time.monotonic() + LIMIT_SECONDS
    while not (found := look()):
        if time.monotonic() > until:
            raise SystemExit("nothing happened for too long")
        time.sleep(0.2)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
