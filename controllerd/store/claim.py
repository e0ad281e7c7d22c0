"""Claims: what servers hold of the nodes. Taken in the transaction that chooses the node, so they are exact."""

from __future__ import annotations

import json
from functools import lru_cache

from controllerd.domain.placement import Candidate
from controllerd.domain.server import Server
from controllerd.store import node
from controllerd.store.database import Row, Tx

_INVENTORIES_KEPT = 4096

_NODES = (
    "SELECT n.id, n.name, n.roles, n.enabled, c.inventory, coalesce(c.connected AND w.connected, 0) AS in_session,"
    " coalesce(c.lost OR w.lost, 1) AS lost FROM node n"
    " LEFT JOIN agent c ON c.node_id = n.id AND c.kind = 'computed'"
    " LEFT JOIN agent w ON w.node_id = n.id AND w.kind = 'networkd' ORDER BY n.name"
)


def candidates(tx: Tx) -> list[Candidate]:
    """Every node, with what is there and what is taken now."""
    held = node.holdings(tx)
    return [_candidate(row, held.get(row["id"], _NOTHING)) for row in tx.each(_NODES)]


_NOTHING: Row = {"vcpus": 0, "memory_mib": 0, "disk_gib": 0, "servers": 0}


def _candidate(row: Row, held: Row) -> Candidate:
    vcpus, memory_mib, disk_gib, images = _capacity(row["inventory"] or "{}")
    roles = json.loads(row["roles"])
    return Candidate(
        node_id=row["id"], name=row["name"], compute="compute" in roles and "edge" in roles, enabled=bool(row["enabled"]),
        in_session=bool(row["in_session"]), lost=bool(row["lost"]), vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib,
        vcpus_claimed=held["vcpus"], memory_mib_claimed=held["memory_mib"], disk_gib_claimed=held["disk_gib"],
        servers=held["servers"], images=images,
    )  # fmt: skip


@lru_cache(_INVENTORIES_KEPT)
def _capacity(inventory: str) -> tuple[int, int, int, frozenset[str]]:
    """(vcpus, memory_mib, disk_gib, images) of an Inventory message in JSON, where 64-bit numbers are strings."""
    compute = json.loads(inventory).get("compute", {})
    vcpus, memory_mib, disk_gib = (int(compute.get(k, 0)) for k in ("vcpus", "memory_mib", "disk_gib"))
    return vcpus, memory_mib, disk_gib, frozenset(compute.get("images_cached", ()))


def hold(tx: Tx, server: Server, node_id: str) -> None:
    """Twice is once; a claim on another node moves."""
    tx.run("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?)",
           server.id, node_id, server.vcpus, server.memory_mib, server.disk_gib, tx.now)  # fmt: skip


def release(tx: Tx, server_id: str) -> None:
    tx.run("DELETE FROM claim WHERE server_id = ?", server_id)


def release_orphans(tx: Tx) -> list[str]:
    """Drops claims that no server on that node stands behind; gives their server ids."""
    condition = "NOT EXISTS (SELECT 1 FROM server s WHERE s.id = claim.server_id AND s.node_id = claim.node_id)"
    orphans = [row["server_id"] for row in tx.each(f"SELECT server_id FROM claim WHERE {condition}")]
    if orphans:
        tx.run(f"DELETE FROM claim WHERE {condition}")
    return orphans
