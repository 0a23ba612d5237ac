"""What a sum's sites must all have been told alike before its masks come off.

A server that tells each site of other survivors, or of other keys, could take the masks off one
update. So the survivors sign what they were told, each once, and a site gives its shares only where
`threshold` signatures are of just what it was told itself. As that is more than half of the roster,
there are not enough for two stories.

Bonawitz et al. 2017, figure 4, round 3 ("consistency check").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from fl.secure_sum.keys import LABEL


def roster_digest(session: str, threshold: int, roster: Mapping[str, Mapping[str, str]]) -> str:
    """What a sum's keys are shared by, in one word: of any other sum or key it is another.

    Args:
        session: The sum's name.
        threshold: Shares that give a key back.
        roster: The parts of each site's bundle, by the sites' names.

    Returns:
        A digest, in hex.
    """
    return _digest(session, threshold, roster)


def sum_digest(roster: str, group: Iterable[str], survivors: Iterable[str]) -> str:
    """What is unmasked, in one word: of any other sum it is another.

    Args:
        roster: What `roster_digest` gives.
        group: Whose masks are in the sum, in whatever order.
        survivors: Whose updates are, likewise.

    Returns:
        A digest, in hex.
    """
    return _digest(roster, sorted(group), sorted(survivors))


def confirmation(name: str, told: str) -> bytes:
    """The text by whose signature a site confirms what it was told.

    Args:
        name: The site's. Two may have one identity, and yet none signs for the other.
        told: What `sum_digest` gives.
    """
    return LABEL + "/".join(("survivors", name, told)).encode()


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
