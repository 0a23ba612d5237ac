"""Every strategy learns digits, by the product's own loop and training.

Those of rounds run whole, at sites in this process. Those for sites behind queues run in virtual
time, where an answer takes what its queue and its steps do.
"""

import pytest

from fl.client import built, data, trainer
from fl.config import (
    Client,
    DataConfigs,
    Federation,
    ModelConfigs,
    ServerConfigs,
    SharedClientConfigs,
    TrainConfigs,
)
from fl.endpoints.virtual import Training, VirtualSite, VirtualSites
from fl.server.aggregators import open_aggregator
from fl.server.aggregators.registry import OURS
from fl.server.checkpoint import Snapshot
from fl.server.federation import Parts, Server
from fl.server.schedulers import open_scheduler
from fl.transport.memory import MemoryTransport
from tests.test_examples import EXAMPLES, train

__all__ = ["train"]  # a fixture

SITES = [f"site-{letter}" for letter in "abcde"]
MODEL = {
    "model_path": "digits/model.py",
    "model_name": "DigitsCNN",
    "model_kwargs": {"width": 4},
    "seed": 42,
}
ADAPTIVE = {
    "server_learning_rate": 0.1,
    "server_adapt_param": 0.03,
    "server_momentum_param_1": 0.0,
}
IN_ROUNDS = {
    "FedAvgAggregator": {},
    "FedAvgMAggregator": {"server_momentum_param_1": 0.5},
    "FedAdagradAggregator": ADAPTIVE,
    "FedAdamAggregator": ADAPTIVE,
    "FedYogiAggregator": ADAPTIVE,
    "FedNovaAggregator": {"momentum": 0.9},
    "ScaffoldAggregator": {},
    "DPFedAvgAggregator": {"clip_norm": 5.0, "noise_multiplier": 0.01},
    "SecureFedAvgAggregator": {},
    "MedianAggregator": {},
    "TrimmedMeanAggregator": {"fraction": 0.2},
    "MultiKrumAggregator": {},
}
BY_ARRIVAL = {
    "FedAsyncAggregator": ("AsyncScheduler", {}, {}, 20),
    "FedBuffAggregator": ("AsyncScheduler", {}, {"K": 2}, 10),
    "FedCompassAggregator": ("CompassScheduler", {}, {}, 10),
    "FedQueueAggregator": ("FedQueueScheduler", {"cutoff": 400.0, "max_local_steps": 80}, {}, 5),
    "PaceAggregator": ("PaceScheduler", {"local_steps": 40}, {}, 15),
    "LatestAggregator": ("PaceScheduler", {"local_steps": 40, "most": 1.0}, {}, 15),
}
"""Scheduler, its settings, the aggregator's, and steps of the server."""


def test_each_strategy_has_its_run():
    assert {*IN_ROUNDS, *BY_ARRIVAL} == {*OURS}


@pytest.mark.parametrize(
    ("aggregator", "trainer"),
    [
        *((name, "VanillaTrainer") for name in IN_ROUNDS if name != "ScaffoldAggregator"),
        ("FedAvgAggregator", "FedProxTrainer"),
        ("ScaffoldAggregator", "ScaffoldTrainer"),
    ],
)
def test_it_learns_in_rounds(train, aggregator, trainer):
    training = {"trainer": trainer}
    if trainer == "FedProxTrainer":
        training["mu"] = 0.1
    if trainer == "ScaffoldTrainer":  # which knows no momentum
        training["optim_args"] = {"lr": 0.3}
    settings = {
        "server_configs.num_clients": len(SITES),
        "server_configs.num_global_epochs": 5,
        "server_configs.aggregator": aggregator,
        "server_configs.aggregator_kwargs": IN_ROUNDS[aggregator],
        "client_configs.model_configs.model_kwargs": MODEL["model_kwargs"],
        "data_configs.dataset_kwargs": {"partition_strategy": "iid"},
        **{f"client_configs.train_configs.{key}": value for key, value in training.items()},
    }
    outcome = train(EXAMPLES / "digits", *(f"{key}={value}" for key, value in settings.items()))
    assert outcome.accuracy > 0.75


@pytest.mark.parametrize("aggregator", BY_ARRIVAL)
def test_it_learns_as_updates_arrive(monkeypatch, aggregator):
    """The last site queues nine times as long as the first."""
    monkeypatch.setenv("FL_SITE_CODE", str(EXAMPLES))
    federation = behind_queues(*BY_ARRIVAL[aggregator], aggregator)
    sets = {
        client.client_id: data.datasets(client.data_configs, None) for client in federation.clients
    }
    model = built.build_model(ModelConfigs.model_validate(MODEL))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    work = Training(model, {name: own for name, (own, _) in sets.items()})

    end = simulated(federation, work).fit(Snapshot(0, start, {}, {}, {}))

    model.load_state_dict(end.weights)
    _, held_out = sets[SITES[0]]
    assert trainer.evaluate(model, held_out, TrainConfigs()).accuracy > 0.8


def behind_queues(scheduler, scheduler_kwargs, aggregator_kwargs, steps, aggregator):
    return Federation(
        client_configs=SharedClientConfigs.model_validate(
            {
                "train_configs": {
                    "mode": "step",
                    "num_local_steps": 40,
                    "optim_args": {"lr": 0.05, "momentum": 0.9},
                },
                "model_configs": MODEL,
            }
        ),
        server_configs=ServerConfigs(
            num_clients=len(SITES),
            num_global_epochs=steps,
            scheduler=scheduler,
            scheduler_kwargs=scheduler_kwargs,
            aggregator=aggregator,
            aggregator_kwargs=aggregator_kwargs,
            min_clients=1,
            round_deadline=1e5,
        ),
        clients=[
            Client(endpoint_id="local", client_id=name, data_configs=digits(number))
            for number, name in enumerate(SITES)
        ],
    )


def digits(number):
    kwargs = {"num_clients": len(SITES), "client_id": number}
    return DataConfigs(
        dataset_path="digits/data.py", dataset_name="get_digits", dataset_kwargs=kwargs
    )


def simulated(federation, work):
    configs, transport = federation.server_configs, MemoryTransport()
    queues = {name: 60.0 * (1 + 2 * number) for number, name in enumerate(SITES)}
    sites = {
        name: VirtualSite(lambda _moment, delay=delay: delay) for name, delay in queues.items()
    }
    world = VirtualSites(sites, work, transport)
    aggregator = open_aggregator(configs.aggregator, configs.aggregator_kwargs, SITES)
    parts = Parts(
        endpoints=world,
        transport=transport,
        scheduler=open_scheduler(configs, aggregator.updates_per_step),
        aggregator=aggregator,
        clock=world,
        evaluate=None,
        listen=lambda _event: None,
        save=lambda _snapshot: None,
        sent=lambda _task, _model: None,
    )
    return Server(federation, parts, "simulated")
