"""The bucket way against moto's S3 over real HTTP, with faults put in between."""

import os
import threading
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import CredentialRetrievalError
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from fl.config import S3Configs, ServerCommConfigs
from fl.tensors import digest
from fl.transport import open_granted, open_server_transport, parts, s3
from fl.transport.base import (
    GoneError,
    NoPlaceError,
    Ref,
    TransportError,
    UnreachableError,
)
from fl.transport.s3 import S3Transport, SignedS3
from tests.transport.proof import prove

PART = 5 << 20  # the least that S3 takes
BUCKET = "federation"


class Store:
    """A store that fails where a test says so, once for each fault.

    A fault is (method, what to make of the honest answer).
    """

    def __init__(self):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.faults, self.asked = [], []
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        method = environ["REQUEST_METHOD"]
        self.asked.append(method)
        with self._lock:
            found = next((fault for fault in self.faults if fault[0] == method), None)
            if found:
                self.faults.remove(found)
        try:
            answer = Response.from_app(self.moto, environ)
        except KeyError:  # of which moto dies: a part for an upload that is no more
            answer = forgotten(None)
        return (found[1](answer) if found else answer)(environ, start_response)


def broken(answer):
    return Response("<Error><Code>SlowDown</Code></Error>", status=503)


def too_slow(answer):
    return Response("<Error><Code>RequestTimeout</Code></Error>", status=400)


def too_many(answer):
    return Response("<Error><Code>TooManyRequests</Code></Error>", status=429)


def late_error(answer):
    return Response('<?xml version="1.0"?>\n<Error><Code>InternalError</Code></Error>', status=200)


def forgotten(answer):
    return Response("<Error><Code>NoSuchUpload</Code></Error>", status=404)


def forbidden(answer):
    """What S3 says of a key that is not there to who may not list the bucket."""
    return Response("<Error><Code>AccessDenied</Code></Error>", status=403)


def short(answer):
    return Response(answer.get_data()[:-7], status=206)


def flipped(answer):
    data = answer.get_data()
    return Response(bytes([data[0] ^ 1]) + data[1:], status=206)


@pytest.fixture(scope="module")
def server():
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    yield store
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(server, monkeypatch):
    for module in (s3, parts):
        monkeypatch.setattr(module, "PART_BYTES", PART)
    monkeypatch.setattr(parts, "PAUSE_SECONDS", 0.01)
    server.faults, server.asked = [], []
    return server


@pytest.fixture
def client(store):
    """Somebody who looks into the bucket."""
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=store.url, **keys)
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.close()


@pytest.fixture
def configs(store, client, tmp_path):
    file = tmp_path / "keys.csv"
    file.write_text("region,access_key_id,secret_access_key\nus-east-1, key, secret\n")
    return S3Configs(
        enable_s3=True, s3_bucket=BUCKET, s3_creds_file=str(file), s3_endpoint_url=store.url
    )


@pytest.fixture
def transport(configs):
    opened = S3Transport(configs)
    yield opened
    opened.close()


def left(client):
    return [
        *client.list_objects_v2(Bucket=BUCKET).get("Contents", []),
        *client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []),
    ]


def test_models_go_down_and_updates_come_up_without_a_key_at_the_site(transport, client):
    model, update = os.urandom(2 * PART + 100), os.urandom(PART + 1)
    sent = transport.put(model[:7], memoryview(model)[7:])
    grant = transport.grant(len(update))
    site = SignedS3(grant)
    assert site.get(Ref.from_json(sent.to_json())) == model
    answered = Ref.from_json(site.put(update).to_json())
    assert site.get(answered) == update
    assert not {"delete", "evict"} & {*grant, *dir(site)}  # is the server's to do
    assert len(left(client)) == 2
    assert transport.get(answered) == update
    for ref in (sent, answered, answered):
        transport.evict(ref)
    assert left(client) == []
    for reader in (lambda: transport.get(sent), lambda: site.get(sent)):
        with pytest.raises(GoneError, match="no longer there"):
            reader()
    site.close()


def test_who_will_only_read_is_granted_no_upload(transport, client):
    ref = transport.put(b"model")
    site = open_granted(transport.grant(None))
    assert site.get(ref) == b"model"
    assert len(left(client)) == 1
    transport.evict(ref)
    site.close()


def test_an_upload_that_a_site_never_completes_goes_with_its_eviction(transport, client):
    grant = transport.grant(5)
    site = parts.Parts("S3", {})
    site.ask("PUT", grant["parts"][0], b"model")
    site.close()
    assert len(left(client)) == 1
    transport.evict(Ref("s3", {"object": grant["object"]}, 5, digest(b"model")))
    assert left(client) == []


@pytest.mark.parametrize("length", [0, 1, PART])
def test_lengths_at_the_edges(transport, length):
    data = os.urandom(length)
    ref = transport.put(data)
    assert transport.get(ref) == data
    transport.evict(ref)


@pytest.mark.parametrize(
    "faults",
    [
        [("PUT", broken)] * 3,
        [("PUT", too_slow)] * 3,
        [("GET", broken)] * 3,
        [("GET", short)] * 3,
        [("POST", late_error)],
    ],
)
def test_what_fails_or_comes_short_is_tried_again(transport, store, faults):
    data = os.urandom(PART + 1)
    grant = transport.grant(len(data))
    store.faults = list(faults)
    ref = SignedS3(grant).put(data)
    assert transport.get(ref) == data
    assert store.faults == []
    transport.evict(ref)


@pytest.mark.parametrize("side", ["server", "site"])
def test_an_object_whose_completion_was_heard_and_its_answer_lost_is_there(transport, store, side):
    """The store knows no such upload at the second try."""
    data = os.urandom(PART + 1)
    put = transport.put if side == "server" else SignedS3(transport.grant(len(data))).put
    store.faults = [("POST", lambda answer: answer)] * (side == "server")  # which begins the upload
    store.faults += [("POST", broken), ("POST", forgotten)]
    ref = put(data)
    assert store.faults == []
    assert transport.get(ref) == data
    transport.evict(ref)


def test_an_object_whose_completion_was_never_answered_is_put_by_the_next_try(transport, store):
    """It is there, and its upload is not: what a site has trained is not lost with the answers."""
    data = os.urandom(PART + 1)
    site = SignedS3(transport.grant(len(data)))
    store.faults = [("POST", broken)] * parts.TRIES
    with pytest.raises(UnreachableError):
        site.put(data)
    ref = site.put(data)
    assert transport.get(ref) == data
    transport.evict(ref)
    # Now neither is there. That is no model that went: the site has none to ask for again.
    for faults in ([], [("GET", forbidden)] * 2):
        store.faults = faults
        with pytest.raises(NoPlaceError, match=r"PUT of .* 404 NoSuchUpload$"):
            site.put(data)
    # Who cannot ask whether it is there says so, and the next try asks again.
    store.faults = [("GET", broken)] * 2 * parts.TRIES
    with pytest.raises(UnreachableError, match="GET of"):
        site.put(data)
    site.close()


@pytest.mark.parametrize(
    "fault",
    [
        ("PUT", broken),
        ("PUT", too_slow),
        ("PUT", too_many),
        ("POST", late_error),
        ("GET", short),
    ],
)
def test_what_keeps_failing_is_named_without_its_signature(transport, store, fault):
    data = os.urandom(10)
    grant = transport.grant(len(data))
    store.faults = [fault] * parts.TRIES
    with pytest.raises(UnreachableError, match=f"S3 {fault[0]} of 127.0.0.1.*/fl/") as caught:
        transport.get(SignedS3(grant).put(data))
    assert "Signature" not in str(caught.value)


def test_a_part_that_is_taken_without_its_tag_is_named(transport, store):
    """A proxy may have taken that out; no object can be completed without it."""
    store.faults = [("PUT", lambda _: Response(status=200))]
    with pytest.raises(TransportError, match="took a part and named no ETag"):
        transport.put(b"model")


def test_a_flipped_byte_is_noticed(transport, store):
    ref = transport.put(b"model")
    store.faults = [("GET", flipped)]
    with pytest.raises(TransportError, match="digest differs"):
        transport.get(ref)
    transport.evict(ref)


def test_a_server_that_is_gone_is_unreachable(transport):
    grant = transport.grant(5)
    url = urlsplit(grant["get"])._replace(netloc="127.0.0.1:9").geturl()
    with pytest.raises(UnreachableError, match="failed: ConnectionError") as caught:
        SignedS3(grant).get(Ref("s3", {"url": url}, 5, digest(b"model")))
    assert "Signature" not in str(caught.value)


def test_a_site_puts_no_more_than_it_was_granted(transport, client):
    grant = transport.grant(PART)
    with pytest.raises(TransportError, match="larger than what the server has granted"):
        SignedS3(grant).put(bytes(PART + 1))


def test_a_site_cannot_send_the_server_anywhere(transport, store):
    store.asked.clear()
    for key in ({"url": f"{store.url}/elsewhere"}, {"object": "../secret"}, {"object": "fl/x"}):
        for operation in (transport.get, transport.evict):
            with pytest.raises(TransportError, match="set up for s3"):
                operation(Ref("s3", key, 5, ""))
    with pytest.raises(TransportError, match="set up for s3"):
        SignedS3({}).get(Ref("inline", {"base64": ""}, 5, ""))
    assert store.asked == []


def test_nothing_is_left_of_tasks_that_were_lost(configs, client):
    transport = S3Transport(configs)
    late = SignedS3(transport.grant(5))
    late.put(b"model")
    never = transport.grant(5)
    assert len(left(client)) == 2
    transport.close()
    assert left(client) == []
    with pytest.raises(TransportError):
        SignedS3(never).put(b"model")
    assert left(client) == []


def test_a_store_that_is_gone_at_the_end_is_asked_once(configs, monkeypatch):
    """Of each object it would be waited for a minute and more."""
    transport, asked = S3Transport(configs), []
    for _ in range(4):
        transport.grant(5)

    def call(operation, **_):
        asked.append(operation)
        raise UnreachableError("no answer")

    with monkeypatch.context() as gone:
        gone.setattr(transport, "_call", call)
        transport.close()
    assert len(asked) == 1
    again = S3Transport(configs)
    again._uploads = transport._uploads
    again.close()


def test_an_upload_that_could_not_be_ended_is_not_forgotten(transport, store):
    """The store's parts of it would live on unseen."""
    grant = transport.grant(5)
    ref = Ref("s3", {"object": grant["object"]}, 5, digest(b"model"))
    store.faults = [("DELETE", broken)] * parts.TRIES
    with pytest.raises(UnreachableError, match="abort_multipart_upload failed"):
        transport.evict(ref)
    assert grant["object"] in transport._uploads
    transport.evict(ref)
    assert transport._uploads == {}


def test_credentials_that_cannot_be_renewed_are_named(transport, monkeypatch):
    def expired():
        raise CredentialRetrievalError(provider="sso", error_msg="expired")

    credentials = transport._client._request_signer._credentials
    monkeypatch.setattr(credentials, "get_frozen_credentials", expired)
    with pytest.raises(TransportError, match=r"S3 .*expired"):
        transport.get(Ref("s3", {"object": f"fl/{32 * '0'}"}, 5, ""))


def test_what_cannot_work_is_named_at_once(configs, tmp_path):
    with pytest.raises(TransportError, match="bucket nowhere: head_bucket failed"):
        S3Transport(configs.model_copy(update={"s3_bucket": "nowhere"}))
    with pytest.raises(TransportError, match=r"none\.csv: No such file"):
        S3Transport(configs.model_copy(update={"s3_creds_file": str(tmp_path / "none.csv")}))
    for url in ("https://", "http://bad host:1"):
        with pytest.raises(TransportError, match=r"S3 cannot be used: .*nvalid endpoint"):
            S3Transport(configs.model_copy(update={"s3_endpoint_url": url}))
    (tmp_path / "utf16.csv").write_bytes("us-east-1,key,secret".encode("utf-16"))
    with pytest.raises(TransportError, match=r"utf16\.csv: .*decode"):
        S3Transport(configs.model_copy(update={"s3_creds_file": str(tmp_path / "utf16.csv")}))
    (tmp_path / "short.csv").write_text("us-east-1,key\n")
    with pytest.raises(TransportError, match="secret_access_key was expected"):
        S3Transport(configs.model_copy(update={"s3_creds_file": str(tmp_path / "short.csv")}))


def test_a_worker_proves_the_way(configs, client):
    transport = open_server_transport(ServerCommConfigs(s3_configs=configs))
    model = transport.put(b"model")
    sent = prove(transport, model)
    assert transport.get(sent) == b"model"
    transport.evict(sent)
    transport.evict(model)
    assert left(client) == []
    transport.close()
