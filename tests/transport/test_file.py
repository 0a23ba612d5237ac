import errno
import os
import stat
import threading
import time
from pathlib import Path
from unittest.mock import Mock

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


def test_what_a_killed_worker_left_half_written_goes_after_a_day(transport, tmp_path):
    """In /dev/shm it is memory. What is younger may be being written, what is not ours is not."""
    day_ago = time.time() - 25 * 3600
    paths = [tmp_path / "models" / name for name in (f"{32 * 'a'}.part", "b.part", 32 * "c")]
    young = tmp_path / "models" / f"{32 * 'd'}.part"
    for path in (*paths, young):
        path.write_bytes(b"half")
    for path in paths:
        os.utime(path, (day_ago, day_ago))
    FileTransport(tmp_path / "models")
    assert set((tmp_path / "models").iterdir()) == {*paths[1:], young}


def test_a_folder_that_cannot_be_listed_is_used_all_the_same(tmp_path, monkeypatch):
    """A parallel file system may fail there while its files can be read."""
    ref = FileTransport(tmp_path).put(b"model")
    monkeypatch.setattr(Path, "glob", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    assert FileTransport(tmp_path).get(ref) == b"model"


def test_no_other_user_reads_a_model(tmp_path):
    """In a folder that was there before, which all may look into."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    before = os.umask(0o022)  # whoever runs the tests may have one that leaves the group nothing
    try:
        FileTransport(tmp_path / "shared").put(b"model")
    finally:
        os.umask(before)
    (path,) = (tmp_path / "shared").iterdir()
    assert path.stat().st_mode & 0o007 == 0
    assert path.stat().st_mode & 0o440 == 0o440


def test_a_folders_group_reads_what_is_in_it(tmp_path):
    """Also where the folder gives its group to no new file by itself."""
    others = [os.getegid() + 1] if os.geteuid() == 0 else {*os.getgroups()} - {os.getegid()}
    if not others:
        pytest.skip("this user is in one group alone")
    group = min(others)
    (tmp_path / "shared").mkdir()
    os.chown(tmp_path / "shared", -1, group)
    (tmp_path / "shared").chmod(0o770)
    FileTransport(tmp_path / "shared").put(b"model")
    (path,) = (tmp_path / "shared").iterdir()
    assert path.stat().st_gid == group


@pytest.fixture(params=[0o022, 0o077], ids=["umask 022", "umask 077"])
def umask(request):
    """What whoever writes takes from others in new files."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(
    ("folder", "file"), [(0o2750, 0o640), (0o770, 0o640), (0o710, 0o600), (0o700, 0o600)]
)
def test_a_group_reads_what_is_in_a_folder_that_it_reads(tmp_path, folder, file):
    """Many a user's umask is 077, who yet shares a folder: its mode says so."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(folder)
    FileTransport(tmp_path / "shared").put(b"model")
    (path,) = (tmp_path / "shared").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == file


@pytest.mark.usefixtures("umask")
def test_a_group_that_one_is_not_in_keeps_no_model_from_being_written(tmp_path, monkeypatch):
    """And none of the user's other groups reads it in that one's place."""
    monkeypatch.setattr(os, "fchown", Mock(side_effect=PermissionError(errno.EPERM, "no")))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)
    transport = FileTransport(tmp_path / "shared")
    assert transport.get(transport.put(b"model")) == b"model"
    (path,) = (tmp_path / "shared").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


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


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_folder_that_every_user_can_write_to_is_refused(tmp_path, mode):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    with pytest.raises(TransportError, match="shared: every user can write there: chmod o-w it"):
        FileTransport(tmp_path / "shared")
    (tmp_path / "shared").chmod(0o2770)
    FileTransport(tmp_path / "shared").put(b"of a group")


@pytest.mark.parametrize(
    "kind",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir],
    ids=["pipe", "link", "folder"],
)
def test_what_is_no_file_is_not_read(transport, tmp_path, kind):
    """A pipe that nobody writes to would be waited for for ever."""
    ref = transport.put(b"model")
    (path,) = (tmp_path / "models").iterdir()
    path.unlink()
    kind(path)
    failed = []

    def read():
        try:
            transport.get(ref)
        except TransportError as error:
            failed.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(30)
    assert failed
