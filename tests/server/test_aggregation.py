import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.server import aggregation
from fl.server.aggregation import ROLES, WeightedMean
from fl.tensors import NAMES, decode, encode


def model(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(3, 5, generator=generator).to(dtype), "n": torch.tensor(seed)}


def mean(updates, weights):
    running = WeightedMean()
    for update, weight in zip(updates, weights, strict=True):
        running.add(copy(update), weight)
    return running.result()


def copy(update):
    return {name: tensor.clone() for name, tensor in update.items()}


weights_strategy = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(weights_strategy)
def test_equals_numpy_in_float64(weights):
    updates = [model(seed) for seed in range(len(weights))]
    stacked = np.stack([update["w"].double().numpy() for update in updates])
    expected = np.average(stacked, axis=0, weights=weights)
    np.testing.assert_allclose(mean(updates, weights)["w"].numpy(), expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(weights_strategy, st.floats(0.01, 100))
def test_order_and_scale_of_weights_do_not_matter(weights, scale):
    updates = [model(seed) for seed in range(len(weights))]
    one = mean(updates, weights)["w"]
    other = mean(updates[::-1], [weight * scale for weight in weights[::-1]])["w"]
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_equal_updates_are_a_fixed_point():
    for dtype in (torch.bfloat16, torch.float32):
        result = mean([model(1, dtype)] * 4, [1, 2, 30, 0.7])["w"]
        assert torch.equal(result.to(dtype), model(1, dtype)["w"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_mean_is_as_wide_as_it_was_averaged(dtype):
    result = mean([model(1, dtype), model(2, dtype)], [1, 1])["w"]
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = (model(1, dtype)["w"].double() + model(2, dtype)["w"].double()) / 2
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-7)


def test_many_half_precision_updates_do_not_lose_the_small_ones():
    big, small = {"w": torch.full((1,), 1.0).half()}, {"w": torch.full((1,), 1e-3).half()}
    result = mean([big] + [small] * 2000, [1.0] * 2001)["w"]
    assert result.item() == pytest.approx((1 + 2) / 2001, rel=1e-2)


def test_counters_come_from_the_heaviest_update():
    result = mean([model(3), model(8), model(5)], [1, 9, 2])
    assert result["n"].item() == 8
    assert result["n"].dtype == torch.int64


def test_counters_of_equal_weight_do_not_depend_on_who_came_first():
    for order in ([3, 8, 5], [8, 5, 3], [5, 3, 8]):
        updates = [{"n": torch.tensor(n), "flag": torch.tensor(n == 5)} for n in order]
        result = mean(
            [*updates, {"n": torch.tensor(99), "flag": torch.tensor(False)}], [2, 2, 2, 1]
        )
        assert result["n"].item() == 8
        assert result["flag"].item() is True


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in NAMES if not (dtype.is_floating_point or dtype.is_complex)]
)
def test_counters_of_any_width_are_the_greatest_of_equal_weight(dtype):
    greatest = 1 if dtype is torch.bool else torch.iinfo(dtype).max
    for order in ([0, greatest, 1], [greatest, 1, 0]):
        updates = [{"n": torch.tensor([n, 0], dtype=dtype)} for n in order]
        found = mean(updates, [1, 1, 1])["n"]
        assert (found.dtype, found.tolist()) == (dtype, [greatest, 0])


def test_no_update_and_no_weight_are_refused():
    with pytest.raises(ValueError, match="no update"):
        WeightedMean().result()
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive"):
            WeightedMean().add(model(1), weight)


def test_the_mean_is_in_the_memory_of_the_first_update():
    first = model(1)
    memory = first["w"].data_ptr()
    running = WeightedMean()
    running.add(first, 1)
    running.add(model(2), 1)
    assert running.result()["w"].data_ptr() == memory
    assert running.result()["n"].data_ptr() != first["n"].data_ptr()  # a model goes on with that


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_updates_after_the_first_are_not_changed_nor_kept(dtype):
    running, update = WeightedMean(), model(2, dtype)
    running.add(model(1, dtype), 1)
    running.add(update, 1)
    assert all(torch.equal(tensor, model(2, dtype)[name]) for name, tensor in update.items())
    update["w"].zero_()
    update["n"].zero_()
    expected = mean([model(1, dtype), model(2, dtype)], [1, 1])
    assert all(torch.equal(running.result()[name], expected[name]) for name in expected)


def test_a_first_update_that_is_no_plain_memory_is_averaged_as_others():
    spread = {"w": torch.arange(15.0).view(5, 3).t(), "half": torch.ones(4, 2).half().t()}
    running = WeightedMean()
    running.add(copy(spread), 1)
    running.add({name: tensor * 3 for name, tensor in spread.items()}, 1)
    for name, tensor in spread.items():
        assert torch.equal(running.result()[name], 2 * tensor.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_mean_goes_on_from_its_state_to_the_last_bit(dtype):
    one, other = WeightedMean(), WeightedMean()
    assert one.state() == {}
    for seed in range(3):
        one.add(model(seed, dtype), 0.1 + seed)
    kept = {role: decode(encode(tensors)) for role, tensors in one.state().items()}
    assert kept.keys() == ROLES
    other.restore(kept)
    for running in (one, other):
        running.add(model(5, dtype), 1.0)
    assert (one.total, one.count) == (other.total, other.count)
    assert other.result()["n"].item() == 2  # still the heaviest
    assert torch.equal(one.result()["w"], other.result()["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
@pytest.mark.parametrize("before", [0, 1])
def test_updates_all_at_once_are_averaged_as_one_after_the_other(dtype, before, monkeypatch):
    monkeypatch.setattr(aggregation, "TILE", 3)
    draws = torch.Generator().manual_seed(0)
    updates = [
        {"w": (torch.randn(2, 5, generator=draws) * 9).to(dtype), "empty": torch.zeros(0, 3)}
        for _ in range(4)
    ]
    weights = [1.0, 4.0, 4.0, 2.0]
    one, all_at_once = WeightedMean(), WeightedMean()
    for mean in (one, all_at_once):
        for update, weight in zip(updates[:before], weights, strict=False):
            mean.add({name: tensor.clone() for name, tensor in update.items()}, weight)
    rest = list(zip(updates, weights, strict=True))[before:]
    for update, weight in rest:
        one.add({name: tensor.clone() for name, tensor in update.items()}, weight)
    all_at_once.add_all([({n: t.clone() for n, t in update.items()}, w) for update, w in rest])
    assert (all_at_once.total, all_at_once.count) == (one.total, one.count) == (11.0, 4)
    torch.testing.assert_close(all_at_once.result(), one.result())


def test_of_updates_all_at_once_none_is_averaged_where_one_cannot_be():
    mean = WeightedMean()
    with pytest.raises(ValueError, match="positive and finite"):
        mean.add_all([({"w": torch.ones(2)}, 1.0), ({"w": torch.ones(2)}, float("nan"))])
    assert mean.count == 0
