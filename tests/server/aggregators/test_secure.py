"""What holds of other aggregators (test_contract.py), of the one that takes masked updates."""

import pytest
import torch

from fl.secure_sum import masks
from fl.secure_sum.fixed_point import MASKED, encoded
from fl.server.aggregators import open_aggregator
from tests.server.aggregators.rounds import CLIENTS, contribution

WEIGHTS = {"w": torch.ones(3), "h": torch.ones(2).bfloat16(), "count": torch.tensor(4)}


@pytest.fixture
def aggregator():
    return open_aggregator("SecureFedAvgAggregator", {"clip_norm": 10.0}, CLIENTS)


def add(aggregator, change, client="site-a", key=None):
    one = contribution(client)
    update = {name: torch.full_like(tensor, change) for name, tensor in WEIGHTS.items()}
    words = encoded(update, 10.0, one.num_samples, len(CLIENTS))
    if key is not None:
        masks.apply(words, key, add=True)
    aggregator.add({MASKED: torch.from_numpy(words.view("i8"))}, one)
    return one.num_samples


def test_a_step_goes_along_the_mean_of_what_is_unmasked(aggregator):
    keys = [bytes(32), bytes(range(32))]
    weights = [add(aggregator, 1.0, "site-a", keys[0]), add(aggregator, -0.5, "site-b", keys[1])]
    aggregator.unmask((key, False) for key in keys)
    moved = aggregator.step(WEIGHTS)
    mean = (weights[0] - 0.5 * weights[1]) / sum(weights)
    assert moved["w"].tolist() == pytest.approx([1 + mean] * 3, abs=1e-6)
    assert moved["h"].tolist() == pytest.approx([1 + mean] * 2, abs=2**-8)
    assert moved["count"].item() == 4
    assert {name: t.dtype for name, t in moved.items()} == {n: t.dtype for n, t in WEIGHTS.items()}
    assert WEIGHTS["w"].tolist() == [1.0] * 3


def test_the_order_of_updates_says_nothing(aggregator):
    changes = dict(zip(CLIENTS, (0.3, -0.1, 0.7, 0.2, -0.9, 0.4), strict=True))
    ends = []
    for names in (CLIENTS, CLIENTS[::-1]):
        for name in names:
            add(aggregator, changes[name], name)
        ends.append(aggregator.step(WEIGHTS))
    assert torch.equal(ends[0]["w"], ends[1]["w"])


def test_what_goes_in_is_not_changed_and_a_step_forgets(aggregator):
    given = torch.arange(5)
    aggregator.add({MASKED: given}, contribution())
    aggregator.add({MASKED: given}, contribution())
    assert given.tolist() == [0, 1, 2, 3, 4]
    aggregator.step(WEIGHTS)
    for nothing in (lambda: aggregator.step(WEIGHTS), lambda: aggregator.unmask([])):
        with pytest.raises(ValueError, match="no update to sum"):
            nothing()


def test_a_layout_takes_no_memory_and_a_state_is_nothing(aggregator):
    layout = aggregator.masked(WEIGHTS)[MASKED]
    assert layout.shape == (5,) and layout.device.type == "meta"
    add(aggregator, 1.0)
    assert aggregator.state() == {}
    aggregator.restore({})
    with pytest.raises(ValueError, match="momentum is no state of SecureFedAvg"):
        aggregator.restore({"momentum": {}})
