"""Secrets in shares: any `threshold` of them give the secret back, fewer tell nothing of it.

Shamir 1979, "How to share a secret": a share is a value of a polynomial whose constant term is the
secret, over the integers modulo a prime.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
"""The smallest prime above 2^256: any 32 bytes are a secret."""


def split(secret: int, threshold: int, count: int) -> list[int]:
    """Share a secret.

    Args:
        secret: From 0 to below `PRIME`.
        threshold: Shares that give it back, from 1 to `count`.
        count: Shares to make, fewer than `PRIME`.

    Returns:
        The shares of the places 1 to `count`, each from 0 to below `PRIME`.

    Raises:
        ValueError: The secret or the threshold is out of range.
    """
    if not 0 <= secret < PRIME or not 1 <= threshold <= count:
        raise ValueError("a secret or a threshold is out of range")
    polynomial = [secret, *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(polynomial, place) for place in range(1, count + 1)]


def combine(shares: Mapping[int, int]) -> int:
    """Give a secret back, by Lagrange's formula at 0.

    Args:
        shares: As many as the threshold, by their places; more do no harm.

    Returns:
        The secret. Of fewer shares, or of one that is wrong, a number that says nothing.

    Raises:
        ValueError: Two places are the same modulo `PRIME`, or one is that of the secret.
    """
    places = [place % PRIME for place in shares]
    if len(set(places)) < len(places) or 0 in places:
        raise ValueError("each share needs a place of its own")
    return sum(share * _weight(place, places) for place, share in shares.items()) % PRIME


def _value(polynomial: Sequence[int], place: int) -> int:
    """Horner's scheme."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * place + coefficient) % PRIME
    return value


def _weight(place: int, places: Sequence[int]) -> int:
    """How much the share of a place counts for the value at 0."""
    above, below = 1, 1
    for other in places:
        if other != place:
            above = above * other % PRIME
            below = below * (other - place) % PRIME
    return above * pow(below, -1, PRIME) % PRIME
