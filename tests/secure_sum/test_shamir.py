import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.secure_sum.shamir import PRIME, combine, split


@st.composite
def shared(draw):
    count = draw(st.integers(1, 12))
    threshold = draw(st.integers(1, count))
    secret = draw(st.integers(0, PRIME - 1))
    places = draw(st.permutations(range(1, count + 1)))
    return secret, threshold, count, places


@settings(max_examples=50, deadline=None)
@given(shared())
def test_any_that_many_shares_give_the_secret_and_one_fewer_do_not(drawn):
    secret, threshold, count, places = drawn
    shares = dict(enumerate(split(secret, threshold, count), 1))
    chosen = {place: shares[place] for place in places[:threshold]}
    assert combine(chosen) == secret
    assert combine(shares) == secret
    if threshold > 1:
        chosen.popitem()
        assert combine(chosen) != secret  # but by a chance of 2^-256


@settings(max_examples=50, deadline=None)
@given(shared())
def test_fewer_shares_go_with_every_secret(drawn):
    """Whatever one secret's shares are, too few of them are those of any other secret too."""
    secret, threshold, count, places = drawn
    shares = dict(enumerate(split(secret, threshold, count), 1))
    few = {place: shares[place] for place in places[: threshold - 1]}
    for other in (0, 1, PRIME - 1):
        completed = few | {count + 1: share_that_gives(other, few, count + 1)}
        assert combine(completed) == other


def share_that_gives(secret, few, place):
    """The share of a place with which some others give a secret: one equation, one unknown."""
    at_zero, at_one = combine(few | {place: 0}), combine(few | {place: 1})
    return (secret - at_zero) * pow(at_one - at_zero, -1, PRIME) % PRIME


def test_the_prime_is_one():
    """Miller and Rabin's test; no number is known to pass it for so many bases and be none."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 66):
        powers = [pow(base, odd << twice, PRIME) for twice in range(twos)]
        assert powers[0] == 1 or PRIME - 1 in powers


@pytest.mark.parametrize(
    ("secret", "threshold", "count"), [(PRIME, 1, 1), (-1, 1, 1), (0, 0, 1), (0, 3, 2)]
)
def test_what_cannot_be_shared(secret, threshold, count):
    with pytest.raises(ValueError, match="out of range"):
        split(secret, threshold, count)


@pytest.mark.parametrize("places", [(1, PRIME + 1), (0, 1), (PRIME, 1)])
def test_what_cannot_be_combined(places):
    with pytest.raises(ValueError, match="a place of its own"):
        combine(dict.fromkeys(places, 1))


def test_two_sharings_of_one_secret_have_nothing_in_common():
    first, second = split(7, 3, 5), split(7, 3, 5)
    assert not set(first) & set(second)
    mixed = itertools.chain(enumerate(first[:2], 1), enumerate(second[2:], 3))
    assert combine(dict(mixed)) != 7
