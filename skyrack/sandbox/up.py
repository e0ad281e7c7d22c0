"""How a rack comes up: hosts, the first controller, further ones by a bundle of it, every other node by its join token, then
all daemons UP.

The steps are those of `docs/install.md` for real machines; only the hosts are made differently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from skyrack.client import Cloud
from skyrack.sandbox import config, etcd
from skyrack.sandbox.cloud import PUBLIC, ensure_public_network, read_env, until_up
from skyrack.sandbox.host import Host
from skyrack.sandbox.layout import Node
from skyrack.sandbox.rack import Rack

Tell = Callable[[str], None]
SERVING_LIMIT_S = 60.0
NODES_LIMIT_S = 90.0
JOIN_LIMIT_S = 60.0


async def bring_up(rack: Rack, counts: dict[str, int], tell: Tell) -> dict[str, str]:
    """Gives what `env` prints. Finishes whatever an earlier, interrupted `up` began. Errors: SkyrackError,
    CloudError.
    """
    async with rack.alone():
        await rack.power_on(counts)
        tell("hosts are on")
        controllers = rack.controllers()
        await bootstrap(rack, controllers)
        tell(f"API at {', '.join(rack.endpoint(controller.name) for controller in controllers)}")
        others = [node for node in rack.nodes() if node not in controllers]
        async with connect(rack) as cloud:
            async with asyncio.TaskGroup() as group:
                for node in others:
                    group.create_task(_join(rack.host(node.name), node, cloud, tell))
            await until_up(cloud, [node.name for node in others], NODES_LIMIT_S, tell)
            if await ensure_public_network(cloud):
                tell(f"network {PUBLIC} leads to the internet")
    return environment(rack)


async def bootstrap(rack: Rack, controllers: Sequence[Node]) -> None:
    """Gives controllers what they need, then starts them all at once: the members of etcd wait for each other."""
    first, *further = (rack.host(controller.name) for controller in controllers)
    await _found(first)
    async with asyncio.TaskGroup() as group:
        for host, node in zip(further, controllers[1:], strict=True):
            group.create_task(_take_in(first, host, node))
    async with asyncio.TaskGroup() as group:
        for host in (first, *further):
            group.create_task(_start(host))


async def _found(host: Host) -> None:
    """Once in a cloud's life: its authorities, a certificate, the admin's password in a file only root can read."""
    if not (await host.status())["controllerd"].pid:  # the data directory is free
        names = ("--api-name", "127.0.0.1", "--api-name", "localhost", "--admin-env", config.ADMIN_ENV)
        await host.execute(*config.SET_UP, "bootstrap", *names, timeout_s=JOIN_LIMIT_S)


async def _take_in(first: Host, host: Host, node: Node) -> None:
    """A controller that has its certificates was taken in. The bundle holds keys: it goes from hand to hand."""
    if (host.directory / etcd.LAST_FILE.lstrip("/")).exists():
        return
    make = (*config.SET_UP, "bundle", node.name, "--address", node.address, "--output", "-")
    bundle = await first.execute(*make, timeout_s=JOIN_LIMIT_S)
    await host.execute(*config.SET_UP, "bootstrap", "--bundle", "-", stdin=bundle.encode(), timeout_s=JOIN_LIMIT_S)


async def _start(host: Host) -> None:
    for unit in host.units:
        await host.start_unit(unit.name)
        await host.until(unit.name, timeout_s=SERVING_LIMIT_S)


async def _join(host: Host, node: Node, cloud: Cloud, tell: Tell) -> None:
    """A node that has its certificate has joined. The token goes by standard input: argv is there for all to see."""
    if not (host.directory / config.CERTIFICATE.lstrip("/")).exists():
        token = (await cloud.nodes.create_join_token(node.name, roles=node.kind.roles)).token
        join = (config.program("skyrack"), "node", "join", "-", "--address", node.address)
        await host.execute(*join, stdin=token.encode(), timeout_s=JOIN_LIMIT_S)
        tell(f"{node.name} has joined as {' and '.join(node.kind.roles)}")
    for daemon in node.kind.daemons:
        await host.start_unit(daemon)


def connect(rack: Rack) -> Cloud:
    """A login of the admin, through the door at 127.0.0.1."""
    return Cloud.connect(environ=environment(rack))


def environment(rack: Rack) -> dict[str, str]:
    """SKYRACK_* for a program on the machine. Errors: NotFound before the first controller's bootstrap."""
    first = rack.controllers()[0]
    disk = rack.host(first.name).directory
    given = read_env((disk / config.ADMIN_ENV.lstrip("/")).read_text())
    return given | {
        "SKYRACK_ENDPOINT": ",".join(rack.endpoint(controller.name) for controller in rack.controllers()),
        "SKYRACK_CA": str(disk / "etc/skyrack/tls/ca.pem"),
    }
