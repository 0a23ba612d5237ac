import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest
import requests
from proxystore.endpoint.config import EndpointConfig, EndpointStorageConfig, write_config

from fl.transport import proxystore
from fl.transport.base import Ref, TransportError
from fl.transport.proxystore import ProxystoreTransport

pytestmark = pytest.mark.daemons
LIMIT = 1_000_000


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
        storage=EndpointStorageConfig(max_object_size=LIMIT),
    )
    write_config(config, str(home / "solo"))
    process = subprocess.Popen(
        [Path(sys.executable).with_name("proxystore-endpoint"), "start", "solo", "--no-detach"],
        env={**os.environ, "PROXYSTORE_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
def transport(endpoint):
    opened = ProxystoreTransport([UUID(endpoint[0].uuid), uuid4()])
    yield opened
    opened.close()


def test_put_get_evict(transport):
    data = os.urandom(LIMIT // 2)
    ref = transport.put(data)
    assert transport.get(ref) == data
    assert transport.exists(ref)
    transport.evict(ref)
    assert not transport.exists(ref)
    transport.evict(ref)
    with pytest.raises(TransportError, match="no longer"):
        transport.get(ref)


def test_over_the_object_limit_names_the_limit(transport):
    with pytest.raises(TransportError, match="max_object_size"):
        transport.put(bytes(2 * LIMIT))


def test_a_flipped_digest_is_noticed(transport):
    ref = transport.put(b"model")
    with pytest.raises(TransportError, match="damaged"):
        transport.get(Ref(ref.transport, ref.key, ref.size, "0" * 64))
    transport.evict(ref)


def test_a_foreign_reference_is_refused(transport):
    with pytest.raises(TransportError, match="sent by inline"):
        transport.get(Ref("inline", {"base64": ""}, 0, ""))


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
    with pytest.raises(TransportError, match=r"timed out.*read timeout=0\.2"):
        transport.get(ref, 0.2)


def test_nor_is_it_waited_for_to_begin_with(silent):
    with pytest.raises(TransportError, match=r"answers from here \(ReadTimeout"):
        ProxystoreTransport([UUID(silent[0].uuid)])
