"""Queries for what the store and the nodes do not agree on. Each gives differences only, at most ROWS_MAX of them.

What is on a lost node is not compared: that the node is lost is the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.domain.difference import OPERATOR, Difference
from controllerd.store.database import Row, Tx

ROWS_MAX = 10_000  # of one kind

# The unfinished task of a resource is its owner; else whoever the query names.
_TASK = "coalesce((SELECT t.id FROM task t WHERE t.resource_id = {id} AND t.state IN ('RUNNING', 'UNWINDING')), '{owner}')"
_LOST = "EXISTS (SELECT 1 FROM agent g WHERE g.node_id = {node} AND g.kind = '{agent}' AND g.lost)"
_HELD = "EXISTS (SELECT 1 FROM hold h WHERE h.node_id = {node} AND h.kind = '{agent}' AND NOT h.compared_at)"

_ATTACHED = "iif(s.observed_attached = '', '[]', s.observed_attached)"


@dataclass(frozen=True)
class _Query:
    """`sql` gives id, node_id, project_id, owner, message, since."""

    kind: str
    resource_kind: str
    sql: str


def _on_node(node: str, agent: str) -> str:
    """Condition: the node can be believed: its agent is not lost, and was compared since a restore."""
    return f"NOT {_LOST.format(node=node, agent=agent)} AND NOT {_HELD.format(node=node, agent=agent)}"


_FOREIGN = (
    "SELECT object_id AS id, node_id, '' AS project_id, '{owner}' AS owner,"
    " '{what}, ' || lower(observed_state) || ', and nobody owns it' AS message, observed_at AS since"
    " FROM foreign_object WHERE kind = '{kind}'"
)

_QUERIES = (
    _Query("foreign_server", "server", _FOREIGN.format(owner=OPERATOR, kind="server", what="a guest or its files")),
    _Query("foreign_volume", "volume", _FOREIGN.format(owner=OPERATOR, kind="volume", what="a volume")),
    _Query("foreign_router", "router", _FOREIGN.format(owner="networkd", kind="router", what="a router")),
    _Query(
        "foreign_attachment", "attachment",
        f"SELECT a.value AS id, s.node_id, s.project_id, '{OPERATOR}' AS owner,"
        " 'server ' || s.id || ' has a disk that the store knows nothing of' AS message, s.observed_at AS since"
        f" FROM server s, json_each({_ATTACHED}) a WHERE s.observed_attached NOT IN ('', '[]')"
        " AND a.value NOT IN (SELECT id FROM attachment)",
    ),
    _Query(
        "missing_server", "server",
        f"SELECT id, node_id, project_id, '{OPERATOR}' AS owner, fault_message AS message, updated_at AS since"
        " FROM server WHERE state = 'ERROR' AND fault_reason = 'MISSING'",
    ),
    _Query(
        "missing_volume", "volume",
        f"SELECT id, node_id, project_id, '{OPERATOR}' AS owner, fault_message AS message, observed_at AS since"
        " FROM volume WHERE state = 'ERROR' AND fault_reason = 'MISSING'",
    ),
    _Query(
        "missing_image", "image",
        f"SELECT i.id, '' AS node_id, i.project_id, '{OPERATOR}' AS owner, 'no node holds its content' AS message,"
        " i.created_at AS since FROM image i WHERE i.state = 'ACTIVE'"
        " AND NOT EXISTS (SELECT 1 FROM blob b WHERE b.sha256 = i.sha256)",
    ),
    _Query(
        "node_lost", "node",
        f"SELECT n.id, n.id AS node_id, '' AS project_id, '{OPERATOR}' AS owner,"
        " group_concat(g.kind, ', ') || ' does not answer' AS message, max(g.last_seen_at) AS since"
        " FROM agent g JOIN node n ON n.id = g.node_id WHERE g.lost GROUP BY n.id",
    ),
    _Query(
        "node_held", "node",
        "SELECT h.node_id AS id, h.node_id, '' AS project_id, CASE WHEN min(h.compared_at) THEN '" + OPERATOR
        + "' ELSE 'recovery' END AS owner, 'is told nothing since the restore: '"
        " || CASE WHEN min(h.compared_at) THEN 'somebody has to let go of what nobody owns'"
        " ELSE 'it is being compared' END AS message, min(h.since) AS since FROM hold h GROUP BY h.node_id",
    ),
    _Query(
        "server_differs", "server",
        f"SELECT s.id, s.node_id, s.project_id, {_TASK.format(id='s.id', owner='computed')} AS owner,"
        " 'shall be ' || lower(CASE s.state WHEN 'ACTIVE' THEN 'running' ELSE s.state END) || ', is '"
        " || CASE s.observed_state WHEN '' THEN 'not reported' ELSE lower(s.observed_state) END"
        " || CASE s.observed_fault WHEN '' THEN '' ELSE ': ' || s.observed_fault END AS message, s.observed_at AS since"
        " FROM server s WHERE s.node_id != '' AND s.power NOT IN ('', 'ABSENT')"
        " AND NOT (s.state = 'ACTIVE' AND s.observed_state = 'RUNNING')"
        " AND NOT (s.state = 'STOPPED' AND s.observed_state = 'STOPPED')"
        f" AND {_on_node('s.node_id', 'computed')}",
    ),
    _Query(
        "server_not_removed", "server",
        f"SELECT s.id, s.node_id, s.project_id, {_TASK.format(id='s.id', owner=OPERATOR)} AS owner,"
        " 'shall be gone, is ' || lower(s.observed_state) AS message, s.observed_at AS since FROM server s"
        " WHERE s.power = 'ABSENT' AND s.observed_state NOT IN ('', 'GONE')"
        f" AND {_on_node('s.node_id', 'computed')}",
    ),
    _Query(
        "server_unattended", "server",
        "SELECT s.id, s.node_id, s.project_id, 'stuck_state' AS owner,"
        " 'is ' || s.state || ', and no task works on it' AS message, s.updated_at AS since"
        " FROM server s WHERE s.state NOT IN ('ACTIVE', 'STOPPED', 'ERROR') AND NOT EXISTS"
        " (SELECT 1 FROM task t WHERE t.resource_id = s.id AND t.state IN ('RUNNING', 'UNWINDING'))",
    ),
    _Query(
        "port_not_ready", "port",
        f"SELECT p.id, p.node_id, p.project_id, {_TASK.format(id='p.server_id', owner='networkd')} AS owner,"
        " CASE p.observed_state WHEN '' THEN 'not reported' ELSE lower(p.observed_state) END"
        " || CASE p.observed_fault WHEN '' THEN '' ELSE ': ' || p.observed_fault END AS message, p.created_at AS since"
        " FROM port p WHERE p.node_id != '' AND p.purpose = 'server' AND p.observed_state != 'READY'"
        f" AND {_on_node('p.node_id', 'networkd')}",
    ),
    _Query(
        "router_not_ready", "router",
        "SELECT r.id, r.node_id, r.project_id, CASE r.node_id WHEN '' THEN 'router_placement' ELSE 'networkd' END AS owner,"
        " CASE WHEN r.node_id = '' THEN 'is on no node' WHEN r.observed_state = '' THEN 'not reported'"
        " ELSE lower(r.observed_state) || ' ' || r.observed_fault END AS message, r.created_at AS since"
        " FROM router r WHERE (r.node_id = '' OR r.observed_state != 'READY')"
        f" AND {_on_node('r.node_id', 'networkd')}",
    ),
    _Query(
        "volume_differs", "volume",
        f"SELECT v.id, v.node_id, v.project_id, {_TASK.format(id='v.id', owner='storaged')} AS owner,"
        " 'shall be ' || lower(v.state) || ', is ' || CASE v.observed_state WHEN '' THEN 'not reported'"
        " ELSE lower(v.observed_state) END || CASE v.observed_fault WHEN '' THEN '' ELSE ': ' || v.observed_fault END"
        " AS message, max(v.observed_at, v.created_at) AS since"
        " FROM volume v WHERE v.node_id != '' AND NOT v.absent AND v.observed_state != 'READY'"
        f" AND {_on_node('v.node_id', 'storaged')}",
    ),
    _Query(
        "volume_unattended", "volume",
        f"SELECT v.id, v.node_id, v.project_id, '{OPERATOR}' AS owner,"
        " 'is ' || v.state || ', and no task works on it' AS message, v.created_at AS since"
        " FROM volume v WHERE v.state IN ('CREATING', 'DELETING') AND NOT EXISTS"
        " (SELECT 1 FROM task t WHERE t.resource_id = v.id AND t.state IN ('RUNNING', 'UNWINDING'))",
    ),
    _Query(
        "export_differs", "attachment",
        f"SELECT a.id, v.node_id, a.project_id, {_TASK.format(id='a.volume_id', owner='storaged')} AS owner,"
        " 'volume ' || v.id || CASE WHEN a.exported THEN ' shall be offered, is ' ELSE ' shall not be offered, is ' END"
        " || CASE a.observed_export WHEN '' THEN 'not reported' ELSE lower(a.observed_export) END AS message,"
        " a.created_at AS since FROM attachment a JOIN volume v ON v.id = a.volume_id"
        " WHERE v.node_id != '' AND (a.exported AND a.observed_export != 'READY'"
        " OR NOT a.exported AND a.observed_export NOT IN ('', 'GONE'))"
        f" AND {_on_node('v.node_id', 'storaged')}",
    ),
    _Query(
        "disk_differs", "attachment",
        f"SELECT a.id, s.node_id, a.project_id, {_TASK.format(id='a.volume_id', owner='computed')} AS owner,"
        " 'server ' || s.id || CASE WHEN a.connected THEN ' has not got volume ' ELSE ' still has volume ' END || a.volume_id"
        " AS message, a.created_at AS since FROM attachment a JOIN server s ON s.id = a.server_id"
        " WHERE s.state IN ('ACTIVE', 'STOPPED') AND a.connected !="
        f" EXISTS (SELECT 1 FROM json_each({_ATTACHED}) d WHERE d.value = a.id)"
        f" AND {_on_node('s.node_id', 'computed')}",
    ),
    _Query(
        "orphan_claim", "claim",
        "SELECT c.server_id AS id, c.node_id, '' AS project_id, 'orphan_claim' AS owner,"
        " 'a claim that no server stands behind' AS message, c.created_at AS since FROM claim c"
        " WHERE NOT EXISTS (SELECT 1 FROM server s WHERE s.id = c.server_id AND s.node_id = c.node_id)",
    ),
    _Query(
        "missing_claim", "server",
        f"SELECT s.id, s.node_id, s.project_id, '{OPERATOR}' AS owner, 'it holds nothing of its node' AS message,"
        " s.updated_at AS since FROM server s WHERE s.node_id != '' AND s.power NOT IN ('', 'ABSENT')"
        " AND NOT EXISTS (SELECT 1 FROM claim c WHERE c.server_id = s.id AND c.node_id = s.node_id)",
    ),
    _Query(
        "not_removed", "tombstone",
        "SELECT b.object_id AS id, b.node_id, '' AS project_id,"
        " CASE b.kind WHEN 'server' THEN 'computed' ELSE 'storaged' END AS owner,"
        " 'the node has yet to remove ' || b.kind || ' ' || b.object_id AS message, b.created_at AS since FROM tombstone b",
    ),
)  # fmt: skip


def all_of(tx: Tx) -> list[Difference]:
    """Every difference that there is now. `since` is the oldest time that the rows know of it."""
    names = {row["id"]: row["name"] for row in tx.each("SELECT id, name FROM node")}
    found: list[Difference] = []
    for query in _QUERIES:
        found += [_difference(query, row, names) for row in tx.each(f"{query.sql} LIMIT {ROWS_MAX}")]
    return found


def _difference(query: _Query, row: Row, names: dict[str, str]) -> Difference:
    return Difference(
        kind=query.kind, resource_kind=query.resource_kind, resource_id=row["id"],
        node=names.get(row["node_id"]) or row["node_id"], project_id=row["project_id"], owner=row["owner"],
        message=row["message"].strip(), since=row["since"],
    )  # fmt: skip
