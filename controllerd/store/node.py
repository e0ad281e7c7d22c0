"""Nodes and their agents in the store."""

from __future__ import annotations

import json

from controllerd.domain.node import AgentRecord, Node
from controllerd.store.database import Row, Tx
from controllerd.store.table import Table

NODES = Table(Node, "node", "node")


def by_name(tx: Tx, name: str) -> Node | None:
    found = NODES.where(tx, "name = ?", name)
    return found[0] if found else None


def agent(tx: Tx, node_id: str, kind: str) -> AgentRecord | None:
    row = tx.one("SELECT * FROM agent WHERE node_id = ? AND kind = ?", node_id, kind)
    return None if row is None else _agent(row)


def agents(tx: Tx) -> list[AgentRecord]:
    return [_agent(row) for row in tx.each("SELECT * FROM agent ORDER BY node_id, kind")]


def _agent(row: Row) -> AgentRecord:
    bools = {"connected": bool(row["connected"]), "lost": bool(row["lost"])}
    return AgentRecord(**{**row, **bools, "inventory": json.loads(row["inventory"])})


def put_agent(tx: Tx, record: AgentRecord) -> None:
    tx.run(
        "INSERT OR REPLACE INTO agent VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        record.node_id, record.kind, int(record.connected), record.last_seen_at, int(record.lost), record.version,
        record.boot_id, json.dumps(record.inventory),
    )  # fmt: skip
    tx.touch(record.node_id)


def disconnected(tx: Tx, node_id: str, kind: str) -> None:
    tx.run("UPDATE agent SET connected = 0, last_seen_at = ? WHERE node_id = ? AND kind = ?", tx.now, node_id, kind)
    tx.touch(node_id)


def all_disconnected(tx: Tx) -> None:
    """At the start of a controller: nobody is in session yet; `last_seen_at` gives them the grace time from now."""
    tx.run("UPDATE agent SET connected = 0, last_seen_at = ?", tx.now)


def is_lost(tx: Tx, node_id: str, kind: str) -> bool:
    """Whether waiting for this agent is pointless: it is lost, or the node is gone."""
    value = tx.value("SELECT lost FROM agent WHERE node_id = ? AND kind = ?", node_id, kind)
    return value is None or bool(value)
