"""How objects are cut into parts, and how long a store that does not answer is asked."""

import math
import re
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import requests
from urllib3.poolmanager import PoolManager, ProxyManager

from fl.tensors import digest
from fl.transport import parts
from fl.transport.base import Ref, TransportError, UnreachableError
from tests import packages
from tests.transport.nginx import certify


@pytest.mark.parametrize(("seconds", "tries", "silence"), [(math.inf, 4, 60.0), (1.5, 1, 1.5)])
def test_no_part_is_waited_for_after_its_caller_has_gone(monkeypatch, seconds, tries, silence):
    still = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None)
    monkeypatch.setattr(parts, "time", still)
    monkeypatch.setattr(parts, "PAUSE_SECONDS", 2.0)
    asked = []

    def refuse(_url, timeout, **_):
        asked.append(timeout[1])
        raise requests.ConnectionError("refused")

    store = parts.Parts("the store", {})
    monkeypatch.setattr(store._session, "get", refuse)
    with pytest.raises(UnreachableError, match="refused"):
        store.read(Ref("s3", {}, 5, ""), [("http://store/object", 0)], seconds)
    assert len(asked) == tries
    assert asked[0] == silence
    store.close()


MODEL = bytes(96_000)


class Slow(BaseHTTPRequestHandler):
    """Gives what it is asked for, late or little by little: as the path says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        begin, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = MODEL[begin : end + 1]
        step = len(part) if self.path == "/late" else 100
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        for begin in range(0, len(part), step):
            if self.server.over.wait(0.1):
                return
            self.wfile.write(part[begin : begin + step])
        self.server.sent.set()


@pytest.fixture
def slow(request, tmp_path):
    """A store that is; over TLS where a test says so."""
    scheme = getattr(request, "param", "http")
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        if scheme == "https":
            server.socket = secured(server.socket, tmp_path)
        server.url = f"{scheme}://127.0.0.1:{server.server_port}"
        server.over, server.sent = threading.Event(), threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def secured(listener, folder):
    """What shows whoever comes a certificate that `asking` trusts."""
    if reason := packages.install({"openssl": "openssl"}):
        pytest.skip(f"a certificate needs openssl: {reason}")
    certify(folder, "store")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "store.pem", folder / "store.key")
    return context.wrap_socket(listener, server_side=True)


@pytest.fixture
def asking(tmp_path):
    """Who asks a store, and no proxy."""
    opened = parts.Parts("the store", {}, proxied=False)
    opened._session.verify = str(tmp_path / "store.pem")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("slow", "path", "part_bytes"),
    [("http", "/late", 250), ("http", "/drip", 8_000), ("https", "/drip", 8_000)],
    indirect=["slow"],
)
def test_a_fetch_ends_at_its_deadline(monkeypatch, slow, asking, path, part_bytes):
    """Of parts that are late none is asked for after it; and bytes that drip are no silence."""
    monkeypatch.setattr(parts, "PART_BYTES", part_bytes)
    monkeypatch.setattr(parts, "LEAST_SECONDS", 0.5)
    places = [(slow.url + path, begin) for begin in range(0, len(MODEL), part_bytes)]
    began = time.monotonic()
    # A try may end by its own limit of silence, which is the same.
    with pytest.raises(UnreachableError, match=r"in time|timed out"):
        asking.read(Ref("s3", {}, len(MODEL), digest(MODEL)), places, 0.5)
    assert time.monotonic() - began < 5  # all of it takes twice as long, or longer


@pytest.mark.parametrize("slow", ["https"], indirect=True)
@pytest.mark.parametrize("adapter", [parts.Adapter, requests.adapters.HTTPAdapter])
def test_what_has_come_over_tls_by_a_deadline_is_deciphered(slow, asking, adapter):
    """By itself the socket forgets how: its reader had an error, or the model enciphered.

    A SOCKS proxy's connections are urllib3's own, as those of requests' adapter are.
    """
    asking._session.mount("https://", adapter())
    headers = {"Range": "bytes=0-39999"}  # more than is read of the socket at once
    with asking._session.get(slow.url + "/late", headers=headers, stream=True) as response:
        read = response.raw.read(100)
        assert slow.sent.wait(20)
        with parts._no_longer_than(response, time.monotonic() + 60):
            response.raw.shutdown()  # as it does then
            assert read + response.raw.read() == MODEL[:40_000]


def test_a_part_is_sent_from_where_it_lies():
    """Of pieces that parts cut through: all bytes, in order, once a try, and no copy of them."""
    pieces = [bytearray(b"abc"), bytearray(b""), bytearray(b"defgh"), bytearray(b"ij")]
    cut = list(parts.split(pieces, 4))
    assert [b"".join(part) for part in cut] == [b"abcd", b"efgh", b"ij"]
    assert [len(part) for part in cut] == [4, 4, 2]
    assert b"".join(cut[0]) == b"abcd", "a second try"
    pieces[2][1] = ord("E")
    assert b"".join(cut[1]) == b"Efgh"
    assert [len(part) for part in parts.split([b""], 4)] == [0]


@pytest.fixture
def slow_reader(request):
    """A server on loopback that takes some kB at a time, with pauses; yields its URL."""
    pauses = iter(getattr(request, "param", ()))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def serve():
        connection, _ = listener.accept()
        with connection:
            left = -1
            head = b""
            while left:
                head += connection.recv(65536)
                if left < 0 and b"\r\n\r\n" in head:
                    length = re.search(rb"Content-Length: (\d+)", head)
                    left = int(length[1]) - len(head.partition(b"\r\n\r\n")[2])
                    head = b""
                elif left > 0:
                    left, head = left - len(head), b""
                    time.sleep(next(pauses, 0.004))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/part"
    thread.join(10)
    listener.close()


def test_a_slow_uplink_is_no_silent_one(monkeypatch, slow_reader):
    """The limit of silence holds for a little of a part, not for sending all of it."""
    monkeypatch.setattr(parts, "TIMEOUT", (10.0, 1.0))
    monkeypatch.setattr(parts, "TRIES", 1)
    store = parts.Parts("the store", {}, silence=60.0)  # of its answer
    began = time.monotonic()
    store.put([slow_reader], [bytes(32 << 20)], 32 << 20)
    assert time.monotonic() - began > 1.0, "it was not slow"
    store.close()


@pytest.mark.parametrize("slow_reader", [[1.5]], indirect=True)
def test_who_pauses_while_an_object_is_sent_is_given_the_limit_of_silence(monkeypatch, slow_reader):
    """And not that of connecting, which is a sixth of it."""
    monkeypatch.setattr(parts, "TIMEOUT", (0.5, 60.0))
    monkeypatch.setattr(parts, "TRIES", 1)
    store = parts.Parts("the store", {}, proxied=False)
    store.put([slow_reader], [bytes(12 << 20)], parts.PART_BYTES)
    store.close()


class Astray(BaseHTTPRequestHandler):
    """Sends whoever asks elsewhere, by the status that the path names; says 200 to a range."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers["Authorization"]))
        status = int(self.path[1:4])
        self.send_response(status)
        if status != 200:
            self.send_header("Location", "/200")
        body = MODEL if status == 200 else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def astray():
    """Such a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Astray)
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_port}"
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("status", [302, 307])
def test_nobody_is_sent_elsewhere_by_a_store(tmp_path, monkeypatch, astray, status):
    """A signature is for one place; requests would make a GET of the PUT, and tell a password."""
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    store = parts.Parts("the store", {})
    url = f"{astray.url}/{status}"
    with pytest.raises(TransportError, match=f"PUT of .*: HTTP status {status}"):
        store.put([url], [b"model"], 10)
    with pytest.raises(TransportError, match=f"GET of .*: HTTP status {status}"):
        store.read(Ref("s3", {}, 5, ""), [(url, 0)])
    assert astray.asked == [("PUT", f"/{status}", None), ("GET", f"/{status}", None)]
    store.close()


def test_a_store_that_ignores_ranges_is_named(monkeypatch, astray, asking):
    """Not taken at its word: its whole object is no later part of it."""
    monkeypatch.setattr(parts, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(parts, "PART_BYTES", half := len(MODEL) // 2)
    places = [(f"{astray.url}/200?signature=x", begin) for begin in (0, half)]
    told = "the store GET of .*/200 failed: HTTP status 200 to a range: the store ignores them$"
    with pytest.raises(TransportError, match=told) as caught:
        asking.read(Ref("s3", {}, len(MODEL), digest(MODEL)), places)
    assert not isinstance(caught.value, UnreachableError)
    assert len(astray.asked) == 2, "no try mends that"


def test_no_password_of_the_users_goes_to_a_store(tmp_path, monkeypatch):
    """A URL is signed: whoever it is for needs no other word, and S3 refuses two."""
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    store, sent = parts.Parts("the store", {}), []

    def send(request, **_):
        sent.append(request)
        raise requests.ConnectionError("refused")

    monkeypatch.setattr(parts, "TRIES", 1)
    monkeypatch.setattr(store._session, "send", send)
    with pytest.raises(UnreachableError):
        store.ask("GET", "http://store/object?signature=x")
    assert "Authorization" not in sent[0].headers
    store.close()


def test_a_proxy_of_socks_has_connections_of_its_own(monkeypatch):
    """Ours know nothing of what requests tells those."""
    theirs = PoolManager()
    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", lambda *_, **__: theirs)
    adapter = parts.Adapter()
    before = theirs.pool_classes_by_scheme
    assert adapter.proxy_manager_for("socks5h://localhost:1080").pool_classes_by_scheme is before
    other = adapter.proxy_manager_for("http://localhost:3128")
    assert isinstance(other, ProxyManager) and other.pool_classes_by_scheme is parts.POOLS
