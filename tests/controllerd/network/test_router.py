"""Routers and floating IPs: what is refused, what a gateway node gets, where routers go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from controllerd.agents.desired.network import compile_network
from controllerd.agents.intake import Intake
from controllerd.agents.observed import port as observed_port
from controllerd.agents.observed import router as observed_router
from controllerd.app.cloud import Cloud, Once
from controllerd.app.floating_ip import FloatingIps
from controllerd.app.network import Networks
from controllerd.app.port import NewPort, Ports, make_port, release_ports
from controllerd.app.router import Routers
from controllerd.app.subnet import Subnets
from controllerd.domain.address import AddressPool, HostRoute
from controllerd.domain.node import Node
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.domain.router import GatewayNode, plan_placement
from controllerd.reconcilers.router_placement import RouterPlacement
from controllerd.store import port as port_store
from controllerd.store.database import Tx
from daemonkit.errors import Conflict, InvalidArgument, NotFound, QuotaExceeded
from networkd.compile.layout import layout
from networkd.spec.desired import Node as NetworkNode
from networkd.wire import desired_of
from skyrack.v1 import agent_pb2 as pb
from tests.controllerd.network.rack import add_node, add_server, set_agent

ANEW = Once("", "", "")
CIDR = "10.0.0.0/24"


@dataclass
class Stage:
    """A private network with a subnet and an external one; two compute nodes, gateway nodes as asked."""

    cloud: Cloud
    admin: Caller
    member: Caller

    async def set(self, gateways: int = 1) -> Stage:
        self.networks, self.subnets, self.ports = Networks(self.cloud), Subnets(self.cloud), Ports(self.cloud)
        self.routers, self.floating_ips = Routers(self.cloud), FloatingIps(self.cloud)
        takers = observed_port.TAKERS | observed_router.TAKERS
        self.intake = Intake(takers, lambda *_: 0)

        def nodes(tx: Tx) -> list[Node]:
            made = [add_node(tx, f"c{n}", f"192.168.0.{n}") for n in (1, 2)]
            return made + [add_node(tx, f"g{n}", f"192.168.1.{n}", gateway=True) for n in range(gateways)]

        self.c1, self.c2, *self.gateways = await self.cloud.database.write(nodes)
        self.private = (await self.networks.create(self.member, "private", False, False, ANEW)).network
        self.outside = (await self.networks.create(self.admin, "internet", False, True, ANEW)).network
        self.subnet = await self.subnets.create(self.member, self.private.id, "", CIDR, ANEW)
        pools = (AddressPool("203.0.113.10", "203.0.113.20"),)
        self.public = await self.subnets.create(self.admin, self.outside.id, "", "203.0.113.0/24", ANEW, pools=pools)
        return self

    async def router(self, interface: bool = True) -> str:
        made = await self.routers.create(self.member, "r", self.outside.id, True, ANEW)
        if interface:
            await self.routers.add_interface(self.member, made.router.id, self.subnet.id)
        return made.router.id

    async def boot(self, node: Node, name: str = "web") -> str:
        def make(tx: Tx) -> str:
            server = add_server(tx, self.member, name)
            make_port(tx, self.member, NewPort(self.private.id, server_id=server.id, made_for_server=True))
            port_store.bind(tx, server.id, node.id)
            return server.id

        return await self.cloud.database.write(make)

    async def desired(self, node: Node) -> dict[str, pb.DesiredObject]:
        """By "kind/id"; every object is one that the agent understands and can lay out."""
        objects = await self.cloud.database.read(lambda tx: compile_network(tx, node.id))
        found = {f"{o.WhichOneof('spec')}/{o.id}": o for o in objects}
        understood = desired_of(found)
        here = NetworkNode(node.name, "192.168.0.99", 1500, "ext0" if "gateway" in node.roles else "")
        zones = {network_id: number for number, network_id in enumerate(sorted(understood.segments), 1)}
        assert not understood.faults and not layout(understood, here, zones).faults
        return found

    async def report(self, node: Node, *objects: pb.ObservedObject, whole: bool = False) -> None:
        report = pb.Report(objects=objects, whole=whole)
        await self.cloud.database.write(lambda tx: self.intake.report(tx, node, "networkd", report))

    async def router_ready(self, node: Node, router_id: str, *ips: str) -> None:
        await self.report(
            node, pb.ObservedObject(id=router_id, router=pb.ObservedRouter(state=pb.OBSERVED_STATE_READY, floating_ips=ips))
        )


@pytest.fixture
async def stage(cloud: Cloud, admin: Caller, member: Caller) -> Stage:
    return await Stage(cloud, admin, member).set()


def kinds(desired: dict[str, Any]) -> dict[str, int]:
    names = [key.partition("/")[0] for key in desired]
    return {name: names.count(name) for name in sorted(set(names))}


async def test_a_server_on_the_internet(stage: Stage) -> None:
    router_id = await stage.router()
    web, other = await stage.boot(stage.c1, "web"), await stage.boot(stage.c2, "db")
    made = await stage.floating_ips.create(stage.member, stage.outside.id, ANEW, server_id=web)
    assert (made.floating_ip.ip, made.floating_ip.fixed_ip, made.state) == ("203.0.113.11", "10.0.0.3", "BUILD")
    gateway, edge = await stage.desired(stage.gateways[0]), await stage.desired(stage.c1)
    assert kinds(gateway) == {"neighbour": 2, "router": 1, "segment": 2}
    assert kinds(edge) == {"group": 1, "members": 1, "neighbour": 2, "port": 1, "segment": 1}
    spec = gateway[f"router/{router_id}"].router
    assert [(i.ip, i.prefix) for i in spec.interfaces] == [("10.0.0.1", 24)]
    assert (spec.gateway.ip, spec.gateway.nexthop, spec.gateway.snat) == ("203.0.113.10", "203.0.113.1", True)
    assert [(f.ip, f.fixed_ip) for f in spec.floating_ips] == [("203.0.113.11", "10.0.0.3")]
    assert gateway[f"segment/{stage.outside.id}"].segment.external
    segment = edge[f"segment/{stage.private.id}"].segment
    assert sorted(segment.vteps) == ["192.168.0.2", "192.168.1.0"] and segment.subnets[0].dhcp_ip == "10.0.0.2"
    (port,) = [o for o in edge.values() if o.HasField("port")]
    assert port.port.hostname == "web" and port.port.metadata.server_id == web
    (members,) = [o for o in edge.values() if o.HasField("members")]
    assert list(members.members.ips) == ["10.0.0.3", "10.0.0.4"]
    neighbours = {tuple(o.neighbour.ips): o.neighbour for o in edge.values() if o.HasField("neighbour")}
    assert neighbours[("10.0.0.1",)].vtep == "192.168.1.0" and neighbours[("10.0.0.4",)].hostname == "db"
    await stage.router_ready(stage.gateways[0], router_id, "203.0.113.11")
    assert (await stage.floating_ips.get(stage.member, made.floating_ip.id)).state == "ACTIVE"
    assert (await stage.routers.get(stage.member, router_id)).router.state == "ACTIVE"
    views = await stage.cloud.database.read(lambda tx: port_store.addresses(tx, [web, other]))
    assert [v.floating_ip for v in views[web] + views[other]] == ["203.0.113.11", ""]


async def test_a_floating_ip_outlives_its_port(stage: Stage) -> None:
    await stage.router()
    server = await stage.boot(stage.c1)
    made = await stage.floating_ips.create(stage.member, stage.outside.id, ANEW, server_id=server)
    await stage.cloud.database.write(lambda tx: release_ports(tx, server))
    left = await stage.floating_ips.get(stage.member, made.floating_ip.id)
    assert (left.state, left.floating_ip.port_id, left.floating_ip.router_id) == ("DOWN", "", "")
    port = await stage.ports.create(stage.member, NewPort(stage.private.id), ANEW)
    mapped = await stage.floating_ips.update(stage.member, made.floating_ip.id, port_id=port.port.id)
    assert mapped.floating_ip.port_id == port.port.id
    unmapped = await stage.floating_ips.update(stage.member, made.floating_ip.id)
    assert unmapped.state == "DOWN"
    await stage.floating_ips.delete(stage.member, made.floating_ip.id)
    again = await stage.floating_ips.create(stage.member, stage.outside.id, ANEW)
    assert again.floating_ip.ip == made.floating_ip.ip


async def test_what_floating_ips_refuse(stage: Stage, caller) -> None:
    port = (await stage.ports.create(stage.member, NewPort(stage.private.id), ANEW)).port
    create = stage.floating_ips.create
    with pytest.raises(Conflict, match="no router leads"):
        await create(stage.member, stage.outside.id, ANEW, port_id=port.id)
    router_id = await stage.router()
    first = (await create(stage.member, stage.outside.id, ANEW, port_id=port.id)).floating_ip
    with pytest.raises(Conflict, match="in use by"):
        await stage.subnets.delete(stage.admin, stage.public.id)
    for options, error, says in (
        ({"port_id": port.id}, Conflict, first.ip), ({"ip": first.ip}, Conflict, "taken"),
        ({"ip": "203.0.113.30"}, InvalidArgument, "pools"), ({"ip": "10.0.0.9"}, InvalidArgument, "no subnet"),
        ({"ip": "x"}, InvalidArgument, "IPv4"), ({"port_id": "x" * 36}, NotFound, "port"),
        ({"server_id": "x" * 36}, NotFound, "server"), ({"server_id": "x", "port_id": port.id}, InvalidArgument, "together"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            await create(stage.member, stage.outside.id, ANEW, **options)
    with pytest.raises(InvalidArgument, match="not external"):
        await create(stage.member, stage.private.id, ANEW)
    assert (await create(stage.admin, stage.outside.id, ANEW, ip="203.0.113.30")).floating_ip.ip == "203.0.113.30"
    for verb in (
        stage.routers.remove_interface(stage.member, router_id, stage.subnet.id),
        stage.routers.update(stage.member, router_id, ""),
    ):
        with pytest.raises(Conflict, match=first.ip):
            await verb
    stranger = await caller("beta")
    for refused in (
        stage.floating_ips.get(stranger, first.id), stage.floating_ips.delete(stranger, first.id),
        stage.floating_ips.update(stranger, first.id), stage.routers.get(stranger, router_id),
        stage.routers.add_interface(stranger, router_id, stage.subnet.id),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await refused
    foreign = (await create(stranger, stage.outside.id, ANEW)).floating_ip
    with pytest.raises(NotFound):
        await stage.floating_ips.update(stranger, foreign.id, port_id=port.id)
    with pytest.raises(InvalidArgument, match="another project"):
        await stage.floating_ips.update(stage.admin, foreign.id, port_id=port.id)
    limit = "INSERT INTO quota_limit VALUES (?, 'floating_ips', 1)"
    await stage.cloud.database.write(lambda tx: tx.run(limit, stage.member.project_id))
    with pytest.raises(QuotaExceeded):
        await create(stage.member, stage.outside.id, ANEW)


async def test_what_routers_refuse(stage: Stage, caller) -> None:
    routers, router_id = stage.routers, await stage.router()
    assert len((await routers.add_interface(stage.member, router_id, stage.subnet.id)).legs) == 2  # twice is once
    with pytest.raises(Conflict, match=stage.subnet.id):
        await routers.delete(stage.member, router_id)
    second = (await routers.create(stage.member, "r2", "", True, ANEW)).router.id
    with pytest.raises(Conflict, match="taken"):
        await routers.add_interface(stage.member, second, stage.subnet.id)
    other = (await stage.networks.create(stage.member, "n2", False, False, ANEW)).network
    overlapping = await stage.subnets.create(stage.member, other.id, "", "10.0.0.0/16", ANEW)
    bare = await stage.subnets.create(stage.member, other.id, "", "10.9.0.0/24", ANEW, gateway_ip="")
    for subnet_id, says in ((overlapping.id, "overlaps"), (bare.id, "no gateway"), (stage.public.id, "external")):
        with pytest.raises(InvalidArgument, match=says):
            await routers.add_interface(stage.member, router_id, subnet_id)
    for routes, says in (
        ((HostRoute("172.16.0.0/12", "10.5.0.1"),), "no neighbour"),
        ((HostRoute("0.0.0.0/0", "10.0.0.9"),), "by the gateway"),
        ((HostRoute("172.16.0.0/12", "10.0.0.1"),), "no neighbour"),
        ((HostRoute("172.16.0.1/12", "10.0.0.9"),), "host bits"), ((HostRoute(CIDR, "10.0.0.9"),), "connected already"),
        ((HostRoute("172.16.0.0/12", "10.0.0.9"),) * 2, "twice"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=says):
            await routers.update(stage.member, router_id, routes=routes)
    await routers.update(stage.member, router_id, routes=(HostRoute("172.16.0.0/12", "10.0.0.9"),))
    with pytest.raises(Conflict, match="route"):
        await routers.remove_interface(stage.member, router_id, stage.subnet.id)
    await routers.update(stage.member, router_id, routes=())
    with pytest.raises(Conflict, match=router_id):
        await stage.subnets.delete(stage.member, stage.subnet.id)
    with pytest.raises(Conflict, match=router_id):
        await stage.networks.delete(stage.admin, stage.outside.id)
    await routers.remove_interface(stage.member, router_id, stage.subnet.id)
    await routers.update(stage.member, router_id, "")
    for doomed in (router_id, second):
        await routers.delete(stage.member, doomed)
    await stage.networks.delete(stage.admin, stage.outside.id)
    assert not await stage.desired(stage.gateways[0])


async def test_without_a_gateway_node_all_is_down_until_one_comes(cloud: Cloud, admin: Caller, member: Caller) -> None:
    stage = await Stage(cloud, admin, member).set(gateways=0)
    router_id = await stage.router()
    server = await stage.boot(stage.c1)
    made = await stage.floating_ips.create(member, stage.outside.id, ANEW, server_id=server)
    assert made.state == "DOWN" and (await stage.routers.get(member, router_id)).router.state == "DOWN"
    placement = RouterPlacement(cloud.database)
    await placement.once()
    assert (await stage.routers.get(member, router_id)).router.node_id == ""
    node = await cloud.database.write(lambda tx: add_node(tx, "g9", "192.168.9.9", gateway=True))
    await placement.once()
    found = await stage.routers.get(member, router_id)
    assert (found.router.node_id, found.router.state, found.node_name) == (node.id, "BUILD", "g9")
    assert kinds(await stage.desired(node)) == {"neighbour": 1, "router": 1, "segment": 2}


async def test_a_lost_node_s_routers_move_and_only_the_new_node_is_believed(
    cloud: Cloud, admin: Caller, member: Caller, clock
) -> None:
    stage = await Stage(cloud, admin, member).set(gateways=2)
    router_id, server = await stage.router(), await stage.boot(stage.c1)
    old, new = stage.gateways
    assert (await stage.routers.get(member, router_id)).router.node_id == old.id
    await stage.router_ready(old, router_id)
    placement = RouterPlacement(cloud.database, lost_for_s=30.0)
    await cloud.database.write(lambda tx: set_agent(tx, old, "192.168.1.0", True, lost=True))
    clock.forward(20.0)
    await placement.once()
    seen = await stage.routers.get(member, router_id)
    assert (seen.router.node_id, seen.state, seen.lost) == (old.id, "DOWN", True)  # it may only be restarting
    touched: set[str] = set()
    cloud.database.subscribe(touched.update)
    clock.forward(20.0)
    await placement.once()
    moved = (await stage.routers.get(member, router_id)).router
    assert (moved.node_id, moved.state) == (new.id, "BUILD") and {old.id, new.id, f"network:{stage.private.id}"} <= touched
    await stage.router_ready(old, router_id)
    assert (await stage.routers.get(member, router_id)).router.state == "BUILD"
    await stage.router_ready(new, router_id)
    assert (await stage.routers.get(member, router_id)).router.state == "ACTIVE"
    ports = (await stage.ports.list(member, Page())).items
    assert {p.port.purpose: p.port.state for p in ports} == {"dhcp": "ACTIVE", "router_interface": "ACTIVE", "server": "BUILD"}
    assert not any(key.startswith("router/") for key in await stage.desired(old))
    assert server


async def test_reports_of_ports(stage: Stage) -> None:
    server = await stage.boot(stage.c1)
    (port,) = await stage.cloud.database.read(lambda tx: port_store.of_server(tx, server))

    def seen(state: pb.ObservedState.ValueType, fault: str = "") -> pb.ObservedObject:
        return pb.ObservedObject(id=port.id, port=pb.ObservedPort(state=state, fault=fault))

    async def state() -> str:
        return (await stage.ports.get(stage.member, port.id)).port.state

    touched: set[str] = set()
    stage.cloud.database.subscribe(touched.update)
    await stage.report(stage.c2, seen(pb.OBSERVED_STATE_READY))
    assert await state() == "BUILD" and not touched  # not its node
    await stage.report(stage.c1, seen(pb.OBSERVED_STATE_READY))
    assert await state() == "ACTIVE" and {server, port.id} <= touched and stage.c1.id not in touched
    await stage.report(stage.c1, seen(pb.OBSERVED_STATE_FAILED, "no bridge"))
    assert await state() == "ERROR"
    await stage.report(stage.c1, whole=True)
    assert await state() == "BUILD"


def test_placement_spreads_and_prefers_fit_nodes() -> None:
    nodes = [GatewayNode("a", "a", True, 3), GatewayNode("b", "b", True, 1), GatewayNode("c", "c", False, 0)]
    assert plan_placement(["1", "2", "3", "4"], nodes) == {"1": "b", "2": "b", "3": "a", "4": "b"}
    assert plan_placement(["1"], nodes[2:]) == {"1": "c"}
    assert plan_placement(["1"], []) == {}
