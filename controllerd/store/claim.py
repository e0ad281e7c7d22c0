"""Claims: what servers hold of the nodes. Taken in the transaction that chooses the node, so they are exact.

The connection that writes keeps a board of all candidates in memory for the scheduler: reading every node for each placement
would cost more than the rest of a launch. It is exact whatever is undone, and what is chosen from it is checked once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import apsw

from controllerd.domain.placement import Candidate, Ratios
from controllerd.domain.server import Server
from controllerd.store import node
from controllerd.store.database import Row, Tx

_INVENTORIES_KEPT = 4096

_NODES = (
    "SELECT n.id, n.name, n.roles, n.enabled, c.inventory, coalesce(c.connected AND w.connected, 0) AS in_session,"
    " coalesce(c.lost OR w.lost, 1) AS lost FROM node n"
    " LEFT JOIN agent c ON c.node_id = n.id AND c.kind = 'computed'"
    " LEFT JOIN agent w ON w.node_id = n.id AND w.kind = 'networkd'"
)

# Temporary triggers of the connection that writes tell which nodes' rows change, whoever changes them and by what SQL. A
# replaced row fires no DELETE, so an INSERT looks at what it replaces.
_WATCHED = {"node": "id", "agent": "node_id", "claim": "node_id", "tombstone": "node_id"}
_TRIGGERS = "".join(
    f"CREATE TEMP TRIGGER stock_{table}_insert BEFORE INSERT ON main.{table} BEGIN SELECT stock_note(new.{column}); END;"
    f"CREATE TEMP TRIGGER stock_{table}_update AFTER UPDATE ON main.{table}"
    f" BEGIN SELECT stock_note(old.{column}), stock_note(new.{column}); END;"
    f"CREATE TEMP TRIGGER stock_{table}_delete AFTER DELETE ON main.{table} BEGIN SELECT stock_note(old.{column}); END;"
    for table, column in _WATCHED.items()
) + (
    "CREATE TEMP TRIGGER stock_claim_move BEFORE INSERT ON main.claim"
    " BEGIN SELECT stock_note(node_id) FROM claim WHERE server_id = new.server_id; END;"
)
_ASKED_ONE_BY_ONE_MAX = 500  # nodes; for more, all are read


# ?1 server, ?2 node, ?3 vCPUs, ?4 MiB, ?5 GiB, ?6 now, ?7 to ?9 ratios. Whoever chose the node did so from memory; that no
# more is given out than there is must not hang on it.
_HOLD = (
    "INSERT INTO claim (server_id, node_id, vcpus, memory_mib, disk_gib, created_at) SELECT ?1, ?2, ?3, ?4, ?5, ?6"
    " FROM (SELECT coalesce(sum(vcpus), 0) AS vcpus, coalesce(sum(memory_mib), 0) AS memory_mib,"
    " coalesce(sum(disk_gib), 0) AS disk_gib FROM"
    " (SELECT vcpus, memory_mib, disk_gib FROM claim WHERE node_id = ?2 AND server_id != ?1"
    " UNION ALL SELECT vcpus, memory_mib, disk_gib FROM tombstone WHERE node_id = ?2)) held,"
    " (SELECT json_extract(inventory, '$.compute') AS there FROM agent WHERE node_id = ?2 AND kind = 'computed')"
    " WHERE held.vcpus + ?3 <= coalesce(CAST(there ->> 'vcpus' AS INTEGER), 0) * ?7"
    " AND held.memory_mib + ?4 <= coalesce(CAST(there ->> 'memory_mib' AS INTEGER), 0) * ?8"
    " AND held.disk_gib + ?5 <= coalesce(CAST(there ->> 'disk_gib' AS INTEGER), 0) * ?9"
    " ON CONFLICT (server_id) DO UPDATE SET node_id = ?2, vcpus = ?3, memory_mib = ?4, disk_gib = ?5, created_at = ?6"
)


class Board(Protocol):
    """What a scheduler keeps of the candidates."""

    def fill(self, candidates: Iterable[Candidate]) -> None: ...

    def put(self, candidate: Candidate) -> None: ...

    def drop(self, node_id: str) -> None: ...


B = TypeVar("B", bound=Board)


@dataclass
class _Kept:
    """A board and what it may not know: nodes written to since it was brought up to date.

    What is read in a transaction may be undone with it, so nodes written to in the transaction under way stay doubtful, and
    are read at every look, until it has ended one way or the other.
    """

    board: Board
    doubtful: set[str] = field(default_factory=set)  # written to in the transaction under way
    ended: set[str] = field(default_factory=set)  # written to in one that has ended since

    def note(self, *node_ids: Any) -> None:
        """As a function of SQL."""
        self.doubtful.update(node_ids)

    def end(self) -> None:
        self.ended |= self.doubtful
        self.doubtful.clear()

    def commit(self) -> bool:
        """False lets the commit go on."""
        self.end()
        return False


_KEPT: WeakKeyDictionary[apsw.Connection, _Kept] = WeakKeyDictionary()


def board(tx: Tx, make: Callable[[], B]) -> B:
    """The board of this connection, made by `make()` the first time, with every node as this transaction sees it.

    Reads only nodes whose rows were written to since the last look. Only where `tx` may write.
    """
    kept = _KEPT.get(tx.connection)
    if kept is None:
        kept = _KEPT[tx.connection] = _keep(tx, make())
    if not _watches(tx):
        tx.connection.execute(_TRIGGERS)
        kept.note(*node.names(tx))  # this transaction may have written before, and may be undone
        kept.board.fill(candidates(tx))
    elif len(kept.doubtful) + len(kept.ended) > _ASKED_ONE_BY_ONE_MAX:
        kept.board.fill(candidates(tx))
    else:
        _renew(tx, kept)
    kept.ended.clear()
    return cast(B, kept.board)


def _watches(tx: Tx) -> bool:
    """Triggers made in a transaction that was undone are gone, and with them what they would have told."""
    return bool(tx.value("SELECT 1 FROM temp.sqlite_schema WHERE name = 'stock_claim_move'"))


def _keep(tx: Tx, made: Board) -> _Kept:
    kept = _Kept(made)
    tx.connection.create_scalar_function("stock_note", kept.note, 1)
    tx.connection.set_commit_hook(kept.commit, id="stock")
    tx.connection.set_rollback_hook(kept.end, id="stock")
    return kept


def _renew(tx: Tx, kept: _Kept) -> None:
    asked = kept.doubtful | kept.ended
    if not asked:
        return
    found = {c.node_id: c for c in candidates(tx, asked)}
    for node_id in asked:
        if node_id in found:
            kept.board.put(found[node_id])
        else:
            kept.board.drop(node_id)


def candidates(tx: Tx, node_ids: Iterable[str] | None = None) -> list[Candidate]:
    """Every node (or these), with what is there and what is taken now, by name."""
    if node_ids is None:
        rows, held = tx.each(f"{_NODES} ORDER BY n.name"), node.holdings(tx)
    else:
        among = json.dumps(sorted(node_ids))
        rows = tx.each(f"{_NODES} WHERE n.id IN (SELECT value FROM json_each(?)) ORDER BY n.name", among)
        held = node.holdings(tx, among)
    return [_candidate(row, held.get(row["id"], _NOTHING)) for row in rows]


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


def hold(tx: Tx, server: Server, node_id: str, ratios: Ratios) -> bool:
    """Twice is once; a claim on another node moves. False: the node has not so much left, nothing was done, and the board
    reads the node again before its next answer."""
    held = tx.run(_HOLD, server.id, node_id, server.vcpus, server.memory_mib, server.disk_gib, tx.now,
                  ratios.vcpu, ratios.memory, ratios.disk)  # fmt: skip
    if not held and tx.connection in _KEPT:
        _KEPT[tx.connection].ended.add(node_id)
    return bool(held)


def release(tx: Tx, server_id: str) -> None:
    tx.run("DELETE FROM claim WHERE server_id = ?", server_id)


def release_orphans(tx: Tx) -> list[str]:
    """Drops claims that no server on that node stands behind; gives their server ids."""
    condition = "NOT EXISTS (SELECT 1 FROM server s WHERE s.id = claim.server_id AND s.node_id = claim.node_id)"
    orphans = [row["server_id"] for row in tx.each(f"SELECT server_id FROM claim WHERE {condition}")]
    if orphans:
        tx.run(f"DELETE FROM claim WHERE {condition}")
    return orphans
