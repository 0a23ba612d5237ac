"""A sandbox as a process: up, down, and what can come between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from pika.spec import BasicProperties

from fl.sandbox import daemon, snapshot
from fl.sandbox.folder import Folder, ProcessRecord, SandboxError, process_records
from fl.sandbox.options import Options
from fl.sandbox.ports import free_port
from fl.sandbox.queues import Message, Queue, VirtualHost
from fl.sandbox.relay import Relay
from fl.sandbox.serve import Sandbox

from .conftest import eventually


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "box")
    yield folder
    daemon.down(folder)


@pytest.fixture
def options() -> Options:
    return Options(web_port=free_port())


def record(folder: Folder) -> dict[str, Any]:
    return dict(json.loads(folder.record.read_text()))


def listens(url: str) -> bool:
    port = int(url.rstrip("/").removesuffix("/%2F").rpartition(":")[2])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_up_returns_when_everything_answers_and_down_leaves_nothing(
    folder: Folder, options: Options
) -> None:
    assert daemon.up(folder, options)
    known = record(folder)
    parts = [known["compute"], known["auth"], known["broker"], known["relay"]]
    assert [listens(part) for part in parts] == [True] * 4
    processes = [r.process() for r in process_records(known)]
    assert len(processes) == 2 and all(processes)
    assert known["environment"]["GLOBUS_SDK_ENVIRONMENT"] == "local"
    assert known["environment"]["GLOBUS_SDK_SERVICE_URL_AUTH"] == known["auth"]
    assert known["environment"]["no_proxy"] == known["environment"]["NO_PROXY"]
    assert daemon.status(folder)["parts"] == {"web service": True, "relay": True}
    assert daemon.down(folder)
    assert [listens(part) for part in parts] == [False] * 4
    assert not any(r.process() for r in process_records(known))
    assert not folder.record.exists()
    assert daemon.status(folder) == {}


def test_it_listens_on_loopback_only(folder: Folder, options: Options) -> None:
    daemon.up(folder, options)
    for known in process_records(record(folder)):
        process = known.process()
        assert process
        listening = [c for c in process.net_connections("tcp") if c.status == "LISTEN"]
        assert listening
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_localhost_works_where_it_means_ipv6_first(
    folder: Folder, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.up(folder, options)
    asked: list[str] = []

    def addresses(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        return [v6, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    answer = requests.get(f"{record(folder)['compute']}/v2/version", timeout=5)
    assert (asked, answer.status_code) == (["localhost"], 200)


def test_files_are_for_their_owner_only(folder: Folder, options: Options) -> None:
    daemon.up(folder, options)
    daemon.down(folder)
    found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [folder.path, *folder.path.rglob("*")]}
    assert found.pop("box") == 0o700
    assert found.pop("logs") == 0o700
    assert {"client_secret", "state.sqlite", "queues.json", "ports.json"} <= found.keys()
    assert set(found.values()) == {0o600}


def test_a_folder_that_was_there_is_left_as_it_is(folder: Folder, options: Options) -> None:
    """It may be anybody's, as /tmp is, which would be closed to all others."""
    folder.path.mkdir()
    folder.path.chmod(0o755)
    theirs = folder.path / "service.json"
    theirs.write_text('{"name": "theirs"}')
    with pytest.raises(SandboxError, match=r"others can use .*: chmod 700 it"):
        daemon.up(folder, options)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o755
    assert not daemon.down(folder)
    folder.path.chmod(0o700)
    folder.lock.touch()
    assert not daemon.down(folder)
    assert theirs.exists()


def test_up_twice_is_up_once(folder: Folder, options: Options) -> None:
    assert daemon.up(folder, options)
    before = record(folder)
    assert not daemon.up(folder, options)
    assert record(folder) == before


def test_down_twice_is_down(folder: Folder, tmp_path: Path) -> None:
    assert not daemon.down(folder)
    assert not daemon.down(Folder(tmp_path / "missing"))


def test_what_others_were_told_survives(folder: Folder, options: Options) -> None:
    daemon.up(folder, options)
    before, secret = record(folder), folder.secret.read_text()
    daemon.down(folder)
    daemon.up(folder, options)
    after = record(folder)
    for kept in ("client_id", "relay", "broker", "compute"):
        assert after[kept] == before[kept]
    assert folder.secret.read_text() == secret


@pytest.mark.parametrize("part", ["web", "broker", "relay"])
def test_a_port_in_use_is_named_with_its_holder(folder: Folder, part: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        chosen = {"web_port": free_port(), f"{part}_port": port}
        with pytest.raises(SandboxError) as refused:
            daemon.up(folder, Options(**chosen))
    said = str(refused.value)
    assert f"port {port}" in said
    assert f"pid {os.getpid()}" in said
    assert "\n" not in said
    assert not folder.record.exists()
    assert ours(folder) == []
    assert port not in asdict(folder.identity()).values(), "it is asked for again"


def ours(folder: Folder) -> list[psutil.Process]:
    """The processes that say that they belong to this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FL_SANDBOX_DIR") == str(folder.path):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_broker_that_is_not_there_is_named(
    folder: Folder, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"amqp://guest:hunter2@127.0.0.1:{free_port()}/%2f"
    arguments, start = list[str](), subprocess.Popen

    def noted(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        arguments.extend(command)
        return start(command, **how)

    monkeypatch.setattr(daemon.subprocess, "Popen", noted)
    with pytest.raises(SandboxError) as refused:
        daemon.up(folder, Options(broker=url, web_port=options.web_port))
    assert arguments and "hunter2" not in " ".join(arguments), "every user sees arguments"
    said = str(refused.value)
    assert said.startswith("cannot use the broker amqp://127.0.0.1:")
    assert "hunter2" not in said
    assert "\n" not in said
    assert ours(folder) == []


def test_a_start_that_takes_too_long_is_ended(
    folder: Folder, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "UP_S", 0.01)
    with pytest.raises(SandboxError, match="no answer within"):
        daemon.up(folder, options)
    assert ours(folder) == []


def test_a_process_that_is_not_ours_is_left_alone(folder: Folder, options: Options) -> None:
    """After a reboot, the recorded ids may be anybody's."""
    folder.prepare()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        start = psutil.Process(other.pid).create_time() - 100
        known = {"pid": other.pid, "start_time": start}
        known |= {"relay_pid": other.pid, "relay_start_time": start}
        folder.record.write_text(json.dumps(known))
        assert daemon.status(folder) == {}
        assert not daemon.down(folder)
        folder.record.write_text(json.dumps(known))
        assert daemon.up(folder, options)
        daemon.down(folder)
        assert other.poll() is None
        other.communicate(b"\n")


def test_up_after_a_kill_takes_the_orphaned_relay_away(folder: Folder, options: Options) -> None:
    daemon.up(folder, options)
    before = record(folder)
    sandbox, relay = process_records(before)
    os.kill(sandbox.pid, signal.SIGKILL)
    eventually("the end of the sandbox", lambda: sandbox.process() is None)
    assert relay.process()
    assert daemon.status(folder) == {}
    assert daemon.up(folder, options)
    assert relay.process() is None
    assert record(folder)["relay"] == before["relay"]


def test_what_waited_is_not_sent_twice_after_a_kill(folder: Folder, options: Options) -> None:
    """What the first took from its file may have been delivered, and done, before it was killed."""
    folder.prepare()
    folder.write(folder.queues, waiting())
    daemon.up(folder, options)
    sandbox = process_records(record(folder))[0]
    os.kill(sandbox.pid, signal.SIGKILL)
    eventually("the end of the sandbox", lambda: sandbox.process() is None)
    daemon.up(folder, options)
    daemon.down(folder)
    assert json.loads(folder.queues.read_text()).get("waiting", []) == []


def test_what_waits_is_in_its_file_or_in_the_broker(
    folder: Folder, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the relay starts it has delivered some of it; what fails there puts it back."""
    folder.prepare()
    folder.write(folder.queues, waiting())
    seen: list[bool] = []

    async def fail(_: Relay) -> None:
        seen.append(folder.queues.exists())
        raise SandboxError("no relay")

    monkeypatch.setattr(Relay, "start", fail)
    with pytest.raises(SandboxError, match="no relay"):
        asyncio.run(Sandbox(folder, options).run(asyncio.Event(), asyncio.Event()))
    assert seen == [False]
    left, before = json.loads(folder.queues.read_text()), json.loads(waiting())
    assert left["waiting"] == before["waiting"]


def waiting() -> str:
    """What a sandbox leaves in whose broker a message waits."""
    vhost = VirtualHost()
    queue = vhost.queues["waiting"] = Queue("waiting", durable=True)
    queue.publish(Message("", "waiting", BasicProperties(), b"task"))
    return snapshot.dump(vhost)


def test_another_broker_leaves_what_waits_in_ours(folder: Folder, options: Options) -> None:
    folder.prepare()
    folder.write(folder.queues, waiting())
    with pytest.raises(SandboxError, match="cannot use the broker"):
        daemon.up(
            folder, replace(options, broker=f"amqp://guest:guest@127.0.0.1:{free_port()}/%2f")
        )
    assert folder.queues.read_text() == waiting()


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_spoilt_queues_are_named(folder: Folder, options: Options, text: str) -> None:
    folder.prepare()
    folder.queues.write_text(text, errors="surrogateescape")
    with pytest.raises(SandboxError, match=r"cannot read .*queues\.json"):
        daemon.up(folder, options)
    assert folder.queues.read_text(errors="surrogateescape") == text
    folder.queues.unlink()


def test_what_goes_wrong_at_the_end_is_in_the_log(folder: Folder, options: Options) -> None:
    daemon.up(folder, options)
    sandbox = process_records(record(folder))[0]
    folder.queues.mkdir()  # where what waits is to be written
    os.kill(sandbox.pid, signal.SIGTERM)
    eventually("the end of the sandbox", lambda: sandbox.process() is None)
    assert "IsADirectoryError" in folder.log.read_text()
    assert not folder.record.exists()


def test_a_relay_that_ends_is_started_again(folder: Folder, options: Options) -> None:
    daemon.up(folder, options)
    relay = process_records(record(folder))[1]
    os.kill(relay.pid, signal.SIGKILL)

    def another() -> bool:
        now = process_records(record(folder))[1]
        return now != relay and listens(record(folder)["relay"])

    eventually("another relay", another)
    assert daemon.down(folder)


def test_sandboxes_in_folders_of_their_own_run_side_by_side(
    folder: Folder, options: Options, tmp_path: Path
) -> None:
    other = Folder(tmp_path / "other")
    try:
        daemon.up(folder, options)
        daemon.up(other, Options(web_port=free_port()))
        one, two = record(folder), record(other)
        assert one["client_id"] != two["client_id"]
        daemon.down(folder)
        assert daemon.answers(two)
    finally:
        daemon.down(other)


def test_one_that_does_not_answer_here_is_not_called_up(folder: Folder) -> None:
    """As in another network namespace than the one in which it runs."""
    folder.prepare()
    known = ProcessRecord.of(os.getpid())
    silent = f"http://localhost:{free_port()}"
    content = {"pid": known.pid, "start_time": known.start_time, "compute": silent}
    folder.record.write_text(json.dumps(content))
    with pytest.raises(SandboxError, match="does not answer here"):
        daemon.up(folder, Options())
    folder.record.unlink()


def test_a_spoilt_record_is_named(folder: Folder) -> None:
    folder.prepare()
    folder.record.write_text("{")
    with pytest.raises(SandboxError, match=r"cannot read .*service\.json"):
        daemon.status(folder)
    folder.record.unlink()


def test_the_relay_is_proxystores(folder: Folder, options: Options) -> None:
    daemon.up(folder, options)
    url = record(folder)["relay"].replace("ws://", "http://")
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(url, timeout=5)
    assert answer.value.code == 426
    assert "WebSocket" in answer.value.read().decode()
