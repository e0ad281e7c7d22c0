"""The wires between the hosts: a namespace with a bridge for each network, and a cable (veth pair) for each plug.

There is no address in the fabric but the client's namespace behind it, and no interface that leads out of the box.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from daemonkit.errors import NotFound
from skyrack.sandbox import namespace
from skyrack.sandbox.launch import run
from skyrack.sandbox.layout import CLIENT, CLIENT_PLUG, INTERNET, NETWORKS, Network, Plug

_QUIET = """
for scope in all default; do echo 1 > /proc/sys/net/ipv6/conf/$scope/disable_ipv6; done
if [ -d /proc/sys/net/bridge ]; then echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables; fi
"""


def bridges() -> str:
    """A batch for ip(8). MTU is set, else a bridge follows its smallest port; no STP: ports forward at once."""
    lines = []
    for network in NETWORKS.values():
        lines.append(f"link add {network.name} mtu {network.mtu} type bridge stp_state 0 mcast_snooping 0")
        lines.append(f"link set {network.name} up")
    return "\n".join(lines)


def cable(node: str, plug: Plug, far: str) -> str:
    """A batch for the fabric's side; the other end is born in namespace `far`."""
    near, network = socket(node, plug.network), plug.network
    device = f"name {network.device} address {plug.mac} mtu {network.mtu} netns {far}"
    return f"link add {near} mtu {network.mtu} type veth peer {device}\nlink set {near} master {network.name} up"


def socket(node: str, network: Network) -> str:
    """Name of a cable's end in the fabric."""
    return f"{node}-{network.device}"[:15]


class Fabric:
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.namespace = f"{prefix}fabric"
        self.client = f"{prefix}{CLIENT}"

    async def build(self) -> None:
        """The bridges and the client on the internet. Does nothing twice."""
        await namespace.ensure(self.namespace)
        if not await self._links():
            await run(*namespace.enter(self.namespace, "sh", "-ec", _QUIET))
            await self._batch(self.namespace, bridges())
        if socket(CLIENT, INTERNET) not in await self._links():
            await namespace.ensure(self.client)
            await self.connect(CLIENT, [CLIENT_PLUG])

    async def connect(self, node: str, plugs: Iterable[Plug]) -> None:
        """Plugs a node whose namespace is new into its networks and gives its interfaces their addresses."""
        far = f"{self.prefix}{node}"
        stale = await self._links()
        fabric, inside = [], []
        for plug in plugs:
            if (near := socket(node, plug.network)) in stale:  # its old namespace is still being taken down
                fabric.append(f"link delete {near}")
            fabric.append(cable(node, plug, far))
            inside.append(f"link set {plug.network.device} up")
            if plug.address:
                inside.append(f"address add {plug.address}/24 dev {plug.network.device}")
        await self._batch(self.namespace, "\n".join(fabric))
        await self._batch(far, "\n".join(inside))

    async def cut(self, node: str, network: Network | None) -> None:
        """Pulls one cable of a node, or all. Errors: NotFound when it has none there."""
        ends = [socket(node, n) for n in NETWORKS.values() if network in (None, n)]
        present = [end for end in ends if end in await self._links()]
        if not present:
            raise NotFound("cable", f"{node} to {network.name if network else 'any network'}")
        await self._batch(self.namespace, "\n".join(f"link set {end} down" for end in present))

    async def heal(self) -> None:
        """Plugs every cable in again."""
        await self._batch(self.namespace, "\n".join(f"link set {link} up" for link in await self._links()))

    async def cut_cables(self) -> list[tuple[str, str]]:
        """(node, network) of every cable that is pulled."""
        ends = {socket("", n): n.name for n in NETWORKS.values()}
        down = [link for link, up in (await self._links()).items() if not up]
        return [(link.partition("-")[0], ends.get("-" + link.partition("-")[2], "")) for link in down]

    async def _links(self) -> dict[str, bool]:
        """Name of every link in the fabric to whether it is switched on, without the loopback."""
        listed = json.loads(await run(*namespace.enter(self.namespace, "ip", "-j", "link")) or "[]")
        return {link["ifname"]: "UP" in link["flags"] for link in listed if link["ifname"] != "lo"}

    async def _batch(self, name: str, lines: str) -> None:
        if lines:
            await run(*namespace.enter(name, "ip", "-batch", "-"), stdin=lines.encode())
