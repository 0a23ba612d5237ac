"""Masks: what makes an update look like noise, and vanishes from the sum of all.

A site adds one mask of its own, and one for every peer; of two peers one adds what the other
subtracts. All arithmetic is modulo 2^64. A mask is the key stream of AES-256 in counter mode, by a
key that is used for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from fl.secure_sum.keys import agreed, derived

Words = NDArray[np.uint64]

TILE = 1 << 16
"""Numbers of a mask that are made at a time: they stay in the processor's cache."""
COUNTER = bytes(16)


def own_mask(own: bytes, session: str) -> bytes:
    """The key of a site's own mask.

    Args:
        own: The seed, 32 bytes.
        session: The sum's name.
    """
    return derived(own, f"own mask/{session}")


def pairwise_mask(private: bytes, other: str, session: str, pair: Iterable[str]) -> bytes:
    """The key of the mask that two sites share.

    Args:
        private: The private `pairwise` key of one of them, 32 bytes.
        other: The public one of the other, in hex.
        session: The sum's name.
        pair: Both sites' names.

    Raises:
        SecureSumError: The public key is no proper key.
    """
    return agreed(private, other, "/".join(("pairwise mask", session, *sorted(pair))))


def adds(name: str, peer: str) -> bool:
    """Whether a site adds the mask that it shares with a peer, which then subtracts it."""
    return name < peer


def apply(values: Words, key: bytes, *, add: bool) -> None:
    """Add a mask to numbers, or subtract it, in place.

    Args:
        values: In one dimension, contiguous.
        key: The mask's, 32 bytes.
        add: Whether to add.
    """
    stream = Cipher(AES256(key), CTR(COUNTER)).encryptor()
    zeros = bytes(8 * min(TILE, len(values)))
    room = np.empty(len(zeros) + 15, np.uint8)  # as update_into asks for
    combine: Any = np.add if add else np.subtract
    for begin in range(0, len(values), TILE):
        part = values[begin : begin + TILE]
        size = stream.update_into(memoryview(zeros)[: part.nbytes], room.data)
        # Little-endian on every machine, or two sites' masks would not cancel.
        combine(part, room[:size].view("<u8"), out=part)
