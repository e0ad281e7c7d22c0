"""Routers in the store, and the nodes that may take them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controllerd.domain.page import Page, PageOf
from controllerd.domain.port import ROUTER_GATEWAY, Port
from controllerd.domain.router import GatewayNode, Router
from controllerd.domain.subnet import Subnet
from controllerd.store import port
from controllerd.store.database import Tx
from controllerd.store.subnet import SUBNETS, owner_of
from controllerd.store.table import Table, like_name

ROUTERS = Table(Router, "router", "router")


@dataclass(frozen=True)
class Leg:
    """A router's port with its address and the subnet that it is of."""

    port: Port
    ip: str
    subnet: Subnet

    @property
    def external(self) -> bool:
        return self.port.purpose == ROUTER_GATEWAY


def visible(tx: Tx, project_id: str, everything: bool, name: str, page: Page) -> PageOf[Router]:
    condition, values = like_name(name)
    whose = "(1 OR ?)" if everything else "project_id = ?"
    return ROUTERS.page(tx, page, f"{whose} AND {condition}", project_id, *values)


def legs(tx: Tx, router_id: str) -> list[Leg]:
    """Interfaces and gateway, in order of creation."""
    return legs_of(tx, [router_id]).get(router_id, [])


def legs_of(tx: Tx, router_ids: Iterable[str]) -> dict[str, list[Leg]]:
    """Router -> its legs, for a whole list at once."""
    ports = port.of_routers(tx, router_ids)
    ips = port.fixed_ips(tx, (p.id for p in ports))
    wanted = json.dumps(list({fixed.subnet_id for owned in ips.values() for fixed in owned}))
    subnets = {s.id: s for s in SUBNETS.where(tx, "id IN (SELECT value FROM json_each(?))", wanted)}
    found: dict[str, list[Leg]] = {}
    for owned in ports:
        found.setdefault(owned.router_id, []).extend(Leg(owned, f.ip, subnets[f.subnet_id]) for f in ips.get(owned.id, ()))
    return found


def touch(tx: Tx, router: Router) -> None:
    tx.touch(router.id, router.node_id)


def leading_out(tx: Tx, subnet_id: str, external_network_id: str) -> Router | None:
    """The router that has the subnet's gateway address, if its own gateway is on that network."""
    gateway_ip = SUBNETS.get(tx, subnet_id).gateway_ip
    holder = port.PORTS.find(tx, owner_of(tx, subnet_id, gateway_ip)) if gateway_ip else None
    router = ROUTERS.find(tx, holder.router_id) if holder else None
    return router if router and router.external_network_id == external_network_id else None


def on_node(tx: Tx, node_id: str) -> list[Router]:
    return ROUTERS.where(tx, "node_id = ? ORDER BY id", node_id)


def observe(tx: Tx, node_id: str, router_id: str, state: str, fault: str, floating_ips: tuple[str, ...]) -> bool:
    """What the node reports of a router that it holds. Its ports are in the state that it is in. False: it holds none."""
    router = ROUTERS.find(tx, router_id)
    if router is None or router.node_id != node_id:
        return False
    seen = (state, fault, floating_ips)
    if seen == (router.observed_state, router.observed_fault, router.observed_floating_ips):
        return True
    ROUTERS.update(tx, router_id, observed_state=state, observed_fault=fault, observed_floating_ips=floating_ips)
    sql = "SELECT id FROM floating_ip WHERE router_id = ? AND port_id != ''"
    tx.touch(router_id, *(row["id"] for row in tx.each(sql, router_id)))
    for owned in port.of_routers(tx, [router_id]):
        port.observe(tx, node_id, owned.id, state, fault)
    return True


# ---------------------------------------------------------------- placement


def gateway_nodes(tx: Tx) -> list[GatewayNode]:
    """Enabled nodes of the role gateway whose networkd is not lost."""
    rows = tx.each(
        "SELECT n.id, n.name, n.roles, a.inventory, (SELECT count(*) FROM router r WHERE r.node_id = n.id) AS routers"
        " FROM node n JOIN agent a ON a.node_id = n.id AND a.kind = 'networkd' WHERE n.enabled AND NOT a.lost"
    )
    return [_gateway_node(row) for row in rows if "gateway" in json.loads(row["roles"])]


def _gateway_node(row: Mapping[str, object]) -> GatewayNode:
    inventory = json.loads(str(row["inventory"]))
    fit = bool(inventory.get("network", {}).get("gateway"))
    return GatewayNode(str(row["id"]), str(row["name"]), fit, int(str(row["routers"])))


def homeless(tx: Tx, lost_before: float) -> list[str]:
    """Routers on no node, on one that is gone, or on one whose networkd was last seen before then and is lost."""
    sql = (
        "SELECT r.id FROM router r LEFT JOIN agent a ON a.node_id = r.node_id AND a.kind = 'networkd'"
        " WHERE r.node_id = '' OR a.node_id IS NULL OR (a.lost AND a.last_seen_at < ?) ORDER BY r.created_at, r.id"
    )
    return [row["id"] for row in tx.each(sql, lost_before)]


def move(tx: Tx, router_id: str, node_id: str) -> None:
    """With its ports: every node that carries its networks learns where their gateway went."""
    router = ROUTERS.get(tx, router_id)
    touch(tx, router)
    ROUTERS.update(tx, router_id, node_id=node_id, observed_state="", observed_fault="", observed_floating_ips=())
    for owned in port.of_routers(tx, [router_id]):
        port.move(tx, owned, node_id)
    tx.touch(router_id, node_id)


def by_ids(tx: Tx, router_ids: Iterable[str]) -> dict[str, Router]:
    found = ROUTERS.where(tx, "id IN (SELECT value FROM json_each(?))", json.dumps([i for i in router_ids if i]))
    return {router.id: router for router in found}
