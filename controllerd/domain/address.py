"""IPv4 addresses, ranges and MACs as tenants give them. Errors: InvalidArgument naming the field, everywhere."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from daemonkit.errors import InvalidArgument

PREFIX_MIN, PREFIX_MAX = 8, 29
MAC_PREFIX = "fa:16:3e"  # locally administered, unicast
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# "This network", loopback, link-local (metadata lives there), multicast and what is reserved above it.
_NOT_FOR_SUBNETS = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))


@dataclass(frozen=True)
class AddressPool:
    """Addresses from `first` to `last`, both included."""

    first: str
    last: str

    @property
    def bounds(self) -> tuple[int, int]:
        return number(self.first), number(self.last)


@dataclass(frozen=True)
class HostRoute:
    destination: str  # CIDR
    nexthop: str


def number(ip: str) -> int:
    return int(IPv4Address(ip))


def text_of(ip_number: int) -> str:
    return str(IPv4Address(ip_number))


def address(field: str, value: str) -> IPv4Address:
    try:
        return IPv4Address(value)
    except ValueError:
        raise InvalidArgument(field, f"is not an IPv4 address: {value[:64]!r}") from None


def network(field: str, value: str) -> IPv4Network:
    """Any IPv4 CIDR whose host bits are zero."""
    if "/" not in value:
        raise InvalidArgument(field, f"is not a CIDR (address/prefix): {value[:64]!r}")
    try:
        loose = IPv4Network(value, strict=False)
    except ValueError:
        raise InvalidArgument(field, f"is not an IPv4 CIDR: {value[:64]!r}") from None
    if str(loose) != value:
        raise InvalidArgument(field, f"host bits must be zero and the prefix a number: {loose}, not {value[:64]}")
    return loose


def subnet_cidr(field: str, value: str) -> IPv4Network:
    """A CIDR that a subnet may have: prefix 8 to 29, ordinary unicast addresses."""
    found = network(field, value)
    if not PREFIX_MIN <= found.prefixlen <= PREFIX_MAX:
        raise InvalidArgument(field, f"prefix from {PREFIX_MIN} to {PREFIX_MAX}, is {found.prefixlen}")
    for reserved in _NOT_FOR_SUBNETS:
        if found.overlaps(reserved):
            raise InvalidArgument(field, f"{found} is in {reserved}, which is not for subnets")
    return found


def host_in(field: str, value: str, subnet: IPv4Network) -> IPv4Address:
    """An address of the subnet that a host can have."""
    found = address(field, value)
    if found not in subnet:
        raise InvalidArgument(field, f"{found} is not in {subnet}")
    if found in (subnet.network_address, subnet.broadcast_address):
        raise InvalidArgument(field, f"{found} is the network or broadcast address of {subnet}")
    return found


def overlapping(cidr: str, others: Iterable[str]) -> str:
    """The first of `others` that shares addresses with `cidr`, "" for none."""
    mine = IPv4Network(cidr)
    return next((other for other in others if mine.overlaps(IPv4Network(other))), "")


def mac(field: str, value: str) -> str:
    """A unicast MAC in lower case."""
    lower = value.lower().replace("-", ":")
    if not _MAC.fullmatch(lower):
        raise InvalidArgument(field, f"is not a MAC address: {value[:64]!r}")
    if int(lower[:2], 16) & 1 or lower == "00:00:00:00:00:00":
        raise InvalidArgument(field, f"must be a unicast address, is {lower}")
    return lower


def random_mac(rng: random.Random) -> str:
    tail = rng.getrandbits(24)
    return f"{MAC_PREFIX}:{tail >> 16:02x}:{tail >> 8 & 255:02x}:{tail & 255:02x}"
