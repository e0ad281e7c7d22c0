"""Desired state to a picture of this node's network. Pure.

Guests are told the MTU of the network (DHCP option 26), but bridge, tunnel and TAPs keep the underlay's: then a guest that
ignores the option gets an ICMP "fragmentation needed" instead of silence.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache

from networkd.compile import dnsmasq, filter, nat
from networkd.spec import name
from networkd.spec.desired import Desired, Neighbour, Node, Port, Router, Segment
from networkd.spec.picture import HERE, Addr, Fact, Fdb, Link, Neigh, Picture, Via

CACHED_MAX = 16384  # neighbours: their facts are made once
HEAD_END = "00:00:00:00:00:00"
_QUIET_V6 = (("net.ipv6.conf.all.disable_ipv6", "1"), ("net.ipv6.conf.default.disable_ipv6", "1"))
DHCP_SYSCTLS = (*_QUIET_V6, ("net.ipv4.ip_forward", "0"))
ROUTER_SYSCTLS = (
    *_QUIET_V6,
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.conf.all.arp_ignore", "1"),
    ("net.ipv4.conf.all.arp_announce", "2"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
)


def layout(desired: Desired, node: Node, zones: Mapping[str, int]) -> Picture:
    picture = Picture(tables={HERE: filter.tables(desired, zones)})
    guarded = {p.network_id for p in desired.ports.values() if p.port_security}
    populated = {p.network_id for p in desired.ports.values()}
    for segment in desired.segments.values():
        if segment.external:
            _provider(picture, segment, node)
        else:
            _segment(picture, segment, node, nf_call=segment.id in guarded)
            if segment.id in populated and segment.dhcp_subnets:
                _dhcp(picture, desired, segment, node)
    for port in desired.ports.values():
        _port(picture, port, desired, node)
    _neighbours(picture, desired, node)
    for router in desired.routers.values():
        if router.admin_up:
            _router(picture, router, desired, node)
    return picture


def _put(picture: Picture, *links: Link) -> None:
    picture.links.update((link.key, link) for link in links)


# ---------------------------------------------------------------- segments


def _segment(picture: Picture, segment: Segment, node: Node, *, nf_call: bool) -> None:
    bridge, vxlan, owner = name.bridge(segment.id), name.vxlan(segment.id), f"segment/{segment.id}"
    mac = name.bridge_mac(node.name, segment.id)
    _put(
        picture,
        Link(bridge, "bridge", mac=mac, mtu=node.underlay_mtu, nf_call=nf_call, owner=owner),
        Link(vxlan, "vxlan", mtu=node.underlay_mtu, master=bridge, vni=segment.vni, local=node.vtep, learning=False,
             neigh_suppress=True, owner=owner),
    )  # fmt: skip
    picture.add(*(Fdb(vxlan, HEAD_END, vtep, owner=owner) for vtep in segment.vteps if vtep != node.vtep))


def _provider(picture: Picture, segment: Segment, node: Node) -> None:
    bridge, owner = name.bridge(segment.id), f"segment/{segment.id}"
    mac = name.bridge_mac(node.name, segment.id)
    _put(picture, Link(bridge, "bridge", mac=mac, mtu=segment.mtu or 1500, nf_call=False, owner=owner))
    if node.external_device:
        _put(picture, Link(node.external_device, "device", master=bridge, ours=False, owner=owner))
    else:
        picture.faults[owner] = "this node has no external device: [gateway] external_device is not set"


def _port(picture: Picture, port: Port, desired: Desired, node: Node) -> None:
    owner = f"port/{port.id}"
    segment = desired.segments.get(port.network_id)
    if segment is None or segment.external:
        where = "is the provider's: servers reach it by a router" if segment else "is not on this node"
        picture.faults[owner] = f"network {port.network_id} {where}"
        return
    # Whoever may send under other MACs must be found under them: such ports are flooded and learned from.
    loose = not port.port_security or any(p.mac not in ("", port.mac) for p in port.allowed_pairs)
    link = Link(
        port.device, "tap", mtu=node.underlay_mtu, master=name.bridge(port.network_id), up=port.admin_up, learning=loose,
        flood=loose, owner=owner,
    )  # fmt: skip
    _put(picture, link)
    picture.add(Fdb(port.device, port.mac, owner=owner))


def _neighbours(picture: Picture, desired: Desired, node: Node) -> None:
    """Ports elsewhere. One that is told to be here, or is here already (it just moved in), is no neighbour."""
    tenant = {s.id for s in desired.segments.values() if not s.external}
    for other in desired.neighbours.values():
        if other.network_id in tenant and other.vtep != node.vtep and other.id not in desired.ports:
            picture.facts.update(_neighbour(other))


@lru_cache(CACHED_MAX)
def _neighbour(other: Neighbour) -> dict[tuple[str, ...], Fact]:
    """All three are needed: where the MAC is, behind which bridge port, and who has the address (answers ARP and ND here)."""
    bridge, vxlan, owner = name.bridge(other.network_id), name.vxlan(other.network_id), f"neighbour/{other.id}"
    facts: list[Fact] = [Fdb(vxlan, other.mac, other.vtep, owner=owner), Fdb(vxlan, other.mac, owner=owner)]
    facts += [Neigh(bridge, ip, other.mac, owner=owner) for ip in other.ips]
    return {fact.slot: fact for fact in facts}


def _dhcp(picture: Picture, desired: Desired, segment: Segment, node: Node) -> None:
    ns, outside, owner = name.dhcp_namespace(segment.id), name.dhcp_port(segment.id), f"dhcp/{segment.id}"
    inside, mac = name.DHCP_INTERFACE, name.dhcp_mac(segment.id)
    picture.namespaces[ns] = DHCP_SYSCTLS
    _put(
        picture,
        Link(outside, "veth", mtu=node.underlay_mtu, master=name.bridge(segment.id), peer=(ns, inside), learning=False,
             flood=False, owner=owner),
        Link(inside, "veth", ns, mac=mac, mtu=segment.mtu, owner=owner),
    )  # fmt: skip
    picture.add(Fdb(outside, mac, owner=owner), Addr(ns, inside, name.METADATA_IP, 32, owner=owner))
    for subnet in segment.dhcp_subnets:
        prefix = ipaddress.ip_network(subnet.cidr).prefixlen
        picture.add(Addr(ns, inside, subnet.dhcp_ip, prefix, owner=owner))
    picture.dhcp[segment.id] = dnsmasq.service(desired, segment)
    picture.listening.add(segment.id)


# ---------------------------------------------------------------- routers


def _router(picture: Picture, router: Router, desired: Desired, node: Node) -> None:
    ns, owner = name.router_namespace(router.id), f"router/{router.id}"
    legs = [(i.network_id, i.port_id, i.mac, name.inner(i.port_id)) for i in router.interfaces]
    if router.gateway is not None:
        gateway = router.gateway
        legs.append((gateway.network_id, gateway.port_id, gateway.mac, name.outer(gateway.port_id)))
    missing = sorted({network_id for network_id, *_rest in legs} - desired.segments.keys())
    if missing:
        picture.faults[owner] = f"network {missing[0]} is not on this node"
        return
    if router.gateway is not None and not node.external_device:
        picture.faults[owner] = "this node has no external device: [gateway] external_device is not set"
    picture.namespaces[ns] = ROUTER_SYSCTLS
    picture.tables[ns] = nat.tables(router)
    for network_id, port_id, mac, inside in legs:
        segment, outside = desired.segments[network_id], name.router_port(port_id)
        _put(
            picture,
            Link(outside, "veth", mtu=segment.mtu if segment.external else node.underlay_mtu, master=name.bridge(network_id),
                 peer=(ns, inside), learning=False, flood=False, owner=owner),
            Link(inside, "veth", ns, mac=mac, mtu=segment.mtu or 1500, owner=owner),
        )  # fmt: skip
        picture.add(Fdb(outside, mac, owner=owner))
    picture.add(*_router_facts(router, ns, owner))


def _router_facts(router: Router, ns: str, owner: str) -> list[Fact]:
    facts: list[Fact] = [Addr(ns, name.inner(i.port_id), i.ip, i.prefix, owner=owner) for i in router.interfaces]
    facts += [Via(ns, r.destination, r.nexthop, owner=owner) for r in router.routes]
    if router.gateway is not None:
        outer = name.outer(router.gateway.port_id)
        facts.append(Addr(ns, outer, router.gateway.ip, router.gateway.prefix, owner=owner))
        facts += [Addr(ns, outer, f.ip, 32, owner=owner) for f in router.floating_ips]
        if router.gateway.nexthop:
            facts.append(Via(ns, "0.0.0.0/0", router.gateway.nexthop, owner=owner))
    return facts
