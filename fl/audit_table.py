"""A site's audit log as its owner reads it: a row a task, what ran and what came of it.

Whether the log was tampered with is not seen here: `fl.client.audit.verify` follows its chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from fl.client.audit import AuditError, parse
from fl.status import plain


@dataclass(frozen=True)
class SeenTask:
    """A task as the log tells it.

    Attributes:
        at: When it was let in or refused, in local time.
        operation: What was asked for: train, evaluate, check, rehearse, ...
        run_id: Of which run, in the server's words; `-` of none.
        round: Which round, likewise.
        code: The model and the loader that were run.
        outcome: What left, why it was refused or failed, or that no end was noted.
    """

    at: str
    operation: str
    run_id: str
    round: str
    code: str
    outcome: str


def read_tasks(file: Path) -> list[SeenTask]:
    """Read a log; a line that a crash has torn is left out.

    Args:
        file: The log.

    Returns:
        Its tasks, in the order in which they came.

    Raises:
        AuditError: It cannot be read, or is no log.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise AuditError(f"{file}: cannot be read ({error.strerror})") from error
    if lines and not any(b'"previous"' in line for line in lines):
        raise AuditError(f"{file}: is no audit log: none of its {len(lines)} lines is a task's")
    tasks: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            record = parse(line)
        except AuditError:
            continue
        # The first line says when it came, the last what came of it.
        before = tasks.setdefault(str(record.get("task")), {})
        before |= record | {"at": before.get("at", record["at"])}
    return [_seen(record) for record in tasks.values()]


def show(tasks: list[SeenTask]) -> Table:
    """Tasks for a terminal; what a server said is text, and moves no cursor."""
    columns = ("when", "task", "run", "round", "what ran", "what came of it")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for seen in tasks:
        table.add_row(
            *map(
                plain,
                (seen.at, seen.operation, seen.run_id, seen.round, seen.code, seen.outcome),
            )
        )
    return table


def _seen(record: dict[str, Any]) -> SeenTask:
    code = [record[part] for part in ("model", "loader") if isinstance(record.get(part), dict)]
    return SeenTask(
        at=datetime.fromisoformat(record["at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        operation=str(record.get("operation", "-")),
        run_id=str(record.get("run_id", "-")),
        round=str(record.get("round", "-")),
        code=", ".join(_named(part, record) for part in code) or "-",
        outcome=_outcome(record),
    )


def _named(code: dict[str, Any], record: dict[str, Any]) -> str:
    shipped = record.get("shipped")
    came = " (shipped)" if isinstance(shipped, list) and code.get("path") in shipped else ""
    return f"{code.get('path')}: {code.get('name')}{came}"


def _outcome(record: dict[str, Any]) -> str:
    match record.get("event"):
        case "refused":
            return f"refused by {record.get('rule')}: {record.get('reason')}"
        case "failed":
            return f"failed: {record.get('reason')}"
        case "ended":
            return _left(record)
        case "admitted":
            return "let in; no end was noted: it goes on, or its worker was killed"
    return str(record.get("event"))


def _left(record: dict[str, Any]) -> str:
    """What left the site with a task's answer."""
    update = record.get("update")
    named = [record.get(name) for name in ("metrics", "told")]
    parts = [
        *([f"an update ({str(update)[:12]})"] if update else []),
        *([f"the number of samples ({record['num_samples']})"] if "num_samples" in record else []),
        *(str(one) for some in named if isinstance(some, list) for one in some),
    ]
    return f"left: {', '.join(parts)}" if parts else "nothing of the data left"
