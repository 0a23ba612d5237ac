"""The server's own model: lent for an evaluation, and no memory of its own besides."""

import re
import weakref

import pytest
import torch

from fl.algorithm import Algorithm, open_steps
from fl.client import built
from fl.config import ConfigError
from fl.config_files import Files
from fl.errors import FederationError
from fl.server.aggregators import Contribution
from fl.server.strategies import fednova_norm
from tests import experiment

COUNTING = """
class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.net = Net()
        self.register_buffer("calls", torch.tensor(0))
    def forward(self, x):
        self.calls += 1
        return self.net(self.base(x))
"""


@pytest.fixture
def algorithm(tmp_path, monkeypatch):
    """Of a model with a frozen layer, and a buffer that its forward pass changes."""

    def change(server, clients):
        server["client_configs"]["model_configs"]["model_name"] = "Counting"

    folder = experiment.write(tmp_path, change)
    with (folder / "code.py").open("a") as code:
        code.write(COUNTING)
    monkeypatch.setenv("FL_SITE_CODE", str(folder))
    files = Files(folder / "server.yaml", folder / "clients.yaml")
    return Algorithm(files.load(), files.server)


def test_what_travels_is_given_away(algorithm):
    weights = algorithm.begin()
    assert weights.keys() == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "calls"}
    assert {tensor.device.type for tensor in weights.values()} == {"cpu"}
    held = [weakref.ref(tensor) for tensor in weights.values()]
    weights.clear()
    assert [ref() for ref in held] == [None] * 5
    assert algorithm.frozen.keys() == {"base.weight", "base.bias"}


def test_an_evaluation_is_of_the_weights_it_is_given_and_neither_changes_nor_keeps_them(algorithm):
    weights = algorithm.begin()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    first = algorithm.evaluate(weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())
    moved = {name: tensor + 1 for name, tensor in weights.items()}
    assert algorithm.evaluate(moved).loss != first.loss
    assert algorithm.evaluate(weights) == first
    held = [weakref.ref(tensor) for tensor in (*weights.values(), *moved.values())]
    weights.clear()
    moved.clear()
    assert [ref() for ref in held] == [None] * 10


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"aggregator": "MedianAggregator", "scheduler": "AsyncScheduler"},
            "it compares the updates of one round, as SyncScheduler has them",
        ),
        (
            {"aggregator": "TrimmedMeanAggregator", "num_clients": 9},
            "none of fewer than 10 updates",
        ),
        (
            {"aggregator": "MultiKrumAggregator", "num_clients": 5, "min_clients": 4},
            "fewer than 5 updates, and a round may have 4 (server_configs.min_clients)",
        ),
        (
            {
                "aggregator": "MultiKrumAggregator",
                "aggregator_kwargs": {"keep": 5},
                "num_clients": 6,
                "min_clients": 5,
            },
            "fewer than 6 updates, and a round may have 5 (server_configs.min_clients)",
        ),
        (
            {
                "aggregator": "MultiKrumAggregator",
                "aggregator_kwargs": {"keep": 5},
                "num_clients": 5,
            },
            "num_byzantine 1 and keep 5 need at least 6 clients, not 5",
        ),
        (
            {"aggregator": "DPFedAvgAggregator", "scheduler": "AsyncScheduler"},
            "AsyncScheduler does not go with DPFedAvgAggregator: a client is in a step once",
        ),
    ],
)
def test_an_aggregator_that_a_run_would_make_nothing_of_is_refused(
    tmp_path, monkeypatch, changes, expected
):
    def change(server, clients):
        server["server_configs"] |= changes
        (one, *_) = clients["clients"]
        count = server["server_configs"]["num_clients"]
        clients["clients"] = [{**one, "client_id": f"site-{index}"} for index in range(count)]

    experiment.write(tmp_path, change)
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    files = Files(tmp_path / "server.yaml", tmp_path / "clients.yaml")
    with pytest.raises(ConfigError, match=re.escape(expected)):
        Algorithm(files.load(), files.server)


TWICE = """
class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = self.second = nn.BatchNorm1d(4)
        self.net = Net()
    def forward(self, x):
        return self.net(self.second(self.first(x)))
"""


def test_a_buffer_is_one_by_every_name_it_has(tmp_path, monkeypatch):
    def change(server, clients):
        server["client_configs"]["model_configs"]["model_name"] = "Twice"
        server["server_configs"]["aggregator"] = "FedAdamAggregator"

    folder = experiment.write(tmp_path, change)
    with (folder / "code.py").open("a") as code:
        code.write(TWICE)
    monkeypatch.setenv("FL_SITE_CODE", str(folder))
    built = Algorithm(Files(folder / "server.yaml", folder / "clients.yaml").load(), folder)
    assert {"first.running_var", "second.running_var"} <= built.aggregator.buffers


def test_a_held_out_set_without_samples_is_found_before_anything_is_sent(tmp_path, monkeypatch):
    def change(server, clients):
        server["server_configs"]["data_configs"]["dataset_name"] = "none_held_out"

    folder = experiment.write(tmp_path, change)
    with (folder / "code.py").open("a") as code:
        code.write("\ndef none_held_out(**kwargs):\n")
        code.write("    train, held_out = load(**kwargs)\n")
        code.write("    return train, torch.utils.data.Subset(held_out, [])\n")
    monkeypatch.setenv("FL_SITE_CODE", str(folder))
    files = Files(folder / "server.yaml", folder / "clients.yaml")
    with pytest.raises(FederationError, match="the second data set has none"):
        Algorithm(files.load(), files.server)


COMPLEX = """
class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.wave = nn.Parameter(torch.ones(4, 2, dtype=torch.cfloat))
    def forward(self, x):
        return (x.to(torch.cfloat) @ self.wave).real
"""
TIED = """
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.net = nn.Linear(4, 4), nn.Linear(4, 4), Net()
        self.last.weight = self.first.weight
    def forward(self, x):
        return self.net(self.last(self.first(x)))
"""


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Why five sites do not train a model of such code by such settings."""

    def _refused(code, server=None, train=None):
        def change(files, clients):
            files["server_configs"] |= {"num_clients": 5, **(server or {})}
            (one, *_) = clients["clients"]
            clients["clients"] = [{**one, "client_id": f"site-{index}"} for index in range(5)]
            files["client_configs"]["train_configs"] |= train or {}
            files["client_configs"]["model_configs"]["model_name"] = name

        name = re.search(r"class (\w+)", code)[1]
        experiment.write(tmp_path, change)
        with (tmp_path / "code.py").open("a") as stream:
            stream.write(code)
        monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
        files = Files(tmp_path / "server.yaml", tmp_path / "clients.yaml")
        with pytest.raises(ConfigError) as caught:
            Algorithm(files.load(), files.server)
        return str(caught.value)

    return _refused


@pytest.mark.parametrize(
    "name",
    [
        "SecureFedAvgAggregator",
        "DPFedAvgAggregator",
        "FedAdagradAggregator",
        "FedAdamAggregator",
        "FedYogiAggregator",
        "ScaffoldAggregator",
        "MedianAggregator",
        "TrimmedMeanAggregator",
        "MultiKrumAggregator",
    ],
)
def test_an_aggregator_of_real_numbers_says_so_of_a_complex_model(refused, name):
    expected = f"{name} is for real numbers, and the model's wave is complex"
    assert expected in refused(COMPLEX, {"aggregator": name})


EIGHT_BITS = """
class EightBits(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.register_buffer("scale", torch.ones(2).to(torch.float8_e4m3fn))
    def forward(self, x):
        return self.net(x)
"""


def test_a_model_whose_numbers_nobody_averages_is_refused(refused):
    expected = "the model's scale is torch.float8_e4m3fn, which is not averaged"
    assert expected in refused(EIGHT_BITS)


def test_local_dp_does_not_leave_complex_parameters_out_without_a_word(refused):
    expected = "local_dp: the complex parameter wave would be left out"
    assert expected in refused(COMPLEX, train={"local_dp": {"noise_multiplier": 1.0}})


def test_dp_sgd_refuses_before_anything_is_sent_what_a_site_would(refused):
    noise = {"dp_sgd": {"noise_multiplier": 1.0}}
    assert "site-0: dp_sgd: the complex parameter wave" in refused(COMPLEX, train=noise)
    assert "dp_sgd: the model's buffer first." in refused(TWICE, train=noise)


def test_noise_that_would_tear_tied_weights_apart_is_refused(refused):
    expected = "last.weight is another name of a weight that has one already"
    assert expected in refused(TIED, {"aggregator": "DPFedAvgAggregator"})
    assert expected in refused(TIED, train={"local_dp": {"noise_multiplier": 1.0}})


@pytest.fixture
def nova_files(tmp_path, monkeypatch):
    """FedNova's files: both sites' training settings, those of the second, its own."""

    def _nova_files(shared, second, **kwargs):
        def change(server, clients):
            server["server_configs"] |= {"aggregator": "FedNovaAggregator"}
            server["server_configs"]["aggregator_kwargs"] = kwargs
            server["client_configs"]["train_configs"] |= shared
            clients["clients"][1]["train_configs"] = second

        experiment.write(tmp_path, change)
        monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
        return Files(tmp_path / "server.yaml", tmp_path / "clients.yaml")

    return _nova_files


@pytest.fixture
def nova(nova_files):
    """The algorithm that is built of these."""

    def _nova(*settings, **kwargs):
        files = nova_files(*settings, **kwargs)
        return Algorithm(files.load(), files.server)

    return _nova


NESTEROV = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
PROXIMAL = {"trainer": "FedProxTrainer", "mu": 2.0}


def test_fednova_takes_each_clients_momentum_and_pull_from_its_settings(nova):
    built = nova({"optim_args": {"lr": 0.1, "momentum": 0.9}}, PROXIMAL)
    norms = [fednova_norm(20, momentum=0.9), fednova_norm(20, momentum=0.9, proximal=0.2)]
    for name, move in (("site-a", norms[0]), ("site-b", 0.0)):
        update = {"w": torch.tensor([move], dtype=torch.float64)}
        built.aggregator.add(update, Contribution(name, 1, 20, staleness=0, share=0.5))
    moved = built.aggregator.step({"w": torch.zeros(1, dtype=torch.float64)})
    assert moved["w"].item() == pytest.approx(sum(norms) / 2 * 0.5)


@pytest.mark.parametrize(
    ("shared", "second", "kwargs", "expected"),
    [
        ({}, {}, {"momentum": 0.5}, "momentum is 0.5, but site-a trains with 0"),
        ({}, PROXIMAL, {"proximal": 0.0}, "proximal is 0.0, but site-b trains with 0.2"),
        ({}, {**PROXIMAL, "mu": 20.0}, {}, "site-b: proximal must be at least 0 and below 1"),
        ({}, {"optim_args": NESTEROV}, {}, "site-b trains with nesterov, which it cannot count"),
        ({"optim_args": {"dampening": 0.5}}, {}, {}, "site-a trains with dampening, which it"),
    ],
)
def test_fednova_refuses_what_clients_do_not_do(nova, shared, second, kwargs, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        nova(shared, second, **kwargs)


@pytest.mark.parametrize("key", ["lr", "momentum"])
def test_fednova_names_whose_setting_is_no_number(nova_files, key):
    """`fl check` asks it, too, where the optimizer has refused that."""
    files = nova_files({"optim_args": {"lr": 0.1, "momentum": 0.9}}, {"optim_args": {key: "0.1"}})
    federation = files.load()
    model = built.build_model(federation.client_configs.model_configs)
    expected = f"FedNovaAggregator: site-b: optim_args.{key} is no number: '0.1'"
    with pytest.raises(ConfigError, match=expected):
        open_steps(federation, model, files.server)


def test_fednova_counts_the_steps_of_other_optimizers_unless_told_otherwise(nova):
    adam = {"optim": "Adam", "optim_args": {"lr": 0.01}}
    for kwargs, norm in (({}, 20), ({"momentum": 0.9}, fednova_norm(20, momentum=0.9))):
        aggregator = nova(adam, {}, effective_steps=1.0, **kwargs).aggregator
        update = {"w": torch.ones(1, dtype=torch.float64)}
        aggregator.add(update, Contribution("site-a", 1, 20, staleness=0, share=0.5))
        moved = aggregator.step({"w": torch.zeros(1, dtype=torch.float64)})
        assert moved["w"].item() == pytest.approx(1 / norm)
