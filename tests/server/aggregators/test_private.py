"""Differential privacy at the server, against numbers worked by hand."""

import gc
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from fl import run
from fl.config import ConfigError
from fl.config_files import Files
from fl.errors import FederationError
from fl.history import read_history
from fl.progress import describe
from fl.server import checkpoint
from fl.server.aggregators.private import epsilon
from fl.server.events import RoundEnded
from fl.tensors import decode, encode
from tests.in_process import InProcess
from tests.server.aggregators.rounds import CLIENTS, assert_same, contribution, opened
from tests.server.conftest import train

EXAMPLES = Path(__file__).parents[3] / "examples"
NAME = "DPFedAvgAggregator"
SILENT = {"noise_multiplier": 1e-12}
"""Noise that no assertion sees."""


def stepped(aggregator, weights, updates):
    for client, update in zip(CLIENTS, updates, strict=False):
        aggregator.add(update, contribution(client))
    return aggregator.step(weights)


@pytest.mark.parametrize(("answers", "total"), [(1, [0.3, 0.4]), (2, [0.6, 0.3])])
def test_the_step_is_the_sum_of_the_clipped_by_all_clients(answers, total):
    """By all six, whoever answered. (3, 4) is clipped to (0.3, 0.4), (0.3, -0.1) is within."""
    aggregator = opened(NAME, clip_norm=0.5, server_learning_rate=2.0, **SILENT)
    weights = {"w": torch.tensor([0.0, -0.5], dtype=torch.float64)}
    sent = [torch.tensor([3.0, 4.0]).double(), torch.tensor([0.3, -0.1]).double()]
    moved = stepped(aggregator, weights, [{"w": one} for one in sent[:answers]])
    expected = [0.0 + 2 * total[0] / 6, -0.5 + 2 * total[1] / 6]
    torch.testing.assert_close(moved["w"].tolist(), expected, rtol=0, atol=1e-7)


def test_noise_is_gaussian_of_the_stated_deviation():
    """A million draws of it: each bound is at least six of its statistic's standard errors."""
    count, deviation = 1_000_000, 3.0 * 0.5 / 6
    aggregator = opened(NAME, clip_norm=0.5, noise_multiplier=3.0)
    weights = {"w": torch.zeros(count // 2), "v": torch.zeros(500, count // 1000)}
    still = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    moved = stepped(aggregator, weights, [still])
    noise = torch.cat([moved["w"], moved["v"].flatten()]).double() / deviation
    assert abs(noise.mean()) < 6 / math.sqrt(count)
    assert abs(noise.square().mean() - 1) < 6 * math.sqrt(2 / count)
    assert abs(noise.pow(3).mean()) < 6 * math.sqrt(15 / count)
    assert abs(noise.pow(4).mean() - 3) < 6 * math.sqrt(96 / count)
    shares = [(noise.abs() < bound).double().mean() for bound in (0.5, 1.0, 2.0)]
    for share, bound in zip(shares, (0.5, 1.0, 2.0), strict=True):
        expected = math.erf(bound / math.sqrt(2))
        assert abs(share - expected) < 6 * math.sqrt(expected * (1 - expected) / count)
    one, other = noise.view(2, -1)
    assert abs((one * other).mean()) < 6 / math.sqrt(count / 2)


def test_noise_is_never_the_same_whatever_is_seeded():
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        aggregator = opened(NAME)
        weights = {"w": torch.zeros(8)}
        still = {"w": torch.zeros(8)}
        aggregator.restore({"noised": {"steps": torch.tensor(1)}})
        ends += [stepped(aggregator, weights, [still])["w"] for _ in range(2)]
    for index, one in enumerate(ends):
        assert not any(torch.equal(one, other) for other in ends[:index])


def test_what_is_not_floating_is_the_servers():
    weights = {"w": torch.zeros(2), "count": torch.tensor(3)}
    moved = stepped(opened(NAME), weights, [{"w": torch.ones(2), "count": torch.tensor(999)}])
    assert moved["count"].item() == 3
    assert list(moved) == ["w", "count"]


def test_a_client_counts_once_a_step():
    aggregator, weights = opened(NAME), {"w": torch.zeros(2)}
    aggregator.add({"w": torch.ones(2)}, contribution("site-a"))
    state = {role: decode(encode(tensors)) for role, tensors in aggregator.state().items()}
    resumed = opened(NAME)
    resumed.restore(state)
    for one in (aggregator, resumed):
        with pytest.raises(ValueError, match="one update to a step"):
            one.add({"w": torch.ones(2)}, contribution("site-a"))
        one.add({"w": torch.ones(2)}, contribution("site-b"))
        one.step(weights)
        one.add({"w": torch.ones(2)}, contribution("site-a"))


def test_a_state_is_a_snapshot():
    aggregator = opened(NAME)
    stepped(aggregator, {"w": torch.zeros(2)}, [{"w": torch.ones(2)}])
    aggregator.add({"w": torch.ones(2)}, contribution("site-a"))
    state = aggregator.state()
    before = {role: {key: t.clone() for key, t in state[role].items()} for role in state}
    assert before.keys() == {"noised", "answered", "mean", "mean_of"}
    aggregator.add({"w": torch.zeros(2)}, contribution("site-b"))
    aggregator.step({"w": torch.zeros(2)})
    for role in state:
        assert_same(state[role], before[role])


def test_buffers_are_refused_before_anything_is_sent():
    norm = nn.BatchNorm1d(2)
    names = [f"bn.{name}" for name, _ in norm.named_buffers()]
    with pytest.raises(ConfigError) as caught:
        opened(NAME, *names)
    assert "server.yaml: server_configs.aggregator: DPFedAvgAggregator: the model's" in str(
        caught.value
    )
    assert "bn.num_batches_tracked" in str(caught.value)
    assert "take GroupNorm instead" in str(caught.value)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'fl-hpc\[privacy\]'"):
        opened(NAME)


def test_the_loop_clips_what_it_would_drop_and_reports_what_was_spent(fit, weights):
    """A norm bound of next to nothing: who answers must not hang on the others' norms."""
    weights["w"] += 1
    scripts = {"a": train(1e6), "b": train(-1e6)}
    kwargs = {"noise_multiplier": 2.0, "delta": 1e-4, "clip_norm": 1e-6}
    moved, events = fit(
        scripts,
        num_global_epochs=3,
        norm_bound=1e-9,
        aggregator=NAME,
        aggregator_kwargs=kwargs,
    )
    ended = [event for event in events if isinstance(event, RoundEnded)]
    assert [len(event.updates) for event in ended] == [2, 2, 2]
    spent = [epsilon(2.0, steps, 1e-4) for steps in (1, 2, 3)]
    assert [event.aggregator for event in ended] == [{"epsilon": e, "delta": 1e-4} for e in spent]
    torch.testing.assert_close(moved["w"], torch.ones(4), atol=1e-4, rtol=0)
    assert f" epsilon={spent[0]:.4g} delta=0.0001" in describe(ended[0], 3)


def test_others_report_nothing(fit):
    _, events = fit({"a": train(1.0)})
    (ended,) = [event for event in events if isinstance(event, RoundEnded)]
    assert ended.aggregator == {}


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """server.yaml and clients.yaml of three sites, which train within this process."""
    monkeypatch.setattr(run, "open_endpoints", lambda federation: InProcess())
    monkeypatch.setenv("FL_SITE_CODE", str(EXAMPLES))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    experiment = yaml.safe_load((EXAMPLES / "digits" / "experiment.yml").read_text())
    data = experiment.pop("data_configs")
    experiment["server_configs"] |= {
        "num_clients": 3,
        "num_global_epochs": 4,
        "aggregator": NAME,
        "aggregator_kwargs": {"clip_norm": 2.0, "noise_multiplier": 0.005},
        "logging_output_dirname": str(tmp_path / "runs"),
    }
    clients = [
        {
            "endpoint_id": "local",
            "client_id": f"site-{index}",
            "data_configs": data | {"dataset_kwargs": {"num_clients": 3, "client_id": index}},
        }
        for index in range(3)
    ]
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(experiment))
    (tmp_path / "clients.yaml").write_text(yaml.safe_dump({"clients": clients}))
    return Files(tmp_path / "server.yaml", tmp_path / "clients.yaml")


def test_a_run_learns_and_a_resumed_one_goes_on_counting(digits):
    silent = Console(quiet=True)
    outcome = run.run(digits, silent)
    assert outcome.accuracy is not None and outcome.accuracy > 0.6
    # As a run that was stopped after four rounds of six.
    configured = outcome.folder / "config.yaml"
    longer = configured.read_text().replace("num_global_epochs: 4", "num_global_epochs: 6")
    configured.write_text(longer)
    gc.collect()  # its record holds the lock until then
    run.resume(outcome.folder, silent)
    rounds = read_history(outcome.folder).rounds
    spent = [epsilon(0.005, steps, 1e-5) for steps in range(1, 7)]
    assert [ended.aggregator for ended in rounds] == [{"epsilon": e, "delta": 1e-5} for e in spent]


def test_a_model_that_was_told_of_and_not_saved_is_paid_for_too(digits, monkeypatch):
    """Twice in round 2, as at a full disk: its models were three, of noise drawn anew."""
    silent, save, full = Console(quiet=True), checkpoint.save, [2, 2]

    def failing(file, snapshot):
        if snapshot.version in full:
            full.remove(snapshot.version)
            raise FederationError("the disk is full")
        save(file, snapshot)

    monkeypatch.setattr(checkpoint, "save", failing)
    with pytest.raises(FederationError, match="the disk is full"):
        run.run(digits, silent)
    (folder,) = (digits.server.parent / "runs").iterdir()
    gc.collect()  # its record holds the lock until then
    with pytest.raises(FederationError, match="the disk is full"):
        run.resume(folder, silent)
    gc.collect()
    run.resume(folder, silent)
    told = [ended.aggregator["epsilon"] for ended in read_history(folder).rounds]
    assert told == [epsilon(0.005, steps, 1e-5) for steps in (1, 4, 5, 6)]
