"""The plan of the rack: which nodes there are, what they do, which networks they are plugged into, under which addresses.

Pure: the same state always gives the same plan, so everything the box ever made can be found again from a few numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from daemonkit.errors import InvalidArgument

API_PORT = 7700
AGENTS_PORT = 7701


@dataclass(frozen=True)
class Network:
    """One of the three wires. `device`: its interface in every node that is plugged in. `mtu` in bytes."""

    name: str
    device: str
    prefix: str
    mtu: int = 1500

    def address(self, last: int) -> str:
        return f"{self.prefix}.{last}"

    def plug(self, last: int, *, numbered: bool = True) -> Plug:
        """For the node of that last byte. Its MAC is locally administered and made of the address."""
        mac = bytes([2, 0, *(int(part) for part in self.address(last).split("."))]).hex(":")
        return Plug(self, mac, self.address(last) if numbered else "")


@dataclass(frozen=True)
class Plug:
    """A node's end of a cable. `mac` stays over power failures, as a real card's does; `address` "" = none."""

    network: Network
    mac: str
    address: str


# The traffic network carries VXLAN (50 bytes): tenants get an MTU of 1450.
MANAGEMENT = Network("management", "mgmt0", "10.10.0")
TRAFFIC = Network("traffic", "data0", "10.20.0")
INTERNET = Network("internet", "ext0", "203.0.113")
NETWORKS = {network.name: network for network in (MANAGEMENT, TRAFFIC, INTERNET)}

CLIENT = "internet"
CLIENT_PLUG = INTERNET.plug(254)
CLIENT_ADDRESS = CLIENT_PLUG.address
PUBLIC_CIDR = f"{INTERNET.prefix}.0/24"
PUBLIC_POOL = (INTERNET.address(10), INTERNET.address(250))


@dataclass(frozen=True)
class Kind:
    """A sort of node: what its certificate lets it do, its daemons, where it is plugged in, where its numbers start,
    and how many of them a rack may have."""

    letter: str
    word: str
    roles: tuple[str, ...]
    daemons: tuple[str, ...]
    networks: tuple[Network, ...]
    base: int
    counts: Sequence[int]


KINDS = (
    Kind("c", "controllers", ("controller",), ("controllerd",), (MANAGEMENT,), 10, (1, 3)),
    Kind("n", "networks", ("edge", "gateway"), ("networkd",), (MANAGEMENT, TRAFFIC, INTERNET), 20, range(10)),
    Kind("s", "storages", ("storage",), ("storaged",), (MANAGEMENT,), 30, range(10)),
    Kind("k", "computes", ("compute", "edge"), ("networkd", "computed"), (MANAGEMENT, TRAFFIC), 40, range(201)),
)


@dataclass(frozen=True)
class Node:
    name: str
    kind: Kind
    number: int

    @property
    def address(self) -> str:
        """On the management network."""
        return MANAGEMENT.address(self.kind.base + self.number)

    @property
    def vtep(self) -> str:
        return TRAFFIC.address(self.kind.base + self.number)

    def plugs(self) -> list[Plug]:
        """Each network it is plugged into. A gateway has no address of its own on the internet."""
        last = self.kind.base + self.number
        return [network.plug(last, numbered=network is not INTERNET) for network in self.kind.networks]


def nodes(counts: dict[str, int]) -> list[Node]:
    """`counts` as {"controllers": 1, "networks": 1, "computes": 2, "storages": 1}. Errors: InvalidArgument."""
    made = []
    for kind in KINDS:
        count = counts.get(kind.word, 0)
        if count not in kind.counts:
            between = "to" if isinstance(kind.counts, range) else "or"  # an even number of etcd members is no gain
            raise InvalidArgument(kind.word, f"{kind.counts[0]} {between} {kind.counts[-1]} are possible, not {count}")
        made += [Node(f"{kind.letter}{number}", kind, number) for number in range(1, count + 1)]
    return made


def check_name(name: str) -> str:
    """A sandbox's name becomes part of namespace and group names, with "-" as the separator. Errors: InvalidArgument."""
    if not re.fullmatch(r"[a-z][a-z0-9]{0,14}", name):
        raise InvalidArgument("name", f"{name!r} is not 1-15 of a-z and 0-9 beginning with a letter")
    return name
