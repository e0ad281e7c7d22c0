"""Subnets: address ranges on a network. One with DHCP has a port of its own whose address answers DHCP, DNS and metadata on
every node alike; it is the lowest free one when the subnet is made."""

from __future__ import annotations

from dataclasses import replace

from controllerd.app.cloud import Cloud, Once
from controllerd.app.network import changeable
from controllerd.app.port import NewPort, place_port
from controllerd.domain.address import AddressPool, HostRoute, overlapping
from controllerd.domain.network import Network
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.port import DHCP
from controllerd.domain.subnet import Subnet, checked, default_gateway, default_pools
from controllerd.store import event, network, port, quota
from controllerd.store import subnet as store
from controllerd.store.database import Tx
from controllerd.store.network import NETWORKS
from controllerd.store.subnet import SUBNETS
from daemonkit.errors import Conflict, InvalidArgument, NotFound


class Subnets:
    def __init__(self, cloud: Cloud) -> None:
        self._db = cloud.database

    async def create(
        self, caller: Caller, network_id: str, name: str, cidr: str, once: Once, *, gateway_ip: str | None = None,
        dhcp: bool | None = None, pools: tuple[AddressPool, ...] = (), dns_servers: tuple[str, ...] = (),
        routes: tuple[HostRoute, ...] = (),
    ) -> Subnet:  # fmt: skip
        """`gateway_ip`: None = the first address, "" = none. `dhcp`: None = on, on external networks off. `pools`: () = all but
        network, broadcast and gateway."""
        authorise(caller, "subnet.create")
        gateway_ip = default_gateway(cidr) if gateway_ip is None else gateway_ip
        pools = pools or default_pools(cidr, gateway_ip)

        def make(tx: Tx) -> Subnet:
            on = changeable(tx, caller, network_id)
            served = not on.external if dhcp is None else dhcp
            wanted = Subnet(
                tx.new_id(), name, on.project_id, on.id, cidr, gateway_ip, served, pools, dns_servers, routes, tx.now
            )  # fmt: skip
            subnet = checked(wanted)
            _insert(tx, on, subnet)
            return subnet

        return await self._db.write(
            lambda tx: once.run(tx, caller, lambda: make(tx), lambda i: SUBNETS.get(tx, i), lambda s: s.id)
        )

    async def get(self, caller: Caller, subnet_id: str) -> Subnet:
        authorise(caller, "subnet.get")
        return await self._db.read(lambda tx: seen(tx, caller, subnet_id))

    async def list(self, caller: Caller, name: str, network_id: str, all_projects: bool, page: Page) -> PageOf[Subnet]:
        authorise(caller, "subnet.list")
        if all_projects:
            authorise(caller, "all_projects")
        return await self._db.read(lambda tx: store.visible(tx, caller.project_id, all_projects, name, network_id, page))

    async def update(self, caller: Caller, subnet_id: str, **changes: str | tuple[str, ...] | tuple[HostRoute, ...]) -> Subnet:
        """`changes`: name, dns_servers, routes. Guests learn them with their next lease."""
        authorise(caller, "subnet.update")

        def change(tx: Tx) -> Subnet:
            subnet = seen(tx, caller, subnet_id)
            changeable(tx, caller, subnet.network_id)
            changed = checked(replace(subnet, **changes))  # type: ignore[arg-type]
            if changes:
                SUBNETS.update(tx, subnet_id, **changes)
                network.touch(tx, subnet.network_id)
                event.record(tx, "subnet.update", subnet.project_id, subnet_id)
            return changed

        return await self._db.write(change)

    async def delete(self, caller: Caller, subnet_id: str) -> None:
        """Errors: Conflict naming what has an address of it."""
        authorise(caller, "subnet.delete")

        def remove(tx: Tx) -> None:
            subnet = seen(tx, caller, subnet_id)
            changeable(tx, caller, subnet.network_id)
            if user := store.used_by(tx, subnet_id):
                raise Conflict(f"the subnet is in use by {user}")
            if dhcp_port := port.dhcp_of(tx, subnet_id):
                port.delete(tx, dhcp_port)
            SUBNETS.delete(tx, subnet_id)
            network.touch(tx, subnet.network_id)
            event.record(tx, "subnet.delete", subnet.project_id, subnet_id, subnet.cidr)

        await self._db.write(remove)


def seen(tx: Tx, caller: Caller, subnet_id: str) -> Subnet:
    """A subnet of a network that the caller sees. Errors: NotFound."""
    subnet = SUBNETS.get(tx, subnet_id)
    if not caller.admin and not NETWORKS.get(tx, subnet.network_id).visible_to(caller.project_id):
        raise NotFound(SUBNETS.kind, subnet_id)
    return subnet


def _insert(tx: Tx, on: Network, subnet: Subnet) -> None:
    if on.external and subnet.dhcp:
        raise InvalidArgument("dhcp", "is not offered on external networks")
    if other := overlapping(subnet.cidr, (s.cidr for s in store.of_network(tx, on.id))):
        raise InvalidArgument("cidr", f"{subnet.cidr} overlaps {other} of the same network")
    quota.take(tx, on.project_id, subnets=1)
    SUBNETS.insert(tx, subnet)
    if subnet.dhcp:
        place_port(tx, on, on.project_id, NewPort(on.id, fixed_ips=((subnet.id, ""),), purpose=DHCP))
    network.touch(tx, on.id)
    event.record(tx, "subnet.create", on.project_id, subnet.id, subnet.cidr, network_id=on.id)
