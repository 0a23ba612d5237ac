import os

import pytest

from fl.tensors import digest
from fl.transport.base import Ref, TransportError
from fl.transport.inline import LIMIT_BYTES, InlineTransport


def test_round_trip():
    transport, data = InlineTransport(), os.urandom(1000)
    ref = transport.put(data)
    assert transport.get(ref) == data
    transport.evict(ref)
    transport.close()


def test_the_largest_model_fits_the_services_ten_megabytes():
    ref = InlineTransport().put(bytes(LIMIT_BYTES))
    assert len(ref.key["base64"]) < 9.9e6


def test_a_larger_model_is_refused_before_it_is_sent():
    with pytest.raises(TransportError, match="enable_proxystore"):
        InlineTransport().put(bytes(LIMIT_BYTES + 1))


@pytest.mark.parametrize(
    "ref",
    [
        Ref("proxystore", {"object": "x", "endpoint_id": "y"}, 1, ""),
        Ref("inline", {"base64": "!"}, 1, ""),
        Ref("inline", {"base64": "é"}, 1, ""),
        Ref("inline", {"base64": "AAAA"}, 3, digest(b"abc")),
    ],
)
def test_foreign_and_damaged_references_are_refused(ref):
    with pytest.raises(TransportError):
        InlineTransport().get(ref)
