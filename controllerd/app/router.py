"""Routers: where subnets meet, and the way out. A router runs on the gateway node that has the fewest of them; while there is
none it is DOWN, and `reconcilers.router_placement` finds it one later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from controllerd.app.cloud import Cloud, Once, owned
from controllerd.app.network import changeable, external
from controllerd.app.port import NewPort, delete_port, place_port
from controllerd.app.subnet import seen
from controllerd.domain.address import HostRoute, overlapping
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.port import DOWN, ROUTER_GATEWAY, ROUTER_INTERFACE
from controllerd.domain.router import ROUTES_MAX, Router, plan_placement
from controllerd.domain.subnet import Subnet, check_routes
from controllerd.store import event, floating_ip, node, quota
from controllerd.store import router as store
from controllerd.store import subnet as subnet_store
from controllerd.store.database import Tx
from controllerd.store.network import NETWORKS
from controllerd.store.router import ROUTERS, Leg
from daemonkit.errors import Conflict, InvalidArgument

DEFAULT_ROUTE = "0.0.0.0/0"


@dataclass(frozen=True)
class RouterView:
    router: Router
    legs: tuple[Leg, ...]
    node_name: str
    lost: bool  # the node is: what it reported last no longer counts

    @property
    def state(self) -> str:
        return DOWN if self.lost else self.router.state

    @property
    def fault(self) -> str:
        if not self.router.node_id:
            return "no gateway node is there to take it"
        return "its node is lost; another takes it soon, if there is one" if self.lost else self.router.observed_fault


class Routers:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def create(self, caller: Caller, name: str, external_network_id: str, snat: bool, once: Once) -> RouterView:
        """`external_network_id`: "" = no gateway. `snat`: hide inner addresses behind the gateway's."""
        authorise(caller, "router.create")

        def make(tx: Tx) -> RouterView:
            quota.take(tx, caller.project_id, routers=1)
            router_id = tx.new_id()
            node_id = plan_placement([router_id], store.gateway_nodes(tx)).get(router_id, "")
            router = Router(router_id, name, caller.project_id, "", snat, (), node_id, tx.now, "", "", ())
            ROUTERS.insert(tx, router)
            if external_network_id:
                _set_gateway(tx, caller, router, external_network_id)
            store.touch(tx, router)
            event.record(tx, "router.create", caller.project_id, router_id, name)
            return _view(tx, router_id)

        return await self._db.write(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: _view(tx, i), lambda view: view.router.id)
        )

    async def get(self, caller: Caller, router_id: str) -> RouterView:
        authorise(caller, "router.get")
        return await self._db.read(lambda tx: _view(tx, _own(tx, caller, router_id).id))

    async def list(self, caller: Caller, name: str, all_projects: bool, page: Page) -> PageOf[RouterView]:
        authorise(caller, "router.list")
        if all_projects:
            authorise(caller, "all_projects")

        def find(tx: Tx) -> PageOf[RouterView]:
            found = store.visible(tx, caller.project_id, all_projects, name, page)
            return PageOf(_views(tx, found.items), found.next_token)

        return await self._db.read(find)

    async def update(
        self, caller: Caller, router_id: str, external_network_id: str | None = None,
        routes: tuple[HostRoute, ...] | None = None, **changes: str | bool,
    ) -> RouterView:  # fmt: skip
        """`changes`: name, snat. `external_network_id`: None keeps the gateway, "" takes it away. `routes`: None keeps them."""
        authorise(caller, "router.update")

        def change(tx: Tx) -> RouterView:
            router = replace(_own(tx, caller, router_id), **changes)  # type: ignore[arg-type]
            if changes:
                ROUTERS.update(tx, router_id, **changes)
            if routes is not None:
                router = replace(router, routes=routes)
                ROUTERS.update(tx, router_id, routes=routes)
            if external_network_id is not None and external_network_id != router.external_network_id:
                _clear_gateway(tx, router)
                if external_network_id:
                    _set_gateway(tx, caller, router, external_network_id)
            _check_routes(router.routes, store.legs(tx, router_id))
            store.touch(tx, router)
            event.record(tx, "router.update", router.project_id, router_id)
            return _view(tx, router_id)

        return await self._db.write(change)

    async def delete(self, caller: Caller, router_id: str) -> None:
        """Errors: Conflict naming an interface that is left."""
        authorise(caller, "router.delete")

        def remove(tx: Tx) -> None:
            router = _own(tx, caller, router_id)
            inner = [leg for leg in store.legs(tx, router_id) if not leg.external]
            if inner:
                raise Conflict(f"the router has an interface on subnet {inner[0].subnet.id}", subnet=inner[0].subnet.id)
            _clear_gateway(tx, router)
            store.touch(tx, router)
            ROUTERS.delete(tx, router_id)
            event.record(tx, "router.delete", router.project_id, router_id, router.name)

        await self._db.write(remove)

    async def add_interface(self, caller: Caller, router_id: str, subnet_id: str) -> RouterView:
        """Takes the subnet's gateway address. Adding what is there already changes nothing."""
        authorise(caller, "router.update")

        def add(tx: Tx) -> RouterView:
            router = _own(tx, caller, router_id)
            legs = store.legs(tx, router_id)
            if subnet_id not in {leg.subnet.id for leg in legs if not leg.external}:
                _add_leg(tx, caller, router, legs, seen(tx, caller, subnet_id))
            return _view(tx, router_id)

        return await self._db.write(add)

    async def remove_interface(self, caller: Caller, router_id: str, subnet_id: str) -> RouterView:
        """Errors: NotFound, Conflict naming the floating IP or route that needs it."""
        authorise(caller, "router.update")

        def remove(tx: Tx) -> RouterView:
            router = _own(tx, caller, router_id)
            legs = store.legs(tx, router_id)
            leg = next((leg for leg in legs if leg.subnet.id == subnet_id and not leg.external), None)
            if leg is None:
                raise Conflict(f"the router has no interface on subnet {subnet_id[:64]!r}")
            for mapped in floating_ip.of_router(tx, router_id):
                if IPv4Address(mapped.fixed_ip) in leg.subnet.range:
                    raise Conflict(f"floating IP {mapped.ip} goes through it", floating_ip=mapped.id)
            _check_routes(router.routes, [other for other in legs if other is not leg], removing=True)
            delete_port(tx, leg.port)
            store.touch(tx, router)
            event.record(tx, "router.remove_interface", router.project_id, router_id, subnet_id=subnet_id)
            return _view(tx, router_id)

        return await self._db.write(remove)


def _own(tx: Tx, caller: Caller, router_id: str) -> Router:
    router = ROUTERS.get(tx, router_id)
    owned(caller, ROUTERS.kind, router_id, router.project_id)
    return router


def _view(tx: Tx, router_id: str) -> RouterView:
    return _views(tx, [ROUTERS.get(tx, router_id)])[0]


def _views(tx: Tx, routers: Sequence[Router]) -> list[RouterView]:
    legs, names, lost = store.legs_of(tx, (r.id for r in routers)), node.names(tx), node.lost_nodes(tx, "networkd")
    return [RouterView(r, tuple(legs.get(r.id, ())), names.get(r.node_id, ""), r.node_id in lost) for r in routers]


def _add_leg(tx: Tx, caller: Caller, router: Router, legs: list[Leg], subnet: Subnet) -> None:
    if NETWORKS.get(tx, subnet.network_id).external:
        raise InvalidArgument("subnet_id", "is of an external network: set that as the router's gateway")
    network = changeable(tx, caller, subnet.network_id)
    if not subnet.gateway_ip:
        raise InvalidArgument("subnet_id", "the subnet has no gateway address, which the router would take")
    if other := overlapping(subnet.cidr, (leg.subnet.cidr for leg in legs)):
        raise InvalidArgument("subnet_id", f"{subnet.cidr} overlaps {other}, on which the router is already")
    if holder := subnet_store.owner_of(tx, subnet.id, subnet.gateway_ip):
        raise Conflict(f"the gateway address {subnet.gateway_ip} is taken by port {holder}", port=holder)
    new = NewPort(
        network.id, fixed_ips=((subnet.id, subnet.gateway_ip),), purpose=ROUTER_INTERFACE, router_id=router.id,
        node_id=router.node_id,
    )  # fmt: skip
    place_port(tx, network, router.project_id, new)
    store.touch(tx, router)
    event.record(tx, "router.add_interface", router.project_id, router.id, subnet_id=subnet.id)


def _set_gateway(tx: Tx, caller: Caller, router: Router, network_id: str) -> None:
    network = external(tx, caller, "external_network_id", network_id)
    subnets = subnet_store.of_network(tx, network_id)
    if not subnets:
        raise InvalidArgument("external_network_id", "has no subnet yet")
    inner = [leg.subnet.cidr for leg in store.legs(tx, router.id)]
    for subnet in subnets:
        if other := overlapping(subnet.cidr, inner):
            raise InvalidArgument("external_network_id", f"{subnet.cidr} overlaps {other}, on which the router is already")
    new = NewPort(network_id, purpose=ROUTER_GATEWAY, router_id=router.id, node_id=router.node_id)
    place_port(tx, network, "", new)
    ROUTERS.update(tx, router.id, external_network_id=network_id)


def _clear_gateway(tx: Tx, router: Router) -> None:
    """Errors: Conflict naming a floating IP that goes through it."""
    mapped = floating_ip.of_router(tx, router.id)
    if mapped:
        raise Conflict(f"floating IP {mapped[0].ip} goes through the router's gateway", floating_ip=mapped[0].id)
    for leg in store.legs(tx, router.id):
        if leg.external:
            delete_port(tx, leg.port)
    ROUTERS.update(tx, router.id, external_network_id="")


def _check_routes(routes: tuple[HostRoute, ...], legs: list[Leg], removing: bool = False) -> None:
    """Errors: InvalidArgument (Conflict when `removing` a leg) unless each next hop is a neighbour of the router."""
    check_routes("routes", routes, ROUTES_MAX)
    for route in routes:
        hop = IPv4Address(route.nexthop)
        if removing and not any(hop in leg.subnet.range for leg in legs):
            raise Conflict(f"the route to {route.destination} by {hop} needs it")
        if not any(hop in leg.subnet.range and route.nexthop != leg.ip for leg in legs):
            raise InvalidArgument("routes", f"{hop} is no neighbour of the router: it is in none of its subnets, or its own")
        if route.destination == DEFAULT_ROUTE and any(leg.external for leg in legs):
            raise InvalidArgument("routes", f"{DEFAULT_ROUTE} goes by the gateway on the external network")
        if route.destination in {leg.subnet.cidr for leg in legs}:
            raise InvalidArgument("routes", f"{route.destination} is connected already")
