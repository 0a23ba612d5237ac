"""What the sandbox remembers, in one SQLite file: endpoints, functions, task groups and tasks."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT_KEPT_S = 30 * 60
TASK_KEPT_S = 14 * 24 * 3600
ENDPOINT = "id, owner, password, registration, parent, options"
TASK = (
    "tasks.id, task_group, owner, endpoint, completed, failed, data, details"
    " FROM tasks JOIN groups ON groups.id = task_group"
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS endpoints (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, password TEXT NOT NULL, registration TEXT NOT NULL,
  parent TEXT REFERENCES endpoints(id) ON DELETE CASCADE, options TEXT,
  UNIQUE (parent, owner, options));
CREATE TABLE IF NOT EXISTS functions (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, code TEXT NOT NULL, registration TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS groups (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, queue INTEGER NOT NULL, used REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
  id TEXT PRIMARY KEY, task_group TEXT NOT NULL REFERENCES groups(id), endpoint TEXT NOT NULL,
  submitted REAL NOT NULL, completed REAL, failed INTEGER, data TEXT, details TEXT);
CREATE INDEX IF NOT EXISTS tasks_by_group ON tasks (task_group);
CREATE INDEX IF NOT EXISTS tasks_open ON tasks (endpoint) WHERE completed IS NULL;
"""


@dataclass(frozen=True)
class Endpoint:
    """A manager endpoint, or a user endpoint that a manager starts for one set of options.

    Attributes:
        id: UUID.
        owner: Client id of whoever registered it, or for whom it runs.
        password: AMQP password that goes with its id.
        registration: What a manager sent when it registered; the last caller's runtime otherwise.
        parent: The manager's id; None for a manager.
        options: ``user_endpoint_config`` of a user endpoint, as canonical JSON.
    """

    id: str
    owner: str
    password: str
    registration: dict[str, Any]
    parent: str | None
    options: str | None

    @property
    def allowed_functions(self) -> list[str] | None:
        """The ids of the only functions that it runs, or None if it runs any."""
        allowed: list[str] | None = self.registration.get("allowed_functions")
        return allowed


@dataclass(frozen=True)
class Function:
    """A registered function: its id, owner, serialized code, and what was sent with it."""

    id: str
    owner: str
    code: str
    registration: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """A task group; ``queue`` says whether its results also go to a queue of its own."""

    id: str
    owner: str
    queue: bool


@dataclass(frozen=True)
class Task:
    """A task and, once ``completed`` (Unix seconds) is set, its serialized result or error text."""

    id: str
    group: str
    owner: str
    endpoint: str
    completed: float | None
    failed: bool
    data: str | None
    details: dict[str, Any] | None


class Store:
    """The tables and the questions asked of them."""

    def __init__(self, path: Path | str = ":memory:") -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(SCHEMA)
        if "used" not in [column[1] for column in self._db.execute("PRAGMA table_info(groups)")]:
            # A file of an earlier version.
            self._db.execute("ALTER TABLE groups ADD COLUMN used REAL NOT NULL DEFAULT 0")
            self._db.execute("UPDATE groups SET used = ?", (time.time(),))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Endpoints.

    def add_endpoint(self, owner: str, registration: dict[str, Any]) -> Endpoint:
        """Remember a new manager endpoint."""
        return self._insert_endpoint(owner, registration, None, None)

    def _insert_endpoint(
        self, owner: str, registration: dict[str, Any], parent: str | None, options: str | None
    ) -> Endpoint:
        endpoint = Endpoint(
            str(uuid.uuid4()), owner, secrets.token_urlsafe(24), registration, parent, options
        )
        self._db.execute(
            f"INSERT INTO endpoints ({ENDPOINT}) VALUES (?,?,?,?,?,?)",  # noqa: S608 - a constant  # nosec B608
            (endpoint.id, owner, endpoint.password, json.dumps(registration), parent, options),
        )
        return endpoint

    def update_endpoint(self, endpoint: Endpoint, registration: dict[str, Any]) -> Endpoint:
        """Replace what a manager registered, and its password with it."""
        self._db.execute(
            "UPDATE endpoints SET registration = ?, password = ? WHERE id = ?",
            (json.dumps(registration), secrets.token_urlsafe(24), endpoint.id),
        )
        return self._endpoints("id = ?", endpoint.id)[0]

    def user_endpoint(
        self, parent: Endpoint, owner: str, options: dict[str, Any], runtime: dict[str, Any]
    ) -> Endpoint:
        """The user endpoint that serves these options, made at first need."""
        key = json.dumps(options, sort_keys=True)
        row = self._db.execute(
            "SELECT id FROM endpoints WHERE parent = ? AND owner = ? AND options = ?",
            (parent.id, owner, key),
        ).fetchone()
        if row is None:
            return self._insert_endpoint(owner, runtime, parent.id, key)
        self._db.execute(
            "UPDATE endpoints SET registration = ? WHERE id = ?", (json.dumps(runtime), row[0])
        )
        return self._endpoints("id = ?", row[0])[0]

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """The endpoint of that id."""
        found = self._endpoints("id = ?", endpoint_id)
        return found[0] if found else None

    def managers(self, owner: str | None = None) -> list[Endpoint]:
        """The manager endpoints, all or one owner's."""
        if owner is None:
            return self._endpoints("parent IS NULL")
        return self._endpoints("parent IS NULL AND owner = ?", owner)

    def children(self, parent: str) -> list[Endpoint]:
        """The user endpoints of a manager."""
        return self._endpoints("parent = ?", parent)

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint."""
        return self._endpoints("TRUE")

    def waiting_endpoints(self) -> list[Endpoint]:
        """The user endpoints that owe a result."""
        return self._endpoints("id IN (SELECT endpoint FROM tasks WHERE completed IS NULL)")

    def _endpoints(self, where: str, *values: str) -> list[Endpoint]:
        rows = self._db.execute(
            f"SELECT {ENDPOINT} FROM endpoints WHERE {where} ORDER BY rowid",  # noqa: S608 - constants  # nosec B608
            values,
        )
        return [Endpoint(r[0], r[1], r[2], json.loads(r[3]), r[4], r[5]) for r in rows]

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Forget an endpoint and its user endpoints."""
        self._db.execute("DELETE FROM endpoints WHERE id = ?", (endpoint_id,))

    # Functions.

    def add_function(self, owner: str, code: str, registration: dict[str, Any]) -> Function:
        """Remember a function."""
        function = Function(str(uuid.uuid4()), owner, code, registration)
        self._db.execute(
            "INSERT INTO functions VALUES (?,?,?,?)",
            (function.id, owner, code, json.dumps(registration)),
        )
        return function

    def function(self, function_id: str) -> Function | None:
        """The function of that id."""
        row = self._db.execute(
            "SELECT id, owner, code, registration FROM functions WHERE id = ?", (function_id,)
        ).fetchone()
        return Function(row[0], row[1], row[2], json.loads(row[3])) if row else None

    def delete_function(self, function_id: str) -> None:
        """Forget a function."""
        self._db.execute("DELETE FROM functions WHERE id = ?", (function_id,))

    # Groups and tasks.

    def add_group(self, owner: str) -> Group:
        """Start a task group."""
        group = Group(str(uuid.uuid4()), owner, queue=False)
        self._db.execute("INSERT INTO groups VALUES (?,?,0,?)", (group.id, owner, time.time()))
        return group

    def give_queue(self, group: Group) -> Group:
        """Note that a group's results also go to a queue of its own."""
        self._db.execute("UPDATE groups SET queue = 1 WHERE id = ?", (group.id,))
        return Group(group.id, group.owner, queue=True)

    def group(self, group_id: str) -> Group | None:
        """The task group of that id."""
        row = self._db.execute(
            "SELECT id, owner, queue FROM groups WHERE id = ?", (group_id,)
        ).fetchone()
        return Group(row[0], row[1], bool(row[2])) if row else None

    def groups(self) -> list[Group]:
        """Every task group that has a queue."""
        rows = self._db.execute("SELECT id, owner FROM groups WHERE queue = 1")
        return [Group(r[0], r[1], queue=True) for r in rows]

    def old_groups(self, now: float) -> list[Group]:
        """The task groups of which even the last task is too old to be known."""
        rows = self._db.execute(
            "SELECT id, owner, queue FROM groups WHERE used < ?", (now - TASK_KEPT_S,)
        )
        return [Group(r[0], r[1], bool(r[2])) for r in rows]

    def delete_group(self, group_id: str) -> None:
        """Forget a task group that has no tasks."""
        self._db.execute("DELETE FROM groups WHERE id = ?", (group_id,))

    def add_tasks(self, group: Group, endpoint: Endpoint, ids: Iterable[str]) -> None:
        """Remember tasks that are on their way to a user endpoint."""
        now = time.time()
        with self._transaction():
            self._db.execute("UPDATE groups SET used = ? WHERE id = ?", (now, group.id))
            self._db.executemany(
                "INSERT INTO tasks (id, task_group, endpoint, submitted) VALUES (?,?,?,?)",
                [(task_id, group.id, endpoint.id, now) for task_id in ids],
            )

    def drop_tasks(self, ids: Iterable[str]) -> None:
        """Forget tasks that could not be sent."""
        self._db.executemany("DELETE FROM tasks WHERE id = ?", [(task_id,) for task_id in ids])

    def _transaction(self) -> sqlite3.Connection:
        self._db.execute("BEGIN")
        return self._db

    def complete_task(
        self, task_id: str, data: str, details: dict[str, Any] | None, *, failed: bool
    ) -> None:
        """Keep a task's result or error text."""
        self._db.execute(
            "UPDATE tasks SET completed = ?, failed = ?, data = ?, details = ? WHERE id = ?",
            (time.time(), failed, data, json.dumps(details), task_id),
        )

    def task(self, task_id: str) -> Task | None:
        """The task of that id."""
        found = self._tasks("tasks.id = ?", task_id)
        return found[0] if found else None

    def is_open(self, task_id: str) -> bool:
        """Whether a task is known and has no result."""
        task = self.task(task_id)
        return task is not None and task.completed is None

    def tasks_of(self, group: Group) -> list[str]:
        """The ids of a group's tasks, in the order in which they came."""
        rows = self._db.execute(
            "SELECT id FROM tasks WHERE task_group = ? ORDER BY rowid", (group.id,)
        )
        return [row[0] for row in rows]

    def open_tasks(self, endpoint_id: str) -> list[Task]:
        """A user endpoint's tasks without a result."""
        return self._tasks("endpoint = ? AND completed IS NULL", endpoint_id)

    def _tasks(self, where: str, *values: str) -> list[Task]:
        rows = self._db.execute(
            f"SELECT {TASK} WHERE {where} ORDER BY tasks.rowid",
            values,
        )
        return [
            Task(r[0], r[1], r[2], r[3], r[4], bool(r[5]), r[6], json.loads(r[7] or "null"))
            for r in rows
        ]

    def expire(self, now: float) -> None:
        """Forget results after 30 minutes and tasks after two weeks, as the hosted service does."""
        self._db.execute(
            "DELETE FROM tasks WHERE completed < ? OR submitted < ?",
            (now - RESULT_KEPT_S, now - TASK_KEPT_S),
        )
