"""Noise on a whole update, at the site: clipping and noise by hand, its price, the least of it."""

import math

import pytest
import torch

from fl.client import local_dp
from fl.config import LocalDP, TrainConfigs
from fl.privacy import Spent, epsilon

SILENT = {"noise_multiplier": 1e-12}
"""Noise that no assertion sees."""
NOISE = {"noise_multiplier": 2.0, "clip_norm": 0.5, "delta": 1e-3}


def plain(site, **changes):
    """A request for a model without buffers."""
    return {
        "weights": site.build("Linear"),
        "model": ("Linear", {}),
        "run_id": "run-1",
        "update": "difference",
        **changes,
    }


def length(tensors):
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))


def test_the_whole_update_is_clipped_together_and_keeps_its_direction(site):
    far = plain(site, train_configs={"optim_args": {"lr": 1.0}})
    near = plain(
        site, train_configs={"optim_args": {"lr": 1.0}, "local_dp": SILENT | {"clip_norm": 0.01}}
    )
    whole, clipped = site.update(**far), site.update(**near)
    assert length(whole) > 0.1
    assert length(clipped) == pytest.approx(0.01, rel=1e-5)
    scale = 0.01 / length(whole)
    torch.testing.assert_close(clipped, {name: t * scale for name, t in whole.items()})


@pytest.mark.parametrize("update", ["difference", "model"])
def test_a_smaller_update_leaves_as_it_is(site, update):
    asked = plain(site, update=update)
    noised = site.update(**asked | {"train_configs": {"local_dp": SILENT | {"clip_norm": 1e3}}})
    torch.testing.assert_close(noised, site.update(**asked))


def test_noise_is_of_the_stated_deviation_in_every_number():
    """A million draws: each bound is six of its statistic's standard errors."""
    count, deviation = 1_000_000, 2.0 * 0.5
    still = {"w": torch.zeros(count)}
    noise = local_dp.noised(still, still, LocalDP(**NOISE))["w"].double() / deviation
    assert abs(noise.mean()) < 6 / math.sqrt(count)
    assert abs(noise.square().mean() - 1) < 6 * math.sqrt(2 / count)
    assert abs(noise.pow(4).mean() - 3) < 6 * math.sqrt(96 / count)


def test_noise_is_no_function_of_the_servers_seed(site):
    """The same request twice: without noise it repeats to the last bit."""
    quiet, loud = plain(site), plain(site, train_configs={"local_dp": NOISE})
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            site.update(**quiet).values(), site.update(**quiet).values(), strict=True
        )
    )
    one, other = site.update(**loud), site.update(**loud)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_half_precision_leaves_in_half_precision():
    still = {"w": torch.zeros(8, dtype=torch.float16)}
    assert local_dp.noised(still, still, LocalDP(**NOISE))["w"].dtype == torch.float16


def test_a_site_tells_what_its_updates_have_cost_and_counts_what_is_sent_twice(site):
    asked = plain(site, train_configs={"local_dp": NOISE})
    told = [site.result(round=n, **asked)["metrics"]["local_epsilon"] for n in (1, 2)]
    assert told == [epsilon([Spent(1.0, 1.0, updates)], 1e-3) for updates in (1, 2)]
    site.cool()
    again = site.result(round=2, **asked)["metrics"]["local_epsilon"]
    assert again == epsilon([Spent(1.0, 1.0, 3)], 1e-3)
    assert "local_epsilon" not in site.result(**plain(site))["metrics"]


def test_both_kinds_of_noise_are_counted_by_themselves(site):
    sgd = {"noise_multiplier": 2.0, "delta": 1e-3}
    asked = plain(site, train_configs={"local_dp": NOISE, "dp_sgd": sgd, "train_batch_size": 8})
    metrics = site.result(**asked)["metrics"]
    assert metrics["epsilon"] == epsilon([Spent(2.0, 0.25, 4)], 1e-3)
    assert metrics["local_epsilon"] == epsilon([Spent(1.0, 1.0, 1)], 1e-3)


@pytest.mark.parametrize("updates", [1, 20, 400])
def test_the_price_is_the_published_one(updates):
    """dp-accounting's own test_compute_epsilon_delta_gaussian: sigma for exactly (1, 1e-6).

    It is told for a sensitivity of one; two clipped updates lie two `clip_norm` apart.
    """
    wanted = LocalDP(noise_multiplier=2 * 4.530877117 * math.sqrt(updates), delta=1e-6)
    spent = [local_dp.spent(wanted)] * updates
    assert epsilon(spent, wanted.delta) == pytest.approx(1, abs=1e-5)


def test_the_owner_says_how_much_noise_is_the_least(site, tmp_path, monkeypatch):
    policy = tmp_path / "site-policy.yaml"
    policy.write_text("min_local_noise_multiplier: 2.0\n")
    monkeypatch.setenv("FL_SITE_POLICY", str(policy))
    for noise in (None, NOISE | {"noise_multiplier": 1.9}):
        asked = plain(site, train_configs={"local_dp": noise})
        refused = site.answer(**asked)["error"]
        assert refused["message"].endswith("min_local_noise_multiplier: 2 at least, in local_dp")
    assert (
        "local_epsilon" in site.result(**plain(site, train_configs={"local_dp": NOISE}))["metrics"]
    )


def test_what_would_leave_without_noise_is_refused(site):
    batch_norm = site.answer(run_id="run-1", train_configs={"local_dp": NOISE})["error"]
    assert batch_norm["type"] == "PrivacyError"
    assert "take GroupNorm instead of batch norm" in batch_norm["message"]
    with pytest.raises(ValueError, match="whose controls would leave too"):
        TrainConfigs(local_dp=LocalDP(**NOISE), trainer="ScaffoldTrainer")


def test_tied_weights_are_refused_lest_noise_tears_them_apart(site):
    tied = plain(site, model=("Tied", {}), weights=site.build("Tied"))
    refused = site.answer(**tied | {"train_configs": {"local_dp": NOISE}})["error"]
    assert refused["type"] == "PrivacyError"
    assert "last.weight is another name of a weight" in refused["message"]


def test_an_update_that_has_no_norm_is_not_sent():
    still = {"w": torch.zeros(2)}
    with pytest.raises(local_dp.PrivacyError, match="cannot be clipped"):
        local_dp.noised({"w": torch.tensor([1.0, math.nan])}, still, LocalDP(**NOISE))
