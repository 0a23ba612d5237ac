import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.secure_sum.keys import (
    Private,
    SecureSumError,
    advertise,
    agreed,
    identity_of,
    is_signed,
    open_shares,
    public,
    seal_shares,
    sign,
)
from fl.secure_sum.shamir import PRIME

A, B, EVE = (Private.draw() for _ in range(3))
IDENTITY = bytes(range(32))
BUNDLE_A, BUNDLE_B = (advertise(p, IDENTITY, "s", n) for p, n in ((A, "a"), (B, "b")))
WAY = ("s", "a", "b")


@pytest.mark.parametrize(("session", "name"), [("other", "a"), ("s", "b")])
def test_keys_are_of_one_sum_and_one_site(session, name):
    BUNDLE_A.verify("s", "a")
    with pytest.raises(SecureSumError, match=f"the keys of {name} are not signed by its identity"):
        BUNDLE_A.verify(session, name)


@pytest.mark.parametrize("key", ["identity", "channel", "pairwise", "own"])
def test_no_key_of_a_bundle_can_be_exchanged(key):
    other = advertise(EVE, bytes(32), "s", "a")
    with pytest.raises(SecureSumError, match="not signed"):
        BUNDLE_A.model_copy(update={key: getattr(other, key)}).verify("s", "a")


def test_a_signature_is_of_one_text_by_one_identity():
    known, signature = identity_of(IDENTITY), sign(IDENTITY, b"text")
    assert is_signed(known, signature, b"text") and signature == sign(IDENTITY, b"text")
    assert not is_signed(known, signature, b"another")
    assert not is_signed(identity_of(bytes(32)), signature, b"text")


@given(st.one_of(st.text(max_size=140), st.binary(min_size=64, max_size=64).map(bytes.hex)))
def test_no_other_text_is_a_signature(text):
    assert not is_signed(identity_of(IDENTITY), text, b"text")


def test_two_sites_agree_and_nobody_else():
    key = agreed(A.pairwise, public(B.pairwise), "masks")
    assert key == agreed(B.pairwise, public(A.pairwise), "masks")
    assert key != agreed(A.pairwise, public(B.pairwise), "other")
    assert key != agreed(EVE.pairwise, public(B.pairwise), "masks")


def test_a_point_of_small_order_agrees_on_nothing():
    with pytest.raises(SecureSumError, match="no proper key"):
        agreed(A.pairwise, "00" * 32, "masks")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, PRIME - 1), st.integers(0, PRIME - 1))
def test_shares_open_for_their_peer(pairwise, own):
    sealed = seal_shares(A, BUNDLE_B, WAY, (pairwise, own))
    assert open_shares(B, BUNDLE_A, WAY, sealed) == (pairwise, own)


@pytest.mark.parametrize(
    ("private", "way"),
    [(EVE, WAY), (A, WAY), (B, ("t", "a", "b")), (B, ("s", "b", "a")), (B, ("s", "a", "c"))],
    ids=["another's", "the sender's", "another sum", "the other way", "another peer"],
)
def test_shares_open_as_nothing_else(private, way):
    with pytest.raises(SecureSumError, match="do not open"):
        open_shares(private, BUNDLE_A, way, seal_shares(A, BUNDLE_B, WAY, (1, 2)))


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.text(max_size=60), st.binary(max_size=200).map(lambda b: b64(b))))
def test_anything_else_is_refused(text):
    with pytest.raises(SecureSumError):
        open_shares(B, BUNDLE_A, WAY, text)


def b64(data):
    return base64.b64encode(data).decode()
