"""Machines made of Linux namespaces: each its own network, hostname, processes and mounts.

Every machine hangs on one process and dies with it, and that process dies with the one that made
it: nothing has a name outside, so nothing can be left behind, not even by ``kill -9``.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

CALL_SECONDS = 120.0
UP_SECONDS = 10.0
# SIGKILL follows a parent's death, and takes a first process's whole namespace with it.
MAKE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child", "--fork", "--mount-proc"]
MAKE += ["--net", "--uts", "--mount", "--pid"]
# The first process of a machine: it adopts orphans, as init does.
INIT = ["sh", "-c", "while :; do sleep 3600; done"]


class MachineError(Exception):
    """A command on a machine, or the machine itself, failed."""


def environment() -> dict[str, str]:
    """This process's environment; daemons are where a user's PATH may not look."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@dataclass
class Machine:
    """One machine, to run commands on.

    Attributes:
        name: Its hostname.
        process: What it hangs on.
        pid: Its first process.
        started: What `start` started there, to be waited for at the end.
    """

    name: str
    process: subprocess.Popen[bytes]
    pid: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def make(cls, name: str) -> "Machine":
        """Make a machine with loopback up and nothing else.

        Raises:
            MachineError: The kernel does not allow it.
        """
        process = subprocess.Popen([*MAKE, *INIT], stderr=subprocess.PIPE)
        machine = cls(name, process, _first_child(process))
        machine.call("hostname", name)
        machine.call("ip", "link", "set", "lo", "up")
        return machine

    def command(self, *words: str, user: str = "", cwd: Path = Path("/")) -> list[str]:
        """The words that run a command there, for subprocess.

        Args:
            words: The command.
            user: Who runs it; empty for root.
            cwd: Where it runs. A folder that the caller is in is not kept on entering.
        """
        enter = ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid"]
        become = ["runuser", "-u", user, "--"] if user else []
        return [*enter, *become, "env", f"--chdir={cwd}", *words]

    def call(self, *words: str, user: str = "", **options: object) -> str:
        """Run a command there and answer with what it prints.

        Raises:
            MachineError: It failed; the message is what it said.
        """
        done = self.run(*words, user=user, **options)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise MachineError(f"{self.name}: {' '.join(words)}: {said}")
        return done.stdout

    def run(
        self,
        *words: str,
        user: str = "",
        seconds: float = CALL_SECONDS,
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, whatever comes of it."""
        return subprocess.run(
            self.command(*words, user=user, cwd=cwd),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=env or environment(),
            stdin=subprocess.DEVNULL,
        )

    def start(self, *words: str, log: Path) -> None:
        """Start a daemon that stays in the foreground; it lives as long as the machine."""
        with log.open("ab") as output:
            self.started.append(
                subprocess.Popen(
                    self.command(*words),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment(),
                )
            )

    def mount(self, what: Path, where: str) -> None:
        """Let a file or folder of ours stand where this machine looks for its own."""
        self.call("mount", "--bind", str(what), where)

    def join(self, interface: str, other: "Machine", bridge: str, port: str) -> None:
        """Plug a cable into another machine's bridge.

        Args:
            interface: Its name here.
            other: The machine with the bridge.
            bridge: The bridge's name there.
            port: The name of the cable's end there.
        """
        # Only the network is entered: the kernel reads this machine's pid in the caller's terms.
        wire = ["nsenter", "--target", str(other.pid), "--net", "ip", "link"]
        for step in (
            ["add", port, "type", "veth", "peer", "name", interface, "netns", str(self.pid)],
            ["set", port, "master", bridge, "up"],
        ):
            subprocess.run([*wire, *step], check=True, timeout=CALL_SECONDS)

    def address(self, interface: str, address: str) -> None:
        """Give an interface its address, and bring it up."""
        self.call("ip", "address", "add", address, "dev", interface)
        self.call("ip", "link", "set", interface, "up")

    def bridge(self, name: str, address: str) -> None:
        """Make a bridge that this machine is on, too."""
        self.call("ip", "link", "add", name, "type", "bridge")
        self.address(name, address)

    def end(self) -> None:
        """End it and all that runs on it."""
        # Its first process takes all others with it; then `unshare` ends, which waits for that.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for process in (*self.started, self.process):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(UP_SECONDS)
        if self.process.stderr:
            self.process.stderr.close()


def refusal() -> str:
    """Why no machine can be made here; empty where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("unshare", "nsenter", "setpriv") if not shutil.which(name)]
    if missing:
        return f"no {' and no '.join(missing)} (util-linux)"
    tried = subprocess.run([*MAKE, "true"], capture_output=True, text=True, check=False, timeout=30)
    return tried.stderr.strip() if tried.returncode else ""


def _first_child(process: subprocess.Popen[bytes]) -> int:
    """The first process of the new namespace: the child that `unshare` forks."""
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                # Until its own exec, its /proc and mounts are not there yet.
                if child.cmdline()[:1] == ["sh"]:
                    return child.pid
        time.sleep(0.01)
    process.kill()
    said = process.stderr.read().decode() if process.stderr else ""
    raise MachineError(f"no machine could be made: {said.strip()}")
