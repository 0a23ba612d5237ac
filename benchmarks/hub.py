"""A model through the hub, against a bare TLS transfer and against a plain ProxyStore get.

    python tests/private_loopback.py python -m benchmarks.hub [MB ...]

Claim: through the hub a model moves at 85 % at least of the rate of the same client library with a
file of that size over TLS, from the same nginx, in one stream and without a digest; 20 times as
fast as ProxyStore's EndpointConnector gets it from a peer; and so through a filtering proxy too.
All are measured in turns, in the same run. The load of the machine and this process's CPU seconds
are printed with the rates: other programs' share of the processors is in them. Needs Debian's
nginx and tinyproxy.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import requests
from proxystore.connectors.endpoint import EndpointConnector
from proxystore.endpoint.config import (
    EndpointConfig,
    EndpointRelayConfig,
    EndpointStorageConfig,
    write_config,
)

from benchmarks import verdict
from fl.tensors import Data
from fl.transport.base import Ref
from fl.transport.hub import HubTransport, SignedHub
from tests.transport.nginx import SEARCH, Hub, free_port

REPEATS = 5
CHUNK_BYTES = 1 << 18
WAIT_SECONDS = 30.0
BARE = "location /bare/ { root %s; dav_methods PUT; client_max_body_size 0; }\n"
TINYPROXY = """\
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 50
Filter "{folder}/inside"
FilterExtended On
"""
Way = Callable[[], object]


def main() -> None:
    """Measure each size."""
    sizes = [int(argument) for argument in sys.argv[1:]] or [100, 1000]
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fl-bench."))
        folder = Path(name)
        hub = stack.enter_context(served(folder))
        proxy = stack.enter_context(filtering_proxy(folder))
        peers = stack.enter_context(peered(folder))
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
        for megabytes in sizes:
            measure(megabytes, hub, proxy, peers if megabytes <= 100 else None)


def measure(
    megabytes: int,
    hub: Hub,
    proxy: str,
    peers: tuple[EndpointConnector, EndpointConnector] | None,
) -> None:
    """One size, every way in turns."""
    data = np.random.default_rng(0).bytes(megabytes * 1_000_000)
    (hub.folder / "bare" / "model").write_bytes(data)
    transport = HubTransport(hub.configs)
    ref = transport.put(data)
    ways: dict[str, Way] = {
        "down, bare TLS": lambda: bare_get(hub, len(data), {}),
        "down, hub": lambda: get(ref),
        "down, bare TLS, proxy": lambda: bare_get(hub, len(data), {"https": proxy}),
        "down, hub, proxy": lambda: through(proxy, lambda: get(ref)),
        "up, bare TLS": lambda: bare_put(hub, data, {}),
        "up, hub": lambda: put(transport, data),
        "up, bare TLS, proxy": lambda: bare_put(hub, data, {"https": proxy}),
        "up, hub, proxy": lambda: through(proxy, lambda: put(transport, data)),
    }
    if peers is not None:
        near, far = peers
        key = far.put(data)
        ways["down, ProxyStore get"] = lambda: near.get(key)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            rates[name].append(megabytes / (time.perf_counter() - wall))
            spent[name].append(time.process_time() - cpu)
    transport.evict(ref)
    transport.close()
    print(f"{megabytes} MB, MB/s: median (least to most) of {REPEATS}; CPU seconds here")
    for name, found in rates.items():
        middle = statistics.median(found)
        print(
            f"  {name:24} {middle:6.0f} ({min(found):.0f} to {max(found):.0f}); "
            f"{statistics.median(spent[name]):.2f} s"
        )
    compare(rates)


def compare(rates: dict[str, list[float]]) -> None:
    """The ratios of the claim."""

    def ratio(one: str, other: str, at_least: float) -> None:
        paired = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
        of_medians = statistics.median(rates[one]) / statistics.median(rates[other])
        print(f"  {one} / {other}: {of_medians:.2f} of medians;", end=" ")
        print(f"by turn {min(paired):.2f} to {max(paired):.2f}")
        verdict(f"{one} / {other}, of medians", of_medians, at_least=at_least)

    for where in ("", ", proxy"):
        for way in ("down", "up"):
            ratio(f"{way}, hub{where}", f"{way}, bare TLS{where}", 0.85)
        if "down, ProxyStore get" in rates:
            ratio(f"down, hub{where}", "down, ProxyStore get", 20)


def get(ref: Ref) -> Data:
    """As a site does."""
    site = SignedHub({"url": ref.key["url"], "ca": ref.key["ca"]})
    try:
        return site.get(ref)
    finally:
        site.close()


def put(transport: HubTransport, data: bytes) -> None:
    """As a site does; and evicted by the server, which is in the time."""
    site = SignedHub(transport.grant(len(data)))
    transport.evict(site.put(data))
    site.close()


def bare_get(hub: Hub, size: int, proxies: dict[str, str]) -> None:
    """One stream into memory that is there, by the client library of the hub's transport."""
    room, end = np.empty(size, np.uint8).data, 0
    with session(hub, proxies) as asked:
        for chunk in asked.get(f"{hub.configs.hub_url}/bare/model", stream=True).iter_content(
            CHUNK_BYTES
        ):
            room[end : end + len(chunk)] = chunk
            end += len(chunk)
    if end != size:
        raise RuntimeError(f"{end} bytes arrived instead of {size}")


def bare_put(hub: Hub, data: bytes, proxies: dict[str, str]) -> None:
    """One stream up."""
    with session(hub, proxies) as asked:
        asked.put(f"{hub.configs.hub_url}/bare/update", data=data).raise_for_status()
    (hub.folder / "bare" / "update").unlink()


def session(hub: Hub, proxies: dict[str, str]) -> requests.Session:
    """A session that trusts the hub's certificate and takes nothing from the environment."""
    made = requests.Session()
    made.trust_env, made.verify, made.proxies = False, hub.configs.hub_ca_file, proxies
    return made


def through(proxy: str, act: Way) -> None:
    """Do something where the environment names a proxy, as on a compute node."""
    os.environ["HTTPS_PROXY"] = proxy
    try:
        act()
    finally:
        del os.environ["HTTPS_PROXY"]


@contextmanager
def served(folder: Path) -> Iterator[Hub]:
    """The hub, and beside it a folder without signatures."""
    hub = Hub(folder)
    (folder / "bare").mkdir()
    config = folder / "hub" / "nginx.conf"
    place = BARE % folder + "location / {"
    config.write_text(config.read_text().replace("location / {", place))
    try:
        hub.start()
        yield hub
    finally:
        hub.stop()


@contextmanager
def filtering_proxy(folder: Path) -> Iterator[str]:
    """Tinyproxy, which lets nobody in to 10.0.0.0/8."""
    program, port = shutil.which("tinyproxy", path=SEARCH), free_port()
    if program is None:
        raise RuntimeError("tinyproxy is missing: apt-get install tinyproxy")
    (folder / "inside").write_text("^10\\.\n")
    config = folder / "tinyproxy.conf"
    config.write_text(TINYPROXY.format(port=port, folder=folder))
    with started([program, "-d", "-c", str(config)], port, folder, {}):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def peered(folder: Path) -> Iterator[tuple[EndpointConnector, EndpointConnector]]:
    """Connectors of two ProxyStore endpoints that meet by a relay."""
    scripts, relay = Path(sys.executable).parent, free_port()
    with ExitStack() as stack:
        command = [str(scripts / "proxystore-relay"), "--host", "127.0.0.1", "--port", str(relay)]
        stack.enter_context(started(command, relay, folder, {}))
        ids = [uuid4(), uuid4()]
        connectors = []
        for number, own in enumerate(ids):
            home, port = folder / f"peer{number}", free_port()
            write_config(endpoint(own, port, relay), str(home / "peer"))
            command = [str(scripts / "proxystore-endpoint"), "start", "peer", "--no-detach"]
            environment = {"PROXYSTORE_HOME": str(home)}
            stack.enter_context(started(command, port, folder, environment))
            os.environ["PROXYSTORE_HOME"] = str(home)
            connectors.append(stack.enter_context(EndpointConnector([own])))
        yield connectors[0], connectors[1]


def endpoint(own: UUID, port: int, relay: int) -> EndpointConfig:
    """An endpoint on loopback that takes objects of any size."""
    return EndpointConfig(
        name="peer",
        uuid=str(own),
        port=port,
        host="127.0.0.1",
        relay=EndpointRelayConfig(address=f"ws://127.0.0.1:{relay}", ice_servers=[]),
        storage=EndpointStorageConfig(max_object_size=10_000_000_000),
    )


@contextmanager
def started(
    command: list[str], port: int, folder: Path, environment: dict[str, str]
) -> Iterator[None]:
    """A process that listens, ended whatever happens."""
    log = folder / f"{Path(command[0]).name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=WAIT_SECONDS)


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
