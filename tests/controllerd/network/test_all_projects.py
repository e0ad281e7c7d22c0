"""Whose networks, addresses and groups a list gives: the project's own, admins' too, unless an admin asks for all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from controllerd.app.cloud import Cloud, Once
from controllerd.app.floating_ip import FloatingIps
from controllerd.app.network import Networks
from controllerd.app.port import NewPort, Ports
from controllerd.app.router import Routers
from controllerd.app.security_group import SecurityGroups
from controllerd.app.subnet import Subnets
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from daemonkit.errors import Forbidden

ANEW = Once("", "", "")
CallerMaker = Callable[..., Awaitable[Caller]]


@dataclass
class Tenancy:
    """A member or admin, and what the project has: noun -> ids."""

    caller: Caller
    ids: dict[str, set[str]] = field(default_factory=dict)


class Rack:
    """An external and a shared network of the operators, and two projects with one of everything."""

    def __init__(self, cloud: Cloud) -> None:
        self.networks, self.subnets, self.ports = Networks(cloud), Subnets(cloud), Ports(cloud)
        self.routers, self.floating_ips, self.groups = Routers(cloud), FloatingIps(cloud), SecurityGroups(cloud)

    async def segment(
        self, caller: Caller, name: str, cidr: str, shared: bool = False, external: bool = False
    ) -> tuple[str, str]:
        network = await self.networks.create(caller, name, shared, external, ANEW)
        subnet = await self.subnets.create(caller, network.network.id, name, cidr, ANEW, dhcp=False)
        return network.network.id, subnet.id

    async def set(self, admin: Caller, *tenants: Caller) -> list[Tenancy]:
        self.outside = await self.segment(admin, "public", "203.0.113.0/24", external=True)
        self.shared = await self.segment(admin, "shared", "10.9.0.0/24", shared=True)
        return [await self.tenancy(tenant) for tenant in tenants]

    async def tenancy(self, caller: Caller) -> Tenancy:
        network, subnet = await self.segment(caller, "private", "10.0.0.0/24")
        router = (await self.routers.create(caller, "r", self.outside[0], True, ANEW)).router.id
        await self.routers.add_interface(caller, router, subnet)
        port = await self.ports.create(caller, NewPort(network, "p"), ANEW)
        address = await self.floating_ips.create(caller, self.outside[0], ANEW, port_id=port.port.id)
        group = await self.groups.create(caller, "web", "", (), ANEW)
        ids = {"network": {network}, "subnet": {subnet}, "router": {router}, "port": {port.port.id}}
        ids |= {"floating_ip": {address.floating_ip.id}, "group": {group.group.id}}
        return Tenancy(caller, ids)

    async def seen(self, caller: Caller, all_projects: bool = False) -> dict[str, set[str]]:
        """Noun -> ids, of ports only those that somebody made, of groups none that comes with a project."""
        page = Page()
        networks = await self.networks.list(caller, "", None, all_projects, page)
        subnets = await self.subnets.list(caller, "", "", all_projects, page)
        routers = await self.routers.list(caller, "", all_projects, page)
        ports = await self.ports.list(caller, page, all_projects)
        addresses = await self.floating_ips.list(caller, "", all_projects, page)
        groups = await self.groups.list(caller, "web", all_projects, page)
        return {
            "network": {n.network.id for n in networks.items},
            "subnet": {s.id for s in subnets.items},
            "router": {r.router.id for r in routers.items},
            "port": {p.port.id for p in ports.items if p.port.name == "p"},
            "floating_ip": {f.floating_ip.id for f in addresses.items},
            "group": {g.group.id for g in groups.items},
        }

    async def purposes(self, caller: Caller, all_projects: bool) -> list[str]:
        """Of the ports that nobody gave a name."""
        listed = await self.ports.list(caller, Page(), all_projects)
        return sorted(f"{p.port.purpose} of {'nobody' if not p.port.project_id else 'a project'}" for p in listed.items)


@pytest.fixture
def rack(cloud: Cloud) -> Rack:
    return Rack(cloud)


def joined(*parts: dict[str, set[str]]) -> dict[str, set[str]]:
    return {noun: set().union(*(part[noun] for part in parts)) for noun in parts[0]}


async def test_everybody_sees_the_own_project_and_what_is_for_all(rack: Rack, admin: Caller, caller: CallerMaker) -> None:
    operators, alpha, beta = await rack.set(admin, admin, await caller("alpha"), await caller("beta"))
    for_all: dict[str, set[str]] = {noun: set() for noun in alpha.ids}
    for_all |= {"network": {rack.outside[0], rack.shared[0]}, "subnet": {rack.outside[1], rack.shared[1]}}
    for tenancy in (operators, alpha, beta):
        assert await rack.seen(tenancy.caller) == joined(tenancy.ids, for_all)
    assert await rack.seen(admin, all_projects=True) == joined(operators.ids, alpha.ids, beta.ids, for_all)


async def test_an_admin_of_an_empty_project_sees_nobodys(rack: Rack, admin: Caller, member: Caller) -> None:
    (tenancy,) = await rack.set(admin, member)
    seen = await rack.seen(admin)
    assert not any(seen[noun] & tenancy.ids[noun] for noun in seen)
    subnets = await rack.subnets.list(admin, "", next(iter(tenancy.ids["network"])), False, Page())
    assert not subnets.items


async def test_the_clouds_own_ports(rack: Rack, admin: Caller, member: Caller) -> None:
    """A router's ports inside are its project's; what holds addresses outside is nobody's, and seen with all."""
    await rack.set(admin, member)
    inside, outside = ["router_interface of a project"], ["floating_ip of nobody", "router_gateway of nobody"]
    assert await rack.purposes(member, False) == sorted([" of a project", *inside])
    assert await rack.purposes(admin, False) == []
    assert await rack.purposes(admin, True) == sorted([" of a project", *inside, *outside])


@pytest.mark.parametrize("role", ["member", "reader"])
async def test_all_projects_needs_an_admin(rack: Rack, caller: CallerMaker, role: str) -> None:
    tenant = await caller("alpha", role)
    for refused in (
        rack.networks.list(tenant, "", None, True, Page()), rack.subnets.list(tenant, "", "", True, Page()),
        rack.ports.list(tenant, Page(), True), rack.routers.list(tenant, "", True, Page()),
        rack.floating_ips.list(tenant, "", True, Page()), rack.groups.list(tenant, "", True, Page()),
    ):  # fmt: skip
        with pytest.raises(Forbidden, match="all_projects"):
            await refused


async def test_by_id_admins_act_on_any_projects(rack: Rack, admin: Caller, member: Caller) -> None:
    (tenancy,) = await rack.set(admin, member)
    (address,), (group,) = tenancy.ids["floating_ip"], tenancy.ids["group"]
    assert (await rack.groups.get(admin, group)).group.id == group
    await rack.floating_ips.delete(admin, address)
    assert not (await rack.seen(member))["floating_ip"]
