"""Port: a MAC with addresses on a network; a server's, a router's, or nobody's yet."""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.domain import check

FREE = ""
SERVER = "server"
ROUTER_INTERFACE = "router_interface"
ROUTER_GATEWAY = "router_gateway"
FLOATING_IP = "floating_ip"
DHCP = "dhcp"

FIXED_IPS_MAX = 10
GROUPS_MAX = 10

DOWN, BUILD, ACTIVE, ERROR = "DOWN", "BUILD", "ACTIVE", "ERROR"


@dataclass(frozen=True)
class Port:
    id: str
    name: str
    project_id: str  # "" = the cloud's own (gateways, floating IPs)
    network_id: str
    mac: str
    port_security: bool
    purpose: str
    server_id: str
    router_id: str
    made_for_server: bool  # goes with the server
    position: int  # order of the server's interfaces
    node_id: str  # where it is bound, "" = nowhere
    created_at: float
    observed_state: str
    observed_fault: str

    def __post_init__(self) -> None:
        """Errors: InvalidArgument."""
        if self.name:
            check.name("name", self.name)

    @property
    def state(self) -> str:
        if self.purpose == DHCP:
            return ACTIVE  # answered on every node alike, bound to none
        return state_of(self.node_id, self.observed_state)


def state_of(node_id: str, observed_state: str) -> str:
    """State of what lives on a node of the network: a port or a router."""
    if not node_id:
        return DOWN
    return {"READY": ACTIVE, "FAILED": ERROR}.get(observed_state, BUILD)


@dataclass(frozen=True)
class FixedIp:
    """In a wish either may be "": any address of the subnet, or the subnet that the address is in."""

    subnet_id: str
    ip: str


@dataclass(frozen=True)
class AddressView:
    """One address of a server, as its owner sees it."""

    network_id: str
    network_name: str
    port_id: str
    ip: str
    mac: str
    floating_ip: str  # "" = none


def device_name(port_id: str) -> str:
    """The TAP's name on the node: the kernel takes 15 characters."""
    return "tap" + port_id[:11]
