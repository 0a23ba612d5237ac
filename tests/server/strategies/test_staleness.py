import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.server.strategies import (
    add_delta,
    constant,
    exponential,
    fedasync_rate,
    fedasync_weight,
    fedbuff_size,
    fedbuff_weight,
    harmonic,
    hinge,
    mix,
    polynomial,
)
from tests.server.strategies.models import difference, model, running, w


def test_staleness_functions_by_hand():
    assert [constant(s) for s in (0, 9)] == [1, 1]
    assert [polynomial(s) for s in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert polynomial(1, a=2) == 0.25
    assert [hinge(s) for s in (0, 4, 5, 6)] == pytest.approx([1, 1, 1 / 11, 1 / 21])
    assert [harmonic(s) for s in (0, 2)] == [1, 0.5]
    assert [exponential(s) for s in (0, 2)] == pytest.approx([1, math.exp(-1)])


@pytest.mark.parametrize("discount", [constant, polynomial, hinge, harmonic, exponential])
@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_staler_never_weighs_more(discount, one, other):
    fresh, stale = sorted((one, other))
    assert 0 < discount(stale) <= discount(fresh) <= discount(0) == 1
    with pytest.raises(ValueError, match="at least 0"):
        discount(-1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(0.01, 0.99))
def test_fedasync_by_a_running_mean_is_mixing_one_by_one(staleness, alpha):
    rates = [fedasync_rate(s, alpha=alpha) for s in staleness]
    one_by_one, total, updates, weights = model(0), 0.0, [], []
    for seed, rate in enumerate(rates, start=1):
        one_by_one = mix(one_by_one, model(seed), rate=rate)
        updates.append(model(seed))
        weights.append(fedasync_weight(rate, total))
        total += weights[-1]
    moved = mix(model(0), running(updates, weights), rate=total / (1 + total))
    np.testing.assert_allclose(w(moved), w(one_by_one), rtol=1e-9, atol=1e-9)
    for rate in (0, 1):
        with pytest.raises(ValueError, match="rate"):
            fedasync_weight(rate, 0.0)


def test_fedasync_by_hand():
    assert fedasync_rate(3) == pytest.approx(0.3)
    assert fedasync_rate(5, alpha=0.9, discount=hinge) == pytest.approx(0.9 / 11)
    start, update = model(0), model(1)
    moved = mix(start, update, rate=fedasync_rate(3))
    np.testing.assert_allclose(w(moved), 0.7 * w(start) + 0.3 * w(update))
    for alpha in (0, 1):
        with pytest.raises(ValueError, match="alpha"):
            fedasync_rate(0, alpha=alpha)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(0.01, 2))
def test_fedbuff_by_a_running_mean_is_the_papers(staleness, rate):
    current = model(0)
    deltas = [
        difference(model(2 * seed), model(2 * seed + 1)) for seed in range(1, len(staleness) + 1)
    ]
    weights = [fedbuff_weight(s) for s in staleness]
    size = fedbuff_size(sum(weights), len(weights), learning_rate=rate)
    moved = add_delta(current, running(deltas, weights), size=size)
    total = sum(w(delta) / math.sqrt(1 + s) for delta, s in zip(deltas, staleness, strict=True))
    np.testing.assert_allclose(w(moved), w(current) + rate * total / len(staleness), atol=1e-12)


def test_an_empty_buffer_is_no_step():
    with pytest.raises(ValueError, match="no update"):
        fedbuff_size(0.0, 0)
