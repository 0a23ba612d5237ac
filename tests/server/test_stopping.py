"""Early stopping against traces worked by hand."""

import math

import pytest

from fl.server.stopping import stalled


@pytest.mark.parametrize(
    ("losses", "over"),
    [
        ([], False),
        ([1.0, 0.9, 0.8], False),
        ([1.0, 0.9, 0.95], False),
        ([1.0, 0.9, 0.95, 0.91], True),
        ([1.0, 0.9, 0.95, 0.91, 0.5], False),  # found better before anybody asked
        ([1.0, 1.0, 1.0], True),  # equal is not better
        ([math.nan, math.nan], True),
        ([1.0, math.nan, 0.9], False),
        ([None, None], True),
    ],
)
def test_two_rounds_without_a_better_loss_are_enough(losses, over):
    assert stalled(losses, patience=2, min_delta=0.0) is over


def test_a_gain_below_min_delta_is_none():
    losses = [1.0, 0.99, 0.98]
    assert stalled(losses, patience=2, min_delta=0.05)
    assert not stalled(losses, patience=2, min_delta=0.005)


def test_small_gains_add_up():
    """Each is measured against the best, not against the round before."""
    assert not stalled([1.0, 0.97, 0.94], patience=2, min_delta=0.05)
