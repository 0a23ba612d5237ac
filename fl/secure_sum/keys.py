"""A site's keys for one sum, and the shares of them that it leaves with its peers.

They are new for every sum: what a server is told to take one site's mask off one sum tells it
nothing of another. Key agreement is X25519 with HKDF-SHA256, shares travel under ChaCha20-Poly1305,
public keys are signed by Ed25519 (RFC 7748, 5869, 8439, 8032).
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from typing import Annotated

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field

from fl.config import Section
from fl.errors import FederationError
from fl.secure_sum.shamir import PRIME

KEY_BYTES = 32
SHARE_BYTES = 33
"""Of a number below `PRIME`."""
SEALED_BYTES = 2 * SHARE_BYTES + 16
"""Of two shares and what authenticates them."""
LABEL = b"fl secure sum 1/"

Key = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]
SIGNATURE_DIGITS = 128


class SecureSumError(FederationError):
    """Keys or shares of a sum are not what they should be."""


@dataclass(frozen=True)
class Private:
    """The private halves of a site's keys for one sum.

    Attributes:
        channel: By which it reads what peers send it. It stays at the site.
        pairwise: By which it agrees on masks with peers; given back if the site drops out.
        own: The seed of its own mask; given back if it does not.
    """

    channel: bytes
    pairwise: bytes
    own: bytes

    @classmethod
    def draw(cls) -> Private:
        """Three times 32 bytes of the operating system's randomness."""
        return cls(*(secrets.token_bytes(KEY_BYTES) for _ in range(3)))


class Bundle(Section):
    """The public halves, in hex, as a site advertises them."""

    identity: Key
    """The site's own Ed25519 key, the same in every sum: what peers may know it by."""
    channel: Key
    pairwise: Key
    own: Key
    signature: Signature
    """By `identity`, of the sum's name, the site's and the three keys."""

    def verify(self, session: str, name: str) -> None:
        """Refuse keys that were not advertised by their identity for this sum and this name.

        Args:
            session: The sum's name.
            name: The site's.

        Raises:
            SecureSumError: The signature is not of that.
        """
        text = _signed(session, name, self.channel, self.pairwise, self.own)
        if not is_signed(self.identity, self.signature, text):
            raise SecureSumError(f"the keys of {name} are not signed by its identity")


def advertise(private: Private, identity: bytes, session: str, name: str) -> Bundle:
    """Make the public halves of a site's keys, signed.

    Args:
        private: The private ones.
        identity: The site's Ed25519 private key, 32 bytes.
        session: The sum's name.
        name: The site's; neither has a slash.

    Returns:
        The bundle.
    """
    keys = [public(key) for key in (private.channel, private.pairwise, private.own)]
    return Bundle(
        identity=identity_of(identity),
        channel=keys[0],
        pairwise=keys[1],
        own=keys[2],
        signature=sign(identity, _signed(session, name, *keys)),
    )


def sign(identity: bytes, text: bytes) -> str:
    """Sign a text: the same one always gives the same signature.

    Args:
        identity: The site's Ed25519 private key, 32 bytes.
        text: The text, which says what it is for.

    Returns:
        128 digits, in hex.
    """
    return Ed25519PrivateKey.from_private_bytes(identity).sign(text).hex()


def is_signed(identity: str, signature: str, text: bytes) -> bool:
    """Whether a text is signed by an identity.

    Args:
        identity: The public half, in hex.
        signature: In hex, or any text.
        text: The text.
    """
    if len(signature) != SIGNATURE_DIGITS:  # `fromhex` would pass over spaces
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity))
        key.verify(bytes.fromhex(signature), text)
    except (InvalidSignature, ValueError):
        return False
    return True


def identity_of(private: bytes) -> str:
    """The public half of an Ed25519 key, in hex."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def public(private: bytes) -> str:
    """The public half of an X25519 key, in hex."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def agreed(private: bytes, other: str, purpose: str) -> bytes:
    """The key that two sites agree on, each by its own private half and the other's public one.

    Args:
        private: 32 bytes.
        other: In hex.
        purpose: What it is for; another purpose gives another key.

    Returns:
        32 bytes, the same at both.

    Raises:
        SecureSumError: The public half is a point of small order, which would make the key known.
    """
    try:
        point = X25519PublicKey.from_public_bytes(bytes.fromhex(other))
        shared = X25519PrivateKey.from_private_bytes(private).exchange(point)
    except ValueError as error:
        raise SecureSumError("a site's key is no proper key") from error
    return derived(shared, purpose)


def derived(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=LABEL + purpose.encode()).derive(secret)


def seal_shares(
    private: Private, to: Bundle, way: tuple[str, str, str], shares: tuple[int, int]
) -> str:
    """Seal the shares of a site's two secrets for one peer.

    Args:
        private: The site's keys.
        to: The peer's.
        way: What the sum is known by, the site's name and the peer's.
        shares: Of `pairwise` and of `own`.

    Returns:
        Text, for the server to pass on.

    Raises:
        SecureSumError: The peer's key is no proper key.
    """
    text = b"".join(share.to_bytes(SHARE_BYTES, "big") for share in shares)
    # The key is of this one message, so its nonce may be fixed.
    return base64.b64encode(_channel(private, to, way).encrypt(bytes(12), text, None)).decode()


def open_shares(
    private: Private, sender: Bundle, way: tuple[str, str, str], sealed: str
) -> tuple[int, int]:
    """Open what `seal_shares` made.

    Args:
        private: The receiving peer's keys.
        sender: The site's.
        way: As for `seal_shares`.
        sealed: What the server passed on: anything.

    Returns:
        The shares of `pairwise` and of `own`.

    Raises:
        SecureSumError: It is not that.
    """
    try:
        text = _channel(private, sender, way).decrypt(
            bytes(12), base64.b64decode(sealed, validate=True), None
        )
    except (InvalidTag, binascii.Error, ValueError) as error:
        raise SecureSumError(f"the shares of {way[1]} do not open") from error
    first, second = text[:SHARE_BYTES], text[SHARE_BYTES:]
    shares = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    if len(second) != SHARE_BYTES or max(shares) >= PRIME:
        raise SecureSumError(f"the shares of {way[1]} are none")
    return shares


def _channel(private: Private, other: Bundle, way: tuple[str, str, str]) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(agreed(private.channel, other.channel, "/".join(("shares", *way))))


def _signed(session: str, name: str, *keys: str) -> bytes:
    return LABEL + "/".join(("keys", session, name, *keys)).encode()
