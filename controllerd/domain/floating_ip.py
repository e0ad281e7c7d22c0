"""Floating IP: an address of an external network, mapped 1:1 to an address of a port."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.domain.port import ACTIVE, BUILD, DOWN


@dataclass(frozen=True)
class FloatingIp:
    id: str
    project_id: str
    external_network_id: str
    subnet_id: str
    ip: str
    holder_port_id: str  # owns the address on the external network
    port_id: str  # "" = not mapped
    fixed_ip: str
    router_id: str
    created_at: float

    def state(self, router_node_id: str, in_force: bool) -> str:
        """`in_force`: the router's node reports it. Without a node for the router it is down."""
        if not self.port_id or not router_node_id:
            return DOWN
        return ACTIVE if in_force else BUILD
