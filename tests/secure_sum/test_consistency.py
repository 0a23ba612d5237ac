"""Signatures of what a sum is of: the same for the same, another for all else."""

import pytest

from fl.secure_sum.consistency import confirmation, roster_digest, sum_digest

ROSTER = {"a": {"own": "1"}, "b": {"own": "2"}}
TOLD = sum_digest(roster_digest("s", 2, ROSTER), ["a", "b", "c"], ["a", "b"])


def test_the_order_in_which_sites_are_named_says_nothing():
    roster = roster_digest("s", 2, dict(reversed(ROSTER.items())))
    assert sum_digest(roster, ["c", "b", "a"], ["b", "a"]) == TOLD


@pytest.mark.parametrize(
    ("roster", "group", "survivors"),
    [
        (("t", 2, ROSTER), "abc", "ab"),
        (("s", 3, ROSTER), "abc", "ab"),
        (("s", 2, {**ROSTER, "b": {"own": "3"}}), "abc", "ab"),
        (("s", 2, {"a": {"own": "1"}, "c": {"own": "2"}}), "abc", "ab"),
        (("s", 2, ROSTER), "abd", "ab"),
        (("s", 2, ROSTER), "ab", "abc"),
        (("s", 2, ROSTER), "abc", "ac"),
        (("s", 2, ROSTER), ["a", "bc"], "ab"),
    ],
)
def test_what_differs_in_anything_is_another_sum(roster, group, survivors):
    assert sum_digest(roster_digest(*roster), group, survivors) != TOLD


def test_each_site_confirms_for_itself():
    assert confirmation("a", TOLD) != confirmation("b", TOLD)
