import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import psutil
import pytest
import requests
from proxystore.endpoint.config import EndpointConfig, EndpointRelayConfig, write_config

from fl.transport import parts, proxystore
from fl.transport.base import GoneError, Ref, TransportError, UnreachableError
from fl.transport.proxystore import ProxystoreTransport

pytestmark = pytest.mark.daemons
PART = 100_000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """A real ProxyStore endpoint without peers, in a folder and on a port of its own."""
    home = tmp_path_factory.mktemp("proxystore")
    config = EndpointConfig(
        name="solo",
        uuid=str(uuid4()),
        port=free_port(),
        host="127.0.0.1",
    )
    write_config(config, str(home / "solo"))
    process = subprocess.Popen(
        [Path(sys.executable).with_name("proxystore-endpoint"), "start", "solo", "--no-detach"],
        env={**os.environ, "PROXYSTORE_HOME": str(home)},
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: answers(config.port))
        os.environ["PROXYSTORE_HOME"] = str(home)
        yield config, process
    finally:
        os.environ.pop("PROXYSTORE_HOME", None)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """Two real endpoints that meet at a real relay, the first of them here; and the other's end."""
    relay_port = free_port()
    relay = EndpointRelayConfig(address=f"ws://127.0.0.1:{relay_port}")
    processes, configs = [], []

    def start(port, home, program, *arguments):
        command = [Path(sys.executable).with_name(program), *arguments]
        environment = {**os.environ, "PROXYSTORE_HOME": str(home)}
        processes.append(subprocess.Popen(command, env=environment, stdout=DEVNULL, stderr=DEVNULL))
        wait_for(lambda: listens(port))

    try:
        start(
            relay_port,
            tmp_path,
            "proxystore-relay",
            "--host",
            "127.0.0.1",
            "--port",
            str(relay_port),
        )
        for name in ("here", "there"):
            config = EndpointConfig(
                name=name, uuid=str(uuid4()), port=free_port(), host="127.0.0.1", relay=relay
            )
            write_config(config, str(tmp_path / name / "endpoint"))
            start(
                config.port,
                tmp_path / name,
                "proxystore-endpoint",
                "start",
                "endpoint",
                "--no-detach",
            )
            configs.append(config)
        monkeypatch.setenv("PROXYSTORE_HOME", str(tmp_path / "here"))
        yield configs, processes[-1]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(port):
    try:
        return requests.get(f"http://127.0.0.1:{port}/endpoint", timeout=1).ok
    except requests.RequestException:
        return False


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the endpoint did not start"
        time.sleep(0.05)


@pytest.fixture
def transport(endpoint, monkeypatch):
    for module in (proxystore, parts):
        monkeypatch.setattr(module, "PART_BYTES", PART)
    monkeypatch.setattr(parts, "PAUSE_SECONDS", 0.01)
    opened = ProxystoreTransport([UUID(endpoint[0].uuid), uuid4()])
    yield opened
    opened.close()


@pytest.mark.parametrize("size", [1, PART, 5 * PART + 1], ids=["a byte", "a part", "six parts"])
def test_put_get_evict(transport, size):
    data = os.urandom(size)
    ref = transport.put(data[: size // 3], data[size // 3 :])
    assert transport.get(ref) == data
    assert transport.exists(ref)
    transport.evict(ref)
    assert not transport.exists(ref)
    transport.evict(ref)
    with pytest.raises(GoneError, match="no longer at ProxyStore endpoint"):
        transport.get(ref)


def test_an_object_that_lacks_a_part_is_not_there(transport):
    ref = transport.put(os.urandom(3 * PART))
    transport._parts.ask("POST", list(transport._urls("evict", ref))[1])
    assert not transport.exists(ref)
    with pytest.raises(GoneError):
        transport.get(ref)
    transport.evict(ref)


def test_a_part_that_is_lost_on_the_way_is_asked_for_again_alone(transport, monkeypatch):
    data, asked = os.urandom(4 * PART), []
    ref, get = transport.put(data), transport._parts._session.get

    def losing(url, **kwargs):
        asked.append(url)
        if len(asked) == 2:
            raise requests.ConnectionError("reset by peer")
        return get(url, **kwargs)

    monkeypatch.setattr(transport._parts._session, "get", losing)
    assert transport.get(ref) == data
    assert len(asked) == 5 and len(set(asked)) == 4
    transport.evict(ref)


def test_what_cannot_be_put_whole_leaves_no_part(transport, monkeypatch):
    request, kept = transport._parts._session.request, []

    def full(method, url, **kwargs):
        if "/set?" in url and len(kept) == 2:
            raise requests.ConnectionError("no memory")
        kept.extend([url] if "/set?" in url else [])
        return request(method, url, **kwargs)

    monkeypatch.setattr(transport._parts._session, "request", full)
    with pytest.raises(UnreachableError, match="no memory"):
        transport.put(os.urandom(4 * PART))
    for url in kept:
        asked = transport._parts.ask("GET", url.replace("/set?", "/exists?"))
        assert asked.json() == {"exists": False}


def test_no_name_of_a_sites_leads_to_a_part_of_another_object(transport):
    ref = transport.put(os.urandom(2 * PART))
    (_, part) = transport._urls("get", ref)
    named = parse_qs(urlsplit(part).query)["key"][0]
    transport.evict(replace(ref, key={**ref.key, "object": named}))
    assert transport.exists(ref)
    transport.evict(ref)


def test_a_flipped_digest_is_noticed(transport):
    ref = transport.put(b"model")
    with pytest.raises(TransportError, match="damaged"):
        transport.get(Ref(ref.transport, ref.key, ref.size, "0" * 64))
    transport.evict(ref)


def test_a_foreign_reference_is_refused(transport):
    with pytest.raises(TransportError, match="sent by inline"):
        transport.get(Ref("inline", {"base64": ""}, 0, ""))


def test_a_reference_of_another_version_says_so(transport, endpoint):
    key = {"object_id": "1", "endpoint_id": endpoint[0].uuid}
    with pytest.raises(TransportError, match="another version of fl"):
        transport.get(Ref("proxystore", key, 5, ""))


def test_no_endpoint_of_ours(endpoint):
    with pytest.raises(TransportError, match="no ProxyStore endpoint of this federation"):
        ProxystoreTransport([uuid4()])


@pytest.fixture
def silent(endpoint, monkeypatch):
    """The endpoint, when it has stopped answering: it listens, and no more than that."""
    monkeypatch.setattr(proxystore, "BASE_SECONDS", 0.3)
    frozen = [psutil.Process(endpoint[1].pid)]
    frozen += frozen[0].children(recursive=True)
    for process in frozen:
        process.suspend()
    yield endpoint
    for process in frozen:
        process.resume()


def test_an_endpoint_that_stopped_answering_ends_in_a_deadline(transport, silent):
    with pytest.raises(TransportError, match="timed out"):
        transport.put(b"model")


def test_nor_for_longer_than_the_caller_waits(transport, silent, monkeypatch):
    monkeypatch.setattr(proxystore, "BASE_SECONDS", 600)
    ref = Ref("proxystore", {"object": "1", "endpoint_id": silent[0].uuid}, 5, "")
    with pytest.raises(TransportError, match=r"timed out.*read timeout=1\.[1-5]"):
        transport.get(ref, 1.5)


def test_nor_is_it_waited_for_to_begin_with(silent):
    with pytest.raises(TransportError, match=r"answers from here \(ReadTimeout"):
        ProxystoreTransport([UUID(silent[0].uuid)])


def test_one_that_answers_after_it_was_given_up_finds_the_endpoint_alive(
    peers, tmp_path, monkeypatch
):
    """An endpoint whose client has hung up is ended by its peer's answer."""
    (here, there), process = peers
    endpoints = [UUID(here.uuid), UUID(there.uuid)]
    transport = ProxystoreTransport(endpoints)
    monkeypatch.setenv("PROXYSTORE_HOME", str(tmp_path / "there"))
    theirs = ProxystoreTransport(endpoints).put(b"theirs")
    assert transport.get(theirs) == b"theirs"  # they have met
    process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(proxystore, "EVICT_SECONDS", 1.0)
    with pytest.raises(UnreachableError, match="timed out"):
        transport.get(theirs, 1.0)
    transport.evict(theirs)  # is the peer's to do, as soon as it can
    process.send_signal(signal.SIGCONT)
    transport.close()  # returns once both have been answered
    monkeypatch.setenv("PROXYSTORE_HOME", str(tmp_path / "here"))
    with pytest.raises(GoneError):  # which it says after those
        ProxystoreTransport(endpoints).get(theirs)


def test_what_is_left_open_is_not_waited_for_for_ever(peers, monkeypatch):
    (here, there), process = peers
    transport = ProxystoreTransport([UUID(here.uuid), UUID(there.uuid)])
    monkeypatch.setattr(proxystore, "CLOSE_SECONDS", 0.2)
    process.send_signal(signal.SIGSTOP)
    lost = Ref("proxystore", {"object": "1", "endpoint_id": there.uuid}, 5, "")
    with pytest.raises(UnreachableError, match="timed out"):
        transport.get(lost, 1.0)
    began = time.monotonic()
    transport.close()
    assert time.monotonic() - began < 5


def test_a_part_has_time_for_those_that_all_may_have_asked_for_before(transport):
    mine = transport._patience(Ref("proxystore", {}, 10**9, ""))
    transport._known |= {str(number) for number in range(62)}
    everybody = transport._patience(Ref("proxystore", {}, 10**9, ""))
    alone = 2 * 4 * PART / 3e6
    assert (mine, everybody) == pytest.approx((60 + alone, 60 + 32 * alone))
