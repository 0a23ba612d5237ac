"""What holds of every aggregator."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.server.aggregators import rounds
from fl.server.aggregators.registry import OURS
from fl.tensors import decode, encode
from tests.server.aggregators.rounds import (
    CLIENTS,
    NAMES,
    add,
    assert_same,
    contribution,
    contributions,
    model,
    opened,
    run,
    update_of,
    w,
)

HOLDING = {"MedianAggregator", "TrimmedMeanAggregator", "MultiKrumAggregator"}
NOISY = "DPFedAvgAggregator"  # noise, and one update a client and step: test_private.py
EXACT = [name for name in NAMES if name != NOISY]
MEANS = [name for name in EXACT if name != "FedAsyncAggregator"]  # where the order says nothing


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("halfway", [False, True])
def test_a_restored_run_ends_with_the_same_bytes(name, dtype, halfway):
    """Restored after two steps, or with half a step's updates in besides."""
    straight, resumed = opened(name), opened(name)
    weights = run(straight, model(1, dtype), 2, dtype=dtype)
    if halfway:
        add(straight, weights, 7, dtype)
    kept = {role: decode(encode(tensors)) for role, tensors in straight.state().items()}
    resumed.restore(kept)
    ends = []
    for aggregator in (straight, resumed):
        ends.append(run(aggregator, decode(encode(weights)), 3, first=2, dtype=dtype))
        add(aggregator, weights, 9, dtype)
    assert_same(*ends)
    one, other = straight.state(), resumed.state()
    assert one.keys() == other.keys()
    for role in one:
        assert_same(one[role], other[role])


@pytest.mark.parametrize("name", EXACT)
def test_a_state_is_a_snapshot(name):
    aggregator = opened(name)
    weights = run(aggregator, model(1), 2)
    add(aggregator, weights, 2)
    state = aggregator.state()
    before = {role: {key: t.clone() for key, t in state[role].items()} for role in state}
    add(aggregator, weights, 3)
    aggregator.step(weights)
    for role in state:
        assert_same(state[role], before[role])


@pytest.mark.parametrize("name", NAMES)
def test_another_aggregators_state_is_refused(name):
    for state in ({"velocity": {}}, {"update 1": {}}):
        with pytest.raises(ValueError, match="is no state of"):
            opened(name).restore(state)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_frozen_parameters_stay_to_the_last_bit(name, dtype):
    aggregator = opened(name)
    frozen = torch.randn(1000, generator=torch.Generator().manual_seed(3)).to(dtype)
    weights = {"frozen": frozen, "w": torch.zeros(3, dtype=dtype)}
    for step in range(4):
        for index, one in enumerate(contributions(step)):
            moved = {"frozen": torch.zeros_like(frozen), "w": torch.full((3,), index + 1.0)}
            update = update_of(
                aggregator, weights, {"frozen": moved["frozen"], "w": moved["w"].to(dtype)}
            )
            aggregator.add(update, one)
        weights = aggregator.step(weights)
    assert torch.equal(weights["frozen"], frozen)
    assert weights["frozen"].dtype == dtype
    assert weights["w"].min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_step_forgets_and_nothing_is_no_step(name):
    aggregator, weights = opened(name), model(1)
    with pytest.raises(ValueError, match="no update"):
        aggregator.step(weights)
    run(aggregator, weights, 1)
    with pytest.raises(ValueError, match="no update"):
        aggregator.step(weights)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_not_changed_by_its_step(name):
    aggregator, weights = opened(name), model(1)
    add(aggregator, weights, 0)
    aggregator.step(weights)
    assert_same(weights, model(1))


@pytest.mark.parametrize("name", NAMES)
def test_no_update_stays_in_memory_but_the_first(name):
    """In whose memory the mean is."""
    aggregator, weights = opened(name), model(1)
    held = []
    for index, one in enumerate(contributions(0)):
        update = update_of(aggregator, weights, model(100 + index))
        if index:
            held += [weakref.ref(update["w"]), weakref.ref(update["count"])]
        aggregator.add(update, one)
    del update
    assert not any(ref() is not None for ref in held)


@pytest.mark.parametrize("name", MEANS)
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(5)))
def test_the_order_of_arrival_does_not_matter(name, order):
    ends = []
    for indices in (range(5), order):
        aggregator, weights = opened(name), model(1)
        for step in range(2):
            known = contributions(step)
            for index in indices:
                moved = model(100 * step + index)
                aggregator.add(update_of(aggregator, weights, moved), known[index])
            weights = aggregator.step(weights)
        ends.append(weights)
    torch.testing.assert_close(*ends)


BY_SHARES = {"FedCompassAggregator", "PaceAggregator"}
"""How far these step goes by the shares in the mean."""


@pytest.mark.parametrize("name", [name for name in MEANS if name not in BY_SHARES])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@settings(max_examples=5, deadline=None)
@given(samples=st.lists(st.integers(1, 5000), min_size=5, max_size=6))
def test_equal_updates_are_a_fixed_point_of_the_mean(name, dtype, samples):
    """Whatever their weights, five equal ones step as ten do: to the last bit."""
    ends = []
    for repeats in (1, 2):
        aggregator, weights = opened(name), model(1, dtype)
        for client, num_samples in [*zip(CLIENTS, samples, strict=False)] * repeats:
            update = update_of(aggregator, weights, model(5, dtype, scale=0.1))
            aggregator.add(update, contribution(client, num_samples))
        ends.append(aggregator.step(weights))
    if name == "FedNovaAggregator":  # tau_eff comes from sums, so rounding shows
        torch.testing.assert_close(*ends)
    else:
        assert_same(*ends)


@pytest.mark.parametrize("name", ["FedAvgAggregator", "FedBuffAggregator", "FedQueueAggregator"])
def test_equal_fresh_updates_are_the_step(name):
    aggregator, weights = opened(name), model(1)
    for client in CLIENTS:
        aggregator.add(model(5), contribution(client))
    assert torch.equal(aggregator.step(weights)["w"], weights["w"] + model(5)["w"])


BY_NEITHER = HOLDING | {"FedAsyncAggregator", "FedBuffAggregator", "ScaffoldAggregator"}
"""These read neither a client's samples nor its share."""


@pytest.mark.parametrize("name", [name for name in EXACT if name not in BY_NEITHER])
@settings(max_examples=5, deadline=None)
@given(scale=st.integers(2, 1000))
def test_weights_scale_out(name, scale):
    """Twice everybody's samples lead to the same model, but a client's alone do not."""
    ends = [stepped_of(name, dict.fromkeys(CLIENTS, factor)) for factor in (1, scale)]
    torch.testing.assert_close(*ends)
    alone = stepped_of(name, {**dict.fromkeys(CLIENTS, 1), contributions(0)[0].client_id: scale})
    assert not torch.allclose(alone["w"], ends[0]["w"])


def stepped_of(name, factors):
    """A step of clients that have so many times their samples, with shares of what is known."""
    aggregator, weights, known = opened(name), model(1), {}
    for index, one in enumerate(contributions(0)):
        samples = one.num_samples * factors[one.client_id]
        known[one.client_id] = samples
        everybody = sum(known.values()) / len(known) * len(CLIENTS)
        share = min(samples / everybody, 1.0)
        more = contribution(one.client_id, samples, one.steps, one.staleness, share)
        aggregator.add(update_of(aggregator, weights, model(100 + index)), more)
    return aggregator.step(weights)


@pytest.mark.parametrize(
    "name", ["FedAvgAggregator", "FedNovaAggregator", "FedQueueAggregator", "FedCompassAggregator"]
)
def test_given_weights_scale_out(name):
    ends = []
    for factor in (1.0, 37.0):
        given_weights = {client: factor * (index + 1) for index, client in enumerate(CLIENTS)}
        aggregator = opened(name, client_weights_mode="given", client_weights=given_weights)
        ends.append(run(aggregator, model(1), 2))
    torch.testing.assert_close(*ends)
    assert not torch.allclose(ends[0]["w"], run(opened(name), model(1), 2)["w"])


# By samples, here.
ALIKE = {
    "FedBuffAggregator",
    "FedCompassAggregator",
    "PaceAggregator",
    "ScaffoldAggregator",
}


@pytest.mark.parametrize("name", EXACT)
def test_counters_are_trained_values(name):
    """Not differences, and one client's: of the heaviest or the greatest, of the middle or best."""
    aggregator = opened(name)
    weights = {"w": torch.zeros(3), "count": torch.tensor(3), "flag": torch.tensor(False)}
    sent = [(1, 4, False, 0.7), (500, 7, True, 1.0), (1, 7, True, 1.1), (1, 9, False, 1.3)]
    for client, (samples, count, flag, move) in zip(CLIENTS, [*sent, sent[2]], strict=False):
        moved = {"w": torch.full((3,), move), "count": torch.tensor(count)}
        update = update_of(aggregator, weights, {**moved, "flag": torch.tensor(flag)})
        aggregator.add(update, contribution(client, samples, share=0.1))
    stepped = aggregator.step(weights)
    assert stepped["count"].item() == (9 if name in ALIKE else 7)
    assert stepped["flag"].item() is True
    assert stepped["count"].dtype == torch.int64
    assert stepped["flag"].dtype == torch.bool


@pytest.mark.parametrize(
    "name",
    [
        "FedAvgAggregator",
        "FedNovaAggregator",
        "FedQueueAggregator",
        "ScaffoldAggregator",
        *sorted(HOLDING),
    ],
)
def test_half_precision_is_rounded_once(name):
    # The two are neighbours in bfloat16. Added to 1, a half of 2^-7 is a tie, which goes to 1; the
    # mean of both is above the tie, unless it is rounded to bfloat16 first: to the lower one.
    moves = [2**-8, 2**-8 * (1 + 2**-7)] * 3
    aggregator, weights = opened(name), {"w": torch.ones(1, dtype=torch.bfloat16)}
    for client, move in zip(CLIENTS, moves, strict=True):
        moved = {"w": torch.tensor([move], dtype=torch.bfloat16)}
        aggregator.add(update_of(aggregator, weights, moved), contribution(client, 10))
    assert aggregator.step(weights)["w"].item() == 1 + 2**-7


OF_REALS = HOLDING | {
    "FedAdagradAggregator",
    "FedAdamAggregator",
    "FedYogiAggregator",
    "ScaffoldAggregator",
}
"""Refused where the model is complex, before anything is sent: `tests/test_algorithm.py`."""


@pytest.mark.parametrize("name", [name for name in EXACT if name not in OF_REALS])
def test_a_complex_tensor_goes_where_its_two_parts_do(name):
    whole, parts = opened(name), opened(name)
    numbers = model(1, torch.float32)["w"]
    split, joined = {"w": numbers}, {"w": torch.view_as_complex(numbers.view(-1, 2))}
    for step in range(2):
        for index, known in enumerate(contributions(step)):
            moved = 0.1 * model(100 * step + index, torch.float32)["w"]
            start = split["w"] if parts.wants == "model" else torch.zeros_like(moved)
            both = torch.view_as_complex((start + moved).view(-1, 2))
            parts.add({"w": start + moved}, known)
            whole.add({"w": both.clone()}, known)
        split, joined = parts.step(split), whole.step(joined)
    torch.testing.assert_close(torch.view_as_real(joined["w"]), split["w"].view(-1, 2))


LEARNING = {
    "DPFedAvgAggregator": {"noise_multiplier": 0.01},
    "FedAdagradAggregator": {"server_learning_rate": 0.5},
    "FedAdamAggregator": {"server_learning_rate": 0.1},
    "FedYogiAggregator": {"server_learning_rate": 0.1},
    "FedAvgMAggregator": {"server_momentum_param_1": 0.5},
}


@pytest.mark.parametrize("name", NAMES)
def test_training_gets_there(name):
    """Clients whose optima lie around 1, each a model or two behind."""
    aggregator = opened(name, **LEARNING.get(name, {}))
    draw = torch.Generator().manual_seed(0)
    models = [{"w": torch.full((4,), -3.0)}]
    for _ in range(150):
        for index, client in enumerate(CLIENTS):
            staleness = min(index % 3, len(models) - 1)
            start = models[-1 - staleness]
            goal = 1 + 0.1 * torch.randn(4, generator=draw)
            update = update_of(aggregator, start, {"w": 0.2 * (goal - start["w"])})
            aggregator.add(update, contribution(client, steps=10, staleness=staleness))
        models.append(aggregator.step(models[-1]))
    assert (models[-1]["w"] - 1).abs().max() < 0.15, w(models[-1])


AVERAGING = [name for name, kind in OURS.items() if kind.__module__ == rounds.__name__]
EAGER = {
    "FedAvgMAggregator": {},
    "FedAdagradAggregator": {"server_learning_rate": 3.0},
    "FedAdamAggregator": {"server_learning_rate": 0.5},
    "FedYogiAggregator": {"server_learning_rate": 0.5},
    "ScaffoldAggregator": {"server_learning_rate": 1.2},
}


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("buffers", [(), ("bn.running_var", "bn.count")])
def test_an_optimizer_does_not_step_buffers(name, buffers):
    """A variance that shrinks to a tenth every round is positive, unless an optimizer steps it."""
    aggregator = opened(name, *buffers, **EAGER.get(name, {}))
    weights = {
        "bn.running_var": torch.tensor([1.0]),
        "w": torch.tensor([1.0]),
        "bn.count": torch.tensor(1),
    }
    for count in range(2, 5):
        for client, steps in zip(CLIENTS, (1, 50, 50, 50, 50, 50), strict=True):
            moved = {key: -0.9 * weights[key] for key in ("bn.running_var", "w")}
            moved["bn.count"] = torch.tensor(count)
            update = update_of(aggregator, weights, moved)
            assert not buffers or "control/bn.running_var" not in update
            aggregator.add(update, contribution(client, steps=steps))
        expected = 0.1 * weights["bn.running_var"]
        weights = aggregator.step(weights)
        if buffers:
            torch.testing.assert_close(weights["bn.running_var"], expected)
        assert list(weights) == ["bn.running_var", "w", "bn.count"]
        assert weights["bn.count"].item() == count
    if buffers and name != "FedAvgAggregator":
        assert weights["w"].item() != pytest.approx(0.001)
    if not buffers and name in EAGER:
        assert weights["bn.running_var"].item() < 0


def test_fednova_weighs_buffers_and_counters_as_fedavg_does():
    """By samples: who has done many steps is not heard less."""
    ends = []
    for name in ("FedNovaAggregator", "FedAvgAggregator"):
        aggregator = opened(name, "bn.running_var", "bn.count")
        weights = {"w": torch.ones(1), "bn.running_var": torch.ones(1), "bn.count": torch.tensor(0)}
        for samples, steps in ((30, 100), (10, 1)):
            moved = {"w": torch.tensor([0.1]), "bn.running_var": torch.tensor([samples / 10])}
            moved["bn.count"] = torch.tensor(steps)
            aggregator.add(moved, contribution(num_samples=samples, steps=steps))
        ends.append(aggregator.step(weights))
    nova, average = ends
    torch.testing.assert_close(nova["bn.running_var"], average["bn.running_var"])
    assert nova["bn.count"].item() == average["bn.count"].item() == 100
    assert nova["w"] > average["w"]


def test_fednova_makes_no_wide_copy_of_a_narrow_update():
    """A model more than the sum and the update, in twice its bytes."""
    aggregator = opened("FedNovaAggregator")
    for client in CLIENTS[:2]:
        update = {"w": torch.full((3,), 0.5, dtype=torch.bfloat16)}
        aggregator.add(update, contribution(client, steps=3))
    assert update["w"].dtype == torch.bfloat16
    assert update["w"].tolist() == [0.5] * 3


def test_fednova_goes_on_from_no_sum_of_divided_updates():
    """As a version before this one kept them."""
    aggregator = opened("FedNovaAggregator")
    aggregator.add({"w": torch.ones(3)}, contribution(CLIENTS[0], steps=3))
    kept = {role: its for role, its in aggregator.state().items() if "undivided" not in role}
    with pytest.raises(ValueError, match="divided by their norms"):
        opened("FedNovaAggregator").restore(kept)
