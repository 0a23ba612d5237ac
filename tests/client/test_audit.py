import hashlib
import json
import multiprocessing
import os

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.cli import main
from fl.client import audit
from fl.client.audit import FIRST, AuditError, open_log, parse, verify


def write(file, *names):
    for name in names:
        with open_log(file) as log:
            log.append({"event": name})


@pytest.fixture
def log(tmp_path):
    """A log of four lines."""
    file = tmp_path / "audit.jsonl"
    write(file, "one", "two", "three", "four")
    return file


def lines(file):
    return file.read_bytes().splitlines(keepends=True)


def test_each_line_has_the_digest_of_the_line_before(log):
    before = FIRST
    for line in lines(log):
        assert json.loads(line)["previous"] == before
        before = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    assert verify(log) == audit.Verified(4, before)
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda own: own.pop(0), "line 1: does not follow"),
        (lambda own: own.pop(1), "line 2: does not follow"),
        (lambda own: own.insert(1, own.pop(2)), "line 2: does not follow"),
        (lambda own: own.insert(1, own[1]), "line 3: does not follow"),
        (lambda own: own.__setitem__(1, own[1].replace(b"two", b"two!")), "line 3: does not"),
        (lambda own: own.__setitem__(3, own[3][:-9]), "line 4: is not whole"),
        (lambda own: own.__setitem__(2, b"\n"), "line 3: is no JSON"),
        (lambda own: own.__setitem__(2, b'{"previous": 1}\n'), "line 3: is no record"),
        (lambda own: own.__setitem__(2, b"[" * 200_000 + b"\n"), "line 3: is not whole"),
    ],
)
def test_a_line_that_was_cut_out_changed_or_moved_is_found(log, change, expected):
    changed = lines(log)
    change(changed)
    log.write_bytes(b"".join(changed))
    with pytest.raises(AuditError, match=expected):
        verify(log)


def test_lines_cut_off_at_the_end_are_seen_against_a_head_that_was_noted(log):
    head = verify(log).head
    write(log, "five")
    assert verify(log, head).lines == 5
    log.write_bytes(b"".join(lines(log)[:3]))
    assert verify(log).lines == 3  # the chain alone does not show it
    with pytest.raises(AuditError, match=f"none of its 3 lines is the noted head {head}"):
        verify(log, head)


def test_a_line_that_a_crash_has_torn_is_found_and_the_log_goes_on(log):
    log.write_bytes(log.read_bytes()[:-20])
    write(log, "five", "six")
    with pytest.raises(AuditError, match="line 4: is no JSON"):
        verify(log)
    with open_log(log) as own:
        assert [r["event"] for r in own.since(60)] == ["six", "five", "three", "two", "one"]


def test_what_happened_lately_is_read_from_the_end(tmp_path, monkeypatch):
    file = tmp_path / "audit.jsonl"
    monkeypatch.setattr(audit, "_now", lambda: "2020-01-01T00:00:00+00:00")
    write(file, "old")
    monkeypatch.undo()
    for number in range(300):  # several blocks long
        with open_log(file) as log:
            log.append({"event": number, "text": "x" * 500})
    with open_log(file) as log:
        assert [record["event"] for record in log.since(60)] == list(range(299, -1, -1))
    assert verify(file).lines == 301


def _write_many(file, name, barrier):
    barrier.wait(30)
    write(file, *[f"{name}{number}" for number in range(150)])


def test_workers_that_write_at_once_leave_one_chain(tmp_path):
    file = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=_write_many, args=(file, name, barrier)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert verify(file).lines == 600


def test_a_log_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    with pytest.raises(AuditError, match="cannot be written"):
        write(tmp_path / "none" / "audit.jsonl", "one")
    with pytest.raises(AuditError, match="cannot be read"):
        verify(tmp_path / "none")
    monkeypatch.setattr(audit, "LOCK_SECONDS", 0.05)
    file = tmp_path / "audit.jsonl"
    with open_log(file), pytest.raises(AuditError, match="another worker holds it"):
        write(file, "one")
    with pytest.raises(AuditError, match="too long"), open_log(file) as log:
        log.append({"text": "x" * audit.LINE_BYTES})
    monkeypatch.setattr(os, "write", lambda descriptor, line: len(line) - 1)
    with pytest.raises(AuditError, match="the disk is full"):
        write(file, "one")


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["previous", "at", "event"]) | st.text(), inner)
        ),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_line_is_a_record_or_refused(line):
    try:
        record = parse(line)
    except AuditError:
        return
    assert isinstance(record["previous"], str)


def test_a_line_of_brackets_is_refused():
    with pytest.raises(AuditError, match="is no JSON"):
        parse(b"[" * 60_000)


def test_the_command_line(log):
    done = CliRunner().invoke(main, ["audit", "verify", str(log)])
    assert done.output == f"{log}: 4 lines, none changed; head {verify(log).head}\n"
    log.write_bytes(b"".join(lines(log)[1:]))
    done = CliRunner().invoke(main, ["audit", "verify", str(log)])
    assert done.exit_code == 1
    assert "line 1: does not follow" in done.output
