"""What nodes report and the store does not have there. Nothing is done to it: it is shown, and left alone."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.store import tombstone
from controllerd.store.database import Tx

OBJECTS_MAX = 5000  # of one kind that a node is believed to have


@dataclass(frozen=True)
class ForeignObject:
    """`kind`: "server", "volume" or "router". `observed_at`: when it was first reported."""

    node_id: str
    kind: str
    object_id: str
    observed_state: str
    observed_at: float


_COLUMNS = ", ".join(ForeignObject.__dataclass_fields__)


def report(tx: Tx, node_id: str, kind: str, object_id: str, state: str) -> None:
    """It is there. What its node was told to remove is nobody's surprise."""
    if tombstone.stands(tx, node_id, kind, object_id) or _count(tx, node_id, kind) >= OBJECTS_MAX:
        return
    tx.run(
        f"INSERT INTO foreign_object ({_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (node_id, kind, object_id)"
        " DO UPDATE SET observed_state = ?4 WHERE observed_state != ?4",
        node_id, kind, object_id, state, tx.now,
    )  # fmt: skip


def forget(tx: Tx, node_id: str, kind: str, object_id: str) -> None:
    """It is gone, or has an owner there. Asks first: nearly always there is nothing to forget."""
    which = "node_id = ? AND kind = ? AND object_id = ?"
    if tx.value(f"SELECT 1 FROM foreign_object WHERE {which}", node_id, kind, object_id):
        tx.run(f"DELETE FROM foreign_object WHERE {which}", node_id, kind, object_id)


def forget_missing(tx: Tx, node_id: str, kind: str, present: set[str]) -> None:
    """Those that a whole report does not name."""
    sql = "SELECT object_id FROM foreign_object WHERE node_id = ? AND kind = ?"
    for row in tx.all(sql, node_id, kind):
        if row["object_id"] not in present:
            forget(tx, node_id, kind, row["object_id"])


def of_node(tx: Tx, node_id: str, kind: str) -> list[ForeignObject]:
    sql = f"SELECT {_COLUMNS} FROM foreign_object WHERE node_id = ? AND kind = ? ORDER BY object_id"
    return [ForeignObject(**row) for row in tx.each(sql, node_id, kind)]


def _count(tx: Tx, node_id: str, kind: str) -> int:
    return int(tx.value("SELECT count(*) FROM foreign_object WHERE node_id = ? AND kind = ?", node_id, kind))


def count(tx: Tx) -> int:
    return int(tx.value("SELECT count(*) FROM foreign_object"))
