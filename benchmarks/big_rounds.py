"""A whole round of a big model with local clients, against the floor of this machine and peers.

    python -m benchmarks.big_rounds [MB ...]

Claim: with four clients that do not train, a round takes no more than three times the floor: raw
TCP from one process to four and back, and one axpy for each answer; and less than one of Flower's
simulation, and of NVFlare's simulator. All are measured in turns, in the same run; the peers with
models of up to 400 MB, of which they hold fifteen at once. Everybody's files are in memory, because
a disk's speed is not the claim. A peer that fails is named.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml

from benchmarks import verdict
from benchmarks.peer_rounds import flower_simulation, nvflare_simulator, turn

CLIENTS, ROUNDS, REPEATS = 4, 6, 3
PEERS_MEGABYTES = 400
"""Largest model that is given to the peers: Flower's simulation took 6.8 GB for it."""

# A model of nothing but numbers, a loader of one sample, and a training of one step on it.
CODE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Big(nn.Module):
    def __init__(self, megabytes):
        super().__init__()
        numbers = int(megabytes * 1_000_000) // 4 // 10
        for index in range(10):  # buffers: they travel, and no gradient is theirs
            self.register_buffer(f"layer_{index}", torch.randn(numbers))
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, inputs):
        return inputs * self.scale

def load():
    return TensorDataset(torch.ones(1, 2), torch.zeros(1).long()), None
"""


def main() -> None:
    """Measure each size."""
    for megabytes in [int(argument) for argument in sys.argv[1:]] or [100]:
        compare(megabytes)


def compare(megabytes: int) -> None:
    """Measure everybody in turns, and print what was found."""
    measured: dict[str, Callable[[], list[float]]] = {}
    if megabytes <= PEERS_MEGABYTES:
        measured["Flower's simulation"] = lambda: flower_simulation(megabytes, CLIENTS, ROUNDS)
        measured["NVFlare's simulator"] = lambda: nvflare_simulator(megabytes, CLIENTS, ROUNDS)
    peers: dict[str, list[float]] = {name: [] for name in measured}
    ours: list[float] = []
    floors: list[float] = []
    parts: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        floors += floor(megabytes)
        for name, measure in measured.items():
            peers[name] += turn(name, measure)
        for entry in rounds(megabytes):
            ours.append(entry["seconds"]["total"])
            for name, seconds in entry["seconds"].items():
                parts.setdefault(f"server: {name}", []).append(seconds)
            for update in entry["updates"]:
                for name, seconds in update["seconds"].items():
                    parts.setdefault(f"each client: {name}", []).append(seconds)
    print(f"{megabytes} MB, {CLIENTS} clients, seconds: median (least to most)")
    shown = {**parts, "a round": ours, "the floor": floors, **peers}
    for name, values in shown.items():
        print(f"  {name:24} {spread(values) if values else 'fails'}")
    report(ours, floors, peers)


def report(ours: list[float], floors: list[float], peers: dict[str, list[float]]) -> None:
    """The ratios, and the claims, of the peers that did not fail."""
    ran = {name: seconds for name, seconds in peers.items() if seconds}
    print(f"  round / floor:   {ratio(ours, floors)}")
    for name, seconds in ran.items():
        print(f"  {name} / round: {ratio(seconds, ours)}")
    verdict("round / floor, of medians", of_medians(ours, floors), at_most=3)
    for name, seconds in ran.items():
        verdict(f"{name} / round, of medians", of_medians(seconds, ours), at_least=1)


def rounds(megabytes: float, clients: int = CLIENTS, count: int = ROUNDS) -> list[dict]:
    """The warm rounds of one run of `fl-run`, as its record has them."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fl-bench.") as name:
        folder = Path(name)
        (folder / "big.py").write_text(CODE)
        way = {
            "enable_proxystore": True,
            "connector_type": "FileConnector",
            "connector_configs": {"store_dir": str(folder / "models")},
        }
        ways = {"proxystore_configs": way}
        server = {
            "client_configs": {
                "model_configs": {
                    "model_path": "big.py",
                    "model_name": "Big",
                    "model_kwargs": {"megabytes": megabytes},
                }
            },
            "server_configs": {
                "num_clients": clients,
                "num_global_epochs": count,
                "logging_output_dirname": str(folder / "runs"),
                "comm_configs": ways,
            },
        }
        data = {"dataset_path": "big.py", "dataset_name": "load"}
        sites = [
            {
                "endpoint_id": "local",
                "client_id": f"client-{index}",
                "data_configs": data,
                "comm_configs": ways,
            }
            for index in range(clients)
        ]
        (folder / "server.yaml").write_text(yaml.safe_dump(server))
        (folder / "clients.yaml").write_text(yaml.safe_dump({"clients": sites}))
        command = [sys.executable, "-c", "from fl.cli import run_main; run_main()"]
        files = ["--server", f"{folder}/server.yaml", "--clients", f"{folder}/clients.yaml"]
        environment = {**os.environ, "FL_SITE_CODE": str(folder)}
        subprocess.run([*command, *files], check=True, env=environment, stdout=subprocess.DEVNULL)
        (metrics,) = folder.glob("runs/*/metrics.jsonl")
        return [json.loads(line) for line in metrics.read_text().splitlines()][1:]


def floor(megabytes: int) -> list[float]:
    """Rounds of raw TCP: a model to each of four processes and back, an axpy for each answer."""
    size = megabytes * 1_000_000
    context = get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        peers = [context.Process(target=echo, args=(address, size)) for _ in range(CLIENTS)]
        for peer in peers:
            peer.start()
        connections = [listener.accept()[0] for _ in peers]
    model = torch.ones(size // 4)
    total, answer = torch.zeros(size // 4), torch.zeros(size // 4)
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for connection in connections:
            connection.sendall(memory(model))
        for connection in connections:
            receive(connection, memory(answer))
            total.add_(answer, alpha=1 / CLIENTS)
        times.append(time.perf_counter() - started)
    for connection in connections:
        connection.close()
    for peer in peers:
        peer.join()
    return times[1:]


def echo(address: tuple[str, int], size: int) -> None:
    """A client: take a model, send it back, until the other side has had enough."""
    buffer = memoryview(bytearray(size))
    with socket.create_connection(address) as connection:
        while receive(connection, buffer):
            connection.sendall(buffer)


def receive(connection: socket.socket, buffer: memoryview) -> bool:
    """Fill a buffer; false if the other side closed."""
    left = buffer
    while left:
        count = connection.recv_into(left)
        if count == 0:
            return False
        left = left[count:]
    return True


def memory(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes."""
    return tensor.view(torch.uint8).numpy().data


def ratio(above: list[float], below: list[float]) -> str:
    """Of medians, and of what noise disturbs least."""
    least = min(above) / min(below)
    return f"{of_medians(above, below):.2f} (of medians), {least:.2f} (of the least)"


def of_medians(above: list[float], below: list[float]) -> float:
    """The ratio by which a claim is met or missed."""
    return statistics.median(above) / statistics.median(below)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):7.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
