"""`skyrack floating ip ...`; an address may stand for its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from skyrack.cli.output import Details, Done, Output, Table, whose
from skyrack.cli.parse import find_all, find_one
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud

floating = click.Group("floating", help="Floating IPs: public addresses.")
ip = click.Group("ip", help="Public addresses mapped 1:1 to a server's port.")
floating.add_command(ip)


@verb(ip, "create", help="Take an address of an external network.")
@click.argument("network")
@click.option("--port", help="Map it to this port.")
@click.option("--server", help="Map it to this server.")
@click.option("--floating-ip-address", "address", default="", help="This one.")
async def create(cloud: Cloud, *, network: str, port: str | None, server: str | None, address: str) -> Output:
    row = await cloud.floating_ips.create(
        await cloud.networks.find(network),
        port=await find_one(cloud.ports, port),
        server=await find_one(cloud.servers, server),
        ip=address,
    )
    return Details(row)


@verb(ip, "list", help="The project's floating IPs.")
@every_project
async def list_floating_ips(cloud: Cloud, *, all_projects: bool) -> Output:
    rows = [row async for row in cloud.floating_ips.list(all_projects=all_projects)]
    columns = {"ID": "id", "Floating IP": "ip", "Fixed IP": "fixed_ip", "Server": "server_id", "Status": "state"}
    return Table(rows, whose(columns, all_projects))


@verb(ip, "show", help="All about one floating IP.")
@click.argument("address", metavar="IP")
async def show(cloud: Cloud, *, address: str) -> Output:
    return Details(await cloud.floating_ips.find(address))


@verb(ip, "set", help="Map a floating IP to a port or a server.")
@click.argument("address", metavar="IP")
@click.option("--port")
@click.option("--server")
async def associate(cloud: Cloud, *, address: str, port: str | None, server: str | None) -> Output:
    if (port is None) == (server is None):
        raise click.UsageError("give either --port or --server")
    row = await cloud.floating_ips.map(
        await cloud.floating_ips.find(address),
        port=await find_one(cloud.ports, port),
        server=await find_one(cloud.servers, server),
    )
    return Details(row)


ip.add_command(ip.commands["set"], "associate")


@verb(ip, "unset", help="Unmap a floating IP; the project keeps it.")
@click.argument("address", metavar="IP")
@click.option("--port", is_flag=True, help="(Nothing else can be unset.)")
async def unset(cloud: Cloud, *, address: str, port: bool) -> Output:
    return Details(await cloud.floating_ips.unmap(await cloud.floating_ips.find(address)))


@verb(ip, "delete", help="Give floating IPs back.")
@click.argument("addresses", nargs=-1, required=True, metavar="IP...")
async def delete(cloud: Cloud, *, addresses: Sequence[str]) -> Output:
    rows = await find_all(cloud.floating_ips, addresses)
    for row in rows:
        await cloud.floating_ips.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
