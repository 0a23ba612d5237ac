"""Models and updates as only their two ends can read them, whatever carries or keeps them.

An update is sealed for the server's X25519 key of the run; a model, for all sites, by a key that
goes out with the requests. Either way a fresh key is derived for each object by HKDF-SHA256 and
its bytes are encrypted in pieces by ChaCha20-Poly1305 (RFC 5869, RFC 8439). A piece's nonce is its
number and whether it is the last, so that none can be cut off, left out or moved: the STREAM
construction of Hoang et al. 2015, as in https://age-encryption.org/v1.

What an object was sealed as is part of its key: it opens as that alone.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Iterator

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl.errors import FederationError
from fl.tensors import Data

MAGIC = b"flseal1\n"
"""What every sealed object begins with, before its 32 bytes of salt or of a public key."""
KEY_BYTES = 32
TAG_BYTES = 16
PIECE_BYTES = 1 << 20
HEAD_BYTES = len(MAGIC) + KEY_BYTES


class SealError(FederationError):
    """What arrived is not sealed, was changed, or was sealed as something else."""


class ServerKeys:
    """What the server of a run opens updates by, and seals models by.

    Args:
        secret: 64 bytes, kept as the run's other secrets are.
    """

    def __init__(self, secret: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(secret[:KEY_BYTES])
        self._model_key = secret[KEY_BYTES:]

    @staticmethod
    def draw() -> bytes:
        """A new run's secret, 64 bytes of the operating system's randomness."""
        return secrets.token_bytes(2 * KEY_BYTES)

    def for_sites(self) -> dict[str, str]:
        """What a request says: `update_key`, public; `model_key`, for those who may read models."""
        public = self._private.public_key().public_bytes_raw()
        return {"update_key": _text(public), "model_key": _text(self._model_key)}

    def seal_model(self, pieces: Iterable[Data]) -> Iterator[bytes]:
        """Seal a model for all sites.

        Args:
            pieces: The encoded model.

        Yields:
            The sealed object, in pieces.
        """
        salt = secrets.token_bytes(KEY_BYTES)
        yield MAGIC + salt
        yield from _encrypted(_derived(self._model_key, salt, "model"), pieces)

    def open_update(self, sealed: Data, training: str) -> Data:
        """Open an update.

        Args:
            sealed: What arrived: anything.
            training: What it must have been sealed as; see `training_name`.

        Returns:
            The encoded update; no more memory is taken than `sealed` has.

        Raises:
            SealError: It does not open.
        """
        public, body = _head(sealed)
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # a point of small order, which would make the key known
            raise SealError("it is sealed by no proper key") from error
        return _decrypted(_derived(shared, public + _public(self._private), training), body)


def training_name(run_id: str, client_id: str, turn: int) -> str:
    """What an update is sealed as: one training of one site in one run.

    Args:
        run_id: The run.
        client_id: The site; none of the three has a slash.
        turn: Which of its trainings.
    """
    return f"{run_id}/{client_id}/{turn}"


def seal_update(pieces: Iterable[Data], update_key: str, training: str) -> Iterator[bytes]:
    """Seal an update, for the server alone.

    Args:
        pieces: The encoded update.
        update_key: The server's public key, as `ServerKeys.for_sites` gives it.
        training: As for `ServerKeys.open_update`.

    Yields:
        The sealed object, in pieces.

    Raises:
        SealError: The key is none.
    """
    own, server = X25519PrivateKey.generate(), _key(update_key)
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(server))
    except ValueError as error:
        raise SealError("the server's update_key is no proper key") from error
    public = _public(own)
    yield MAGIC + public
    yield from _encrypted(_derived(shared, public + server, training), pieces)


def open_model(sealed: Data, model_key: str) -> Data:
    """Open a model.

    Args:
        sealed: What arrived: anything.
        model_key: As `ServerKeys.for_sites` gives it.

    Returns:
        The encoded model.

    Raises:
        SealError: It does not open.
    """
    key = _key(model_key)
    try:
        salt, body = _head(sealed)
        return _decrypted(_derived(key, salt, "model"), body)
    except SealError as error:
        raise SealError(f"the server's model does not open: {error}") from error


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise SealError("a key of the request is not base64") from error
    if len(key) != KEY_BYTES:
        raise SealError(f"a key of the request has {len(key)} bytes instead of {KEY_BYTES}")
    return key


def _public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def _derived(key: bytes, salt: bytes, name: str) -> ChaCha20Poly1305:
    """One object's own cipher: a name or salt that differs gives another."""
    info = MAGIC + name.encode()
    return ChaCha20Poly1305(HKDF(SHA256(), KEY_BYTES, salt=salt, info=info).derive(key))


def _head(sealed: Data) -> tuple[bytes, memoryview]:
    """An object's salt or public key, and what follows."""
    view = memoryview(sealed)
    if len(view) < HEAD_BYTES + TAG_BYTES or bytes(view[: len(MAGIC)]) != MAGIC:
        raise SealError("it is not sealed")
    return bytes(view[len(MAGIC) : HEAD_BYTES]), view[HEAD_BYTES:]


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _encrypted(cipher: ChaCha20Poly1305, pieces: Iterable[Data]) -> Iterator[bytes]:
    number, waiting = 0, b""
    for piece in _cut(pieces):
        if waiting:
            yield cipher.encrypt(_nonce(number, last=False), waiting, None)
            number += 1
        waiting = piece
    yield cipher.encrypt(_nonce(number, last=True), waiting, None)


def _cut(pieces: Iterable[Data]) -> Iterator[bytes]:
    """The same bytes in pieces of one size, but for the last."""
    rest = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        for begin in range(0, len(view), PIECE_BYTES):
            rest += view[begin : begin + PIECE_BYTES]
            if len(rest) >= PIECE_BYTES:
                yield bytes(rest[:PIECE_BYTES])
                del rest[:PIECE_BYTES]
    if rest:
        yield bytes(rest)


def _decrypted(cipher: ChaCha20Poly1305, body: memoryview) -> Data:
    step = PIECE_BYTES + TAG_BYTES
    begins = range(0, len(body), step)
    if len(body) - begins[-1] < TAG_BYTES:
        raise SealError("it was cut off")
    opened, end = np.empty(len(body) - TAG_BYTES * len(begins), np.uint8).data, 0
    for number, begin in enumerate(begins):
        nonce = _nonce(number, last=begin + step >= len(body))
        try:
            piece = cipher.decrypt(nonce, body[begin : begin + step], None)
        except InvalidTag as error:
            raise SealError("it was changed, or is another run's, site's or training's") from error
        opened[end : end + len(piece)] = piece
        end += len(piece)
    return opened
