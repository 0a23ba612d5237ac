"""How long a store that does not answer is asked."""

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
