"""Tasks in the store."""

from __future__ import annotations

import json
from collections.abc import Iterable

from controllerd.domain.task import FAILED, RUNNING, Task
from controllerd.store.database import Tx
from controllerd.store.table import Table

TASKS = Table(Task, "task", "task")


def unfinished(tx: Tx) -> list[Task]:
    return TASKS.where(tx, "state IN ('RUNNING', 'UNWINDING')")


def of_resource(tx: Tx, resource_id: str) -> Task | None:
    """The unfinished task of a resource; there is at most one."""
    found = TASKS.where(tx, "resource_id = ? AND state IN ('RUNNING', 'UNWINDING')", resource_id)
    return found[0] if found else None


def of_resources(tx: Tx, resource_ids: Iterable[str]) -> dict[str, str]:
    """Resource -> id of its unfinished task, of those that have one."""
    among = "resource_id IN (SELECT value FROM json_each(?)) AND state IN ('RUNNING', 'UNWINDING')"
    rows = tx.each(f"SELECT resource_id, id FROM task WHERE {among}", json.dumps(list(resource_ids)))
    return {row["resource_id"]: row["id"] for row in rows}


def extend_deadlines(tx: Tx, until: float) -> None:
    """Gives every running task at least until then."""
    tx.run("UPDATE task SET deadline = ? WHERE state = ? AND deadline < ?", until, RUNNING, until)


def abandon(tx: Tx, task: Task, reason: str, message: str) -> None:
    """Ends a task where it stands, without undoing anything: whoever calls this takes over what it has begun."""
    TASKS.update(tx, task.id, state=FAILED, fault_reason=reason, fault_message=message, ended_at=tx.now)
    tx.touch(f"task:{task.id}")


def newest(tx: Tx, before: tuple[float, str], limit: int, unfinished_only: bool, **equal: str) -> list[Task]:
    """Newest first, below the marker (created_at, id)."""
    conditions = "".join(f" AND {column} = ?" for column in equal)
    conditions += " AND state IN ('RUNNING', 'UNWINDING')" if unfinished_only else ""
    order = "ORDER BY created_at DESC, id DESC LIMIT ?"
    return TASKS.where(tx, f"(created_at, id) < (?, ?){conditions} {order}", *before, *equal.values(), limit)


def forget_ended(tx: Tx, before: float, batch_max: int) -> int:
    among = "SELECT id FROM task WHERE state IN ('DONE', 'FAILED') AND ended_at < ? LIMIT ?"
    return tx.run(f"DELETE FROM task WHERE id IN ({among})", before, batch_max)
