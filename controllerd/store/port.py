"""Ports in the store. Whatever changes what a node shall have touches every node that carries the port's network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from controllerd.domain.page import Page, PageOf
from controllerd.domain.port import DHCP, SERVER, AddressView, FixedIp, Port
from controllerd.store import network, node, subnet
from controllerd.store.database import Tx
from controllerd.store.table import Table
from daemonkit.errors import NetworkFailed

PORTS = Table(Port, "port", "port")

_AMONG = "IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True)
class PortView:
    """A port with what belongs to it."""

    port: Port
    fixed_ips: tuple[FixedIp, ...]
    group_ids: tuple[str, ...]
    node_name: str


class Bound(NamedTuple):
    """A port on some node, as others reach it. `server_*`: "" without a server."""

    port_id: str
    node_id: str
    mac: str
    server_id: str
    server_name: str
    ips: tuple[str, ...]
    vtep: str


def visible(tx: Tx, project_id: str, everything: bool, page: Page, **equal: str) -> PageOf[Port]:
    """The project's own; `equal`: column = value, "" = any."""
    filters = {column: value for column, value in equal.items() if value}
    conditions = "".join(f" AND {column} = ?" for column in filters)
    whose = "(1 OR ?)" if everything else "project_id = ?"
    return PORTS.page(tx, page, f"{whose}{conditions}", project_id, *filters.values())


def views(tx: Tx, ports: Iterable[Port]) -> list[PortView]:
    ports = list(ports)
    ids = [p.id for p in ports]
    ips, groups = fixed_ips(tx, ids), groups_of(tx, ids)
    names = {row["id"]: row["name"] for row in tx.each("SELECT id, name FROM node")}
    return [PortView(p, ips.get(p.id, ()), groups.get(p.id, ()), names.get(p.node_id, "")) for p in ports]


def fixed_ips(tx: Tx, port_ids: Iterable[str]) -> dict[str, tuple[FixedIp, ...]]:
    found: dict[str, tuple[FixedIp, ...]] = {}
    sql = f"SELECT port_id, subnet_id, ip FROM address WHERE port_id {_AMONG} ORDER BY port_id, ip_number, subnet_id"
    for row in tx.each(sql, json.dumps(list(port_ids))):
        found[row["port_id"]] = (*found.get(row["port_id"], ()), FixedIp(row["subnet_id"], row["ip"]))
    return found


def groups_of(tx: Tx, port_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    which = f"WHERE port_id {_AMONG} ORDER BY port_id, security_group_id"
    sql = f"SELECT port_id, security_group_id FROM port_security_group {which}"
    for row in tx.each(sql, json.dumps(list(port_ids))):
        found[row["port_id"]] = (*found.get(row["port_id"], ()), row["security_group_id"])
    return found


def mac_taken(tx: Tx, network_id: str, mac: str) -> bool:
    return bool(tx.value("SELECT 1 FROM port WHERE network_id = ? AND mac = ?", network_id, mac))


# ---------------------------------------------------------------- changes


def insert(tx: Tx, port: Port, group_ids: Iterable[str]) -> None:
    PORTS.insert(tx, port)
    for group_id in group_ids:
        tx.run("INSERT INTO port_security_group (port_id, security_group_id) VALUES (?, ?)", port.id, group_id)
    _touch(tx, port)


def update(tx: Tx, port: Port, **changes: object) -> None:
    """Touches the nodes of before and after: it may leave one, and come to another."""
    _touch(tx, port)
    PORTS.update(tx, port.id, **changes)
    _touch(tx, PORTS.get(tx, port.id))


def set_groups(tx: Tx, port: Port, group_ids: Iterable[str]) -> None:
    tx.run("DELETE FROM port_security_group WHERE port_id = ?", port.id)
    for group_id in group_ids:
        tx.run("INSERT INTO port_security_group (port_id, security_group_id) VALUES (?, ?)", port.id, group_id)
    _touch(tx, port)


def delete(tx: Tx, port: Port) -> None:
    """With its addresses and memberships; a floating IP mapped to it must be unmapped before."""
    _touch(tx, port)
    subnet.release_addresses(tx, port.id)
    tx.run("DELETE FROM port_security_group WHERE port_id = ?", port.id)
    PORTS.delete(tx, port.id)


def _touch(tx: Tx, port: Port) -> None:
    """A port on no node is in no node's state; one on a node is in that of all that carry its network."""
    tx.touch(port.id, port.server_id, port.router_id, port.node_id)
    if port.node_id:
        network.touch(tx, port.network_id)


def move(tx: Tx, port: Port, node_id: str) -> None:
    """Binds to a node ("" = to none). What was observed elsewhere no longer counts. Twice is once."""
    if port.node_id != node_id:
        update(tx, port, node_id=node_id, observed_state="", observed_fault="")


# ---------------------------------------------------------------- of servers


def of_server(tx: Tx, server_id: str) -> list[Port]:
    """In order of the server's interfaces."""
    return PORTS.where(tx, "server_id = ? ORDER BY position, created_at, id", server_id) if server_id else []


def of_routers(tx: Tx, router_ids: Iterable[str]) -> list[Port]:
    return PORTS.where(tx, f"router_id {_AMONG} ORDER BY created_at, id", json.dumps([r for r in router_ids if r]))


def of_network(tx: Tx, network_id: str) -> list[Port]:
    return PORTS.where(tx, "network_id = ? ORDER BY created_at, id", network_id)


def of_servers_on(tx: Tx, node_id: str) -> list[Port]:
    """Servers' ports on the node."""
    return PORTS.where(tx, "node_id = ? AND purpose = ? ORDER BY id", node_id, SERVER)


def bound_ends(tx: Tx, network_id: str) -> list[Bound]:
    """Ports of the network that can be reached by tunnels: those on a node that has told the address of its end."""
    ips: dict[str, tuple[str, ...]] = {}
    among = "SELECT id FROM port WHERE network_id = ? AND node_id != ''"
    sql = f"SELECT port_id, ip FROM address WHERE port_id IN ({among}) ORDER BY port_id, ip_number, subnet_id"
    for port_id, ip in tx.connection.execute(sql, (network_id,)):
        ips[port_id] = (*ips.get(port_id, ()), ip)
    sql = (
        "SELECT p.id, p.node_id, p.mac, s.id, s.name FROM port p LEFT JOIN server s ON s.id = p.server_id"
        " WHERE p.network_id = ? AND p.node_id != '' ORDER BY p.id"
    )
    rows = list(tx.connection.execute(sql, (network_id,)))
    vteps = node.vteps(tx, {row[1] for row in rows})
    return [
        Bound(port_id, node_id, mac, server_id or "", name or "", ips.get(port_id, ()), vteps[node_id])
        for port_id, node_id, mac, server_id, name in rows
        if node_id in vteps
    ]


def observe(tx: Tx, node_id: str, port_id: str, state: str, fault: str) -> None:
    """What the node reports of a port that it holds; what it says of others is not believed."""
    changed = tx.run(
        "UPDATE port SET observed_state = ?1, observed_fault = ?2 WHERE id = ?3 AND node_id = ?4"
        " AND (observed_state != ?1 OR observed_fault != ?2)",
        state, fault, port_id, node_id,
    )  # fmt: skip
    if changed:
        tx.touch(port_id, str(tx.value("SELECT server_id FROM port WHERE id = ?", port_id)))


def observed_on(tx: Tx, node_id: str, purpose: str) -> list[str]:
    """Ports of which the node has reported something."""
    sql = "SELECT id FROM port WHERE node_id = ? AND purpose = ? AND observed_state != ''"
    return [row["id"] for row in tx.all(sql, node_id, purpose)]


def dhcp_of(tx: Tx, subnet_id: str) -> Port | None:
    join = "JOIN address a ON a.port_id = port.id WHERE a.subnet_id = ? AND port.purpose = ?"
    found = PORTS.where(tx, join, subnet_id, DHCP)
    return found[0] if found else None


def bind(tx: Tx, server_id: str, node_id: str) -> None:
    """Tells the node, and all that carry the networks, that the server's ports are there. Twice is once."""
    for port in of_server(tx, server_id):
        move(tx, port, node_id)


def unbind(tx: Tx, server_id: str) -> None:
    bind(tx, server_id, "")


def touch_server(tx: Tx, server_id: str) -> None:
    """The server's name changed: it is a host name on every node of its networks."""
    for port in of_server(tx, server_id):
        _touch(tx, port)


def ready(tx: Tx, server_id: str) -> bool:
    """Whether the node reports all ports of the server in place. Errors: NetworkFailed with what the node says."""
    ports = of_server(tx, server_id)
    for port in ports:
        if port.observed_state == "FAILED":
            raise NetworkFailed(f"port {port.id}: {port.observed_fault or 'the node gives no reason'}", port=port.id)
    return all(port.node_id and port.observed_state == "READY" for port in ports)


def addresses(tx: Tx, server_ids: Iterable[str]) -> dict[str, list[AddressView]]:
    """Server -> its addresses, in order of its interfaces. One query for a whole list."""
    found: dict[str, list[AddressView]] = {}
    rows = tx.each(
        "SELECT p.server_id, p.network_id, n.name AS network_name, p.id AS port_id, a.ip, p.mac,"
        " coalesce(f.ip, '') AS floating_ip FROM port p JOIN network n ON n.id = p.network_id"
        " JOIN address a ON a.port_id = p.id"
        " LEFT JOIN floating_ip f ON f.port_id != '' AND f.port_id = p.id AND f.fixed_ip = a.ip"
        f" WHERE p.server_id {_AMONG} AND p.purpose = ? ORDER BY p.server_id, p.position, p.created_at, p.id, a.ip_number",
        json.dumps([s for s in server_ids if s]), SERVER,
    )  # fmt: skip
    for row in rows:
        found.setdefault(row.pop("server_id"), []).append(AddressView(**row))
    return found
