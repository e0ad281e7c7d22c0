"""After a restore from a backup: who is told nothing yet, what was found to be there and what is missing.

A restored state is older than reality. So every agent that it knows is held: it is sent no desired state and no tasks, and
goes on with what it had. What it reports is compared (`controllerd.reconcilers.recovery`); then the hold is lifted.
"""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.store.database import Row, Tx
from daemonkit.errors import Unavailable

ADOPTED, MISSING = "adopted", "missing"


@dataclass(frozen=True)
class Restore:
    """`approved_at`: when an operator let go of what nobody owns. `released_at`: when nodes were told what to do again; a node
    that was away then is held by itself until it was compared. Wall times in seconds, 0 = not yet."""

    backup_at: float
    restored_at: float
    approved_at: float
    released_at: float


@dataclass(frozen=True)
class Hold:
    """An agent that is told nothing. `observed_at`: of its first whole report, `compared_at`: when the store was made to fit
    it; 0 = not yet."""

    node_id: str
    kind: str
    since: float
    observed_at: float
    compared_at: float


def restored(tx: Tx) -> Restore | None:
    """The last restore; None where there was none."""
    row = tx.one("SELECT backup_at, restored_at, approved_at, released_at FROM restore")
    return Restore(**row) if row else None


def approve(tx: Tx) -> None:
    tx.run("UPDATE restore SET approved_at = ?", tx.now)


# ---- holds


def holds(tx: Tx) -> list[Hold]:
    return [
        Hold(**row) for row in tx.each("SELECT node_id, kind, since, observed_at, compared_at FROM hold ORDER BY node_id, kind")
    ]


def held(tx: Tx, node_id: str, kind: str) -> bool:
    return bool(tx.value("SELECT 1 FROM hold WHERE node_id = ? AND kind = ?", node_id, kind))


def unreleased(tx: Tx) -> bool:
    """Since a restore no node was told anything yet."""
    return bool(tx.value("SELECT 1 FROM restore WHERE released_at = 0"))


def refuse_while_held(tx: Tx) -> None:
    """Work for nodes can't begin while none of them is told anything. Errors: Unavailable."""
    if unreleased(tx):
        raise Unavailable("nodes are held since the restore from a backup: `skyrack cluster verify` tells why")


def hold(tx: Tx, node_id: str, kind: str) -> None:
    """Twice is once."""
    columns = "node_id, kind, since, observed_at, compared_at"
    tx.run(f"INSERT OR IGNORE INTO hold ({columns}) VALUES (?, ?, ?, 0, 0)", node_id, kind, tx.now)


def observed(tx: Tx, node_id: str, kind: str) -> None:
    """A whole report came. Only the first one counts."""
    if tx.value("SELECT 1 FROM hold WHERE node_id = ? AND kind = ? AND observed_at = 0", node_id, kind):
        tx.run("UPDATE hold SET observed_at = ? WHERE node_id = ? AND kind = ?", tx.now, node_id, kind)


def compared(tx: Tx, hold: Hold) -> None:
    tx.run("UPDATE hold SET compared_at = ? WHERE node_id = ? AND kind = ?", tx.now, hold.node_id, hold.kind)


def mark_released(tx: Tx, task_seconds: float) -> None:
    """Tasks that waited meanwhile have so long from now."""
    tx.run("UPDATE restore SET released_at = ? WHERE released_at = 0", tx.now)
    tx.run("UPDATE task SET deadline = min(deadline, ?) WHERE state = 'RUNNING'", tx.now + task_seconds)


def release(tx: Tx, hold: Hold) -> None:
    """From now on the agent is told what the store says."""
    tx.run("DELETE FROM hold WHERE node_id = ? AND kind = ?", hold.node_id, hold.kind)
    tx.touch(hold.node_id)


# ---- findings


def decided(tx: Tx, resource_id: str) -> bool:
    return bool(tx.value("SELECT 1 FROM finding WHERE resource_id = ?", resource_id))


def decide(tx: Tx, resource_kind: str, resource_id: str, node_id: str, outcome: str) -> None:
    """`outcome`: ADOPTED or MISSING. Once a restore."""
    columns = "resource_id, resource_kind, node_id, outcome, found_at"
    tx.run(f"INSERT INTO finding ({columns}) VALUES (?, ?, ?, ?, ?)", resource_id, resource_kind, node_id, outcome, tx.now)


def findings(tx: Tx) -> dict[str, int]:
    """Outcome -> how many."""
    rows: list[Row] = tx.all("SELECT outcome, count(*) AS n FROM finding GROUP BY outcome")
    return {row["outcome"]: row["n"] for row in rows}


def nobodys(tx: Tx, node_id: str) -> list[float]:
    """Since when the node has each thing that nobody owns and that would lose something when the node is told what to do:
    guests their networks and disks, routers and content of images themselves, guests of ours a disk that was attached since."""
    sql = (
        "SELECT observed_at AS since FROM foreign_object WHERE node_id = ?1 AND kind IN ('server', 'router')"
        " UNION ALL SELECT h.observed_at FROM server s, json_each(iif(s.observed_attached = '', '[]', s.observed_attached)) a"
        " JOIN hold h ON h.node_id = s.node_id AND h.kind = 'computed'"
        " WHERE s.node_id = ?1 AND a.value NOT IN (SELECT id FROM attachment)"
        " UNION ALL SELECT created_at FROM blob b WHERE node_id = ?1"
        " AND created_at >= (SELECT restored_at FROM restore)"
        " AND NOT EXISTS (SELECT 1 FROM image WHERE sha256 = b.sha256)"
        " AND NOT EXISTS (SELECT 1 FROM server WHERE image_sha256 = b.sha256)"
        " AND NOT EXISTS (SELECT 1 FROM volume WHERE image_sha256 = b.sha256 AND state = 'CREATING')"
    )
    return [float(row["since"]) for row in tx.each(sql, node_id)]
