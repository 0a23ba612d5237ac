from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from fl.sandbox.store import RESULT_KEPT_S, TASK_KEPT_S, Group, Store


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    manager = store.add_endpoint("me", {"endpoint_name": "site", "allowed_functions": ["f"]})
    child = store.user_endpoint(manager, "me", {"a": 1}, {"python": "3"})
    function = store.add_function("me", "code", {"function_name": "f"})
    group = store.give_queue(store.add_group("me"))
    store.add_tasks(group, child, ["t1", "t2"])
    store.complete_task("t1", "data", {"os": "x"}, failed=True)
    store.close()
    again = Store(tmp_path / "state")
    assert again.managers() == [manager]
    assert manager.allowed_functions == ["f"]
    assert again.user_endpoint(manager, "me", {"a": 1}, {"python": "3"}) == child
    assert again.function(function.id) == function
    assert again.groups() == [group]
    assert again.tasks_of(group) == ["t1", "t2"]
    done = again.task("t1")
    assert done is not None
    assert (done.data, done.details, done.failed) == ("data", {"os": "x"}, True)
    assert [task.id for task in again.open_tasks(child.id)] == ["t2"]
    assert again.waiting_endpoints() == [child]
    again.close()


def test_results_are_kept_30_minutes_and_tasks_two_weeks() -> None:
    store = Store()
    child = store.user_endpoint(store.add_endpoint("me", {}), "me", {}, {})
    store.add_tasks(store.add_group("me"), child, ["done", "open"])
    store.complete_task("done", "data", None, failed=False)
    now = time.time()
    store.expire(now + RESULT_KEPT_S - 5)
    assert store.task("done")
    store.expire(now + RESULT_KEPT_S + 5)
    assert store.task("done") is None
    assert store.task("open")
    store.expire(now + TASK_KEPT_S + 5)
    assert store.task("open") is None


def test_groups_are_kept_two_weeks_after_their_last_task() -> None:
    store = Store()
    child = store.user_endpoint(store.add_endpoint("me", {}), "me", {}, {})
    used, unused = store.add_group("me"), store.give_queue(store.add_group("me"))
    store._db.execute("UPDATE groups SET used = used - 100")
    store.add_tasks(used, child, ["task"])
    then = time.time() + TASK_KEPT_S
    assert store.old_groups(then - 200) == []
    assert store.old_groups(then - 50) == [unused]
    store.expire(then + 50)
    assert store.old_groups(then + 50) == [used, unused]
    store.delete_group(used.id)
    assert store.group(used.id) is None


def test_a_file_of_before_groups_had_an_age_is_read(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "state")) as old:
        old.execute(
            "CREATE TABLE groups (id TEXT PRIMARY KEY, owner TEXT NOT NULL, queue INTEGER NOT NULL)"
        )
        old.execute("INSERT INTO groups VALUES ('g', 'me', 1)")
        old.commit()
    store = Store(tmp_path / "state")
    assert store.groups() == [Group("g", "me", queue=True)]
    assert store.old_groups(time.time() + TASK_KEPT_S - 50) == []
    store.close()


def test_a_managers_end_is_its_user_endpoints_end() -> None:
    store = Store()
    manager = store.add_endpoint("me", {})
    child = store.user_endpoint(manager, "me", {}, {})
    store.delete_endpoint(manager.id)
    assert store.endpoint(child.id) is None


def test_a_manager_that_registers_again_gets_a_new_password() -> None:
    store = Store()
    manager = store.add_endpoint("me", {"endpoint_name": "site"})
    again = store.update_endpoint(manager, {"endpoint_name": "other"})
    assert again.id == manager.id
    assert again.password != manager.password
