"""Servers in the store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from controllerd.domain.page import Page, PageOf
from controllerd.domain.server import HIDDEN_BY_LOSS, Server
from controllerd.store import node
from controllerd.store.database import Tx
from controllerd.store.table import Table, like_name

SERVERS = Table(Server, "server", "server")

# Of what changes in a server's life: what no agent is told, and what networkd is not told.
_UNTOLD = {"state", "launched_at", "fault_reason", "fault_message", "fault_details"}
_UNTOLD |= {"observed_state", "observed_fault", "observed_attached", "observed_at", "observed_milestones"}
_TOLD_TO_COMPUTED = {"power", "node_id"}

_OF_NODE = "IN (SELECT id FROM server WHERE node_id = ?)"

# `Server.shown` in SQL.
_SHOWN = (
    f"CASE WHEN node_id != '' AND state IN ({', '.join(repr(s) for s in HIDDEN_BY_LOSS)}) AND EXISTS"
    " (SELECT 1 FROM agent a WHERE a.node_id = server.node_id AND a.kind = 'computed' AND a.lost) THEN 'UNKNOWN'"
    " WHEN state = 'ACTIVE' AND observed_state = 'PAUSED' THEN 'PAUSED' ELSE state END"
)


@dataclass(frozen=True)
class Nic:
    """An interface of a server as its hypervisor needs it."""

    port_id: str
    mac: str
    mtu: int


@dataclass(frozen=True)
class DiskSource:
    """A volume for a guest, and where its storage node offers it."""

    attachment_id: str
    volume_id: str
    device: str  # as stored: "vdb"
    export_name: str
    nbd_host: str
    nbd_port: int


def insert(tx: Tx, server: Server, user_data: bytes) -> Server:
    SERVERS.insert(tx, server)
    if user_data:
        tx.run("INSERT INTO user_data (server_id, data) VALUES (?, ?)", server.id, user_data)
    tx.touch(server.id)
    return server


def user_data_of(tx: Tx, server_ids: Iterable[str]) -> dict[str, bytes]:
    """Server -> its user data, of those that have some."""
    sql = "SELECT server_id, data FROM user_data WHERE server_id IN (SELECT value FROM json_each(?))"
    return {row["server_id"]: bytes(row["data"]) for row in tx.each(sql, json.dumps(list(server_ids)))}


def by_ids(tx: Tx, server_ids: Iterable[str]) -> list[Server]:
    return SERVERS.where(tx, "id IN (SELECT value FROM json_each(?))", json.dumps(sorted({i for i in server_ids if i})))


def change(tx: Tx, server: Server, **changes: Any) -> Server:
    """Touches the server and, of the nodes it is, or was, on, the agents that are told what changes."""
    changed = replace(server, **changes, updated_at=tx.now)
    SERVERS.update(tx, server.id, **changes, updated_at=tx.now)
    tx.touch(server.id)
    told = changes.keys() - _UNTOLD
    for node_id in {server.node_id, changed.node_id} if told else ():
        tx.touch(node_id if told - _TOLD_TO_COMPUTED else node.key_of_agent(node_id, "computed"))
    return changed


def command(tx: Tx, server: Server, power: str, **changes: Any) -> Server:
    """Tells the node a new power. What it reported before does not answer this, so it is forgotten."""
    return change(tx, server, power=power, observed_state="", observed_fault="", observed_at=tx.now, **changes)


def observe(tx: Tx, server: Server, state: str, fault: str, attached: tuple[str, ...], milestones: dict[str, float]) -> Server:
    """What its node reports. `observed_at` moves with the state only."""
    seen = replace(
        server, observed_state=state, observed_fault=fault, observed_attached=attached, observed_milestones=milestones,
        observed_at=server.observed_at if state == server.observed_state else tx.now,
    )  # fmt: skip
    if seen != server:
        changes = {name: value for name, value in vars(seen).items() if value != getattr(server, name)}
        SERVERS.update(tx, server.id, **changes)
        tx.touch(server.id)
    return seen


def delete(tx: Tx, server: Server) -> None:
    SERVERS.delete(tx, server.id)
    tx.run("DELETE FROM user_data WHERE server_id = ?", server.id)
    tx.touch(server.id, server.node_id)


def visible(tx: Tx, project_id: str, everything: bool, name: str, state: str, page: Page) -> PageOf[Server]:
    """`state`: as shown, "" = any."""
    condition, values = like_name(name)
    if state:
        condition, values = f"{condition} AND ({_SHOWN}) = ?", [*values, state]
    whose = "(1 OR ?)" if everything else "project_id = ?"
    return SERVERS.page(tx, page, f"{whose} AND {condition}", project_id, *values)


def of_node(tx: Tx, node_id: str) -> list[Server]:
    return SERVERS.where(tx, "node_id = ? ORDER BY id", node_id)


def ids_of_node(tx: Tx, node_id: str) -> list[str]:
    return [row["id"] for row in tx.each("SELECT id FROM server WHERE node_id = ?", node_id)]


def nics_of_node(tx: Tx, node_id: str) -> dict[str, list[Nic]]:
    """Server -> its interfaces in order, of all servers on the node in one query."""
    found: dict[str, list[Nic]] = {}
    rows = tx.each(
        "SELECT p.server_id, p.id, p.mac, n.mtu FROM port p JOIN network n ON n.id = p.network_id"
        f" WHERE p.server_id {_OF_NODE} ORDER BY p.server_id, p.position, p.created_at, p.id", node_id,
    )  # fmt: skip
    for row in rows:
        found.setdefault(row["server_id"], []).append(Nic(row["id"], row["mac"], row["mtu"]))
    return found


def disks_of_node(tx: Tx, node_id: str) -> dict[str, list[DiskSource]]:
    """Server -> volumes its guest shall have now: connected, and offered by their storage node.

    One that the guest has stays, whatever its storage node says at the moment: a restart there must not pull disks out.
    """
    found: dict[str, list[DiskSource]] = {}
    rows = tx.each(
        "SELECT t.server_id, t.id, t.volume_id, t.device, t.export_name,"
        " json_extract(a.inventory, '$.storage.nbd_host') AS host, json_extract(a.inventory, '$.storage.nbd_port') AS port"
        " FROM attachment t JOIN volume v ON v.id = t.volume_id"
        " LEFT JOIN agent a ON a.node_id = v.node_id AND a.kind = 'storaged'"
        f" WHERE t.server_id {_OF_NODE} AND t.connected AND (t.state = 'ATTACHED' OR t.observed_export = 'READY')"
        " ORDER BY t.server_id, t.device", node_id,
    )  # fmt: skip
    for row in rows:
        disk = DiskSource(
            row["id"], row["volume_id"], row["device"], row["export_name"], row["host"] or "", int(row["port"] or 0)
        )
        found.setdefault(row["server_id"], []).append(disk)
    return found


def unattended(tx: Tx, states: Iterable[str]) -> list[Server]:
    """Servers in one of the states that no unfinished task stands behind."""
    return SERVERS.where(
        tx,
        "state IN (SELECT value FROM json_each(?)) AND NOT EXISTS (SELECT 1 FROM task t WHERE t.resource_id = server.id"
        " AND t.state IN ('RUNNING', 'UNWINDING'))",
        json.dumps(list(states)),
    )
