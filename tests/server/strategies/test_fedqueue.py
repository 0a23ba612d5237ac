import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.server.strategies import (
    QueueEstimate,
    constant,
    fedqueue_admits,
    fedqueue_budget,
    fedqueue_learning_rate,
    fedqueue_weight,
    observe_queue,
)


def test_queue_delays_by_hand():
    estimate = observe_queue(None, 40.0)
    assert estimate == QueueEstimate(40.0, 20.0)
    estimate = observe_queue(estimate, 100.0)
    assert estimate == QueueEstimate(70.0, 40.0)
    estimate = observe_queue(estimate, 50.0, smoothing=0.25)
    assert estimate == QueueEstimate(65.0, 35.0)
    # As published: from a guess.
    assert observe_queue(QueueEstimate(2.0, 0.0), 10.0).mean == 6.0


@given(st.floats(0, 1e5), st.floats(0.05, 1))
def test_a_steady_queue_is_learned(delay, smoothing):
    estimate = QueueEstimate(2.0, 0.0)
    for _ in range(600):
        estimate = observe_queue(estimate, delay, smoothing=smoothing)
    assert estimate.mean == pytest.approx(delay, abs=1e-3)
    assert estimate.spread == pytest.approx(0, abs=1e-3)


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=30))
def test_estimates_stay_among_what_was_seen(delays):
    estimate = None
    for delay in delays:
        estimate = observe_queue(estimate, delay)
    assert min(delays) - 1e-6 <= estimate.mean <= max(delays) + 1e-6
    assert 0 <= estimate.spread <= max(delays) + 1e-6


def test_budget_by_hand():
    estimate = QueueEstimate(mean=600.0, spread=300.0)
    assert fedqueue_budget(estimate, 2.0, cutoff=3600) == 1470  # (3600 - 600 - 60) / 2
    assert fedqueue_budget(estimate, 2.0, cutoff=3600, margin=0) == 1500
    assert fedqueue_budget(estimate, 2.0, cutoff=3600, max_steps=500) == 500
    assert fedqueue_budget(estimate, 2.0, cutoff=600) == 20


@given(st.floats(0, 5e3), st.floats(0.01, 10), st.floats(100, 1e4))
def test_a_budget_lands_before_the_cutoff_if_the_queue_is_as_predicted(delay, speed, cutoff):
    steps = fedqueue_budget(QueueEstimate(delay, 0.0), speed, cutoff=cutoff, min_steps=1)
    if steps > 1:
        assert delay + steps * speed <= cutoff - 60 + 1e-6


def test_admission_by_hand():
    estimate = QueueEstimate(mean=600.0, spread=300.0)
    assert fedqueue_admits(1320.0, estimate, cutoff=3600)
    assert not fedqueue_admits(1320.1, estimate, cutoff=3600)
    assert fedqueue_admits(600.0, estimate, cutoff=3600, tolerance=0)


def test_fedqueue_weights_and_rates_by_hand():
    assert fedqueue_weight(100, 0) == 100
    assert fedqueue_weight(100, 2) == 50
    assert fedqueue_weight(100, 2, discount=constant) == 100
    assert fedqueue_learning_rate(0.1, 200, 50) == pytest.approx(0.025)


def test_fedqueue_refuses_what_has_no_meaning():
    estimate = QueueEstimate(1.0, 0.0)
    for call in (
        lambda: observe_queue(None, -1.0),
        lambda: observe_queue(None, float("nan")),
        lambda: observe_queue(None, 1.0, smoothing=0),
        lambda: fedqueue_budget(estimate, 1.0, cutoff=0),
        lambda: fedqueue_budget(estimate, 1.0, cutoff=1, margin=-1),
        lambda: fedqueue_budget(estimate, 1.0, cutoff=1, max_steps=1),
        lambda: fedqueue_admits(1.0, estimate, cutoff=1, tolerance=-1),
        lambda: fedqueue_learning_rate(0.1, 1, 2),
        lambda: fedqueue_weight(0, 0),
    ):
        with pytest.raises(ValueError, match=r"at least|positive|at most|below"):
            call()
