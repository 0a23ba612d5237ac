"""Whole rounds of the peers: a big model to four clients that do not train, and back.

Each function returns the seconds from the start of one round to that of the next, the first left
out. Everything that a peer starts and writes is below a folder that is gone afterwards.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep

import psutil

from benchmarks.peers import python
from examples import leftovers

CALL_SECONDS, START_SECONDS = 1200.0, 60.0
"""What a peer's rounds may take, and a daemon until it listens."""

LAYERS = """
import torch

def layers():
    rows = {megabytes} * 250_000 // 10 // 1000
    return {{f"layer_{{index}}": torch.randn(rows, 1000) for index in range(10)}}
"""

FLOWER = """
import json, time
from pathlib import Path
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()
starts = []

@client.train()
def train(message, context):
    import torch  # Flower looks for it among the modules of its process
    state = message.content["arrays"].to_torch_state_dict()
    metrics = MetricRecord({{"num-examples": 1}})
    content = RecordDict({{"arrays": ArrayRecord(state), "metrics": metrics}})
    return Message(content, reply_to=message)

class Timed(FedAvg):
    def configure_train(self, *arguments):
        starts.append(time.time())
        return super().configure_train(*arguments)

@server.main()
def main(grid, context):
    from big.layers import layers
    model = layers()
    strategy = Timed(
        fraction_evaluate=0.0, min_train_nodes={clients}, min_available_nodes={clients}
    )
    result = strategy.start(grid, ArrayRecord(model), num_rounds={rounds})
    assert result.arrays.to_torch_state_dict()["layer_3"].allclose(model["layer_3"])
    Path({starts!r}).write_text(json.dumps(starts))
"""

FLOWER_APP = """
[project]
name = "big"
version = "1.0.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "big.app:server"
clientapp = "big.app:client"
"""

FLOWER_SIMULATION = """
from flwr.simulation import run_simulation
from big.app import client, server

resources = {{"num_cpus": {cores} / {clients}}}
run_simulation(server, client, {clients}, backend_config={{"client_resources": resources}})
"""

NVFLARE_CLIENT = """
import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    flare.send(flare.FLModel(params=model.params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
"""

NVFLARE = """
import sys
import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import ExchangeFormat
from nvflare.recipe.poc_env import PocEnv
from nvflare.recipe.sim_env import SimEnv
from big_model import Big

recipe = FedAvgRecipe(
    name="big",
    model=Big(),
    min_clients={clients},
    num_rounds={rounds},
    train_script="client.py",
    server_expected_format=ExchangeFormat.PYTORCH,
)
if __name__ == "__main__":
    run = recipe.execute({environment})
    print(run.get_result(clean_up=False))
"""

NVFLARE_MODEL = """
from layers import layers
import torch

class Big(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, tensor in layers().items():
            self.register_buffer(name, tensor)
"""


def turn(name: str, measure: Callable[[], list[float]]) -> list[float]:
    """A peer's rounds in its turn; none of one that fails, which is named: others go on.

    Args:
        name: The peer.
        measure: Its rounds, by a function of this module.
    """
    try:
        return measure()
    except RuntimeError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return []


def flower_simulation(megabytes: int, clients: int, rounds: int) -> list[float]:
    """Flower's simulation: the clients are Ray's workers."""
    with _folder() as folder:
        _flower_app(folder, megabytes, clients, rounds)
        program = FLOWER_SIMULATION.format(clients=clients, cores=os.cpu_count())
        (folder / "simulation.py").write_text(program)
        said = _call(folder, python(), "simulation.py")
        return _started_rounds(folder, said)


def flower_run(megabytes: int, clients: int, rounds: int) -> list[float]:
    """`flwr run` on a SuperLink, with a SuperNode a client, without TLS."""
    with _folder() as folder, ExitStack() as daemons:
        _flower_app(folder, megabytes, clients, rounds)
        (folder / "pyproject.toml").write_text(FLOWER_APP)
        bin_folder = python().parent
        link: list[str | Path] = [bin_folder / "flower-superlink", "--insecure"]
        link += ["--disable-runtime-dependency-installation"]
        daemons.enter_context(_daemon(folder, "superlink", link, port=8000))
        for index in range(clients):
            node: list[str | Path] = [bin_folder / "flower-supernode", "--insecure"]
            node += ["--superlink", "127.0.0.1:8000", "--port", str(9100 + index)]
            daemons.enter_context(_daemon(folder, f"supernode-{index}", node))
        (folder / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n[superlink.here]\n'
            'address = "127.0.0.1:8000"\ninsecure = true\n'
        )
        said = _call(folder, bin_folder / "flwr", "run", ".", "here", "--stream")
        return _started_rounds(folder, said)


def nvflare_simulator(megabytes: int, clients: int, rounds: int) -> list[float]:
    """NVFlare's simulator, a thread a client."""
    environment = f"SimEnv(num_clients={clients}, num_threads={clients}, workspace_root='work')"
    with _folder() as folder:
        output = _nvflare(folder, megabytes, clients, rounds, environment)
        return _logged_rounds(output, rounds)


def nvflare_poc(megabytes: int, clients: int, rounds: int) -> list[float]:
    """NVFlare's proof of concept: a server and clients in processes of their own, over TLS."""
    with _folder() as folder:
        _nvflare(folder, megabytes, clients, rounds, f"PocEnv(num_clients={clients})")
        logs = list(folder.glob("poc/*/*/admin*/transfer/*/workspace/log.txt"))
        if len(logs) != 1:
            raise RuntimeError(f"{len(logs)} logs of the job were fetched, and not one")
        return _logged_rounds(logs[0].read_text(), rounds)


def _flower_app(folder: Path, megabytes: int, clients: int, rounds: int) -> None:
    package = folder / "big"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "layers.py").write_text(LAYERS.format(megabytes=megabytes))
    starts = str(folder / "starts")
    app = FLOWER.format(clients=clients, rounds=rounds, starts=starts)
    (package / "app.py").write_text(app)


def _nvflare(folder: Path, megabytes: int, clients: int, rounds: int, environment: str) -> str:
    (folder / "layers.py").write_text(LAYERS.format(megabytes=megabytes))
    (folder / "big_model.py").write_text(NVFLARE_MODEL)
    (folder / "client.py").write_text(NVFLARE_CLIENT)
    (folder / "job.py").write_text(
        NVFLARE.format(clients=clients, rounds=rounds, environment=environment)
    )
    return _call(folder, python(), "job.py")


def _started_rounds(folder: Path, said: str) -> list[float]:
    """Flower's server notes the starts of its rounds after the last one."""
    starts = folder / "starts"
    if not starts.exists():  # both commands end with 0 also where the run has failed
        raise RuntimeError(said[-3000:])
    return _between(json.loads(starts.read_text()))


def _logged_rounds(log: str, rounds: int) -> list[float]:
    """NVFlare logs the start of a round on a line below the one that has the time."""
    stamps = re.findall(r"^(\S+ \S+) - [^\n]*\n-+\n +Round \d+ started\.", log, re.MULTILINE)
    if len(stamps) < rounds:
        raise RuntimeError(f"{len(stamps)} of {rounds} rounds were begun: {log[-3000:]}")
    return _between([datetime.fromisoformat(stamp).timestamp() for stamp in stamps])


def _between(starts: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(starts)][1:]


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder, and nothing of it afterwards: peers start daemons in sessions of their own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="peer-bench.") as name:
        try:
            yield Path(name)
        finally:
            while left := leftovers.processes(Path(name)):
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()


def _environment(folder: Path) -> dict[str, str]:
    path = f"{python().parent}:{os.environ['PATH']}"
    homes = {name: str(folder) for name in ("HOME", "FLWR_HOME", "PYTHONPATH", "TMPDIR")}
    return {"PATH": path, "NVFLARE_POC_WORKSPACE": str(folder / "poc"), **homes}


def _call(folder: Path, *command: str | Path) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=_environment(folder),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(str(error)) from error
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout[-3000:]}")
    return done.stdout


@contextmanager
def _daemon(
    folder: Path, name: str, command: list[str | Path], port: int | None = None
) -> Iterator[None]:
    """A daemon that runs until the block ends, and listens on its port before it begins."""
    if port is not None and _listens(port):
        raise RuntimeError(f"{name}: somebody else listens on port {port}")
    with (folder / f"{name}.log").open("wb") as output:
        daemon = subprocess.Popen(
            command, cwd=folder, env=_environment(folder), stdout=output, stderr=output
        )
        try:
            until = monotonic() + START_SECONDS
            while port is not None and not _listens(port):
                if daemon.poll() is not None or monotonic() > until:
                    said = (folder / f"{name}.log").read_text()[-3000:]
                    raise RuntimeError(f"{name} does not listen on port {port}: {said}")
                sleep(0.2)
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
