"""Tasks in the store."""

from __future__ import annotations

from controllerd.domain.task import Task
from controllerd.store.database import Tx
from controllerd.store.table import Table

TASKS = Table(Task, "task", "task")


def unfinished(tx: Tx) -> list[Task]:
    return TASKS.where(tx, "state IN ('RUNNING', 'UNWINDING')")


def of_resource(tx: Tx, resource_id: str) -> Task | None:
    """The unfinished task of a resource; there is at most one."""
    found = TASKS.where(tx, "resource_id = ? AND state IN ('RUNNING', 'UNWINDING')", resource_id)
    return found[0] if found else None


def newest(tx: Tx, before: tuple[float, str], limit: int, unfinished_only: bool, **equal: str) -> list[Task]:
    """Newest first, below the marker (created_at, id)."""
    conditions = "".join(f" AND {column} = ?" for column in equal)
    conditions += " AND state IN ('RUNNING', 'UNWINDING')" if unfinished_only else ""
    order = "ORDER BY created_at DESC, id DESC LIMIT ?"
    return TASKS.where(tx, f"(created_at, id) < (?, ?){conditions} {order}", *before, *equal.values(), limit)


def forget_ended(tx: Tx, before: float) -> int:
    return tx.run("DELETE FROM task WHERE state IN ('DONE', 'FAILED') AND ended_at < ?", before)
