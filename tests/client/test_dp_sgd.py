"""DP-SGD at a site: clipping, noise and sampling by hand, its price, the owner's least noise."""

import copy
import json
import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fl.client import dp_sgd, trainer
from fl.client.spending import PrivacyError
from fl.config import TrainConfigs
from fl.privacy import Spent, epsilon

SILENT = {"noise_multiplier": 1e-12}
"""Noise that no assertion sees."""


def configs(noise, **changes):
    return TrainConfigs(dp_sgd=noise, optim_args={"lr": 1.0}, **changes)


def trained(dataset, settings, steps=1):
    """A linear model's change; its loss is the mean of its outputs, whose gradient is the input."""
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    trainer.train(model, dataset, settings, seed=0, steps=steps)
    return (model.weight.detach() - before).flatten()


@pytest.fixture
def mean_of_outputs(site_code):
    (site_code / "loss.py").write_text(
        "from torch import nn\n"
        "class Mean(nn.Module):\n"
        "    def forward(self, outputs, labels):\n"
        "        return outputs.mean()\n"
    )
    return {"loss_fn_path": "loss.py", "loss_fn_name": "Mean"}


def test_every_samples_gradient_is_clipped_by_itself(mean_of_outputs):
    """(3, 4) becomes (0.6, 0.8), (0, 0.5) stays; half of their sum is the step. All are drawn."""
    dataset = TensorDataset(torch.tensor([[3.0, 4.0], [0.0, 0.5]]), torch.zeros(2))
    moved = trained(dataset, configs(SILENT, train_batch_size=2, **mean_of_outputs))
    torch.testing.assert_close(moved, -torch.tensor([0.3, 0.65]), atol=1e-5, rtol=0)


def test_noise_is_of_the_stated_deviation_even_where_no_sample_was_drawn(mean_of_outputs):
    """2,000 steps of one sample in 1,000: its gradient is zero, what moves the model is noise."""
    dataset = TensorDataset(torch.zeros(1000, 2), torch.zeros(1000))
    settings = configs(
        {"noise_multiplier": 3.0, "max_grad_norm": 0.5}, train_batch_size=1, **mean_of_outputs
    )
    steps, runs = 50, 40
    moved = torch.cat([trained(dataset, settings, steps) for _ in range(runs)])
    spread = moved / (3.0 * 0.5 * math.sqrt(steps))
    assert abs(spread.square().mean() - 1) < 6 * math.sqrt(2 / len(spread))
    assert abs(spread.mean()) < 6 / math.sqrt(len(spread))


def test_noise_and_samples_are_no_function_of_the_servers_seed(mean_of_outputs):
    dataset = TensorDataset(torch.zeros(8, 2), torch.zeros(8))
    settings = configs({"noise_multiplier": 1.0}, train_batch_size=4, **mean_of_outputs)
    one, other = (trained(dataset, settings) for _ in range(2))
    assert not torch.equal(one, other)
    drawn = [list(dp_sgd.PoissonBatches(1000, 0.5)) for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_each_sample_is_drawn_by_chance():
    sizes = [len(batch) for _ in range(20) for batch in dp_sgd.PoissonBatches(1000, 0.1)]
    assert len(sizes) == 200
    mean, deviation = 100, math.sqrt(1000 * 0.1 * 0.9)
    assert abs(sum(sizes) / 200 - mean) < 6 * deviation / math.sqrt(200)
    assert len(set(sizes)) > 10


def test_a_model_is_afterwards_as_it_was(mean_of_outputs):
    dataset = TensorDataset(torch.zeros(4, 2), torch.zeros(4))
    model = nn.Linear(2, 1)
    trainer.train(model, dataset, configs(SILENT, **mean_of_outputs), seed=0)
    assert not model._forward_hooks and not hasattr(model.weight, "grad_sample")
    assert model.weight.grad is None and model.weight.summed_grad is None
    model(torch.zeros(1, 2)).sum().backward()


NOISE = {"noise_multiplier": 2.0, "delta": 1e-3}


def plain(site, **changes):
    """A request for a model that Opacus can train: without batch norm."""
    weights = site.build("Linear")
    return {"weights": weights, "model": ("Linear", {}), "run_id": "run-1", **changes}


def test_a_site_tells_what_its_rounds_have_cost(site):
    asked = plain(site, train_configs={"dp_sgd": NOISE, "train_batch_size": 8})
    rounds = [site.result(round=number, **asked) for number in (1, 2)]
    assert [result["steps"] for result in rounds] == [4, 4]
    told = [result["metrics"]["epsilon"] for result in rounds]
    assert told == [epsilon([Spent(2.0, 0.25, steps)], 1e-3) for steps in (4, 8)]
    site.cool()
    again = site.result(round=2, **asked)["metrics"]["epsilon"]
    assert again == epsilon([Spent(2.0, 0.25, 12)], 1e-3)  # sent twice, paid twice
    (file,) = site.state.rglob("dp_sgd.json")
    assert json.loads(file.read_text()) == [[2.0, 0.25, 12]]
    less = asked["train_configs"]["dp_sgd"] | {"noise_multiplier": 3.0}
    asked["train_configs"] |= {"dp_sgd": less}
    both = site.result(round=3, **asked)["metrics"]["epsilon"]
    assert both == epsilon([Spent(2.0, 0.25, 12), Spent(3.0, 0.25, 4)], 1e-3)


def test_the_owner_says_how_much_noise_is_the_least(site, tmp_path, monkeypatch):
    policy = tmp_path / "site-policy.yaml"
    policy.write_text("min_noise_multiplier: 2.0\n")
    monkeypatch.setenv("FL_SITE_POLICY", str(policy))
    for noise in (None, NOISE | {"noise_multiplier": 1.9}):
        error = site.answer(**plain(site, train_configs={"dp_sgd": noise}))["error"]
        assert error["message"].endswith("min_noise_multiplier: 2 at least, in dp_sgd")
    assert "epsilon" in site.result(**plain(site, train_configs={"dp_sgd": NOISE}))["metrics"]
    monkeypatch.delenv("FL_SITE_POLICY")
    assert "epsilon" not in site.result(**plain(site))["metrics"]


def test_what_cannot_be_private_is_said(site, monkeypatch):
    batch_norm = site.answer(run_id="run-1", train_configs={"dp_sgd": NOISE})["error"]
    assert "take GroupNorm instead of batch norm" in batch_norm["message"]
    monkeypatch.setitem(sys.modules, "opacus", None)
    missing = site.answer(**plain(site, train_configs={"dp_sgd": NOISE}))["error"]
    assert "pip install 'fl-hpc[privacy]'" in missing["message"]


@pytest.mark.parametrize(
    "changes",
    [{"trainer": "ScaffoldTrainer"}, {"clip_grad": True}, {"amp": "bfloat16"}],
)
def test_what_the_accountant_does_not_reckon_with_is_refused(changes):
    with pytest.raises(ValueError, match="dp_sgd needs VanillaTrainer"):
        TrainConfigs(dp_sgd=SILENT, **changes)


@pytest.mark.parametrize(
    ("noise_multiplier", "steps", "expected"),
    [(1.5, 2250, 7.32911117143), (1.416, 2250, 8.0), (1.3562, 2000, 8.0)],
)
def test_the_price_of_sampled_steps_is_the_published_one(noise_multiplier, steps, expected):
    """Opacus 1.6, tests/accountants_test.py, at a rate of 0.04 and a delta of 1e-5.

    `test_rdp_accountant` has the first, `test_get_noise_multiplier_rdp_epochs` and `_steps` the
    others, to 0.01. Its accountant is another implementation, of other orders.
    """
    spent = epsilon([Spent(noise_multiplier, 0.04, steps)], 1e-5)
    assert spent == pytest.approx(expected, abs=0.011)


def test_the_price_is_no_more_than_the_moments_accountants():
    """Abadi et al. 2016, section 3.2 and figure 2: 1.26 for q = 0.01, sigma = 4, 10,000 steps."""
    assert 1.0 < epsilon([Spent(4.0, 0.01, 10_000)], 1e-5) < 1.26


class Backbone(nn.Module):
    """A frozen batch norm, which learns what the data's mean is all the same, before a head."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.norm.requires_grad_(False)


class Buffered(nn.Module):
    """A buffer beside the layers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.head = nn.Linear(2, 2)


class Complex(nn.Module):
    """A parameter of two numbers a number."""

    def __init__(self):
        super().__init__()
        self.phase, self.head = nn.Parameter(torch.ones(2, dtype=torch.cfloat)), nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2)), "buffer 0.running_mean"),
        (Backbone(), "buffer norm.running_mean would leave without noise"),
        (Buffered(), "buffer seen would leave without noise: take GroupNorm"),
        (Complex(), "complex parameter phase"),
        (
            nn.Sequential(
                nn.BatchNorm1d(2, affine=False, track_running_stats=False), nn.Linear(2, 2)
            ),
            "0 mixes samples",
        ),
    ],
    ids=["without parameters", "frozen", "a buffer", "complex", "without statistics"],
)
def test_nothing_of_a_model_leaves_without_noise(model, said):
    """Opacus looks at layers with trained parameters of their own."""
    dataset = TensorDataset(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(dp_sgd.PrivacyError, match=said):
        trainer.train(model, dataset, configs({"noise_multiplier": 1.0}), seed=0, steps=1)


@pytest.mark.parametrize("noise", ["dp_sgd", "local_dp"])
@pytest.mark.parametrize("operation", ["train", "rehearse"])
def test_without_the_accountant_nothing_is_trained(site, monkeypatch, noise, operation):
    """What a round costs could not be told after it."""
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    settings = {"noise_multiplier": 1.0} | ({"clip_norm": 1.0} if noise == "local_dp" else {})
    answer = site.answer(operation=operation, train_configs={noise: settings})
    if operation == "rehearse":
        found = {item["check"]: item for item in answer["result"]["items"]}
        assert found["step"]["outcome"] == "failed"
        assert "fl-hpc[privacy]" in found["step"]["message"]
    else:
        assert "fl-hpc[privacy]" in answer["error"]["message"]
    assert not list(site.state.rglob(f"{noise}.json"))


def test_a_sample_changes_no_other_ones_gradient():
    """A loss may be a mean over all labels that count: who has many would weigh the others."""
    places, few, many = 1000, 1, 1000

    def samples(counts):
        labels = torch.full((len(counts), places), -100)
        for label, count in zip(labels, counts, strict=True):
            label[:count] = 0
        return TensorDataset(torch.ones(len(counts), 1, places), labels)

    torch.manual_seed(0)
    start = nn.Conv1d(1, 2, 1)

    def stepped(counts):
        model = copy.deepcopy(start)
        settings = configs(SILENT | {"max_grad_norm": 0.5}, train_batch_size=9)
        trainer.train(model, samples(counts), settings, seed=0, steps=1)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    without, with_one = stepped([few] * 8), stepped([few] * 8 + [many])
    assert (with_one - without).norm() <= 0.5 / 9 * 1.001


def test_a_model_that_makes_more_samples_of_one_is_refused():
    """Its slices would be clipped each by itself, and a person is all of them."""
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 2), nn.Unflatten(0, (-1, 5)), Mean())
    dataset = TensorDataset(torch.ones(4, 5, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(PrivacyError, match=r"1\.weight has 20 gradients for 4 samples"):
        trainer.train(model, dataset, configs(SILENT, train_batch_size=100), seed=0, steps=1)
    dataset = TensorDataset(torch.ones(4, 5, 3), torch.zeros(4, dtype=torch.long))
    flat = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 2))
    with pytest.raises(PrivacyError, match="20 outputs for 4 samples"):
        trainer.train(flat, dataset, configs(SILENT, train_batch_size=100), seed=0, steps=1)


class Mean(nn.Module):
    def forward(self, slices):
        return slices.mean(dim=1)


def test_noise_that_float32_would_not_hold_is_refused(mean_of_outputs):
    dataset = TensorDataset(torch.zeros(4, 2), torch.zeros(4))
    least = {"noise_multiplier": 1.0, "max_grad_norm": 1e-6}
    with pytest.raises(PrivacyError, match="which float32 takes for none"):
        trained(dataset, configs(least, train_batch_size=10**40, **mean_of_outputs))
