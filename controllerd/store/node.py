"""Nodes and their agents in the store."""

from __future__ import annotations

import json
from collections.abc import Iterable

from controllerd.domain.node import AgentRecord, Node
from controllerd.store import network
from controllerd.store.database import Row, Tx
from controllerd.store.table import Table

NODES = Table(Node, "node", "node", born="joined_at")
RETURN_S = 0.004  # that each agent takes when all of them come back at once
AGENTS = "agents"  # touched whenever an agent comes, goes or is given up


def key_of_agent(node_id: str, kind: str) -> str:
    """To be touched where only one of a node's agents is concerned; the node's id is for all of them."""
    return f"{kind}:{node_id}" if node_id else ""


_AGENT = ", ".join(AgentRecord.__dataclass_fields__)
_AGENT_AGAIN = (
    "ON CONFLICT (node_id, kind) DO UPDATE SET "
    + ", ".join(f"{c} = excluded.{c}" for c in AgentRecord.__dataclass_fields__ if c not in ("node_id", "kind"))
)  # fmt: skip


def by_name(tx: Tx, name: str) -> Node | None:
    found = NODES.where(tx, "name = ?", name)
    return found[0] if found else None


def agent(tx: Tx, node_id: str, kind: str) -> AgentRecord | None:
    row = tx.one(f"SELECT {_AGENT} FROM agent WHERE node_id = ? AND kind = ?", node_id, kind)
    return None if row is None else _agent(row)


def agents(tx: Tx, node_ids: Iterable[str]) -> dict[str, list[AgentRecord]]:
    """Node -> its agents by kind, of those that have any."""
    sql = f"SELECT {_AGENT} FROM agent WHERE node_id IN (SELECT value FROM json_each(?)) ORDER BY node_id, kind"
    found: dict[str, list[AgentRecord]] = {}
    for row in tx.each(sql, json.dumps(list(node_ids))):
        found.setdefault(row["node_id"], []).append(_agent(row))
    return found


def _agent(row: Row) -> AgentRecord:
    bools = {"connected": bool(row["connected"]), "lost": bool(row["lost"])}
    return AgentRecord(**{**row, **bools, "inventory": json.loads(row["inventory"])})


def put_agent(tx: Tx, record: AgentRecord) -> None:
    before = vtep(tx, record.node_id)
    tx.run(
        f"INSERT INTO agent ({_AGENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) {_AGENT_AGAIN}",
        record.node_id, record.kind, int(record.connected), record.last_seen_at, int(record.lost), record.version,
        record.boot_id, json.dumps(record.inventory),
    )  # fmt: skip
    tx.touch(AGENTS)
    if vtep(tx, record.node_id) != before:
        network.touch_peers(tx, record.node_id)


def vtep(tx: Tx, node_id: str) -> str:
    """Address of the node's end of the tunnels, "" while its networkd has told none."""
    return vteps(tx, [node_id]).get(node_id, "")


def vteps(tx: Tx, node_ids: Iterable[str]) -> dict[str, str]:
    """Node -> address of its end of the tunnels, of those that have told one."""
    sql = (
        "SELECT node_id, json_extract(inventory, '$.network.vtep') AS vtep FROM agent"
        " WHERE node_id IN (SELECT value FROM json_each(?)) AND kind = 'networkd'"
    )
    return {row["node_id"]: row["vtep"] for row in tx.each(sql, json.dumps(list(node_ids))) if row["vtep"]}


def disconnected(tx: Tx, node_id: str, kind: str) -> None:
    tx.run("UPDATE agent SET connected = 0, last_seen_at = ? WHERE node_id = ? AND kind = ?", tx.now, node_id, kind)
    tx.touch(AGENTS)


def count_agents(tx: Tx) -> int:
    return int(tx.value("SELECT count(*) FROM agent"))


def all_disconnected(tx: Tx) -> None:
    """At the start of a controller: nobody is in session yet. `last_seen_at` gives them the grace time from when all of them
    can be back."""
    tx.run("UPDATE agent SET connected = 0, last_seen_at = ?", tx.now + count_agents(tx) * RETURN_S)


def lose_silent(tx: Tx, before: float) -> list[tuple[str, str]]:
    """Gives up agents without a session since before that time; gives (node id, kind) of each."""
    condition = "connected = 0 AND lost = 0 AND last_seen_at <= ?"
    found = [(row["node_id"], row["kind"]) for row in tx.each(f"SELECT node_id, kind FROM agent WHERE {condition}", before)]
    if found:
        tx.run(f"UPDATE agent SET lost = 1 WHERE {condition}", before)
        tx.touch(AGENTS, *(node_id for node_id, _kind in found))
    return found


def away_since(tx: Tx) -> float | None:
    """When the agent that is away longest, and is not given up yet, was last seen; None when none is away."""
    value = tx.value("SELECT min(last_seen_at) FROM agent WHERE connected = 0 AND lost = 0")
    return None if value is None else float(value)


def lost_nodes(tx: Tx, kind: str) -> set[str]:
    return {row["node_id"] for row in tx.each("SELECT node_id FROM agent WHERE kind = ? AND lost = 1", kind)}


def names(tx: Tx) -> dict[str, str]:
    """Node id -> name."""
    return {row["id"]: row["name"] for row in tx.each("SELECT id, name FROM node")}


def is_lost(tx: Tx, node_id: str, kind: str) -> bool:
    """Whether waiting for this agent is pointless: it is lost, or the node is gone."""
    value = tx.value("SELECT lost FROM agent WHERE node_id = ? AND kind = ?", node_id, kind)
    return value is None or bool(value)


def holdings(tx: Tx, among: str = "") -> dict[str, Row]:
    """node id -> {vcpus, memory_mib, disk_gib, servers}: what is claimed there, tombstones included.

    `among`: a JSON list of node ids, "" = all.
    """
    which = " WHERE node_id IN (SELECT value FROM json_each(?1))" if among else ""
    sql = (
        "SELECT node_id, sum(vcpus) AS vcpus, sum(memory_mib) AS memory_mib, sum(disk_gib) AS disk_gib, sum(live) AS servers"
        f" FROM (SELECT node_id, vcpus, memory_mib, disk_gib, 1 AS live FROM claim{which}"
        f" UNION ALL SELECT node_id, vcpus, memory_mib, disk_gib, 0 FROM tombstone{which}) GROUP BY node_id"
    )
    return {row["node_id"]: row for row in (tx.each(sql, among) if among else tx.each(sql))}


def holds_anything(tx: Tx, node_id: str) -> bool:
    tables = ("claim", "server", "volume", "blob", "port", "router")
    return any(tx.value(f"SELECT 1 FROM {t} WHERE node_id = ? LIMIT 1", node_id) for t in tables)


def delete(tx: Tx, node_id: str) -> None:
    for table in ("agent", "agent_task", "tombstone", "telemetry_cursor", "foreign_object", "hold"):
        tx.run(f"DELETE FROM {table} WHERE node_id = ?", node_id)
    NODES.delete(tx, node_id)
    tx.touch(node_id)


def put_join_token(tx: Tx, token_hash: str, name: str, roles: tuple[str, ...], expires_at: float) -> None:
    sql = "INSERT INTO join_token (hash, node_name, roles, expires_at, used) VALUES (?, ?, ?, ?, 0)"
    tx.run(sql, token_hash, name, json.dumps(roles), expires_at)


def join_token(tx: Tx, token_hash: str) -> tuple[str, tuple[str, ...]] | None:
    """(node name, roles) while the token is good: within its life, and not used yet."""
    sql = "SELECT node_name, roles FROM join_token WHERE hash = ? AND used = 0 AND expires_at > ?"
    row = tx.one(sql, token_hash, tx.now)
    return None if row is None else (row["node_name"], tuple(json.loads(row["roles"])))


def use_join_token(tx: Tx, token_hash: str) -> bool:
    """True the first time within its life; False ever after."""
    return bool(tx.run("UPDATE join_token SET used = 1 WHERE hash = ? AND used = 0 AND expires_at > ?", token_hash, tx.now))


def expire_join_tokens(tx: Tx) -> int:
    return tx.run("DELETE FROM join_token WHERE expires_at < ?", tx.now)
