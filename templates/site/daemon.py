#!/usr/bin/env python3
"""Keeps one daemon of this site in a state: `daemon ensure|keep|stop|status NAME`.

Idempotent, so that a play, a person or cron can call it, also at the same time. NAME is a
definition in ../daemons. What runs is known by a record of host, boot, process id and start time; a
process id alone is never believed, and nothing is signalled that the record or our own mark does
not prove ours.

Standard library only, for any Python from 3.8 on: it must work when the environment does not.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, TextIO, Tuple

STOP_GRACE_SECONDS = 20
# A busy endpoint answers nobody while it copies an object of some gigabytes.
SILENCE_SECONDS = 30
# ProxyStore takes a peer for dead after 30.
PEER_SILENCE_SECONDS = 35
# Of a processor: who sends half a megabyte a second takes more in that time.
IDLE_SECONDS = 0.5
# A child that its parent has ended itself is a zombie for a moment.
ZOMBIE_SECONDS = 2
KILL_GRACE_SECONDS = 5
# Longer than all takes but a start, which has a deadline of its own.
LOCK_SECONDS = 180
POLL_SECONDS = 0.1
# Cron tries ever more rarely to start what cannot start: that share of how long it could not.
PAUSE_SHARE = 1 / 8
LONGEST_PAUSE_SECONDS = 3600
# One more of that size is kept beside it.
LOG_BYTES = 10_000_000

# What the kernel writes for that state into /proc/net/tcp.
LISTENING = "0A"

# What the log of a ProxyStore endpoint says of its connections.
PEER_MET = re.compile(r"received (?:offer|answer) from ([0-9a-f-]{36})")
PEERS_PARTED = "Closing connection between peers: "


class RefusedError(Exception):
    """Something a person can act on; its text is all that is shown."""


class BusyError(RefusedError):
    """Another call is at work on the same daemon."""


class Daemon:
    """One daemon, as its definition describes it."""

    def __init__(self, site: Path, name: str) -> None:
        self.site = site
        self.name = name
        definition = site / "daemons" / f"{name}.json"
        self.definition: Dict[str, Any] = json.loads(definition.read_text())
        self.what: str = self.definition["what"]
        self.deadline: float = self.definition.get("deadline", 0)
        self.pid_file = Path(self.definition["pid_file"])
        self.record_file = site / "daemons" / f"{name}.running"
        self.refused_file = site / "daemons" / f"{name}.refused"
        # Children inherit it, so that workers left behind by a crash are still known as ours.
        self.mark: str = self.definition["mark"]
        # Now, as this process has the site's settings in its environment: a play may change both
        # while it waits, and what it starts then was not started with the new ones.
        self.fingerprint = self._fingerprint()

    def ensure(self) -> Dict[str, Any]:
        """Start it unless it serves with the files as they are now."""
        self.refused_file.unlink(missing_ok=True)
        record = self._serving()
        if record and record["fingerprint"] == self.fingerprint:
            return self._kept(record)
        return self._restarted()

    def keep(self) -> Dict[str, Any]:
        """Start it unless it serves, whatever its files say: a play may be changing them."""
        record = self._serving()
        return self._kept(record) if record else self._tried()

    def stop(self) -> Dict[str, Any]:
        """Stop it and everything it started; nothing else."""
        record = self._record()
        running = bool(record and _runs(record))
        if record and running:
            _signal(record["pid"], signal.SIGTERM)
            _await(lambda: not _runs(record), STOP_GRACE_SECONDS)
        swept = self._sweep(record)
        self._clear_leftovers(record)
        return {"changed": running or swept}

    def status(self) -> Dict[str, Any]:
        """Say whether it runs, and that what answers at its address is it."""
        record = self._record()
        if not record or not _runs(record):
            raise RefusedError(f"{self.what} does not run; run deploy.yml or restart.yml")
        if not self._is_ready(record["pid"]):
            raise RefusedError(
                f"{self.what} runs (pid {record['pid']}) but does not answer;"
                f" see {self.definition['log']}"
            )
        return {"changed": False, "pid": record["pid"]}

    @contextlib.contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """Be the only one at work on it; a lock ends with its process, however that ends."""
        with (self.site / "daemons" / f"{self.name}.lock").open("w") as file:
            if not _await(lambda: _lock(file), seconds):
                raise BusyError(
                    f"another call has been at work on {self.what} for {seconds} s;"
                    f" see `ps -ef | grep bin/daemon`"
                )
            yield

    def _record(self) -> Optional[Dict[str, Any]]:
        record = _json(self.record_file)
        if not record:
            return None
        if record["host"] != socket.gethostname():
            raise RefusedError(
                f"{self.what} is recorded as running on {record['host']}, and this is"
                f" {socket.gethostname()}; name that login node in the inventory, or remove"
                f" {self.record_file} if that machine is gone"
            )
        return record

    def _serving(self) -> Optional[Dict[str, Any]]:
        """Its record, if it runs and is of use."""
        record = self._record()
        if not record or not _runs(record):
            return None
        if reason := self._useless(record):
            self._note(f"started again, because {reason}")
            return None
        return record

    def _kept(self, record: Dict[str, Any]) -> Dict[str, Any]:
        self.refused_file.unlink(missing_ok=True)
        self._rotate_logs(record)
        return {"changed": self._end_maimed(), "pid": record["pid"]}

    def _tried(self) -> Dict[str, Any]:
        """Start it again, unless that has long been refused and was a while ago.

        A federation may be over for months, and its secret revoked, where nobody has taken it down.
        """
        now, refused = time.time(), _json(self.refused_file)
        since, last = refused.get("since", now), refused.get("last", 0)
        if abs(now - last) < min((last - since) * PAUSE_SHARE, LONGEST_PAUSE_SECONDS):
            raise RefusedError(refused["said"])
        try:
            restarted = self._restarted()
        except RefusedError as error:
            said = {"since": since, "last": now, "said": str(error)}
            self.refused_file.write_text(json.dumps(said) + "\n")
            raise
        self.refused_file.unlink(missing_ok=True)  # what is refused next has been so since then
        return restarted

    def _restarted(self) -> Dict[str, Any]:
        self.stop()
        return {"changed": True, "pid": self._start()}

    def _useless(self, record: Dict[str, Any]) -> str:
        """Why it is of no use though it runs, or nothing."""
        begins = record.get("log_begins")
        for sign in self.definition.get("useless_signs", []) if begins is not None else []:
            if _count(self.definition["log"], begins, sign["text"]) >= sign["times"]:
                return str(sign["meaning"])
        if self._address() and not _await(lambda: self._is_ready(record["pid"]), SILENCE_SECONDS):
            return f"it has not answered for {SILENCE_SECONDS} s"
        if self.definition.get("asks_peers") and self._waits_for_the_dead(record):
            return f"no peer's answer has reached it for {PEER_SILENCE_SECONDS} s"
        return ""

    def _waits_for_the_dead(self, record: Dict[str, Any]) -> bool:
        """Whether it hears no peer any more, because one was gone in the middle of an object.

        A ProxyStore endpoint (1.1) hears its peers one after the other, and first sends each what
        it has asked for, without a limit of time. Only peers with a connection are asked: two
        endpoints that call each other at the same moment both end.
        """
        met, parted = _peers(self.definition["log"], record["log_begins"])
        address, worked = self._address(), _worked(record["pid"])
        if not (address and met and parted):
            return False
        with ThreadPoolExecutor(len(met)) as pool:
            if any(pool.map(lambda peer: _peer_answers(address, peer), met)):
                return False
        still, _ = _peers(self.definition["log"], record["log_begins"])
        idle = _worked(record["pid"]) - worked < IDLE_SECONDS
        return idle and any(still.get(peer) == since for peer, since in met.items())

    def _end_maimed(self) -> bool:
        """End what has lost a child that it needs: it would hang, and its parent starts another."""
        name = self.definition.get("vital_child")
        if not name or _await(lambda: not self._maimed(name), ZOMBIE_SECONDS):
            return False
        maimed = self._maimed(name)
        for pid in maimed:
            self._note(f"process {pid} is ended: its '{name}' has died")
            for doomed in [pid, *_descendants(pid)]:
                _signal(doomed, signal.SIGKILL)  # what hangs hears nothing else
        return bool(maimed)

    def _maimed(self, child: str) -> List[int]:
        """Our processes with a dead child of that name, which they have not noticed."""
        ours = set(_marked(self.mark))
        return [p.parent for p in _processes() if p.name == child and p.dead and p.parent in ours]

    def _rotate_logs(self, record: Optional[Dict[str, Any]]) -> None:
        """Copy a log that has grown long aside, and empty it: a daemon has it open, to append."""
        for log in [self.definition["log"], *self.definition["other_logs"]]:
            if _size(log) <= LOG_BYTES:
                continue
            ours = log == self.definition["log"]
            told = self._told(record) if record and ours else []
            shutil.copyfile(log, f"{log}.1")
            os.truncate(log, 0)
            if ours:
                self._note(f"what it has said before stands in {log}.1")
                with Path(log).open("a") as output:
                    output.writelines(told)
            if record and ours:
                self._write_record({**record, "log_begins": 0})

    def _told(self, record: Dict[str, Any]) -> List[str]:
        """The lines of its log by which the keeper judges it."""
        signs = [sign["text"] for sign in self.definition.get("useless_signs", [])]
        return [
            line
            for line in _lines(self.definition["log"], record.get("log_begins") or 0)
            if PEER_MET.search(line) or any(text in line for text in [PEERS_PARTED, *signs])
        ]

    def _note(self, what: str) -> None:
        """Leave a line in its log."""
        with Path(self.definition["log"]).open("a") as log:
            log.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] daemon keep: {self.what}: {what}\n")

    def _clear_leftovers(self, record: Optional[Dict[str, Any]]) -> None:
        """Remove the pid file of a process that our record proves dead."""
        if record:
            self.pid_file.unlink(missing_ok=True)
            self.record_file.unlink(missing_ok=True)
        self._sweep(record)

    def _start(self) -> int:
        self._refuse_taken_port()
        if self._address():
            # Its port is free, so whoever wrote that is gone; ProxyStore would believe it.
            self.pid_file.unlink(missing_ok=True)
        self._rotate_logs(None)
        for source, target in self.definition.get("install", {}).items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).touch(mode=0o600)  # it may hold the relay's password
            Path(target).write_bytes(Path(source).read_bytes())
        logs = {log: _size(log) for log in [self.definition["log"], *self.definition["other_logs"]]}
        with Path(self.definition["log"]).open("ab") as log:
            process = subprocess.Popen(
                self.definition["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=str(self.site),
                # SPT_NOENV: daemons that set their own title would write it over the mark.
                env={**os.environ, "FL_DAEMON": self.mark, "SPT_NOENV": "1"},
                start_new_session=True,
            )
        try:
            self._write_record(self._new_record(process.pid, logs[self.definition["log"]]))
        except OSError:
            # Nobody could prove it ours later.
            self._sweep({"pid": process.pid, "boot": _boot()})
            raise
        if not _await(
            lambda: process.poll() is not None or self._is_ready(process.pid), self.deadline
        ):
            why = f"it did not answer within {self.deadline} s"
        elif process.poll() is None:
            return process.pid
        else:
            why = f"it ended with code {process.returncode}"
        message = self._explain(why, logs)
        self.stop()
        raise RefusedError(message)

    def _refuse_taken_port(self) -> None:
        address = self._address()
        if not address:
            return
        host, port = address
        problem = _bind_problem(address)
        if problem is None:
            return
        if problem.errno != errno.EADDRINUSE:
            raise RefusedError(
                f"{self.what} cannot listen on {host}:{port} ({problem.strerror});"
                f" set {self.definition['host_variable']} to ip, fqdn or an address of this machine"
            )
        other = _endpoint_uuid(address)
        owner = f"ProxyStore endpoint {other}" if other else "another program"
        raise RefusedError(
            f"port {port} on {host} is in use by {owner}, so {self.what} cannot start;"
            f" set {self.definition['port_variable']} to a free port, such as {_free_port(host)}"
        )

    def _is_ready(self, pid: int) -> bool:
        address = self._address()
        if address:
            # An id can be said by anybody who has read it.
            return _listens(pid, address[1]) and _endpoint_uuid(address) == self.definition["uuid"]
        try:
            return int(self.pid_file.read_text().split()[0]) == pid
        except (OSError, ValueError, IndexError):
            return False

    def _address(self) -> Optional[Tuple[str, int]]:
        """Where it listens; `ip` and `fqdn` mean what ProxyStore means by them."""
        if "port" not in self.definition:
            return None
        host: str = self.definition["host"]
        if host == "ip":
            host = self._own_ip()
        elif host == "fqdn":
            host = socket.getfqdn()
        return host, int(self.definition["port"])

    def _own_ip(self) -> str:
        name = socket.gethostname()
        try:
            return socket.gethostbyname(name)
        except socket.gaierror as error:
            raise RefusedError(
                f"{self.what}: {name} has no IPv4 address ({error.strerror});"
                f" set {self.definition['host_variable']} to fqdn or an address of this machine"
            ) from error

    def _fingerprint(self) -> str:
        """Digest of the files that it must be restarted for."""
        digest = hashlib.sha256()
        for file in self.definition["restart_for"]:
            digest.update(Path(file).read_bytes() if Path(file).exists() else b"")
        return digest.hexdigest()

    def _new_record(self, pid: int, log_begins: int) -> Dict[str, Any]:
        return {
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": pid,
            "start_time": _start_time(pid),
            "uuid": self.definition.get("uuid"),
            "fingerprint": self.fingerprint,
            "log_begins": log_begins,
        }

    def _write_record(self, record: Dict[str, Any]) -> None:
        partial = self.record_file.with_suffix(".partial")
        partial.write_text(json.dumps(record) + "\n")
        partial.replace(self.record_file)

    def _sweep(self, record: Optional[Dict[str, Any]]) -> bool:
        """End what our daemon started and left behind."""
        left = self._left(record)
        for pid in left:
            _signal(pid, signal.SIGTERM)
        if left and not _await(lambda: not self._left(record), KILL_GRACE_SECONDS):
            for pid in self._left(record):
                _signal(pid, signal.SIGKILL)
            _await(lambda: not self._left(record), KILL_GRACE_SECONDS)
        return bool(left)

    def _left(self, record: Optional[Dict[str, Any]]) -> List[int]:
        """Who has our mark; or, for nginx writes its title over it, our session and folder."""
        left = set(_marked(self.mark))
        if record and record["boot"] == _boot():
            left.update(_in_session(record["pid"], self.site.resolve()))
        return sorted(left)

    def _explain(self, why: str, logs: Dict[str, int]) -> str:
        """Put what the logs gained since the start into words."""
        failed, log = f"{self.what} did not start", f"(log: {self.definition['log']})"
        text = "\n".join(_read_from(file, offset) for file, offset in logs.items())
        for known in self.definition["known_errors"]:
            if re.search(known["pattern"], text):
                return f"{failed}: {known['meaning']}; {known['remedy']} {log}"
        lines = [line for line in text.splitlines() if line.strip()] or ["its log is empty"]
        return f"{failed}: {why}; its last words: {lines[-1].strip()} {log}"


def _runs(record: Dict[str, Any]) -> bool:
    if record["start_time"] is None:  # it had ended before its record was made
        return False
    return record["boot"] == _boot() and _start_time(record["pid"]) == record["start_time"]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Process(NamedTuple):
    """What /proc/PID/stat says; the name is cut off after 15 characters."""

    pid: int
    name: str
    dead: bool
    parent: int
    session: int
    start_time: int
    worked: int


def _process(pid: int) -> Optional[Process]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold any bytes; the fields after it may not.
    before, _, after = stat.rpartition(")")
    fields = after.split()
    name, dead = before.partition("(")[2], fields[0] == "Z"
    worked = int(fields[11]) + int(fields[12])
    return Process(pid, name, dead, int(fields[1]), int(fields[3]), int(fields[19]), worked)


def _processes() -> List[Process]:
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [process for process in map(_process, pids) if process]


def _descendants(pid: int) -> List[int]:
    """The processes below one, from the top."""
    children = [process.pid for process in _processes() if process.parent == pid]
    return children + [below for child in children for below in _descendants(child)]


def _start_time(pid: int) -> Optional[int]:
    """When a process started, in clock ticks since boot; None if it is gone or a zombie."""
    process = _process(pid)
    return None if process is None or process.dead else process.start_time


def _worked(pid: int) -> float:
    """Seconds that a process has had of processors."""
    process = _process(pid)
    return process.worked / os.sysconf("SC_CLK_TCK") if process else 0.0


def _in_session(leader: int, folder: Path) -> Iterator[int]:
    """Processes of a session that work in a folder: a number that is used again is not enough."""
    for process in _processes():
        with contextlib.suppress(OSError):  # gone, or somebody else's
            ours = process.session == leader and not process.dead
            if ours and Path(f"/proc/{process.pid}/cwd").resolve() == folder:
                yield process.pid


def _marked(mark: str) -> Iterator[int]:
    """Processes that were started with our mark in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or somebody else's
            continue
        if f"FL_DAEMON={mark}".encode() in variables and _start_time(int(folder.name)) is not None:
            yield int(folder.name)


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RefusedError(
            f"{file.name} cannot be locked ({error.strerror}):"
            " set fl_site_dir to a folder on a file system with flock"
        ) from error
    return True


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _endpoint_uuid(address: Tuple[str, int]) -> Optional[str]:
    """The id that a ProxyStore endpoint answers with; None if none answers there."""
    connection = http.client.HTTPConnection(*address, timeout=2)  # never through a proxy
    try:
        connection.request("GET", "/endpoint")
        answer = json.loads(connection.getresponse().read())
        return str(answer["uuid"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def _listens(pid: int, port: int) -> bool:
    """Whether a process of ours has a socket that listens on a port."""
    tables = [Path(f"/proc/self/net/{name}") for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables if table.exists() for row in _lines(str(table), 0)]
    listening = {
        f"socket:[{row[9]}]"
        for row in rows
        if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port
    }
    with contextlib.suppress(OSError):  # it is gone, or somebody else's
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(str(file)) in listening:
                    return True
    return False


def _peer_answers(address: Tuple[str, int], peer: str) -> bool:
    """Whether a ProxyStore endpoint brings a peer's answer."""
    connection = http.client.HTTPConnection(*address, timeout=PEER_SILENCE_SECONDS)
    try:
        connection.request("GET", f"/exists?key=daemon-keep&endpoint={peer}")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _peers(log: str, offset: int) -> Tuple[Dict[str, int], bool]:
    """Peers that an endpoint's log says it is connected with, and whether it has lost any.

    Each peer comes with the number of the line that says so: another connection has another.
    """
    met: Dict[str, int] = {}
    parted = False
    for number, line in enumerate(_lines(log, offset)):
        if found := PEER_MET.search(line):
            met[found[1]] = number
        elif PEERS_PARTED in line:
            parted = True
            for peer in line.partition(PEERS_PARTED)[2].split(","):
                met.pop(peer.strip(), None)
    return met, parted


def _bind_problem(address: Tuple[str, int]) -> Optional[OSError]:
    with socket.socket() as probe:
        # As the endpoint does it: connections in TIME_WAIT do not take a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return error
    return None


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _await(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _json(file: Path) -> Dict[str, Any]:
    """What a file says; nothing, if it is not there or was not written to its end."""
    try:
        said: Dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return said


def _size(file: str) -> int:
    return Path(file).stat().st_size if Path(file).exists() else 0


def _lines(file: str, offset: int) -> Iterator[str]:
    """A log's lines from a place in it; none if it cannot be read."""
    with contextlib.suppress(OSError), Path(file).open(errors="replace") as log:
        log.seek(offset)
        yield from log


def _count(file: str, offset: int, text: str) -> int:
    """How many lines of a log, from a place in it, hold a text."""
    return sum(text in line for line in _lines(file, offset))


def _read_from(file: str, offset: int) -> str:
    try:
        return Path(file).read_bytes()[offset:].decode(errors="replace")
    except OSError:
        return ""


def act(daemon: Daemon, verb: str) -> Dict[str, Any]:
    """Do one thing, alone; to look, nobody needs to be alone."""
    if verb == "status":
        return daemon.status()
    try:
        with daemon.locked(0 if verb == "keep" else LOCK_SECONDS + daemon.deadline):
            return CHANGES[verb](daemon)
    except BusyError:
        if verb != "keep":
            raise
        return {"changed": False}  # whoever is at work on it starts it, or has a reason not to


CHANGES = {"ensure": Daemon.ensure, "keep": Daemon.keep, "stop": Daemon.stop}


def main(arguments: List[str]) -> int:
    """Do what the command line says; print one JSON line, or one line of what to do."""
    if len(arguments) != 2 or arguments[0] not in (*CHANGES, "status"):
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    verb, name = arguments
    site = Path(__file__).absolute().parent.parent
    try:
        print(json.dumps(act(Daemon(site, name), verb)))
    except RefusedError as refused:
        print(refused, file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room there" if full else "see that it is yours to write"
        print(
            f"{error.filename or site}: {error.strerror}; {remedy}, then run again",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
