"""What a benchmark says of its claim."""

import math

import pytest

from benchmarks import verdict


@pytest.mark.parametrize(
    ("value", "bounds", "said"),
    [
        (1.1, {"at_most": 1.1}, "claim met: it: 1.100, to be at most 1.1\n"),
        (1.101, {"at_most": 1.1}, "claim missed: it: 1.101, to be at most 1.1\n"),
        (0.94, {"at_least": 0.95}, "claim missed: it: 0.940, to be at least 0.95\n"),
        (
            1,
            {"at_least": 0, "at_most": 2},
            "claim met: it: 1.000, to be at least 0 and at most 2\n",
        ),
        (math.nan, {"at_most": 1}, "claim missed: it: nan, to be at most 1\n"),
        (math.inf, {"at_most": 1}, "claim missed: it: inf, to be at most 1\n"),
        (1.00004, {"at_most": 1}, "claim missed: it: 1.00004, to be at most 1\n"),
        (0.9996, {"at_least": 1}, "claim missed: it: 0.9996, to be at least 1\n"),
    ],
)
def test_a_claim_is_met_within_its_bounds(capsys, value, bounds, said):
    verdict("it", value, **bounds)
    assert capsys.readouterr().out == said
