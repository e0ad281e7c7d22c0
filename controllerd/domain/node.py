"""Node: a machine of the cloud, and the agents that run on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from controllerd.domain import check
from daemonkit.errors import InvalidArgument

ROLES = ("controller", "compute", "edge", "gateway", "storage")

# Which agent each role needs.
AGENT_OF_ROLE = {"compute": "computed", "edge": "networkd", "gateway": "networkd", "storage": "storaged"}
_ADDRESS = re.compile(r"[A-Za-z0-9.:\[\]_-]{0,255}")  # a host, with or without a port


@dataclass(frozen=True)
class Node:
    id: str
    name: str
    roles: tuple[str, ...]
    enabled: bool
    certificate_serial: str
    joined_at: float

    def agents(self) -> frozenset[str]:
        return frozenset(AGENT_OF_ROLE[r] for r in self.roles if r in AGENT_OF_ROLE)


@dataclass(frozen=True)
class AgentRecord:
    """`inventory`: the agent's Inventory message in its JSON form."""

    node_id: str
    kind: str
    connected: bool
    last_seen_at: float
    lost: bool  # away for longer than the grace time; cleared by the next session
    version: str
    boot_id: str
    inventory: dict[str, object]


def check_agent(version: str, boot_id: str, inventory: Mapping[str, object]) -> None:
    """What an agent tells of itself: other nodes are given the addresses in it. Errors: InvalidArgument naming the field."""
    check.text("version", version)
    check.text("boot_id", boot_id)
    vtep, storage = _part(inventory, "network").get("vtep", ""), _part(inventory, "storage")
    for field, value in (("address", inventory.get("address", "")), ("storage.nbd_host", storage.get("nbd_host", ""))):
        if not _ADDRESS.fullmatch(str(value)):
            raise InvalidArgument(f"inventory.{field}", f"is not an address: {str(value)[:64]!r}")
    try:
        IPv4Address(vtep or "0.0.0.0")
    except ValueError:
        raise InvalidArgument("inventory.network.vtep", f"is not an IPv4 address: {str(vtep)[:64]!r}") from None


def _part(inventory: Mapping[str, object], name: str) -> Mapping[str, str]:
    found = inventory.get(name, {})
    assert isinstance(found, Mapping)
    return found
