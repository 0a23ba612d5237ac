import base64
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fl import sealing
from fl.sealing import SealError, ServerKeys, open_model, seal_update

NAME = "run/a/1"
SIZES = [0, 1, 16, 63, 64, 65, 128, 300]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(sealing, "PIECE_BYTES", 64)


def sealed(data, keys, name=NAME):
    return b"".join(seal_update([data], keys.for_sites()["update_key"], name))


@pytest.mark.parametrize("size", SIZES)
def test_opens_as_what_was_sealed_however_it_was_cut(size):
    keys, data = ServerKeys(ServerKeys.draw()), bytes(range(256))[:size] + bytes(max(0, size - 256))
    assert bytes(keys.open_update(sealed(data, keys), NAME)) == data
    model = b"".join(keys.seal_model([data[:7], b"", data[7:]]))
    assert bytes(open_model(model, keys.for_sites()["model_key"])) == data


def test_twice_the_same_bytes_have_nothing_in_common_and_show_nothing():
    keys, data = ServerKeys(ServerKeys.draw()), b"patient " * 40
    first, second = sealed(data, keys), sealed(data, keys)
    assert b"patient" not in first
    same = sum(a == b for a, b in zip(first[40:], second[40:], strict=True))
    assert same < 20  # of 400, each alike by chance in one of 256


@pytest.mark.parametrize("name", ["run/b/1", "run/a/2", "other/a/1"])
def test_opens_as_no_other_training(name):
    keys = ServerKeys(ServerKeys.draw())
    with pytest.raises(SealError, match="is another run's, site's or training's"):
        keys.open_update(sealed(b"update", keys), name)


def test_opens_for_no_other_server():
    keys = ServerKeys(ServerKeys.draw())
    with pytest.raises(SealError, match="was changed"):
        ServerKeys(ServerKeys.draw()).open_update(sealed(b"update", keys), NAME)


STEP = 64 + 16
HEAD = sealing.HEAD_BYTES


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[: HEAD + 2 * STEP],
        lambda data: data[: HEAD + STEP] + data[HEAD + 2 * STEP :],
        lambda data: data[:HEAD] + data[HEAD + STEP : HEAD + 2 * STEP] + data[HEAD : HEAD + STEP],
        lambda data: data + bytes(20),
        lambda data: data[:8] + bytes(32) + data[HEAD:],
        lambda data: data[HEAD:],
        lambda data: b"",
    ],
    ids=["last byte", "cut at a piece", "left out", "moved", "added", "no key", "no head", "empty"],
)
def test_what_was_changed_does_not_open(change):
    keys = ServerKeys(ServerKeys.draw())
    whole = sealed(bytes(200), keys)
    with pytest.raises(SealError):
        keys.open_update(change(whole), NAME)


@given(place=st.integers(0, 300), bit=st.integers(0, 7))
def test_no_bit_can_be_turned(place, bit):
    keys = ServerKeys(bytes(range(64)))
    changed = bytearray(sealed(bytes(200), keys))
    changed[place % len(changed)] ^= 1 << bit
    # X25519 leaves the highest bit of a public key aside, but the derived key does not.
    with pytest.raises(SealError):
        keys.open_update(changed, NAME)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_in_one_line(data):
    keys = ServerKeys(bytes(range(64)))
    for found in (data, sealing.MAGIC + data):
        with pytest.raises(SealError, match=re.compile(r"^[^\n]+$")):
            keys.open_update(found, NAME)


@pytest.mark.parametrize("key", ["", "x", base64.b64encode(bytes(31)).decode()])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(SealError, match="a key of the request"):
        list(seal_update([b"update"], key, NAME))


def test_a_server_key_that_makes_the_secret_known_is_refused():
    with pytest.raises(SealError, match="no proper key"):
        list(seal_update([b"update"], base64.b64encode(bytes(32)).decode(), NAME))


def test_sites_get_the_public_half():
    secret = ServerKeys.draw()
    told = ServerKeys(secret).for_sites()
    public = X25519PrivateKey.from_private_bytes(secret[:32]).public_key().public_bytes_raw()
    assert base64.b64decode(told["update_key"]) == public
    assert base64.b64decode(told["model_key"]) == secret[32:]
