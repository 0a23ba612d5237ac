"""Accuracy against bytes: the digits example with every format of updates.

    python benchmarks/formats.py [rounds] [repeats]

Claim: narrower updates cost a fraction of the bytes and no accuracy that the spread over seeds
would show. Two clients with different classes each (`class_noniid`), in this process: the same
loop, task, aggregator and formats as over any way; with a seed of its own for each repeat.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

import torch
import yaml

from fl.client import data, task, trainer
from fl.config import Federation
from fl.server.aggregators import open_aggregator
from fl.server.checkpoint import Snapshot
from fl.server.clock import RealClock
from fl.server.events import Event, RoundEnded
from fl.server.federation import Parts, Server
from fl.server.schedulers import open_scheduler
from fl.transport.inline import InlineTransport

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENTS = 2
FORMATS = [(lossy, zstd) for lossy in (None, "bf16", "fp16", "int8") for zstd in (None, "zstd")]


def main() -> None:
    """Every format, every seed."""
    rounds, repeats = (int(a) for a in (*sys.argv[1:], "10", "5")[:2])
    torch.set_num_threads(1)  # the model is too small for more
    os.environ["FL_SITE_CODE"] = str(EXAMPLES)
    print(f"digits, {CLIENTS} clients, {rounds} rounds, {repeats} seeds: median (least to most)")
    print("format        share of bytes  accuracy                 put seconds")
    plain = None
    with tempfile.TemporaryDirectory() as state:
        os.environ["FL_SITE_STATE"] = state
        for lossy, zstd in FORMATS:
            runs = [train(lossy, zstd, rounds, seed) for seed in range(repeats)]
            accuracies, sizes, puts = zip(*runs, strict=True)
            plain = plain or statistics.median(sizes)
            name = "+".join(filter(None, (lossy or "fp32", zstd)))
            share = statistics.median(sizes) / plain
            print(f"{name:13} {share:14.3f}  {spread(accuracies)}  {spread(puts)}")


def train(lossy: str | None, zstd: str | None, rounds: int, seed: int) -> tuple[float, int, float]:
    """One run: the last accuracy at the server, bytes of all updates, seconds a put."""
    federation = configuration(lossy, zstd, rounds, seed)
    configs = federation.server_configs
    names = [client.client_id for client in federation.clients]
    aggregator = open_aggregator(configs.aggregator, configs.aggregator_kwargs, names)
    settings = federation.train_configs(federation.clients[0])
    model = trainer.build_model(federation.client_configs.model_configs)
    held_out = data.datasets(configs.data_configs)[1]
    ended: list[RoundEnded] = []

    def evaluate(weights: dict[str, torch.Tensor]) -> trainer.Evaluation:
        model.load_state_dict(weights)
        return trainer.evaluate(model, held_out, settings)

    def listen(event: Event) -> None:
        if isinstance(event, RoundEnded):
            ended.append(event)

    clock = RealClock()
    parts = Parts(
        endpoints=Here(),
        transport=InlineTransport(),
        scheduler=open_scheduler(configs, aggregator.updates_per_step),
        aggregator=aggregator,
        clock=clock,
        evaluate=evaluate,
        listen=listen,
        save=lambda _snapshot: None,
        sent=lambda _task, _model: None,
    )
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Server(federation, parts, "formats").fit(Snapshot(0, weights, {}, {}, {}))
    clock.close()
    puts = [update.seconds["put"] for entry in ended for update in entry.updates]
    return ended[-1].accuracy, sum(e.bytes_up for e in ended), statistics.median(puts)


def configuration(lossy: str | None, zstd: str | None, rounds: int, seed: int) -> Federation:
    """The example's, with a format."""
    experiment = yaml.safe_load((EXAMPLES / "digits" / "experiment.yml").read_text())
    loader = experiment.pop("data_configs")
    shared = experiment["client_configs"]
    shared["model_configs"]["seed"] = seed
    shared["comm_configs"] = {
        "compressor_configs": {
            "enable_compression": bool(lossy or zstd),
            "lossy_compressor": lossy,
            "lossless_compressor": zstd,
        }
    }
    experiment["server_configs"] |= {
        "num_clients": CLIENTS,
        "num_global_epochs": rounds,
        "scheduler_kwargs": {"deterministic": True},
    }
    experiment["clients"] = [
        {
            "endpoint_id": "local",
            "client_id": f"client-{index}",
            "data_configs": {
                **loader,
                "dataset_kwargs": {
                    **loader["dataset_kwargs"],
                    "num_clients": CLIENTS,
                    "client_id": index,
                },
            },
        }
        for index in range(CLIENTS)
    ]
    return Federation.model_validate_json(json.dumps(experiment))


class Here:
    """Clients in this process, one after the other."""

    def submit(self, _client, request):
        """Run a task at once; its request and answer go through JSON, as anywhere."""
        future = Future()
        future.set_result(json.loads(json.dumps(task.run(json.loads(json.dumps(request))))))
        return future

    def health(self, _client):
        """Always well."""

    def explain(self, error):
        """Nothing is known beyond the error."""
        return str(error)

    def session(self):
        """None to recover by."""


def spread(values: tuple[float, ...]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s in all")
