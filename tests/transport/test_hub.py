"""The hub way against a real nginx with the deployment's configuration, and what it must refuse."""

import os
import threading
import time

import pytest
import requests
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from fl.config import ServerCommConfigs
from fl.transport import hub, open_granted, open_server_transport, parts
from fl.transport.base import GoneError, Ref, TransportError, UnreachableError
from fl.transport.hub import HubTransport, SignedHub
from tests.transport import nginx
from tests.transport.connect_proxy import ConnectProxy
from tests.transport.proof import prove

PART = 1 << 16


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    nginx.need()
    started = nginx.Hub(tmp_path_factory.mktemp("hub"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def small(monkeypatch):
    """Small parts, and no waiting."""
    for module in (hub, parts):
        monkeypatch.setattr(module, "PART_BYTES", PART)
    monkeypatch.setattr(parts, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def transport(server, small):
    opened = HubTransport(server.configs)
    yield opened
    opened.close()
    assert server.left() == []


@pytest.fixture
def certified(server):
    """As somebody who is no part of the project asks: requests, with the hub's certificate."""
    with requests.Session() as session:
        session.trust_env = False
        session.verify = server.configs.hub_ca_file
        yield session


def url(ref, number=0):
    return f"{ref.key['url']}{number}?{ref.key['query']}"


def test_models_go_down_and_updates_come_up_without_a_secret_at_the_site(transport, server):
    model, update = os.urandom(2 * PART + 100), os.urandom(PART + 1)
    sent = transport.put(model[:7], memoryview(model)[7:])
    grant = transport.grant(len(update))
    site = open_granted(grant)
    assert site.get(Ref.from_json(sent.to_json())) == model
    answered = Ref.from_json(site.put(update).to_json())
    assert not {"delete", "evict"} & {*grant, *dir(site)}  # is the server's to do
    assert len(server.left()) == 2
    assert transport.get(answered) == update
    for ref in (sent, answered, answered):
        transport.evict(ref)
    assert server.left() == []
    for reader in (lambda: transport.get(answered), lambda: site.get(sent)):
        with pytest.raises(GoneError, match="no longer there"):
            reader()
    site.close()
    secret = (server.folder / "secrets" / "hub.key").read_text().strip()
    assert secret not in str(grant) + str(sent)


@pytest.mark.parametrize("length", [0, 1, PART, 9 * PART])
def test_lengths_at_the_edges(transport, length):
    data = os.urandom(length)
    ref = transport.put(data)
    assert transport.get(ref) == data
    transport.evict(ref)


def test_a_signature_is_for_one_object_one_method_and_a_time(
    transport, server, certified, monkeypatch
):
    mine, other = transport.put(b"model"), transport.put(b"other")
    grant = transport.grant(2 * PART)
    assert certified.get(url(mine)).content == b"model"
    signed = {
        "wrong signature": ("GET", url(mine)[:-22] + url(mine)[:-23:-1]),
        "none": ("GET", mine.key["url"] + "0"),
        "other object": ("GET", f"{other.key['url']}0?{mine.key['query']}"),
        "put to read": ("GET", f"{grant['url']}0?{grant['put'][0]}"),
        "read to put": ("PUT", url(mine)),
        "read to delete": ("DELETE", f"{mine.key['url']}?{mine.key['query']}"),
        "put to delete": ("DELETE", f"{grant['url']}?{grant['put'][0]}"),
        "part that was not granted": ("PUT", f"{grant['url']}2?{grant['put'][1]}"),
        "later": ("GET", url(mine).replace("e=", "e=9")),
        "list": ("GET", f"{mine.key['url']}?{mine.key['query']}"),
        "head": ("HEAD", url(mine)),
        "copy": ("COPY", url(mine)),
        "move": ("MOVE", url(mine)),
        "make a folder": ("MKCOL", f"{mine.key['url']}?{mine.key['query']}"),
    }
    answers = {name: certified.request(*asked, data=b"x") for name, asked in signed.items()}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(
        signed, 403
    )
    for path in ("/", "/fl/", "/fl/../nginx.conf", f"/fl/{mine.key['object']}/..%2f..%2fx"):
        assert certified.get(server.configs.hub_url + path).status_code in (403, 404)
    with monkeypatch.context() as later:
        later.setattr(hub, "VALID_SECONDS", -1)  # what is signed has expired already
        with pytest.raises(TransportError, match="410 Gone: the URL has expired"):
            transport.put(b"late")
    assert transport.get(mine) == b"model"
    assert transport.get(other) == b"other"


def test_a_site_puts_no_more_than_it_was_granted(transport, server, certified):
    grant = transport.grant(PART)
    with pytest.raises(TransportError, match="larger than what the server has granted"):
        SignedHub(grant).put(bytes(PART + 1))
    too_large = bytes((16 << 20) + 1)
    refused = certified.put(f"{grant['url']}0?{grant['put'][0]}", data=too_large)
    assert refused.status_code == 413
    assert server.left() == []


def test_a_part_is_as_large_as_nginx_takes_and_no_larger(server):
    """The size stands in `parts` and in nginx's configuration."""
    transport = HubTransport(server.configs)
    data = bytes(parts.PART_BYTES + 1)
    ref = transport.put(data)
    assert transport.get(ref) == data
    assert len(list((server.objects / "fl" / ref.key["object"]).iterdir())) == 2
    transport.evict(ref)
    transport.close()


def test_who_will_only_read_is_granted_no_object(transport):
    ref = transport.put(b"model")
    before = set(transport._granted)
    site = open_granted(transport.grant(None))
    assert site.get(ref) == b"model"
    assert transport._granted == before
    transport.evict(ref)
    site.close()


def test_what_a_site_puts_again_after_its_eviction_goes_with_the_run(server, small):
    transport = HubTransport(server.configs)
    site = SignedHub(transport.grant(5))
    transport.evict(site.put(b"model"))
    site.put(b"model")  # its grant lasts a week
    site.close()
    assert len(server.left()) == 1
    transport.close()
    assert server.left() == []


def test_a_longer_part_than_the_reference_says_is_not_read(transport, server):
    ref = transport.put(b"model")
    (server.objects / "fl" / ref.key["object"] / "0").write_bytes(b"model and more")
    assert transport.get(ref) == b"model"


def test_a_flipped_byte_is_noticed(transport, server):
    ref = transport.put(os.urandom(2 * PART))
    part = server.objects / "fl" / ref.key["object"] / "1"
    part.write_bytes(bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:])
    with pytest.raises(TransportError, match="digest differs"):
        transport.get(ref)


def test_a_part_that_stays_short_is_named_without_its_signature(transport, server):
    ref = transport.put(os.urandom(2 * PART))
    (server.objects / "fl" / ref.key["object"] / "1").write_bytes(b"short")
    with pytest.raises(UnreachableError, match=r"hub GET of 127.*/1 failed: 5 bytes") as caught:
        transport.get(ref)
    assert ref.key["query"] not in str(caught.value)


class Front:
    """Stands before nginx, and fails where a test says so, once for each fault.

    A fault is (method, what to make of the honest answer).
    """

    def __init__(self, certified, behind):
        self._certified, self._behind = certified, behind
        self.faults = []
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        asked = Request(environ)
        with self._lock:
            found = next((fault for fault in self.faults if fault[0] == asked.method), None)
            if found:
                self.faults.remove(found)
        headers = {name: asked.headers[name] for name in ("Range",) if name in asked.headers}
        answer = self._certified.request(
            asked.method, self._behind + asked.full_path, data=asked.get_data(), headers=headers
        )
        honest = Response(answer.content, status=answer.status_code)
        return (found[1](honest) if found else honest)(environ, start_response)


def broken(answer):
    return Response("out of order", status=500)


def short(answer):
    return Response(answer.get_data()[:-7], status=206)


def torn(answer):
    """The connection ends before the bytes do."""
    torn = short(answer)
    torn.headers["Content-Length"] = str(len(answer.get_data()))
    return torn


@pytest.fixture
def front(server, certified):
    app = Front(certified, server.configs.hub_url)
    tls = (server.folder / "secrets" / "own.pem", server.folder / "secrets" / "own.key")
    standing = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=tuple(map(str, tls)))
    thread = threading.Thread(target=standing.serve_forever)
    thread.start()
    app.url = f"https://127.0.0.1:{standing.server_port}"
    yield app
    standing.shutdown()
    thread.join()
    standing.server_close()


@pytest.mark.parametrize("fault", [("PUT", broken), ("GET", broken), ("GET", short), ("GET", torn)])
def test_what_fails_or_comes_short_is_tried_again(server, front, small, fault):
    transport = HubTransport(server.configs.model_copy(update={"hub_url": front.url}))
    front.faults = [fault] * 3
    data = os.urandom(PART + 1)
    assert transport.get(transport.put(data)) == data
    assert front.faults == []
    transport.close()
    assert server.left() == []


def test_what_cannot_be_deleted_at_the_end_keeps_no_other_from_it(server, front, small):
    transport = HubTransport(server.configs.model_copy(update={"hub_url": front.url}))
    for _ in range(12):
        SignedHub(transport.grant(5)).put(b"model")
    front.faults = [("DELETE", broken)] * (parts.TRIES * parts.THREADS)
    transport.close()
    assert front.faults == []
    assert server.left() == []  # behind the front they were deleted


def test_a_hub_that_is_gone_at_the_end_is_not_waited_for(server, small, monkeypatch):
    transport = HubTransport(server.configs)
    for _ in range(400):
        transport.grant(5)
    transport._address = f"https://127.0.0.1:{nginx.free_port()}"
    monkeypatch.setattr(parts, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(hub, "CLOSE_SECONDS", 0.5)
    began = time.monotonic()
    transport.close()
    assert time.monotonic() - began < 20  # it was 140 s


def test_what_keeps_failing_leaves_nothing(server, front, small):
    transport = HubTransport(server.configs.model_copy(update={"hub_url": front.url}))
    front.faults = [("PUT", broken)] * 2 * parts.TRIES
    with pytest.raises(UnreachableError, match=r"hub PUT of .* failed: HTTP status 500"):
        transport.put(os.urandom(2 * PART))
    front.faults = []
    transport.close()
    assert server.left() == []


def test_a_site_asks_through_its_proxy_alone(transport, server, monkeypatch):
    place = server.configs.hub_url.removeprefix("https://")
    sent, grant = transport.put(os.urandom(3 * PART)), transport.grant(PART)
    with ConnectProxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UnreachableError, match="403 Filtered"):
            open_granted(grant).get(sent)
        proxy.allowed, proxy.asked = {place}, []
        site = open_granted(grant)
        site.get(sent)
        assert set(proxy.asked) == {place}
        proxy.asked = []
        answered = site.put(b"update")
        site.close()
        assert set(proxy.asked) == {place}
        assert len(proxy.asked) <= 2 * parts.THREADS
    monkeypatch.delenv("HTTPS_PROXY")
    assert transport.get(answered) == b"update"


def test_who_shows_another_certificate_is_not_spoken_to(server, small, tmp_path, monkeypatch):
    nginx.certify(tmp_path, "other")
    configs = server.configs.model_copy(update={"hub_ca_file": str(tmp_path / "other.pem")})
    # What the environment would have requests trust is not what the federation trusts.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", server.configs.hub_ca_file)
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        HubTransport(configs)
    assert "s=" not in str(caught.value)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        HubTransport(server.configs.model_copy(update={"hub_ca_file": None}))


def test_what_cannot_work_is_named_at_once(server, small, tmp_path):
    (tmp_path / "other.key").write_text("another secret")
    (tmp_path / "none.pem").write_text("no certificate")
    wrong = {
        "does it hold another secret": {"hub_secret_file": str(tmp_path / "other.key")},
        r"missing\.key: No such file": {"hub_secret_file": str(tmp_path / "missing.key")},
        "holds no certificates": {"hub_ca_file": str(tmp_path / "none.pem")},
        "https:// alone": {"hub_url": "http://127.0.0.1:80"},
        "answers as none of ours": {"hub_url": server.configs.hub_url + "/elsewhere"},
        "ConnectionError": {"hub_url": f"https://127.0.0.1:{nginx.free_port()}"},
    }
    for said, update in wrong.items():
        with pytest.raises(TransportError, match=said):
            HubTransport(server.configs.model_copy(update=update))


def test_a_server_cannot_have_a_site_speak_in_clear(transport, server):
    ref, grant = transport.put(b"model"), transport.grant(5)
    plain = {**ref.key, "url": ref.key["url"].replace("https:", "http:")}
    with pytest.raises(TransportError, match="https:// alone"):
        open_granted(grant).get(Ref("hub", plain, ref.size, ref.digest))
    with pytest.raises(TransportError, match="https:// alone"):
        open_granted({**grant, "url": "http://127.0.0.1/"})
    with pytest.raises(TransportError, match="a way named 'pigeon'"):
        open_granted({"transport": "pigeon"})


def test_a_site_cannot_send_the_server_anywhere(transport, server):
    for key in ({"url": "https://127.0.0.1:9/"}, {"object": "../secrets"}, {"object": "0" * 33}):
        for operation in (transport.get, transport.evict):
            with pytest.raises(TransportError, match="set up for hub"):
                operation(Ref("hub", key, 5, ""))
    with pytest.raises(TransportError, match="set up for hub"):
        open_granted(transport.grant(5)).get(Ref("inline", {"base64": ""}, 5, ""))


def test_a_worker_proves_the_way(server, small):
    transport = open_server_transport(ServerCommConfigs(hub_configs=server.configs))
    sent = prove(transport, transport.put(b"model"))
    assert transport.get(sent) == b"model"
    transport.close()
    assert server.left() == []
