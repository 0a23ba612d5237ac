import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.server.strategies import (
    ArrivalGroup,
    add_delta,
    fedcompass_assign,
    fedcompass_weight,
)
from tests.server.strategies.models import difference, model, running, w


def test_the_first_client_opens_a_group_of_most_steps():
    assignment = fedcompass_assign(10.0, 2.0, {})
    assert (assignment.key, assignment.steps) == (None, 100)
    assert assignment.group == ArrivalGroup(expected=210.0, latest=310.0, fastest=2.0)


def test_a_client_joins_the_group_that_gives_it_most_steps():
    groups = {
        3: ArrivalGroup(expected=130.0, latest=150.0, fastest=1.0),
        4: ArrivalGroup(expected=170.0, latest=200.0, fastest=1.0),
        5: ArrivalGroup(expected=900.0, latest=990.0, fastest=1.0),
    }
    assignment = fedcompass_assign(100.0, 0.9, groups)
    assert (assignment.key, assignment.steps) == (4, 77)
    assert assignment.group == ArrivalGroup(expected=170.0, latest=200.0, fastest=0.9)


def test_a_client_that_fits_no_group_aims_at_the_next_arrival_of_one():
    # 60 s are 120 of its steps: too many to join; the group's next arrival is at 90 + 100 = 190.
    groups = {0: ArrivalGroup(expected=60.0, latest=90.0, fastest=1.0)}
    assert fedcompass_assign(0.0, 0.5, groups).steps == 100
    # 6 of its steps: too few to join; (190 - 0) / 10 = 19 meets the next arrival, raised to Qmin.
    assert fedcompass_assign(0.0, 10.0, groups).steps == 20
    # 12 steps; (190 - 0) / 5 = 38.
    slow = fedcompass_assign(0.0, 5.0, groups)
    assert (slow.key, slow.steps) == (None, 38)
    assert slow.group == ArrivalGroup(expected=190.0, latest=285.0, fastest=5.0)
    # A group that is past its latest arrival is nothing to aim at.
    assert fedcompass_assign(91.0, 5.0, groups).steps == 100


spans = st.floats(0.1, 1e3)
some_groups = st.dictionaries(
    st.integers(0, 9),
    st.builds(lambda at, more, fast: ArrivalGroup(at, at + more, fast), spans, spans, spans),
    max_size=4,
)


@given(spans, spans, some_groups, st.integers(1, 50), st.integers(0, 100))
def test_assignments_are_within_bounds_and_on_time(now, speed, groups, fewest, more):
    assignment = fedcompass_assign(
        now, speed, groups, min_steps=fewest, max_steps=fewest + more, latest_time_factor=1.2
    )
    assert fewest <= assignment.steps <= fewest + more
    arrival = now + assignment.steps * speed
    assert arrival <= assignment.group.expected * (1 + 1e-9)
    if assignment.key is not None:
        assert arrival > assignment.group.expected - speed - 1e-6
        assert assignment.group.latest == groups[assignment.key].latest
    assert assignment.group.fastest <= speed


def test_clients_of_different_speed_arrive_together():
    groups, arrivals = {}, []
    for speed in (1.1, 2.0, 1.7, 1.3):
        assignment = fedcompass_assign(0.0, speed, groups, min_steps=20, max_steps=200)
        groups[0] = assignment.group
        assert assignment.key == (0 if arrivals else None)
        arrivals.append(assignment.steps * speed)
    assert max(arrivals) - min(arrivals) < 2.0  # within a step of the slowest
    assert groups[0].fastest == 1.1


def test_fedcompass_by_a_running_mean_is_the_papers():
    current, shares, staleness = model(0), [0.5, 0.2, 0.3], [0, 3, 1]
    deltas = [difference(model(seed), model(0)) for seed in (1, 2, 3)]
    weights = [fedcompass_weight(p, s) for p, s in zip(shares, staleness, strict=True)]
    moved = add_delta(current, running(deltas, weights), size=sum(weights))
    expected = w(current) + 0.9 * (
        0.5 * w(deltas[0]) + 0.2 / 2 * w(deltas[1]) + 0.3 / math.sqrt(2) * w(deltas[2])
    )
    np.testing.assert_allclose(w(moved), expected)


@pytest.mark.parametrize(
    "wrong", [{"min_steps": 0}, {"max_steps": 10}, {"latest_time_factor": 0.9}]
)
def test_fedcompass_refuses_bounds_without_meaning(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fedcompass_assign(0.0, 1.0, {}, **wrong)
    for share, alpha in ((0, 0.9), (1.1, 0.9), (1, 2)):
        with pytest.raises(ValueError, match="share"):
            fedcompass_weight(share, 0, alpha=alpha)
