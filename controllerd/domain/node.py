"""Node: a machine of the cloud, and the agents that run on it."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("controller", "compute", "edge", "gateway", "storage")

# Which agent each role needs.
AGENT_OF_ROLE = {"compute": "computed", "edge": "networkd", "gateway": "networkd", "storage": "storaged"}


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
