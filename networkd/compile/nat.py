"""A router's nft table: floating IPs 1:1 by maps, source NAT, hairpin, and what the provider network may not do. Pure.

Adding or removing a floating IP changes two map elements and no rule.
"""

from __future__ import annotations

from networkd.spec import name
from networkd.spec.desired import Router
from networkd.spec.picture import Chain, NftSet, Table


def tables(router: Router) -> tuple[Table, ...]:
    """A router without gateway only clamps MSS."""
    chains = {"forward": Chain(tuple(_forward(router)), "type filter hook forward priority filter; policy accept;")}
    if router.gateway is None:
        return (Table("ip", "sk_router", {}, chains),)
    out = f'"{name.outer(router.gateway.port_id)}"'
    inside, gateway_ip = '"qr-*"', router.gateway.ip
    fallback = [f"oifname {out} snat to {gateway_ip}"] if router.gateway.snat else []
    chains |= {
        "input": Chain(
            (
                f"iifname != {out} accept",
                "ct state established,related accept",
                "icmp type echo-request accept",
                "drop",
            ),
            "type filter hook input priority filter; policy accept;",
        ),
        "prerouting": Chain(("dnat to ip daddr map @floating",), "type nat hook prerouting priority dstnat; policy accept;"),
        "postrouting": Chain(
            (
                f"iifname {inside} oifname {inside} ct status dnat snat to ip saddr map @fixed",
                f"iifname {inside} oifname {inside} ct status dnat snat to {gateway_ip}",
                f"oifname {out} snat to ip saddr map @fixed",
                *fallback,
            ),
            "type nat hook postrouting priority srcnat; policy accept;",
        ),
    }
    spec = "type ipv4_addr : ipv4_addr"
    sets = {
        "floating": NftSet(spec, {f.ip: f.fixed_ip for f in router.floating_ips if f.fixed_ip}, is_map=True),
        "fixed": NftSet(spec, {f.fixed_ip: f.ip for f in router.floating_ips if f.fixed_ip}, is_map=True),
    }
    return (Table("ip", "sk_router", sets, chains),)


def _forward(router: Router) -> list[str]:
    rules = ["tcp flags syn tcp option maxseg size set rt mtu"]
    if router.gateway is not None and router.gateway.snat:
        out = f'"{name.outer(router.gateway.port_id)}"'
        rules.append(f"iifname {out} ct state new ct status & dnat == 0 drop")
    return rules
