"""How objects are cut into parts, and how long a store that does not answer is asked."""

import math

import pytest
import requests

from fl.transport import parts
from fl.transport.base import Ref, UnreachableError


@pytest.mark.parametrize(("seconds", "tries", "silence"), [(math.inf, 4, 60.0), (1.5, 1, 1.5)])
def test_no_part_is_waited_for_after_its_caller_has_gone(monkeypatch, seconds, tries, silence):
    monkeypatch.setattr(parts.time, "sleep", lambda _: None)
    monkeypatch.setattr(parts, "PAUSE_SECONDS", 2.0)
    asked = []

    def refuse(_url, timeout, **_):
        asked.append(timeout[1])
        raise requests.ConnectionError("refused")

    store = parts.Parts("the store", {})
    monkeypatch.setattr(store._session, "get", refuse)
    with pytest.raises(UnreachableError, match="refused"):
        store.read(Ref("s3", {}, 5, ""), [("http://store/object", 0)], seconds)
    assert len(asked) == tries
    assert asked[0] == pytest.approx(silence, abs=0.2)
    store.close()


def test_a_part_is_sent_from_where_it_lies():
    """Of pieces that parts cut through: all bytes, in order, once a try, and no copy of them."""
    pieces = [bytearray(b"abc"), bytearray(b""), bytearray(b"defgh"), bytearray(b"ij")]
    cut = list(parts.split(pieces, 4))
    assert [b"".join(part) for part in cut] == [b"abcd", b"efgh", b"ij"]
    assert [len(part) for part in cut] == [4, 4, 2]
    assert b"".join(cut[0]) == b"abcd", "a second try"
    pieces[2][1] = ord("E")
    assert b"".join(cut[1]) == b"Efgh"
    assert [len(part) for part in parts.split([b""], 4)] == [0]
