"""Floating IPs in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controllerd.domain.floating_ip import FloatingIp
from controllerd.domain.page import Page, PageOf
from controllerd.domain.router import Router
from controllerd.store import event, node, router
from controllerd.store.database import Tx
from controllerd.store.table import Table

FLOATING_IPS = Table(FloatingIp, "floating_ip", "floating IP")


@dataclass(frozen=True)
class FloatingIpView:
    floating_ip: FloatingIp
    state: str
    server_id: str


def visible(tx: Tx, project_id: str, everything: bool, ip: str, page: Page) -> PageOf[FloatingIp]:
    whose = "(1 OR ?)" if everything else "project_id = ?"
    condition, values = ("ip = ?", [ip]) if ip else ("1", [])
    return FLOATING_IPS.page(tx, page, f"{whose} AND {condition}", project_id, *values)


def views(tx: Tx, items: Sequence[FloatingIp]) -> list[FloatingIpView]:
    lost = node.lost_nodes(tx, "networkd")
    routers = {r.id: r for r in router.by_ids(tx, {f.router_id for f in items}).values() if r.node_id not in lost}
    return [_view(tx, item, routers.get(item.router_id)) for item in items]


def _view(tx: Tx, item: FloatingIp, through: Router | None) -> FloatingIpView:
    """`through`: its router, unless the router's node is lost."""
    server_id = tx.value("SELECT server_id FROM port WHERE id = ?", item.port_id) if item.port_id else ""
    node_id = through.node_id if through else ""
    in_force = through is not None and item.ip in through.observed_floating_ips
    return FloatingIpView(item, item.state(node_id, in_force), str(server_id or ""))


def of_router(tx: Tx, router_id: str) -> list[FloatingIp]:
    return FLOATING_IPS.where(tx, "router_id = ? AND port_id != '' ORDER BY id", router_id)


def of_port(tx: Tx, port_id: str) -> list[FloatingIp]:
    return FLOATING_IPS.where(tx, "port_id != '' AND port_id = ? ORDER BY id", port_id)


def assign(tx: Tx, floating_ip: FloatingIp, port_id: str, fixed_ip: str, router_id: str) -> None:
    """Maps it, or unmaps it with "" for all three. The routers' nodes and the servers' watchers learn of it."""
    before = floating_ip.router_id
    FLOATING_IPS.update(tx, floating_ip.id, port_id=port_id, fixed_ip=fixed_ip, router_id=router_id)
    for touched in router.by_ids(tx, {before, router_id}).values():
        router.touch(tx, touched)
    tx.touch(floating_ip.id, floating_ip.port_id, port_id)


def unmap_port(tx: Tx, port_id: str) -> None:
    """The port goes."""
    for floating_ip in of_port(tx, port_id):
        assign(tx, floating_ip, "", "", "")
        event.record(tx, "floating_ip.unmap", floating_ip.project_id, floating_ip.id, "its port is gone", port_id=port_id)
