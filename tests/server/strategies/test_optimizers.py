import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.server.strategies import fedadagrad, fedadam, fedavg, fedavgm, fedyogi
from fl.tensors import decode, encode
from tests.server.strategies.models import assert_same, copy, difference, model, running, w

OPTIMIZERS = [fedavg, fedavgm, fedadagrad, fedadam, fedyogi]


def reference(kind, weights, deltas):
    """Ten lines of Hsu et al. 2019 and of Algorithm 2 of Reddi et al. 2021."""
    x, m, v = weights, 0.0, 0.05**2
    for delta in deltas:
        if kind is fedavg:
            x = x + delta
        elif kind is fedavgm:
            m = 0.7 * m + delta
            x = x + 0.3 * m
        else:
            m = 0.8 * m + 0.2 * delta
            if kind is fedadagrad:
                v = v + delta**2
            elif kind is fedadam:
                v = 0.95 * v + 0.05 * delta**2
            else:
                v = v - 0.05 * delta**2 * np.sign(v - delta**2)
            x = x + 0.3 * m / (np.sqrt(v) + 0.05)
    return x


ARGUMENTS = {
    fedavg: {},
    fedavgm: {"learning_rate": 0.3, "momentum": 0.7},
    fedadagrad: {"learning_rate": 0.3, "beta1": 0.8, "tau": 0.05},
    fedadam: {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.95, "tau": 0.05},
    fedyogi: {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.95, "tau": 0.05},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.05)],
)
def test_optimizers_are_their_papers(optimizer, dtype, tolerance):
    weights, deltas = model(0, dtype), [model(seed, dtype) for seed in range(1, 7)]
    expected = reference(optimizer, w(weights), [w(delta) for delta in deltas])
    state = {}
    for delta in deltas:
        weights, state = optimizer(weights, delta, state, **ARGUMENTS[optimizer])
    np.testing.assert_allclose(w(weights), expected, rtol=tolerance, atol=tolerance)
    assert {tensor.dtype for tensor in weights.values()} == {dtype, torch.int64, torch.bool}
    assert weights["count"].item() == 6
    assert weights["flag"].item() is True


def test_the_defaults_are_the_papers_first_step():
    weights = {"w": torch.zeros(1, dtype=torch.float64)}
    delta = {"w": torch.full((1,), 0.1, dtype=torch.float64)}
    assert fedavgm(weights, delta, {})[0]["w"].item() == pytest.approx(0.1)
    assert fedadagrad(weights, delta, {})[0]["w"].item() == pytest.approx(
        0.01 * 0.1 / (math.sqrt(1e-6 + 0.01) + 1e-3)
    )
    for optimizer, v in ((fedadam, 0.99e-6 + 1e-4), (fedyogi, 1e-6 + 1e-4)):
        assert optimizer(weights, delta, {})[0]["w"].item() == pytest.approx(
            0.01 * 0.01 / (math.sqrt(v) + 1e-3)
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_do_not_change_what_they_are_given(optimizer):
    state = {}
    weights, delta = model(0), model(1)
    for _ in range(2):
        before = copy(weights), copy(delta), {role: copy(state[role]) for role in state}
        moved, after = optimizer(weights, delta, state)
        assert_same(weights, before[0])
        assert_same(delta, before[1])
        for role, tensors in before[2].items():
            assert_same(state[role], tensors)
        weights, state = moved, after


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_frozen_parameter_stays_to_the_last_bit(optimizer, dtype):
    frozen = torch.randn(1000, generator=torch.Generator().manual_seed(3)).to(dtype)
    weights, state = {"frozen": frozen, "w": torch.zeros(3, dtype=dtype)}, {}
    for seed in range(5):
        delta = {"frozen": torch.zeros_like(frozen), "w": torch.full((3,), seed + 1.0, dtype=dtype)}
        weights, state = optimizer(weights, delta, state)
    assert torch.equal(weights["frozen"], frozen)
    assert not torch.equal(weights["w"], torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equal_updates_are_a_fixed_point(optimizer):
    """Of the mean, which goes in as it is; nobody having moved is one of the step."""
    weights = model(4)
    one, _ = optimizer(weights, model(5), {})
    same, _ = optimizer(weights, running([model(5)] * 3, [0.1, 0.7, 13.0]), {})
    assert_same(same, one)
    still, _ = optimizer(weights, difference(weights, weights), {})
    assert_same(still, weights)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=5), scale=st.floats(0.01, 100))
def test_order_of_clients_and_scale_of_weights_do_not_matter(optimizer, weights, scale):
    updates = [model(seed) for seed in range(1, len(weights) + 1)]
    one, _ = optimizer(model(0), running(updates, weights), {})
    scaled = [weight * scale for weight in weights[::-1]]
    other, _ = optimizer(model(0), running(updates[::-1], scaled), {})
    torch.testing.assert_close(one["w"], other["w"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_goes_through_a_checkpoint(optimizer):
    weights, state = optimizer(model(0, torch.bfloat16), model(1, torch.bfloat16), {})
    restored = {role: decode(encode(tensors)) for role, tensors in state.items()}
    straight = optimizer(weights, model(2, torch.bfloat16), state)
    resumed = optimizer(decode(encode(weights)), model(2, torch.bfloat16), restored)
    assert_same(straight[0], resumed[0])
    for role in state:
        assert {tensor.dtype for tensor in state[role].values()} == {torch.float32}
        assert_same(straight[1][role], resumed[1][role])


def test_half_precision_takes_a_mean_of_single_precision():
    weights = {"w": torch.ones(1, dtype=torch.bfloat16)}
    # 1.003 x 2^-8 is not in bfloat16, but it is enough to round 1 up; 2^-8, a tie, is not.
    change = {"w": torch.full((1,), 1.003 * 2**-8)}
    assert fedavg(weights, change, {})[0]["w"].item() == 1 + 2**-7
    _, state = fedadam(weights, change, {})
    assert state["momentum"]["w"].item() == pytest.approx(0.1 * 1.003 * 2**-8)


@pytest.mark.parametrize(
    ("optimizer", "wrong"),
    [
        (fedavgm, {"momentum": 1.0}),
        (fedavgm, {"learning_rate": 0.0}),
        (fedadagrad, {"tau": 0.0}),
        (fedadam, {"beta1": -0.1}),
        (fedadam, {"beta2": 1.0}),
        (fedyogi, {"beta2": float("nan")}),
    ],
)
def test_hyper_parameters_out_of_range_are_named(optimizer, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        optimizer(model(0), model(1), {}, **wrong)


def test_another_models_state_is_refused():
    _, state = fedadam({"w": torch.zeros(2)}, {"w": torch.ones(2)}, {})
    with pytest.raises(ValueError, match="no second_moment of other"):
        fedadam({"other": torch.zeros(2)}, {"other": torch.ones(2)}, state)
    with pytest.raises(ValueError, match=r"of w \[3\]"):
        fedadam({"w": torch.zeros(3)}, {"w": torch.ones(3)}, state)
