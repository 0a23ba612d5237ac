"""What is made of a worker's versions and clock."""

import pytest

from fl.check_sites import _skew, _versions
from fl.client.check import CODE, versions


def test_versions_are_compared():
    ours = versions()
    assert _versions(ours).outcome == "ok"
    other = _versions({**ours, "torch": "1.0"})
    assert other.outcome == "warning"
    assert other.message == f"torch 1.0 (server: {ours['torch']})"
    assert _versions({**ours, "fl-hpc": "0.0.1"}).outcome == "failed"
    checkout = _versions({**ours, CODE: "00000000"})
    assert checkout.outcome == "warning"
    assert f"fl's code 00000000 (server: {ours[CODE]})" in checkout.message
    assert "dill missing" in _versions({k: v for k, v in ours.items() if k != "dill"}).message


@pytest.mark.parametrize(
    ("offset", "outcome", "said"),
    [
        (0, "ok", "agrees with the server's"),
        (14, "ok", "agrees with the server's"),
        (300, "warning", "290 s or more ahead of the server's"),
        (-300, "warning", "270 s or more behind the server's"),
    ],
)
def test_a_wrong_clock_is_told_from_a_long_queue(offset, outcome, said):
    """Sent at 1000, begun at 1030, ended at 1040, and the answer came at 1050."""
    item = _skew(1000.0, 1030.0 + offset, 1040.0 + offset, 1050.0)
    assert (item.outcome, item.message) == (outcome, said)
