"""What a node's network shall be: segments, ports, who is elsewhere, groups with their members, routers.

Compiled from the rows alone and always in the same order, because both ends compare hashes. What any of it depends on is
touched by the stores when it changes (see `controllerd.store.network`): `own` needs to be made anew only when the node was
touched, a wire only when its network was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controllerd.agents.desired.metadata import Metadata
from controllerd.agents.desired.state import Item, Items, Own, State, Wire, item_of, items_of
from controllerd.domain.address import HostRoute
from controllerd.domain.port import FixedIp, Port, device_name
from controllerd.domain.router import Router
from controllerd.domain.security_group import Rule
from controllerd.domain.server import Server, hostname
from controllerd.store import floating_ip, port, router, security_group, subnet
from controllerd.store import network as network_store
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from controllerd.store.network import NETWORKS
from controllerd.store.port import Bound
from controllerd.store.router import Leg
from skyrack.v1 import agent_pb2 as pb


def compile_network(tx: Tx, node_id: str) -> list[pb.DesiredObject]:
    """Everything that networkd of the node shall have."""
    own = compile_own(tx, node_id)
    wires = {network_id: compile_wire(tx, network_id, None) for network_id in own.networks}
    return [pb.DesiredObject.FromString(item.body) for _key, item in join(tx, node_id, own, wires).items()]


def join(tx: Tx, node_id: str, own: Own, wires: Mapping[str, Wire], former: State | None = None) -> State:
    """`wires`: of all networks that the node carries, maybe more. `former`: of the same node; what it has is not made anew."""
    carried = {network_id: wires[network_id] for network_id in sorted(own.networks)}
    shared: Items = {}
    for network_id, wire in carried.items():
        key = f"segment/{network_id}"
        same = former is not None and wire.like(former.wires.get(network_id))
        shared[key] = former.shared[key] if former is not None and same else wire.segment_for(node_id)
    shared.update(_members(tx, group_id, carried[network_id]) for group_id, network_id in sorted(own.members_of))
    return State(node_id, own, carried, shared)


# ---------------------------------------------------------------- wires


def compile_wire(tx: Tx, network_id: str, former: Wire | None) -> Wire:
    """`former`: an older one, of which entries that did not change are taken over."""
    network = NETWORKS.get(tx, network_id)
    ends = [] if network.external else port.bound_ends(tx, network_id)
    items, facts = dict[str, Items](), dict[str, tuple[object, ...]]()
    for end in ends:
        facts[end.port_id] = fact = tuple(end)
        key = f"neighbour/{end.port_id}"
        known = former and former.facts.get(end.port_id) == fact and former.tunnelled[end.node_id].get(key)
        items.setdefault(end.node_id, {})[key] = known or _neighbour(network_id, end)
    vteps = {end.node_id: end.vtep for end in ends}
    lines = sorted((item.line, node_id) for node_id, there in items.items() for item in there.values())
    return Wire(network_id, _segment(tx, network_id), vteps, items, facts, lines)


def _segment(tx: Tx, network_id: str) -> pb.SegmentSpec:
    network, dhcp = NETWORKS.get(tx, network_id), subnet.dhcp_addresses(tx, network_id)
    return pb.SegmentSpec(
        vni=network.vni, mtu=network.mtu, external=network.external,
        subnets=[
            pb.SegmentSubnet(
                subnet_id=s.id, cidr=s.cidr, gateway_ip=s.gateway_ip, dhcp_ip=dhcp.get(s.id, ""), dns_servers=s.dns_servers,
                routes=_routes(s.routes),
            )
            for s in subnet.of_network(tx, network_id)
        ],
    )  # fmt: skip


def _neighbour(network_id: str, end: Bound) -> Item:
    spec = pb.NeighbourSpec(
        network_id=network_id, mac=end.mac, ips=end.ips, vtep=end.vtep,
        hostname=hostname(end.server_name, end.server_id) if end.server_id else "",
    )  # fmt: skip
    return item_of(pb.DesiredObject(id=end.port_id, neighbour=spec))[1]


def _members(tx: Tx, group_id: str, wire: Wire) -> tuple[str, Item]:
    if group_id not in wire.members:
        spec = pb.MembersSpec(ips=security_group.member_addresses(tx, group_id, wire.network_id))
        wire.members[group_id] = item_of(pb.DesiredObject(id=f"{group_id}:{wire.network_id}", members=spec))
    return wire.members[group_id]


# ---------------------------------------------------------------- the node's own


def compile_own(tx: Tx, node_id: str) -> Own:
    """A fixed number of queries but for routers, however many ports there are."""
    here, routers = port.of_servers_on(tx, node_id), router.on_node(tx, node_id)
    groups = port.groups_of(tx, (p.id for p in here if p.port_security))
    rules = security_group.rules_of_all(tx, sorted({group_id for ids in groups.values() for group_id in ids}))
    objects = _ports(tx, here, groups)
    networks_of: dict[str, set[str]] = {}  # group -> networks on which a port here is in it
    for bound in here:
        for group_id in groups.get(bound.id, ()):
            networks_of.setdefault(group_id, set()).add(bound.network_id)
    members = set()
    for group_id, network_ids in networks_of.items():
        found = rules.get(group_id, [])
        objects.append(pb.DesiredObject(id=group_id, group=pb.GroupSpec(rules=[_rule(r) for r in found])))
        members |= {(r.remote_group_id, network_id) for r in found if r.remote_group_id for network_id in network_ids}
    objects += [pb.DesiredObject(id=r.id, router=_router(tx, r)) for r in routers]
    networks = frozenset(network_store.carried_by(tx, node_id))
    return Own(items_of(objects), networks, frozenset(members), whole=bool(routers))


def _ports(tx: Tx, here: Sequence[Port], groups: Mapping[str, tuple[str, ...]]) -> list[pb.DesiredObject]:
    ips = port.fixed_ips(tx, (p.id for p in here))
    servers = {s.id: s for s in server_store.by_ids(tx, (p.server_id for p in here))}
    metadata = Metadata(tx, servers.values())
    return [
        pb.DesiredObject(
            id=p.id, port=_port(p, ips.get(p.id, ()), groups.get(p.id, ()), servers.get(p.server_id), metadata)
        )
        for p in here
    ]  # fmt: skip


def _port(
    bound: Port, ips: tuple[FixedIp, ...], group_ids: tuple[str, ...], server: Server | None, metadata: Metadata
) -> pb.PortSpec:
    return pb.PortSpec(
        network_id=bound.network_id, device=device_name(bound.id), mac=bound.mac, port_security=bound.port_security,
        fixed_ips=[pb.FixedIp(subnet_id=f.subnet_id, ip=f.ip) for f in ips], group_ids=group_ids,
        hostname=hostname(server.name, server.id) if server else "", admin_up=True,
        metadata=metadata.of(server) if server else None,
    )  # fmt: skip


def _rule(rule: Rule) -> pb.GroupRule:
    return pb.GroupRule(
        rule_id=rule.id, ingress=rule.ingress, ipv6=rule.ipv6, protocol=rule.protocol, port_min=rule.port_min,
        port_max=rule.port_max, remote_cidr=rule.remote_cidr, remote_group_id=rule.remote_group_id,
    )  # fmt: skip


# ---------------------------------------------------------------- routers


def _router(tx: Tx, on_node: Router) -> pb.RouterSpec:
    legs = router.legs(tx, on_node.id)
    spec = pb.RouterSpec(
        interfaces=[_interface(leg) for leg in legs if not leg.external],
        floating_ips=[
            pb.FloatingIpSpec(floating_ip_id=f.id, ip=f.ip, fixed_ip=f.fixed_ip)
            for f in floating_ip.of_router(tx, on_node.id)
        ],
        routes=_routes(on_node.routes), admin_up=True,
    )  # fmt: skip
    for leg in legs:
        if leg.external:
            spec.gateway.CopyFrom(_gateway(leg, on_node.snat))
    return spec


def _interface(leg: Leg) -> pb.RouterInterface:
    return pb.RouterInterface(
        port_id=leg.port.id, network_id=leg.port.network_id, mac=leg.port.mac, ip=leg.ip, prefix=leg.subnet.range.prefixlen
    )


def _gateway(leg: Leg, snat: bool) -> pb.RouterGateway:
    return pb.RouterGateway(
        port_id=leg.port.id, network_id=leg.port.network_id, mac=leg.port.mac, ip=leg.ip,
        prefix=leg.subnet.range.prefixlen, nexthop=leg.subnet.gateway_ip, snat=snat,
    )  # fmt: skip


def _routes(routes: tuple[HostRoute, ...]) -> list[pb.Route]:
    return [pb.Route(destination=r.destination, nexthop=r.nexthop) for r in routes]
