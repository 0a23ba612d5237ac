"""Every aggregator against its paper's recurrence in NumPy's float64, over steps of stale updates.

The recurrences are written down as in the papers, over all updates at once: nothing of them runs.
"""

import numpy as np
import pytest
import torch

from tests.server.aggregators.rounds import (
    CLIENTS,
    SAMPLES,
    contributions,
    model,
    opened,
    update_of,
    w,
)

SHARES = {client: samples / sum(SAMPLES.values()) for client, samples in SAMPLES.items()}
GIVEN = {client: index + 0.5 for index, client in enumerate(CLIENTS)}


def samples(known):
    return np.array([one.num_samples for one in known], dtype=float)


def average(deltas, weights):
    return np.tensordot(np.array(weights) / np.sum(weights), deltas, axes=1)


def fedavg(x, deltas, known, memory):
    return x + average(deltas, samples(known))


def fedavg_equal(x, deltas, known, memory):
    return x + deltas.mean(axis=0)


def fedavg_given(x, deltas, known, memory):
    return x + average(deltas, [GIVEN[one.client_id] for one in known])


def fedavgm(x, deltas, known, memory):
    memory["v"] = 0.7 * memory.get("v", 0) + average(deltas, samples(known))
    return x + 0.3 * memory["v"]


def adaptive(second_moment):
    """Algorithm 2 of Reddi et al. 2021."""

    def step(x, deltas, known, memory):
        delta = average(deltas, samples(known))
        memory["m"] = 0.8 * memory.get("m", 0) + 0.2 * delta
        memory["v"] = second_moment(memory.get("v", 0.05**2), delta**2)
        return x + 0.3 * memory["m"] / (np.sqrt(memory["v"]) + 0.05)

    return step


def fednova(x, deltas, known, memory):
    """Wang et al. 2020: normalised by |a|_1 of momentum SGD, its vector written out."""
    norms = np.array([sum((1 - 0.9**k) / 0.1 for k in range(1, one.steps + 1)) for one in known])
    shares = samples(known) / samples(known).sum()
    return x + (shares @ norms) * np.tensordot(shares, deltas / norms[:, None, None], axes=1)


def fednova_effective(x, deltas, known, memory):
    steps = np.array([one.steps for one in known])
    return x + 7 * np.tensordot(np.full(5, 0.2), deltas / steps[:, None, None], axes=1)


def fedbuff(x, deltas, known, memory):
    discounts = np.array([1 / np.sqrt(1 + one.staleness) for one in known])
    return x + 0.4 / len(known) * np.tensordot(discounts, deltas, axes=1)


def fedcompass(p):
    def step(x, deltas, known, memory):
        weights = [0.8 * p[one.client_id] / (1 + one.staleness) ** 0.3 for one in known]
        return x + np.tensordot(weights, deltas, axes=1)

    return step


def fedqueue(x, deltas, known, memory):
    return x + average(deltas, samples(known) / [1 + 0.25 * one.staleness for one in known])


def fedqueue_exponential(x, deltas, known, memory):
    return x + average(deltas, np.exp([-0.5 * one.staleness for one in known]))


def pace(x, deltas, known, memory):
    """docs/queues.md: learning_rate sqrt(share) along the mean by samples."""
    shares = np.array([SHARES[one.client_id] for one in known])
    return x + 0.9 * np.sqrt(shares.sum()) * average(deltas, shares)


def latest(x, models, known, memory):
    """docs/queues.md: everybody's last model, by samples and 0.95 to the steps since."""
    last = memory.setdefault("last", {})
    step = memory["step"] = memory.get("step", 0) + 1
    last |= {one.client_id: (model, step) for model, one in zip(models, known, strict=True)}
    weights = [SAMPLES[client] * 0.95 ** (step - came) for client, (_, came) in last.items()]
    return average(np.array([model for model, _ in last.values()]), weights)


def fedasync(x, models, known, memory):
    """Xie et al. 2019: one after the other, hinged."""
    for update, one in zip(models, known, strict=True):
        alpha = 0.7 * (1 if one.staleness <= 3 else 1 / (2 * (one.staleness - 3) + 1))
        x = (1 - alpha) * x + alpha * update
    return x


def median(x, deltas, known, memory):
    return x + np.median(deltas, axis=0)


def trimmed_mean(x, deltas, known, memory):
    return x + np.sort(deltas, axis=0)[1:-1].mean(axis=0)


def multi_krum(x, deltas, known, memory):
    # Of five updates with one wrong: scores by the two closest others, two are kept.
    scores = []
    for one in memory["all"]:
        distances = sorted(np.sum((one - other) ** 2) for other in memory["all"])
        scores.append(sum(distances[1:3]))
    return x + deltas[np.argsort(scores)[:2]].mean(axis=0)


OPTIMIZER = {
    "server_learning_rate": 0.3,
    "server_momentum_param_1": 0.8,
    "server_adapt_param": 0.05,
}
CASES = [
    ("FedAvgAggregator", {}, fedavg),
    ("FedAvgAggregator", {"client_weights_mode": "equal"}, fedavg_equal),
    ("FedAvgAggregator", {"client_weights_mode": "given", "client_weights": GIVEN}, fedavg_given),
    (
        "FedAvgMAggregator",
        {"server_learning_rate": 0.3, "server_momentum_param_1": 0.7},
        fedavgm,
    ),
    ("FedAdagradAggregator", OPTIMIZER, adaptive(lambda v, square: v + square)),
    (
        "FedAdamAggregator",
        {**OPTIMIZER, "server_momentum_param_2": 0.95},
        adaptive(lambda v, square: 0.95 * v + 0.05 * square),
    ),
    (
        "FedYogiAggregator",
        {**OPTIMIZER, "server_momentum_param_2": 0.95},
        adaptive(lambda v, square: v - 0.05 * square * np.sign(v - square)),
    ),
    ("FedNovaAggregator", {"momentum": 0.9}, fednova),
    (
        "FedNovaAggregator",
        {"client_weights_mode": "equal", "effective_steps": 7},
        fednova_effective,
    ),
    (
        "FedAsyncAggregator",
        {"alpha": 0.7, "staleness_fn": "hinge", "staleness_fn_kwargs": {"a": 2, "b": 3}},
        fedasync,
    ),
    ("FedBuffAggregator", {"K": 5, "server_learning_rate": 0.4}, fedbuff),
    (
        "FedCompassAggregator",
        {"alpha": 0.8, "staleness_fn_kwargs": {"a": 0.3}},
        fedcompass(SHARES),
    ),
    (
        "FedCompassAggregator",
        {"alpha": 0.8, "staleness_fn_kwargs": {"a": 0.3}, "client_weights_mode": "equal"},
        fedcompass(dict.fromkeys(CLIENTS, 1 / 6)),
    ),
    (
        "FedCompassAggregator",
        {
            "alpha": 0.8,
            "staleness_fn_kwargs": {"a": 0.3},
            "client_weights_mode": "given",
            "client_weights": GIVEN,
        },
        fedcompass({client: weight / sum(GIVEN.values()) for client, weight in GIVEN.items()}),
    ),
    ("FedQueueAggregator", {"staleness_fn_kwargs": {"beta": 0.25}}, fedqueue),
    (
        "FedQueueAggregator",
        {"client_weights_mode": "equal", "staleness_fn": "exponential"},
        fedqueue_exponential,
    ),
    ("PaceAggregator", {"server_learning_rate": 0.9}, pace),
    ("LatestAggregator", {}, latest),
    ("MedianAggregator", {}, median),
    ("TrimmedMeanAggregator", {"fraction": 0.2}, trimmed_mean),
    ("MultiKrumAggregator", {"num_byzantine": 1}, multi_krum),
]


@pytest.mark.parametrize(("name", "kwargs", "reference"), CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)],
)
def test_steps_are_the_papers(name, kwargs, reference, dtype, tolerance):
    aggregator, weights = opened(name, **kwargs), model(1, dtype)
    x, memory = w(weights), {}
    for step in range(4):
        known = contributions(step)
        moves = [model(100 * step + index, dtype, scale=0.1) for index in range(len(known))]
        sent = [update_of(aggregator, weights, moved) for moved in moves]
        for update, one in zip(sent, known, strict=True):
            aggregator.add({name: tensor.clone() for name, tensor in update.items()}, one)
        weights = aggregator.step(weights)
        memory["all"] = [np.append(w(update), update["scalar"].double().numpy()) for update in sent]
        x = reference(x, np.array([w(update) for update in sent]), known, memory)
        np.testing.assert_allclose(w(weights), x, rtol=tolerance, atol=tolerance)
        assert {tensor.dtype for tensor in weights.values()} == {dtype, torch.int64, torch.bool}


def test_scaffold_is_the_papers():
    """Algorithm 1 of Karimireddy et al. 2020, option II, on quadratics; client f never takes part.

    Client i has gradient h_i (y - t_i), 8 steps of 0.05; a third of the model is frozen.
    """
    curvature = dict(zip(CLIENTS, (1.0, 9.0, 4.0, 2.0, 6.0, 3.0), strict=True))
    target = dict(zip(CLIENTS, (0.0, 1.0, -1.0, 2.0, 0.5, 3.0), strict=True))
    trained = np.array([1.0, 1.0, 0.0])

    def local(x, correction, client):
        for _ in range(8):
            x = x - 0.05 * trained * (curvature[client] * (x - target[client]) + correction)
        return x

    # As the server has it: what clients get and send are tensors.
    aggregator = opened("ScaffoldAggregator", server_learning_rate=0.7)
    weights = {"w": torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64), "n": torch.tensor(0)}
    own = {client: np.zeros(3) for client in CLIENTS}
    # As the paper has it.
    x, c, c_own = weights["w"].numpy(), np.zeros(3), {client: np.zeros(3) for client in CLIENTS}
    for step in range(5):
        taking_part = [one for one in contributions(step) if one.client_id != "site-f"]
        extra = aggregator.extra(weights)
        assert extra.keys() == {"control/w"}
        server = extra["control/w"].numpy()
        for one in taking_part:
            start, client = weights["w"].numpy(), one.client_id
            end = local(start, server - own[client], client)
            new = own[client] - server + (start - end) / (8 * 0.05)
            update = {"w": torch.from_numpy(end - start), "n": torch.tensor(step)}
            aggregator.add({**update, "control/w": torch.from_numpy(new - own[client])}, one)
            own[client] = new
        weights = aggregator.step(weights)

        ends, changes = [], []
        for client in [one.client_id for one in taking_part]:
            ends.append(local(x, c - c_own[client], client))
            new = c_own[client] - c + (x - ends[-1]) / (8 * 0.05)
            changes.append(new - c_own[client])
            c_own[client] = new
        x, c = x + 0.7 * (np.mean(ends, axis=0) - x), c + np.sum(changes, axis=0) / len(CLIENTS)
        np.testing.assert_allclose(weights["w"].numpy(), x, rtol=1e-12)
        np.testing.assert_allclose(aggregator.state()["control"]["w"].numpy(), c, atol=1e-12)
        assert weights["n"].item() == step
    assert weights["w"][2].item() == 5.0
    assert weights.keys() == {"w", "n"}
