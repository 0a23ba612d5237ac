import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.server import robust
from fl.server.robust import coordinate_median, krum_order, multi_krum, trimmed_mean
from fl.server.strategies.steps import wide

AGGREGATES = [
    coordinate_median,
    lambda updates: trimmed_mean(updates, fraction=0.2),
    lambda updates: multi_krum(updates, num_byzantine=1),
]


def model(seed, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": (scale * torch.randn(3, 5, generator=generator, dtype=torch.float64)).to(dtype),
        "scalar": torch.randn((), generator=generator, dtype=torch.float64).to(dtype),
        "empty": torch.zeros(0, dtype=dtype),
        "count": torch.tensor(seed),
        "flag": torch.tensor(seed % 2 == 0),
    }


def stacked(updates, name="w"):
    return np.stack([update[name].double().numpy() for update in updates])


def krum_reference(updates, f):
    """Blanchard et al. 2017, section 4, pair by pair."""
    flat = [
        np.concatenate([u["w"].double().numpy().ravel(), [u["scalar"].item()]]) for u in updates
    ]
    scores = []
    for i, one in enumerate(flat):
        distances = sorted(np.sum((one - other) ** 2) for j, other in enumerate(flat) if j != i)
        scores.append(sum(distances[: len(flat) - f - 2]))
    return list(np.argsort(scores, kind="stable"))


counts = st.integers(1, 9)


@settings(max_examples=20, deadline=None)
@given(counts)
def test_median_is_numpys(count):
    updates = [model(seed) for seed in range(count)]
    for name in ("w", "scalar"):
        expected = np.median(stacked(updates, name), axis=0)
        np.testing.assert_allclose(coordinate_median(updates)[name].numpy(), expected)


@settings(max_examples=30, deadline=None)
@given(counts, st.integers(0, 49))
def test_trimmed_mean_is_numpys(count, percent):
    updates = [model(seed) for seed in range(count)]
    trimmed = percent * count // 100
    ordered = np.sort(stacked(updates), axis=0)[trimmed : count - trimmed]
    result = trimmed_mean(updates, fraction=percent / 100)["w"].numpy()
    np.testing.assert_allclose(result, ordered.mean(axis=0))


def test_trimming_is_not_lost_to_rounding():
    updates = [{"w": torch.tensor([1e6 if index < 29 else 0.0])} for index in range(100)]
    assert trimmed_mean(updates, fraction=0.29)["w"].item() == 0  # 28.999999999999996
    assert trimmed_mean(updates, fraction=0.28)["w"].item() > 0
    assert trimmed_mean(updates[28:30], fraction=0.4999999999)["w"].item() == 5e5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2), st.integers(0, 4), st.integers(0, 1000))
def test_krum_is_the_papers(f, more, seed):
    count = 2 * f + 3 + more
    updates = [model(seed + index) for index in range(count)]
    expected = krum_reference(updates, f)
    assert krum_order(updates, num_byzantine=f) == expected
    for keep in (None, 1, count):
        result = multi_krum(updates, num_byzantine=f, keep=keep)
        chosen = [updates[index] for index in expected[: keep or count - f - 2]]
        np.testing.assert_allclose(result["w"].numpy(), stacked(chosen).mean(axis=0), atol=1e-12)
        assert result["count"] == updates[expected[0]]["count"]
        assert result["flag"] == updates[expected[0]]["flag"]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(7)))
def test_order_of_clients_does_not_matter(aggregate, order):
    updates = [model(seed) for seed in range(7)]
    one, other = aggregate(updates), aggregate([updates[index] for index in order])
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equal_updates_are_that_update_to_the_last_bit(aggregate, dtype):
    for count in (5, 6, 7):
        result = aggregate([model(3, dtype) for _ in range(count)])
        for name, tensor in model(3, dtype).items():
            assert result[name].dtype == wide(tensor).dtype
            assert result[name].shape == tensor.shape
            assert torch.equal(result[name].to(dtype=tensor.dtype), tensor)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_half_precision_is_not_rounded_before_the_step(aggregate):
    # Every rule averages some of these: 1 and 1 + 2^-7 are neighbours in bfloat16.
    ends = [1.0, 1 + 2**-7] * 3
    updates = [{"w": torch.tensor([end], dtype=torch.bfloat16)} for end in ends]
    value = aggregate(updates)["w"]
    assert value.dtype == torch.float32
    assert 1 < value.item() < 1 + 2**-7


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_updates_are_not_changed(aggregate):
    updates = [model(seed) for seed in range(6)]
    aggregate(updates)
    for seed, update in enumerate(updates):
        assert all(torch.equal(update[name], model(seed)[name]) for name in update)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_slices_do_not_show(aggregate, monkeypatch):
    updates = [model(seed, torch.float32) for seed in range(7)]
    whole = aggregate(updates)
    monkeypatch.setattr(robust, "SLICE", 14)  # two coordinates at a time
    for name, tensor in aggregate(updates).items():
        torch.testing.assert_close(tensor, whole[name])


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("attack", [1e6, -1e6, 1e30])
def test_one_byzantine_update_that_breaks_the_mean_does_no_harm(aggregate, attack):
    honest = [model(seed, torch.float32, scale=0.1) for seed in range(8)]
    wrong = {name: torch.full_like(t, attack) if t.is_floating_point() else t for name, t in
             model(9, torch.float32).items()}  # fmt: skip
    expected = stacked(honest).mean(axis=0)
    assert np.abs(stacked([*honest, wrong]).mean(axis=0) - expected).max() > 1e4
    result = aggregate([*honest[:3], wrong, *honest[3:]])["w"].numpy()
    assert np.abs(result - expected).max() < 0.3
    assert krum_order([*honest[:3], wrong, *honest[3:]], num_byzantine=1)[-1] == 3


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_training_goes_on_under_attack(aggregate):
    """Gradient steps towards 1 from noisy clients, one of which sends the opposite, greatly."""
    generator = torch.Generator().manual_seed(0)
    position = torch.zeros(4, dtype=torch.float64)
    for _ in range(60):
        noise = 0.01 * torch.randn(7, 4, generator=generator, dtype=torch.float64)
        updates = [{"w": position + 0.2 * (1 - position) + row} for row in noise]
        updates[2] = {"w": position - 100 * (1 - position)}
        position = aggregate(updates)["w"]
    assert (position - 1).abs().max() < 0.1


def test_counters_are_of_the_middle():
    updates = [{"n": torch.tensor(value)} for value in (5, 10**9, 7, 6)]
    assert coordinate_median(updates)["n"].item() == 6
    assert trimmed_mean(updates)["n"].item() == 6


def test_tensors_that_are_not_contiguous():
    updates = [{"w": model(seed)["w"].t()} for seed in range(5)]
    expected = np.median(stacked(updates), axis=0)
    np.testing.assert_allclose(coordinate_median(updates)["w"].numpy(), expected)


def test_what_has_no_meaning_is_refused():
    for aggregate in AGGREGATES:
        with pytest.raises(ValueError, match="no update"):
            aggregate([])
    for fraction in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            trimmed_mean([model(0)], fraction=fraction)
    with pytest.raises(ValueError, match="at least 7, not 6"):
        multi_krum([model(0)] * 6, num_byzantine=2)
    with pytest.raises(ValueError, match="Krum"):
        krum_order([model(0)] * 6, num_byzantine=-1)
    for keep in (0, 6):
        with pytest.raises(ValueError, match="keep"):
            multi_krum([model(0)] * 5, num_byzantine=1, keep=keep)
    with pytest.raises(ValueError, match="c is complex"):
        coordinate_median([{"c": torch.zeros(1, dtype=torch.complex64)}])
    with pytest.raises(ValueError, match="c is complex"):
        multi_krum([{"c": torch.zeros(1, dtype=torch.complex64)}] * 5, num_byzantine=1)
