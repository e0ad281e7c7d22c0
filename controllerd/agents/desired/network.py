"""What a node's network shall be: segments, ports, who is elsewhere, groups with their members, routers.

Compiled from the rows alone and always in the same order, because both ends compare hashes. What any of it depends on is
touched by the stores when it changes (see `controllerd.store.network`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controllerd.agents.desired.metadata import server_metadata
from controllerd.domain.address import HostRoute
from controllerd.domain.network import Network
from controllerd.domain.port import SERVER, FixedIp, Port, device_name
from controllerd.domain.router import Router
from controllerd.domain.security_group import Rule
from controllerd.domain.server import hostname
from controllerd.store import floating_ip, node, port, router, security_group, subnet
from controllerd.store import network as network_store
from controllerd.store.database import Tx
from controllerd.store.router import Leg
from controllerd.store.server import SERVERS
from skyrack.v1 import agent_pb2 as pb


@dataclass(frozen=True)
class _Scene:
    """The networks that a node carries, and everything bound on them anywhere."""

    node_id: str
    networks: Mapping[str, Network]
    ports: tuple[Port, ...]
    ips: Mapping[str, tuple[FixedIp, ...]]  # port ->
    groups: Mapping[str, tuple[str, ...]]  # port ->
    hostnames: Mapping[str, str]  # server ->
    vteps: Mapping[str, str]  # node ->

    @property
    def here(self) -> list[Port]:
        """Servers' ports on the node."""
        return [p for p in self.ports if p.node_id == self.node_id and p.purpose == SERVER]

    @property
    def elsewhere(self) -> list[Port]:
        """What is reached by tunnels. A node that has not told its address yet touches us when it does."""
        inner = [p for p in self.ports if not self.networks[p.network_id].external]
        return [p for p in inner if p.node_id != self.node_id and p.node_id in self.vteps]


def compile_network(tx: Tx, node_id: str) -> list[pb.DesiredObject]:
    """Everything that networkd of the node shall have."""
    scene = _look(tx, node_id)
    objects = [pb.DesiredObject(id=n.id, segment=_segment(tx, scene, n)) for n in scene.networks.values()]
    objects += [pb.DesiredObject(id=p.id, port=_port(tx, scene, p)) for p in scene.here]
    objects += [pb.DesiredObject(id=p.id, neighbour=_neighbour(scene, p)) for p in scene.elsewhere]
    objects += _groups(tx, scene)
    objects += [pb.DesiredObject(id=r.id, router=_router(tx, r)) for r in router.on_node(tx, node_id)]
    return objects


def _look(tx: Tx, node_id: str) -> _Scene:
    networks = {n.id: n for n in network_store.carried_by(tx, node_id)}
    ports = port.bound_on(tx, networks)
    here = [p.id for p in ports if p.node_id == node_id and p.purpose == SERVER and p.port_security]
    names = port.server_names(tx, networks)
    return _Scene(
        node_id, networks, tuple(ports), port.fixed_ips(tx, (p.id for p in ports)), port.groups_of(tx, here),
        {server_id: hostname(name, server_id) for server_id, name in names.items()}, node.vteps(tx),
    )  # fmt: skip


def _segment(tx: Tx, scene: _Scene, network: Network) -> pb.SegmentSpec:
    dhcp = subnet.dhcp_addresses(tx, network.id)
    others = {p.node_id for p in scene.elsewhere if p.network_id == network.id}
    return pb.SegmentSpec(
        vni=network.vni, mtu=network.mtu, external=network.external, vteps=sorted(scene.vteps[o] for o in others),
        subnets=[
            pb.SegmentSubnet(
                subnet_id=s.id, cidr=s.cidr, gateway_ip=s.gateway_ip, dhcp_ip=dhcp.get(s.id, ""), dns_servers=s.dns_servers,
                routes=_routes(s.routes),
            )
            for s in subnet.of_network(tx, network.id)
        ],
    )  # fmt: skip


def _port(tx: Tx, scene: _Scene, bound: Port) -> pb.PortSpec:
    server = SERVERS.find(tx, bound.server_id)
    return pb.PortSpec(
        network_id=bound.network_id, device=device_name(bound.id), mac=bound.mac, port_security=bound.port_security,
        fixed_ips=[pb.FixedIp(subnet_id=f.subnet_id, ip=f.ip) for f in scene.ips.get(bound.id, ())],
        group_ids=scene.groups.get(bound.id, ()), hostname=scene.hostnames.get(bound.server_id, ""), admin_up=True,
        metadata=server_metadata(tx, server) if server else None,
    )  # fmt: skip


def _neighbour(scene: _Scene, bound: Port) -> pb.NeighbourSpec:
    return pb.NeighbourSpec(
        network_id=bound.network_id, mac=bound.mac, ips=[f.ip for f in scene.ips.get(bound.id, ())],
        vtep=scene.vteps[bound.node_id], hostname=scene.hostnames.get(bound.server_id, ""),
    )  # fmt: skip


# ---------------------------------------------------------------- groups


def _groups(tx: Tx, scene: _Scene) -> list[pb.DesiredObject]:
    """Groups of the ports here, and the members of groups that their rules name, on each network where they are asked for."""
    networks_of: dict[str, set[str]] = {}  # group -> networks on which a port here is in it
    for bound in scene.here:
        for group_id in scene.groups.get(bound.id, ()):
            networks_of.setdefault(group_id, set()).add(bound.network_id)
    objects, members = [], set()
    for group_id, network_ids in sorted(networks_of.items()):
        rules = security_group.rules_of(tx, group_id)
        objects.append(pb.DesiredObject(id=group_id, group=pb.GroupSpec(rules=[_rule(r) for r in rules])))
        members |= {(r.remote_group_id, network_id) for r in rules if r.remote_group_id for network_id in network_ids}
    for group_id, network_id in sorted(members):
        spec = pb.MembersSpec(ips=security_group.member_addresses(tx, group_id, network_id))
        objects.append(pb.DesiredObject(id=f"{group_id}:{network_id}", members=spec))
    return objects


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
