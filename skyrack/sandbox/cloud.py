"""What the box asks of the cloud it started: let these nodes in, are they up, is there a public network."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Iterable

from daemonkit.errors import DeadlineExceeded
from skyrack.client import Cloud
from skyrack.client.subnet import AddressPool
from skyrack.sandbox.layout import CLIENT_ADDRESS, PUBLIC_CIDR, PUBLIC_POOL

_POLL_S = 0.1
PUBLIC = "public"


def read_env(text: str) -> dict[str, str]:
    """admin.env: shell lines NAME=value, perhaps exported and quoted."""
    words = [word for word in shlex.split(text, comments=True) if "=" in word]
    return dict(word.split("=", 1) for word in words)


async def node_states(cloud: Cloud) -> dict[str, str]:
    """Node name to its state, as a word for people."""
    return {node.name: str(node.state).upper() async for node in cloud.nodes.list()}


async def controller_states(cloud: Cloud) -> dict[str, str]:
    """Controller name to what it does, of those that are there."""
    return {one.name: "LEADS" if one.leader else "FOLLOWS" for one in (await cloud.cluster.get()).controllers}


async def until_up(cloud: Cloud, names: Iterable[str], limit_s: float, tell: Callable[[str], None]) -> None:
    """Tells of each node as it comes up. Errors: DeadlineExceeded naming those that did not."""
    missing, states = set(names), dict[str, str]()
    try:
        async with asyncio.timeout(limit_s):
            while missing:
                states = await node_states(cloud)
                risen = sorted(name for name in missing if states.get(name) == "UP")
                for name in risen:
                    tell(f"{name} is up")
                missing -= set(risen)
                await asyncio.sleep(_POLL_S if missing else 0)
    except TimeoutError:
        seen = ", ".join(f"{name} is {states.get(name, 'unknown')}" for name in sorted(missing))
        raise DeadlineExceeded(f"not up after {limit_s:g} s: {seen}") from None


async def ensure_public_network(cloud: Cloud) -> bool:
    """The provider network `public`, its addresses and its gateway: the client. True when something was made now."""
    found = [network async for network in cloud.networks.list(name=PUBLIC, external=True)]
    if found and found[0].subnet_ids:
        return False
    network = found[0] if found else await cloud.networks.create(PUBLIC, external=True)
    pool = AddressPool(*PUBLIC_POOL)
    await cloud.subnets.create(PUBLIC, network=network, cidr=PUBLIC_CIDR, gateway_ip=CLIENT_ADDRESS, dhcp=False, pools=[pool])
    return True
