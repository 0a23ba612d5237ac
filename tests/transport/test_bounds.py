"""An endpoint that sends more than the reference says: the excess is never held."""

import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fl.tensors import digest
from fl.transport import proxystore
from fl.transport.base import Ref, TransportError, UnreachableError
from fl.transport.parts import PART_BYTES
from fl.transport.proxystore import ProxystoreTransport, connect

MODEL = b"m" * 100_000
HUGE = 64 * 2**20


class Liar(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.server.asked += 1
        self.server.over.wait(60)
        self.close_connection = True

    def do_GET(self):
        self.server.asked += 1
        if self.path.startswith("/dead/"):
            self.send_response(500)
            said = b"Timeout waiting for peer at http://relay/fl?s=secret"
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            return
        self.send_response(200)
        if self.path.startswith(("/honest/", "/stuck/")):
            self.send_header("Content-Length", str(len(MODEL)))
            self.end_headers()
            if self.path.startswith("/stuck/"):
                self.wfile.write(MODEL[:1000])
                self.server.over.wait(60)
            else:
                self.wfile.write(MODEL)
            return
        chunked = self.path.startswith("/chunked/")
        header = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(HUGE))
        self.send_header(*header)
        self.end_headers()
        self.close_connection = True
        try:
            for _ in range(HUGE // 2**20):
                self.wfile.write(b"100000\r\n" if chunked else b"")
                self.wfile.write(b"x" * 2**20 + (b"\r\n" if chunked else b""))
        except OSError:
            return  # the other side has had enough


@pytest.fixture
def transport(kind):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    server.asked, server.over = 0, threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    opened = ProxystoreTransport.__new__(ProxystoreTransport)  # finds no endpoint: this is none
    opened._address = f"http://127.0.0.1:{server.server_port}/{kind}"
    opened._known = {"e"}
    opened._parts = connect()
    opened.server = server
    yield opened
    server.over.set()
    opened.close()
    server.shutdown()
    server.server_close()
    thread.join()


def ref(endpoint="e"):
    key = {"object": "model", "endpoint_id": endpoint}
    return Ref("proxystore", key, len(MODEL), digest(MODEL))


@pytest.mark.parametrize("kind", ["honest"])
def test_what_is_as_large_as_announced_comes(transport):
    assert transport.get(ref()) == MODEL


@pytest.mark.parametrize("kind", ["honest"])
@pytest.mark.parametrize("operation", ["get", "evict"])
def test_no_reference_leads_to_an_endpoint_of_others(transport, operation):
    with pytest.raises(TransportError, match="not of this federation"):
        getattr(transport, operation)(ref(endpoint="elsewhere"))


@pytest.mark.parametrize("kind", ["chunked", "length"])
def test_what_is_larger_is_cut_off(transport):
    tracemalloc.start()
    try:
        with pytest.raises(TransportError, match="arrived damaged"):  # of its first 100000 bytes
            transport.get(ref())
        assert tracemalloc.get_traced_memory()[1] < HUGE / 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["dead"])
def test_an_endpoint_that_has_waited_for_its_peer_is_not_asked_again(transport):
    told = r"HTTP status 500 .*: Timeout waiting for peer at .*\?\.\.\.$"  # no signature
    with pytest.raises(UnreachableError, match=told):
        transport.get(ref())
    assert transport.server.asked == 1


@pytest.mark.parametrize("kind", ["stuck"])
def test_one_that_falls_silent_in_the_middle_is_not_waited_for(transport):
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"timed out|in time"):
        transport.get(ref(), 1.5)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("kind", ["silent"])
def test_an_endpoint_of_ones_own_is_given_no_time_for_its_peers(transport, monkeypatch):
    """What is put there has none before it; by then a get would be given 20 minutes."""
    monkeypatch.setattr(proxystore, "BASE_SECONDS", 1.0)
    monkeypatch.setattr(proxystore, "EVICT_SECONDS", 0.5)
    monkeypatch.setattr(proxystore, "LONGEST_EVICT_SECONDS", 0.5)
    transport._known = set(map(str, range(62))) | {"e"}
    transport._endpoint_id = "e"
    failed = []

    def put():
        try:
            transport.put(bytes(PART_BYTES))
        except UnreachableError as error:
            failed.append(error)

    putting = threading.Thread(target=put, daemon=True)
    putting.start()
    putting.join(15)
    assert failed


@pytest.mark.parametrize("kind", ["silent"])
def test_a_claim_does_not_keep_the_server_at_evicting(transport, monkeypatch):
    """Of a terabyte, which a site says it has put, are 65,536 parts; some show what they take."""
    monkeypatch.setattr(proxystore, "EVICT_SECONDS", 0.5)
    monkeypatch.setattr(proxystore, "LONGEST_EVICT_SECONDS", 0.5)
    claimed = Ref("proxystore", ref().key, 100 * PART_BYTES, "")
    began = time.monotonic()
    transport.evict(claimed)
    assert time.monotonic() - began < 10
    assert transport.server.asked < 20
