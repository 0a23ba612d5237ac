import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.tensors import digest
from fl.transport.base import LARGEST_BYTES, Ref, TransportError, verified


def ref(data=b"model"):
    return Ref("inline", {"k": "v"}, len(data), digest(data))


def test_a_reference_survives_json():
    assert Ref.from_json(json.loads(json.dumps(ref().to_json()))) == ref()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {**ref().to_json(), "size": -1},
        {**ref().to_json(), "size": "5"},
        {**ref().to_json(), "key": {"k": 5}},
        {**ref().to_json(), "key": {"k": "\x1b[2J"}},
        {**ref().to_json(), "transport": "two\nlines"},
        {**ref().to_json(), "digest": None},
    ],
)
def test_what_is_no_reference_is_refused(value):
    with pytest.raises(TransportError, match="not a reference"):
        Ref.from_json(value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(list(ref().to_json())) | st.text(), inner, max_size=5)
    ),
    max_leaves=9,
)
NEARLY = st.fixed_dictionaries(dict.fromkeys(ref().to_json(), ANYTHING))


@settings(max_examples=200, deadline=None)
@given(ANYTHING | NEARLY | ANYTHING.map(lambda key: {**ref().to_json(), "key": key}))
def test_anything_is_a_reference_or_refused(value):
    try:
        found = Ref.from_json(value)
    except TransportError:
        return
    assert 0 <= found.size <= LARGEST_BYTES
    assert all(text.isprintable() for text in (found.transport, *found.key.values()))


def test_bytes_are_checked_against_their_reference():
    assert verified(ref(), b"model") == b"model"
    with pytest.raises(TransportError, match="instead of 5"):
        verified(ref(), b"mode")
    with pytest.raises(TransportError, match="digest differs"):
        verified(ref(), b"modeL")
