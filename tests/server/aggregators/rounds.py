"""Steps of a federation in numbers: what clients send, and what is known of them."""

import numpy as np
import torch

from fl.server.aggregators import Contribution, open_aggregator
from fl.server.aggregators.registry import OURS

CLIENTS = [f"site-{letter}" for letter in "abcdef"]
NAMES = [name for name in OURS if name != "SecureFedAvgAggregator"]  # takes what is masked: its own
SAMPLES = dict(zip(CLIENTS, (120, 40, 300, 75, 18, 210), strict=True))


def opened(name, *buffers, **kwargs):
    return open_aggregator(name, kwargs, CLIENTS, buffers=buffers)


def contribution(client="site-a", num_samples=None, steps=10, staleness=0, share=None):
    num_samples = num_samples or SAMPLES[client]
    return Contribution(
        client, num_samples, steps, staleness, share or SAMPLES[client] / sum(SAMPLES.values())
    )


def contributions(step, stale=True):
    """Five of the six clients, in another order every step."""
    draw = np.random.default_rng(step)
    return [
        contribution(client, None, int(draw.integers(1, 40)), int(draw.integers(0, 9)) * stale)
        for client in draw.permutation(CLIENTS)[:5]
    ]


def model(seed, dtype=torch.float64, scale=1.0):
    draw = np.random.default_rng(seed)
    return {
        "w": torch.from_numpy(scale * draw.normal(size=(3, 4))).to(dtype),
        "scalar": torch.tensor(scale * draw.normal()).to(dtype),
        "count": torch.tensor(seed),
        "flag": torch.tensor(seed % 2 == 0),
    }


def update_of(aggregator, weights, moved):
    """What a client sends that has moved a model's tensors by as much; controls come along."""
    sent = {
        name: weights[name] + move
        if aggregator.wants == "model" and move.is_floating_point()
        else move
        for name, move in moved.items()
    }
    return sent | {name: control + 0.5 for name, control in aggregator.extra(weights).items()}


def run(aggregator, weights, steps, first=0, dtype=torch.float64):
    """Steps of five updates each, drawn from the step's number."""
    for step in range(first, first + steps):
        add(aggregator, weights, step, dtype)
        weights = aggregator.step(weights)
    return weights


def add(aggregator, weights, step, dtype=torch.float64):
    for index, known in enumerate(contributions(step)):
        moved = model(100 * step + index, dtype, scale=0.1)
        aggregator.add(update_of(aggregator, weights, moved), known)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def w(tensors):
    return tensors["w"].double().numpy()
