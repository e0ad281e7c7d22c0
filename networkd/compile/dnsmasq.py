"""Configuration of a network's dnsmasq: DHCP for our ports, names of ports and neighbours. Pure.

No `set:` tags in host entries: dnsmasq 2.90 dies on SIGHUP once such a host had a lease. The default route is part of option
121, because clients that know 121 ignore option 3 (RFC 3442). Hosts are one file a port, so that a new port is a new file.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from networkd.spec import name
from networkd.spec.desired import Desired, Neighbour, Port, Segment, Subnet
from networkd.spec.picture import DhcpService

LEASE_S = 86400
CACHED_MAX = 16384
DEFAULT_DOMAIN = "skyrack.internal"


def service(desired: Desired, segment: Segment) -> DhcpService:
    """`segment` has a subnet with DHCP."""
    ports = [p for p in desired.ports.values() if p.network_id == segment.id]
    others = [n for n in desired.neighbours.values() if n.network_id == segment.id]
    everyone: list[Port | Neighbour] = [*ports, *others]
    domain = _domain(segment.dhcp_subnets)
    hosts = {p.id: line for p in ports if (line := _host(p, segment))}
    names = {p.id: line for p in everyone if (line := _name(p, domain))}
    return DhcpService(segment.id, _conf(segment), hosts, names)


def _conf(segment: Segment) -> str:
    subnets = segment.dhcp_subnets
    lines = [
        f"interface={name.DHCP_INTERFACE}",
        "except-interface=lo",
        "bind-dynamic",
        "no-resolv",
        "no-hosts",
        "no-poll",
        "no-ping",
        "dhcp-authoritative",
        "dhcp-ignore=tag:!known",
        f"dhcp-lease-max={sum(ipaddress.ip_network(s.cidr).num_addresses for s in subnets)}",
        f"dhcp-option-force=option:mtu,{segment.mtu}",
        f"domain={_domain(subnets)}",
        f"local=/{_domain(subnets)}/",
    ]
    for number, subnet in enumerate(subnets):
        lines += _range(f"s{number}", subnet)
    return "\n".join(lines) + "\n"


def _domain(subnets: Iterable[Subnet]) -> str:
    return next((s.dns_domain.rstrip(".") for s in subnets if s.dns_domain), DEFAULT_DOMAIN)


def _range(tag: str, subnet: Subnet) -> list[str]:
    network = ipaddress.ip_network(subnet.cidr)
    option = f"dhcp-option=tag:{tag},option"
    lines = [f"dhcp-range=set:{tag},{network.network_address},static,{network.netmask},{LEASE_S}s"]
    lines.append(f"{option}:router,{subnet.gateway_ip}" if subnet.gateway_ip else f"{option}:router")
    routes = [(r.destination, r.nexthop) for r in subnet.routes]
    routes.append((f"{name.METADATA_IP}/32", subnet.dhcp_ip))
    if subnet.gateway_ip:
        routes.append(("0.0.0.0/0", subnet.gateway_ip))
    lines.append(f"{option}:classless-static-route,{','.join(f'{d},{n}' for d, n in routes)}")
    resolvers = [subnet.dhcp_ip, *(d for d in subnet.dns_servers if ":" not in d)]
    lines.append(f"{option}:dns-server,{','.join(resolvers)}")
    return lines


def _host(port: Port, segment: Segment) -> str:
    served = {s.id for s in segment.dhcp_subnets}
    ip = next((f.ip for f in port.fixed_ips if f.subnet_id in served and ":" not in f.ip), "")
    return ",".join(part for part in (port.mac, ip, port.hostname) if part) + "\n" if ip else ""


@lru_cache(CACHED_MAX)
def _name(port: Port | Neighbour, domain: str) -> str:
    if not port.hostname:
        return ""
    return "".join(f"{ip} {port.hostname}.{domain} {port.hostname}\n" for ip in port.ips)
