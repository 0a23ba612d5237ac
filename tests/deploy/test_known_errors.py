"""What a deployment says to do, held against what the daemons really say when they cannot start."""

import http.server
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import BIN, TOP, sandbox_environment

SECONDS = 120.0
UUID = "a6dbf2d2-847a-427d-ae48-5c39d95436ad"
CLIENT = {"ID": "11111111-2222-4333-8444-555555555555", "SECRET": "expired"}
# A day as any other, with numbers in it that mean nothing.
GOOD_DAY = """\
2026-11-28 10:52:51,401 INFO MainProcess-401 heartbeat, code 401 of 5401, Errno 0
[2026-11-28 10:52:51.401] INFO  (proxystore.endpoint.serve) :: Serving endpoint on port 9801
"""


class Refusing(http.server.BaseHTTPRequestHandler):
    """Globus Auth, to a client whose secret has expired."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"error": "invalid_client"}')

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def auth() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        yield squatter.getsockname()[1]


def known_errors(role: str) -> list[dict[str, str]]:
    defaults = yaml.safe_load((TOP / f"playbooks/roles/{role}/defaults/main.yml").read_text())
    return defaults[f"{role}_known_errors"]


def meaning(role: str, text: str) -> str:
    """What a deployment would say of a log."""
    found = (error for error in known_errors(role) if re.search(error["pattern"], text))
    return next((f"{error['meaning']}; {error['remedy']}" for error in found), "")


def understood(
    role: str, command: list[str], environment: dict[str, str], log: Path | None = None
) -> str:
    """Start a daemon, and answer with what is understood of what it says, in its log too."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ending = threading.Timer(SECONDS, process.kill)
    ending.start()
    text = ""
    for line in process.stdout:
        text += line
        if meaning(role, text):
            process.kill()
    process.wait()
    ending.cancel()
    text += log.read_text() if log and log.exists() else ""
    return meaning(role, text) or text


@pytest.fixture
def proxystore(tmp_path) -> Callable[..., str]:
    """Start ProxyStore's endpoint with a relay and a port of one's choice."""

    def start(relay: str = "", port: int = 0, **more: str) -> str:
        folder = tmp_path / "proxystore/site-a"
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(
            f'name = "site-a"\nuuid = "{UUID}"\nport = {port}\n'
            f'host_type = "static"\nhost = "127.0.0.1"\n{relay}'
        )
        command = [str(BIN / "proxystore-endpoint"), "start", "--no-detach", "site-a"]
        home = {"PROXYSTORE_HOME": str(tmp_path / "proxystore"), "HOME": str(tmp_path)}
        return understood("proxystore", command, sandbox_environment(tmp_path) | home | more)

    return start


def test_a_port_that_is_taken(proxystore, taken):
    assert "is in use; set fl_proxystore_port of" in proxystore(port=taken)


def test_a_relay_that_is_down(proxystore, taken):
    relay = '[relay]\naddress = "ws://127.0.0.1:1"\n'
    assert "cannot be reached from" in proxystore(relay, port=taken)


GLOBUS_RELAY = '[relay]\naddress = "ws://127.0.0.1:1"\n[relay.auth]\nmethod = "globus"\n'


def test_a_relay_that_nobody_has_logged_in_to(proxystore, taken):
    assert "nobody has logged in to the relay here; run " in proxystore(GLOBUS_RELAY, port=taken)


def test_a_relay_with_a_secret_that_has_expired(proxystore, taken, auth):
    said = proxystore(
        GLOBUS_RELAY,
        port=taken,
        GLOBUS_SDK_SERVICE_URL_AUTH=auth,
        **{f"PROXYSTORE_GLOBUS_CLIENT_{name}": value for name, value in CLIENT.items()},
    )
    assert "the relay's login failed; check fl_client_id and fl_client_secret" in said


@pytest.fixture
def compute(tmp_path) -> Callable[..., str]:
    """Start a Globus Compute endpoint."""
    folder = tmp_path / "globus_compute/site-a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("display_name: site-a\nemail: me@localhost\n")
    (folder / "user_config_template.yaml.j2").write_text("engine: {type: ThreadPoolEngine}\n")

    def start(**more: str) -> str:
        environment = sandbox_environment(tmp_path) | {
            "GLOBUS_COMPUTE_USER_DIR": str(tmp_path / "globus_compute"),
            "HOME": str(tmp_path),
            **{f"GLOBUS_COMPUTE_CLIENT_{name}": value for name, value in CLIENT.items()},
        }
        command = [str(BIN / "globus-compute-endpoint"), "start", "site-a"]
        return understood("compute", command, environment | more, folder / "endpoint.log")

    return start


def test_an_endpoint_that_runs_on_another_login_node(compute, tmp_path):
    """That one touches its file on the shared home every 15 s."""
    (tmp_path / "globus_compute/site-a/daemon.pid").write_text("4242\nlogin02\n")
    said = compute()
    assert "another process says that it is this endpoint, perhaps on another login node" in said
    assert "stop that one, or if there is none remove" in said


def test_an_endpoint_with_a_secret_that_has_expired(compute, auth):
    said = compute(GLOBUS_SDK_SERVICE_URL_AUTH=auth)
    assert "Globus refused the credentials of client" in said
    assert "check fl_client_id and fl_client_secret" in said


def test_an_endpoint_whose_configuration_is_refused(compute, tmp_path):
    (tmp_path / "globus_compute/site-a/config.yaml").write_text("displayname: site-a\n")
    assert "the endpoint refused its configuration" in compute()


@pytest.mark.parametrize("role", ["proxystore", "compute", "relay", "hub"])
def test_a_good_day_is_no_error(role):
    assert meaning(role, GOOD_DAY) == ""
