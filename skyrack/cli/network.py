"""`skyrack network ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table, whose
from skyrack.cli.parse import find_all
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.network import Network

network = click.Group("network", help="L2 segments.")


def details(row: Network) -> Details:
    return Details(row, {"vni": row.vni or None})


@verb(network, "create", help="Make a network.")
@click.argument("name")
@click.option("--share", "shared", is_flag=True, help="All projects may use it (admins).")
@click.option("--external", is_flag=True, help="The way out: routers and floating IPs get addresses here (admins).")
async def create(cloud: Cloud, *, name: str, shared: bool, external: bool) -> Output:
    return details(await cloud.networks.create(name, shared=shared, external=external))


@verb(network, "list", help="The project's networks, shared and external ones.")
@click.option("--name", default="")
@click.option("--external/--internal", default=None, help="Only these.")
@every_project
async def list_networks(cloud: Cloud, *, name: str, external: bool | None, all_projects: bool) -> Output:
    rows = [row async for row in cloud.networks.list(name=name, external=external, all_projects=all_projects)]
    columns = {"ID": "id", "Name": "name", "Subnets": "subnet_ids", "External": "external", "Shared": "shared"}
    return Table(rows, whose(columns, all_projects))


@verb(network, "show", help="All about one network.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return details(await cloud.networks.find(name))


@verb(network, "set", help="Change a network.")
@click.argument("network_name", metavar="NETWORK")
@click.option("--name")
@click.option("--share/--no-share", "shared", default=None, help="For all projects, or not (admins).")
async def set_network(cloud: Cloud, *, network_name: str, **changes: Any) -> Output:
    return details(await cloud.networks.update(await cloud.networks.find(network_name), **changes))


@verb(network, "delete", help="Delete networks that no server and no router uses.")
@click.argument("names", nargs=-1, required=True, metavar="NETWORK...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.networks, names)
    for row in rows:
        await cloud.networks.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
