"""Tombstones: what a node must still remove although the resource is gone, because the node was away when it went.

A server's tombstone holds what its claim held, until the node reports that nothing is left.
"""

from __future__ import annotations

from controllerd.store.database import Tx


def put(tx: Tx, node_id: str, kind: str, object_id: str) -> None:
    """`kind`: "server", "volume", "blob". Twice is once."""
    columns = "node_id, kind, object_id, vcpus, memory_mib, disk_gib, created_at"
    tx.run(f"INSERT OR IGNORE INTO tombstone ({columns}) VALUES (?, ?, ?, 0, 0, 0, ?)", node_id, kind, object_id, tx.now)
    tx.touch(node_id)


def bury_server(tx: Tx, node_id: str, server_id: str) -> None:
    """Takes over the server's claim on the node. Twice is once."""
    put(tx, node_id, "server", server_id)
    held = tx.one("SELECT vcpus, memory_mib, disk_gib FROM claim WHERE server_id = ? AND node_id = ?", server_id, node_id)
    if held is not None:
        which = "WHERE node_id = ? AND kind = 'server' AND object_id = ?"
        tx.run(f"UPDATE tombstone SET vcpus = ?, memory_mib = ?, disk_gib = ? {which}", *held.values(), node_id, server_id)
        tx.run("DELETE FROM claim WHERE server_id = ?", server_id)


def lift(tx: Tx, node_id: str, kind: str, object_id: str) -> bool:
    """The node reports that nothing is left. False: there was none."""
    lifted = tx.run("DELETE FROM tombstone WHERE node_id = ? AND kind = ? AND object_id = ?", node_id, kind, object_id)
    if lifted:
        tx.touch(node_id)
    return bool(lifted)


def stands(tx: Tx, node_id: str, kind: str, object_id: str) -> bool:
    sql = "SELECT 1 FROM tombstone WHERE node_id = ? AND kind = ? AND object_id = ?"
    return bool(tx.value(sql, node_id, kind, object_id))


def of_node(tx: Tx, node_id: str, kind: str) -> list[str]:
    sql = "SELECT object_id FROM tombstone WHERE node_id = ? AND kind = ? ORDER BY object_id"
    return [row["object_id"] for row in tx.each(sql, node_id, kind)]
