import json
import time

import pytest

from fl.client import task, unclaimed
from fl.tensors import encode
from fl.transport import GoneError, Ref, UnreachableError
from fl.transport.file import FileTransport


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def store(tmp_path):
    return FileTransport(tmp_path / "objects")


def notes(state):
    return list((state / "updates").glob("*.json"))


def noted(state):
    """The updates that are noted, the oldest first."""
    read = [json.loads(note.read_text()) for note in notes(state)]
    return [note["update"] for note in sorted(read, key=lambda note: note["put_at"])]


def put(store, state, days=0.0):
    """Put an update that is some days old."""
    before = set(notes(state))
    update = store.put(b"update")
    unclaimed.note(update)
    (note,) = set(notes(state)) - before
    noted = json.loads(note.read_text())
    note.write_text(json.dumps(noted | {"put_at": time.time() - days * 24 * 3600}))
    return update


def test_what_nobody_came_for_goes_after_three_days(store, state):
    old, new = put(store, state, days=3.01), put(store, state, days=2.99)
    unclaimed.evict_unclaimed(store)
    with pytest.raises(GoneError):
        store.get(old)
    assert bytes(store.get(new)) == b"update"
    assert len(notes(state)) == 1


def test_what_the_server_evicted_is_struck_off(store, state):
    store.evict(put(store, state))
    unclaimed.evict_unclaimed(store)
    assert notes(state) == []


def test_a_thousand_clients_of_one_folder_do_not_look_through_all_each(store, state, monkeypatch):
    asked, exists = [], store.exists
    monkeypatch.setattr(store, "exists", lambda ref: asked.append(ref) or exists(ref))
    for _ in range(100):
        store.evict(put(store, state))
    unclaimed.evict_unclaimed(store)
    assert len(asked) == unclaimed.LOOKED_AT == 100 - len(notes(state))
    while left := notes(state):
        unclaimed.evict_unclaimed(store)
        assert len(notes(state)) < len(left)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"put_at": 0, "update": {}}'])
def test_what_is_torn_is_struck_off(store, state, text):
    put(store, state)
    (note,) = notes(state)
    note.write_text(text)
    unclaimed.evict_unclaimed(store)
    assert notes(state) == []


def test_a_store_that_does_not_answer_is_asked_again_by_the_next_task(store, state, monkeypatch):
    def down(ref):
        raise UnreachableError("down")

    put(store, state)
    put(store, state, days=4)
    with monkeypatch.context() as patched:
        patched.setattr(store, "exists", down)
        patched.setattr(store, "evict", down)
        unclaimed.evict_unclaimed(store)
    assert len(notes(state)) == 2
    unclaimed.evict_unclaimed(store)
    assert len(notes(state)) == 1


def test_a_folder_that_cannot_be_written_costs_the_note_alone(store, state):
    state.write_text("no folder")
    unclaimed.note(store.put(b"update"))
    unclaimed.evict_unclaimed(store)


def test_a_task_notes_its_update_and_strikes_off_those_before(site, store, state, tmp_path):
    asked = site.request() | {
        "model": store.put(encode(site.weights)).to_json(),
        "proxystore_configs": {
            "enable_proxystore": True,
            "connector_type": "FileConnector",
            "connector_configs": {"store_dir": str(tmp_path / "objects")},
        },
    }
    first, second = (task.run(asked)["result"]["update"] for _ in range(2))
    assert noted(state) == [first, second]
    store.evict(Ref.from_json(first))
    third = task.run(asked)["result"]["update"]
    assert noted(state) == [second, third]


def test_what_travels_in_the_answer_is_not_noted(site, state):
    site.result()
    assert notes(state) == []


def test_what_the_server_evicted_a_part_of_goes_as_a_whole(store, state, monkeypatch):
    """ProxyStore's objects have parts, and a server may be stopped between two of them."""
    update = put(store, state)
    monkeypatch.setattr(store, "exists", lambda ref: False)
    unclaimed.evict_unclaimed(store)
    with pytest.raises(GoneError):
        store.get(update)
    assert notes(state) == []
