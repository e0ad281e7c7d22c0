"""Subnet: an address range on a network. Its checks stand here; that it overlaps no other one is checked in its transaction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from controllerd.domain import check
from controllerd.domain.address import AddressPool, HostRoute, address, host_in, network, subnet_cidr, text_of
from daemonkit.errors import InvalidArgument

POOLS_MAX = 10
DNS_SERVERS_MAX = 5
ROUTES_MAX = 20


@dataclass(frozen=True)
class Subnet:
    id: str
    name: str
    project_id: str
    network_id: str
    cidr: str
    gateway_ip: str  # "" = none
    dhcp: bool
    pools: tuple[AddressPool, ...]  # ascending; what addresses are taken from when none is asked for
    dns_servers: tuple[str, ...]
    routes: tuple[HostRoute, ...]
    created_at: float

    @property
    def range(self) -> IPv4Network:
        return IPv4Network(self.cidr)


def checked(subnet: Subnet) -> Subnet:
    """With its pools in order. Errors: InvalidArgument."""
    if subnet.name:
        check.name("name", subnet.name)
    inside = subnet_cidr("cidr", subnet.cidr)
    if subnet.gateway_ip:
        host_in("gateway_ip", subnet.gateway_ip, inside)
    _check_pools(subnet.pools, inside, subnet.gateway_ip)
    _check_dns(subnet.dns_servers)
    check_routes("routes", subnet.routes, ROUTES_MAX)
    for route in subnet.routes:
        host_in("routes", route.nexthop, inside)
    return replace(subnet, pools=tuple(sorted(subnet.pools, key=lambda pool: pool.bounds)))


def default_gateway(cidr: str) -> str:
    """The first address. Errors: InvalidArgument."""
    return str(subnet_cidr("cidr", cidr).network_address + 1)


def default_pools(cidr: str, gateway_ip: str) -> tuple[AddressPool, ...]:
    """All but network, broadcast and gateway. Errors: InvalidArgument."""
    inside = subnet_cidr("cidr", cidr)
    first, last = int(inside.network_address) + 1, int(inside.broadcast_address) - 1
    if not gateway_ip:
        return (AddressPool(text_of(first), text_of(last)),)
    gateway = int(host_in("gateway_ip", gateway_ip, inside))
    halves = ((first, gateway - 1), (gateway + 1, last))
    return tuple(AddressPool(text_of(low), text_of(high)) for low, high in halves if low <= high)


def check_routes(field: str, routes: tuple[HostRoute, ...], count_max: int) -> None:
    """Errors: InvalidArgument for malformed, repeated or too many routes."""
    if len(routes) > count_max:
        raise InvalidArgument(field, f"at most {count_max}, has {len(routes)}")
    seen: set[IPv4Network] = set()
    for route in routes:
        destination = network(field, route.destination)
        address(field, route.nexthop)
        if destination in seen:
            raise InvalidArgument(field, f"{destination} is given twice")
        seen.add(destination)


def _check_pools(pools: tuple[AddressPool, ...], inside: IPv4Network, gateway_ip: str) -> None:
    if not 1 <= len(pools) <= POOLS_MAX:
        raise InvalidArgument("pools", f"from 1 to {POOLS_MAX}, has {len(pools)}")
    gateway = int(address("gateway_ip", gateway_ip)) if gateway_ip else -1
    end = -1
    for pool in sorted(pools, key=lambda p: int(address("pools", p.first))):
        first, last = int(host_in("pools", pool.first, inside)), int(host_in("pools", pool.last, inside))
        if first > last:
            raise InvalidArgument("pools", f"{pool.first} is above {pool.last}")
        if first <= end:
            raise InvalidArgument("pools", f"{pool.first} to {pool.last} overlaps another pool")
        if first <= gateway <= last:
            raise InvalidArgument("pools", f"{pool.first} to {pool.last} holds the gateway {gateway_ip}")
        end = last


def _check_dns(servers: tuple[str, ...]) -> None:
    if len(servers) > DNS_SERVERS_MAX:
        raise InvalidArgument("dns_servers", f"at most {DNS_SERVERS_MAX}, has {len(servers)}")
    for server in servers:
        found = address("dns_servers", server)
        if found.is_multicast or found.is_unspecified or str(found) == "255.255.255.255":
            raise InvalidArgument("dns_servers", f"{found} is no host's address")
    if len(set(servers)) != len(servers):
        raise InvalidArgument("dns_servers", "one is given twice")
