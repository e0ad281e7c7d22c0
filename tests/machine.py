"""What a test must not change: the machine's own network. A picture of it, comparable before and after.

The rule of this project's tests and of the sandbox: packets go to 127.0.0.0/8 or between namespaces that have no way out;
the machine's own namespace gains nothing but listeners on 127.0.0.1.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/*",
    "net/ipv4/conf/default/*",
    "net/ipv4/ip_local_port_range",
    "net/ipv6/conf/all/*",
    "net/ipv6/conf/default/*",
    "net/bridge/*",
    "net/netfilter/nf_conntrack_max",
    "net/core/somaxconn",
)


def picture() -> dict[str, Any]:
    """Links, addresses, routes, rules, nftables and the settings that matter; nothing that changes by itself."""
    links = _ip("address")
    return {
        "links": sorted(link["ifname"] for link in links),
        "switched on": sorted(link["ifname"] for link in links if "UP" in link["flags"]),
        "masters": sorted((link["ifname"], link.get("master", "")) for link in links),
        "addresses": sorted(f"{a['local']}/{a['prefixlen']} {link['ifname']}" for link in links for a in link["addr_info"]),
        "routes": sorted(_route(r) for family in ("-4", "-6") for r in _ip(family, "route", "show", "table", "all")),
        "rules": sorted(json.dumps(rule, sort_keys=True) for family in ("-4", "-6") for rule in _ip(family, "rule")),
        "nftables": subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout,
        "sysctls": _sysctls(),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs: part to (before, after). Empty = untouched."""
    return {part: (before[part], after[part]) for part in before if before[part] != after[part]}


def open_listeners() -> set[str]:
    """TCP and UDP sockets of the machine's own namespace that somebody else could reach: not those on a loopback address."""
    listed = subprocess.run(["ss", "-Hltun"], capture_output=True, text=True, check=True).stdout
    local = {line.split()[4] for line in listed.splitlines()}
    return {address for address in local if not address.startswith(("127.", "[::1]"))}


def _ip(*words: str) -> list[dict[str, Any]]:
    text = subprocess.run(["ip", "-j", *words], capture_output=True, text=True, check=True).stdout
    found: list[dict[str, Any]] = json.loads(text or "[]")
    return found


def _route(route: dict[str, Any]) -> str:
    return " ".join(str(route.get(key, "")) for key in ("type", "dst", "gateway", "dev", "table", "protocol"))


def _sysctls() -> dict[str, str]:
    root = Path("/proc/sys")
    values = {}
    for pattern in _SYSCTLS:
        for knob in sorted(root.glob(pattern)):
            try:
                values[str(knob.relative_to(root))] = knob.read_text().strip()
            except OSError:  # write-only ones
                continue
    return values
