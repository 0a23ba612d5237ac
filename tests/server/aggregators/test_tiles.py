"""Steps by tiles are steps of the whole, in no more memory than that of what they are made of."""

import weakref
from functools import partial

import pytest
import torch

from fl.server.aggregators import tiles
from fl.server.aggregators.tiles import optimize_by_tile, step_by_tile
from fl.server.strategies import add_delta, fedadagrad, fedadam, fedavg, fedavgm, fedyogi, mix
from tests.server.aggregators.rounds import assert_same

OPTIMIZERS = [fedavg, fedavgm, fedadagrad, fedadam, fedyogi]
STEPS = [add_delta, partial(mix, rate=0.3)]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 8)


def model(seed, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(5, 7, generator=draw).to(dtype),  # 35 numbers: the last tile is not full
        "turned": torch.randn(3, 9, generator=draw).to(dtype).T,
        "scalar": torch.randn((), generator=draw).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "count": torch.tensor(seed),
    }


def mean(seed, dtype):
    """As wide as a mean is."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        name: tensor.to(wide) if tensor.is_floating_point() else tensor
        for name, tensor in model(seed).items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_by_tiles_goes_where_it_goes_by_the_whole(optimizer, dtype):
    whole, by_tile = (model(0, dtype), {}), (model(0, dtype), {})
    for seed in (1, 2, 3):
        whole = optimizer(whole[0], mean(seed, dtype), whole[1])
        by_tile = optimize_by_tile(by_tile[0], mean(seed, dtype), by_tile[1], optimizer)
        assert_close(whole[0], by_tile[0])
        assert whole[1].keys() == by_tile[1].keys()
        for role, tensors in whole[1].items():
            assert_close(tensors, by_tile[1][role])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_by_tiles_goes_where_it_goes_by_the_whole(step, dtype):
    moved = step_by_tile(model(0, dtype), mean(1, dtype), step)
    assert_close(step(model(0, dtype), mean(1, dtype)), moved)


def test_the_next_model_lies_in_the_means_memory():
    change = mean(1, torch.float32)
    where = {name: change[name].data_ptr() for name in ("w", "scalar")}
    moved = step_by_tile(model(0), change, add_delta)
    assert {name: moved[name].data_ptr() for name in where} == where
    assert change == {}


def test_a_model_is_not_changed():
    weights = model(0)
    optimize_by_tile(weights, mean(1, torch.float32), {}, fedadam)
    assert_same(weights, model(0))


def test_what_is_no_tensor_of_the_model_stays_in_the_mean():
    change = mean(1, torch.float32) | {"control/w": torch.ones(2)}
    step_by_tile(model(0), change, add_delta)
    assert list(change) == ["control/w"]


def test_a_tensors_last_state_goes_before_the_next_tensors_is_made():
    _, state = optimize_by_tile(model(0), mean(1, torch.float32), {}, fedadam)
    last = {name: weakref.ref(tensor) for name, tensor in state["momentum"].items()}
    alive = []

    def look(weights, delta, known):
        if "turned" in weights:
            alive.append(last["w"]() is not None)
        return fedadam(weights, delta, known)

    optimize_by_tile(model(0), mean(2, torch.float32), state, look)
    assert alive
    assert not any(alive)


@pytest.mark.parametrize("other", [{"w": torch.ones(7, 5)}, {"w": torch.ones(8)}, {}])
def test_another_models_state_is_refused(other):
    state = {"momentum": other, "second_moment": other}
    with pytest.raises(ValueError, match="the strategy's state has no"):
        optimize_by_tile(model(0), mean(1, torch.float32), state, fedadam)


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        torch.testing.assert_close(tensor, other[name], rtol=1e-6, atol=1e-7)
