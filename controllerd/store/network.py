"""Networks in the store, and which nodes must know what happens on them.

A node carries a network when a port of it is bound there, a router's ports included: then it has the segment, the tunnels to
all others that carry it, and an entry for every port elsewhere. So whatever happens to a bound port, an address, a group
member or a subnet concerns all nodes that carry its network: `touch` it. The node of a port is touched besides, by its own
id, before the change and after it: what is there and nowhere else may change too, and it may begin or cease to carry the
network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from controllerd.domain.network import VNI_MAX, Network
from controllerd.domain.page import Page, PageOf
from controllerd.domain.port import DHCP, FLOATING_IP
from controllerd.store.database import Row, Tx
from controllerd.store.table import Table, like_name

NETWORKS = Table(Network, "network", "network")

CARRIED = "network:"  # and a network's id: touched for all nodes that carry it

_VNI_TRIES = 20


def visible(tx: Tx, project_id: str, everything: bool, name: str, external: bool | None, page: Page) -> PageOf[Network]:
    """The project's own, shared and external ones; `everything`: all projects'."""
    condition, named = like_name(name)
    values: list[str | int] = list(named)
    if external is not None:
        condition += " AND external = ?"
        values.append(int(external))
    whose = "1 OR ?" if everything else "shared OR external OR project_id = ?"
    return NETWORKS.page(tx, page, f"({whose}) AND {condition}", project_id, *values)


def usable(tx: Tx, project_id: str) -> list[Network]:
    """Networks that a server of the project can be on when none is named: its own first, else shared ones."""
    own = NETWORKS.where(tx, "project_id = ? AND NOT external ORDER BY created_at, id LIMIT 2", project_id)
    return own or NETWORKS.where(tx, "shared AND NOT external ORDER BY created_at, id LIMIT 2")


def free_vni(tx: Tx) -> int:
    """A network identifier that nobody has; random, so that one is not soon used again."""
    for _ in range(_VNI_TRIES):
        vni = tx.runtime.rng.randint(1, VNI_MAX)
        if not tx.value("SELECT 1 FROM network WHERE vni = ?", vni):
            return vni
    sql = "SELECT min(vni) + 1 FROM network n WHERE NOT EXISTS (SELECT 1 FROM network WHERE vni = n.vni + 1)"
    return int(tx.value(sql))


def subnet_ids(tx: Tx, network_ids: Iterable[str]) -> dict[str, list[str]]:
    """Network -> its subnets, in order of creation."""
    found: dict[str, list[str]] = {}
    sql = "SELECT network_id, id FROM subnet WHERE network_id IN (SELECT value FROM json_each(?)) ORDER BY created_at, id"
    for row in tx.each(sql, json.dumps(list(network_ids))):
        found.setdefault(row["network_id"], []).append(row["id"])
    return found


def used_by(tx: Tx, network_id: str) -> str:
    """What keeps the network, as `describe` says it; "" for nothing. DHCP goes with its subnet."""
    sql = "SELECT server_id, router_id, purpose, id FROM port WHERE network_id = ? AND purpose != ?"
    row = tx.one(f"{sql} ORDER BY server_id DESC, router_id DESC LIMIT 1", network_id, DHCP)
    return "" if row is None else describe(row)


def describe(row: Row) -> str:
    """Whose port it is, for an error: "server ID", "router ID", "a floating IP (port ID)" or "port ID"."""
    if row["server_id"]:
        return f"server {row['server_id']}"
    if row["purpose"] == FLOATING_IP:
        return f"a floating IP (port {row['id']})"
    return f"router {row['router_id']}" if row["router_id"] else f"port {row['id']}"


def foreign_port(tx: Tx, network: Network) -> str:
    """A port of another project, "" for none. (Ports of project "" are the cloud's own.)"""
    sql = "SELECT id FROM port WHERE network_id = ? AND project_id NOT IN ('', ?) LIMIT 1"
    return str(tx.value(sql, network.id, network.project_id) or "")


def carried_by(tx: Tx, node_id: str) -> list[str]:
    """Networks that the node carries."""
    return [row["network_id"] for row in tx.each("SELECT DISTINCT network_id FROM port WHERE node_id = ?", node_id)]


def touch(tx: Tx, *network_ids: str) -> None:
    """What all nodes that carry one of the networks know of it has changed."""
    tx.touch(*(CARRIED + network_id for network_id in network_ids))


def touch_peers(tx: Tx, node_id: str) -> None:
    """Every node that shares a network with this one: its tunnels' address changed."""
    touch(tx, *carried_by(tx, node_id))
