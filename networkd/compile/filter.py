"""The port filter: anti-spoof and stateful security groups of this node, as nft tables. Pure.

Two tables, because the bridge family has no connection tracking on the kernels we support. `inet sk_state` sees bridged
packets (br_netfilter, switched on for our bridges only), tracks them in one zone a network and turns the verdict into a packet
mark; `bridge sk_filter` decides by that mark:

    bridge prerouting -300   mark 0; anti-spoof of the sending port (MAC, IP, ARP, ND, DHCP server, RA)
    inet prerouting          zone of the network; mark REPLY or INVALID
    bridge forward 10        egress rules of the sending port; what may not cross the tunnel
    bridge forward 20        ingress rules of the receiving port

Only replies bypass the rules. Packets of the original direction are judged every time, so removing a rule (or a member of a
group) cuts live flows at once. A TAP without rules passes nothing. Sets of members are per group and network: addresses of
different networks overlap.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache

from networkd.spec import name
from networkd.spec.desired import Desired, Group, Port, Rule, Segment
from networkd.spec.picture import Chain, NftSet, Table

REPLY = "0x01000000"
INVALID = "0x02000000"
VXLAN_PORT = 4789
CACHED_MAX = 4096  # chains of unchanged ports and groups are not written again

ND_FROM_GUEST = "{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report, mld2-listener-report }"
ND_TO_GUEST = "{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, mld-listener-query }"


def tables(desired: Desired, zones: Mapping[str, int]) -> tuple[Table, ...]:
    """`zones`: network id -> connection tracking zone, 1..65535, stable while the network is on this node."""
    return _state(desired, zones), _filter(desired)


def _state(desired: Desired, zones: Mapping[str, int]) -> Table:
    bridges = {f'"{name.bridge(s.id)}"': str(zones[s.id]) for s in _tenant(desired)}
    sets = {
        "zone": NftSet("typeof iifname : ct zone", bridges, is_map=True),
        "bridges": NftSet("type ifname", dict.fromkeys(bridges, "")),
    }
    outer = f"udp dport {VXLAN_PORT}"
    chains = {
        "raw_in": Chain(
            (f"iifname != @bridges {outer} notrack", "ct zone set iifname map @zone"),
            "type filter hook prerouting priority raw; policy accept;",
        ),
        "raw_out": Chain((f"{outer} notrack", f"{outer} meta mark set 0"),
                         "type filter hook output priority raw; policy accept;"),
        "state": Chain(
            (
                "iifname != @bridges return",
                f"ct state established ct direction reply meta mark set meta mark or {REPLY}",
                f"ct state related meta mark set meta mark or {REPLY}",
                f"ct state invalid meta mark set meta mark or {INVALID}",
            ),
            "type filter hook prerouting priority mangle; policy accept;",
        ),
    }  # fmt: skip
    return Table("inet", "sk_state", sets, chains)


def _filter(desired: Desired) -> Table:
    tenant = {s.id for s in _tenant(desired)}
    ports = [p for p in desired.ports.values() if p.network_id in tenant]
    chains = _base() | _tunnels(desired)
    for port in ports:
        if port.admin_up and port.port_security:
            chains |= _port(port, desired.segments[port.network_id])
    wanted = {(g, p.network_id) for p in ports if p.port_security for g in p.group_ids}
    member_sets: dict[str, NftSet] = {}
    for group_id, network_id in sorted(wanted):
        chains |= _group(desired.groups.get(group_id, Group(group_id)), network_id)
        member_sets |= _members(desired, group_id, network_id)
    return Table("bridge", "sk_filter", _maps(desired, ports) | member_sets, chains)


def _tenant(desired: Desired) -> list[Segment]:
    return [s for s in desired.segments.values() if not s.external]


def _maps(desired: Desired, ports: Iterable[Port]) -> dict[str, NftSet]:
    first, sender, receiver = {}, {}, {}
    for port in ports:
        device, key = f'"{port.device}"', name.identifier(port.id)
        open_or_shut = "accept" if port.admin_up else "drop"
        guarded = port.admin_up and port.port_security
        first[device] = f"goto pre_{key}" if guarded else open_or_shut
        sender[device] = f"goto out_{key}" if guarded else open_or_shut
        receiver[device] = f"goto in_{key}" if guarded else open_or_shut
    for segment in _tenant(desired):
        if segment.dhcp_subnets:
            jump = f"goto tunnel_{name.identifier(segment.id)}"
            sender[f'"{name.vxlan(segment.id)}"'] = receiver[f'"{name.vxlan(segment.id)}"'] = jump
    spec = "type ifname : verdict"
    return {
        "first": NftSet(spec, first, is_map=True),
        "sender": NftSet(spec, sender, is_map=True),
        "receiver": NftSet(spec, receiver, is_map=True),
    }


def _base() -> dict[str, Chain]:
    """The hooks. A guest never speaks to the node's own stack, and a TAP missing in the maps is shut."""
    tap = f'"{name.TAP_PREFIX}*"'
    return {
        "prerouting": Chain(("meta mark set 0", "iifname vmap @first", f"iifname {tap} drop"),
                            "type filter hook prerouting priority -300; policy accept;"),
        "input": Chain((f"iifname {tap} drop",), "type filter hook input priority -200; policy accept;"),
        "forward_from": Chain(("iifname vmap @sender", f"iifname {tap} drop"),
                              "type filter hook forward priority 10; policy accept;"),
        "forward_to": Chain(("oifname vmap @receiver", f"oifname {tap} drop"),
                            "type filter hook forward priority 20; policy accept;"),
        "out_common": Chain((
            "ether type arp accept",
            f"meta mark and {REPLY} != 0 accept",
            f"meta mark and {INVALID} != 0 drop",
            f"icmpv6 type {ND_FROM_GUEST} accept",
            "udp sport 68 udp dport 67 accept",
            "udp sport 546 udp dport 547 accept",
            f"ip daddr {name.METADATA_IP} tcp dport 80 accept",
        )),
        "in_common": Chain((
            "ether type arp accept",
            f"meta mark and {REPLY} != 0 accept",
            f"meta mark and {INVALID} != 0 drop",
            f"icmpv6 type {ND_TO_GUEST} accept",
            "udp sport 67 udp dport 68 accept",
            "udp sport 547 udp dport 546 accept",
        )),
    }  # fmt: skip


def _tunnels(desired: Desired) -> dict[str, Chain]:
    """Every node answers DHCP, DNS and metadata itself under one address and MAC: nothing of that may cross the tunnel."""
    chains = {}
    for segment in _tenant(desired):
        local = ", ".join([*(s.dhcp_ip for s in segment.dhcp_subnets), name.METADATA_IP])
        if segment.dhcp_subnets:
            chains[f"tunnel_{name.identifier(segment.id)}"] = Chain((
                "udp dport { 67, 68 } drop",
                f"arp daddr ip {{ {local} }} drop",
                f"arp saddr ip {{ {local} }} drop",
            ))  # fmt: skip
    return chains


# ---------------------------------------------------------------- a port


@lru_cache(CACHED_MAX)
def _port(port: Port, segment: Segment) -> dict[str, Chain]:
    key, network = name.identifier(port.id), name.identifier(port.network_id)
    groups = [name.identifier(g) for g in port.group_ids]
    resolvers = ", ".join(s.dhcp_ip for s in segment.dhcp_subnets)
    dns = [f"ip daddr {{ {resolvers} }} meta l4proto {{ tcp, udp }} th dport 53 accept"] if resolvers else []
    return {
        f"pre_{key}": Chain(tuple(_anti_spoof(port))),
        f"out_{key}": Chain(("jump out_common", *dns, *(f"jump out_{g}_{network}" for g in groups), "drop")),
        f"in_{key}": Chain(("jump in_common", *(f"jump in_{g}_{network}" for g in groups), "drop")),
    }


def _anti_spoof(port: Port) -> list[str]:
    """Accepts what the port may send under its own addresses, drops the rest (VLAN tags and LLDP too)."""
    owned: dict[str, list[str]] = {port.mac: list(port.ips)}
    for pair in port.allowed_pairs:
        owned.setdefault(pair.mac or port.mac, []).append(pair.ip)
    rules = [
        "ip protocol udp udp sport 67 udp dport 68 drop",
        "icmpv6 type { nd-router-advert, nd-redirect } drop",
        "ether type ip6 udp sport 547 drop",
    ]
    for mac, ips in owned.items():
        rules += _sender(
            mac, _distinct(i for i in ips if ":" not in i), _distinct([link_local(mac), *(i for i in ips if ":" in i)])
        )
    return [*rules, "drop"]


def _distinct(ips: Iterable[str]) -> list[str]:
    """Without overlaps, which nft refuses in a set."""
    nets = ipaddress.collapse_addresses(ipaddress.ip_network(ip, strict=False) for ip in ips)  # type: ignore[type-var]
    return [str(n.network_address) if n.num_addresses == 1 else str(n) for n in nets]


def _sender(mac: str, v4: list[str], v6: list[str]) -> list[str]:
    ours = f"ether saddr {mac}"
    rules = [
        f"{ours} arp htype 1 arp ptype ip arp saddr ether {mac} arp saddr ip {{ {', '.join(['0.0.0.0', *v4])} }} accept",
        f"{ours} ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        f"{ours} icmpv6 type nd-neighbor-advert @th,64,128 != {{ {', '.join(_hex_range(i) for i in v6)} }} drop",
        f"{ours} ip6 saddr {{ {', '.join(v6)} }} accept",
        f"{ours} ip6 saddr :: icmpv6 type {ND_FROM_GUEST} accept",
    ]
    if v4:
        rules.insert(1, f"{ours} ip saddr {{ {', '.join(v4)} }} accept")
    return rules


def link_local(mac: str) -> str:
    """EUI-64 (RFC 4291, appendix A)."""
    octets = [int(part, 16) for part in mac.split(":")]
    eui = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + eui))


def _hex_range(ip: str) -> str:
    """nft 1.0.6 knows no target address of an advertisement: raw payload wants numbers."""
    net = ipaddress.IPv6Network(ip, strict=False)
    first, last = int(net.network_address), int(net.broadcast_address)
    return f"{first:#034x}" if first == last else f"{first:#034x}-{last:#034x}"


# ---------------------------------------------------------------- a security group on a network


@lru_cache(CACHED_MAX)
def _group(group: Group, network_id: str) -> dict[str, Chain]:
    suffix = f"{name.identifier(group.id)}_{name.identifier(network_id)}"
    return {
        f"in_{suffix}": Chain(tuple(rule_text(r, network_id) for r in group.rules if r.ingress)),
        f"out_{suffix}": Chain(tuple(rule_text(r, network_id) for r in group.rules if not r.ingress)),
    }


def _members(desired: Desired, group_id: str, network_id: str) -> dict[str, NftSet]:
    group = desired.groups.get(group_id)
    sets = {}
    for remote in sorted({r.remote_group_id for r in group.rules if r.remote_group_id} if group else ()):
        ips = desired.members.get(f"{remote}:{network_id}", ())
        for family, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
            mine = {ip: "" for ip in ips if (":" in ip) == (family == 6)}
            sets[member_set(remote, network_id, ipv6=family == 6)] = NftSet(f"type {kind}", mine)
    return sets


def member_set(group_id: str, network_id: str, *, ipv6: bool) -> str:
    return f"m{6 if ipv6 else 4}_{name.identifier(group_id)}_{name.identifier(network_id)}"


def rule_text(rule: Rule, network_id: str) -> str:
    family, side = ("ip6" if rule.ipv6 else "ip"), ("saddr" if rule.ingress else "daddr")
    if rule.remote_group_id:
        peer = f"{family} {side} @{member_set(rule.remote_group_id, network_id, ipv6=rule.ipv6)}"
    elif rule.remote_cidr and not rule.remote_cidr.endswith("/0"):
        peer = f"{family} {side} {rule.remote_cidr}"
    else:
        peer = f"ether type {family}"
    return " ".join([peer, *_protocol(rule), "accept"])


def _protocol(rule: Rule) -> list[str]:
    match rule.protocol:
        case "":
            return []
        case "tcp" | "udp" | "sctp" as proto:
            return [f"{proto} dport {_port_range(rule)}"] if rule.port_min >= 0 else [f"meta l4proto {proto}"]
        case "icmp" | "icmpv6" as proto:
            number = "ipv6-icmp" if rule.ipv6 else "icmp"
            header = "icmpv6" if rule.ipv6 else proto
            kind = [f"{header} type {rule.port_min}"] if rule.port_min >= 0 else []
            code = [f"{header} code {rule.port_max}"] if kind and rule.port_max >= 0 else []
            return [f"meta l4proto {number}", *kind, *code]
        case number:
            return [f"meta l4proto {number}"]


def _port_range(rule: Rule) -> str:
    last = max(rule.port_min, rule.port_max)
    return str(rule.port_min) if last == rule.port_min else f"{rule.port_min}-{last}"
