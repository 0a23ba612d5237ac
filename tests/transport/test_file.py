import os

import pytest

from fl.tensors import digest
from fl.transport.base import GoneError, Ref, TransportError, UnreachableError
from fl.transport.file import FileTransport


@pytest.fixture
def transport(tmp_path):
    return FileTransport(tmp_path / "models")


def test_put_get_evict(transport, tmp_path):
    data = os.urandom(3_000_000)
    ref = transport.put(data[:10], memoryview(data)[10:])
    assert transport.get(ref) == data
    assert FileTransport(tmp_path / "models").get(ref) == data
    assert transport.exists(ref)
    transport.evict(ref)
    transport.evict(ref)
    assert not transport.exists(ref)
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(GoneError, match="no longer there"):
        transport.get(ref)


@pytest.mark.parametrize("change", [b"modex", b"mode", b"models"])
def test_damage_is_noticed(transport, tmp_path, change):
    ref = transport.put(b"model")
    next((tmp_path / "models").iterdir()).write_bytes(change)
    with pytest.raises(TransportError, match="model arrived"):
        transport.get(ref)


def test_a_file_that_should_be_empty_and_is_not_is_noticed(transport, tmp_path):
    ref = transport.put()
    assert bytes(transport.get(ref)) == b""
    next((tmp_path / "models").iterdir()).write_bytes(b"m")
    with pytest.raises(TransportError, match="more than its 0 bytes"):
        transport.get(ref)


def test_a_reference_leads_nowhere_else(transport, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    for name in ("../secret", str(tmp_path / "secret"), ""):
        ref = Ref("file", {"object": name}, 6, digest(b"secret"))
        for operation in (transport.get, transport.exists, transport.evict):
            with pytest.raises(TransportError, match="set up for file"):
                operation(ref)
    assert (tmp_path / "secret").exists()


def test_a_folder_that_is_none_is_named(transport, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnreachableError, match="file: "):
        FileTransport(tmp_path / "file")
    (tmp_path / "models").rmdir()
    with pytest.raises(UnreachableError, match="No such file"):
        transport.put(b"model")


def test_a_folder_that_a_file_has_taken_the_place_of_is_named(transport, tmp_path):
    """What keeps a file from being written keeps what is there of it from being removed."""
    (tmp_path / "models").rmdir()
    (tmp_path / "models").touch()
    with pytest.raises(UnreachableError, match="Not a directory"):
        transport.put(b"model")
