"""What the nodes hold because of servers and volumes: to be the same before a server was made and after it was deleted."""

from __future__ import annotations

import re
from typing import Any

from skyrack.client.sync import Cloud
from tests.e2e.patience import until
from tests.e2e.running_rack import RunningRack

_LOOK = """
echo "== interfaces"; ip -br link | cut -d@ -f1 | cut -d' ' -f1
echo "== namespaces"; ip netns list 2>/dev/null | cut -d' ' -f1
echo "== firewall"; nft -s list ruleset
echo "== dnsmasq"; pgrep -a dnsmasq
echo "== domains"; test ! -e /run/libvirt/libvirt-sock || virsh -q list --all --name
echo "== guests"; pgrep qemu-system
echo "== disks"; ls -A /var/lib/skyrack/computed/disks /var/lib/skyrack/computed/console
echo "== volumes"; ls -A /var/lib/skyrack/storaged/volumes
echo "== uploads"; ls -A /var/lib/skyrack/storaged/images/incoming
"""
_NODES = ("n1", "k1", "k2", "s1")

Picture = dict[str, list[str]]


def picture(rack: RunningRack, admin: Cloud) -> Picture:
    """Node and sort of thing to what there is of it."""
    seen: Picture = {}
    for node in _NODES:
        sort = ""
        for line in rack.exec(node, "sh", "-c", f"({_LOOK}) 2>/dev/null; true").splitlines():
            if line.startswith("== "):
                sort = f"{node} {line[3:]}"
                seen[sort] = []
            elif line.strip():
                seen[sort].append(line.strip())
    seen["claims"] = [f"{n.name} {n.vcpus_claimed} {n.memory_mib_claimed} {n.disk_gib_claimed}" for n in admin.nodes.list()]
    seen["exports"] = re.findall(r"^skyrack_storaged_exports .*", metrics(rack, "s1", "10.10.0.31:9730"), re.MULTILINE)
    return {sort: sorted(lines) for sort, lines in seen.items()}


def metrics(rack: RunningRack, node: str, address: str) -> str:
    return rack.exec(node, "curl", "-sf", "--noproxy", "*", f"http://{address}/metrics")


def until_as_before(rack: RunningRack, admin: Cloud, before: Picture) -> None:
    """Fails naming what is left, and what is missing."""

    def same() -> bool:
        differing = changes(before, picture(rack, admin))
        assert not differing, str(differing)
        return True

    until(same, "the nodes are as before", limit_s=60.0, pause_s=1.0)


def changes(before: Picture, after: Picture) -> dict[str, Any]:
    """Sort to (what is left, what is missing)."""
    return {
        sort: ([line for line in after.get(sort, []) if line not in before[sort]],
               [line for line in before[sort] if line not in after.get(sort, [])])
        for sort in before
        if before[sort] != after.get(sort)
    }  # fmt: skip
