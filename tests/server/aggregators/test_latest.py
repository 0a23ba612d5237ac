"""The mean of latest models: what is of it alone."""

import tempfile

import pytest
import torch

from fl.server.aggregators.base import HoldError
from fl.server.strategies import latest_weight
from tests.server.aggregators.rounds import CLIENTS, contribution, opened


def of(value):
    return {"w": torch.full((2,), value, dtype=torch.float64)}


def stepped(aggregator, client, value):
    aggregator.add(of(value), contribution(client, num_samples=60))
    return aggregator.step(of(0.0))["w"][0].item()


def test_who_is_away_stays_in_the_mean_and_fades():
    aggregator = opened("LatestAggregator")
    assert stepped(aggregator, "site-a", 1.0) == 1.0
    assert stepped(aggregator, "site-b", 0.0) == pytest.approx(0.95 / 1.95)
    assert stepped(aggregator, "site-b", 0.0) == pytest.approx(0.95**2 / (0.95**2 + 1))
    for _ in range(200):
        away = stepped(aggregator, "site-b", 0.0)
    assert 0 < away < 1e-4
    assert stepped(aggregator, "site-a", 1.0) == pytest.approx(1 / 1.95)


def test_a_models_weight_ends_as_nothing():
    aggregator = opened("LatestAggregator")
    stepped(aggregator, "site-a", 1.0)
    aggregator._known["site-a"].age = 20_000
    assert latest_weight(60, 20_000) == 0.0
    assert stepped(aggregator, "site-b", 3.0) == 3.0


def test_a_model_weighs_by_its_samples_however_little_was_known_when_it_came():
    """The server's estimate of a share: the first to answer has a share of 1/N, the next more."""
    aggregator = opened("LatestAggregator")
    for client, samples, share in (("site-a", 100, 0.5), ("site-b", 300, 0.75)):
        aggregator.add(of(float(samples)), contribution(client, samples, share=share))
    assert aggregator.step(of(0.0))["w"].tolist() == [250.0, 250.0]


def test_a_model_that_came_twice_counts_once():
    aggregator = opened("LatestAggregator")
    for client, value in (("site-a", 7.0), ("site-a", 1.0), ("site-b", 2.0)):
        aggregator.add(of(value), contribution(client, num_samples=60))
    assert aggregator.step(of(0.0))["w"].tolist() == [1.5, 1.5]


def test_a_step_changes_no_model_that_is_kept():
    aggregator = opened("LatestAggregator")
    for client in CLIENTS:
        stepped(aggregator, client, 1.0)
    kept = aggregator.state()
    assert stepped(aggregator, "site-f", 5.0) > 1.0
    assert all(torch.equal(kept[role]["w"], of(1.0)["w"]) for role in kept if "latest" in role)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(HoldError, match="TMPDIR"):
        opened("LatestAggregator").add(of(1.0), contribution())


def test_weights_are_of_what_is_possible():
    for samples, age in ((0, 0), (60, -1)):
        with pytest.raises(ValueError, match=r"samples|age"):
            latest_weight(samples, age)
