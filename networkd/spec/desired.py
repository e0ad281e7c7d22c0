"""Desired state of this node as values: what agent.proto says, checked and without protobuf. Ids are keys everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Route:
    destination: str  # CIDR
    nexthop: str


@dataclass(frozen=True)
class Subnet:
    id: str
    cidr: str
    gateway_ip: str = ""
    dhcp_ip: str = ""  # "" = no DHCP, DNS and metadata on this subnet
    dns_servers: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    dns_domain: str = ""


@dataclass(frozen=True)
class Segment:
    """A network on this node."""

    id: str
    vni: int
    mtu: int  # bytes, as guests are told
    subnets: tuple[Subnet, ...] = ()
    vteps: tuple[str, ...] = ()  # IPv4 of every other node with this segment
    external: bool = False

    @property
    def dhcp_subnets(self) -> tuple[Subnet, ...]:
        """IPv4 subnets that we serve."""
        return tuple(s for s in self.subnets if s.dhcp_ip and ":" not in s.dhcp_ip)


@dataclass(frozen=True)
class FixedIp:
    subnet_id: str
    ip: str


@dataclass(frozen=True)
class AddressPair:
    ip: str  # address or CIDR
    mac: str


@dataclass(frozen=True)
class Account:
    name: str
    public_keys: tuple[str, ...]
    sudo: bool


@dataclass(frozen=True)
class Guest:
    """What a server learns about itself."""

    server_id: str = ""
    name: str = ""
    hostname: str = ""
    project_id: str = ""
    availability_zone: str = ""
    meta: tuple[tuple[str, str], ...] = ()
    public_keys: tuple[tuple[str, str], ...] = ()  # (name, data)
    user_data: bytes = b""
    flavor: str = ""
    image_id: str = ""
    launch_index: int = 0
    accounts: tuple[Account, ...] = ()


@dataclass(frozen=True)
class Port:
    id: str
    network_id: str
    device: str
    mac: str
    fixed_ips: tuple[FixedIp, ...] = ()
    group_ids: tuple[str, ...] = ()
    port_security: bool = True
    hostname: str = ""
    guest: Guest = Guest()
    admin_up: bool = True
    allowed_pairs: tuple[AddressPair, ...] = ()

    @property
    def ips(self) -> tuple[str, ...]:
        return tuple(f.ip for f in self.fixed_ips)


@dataclass(frozen=True)
class Neighbour:
    id: str
    network_id: str
    mac: str
    ips: tuple[str, ...]
    vtep: str
    hostname: str = ""


@dataclass(frozen=True)
class Rule:
    ingress: bool
    ipv6: bool = False
    protocol: str = ""  # "" = any
    port_min: int = -1
    port_max: int = -1
    remote_cidr: str = ""
    remote_group_id: str = ""


@dataclass(frozen=True)
class Group:
    id: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class RouterInterface:
    port_id: str
    network_id: str
    mac: str
    ip: str
    prefix: int


@dataclass(frozen=True)
class RouterGateway:
    port_id: str
    network_id: str
    mac: str
    ip: str
    prefix: int
    nexthop: str = ""
    snat: bool = True


@dataclass(frozen=True)
class FloatingIp:
    id: str
    ip: str
    fixed_ip: str


@dataclass(frozen=True)
class Router:
    id: str
    interfaces: tuple[RouterInterface, ...] = ()
    gateway: RouterGateway | None = None
    floating_ips: tuple[FloatingIp, ...] = ()
    routes: tuple[Route, ...] = ()
    admin_up: bool = True


@dataclass(frozen=True)
class Desired:
    """The whole node. `members`: "<group id>:<network id>" -> addresses. `faults`: key "kind/id" -> why it was refused."""

    segments: Mapping[str, Segment] = field(default_factory=dict)
    ports: Mapping[str, Port] = field(default_factory=dict)
    neighbours: Mapping[str, Neighbour] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    routers: Mapping[str, Router] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """What this node is: from its configuration."""

    name: str
    vtep: str
    underlay_mtu: int  # bytes
    external_device: str = ""  # "" = not a gateway
