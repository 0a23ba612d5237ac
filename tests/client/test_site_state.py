import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fl.client import site_state
from fl.client.site_state import SiteStateError


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "named"))
    assert site_state.folder() == tmp_path / "named"
    monkeypatch.delenv("FL_SITE_STATE")
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path / "site" / "site_code"))
    assert site_state.folder() == tmp_path / "site" / "state"
    monkeypatch.delenv("FL_SITE_CODE")
    assert site_state.folder() == Path("state")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", ".hidden", "a\n", "a\0"])
def test_a_name_leads_nowhere_else(name):
    with pytest.raises(SiteStateError, match="is no name for a file"):
        site_state.path("run", name)


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_disk_leaves_the_file_that_was_there(monkeypatch, tmp_path, durable):
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path))
    file = site_state.path("run", "1")
    site_state.write(file, b"first", durable=durable)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdopen", full)
        with pytest.raises(SiteStateError, match=r"cannot be written \(No space left on device\)"):
            site_state.write(file, b"second", durable=durable)
    assert [left.read_bytes() for left in file.parent.iterdir()] == [b"first"]
    site_state.write(file, b"second", durable=durable)
    assert file.read_bytes() == b"second"


def test_what_is_written_once_stays_whoever_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    file = site_state.path("sums", "a")
    with ThreadPoolExecutor(8) as writers:
        said = list(writers.map(lambda n: site_state.write_once(file, b"%d" % n * 999), range(40)))
    assert set(said) == {file.read_bytes()} and len(said[0]) in (999, 1998)
    assert [entry.name for entry in file.parent.iterdir()] == ["a"]


def test_what_cannot_be_written_once_is_not_written(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path))
    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(SiteStateError, match="a: cannot be written \\(no links here"):
        site_state.write_once(site_state.path("a"), b"x")
    assert list(tmp_path.iterdir()) == []
