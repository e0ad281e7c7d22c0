"""Names of everything networkd makes, so that it knows its own again after any crash. Interfaces have 15 characters at most."""

from __future__ import annotations

import hashlib

OWN_PREFIXES = ("skb", "skx", "skd", "skr")  # in the node's own namespace
ALIAS = "skyrack"  # marks the TAPs we made
NAMESPACE_PREFIX = "sk-"
TAP_PREFIX = "tap"
DHCP_INTERFACE = "dhcp0"  # inside the DHCP namespace
METADATA_IP = "169.254.169.254"


def _short(identity: str) -> str:
    return identity.replace("-", "")[:11]


def bridge(network_id: str) -> str:
    return "skb" + _short(network_id)


def vxlan(network_id: str) -> str:
    return "skx" + _short(network_id)


def dhcp_port(network_id: str) -> str:
    return "skd" + _short(network_id)


def router_port(port_id: str) -> str:
    return "skr" + _short(port_id)


def inner(port_id: str) -> str:
    """A router's interface on a tenant network, inside the router's namespace."""
    return "qr-" + _short(port_id)


def outer(port_id: str) -> str:
    """A router's interface on the provider network."""
    return "qg-" + _short(port_id)


def dhcp_namespace(network_id: str) -> str:
    return "sk-net-" + network_id


def router_namespace(router_id: str) -> str:
    return "sk-rtr-" + router_id


def owner_of_namespace(namespace: str) -> str:
    kind, identity = namespace[len(NAMESPACE_PREFIX) :].split("-", 1)
    return f"router/{identity}" if kind == "rtr" else f"dhcp/{identity}"


def identifier(identity: str) -> str:
    """An id as nftables takes it in names of chains and sets."""
    return identity.replace("-", "").replace(":", "_")


def bridge_mac(node: str, network_id: str) -> str:
    """Set at creation: else the lowest MAC of the ports wins, and the kernel then drops all neighbour entries."""
    return _mac("0e", f"{node}/{network_id}")


def dhcp_mac(network_id: str) -> str:
    """The same on every node: a guest that moves finds its server again."""
    return _mac("0a", network_id)


def _mac(first: str, seed: str) -> str:
    return ":".join([first, *(f"{b:02x}" for b in hashlib.sha256(seed.encode()).digest()[:5])])
