"""A sandbox's folder: what it holds, who may read it, and what outlives a run."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import psutil

DEFAULT = ".sandbox"
# Start times are reckoned from the wall clock, which may be set meanwhile.
CLOCK_STEP_S = 2.0


class SandboxError(Exception):
    """The sandbox cannot do what was asked; the message is one line for a person."""


@dataclass(frozen=True)
class ProcessRecord:
    """A process of ours: its id and its start time, since ids come round again."""

    pid: int
    start_time: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """The record of a process that runs."""
        return cls(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, if it is still that one and runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.start_time) < CLOCK_STEP_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True)
class Identity:
    """What survives ``down``, beside the secrets: the client's id, and ports that others know."""

    client_id: str
    broker_port: int = 0
    relay_port: int = 0


@dataclass(frozen=True)
class OwnClient:
    """A client that one site has for itself, with its secrets: the one that it uses first."""

    site: str
    client_id: str
    secrets: list[str]


class Folder:
    """The folder and the names in it."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or Path(os.environ.get("FL_SANDBOX_DIR") or DEFAULT)).absolute()
        self.record = self.path / "service.json"
        self.secret = self.path / "client_secret"
        self.clients = self.path / "clients"
        self.ports = self.path / "ports.json"
        self.state = self.path / "state.sqlite"
        self.queues = self.path / "queues.json"
        self.logs = self.path / "logs"
        self.log = self.logs / "sandbox.log"
        self.relay_log = self.logs / "relay.log"
        self.lock = self.path / "lock"

    def prepare(self) -> None:
        """Make the folder, for nobody else's eyes.

        Raises:
            SandboxError: it cannot be made; or it is there, and not for its owner alone.
        """
        try:
            for folder in (self.path, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            others = self.path.stat().st_mode & 0o077
        except OSError as error:
            raise SandboxError(f"cannot make the folder {self.path}: {error.strerror}") from error
        if others:  # it may be somebody's: it is not ours to close
            raise SandboxError(f"others can use {self.path}: chmod 700 it, or take another --dir")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one command at a time work on the folder."""
        with os.fdopen(os.open(self.lock, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def write(self, path: Path, text: str) -> None:
        """Replace a file as a whole, for nobody else's eyes."""
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        new.replace(path)

    def append(self, path: Path) -> BinaryIO:
        """Open a log, for nobody else's eyes."""
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")

    def identity(self) -> Identity:
        """The identity, made at first need.

        Raises:
            SandboxError: a file cannot be understood.
        """
        ports = self.read(self.ports)
        client_id = ports.get("client_id") or str(uuid.uuid4())
        if not self.secret.exists():
            self.write(self.secret, f"{secrets.token_urlsafe(32)}\n")
        identity = Identity(client_id, ports.get("broker_port", 0), ports.get("relay_port", 0))
        self.remember(identity)
        return identity

    def secrets(self) -> list[str]:
        """The client's secrets, a line each: the one that its users have first."""
        return self.secret.read_text().split()

    def add_client(self, name: str) -> OwnClient:
        """A site's own client, made at first need."""
        known = {client.site: client for client in self.own_clients()}
        if name not in known:
            self.clients.mkdir(mode=0o700, exist_ok=True)
            made = OwnClient(name, str(uuid.uuid4()), [secrets.token_urlsafe(32)])
            self.write(self.clients / f"{name}.json", json.dumps(asdict(made)) + "\n")
            known[name] = made
        return known[name]

    def own_clients(self) -> list[OwnClient]:
        """Clients beside the one that all share."""
        return [OwnClient(**self.read(file)) for file in self.clients.glob("*.json")]

    def accepted(self, client_id: str) -> dict[str, list[str]]:
        """Every client's secrets, as they are now.

        Args:
            client_id: Of the client that all share.
        """
        own = {client.client_id: client.secrets for client in self.own_clients()}
        return {client_id: self.secrets(), **own}

    def remember(self, identity: Identity) -> None:
        """Keep an identity for the next run."""
        self.write(self.ports, json.dumps(asdict(identity), indent=1) + "\n")

    def read(self, path: Path) -> dict[str, Any]:
        """A JSON file's contents; nothing if it is not there.

        Raises:
            SandboxError: it cannot be understood.
        """
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SandboxError(f"cannot read {path}: {error}") from error
        if not isinstance(content, dict):
            raise SandboxError(f"cannot read {path}: expected a JSON object")
        return content


def process_records(record: dict[str, Any]) -> list[ProcessRecord]:
    """The processes that ``service.json`` names: the sandbox's own first, then the relay's."""
    pairs = [
        (record.get("pid"), record.get("start_time")),
        (record.get("relay_pid"), record.get("relay_start_time")),
    ]
    return [
        ProcessRecord(pid, start)
        for pid, start in pairs
        if isinstance(pid, int) and isinstance(start, int | float)
    ]
