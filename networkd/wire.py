"""agent.proto to our values and back. What does not parse is refused object by object: one bad port never stops the others.

Values go into nft text, dnsmasq files and kernel names, so everything is checked against what it must look like.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from daemonkit.errors import InvalidArgument
from networkd.spec.desired import (
    Account,
    AddressPair,
    Desired,
    FixedIp,
    FloatingIp,
    Group,
    Guest,
    Neighbour,
    Port,
    Route,
    Router,
    RouterGateway,
    RouterInterface,
    Rule,
    Segment,
    Subnet,
)
from skyrack.v1 import agent_pb2

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_MEMBERS_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}:[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DEVICE = re.compile(r"tap[A-Za-z0-9-]{1,12}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_DOMAIN = re.compile(r"([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?){1,32}")
_PROTOCOL = re.compile(r"|tcp|udp|sctp|icmp|icmpv6|[0-9]{1,3}")
VNI_MAX = (1 << 24) - 1


def desired_of(objects: Mapping[str, agent_pb2.DesiredObject]) -> Desired:
    """`objects`: key "kind/id" -> object. What was refused is in `faults`."""
    return update(Desired(), objects, objects)


def update(held: Desired, objects: Mapping[str, agent_pb2.DesiredObject], changed: Iterable[str]) -> Desired:
    """`held` with the `changed` keys as they are in `objects`: there new, other, or gone."""
    kinds: dict[str, dict[str, Any]] = {kind: dict(getattr(held, room)) for kind, room in _ROOMS.items()}
    faults = dict(held.faults)
    for key in sorted(changed):
        kind, _, identity = key.partition("/")
        if kind not in kinds:
            continue
        kinds[kind].pop(identity, None)
        faults.pop(key, None)
        try:
            if key in objects:
                kinds[kind][identity] = _PARSERS[kind](identity, getattr(objects[key], kind))
        except InvalidArgument as error:
            faults[key] = error.message
    return Desired(**{room: kinds[kind] for kind, room in _ROOMS.items()}, faults=faults)


# ---------------------------------------------------------------- checked scalars


def _match(pattern: re.Pattern[str], field: str, value: str) -> str:
    if not pattern.fullmatch(value):
        raise InvalidArgument(field, f"{value!r} is not well-formed")
    return value


def _id(field: str, value: str) -> str:
    return _match(_ID, field, value)


def _mac(field: str, value: str) -> str:
    return _match(_MAC, field, value.lower())


def _ip(field: str, value: str) -> str:
    """An address without a zone: Python takes any text for the zone of an IPv6 address, and ours goes into rulesets."""
    try:
        _no_zone(value)
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise InvalidArgument(field, f"{value!r} is not an address") from None


def _ip4(field: str, value: str) -> str:
    if ":" in _ip(field, value):
        raise InvalidArgument(field, f"{value!r} is not an IPv4 address")
    return _ip(field, value)


def _maybe(parse: Callable[[str, str], str], field: str, value: str) -> str:
    return parse(field, value) if value else ""


def _no_zone(value: str) -> None:
    """Errors: ValueError."""
    if "%" in value:
        raise ValueError(value)


def _cidr(field: str, value: str) -> str:
    try:
        _no_zone(value)
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise InvalidArgument(field, f"{value!r} is not a CIDR") from None


def _address_or_cidr(field: str, value: str) -> str:
    return _cidr(field, value) if "/" in value else _ip(field, value)


def _hostname(value: str) -> str:
    """A tenant's choice: what can't be a DNS label is left out, not refused."""
    return value if _LABEL.fullmatch(value) else ""


def _number(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidArgument(field, f"{value} is not within {low}..{high}")
    return value


def _routes(field: str, routes: Iterable[agent_pb2.Route]) -> tuple[Route, ...]:
    return tuple(Route(_cidr(field, r.destination), _ip(field, r.nexthop)) for r in routes)


# ---------------------------------------------------------------- objects


def _segment(identity: str, spec: agent_pb2.SegmentSpec) -> Segment:
    return Segment(
        _id("id", identity),
        0 if spec.external else _number("vni", spec.vni, 1, VNI_MAX),
        _number("mtu", spec.mtu, 0, 65535),
        tuple(_subnet(s) for s in spec.subnets),
        tuple(_ip4("vteps", v) for v in spec.vteps),
        spec.external,
    )


def _subnet(spec: agent_pb2.SegmentSubnet) -> Subnet:
    network = ipaddress.ip_network(_cidr("subnets.cidr", spec.cidr))
    for field, ip in (("subnets.gateway_ip", spec.gateway_ip), ("subnets.dhcp_ip", spec.dhcp_ip)):
        if ip and ipaddress.ip_address(_ip(field, ip)) not in network:
            raise InvalidArgument(field, f"{ip} is not within {network}")
    return Subnet(
        _id("subnets.subnet_id", spec.subnet_id),
        _cidr("subnets.cidr", spec.cidr),
        _maybe(_ip, "subnets.gateway_ip", spec.gateway_ip),
        _maybe(_ip, "subnets.dhcp_ip", spec.dhcp_ip),
        tuple(_ip("subnets.dns_servers", d) for d in spec.dns_servers),
        _routes("subnets.routes", spec.routes),
        _match(_DOMAIN, "subnets.dns_domain", spec.dns_domain) if spec.dns_domain else "",
    )


def _port(identity: str, spec: agent_pb2.PortSpec) -> Port:
    pairs = tuple(
        AddressPair(_address_or_cidr("allowed_pairs.ip", p.ip), _maybe(_mac, "allowed_pairs.mac", p.mac))
        for p in spec.allowed_pairs
    )
    return Port(
        _id("id", identity),
        _id("network_id", spec.network_id),
        _match(_DEVICE, "device", spec.device),
        _mac("mac", spec.mac),
        tuple(FixedIp(f.subnet_id, _ip("fixed_ips.ip", f.ip)) for f in spec.fixed_ips),
        tuple(_id("group_ids", g) for g in spec.group_ids),
        spec.port_security,
        _hostname(spec.hostname),
        _guest(spec.metadata),
        spec.admin_up,
        pairs,
    )


def _guest(spec: agent_pb2.ServerMetadata) -> Guest:
    return Guest(
        spec.server_id,
        spec.name,
        spec.hostname,
        spec.project_id,
        spec.availability_zone,
        tuple(sorted(spec.meta.items())),
        tuple((k.name, k.data) for k in spec.public_keys),
        spec.user_data,
        spec.flavor,
        spec.image_id,
        spec.launch_index,
        tuple(Account(a.name, tuple(a.public_keys), a.sudo) for a in spec.accounts),
    )


def _neighbour(identity: str, spec: agent_pb2.NeighbourSpec) -> Neighbour:
    ips = tuple(_ip("ips", ip) for ip in spec.ips)
    network_id = _id("network_id", spec.network_id)
    return Neighbour(identity, network_id, _mac("mac", spec.mac), ips, _ip4("vtep", spec.vtep), _hostname(spec.hostname))


def _group(identity: str, spec: agent_pb2.GroupSpec) -> Group:
    return Group(_id("id", identity), tuple(_rule(r) for r in spec.rules))


def _rule(spec: agent_pb2.GroupRule) -> Rule:
    cidr = _maybe(_cidr, "rules.remote_cidr", spec.remote_cidr)
    if cidr and (":" in cidr) != spec.ipv6:
        raise InvalidArgument("rules.remote_cidr", f"{cidr} is not of the rule's IP version")
    if spec.protocol.isdecimal():
        _number("rules.protocol", int(spec.protocol), 0, 255)
    port_max = 255 if spec.protocol.startswith("icmp") else 65535
    return Rule(
        spec.ingress,
        spec.ipv6,
        _match(_PROTOCOL, "rules.protocol", spec.protocol),
        _number("rules.port_min", spec.port_min, -1, port_max),
        _number("rules.port_max", spec.port_max, -1, port_max),
        cidr,
        _maybe(_id, "rules.remote_group_id", spec.remote_group_id),
    )


def _members(identity: str, spec: agent_pb2.MembersSpec) -> tuple[str, ...]:
    _match(_MEMBERS_ID, "id", identity)
    return tuple(sorted({_ip("ips", ip) for ip in spec.ips}))


def _router(identity: str, spec: agent_pb2.RouterSpec) -> Router:
    gateway = None
    if spec.HasField("gateway"):
        leg, snat = spec.gateway, spec.gateway.snat
        gateway = RouterGateway(*_leg(leg), _maybe(_ip4, "gateway.nexthop", leg.nexthop), snat)
    floating = tuple(
        FloatingIp(f.floating_ip_id, _ip4("floating_ips.ip", f.ip), _maybe(_ip4, "floating_ips.fixed_ip", f.fixed_ip))
        for f in spec.floating_ips
    )
    interfaces = tuple(RouterInterface(*_leg(i)) for i in spec.interfaces)
    return Router(_id("id", identity), interfaces, gateway, floating, _routes("routes", spec.routes), spec.admin_up)


def _leg(spec: agent_pb2.RouterInterface | agent_pb2.RouterGateway) -> tuple[str, str, str, str, int]:
    return (
        _id("port_id", spec.port_id),
        _id("network_id", spec.network_id),
        _mac("mac", spec.mac),
        _ip4("ip", spec.ip),
        _number("prefix", spec.prefix, 1, 32),
    )


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "segment": _segment,
    "port": _port,
    "neighbour": _neighbour,
    "group": _group,
    "members": _members,
    "router": _router,
}
_ROOMS = {
    "segment": "segments",
    "port": "ports",
    "neighbour": "neighbours",
    "group": "groups",
    "members": "members",
    "router": "routers",
}
