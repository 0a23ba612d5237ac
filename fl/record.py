"""A run's folder: what was configured, what happened round by round, and what it needs to go on."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TextIO

import yaml

from fl.client.frozen import base_digest
from fl.config import Federation
from fl.config_files import read_federation
from fl.errors import FederationError
from fl.history import LogLine, Owner, merit
from fl.sealing import ServerKeys
from fl.server import checkpoint
from fl.server.checkpoint import SiteMemory, Snapshot
from fl.server.events import (
    ClientFailed,
    Event,
    RoundEnded,
    RoundStarted,
    SiteChanged,
    SitesEvaluated,
    Warned,
)
from fl.server.sites import Task
from fl.tensors import Data, Tensors, pieces
from fl.transport import Ref
from fl.transport.inline import InlineTransport

SEALED_BY = "sealing.key"
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's, where it is there: it is ten times as fast."""
LOOKING_SECONDS = 1.0
"""How long a lock is tried for: `fl status` may be looking at it."""
PACKAGES = ("fl-hpc", "globus-compute-sdk", "proxystore", "torch", "safetensors", "numpy")


@dataclass(frozen=True)
class Sent:
    """A task that was sent, as the journal keeps it.

    Attributes:
        client_id: To whom.
        version: Steps that the server had taken.
        turn: Which of the site's trainings it is.
        job: The server's name for it.
        session: What it can be recovered by, or None.
        size: Bytes of the model that it was sent.
        model: The Ref of that model, as JSON; empty for an inline one.
    """

    client_id: str
    version: int
    turn: int
    job: str
    session: str | None
    size: int
    model: dict[str, Any]


class Record:
    """One run's folder.

    It holds `config.yaml` (the configuration with every default filled in), `run.json`,
    `versions.json`; `metrics.jsonl` (a line a round), `tasks.jsonl` (a line a task), `sites.jsonl`
    (a line a change of a site's state), `evaluations.jsonl` (a line a model that sites evaluated),
    `log.jsonl` (a line of what else happened), all but the
    tasks with `at` in Unix seconds; `checkpoint.safetensors`, `best.safetensors` where models are
    evaluated at the server and, at the end, `model.safetensors`; until then, where updates are
    sealed, `sealing.key` (mode 0600). Only one process at a time may have it open: the one that
    `lock` names.

    Args:
        folder: The folder.

    Raises:
        FederationError: It cannot be written, or another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_id = folder.name
        self._merit = self._best = merit(None, None)
        self._frozen: Tensors = {}
        self._appended: dict[str, TextIO] = {}
        try:
            # Held until this process ends, however it ends.
            self._lock = (folder / "lock").open("a")
            _take(self._lock)
        except BlockingIOError as error:
            raise FederationError(f"{folder}: this run is still going on") from error
        except OSError as error:
            raise _unusable(folder, error) from error
        self._sign()
        self._end_torn_lines()

    @classmethod
    def begin(cls, federation: Federation, site_code: str, frozen: Tensors) -> Self:
        """Make the folder of a new run, `[NAME-]TIME-PID[-NUMBER]` below the folder for all.

        Args:
            federation: The configuration.
            site_code: The server's folder of models and loaders.
            frozen: The model's frozen parameters: no checkpoint has them.

        Returns:
            The record.

        Raises:
            FederationError: The folder cannot be written.
        """
        configs = federation.server_configs
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"
        if configs.logging_output_filename is not None:
            name = f"{configs.logging_output_filename}-{name}"
        folder = Path(configs.logging_output_dirname) / name
        versions = {package: version(package) for package in PACKAGES}
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder = _made(folder)
            record = cls(folder)
            said = federation.model_dump(mode="json")
            record._write("config.yaml", yaml.dump(said, Dumper=DUMPER))
            record._frozen = frozen
            known = {"site_code": site_code, "base": base_digest(frozen)}
            record._write("run.json", json.dumps(known, indent=2) + "\n")
            record._write(
                "versions.json",
                json.dumps({"python": platform.python_version(), **versions}, indent=2) + "\n",
            )
        except OSError as error:
            raise _unusable(folder, error) from error
        return record

    @classmethod
    def reopen(cls, folder: Path) -> Self:
        """Open the folder of a run that has ended.

        Args:
            folder: The folder.

        Returns:
            The record.

        Raises:
            FederationError: It is no run's folder, or the run is still going on.
        """
        if not (folder / "run.json").is_file():
            raise FederationError(f"{folder}: is no run's folder: it has no run.json")
        return cls(folder)

    def federation(self) -> Federation:
        """The run's configuration.

        Raises:
            ConfigError: It cannot be read.
        """
        return read_federation(self.folder / "config.yaml")

    def site_code(self) -> Path:
        """The server's folder of models and loaders.

        Raises:
            FederationError: `run.json` cannot be read.
        """
        return Path(self._begun()["site_code"])

    def complete_with(self, frozen: Tensors) -> None:
        """Have models completed by their frozen parameters, which no checkpoint has.

        Args:
            frozen: Those of the model as it is built now.

        Raises:
            FederationError: The run began with others, or `run.json` cannot be read.
        """
        if base_digest(frozen) != self._begun()["base"]:
            raise FederationError(
                f"{self.folder}: the model's frozen parameters are not those that the run began "
                "with: its code, or a weights file that it reads, has changed"
            )
        self._frozen = frozen

    def _begun(self) -> dict[str, Any]:
        """What is known of the run's beginning."""
        try:
            known = json.loads((self.folder / "run.json").read_text())
            return {"site_code": known["site_code"], "base": known.get("base")}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise FederationError(f"{self.folder / 'run.json'}: cannot be read: {error}") from error

    def snapshot(self) -> Snapshot:
        """The run as its last checkpoint has it; what was noted after that is taken back.

        Raises:
            CheckpointError: There is none, or none to go on from.
        """
        snapshot = checkpoint.load(self.folder / "checkpoint.safetensors")
        ended = self._lines("metrics.jsonl", "round", "loss", "accuracy")
        kept = [line for line in ended if line["round"] <= snapshot.version]
        for number in (line["round"] for line in ended if line["round"] > snapshot.version):
            message = f"round {number}'s step was told of, but not saved: it is taken again"
            lost = LogLine(time.time(), "lost", number, message=message)
            self._append("log.jsonl", asdict(lost), synced=True)  # before its own line goes
        self._replace("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
        evaluated = self._lines("evaluations.jsonl", "during")
        if evaluated:
            told = [line for line in evaluated if line["during"] <= snapshot.version]
            text = "".join(json.dumps(line) + "\n" for line in told)
            self._replace("evaluations.jsonl", text.encode())
        merits = (merit(line["accuracy"], line["loss"]) for line in kept)
        self._best = max(merits, default=merit(None, None))
        return replace(snapshot, lost=self._lost(snapshot.version))

    def _lost(self, version: int) -> int:
        """Steps that were lost after one that is saved: by this process and those before it."""
        log = self._lines("log.jsonl", "event", "round")
        return sum(line["event"] == "lost" and line["round"] > version for line in log)

    def losses(self) -> list[float | None]:
        """The global models' losses at the server, round by round."""
        return [line["loss"] for line in self._lines("metrics.jsonl", "loss")]

    def outstanding(self, snapshot: Snapshot) -> list[Sent]:
        """Tasks that were sent, and whose answers the snapshot does not hold.

        Args:
            snapshot: The run's.

        Returns:
            The last one of each site.
        """
        latest = {sent.client_id: sent for sent in self._sent()}
        return [sent for sent in latest.values() if not _settled(sent, snapshot)]

    def left(self) -> list[Ref]:
        """Models that the last process may have left where it put them."""
        latest = {sent.client_id: sent.model for sent in self._sent()}
        refs = {json.dumps(model, sort_keys=True): model for model in latest.values()}
        return [Ref.from_json(model) for model in refs.values() if model]

    def sent(self, task: Task, session: str | None, model: Ref) -> None:
        """Note a task.

        Args:
            task: The task.
            session: Of the endpoints that it was submitted to.
            model: What it was sent; an inline one is left out, since it is nowhere else.
        """
        kept = model.to_json() if model.transport != InlineTransport.name else {}
        sent = Sent(task.client_id, task.version, task.turn, task.job, session, model.size, kept)
        self._append("tasks.jsonl", asdict(sent))

    def __call__(self, event: Event) -> None:
        """Append what happened to the file that it belongs into."""
        now = time.time()
        match event:
            case SiteChanged():
                self._append("sites.jsonl", {"at": now, **asdict(event)})
            case RoundEnded():
                self._merit = merit(event.accuracy, event.loss)
                line = {"at": now, **asdict(event), "loss": _finite(event.loss)}
                line["aggregator"] = {key: _finite(n) for key, n in event.aggregator.items()}
                # A budget is spent by what was told, checkpoint or not.
                self._append("metrics.jsonl", line, synced=bool(event.aggregator))
            case SitesEvaluated():
                self._append("evaluations.jsonl", {"at": now, **asdict(event)})
            case RoundStarted():
                self._log(LogLine(now, "started", round=event.round))
            case ClientFailed(number, name, reason, trace):
                self._log(LogLine(now, "failed", number, name, reason, trace))
            case Warned():
                self._log(LogLine(now, "warned", message=event.message))

    def sealing_secret(self) -> bytes:
        """What the run's sealed updates are opened by, drawn when it is first asked for.

        It is kept, for its owner's eyes alone, until the final model is written: a run that is
        resumed can then open what was sealed for the process before it.

        Returns:
            64 bytes.

        Raises:
            FederationError: It cannot be kept.
        """
        path = self.folder / SEALED_BY
        temporary = path.with_name(f"{SEALED_BY}.part")
        try:
            if not path.exists():
                temporary.unlink(missing_ok=True)
                with open(temporary, "xb", opener=_private) as file:
                    file.write(ServerKeys.draw())
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            return path.read_bytes()
        except OSError as error:
            raise _unusable(path, error) from error

    def ended(self, reason: str) -> None:
        """Note that the run ends before its last round does.

        Args:
            reason: Why.
        """
        self._log(LogLine(time.time(), "ended", message=reason))

    def keep(self, snapshot: Snapshot) -> None:
        """Write the model if it is the best of all that were evaluated, and a checkpoint.

        Args:
            snapshot: The run.

        Raises:
            CheckpointError: It cannot be written.
        """
        # The best first: who resumes from the checkpoint believes that it is there.
        if self._merit > self._best:
            self._replace("best.safetensors", *self._whole(snapshot.weights))
            self._best = self._merit
        checkpoint.save(self.folder / "checkpoint.safetensors", snapshot)

    def model(self) -> Tensors:
        """The model of the last checkpoint.

        Raises:
            CheckpointError: It cannot be read again.
        """
        return checkpoint.read_model(self.folder / "checkpoint.safetensors")

    def save(self, weights: Tensors) -> Path:
        """Write the final model.

        Args:
            weights: What travels of the global model.

        Returns:
            Path of `model.safetensors`.
        """
        self._replace("model.safetensors", *self._whole(weights))
        (self.folder / SEALED_BY).unlink(missing_ok=True)
        return self.folder / "model.safetensors"

    def _whole(self, weights: Tensors) -> list[memoryview]:
        return pieces({**self._frozen, **weights})

    def _sent(self) -> list[Sent]:
        """The journal of tasks."""
        names = [field.name for field in fields(Sent)]
        lines = self._lines("tasks.jsonl", *names)
        return [Sent(**{name: line[name] for name in names}) for line in lines]

    def _lines(self, name: str, *keys: str) -> list[dict[str, Any]]:
        """A file's JSON lines, but for those that a crash or a full disk has torn or damaged."""
        try:
            lines = (self.folder / name).read_text(errors="replace").split("\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unusable(self.folder / name, error) from error
        found = [parsed for line in lines if (parsed := _parsed(line)) is not None]
        if not all(isinstance(line, dict) and line.keys() >= set(keys) for line in found):
            raise FederationError(
                f"{self.folder / name}: a line has not {', '.join(keys)}; was this folder written "
                "by another version of fl? versions.json says which"
            )
        return found

    def _log(self, line: LogLine) -> None:
        self._append("log.jsonl", asdict(line))

    def _sign(self) -> None:
        """Name this process in the lock: in the same file, which is what it has locked."""
        owner = Owner(os.getpid(), socket.gethostname(), time.time())
        try:
            self._lock.truncate(0)
            self._lock.write(json.dumps(asdict(owner)) + "\n")
            self._lock.flush()
        except OSError as error:
            raise _unusable(self.folder / "lock", error) from error

    def _end_torn_lines(self) -> None:
        """What is appended from now on is not to be lost with a line that a crash has torn."""
        for file in self.folder.glob("*.jsonl"):
            try:
                if not file.read_bytes().endswith(b"\n"):
                    with file.open("ab") as content:
                        content.write(b"\n")
            except OSError as error:
                raise _unusable(file, error) from error

    def _append(self, name: str, line: dict[str, Any], *, synced: bool = False) -> None:
        """Write a line, in a file that stays open: a parallel file system opens one for long.

        One that is `synced` outlives a power cut.
        """
        text = json.dumps(line, allow_nan=False) + "\n"
        try:
            if name not in self._appended:
                self._appended[name] = (self.folder / name).open("a")
            self._appended[name].write(text)
            self._appended[name].flush()
            if synced:
                os.fsync(self._appended[name].fileno())
        except OSError as error:
            raise _unusable(self.folder / name, error) from error

    def _replace(self, name: str, *content: Data) -> None:
        path = self.folder / name
        temporary = path.with_name(f"{name}.part")
        try:
            with temporary.open("wb") as file:
                file.writelines(content)
            temporary.replace(path)
            self._appended.pop(name, None)  # it is another file now
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _unusable(path, error) from error

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


def _take(lock: TextIO) -> None:
    """Lock a file; who only looks whether it is locked holds it for a moment, too."""
    until = time.monotonic() + LOOKING_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _finite(number: float | None) -> float | None:
    """A diverged model's loss is no number, for which JSON has no word but null."""
    return number if number is not None and math.isfinite(number) else None


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _settled(sent: Sent, snapshot: Snapshot) -> bool:
    """Whether a snapshot holds a task's answer, or that of a later one."""
    memory = snapshot.sites.get(sent.client_id, SiteMemory())
    return sent.turn < memory.turn or (sent.turn == memory.turn and memory.answered)


def _made(folder: Path) -> Path:
    """A new folder of that name, numbered where this process began another run in this second."""
    free, number = folder, 1
    while True:
        try:
            free.mkdir(mode=0o700)  # models and metrics tell of the sites' data
        except FileExistsError:
            number += 1
            free = folder.with_name(f"{folder.name}-{number}")
        else:
            return free


def _unusable(path: Path, error: OSError) -> FederationError:
    return FederationError(f"{path}: cannot be written ({error.strerror})")
