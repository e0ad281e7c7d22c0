"""Emptying a project: everything that its tenant made goes, in the order in which one thing stands on another."""

from __future__ import annotations

from skyrack.client.cloud import Cloud

GONE_LIMIT_S = 120.0


async def empty(cloud: Cloud) -> bool:
    """False when there was nothing. Errors: CloudError at the first thing that can't go."""
    servers = await _servers_and_volumes(cloud)
    networks = await _networks(cloud)
    async for group in cloud.security_groups.list():
        if group.name != "default":
            await cloud.security_groups.delete(group)
    async for image in cloud.images.list():
        if not image.public:
            await cloud.images.delete(image)
    async for keypair in cloud.keypairs.list():
        await cloud.keypairs.delete(keypair)
    return servers or networks


async def _servers_and_volumes(cloud: Cloud) -> bool:
    servers = [server async for server in cloud.servers.list()]
    for server in servers:
        await cloud.servers.delete(server)
    for server in servers:
        await cloud.servers.wait_gone(server, deadline_s=GONE_LIMIT_S)
    volumes = [volume async for volume in cloud.volumes.list()]
    for volume in volumes:
        await cloud.volumes.delete(volume)
    for volume in volumes:
        await cloud.volumes.wait_gone(volume, deadline_s=GONE_LIMIT_S)
    return bool(servers or volumes)


async def _networks(cloud: Cloud) -> bool:
    async for address in cloud.floating_ips.list():
        await cloud.floating_ips.delete(address)
    async for router in cloud.routers.list():
        for interface in router.interfaces:
            await cloud.routers.remove_subnet(router, interface.subnet_id)
        await cloud.routers.delete(router)
    own = [network async for network in cloud.networks.list() if not network.external and not network.shared]
    for network in own:
        await cloud.networks.delete(network)
    return bool(own)
