"""`skyrack router ...`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table, whose
from skyrack.cli.parse import find_all, find_one
from skyrack.cli.subnet import ROUTE, routes_of, routes_text
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.router import Router

router = click.Group("router", help="Join subnets and lead out.")
router_add = click.Group("add", help="Join a subnet.")
router_remove = click.Group("remove", help="Part from a subnet.")
router.add_command(router_add)
router.add_command(router_remove)


def details(row: Router) -> Details:
    interfaces = "\n".join(f"{interface.ip} on subnet {interface.subnet_id}" for interface in row.interfaces)
    shown = {"interfaces": interfaces, "routes": routes_text(row), "node": row.node or None, "fault": row.fault or None}
    return Details(row, shown)


@verb(router, "create", help="Make a router.")
@click.argument("name")
@click.option("--external-gateway", metavar="NETWORK", help="The external network it leads out through.")
@click.option("--enable-snat/--disable-snat", "snat", default=None)
async def create(cloud: Cloud, *, name: str, external_gateway: str | None, snat: bool | None) -> Output:
    external = await find_one(cloud.networks, external_gateway)
    return details(await cloud.routers.create(name, external_network=external, snat=snat))


@verb(router, "list", help="The project's routers.")
@click.option("--name", default="")
@every_project
async def list_routers(cloud: Cloud, *, name: str, all_projects: bool) -> Output:
    rows = [row async for row in cloud.routers.list(name=name, all_projects=all_projects)]
    columns = {"ID": "id", "Name": "name", "Status": "state", "External IP": "external_ip"}
    return Table(rows, whose(columns, all_projects))


@verb(router, "show", help="All about one router.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return details(await cloud.routers.find(name))


@verb(router, "set", help="Change a router; routes given replace those there were.")
@click.argument("router_name", metavar="ROUTER")
@click.option("--name")
@click.option("--external-gateway", metavar="NETWORK")
@click.option("--enable-snat/--disable-snat", "snat", default=None)
@click.option("--route", "routes", multiple=True, type=ROUTE)
@click.option("--no-route", is_flag=True)
async def set_router(cloud: Cloud, *, router_name: str, external_gateway: str | None, **options: Any) -> Output:
    row = await cloud.routers.update(
        await cloud.routers.find(router_name),
        name=options["name"],
        external_network=await find_one(cloud.networks, external_gateway),
        snat=options["snat"],
        routes=routes_of(options["routes"]) if options["routes"] or options["no_route"] else None,
    )
    return details(row)


@verb(router, "unset", help="Take a router's gateway away.")
@click.argument("name", metavar="ROUTER")
@click.option("--external-gateway", is_flag=True, required=True)
async def unset_router(cloud: Cloud, *, name: str, external_gateway: bool) -> Output:
    return details(await cloud.routers.update(await cloud.routers.find(name), external_network=""))


@verb(router, "delete", help="Delete routers that join no subnet.")
@click.argument("names", nargs=-1, required=True, metavar="ROUTER...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.routers, names)
    for row in rows:
        await cloud.routers.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})


@verb(router_add, "subnet", help="Give a router the gateway address of a subnet.")
@click.argument("name", metavar="ROUTER")
@click.argument("subnet")
async def add_subnet(cloud: Cloud, *, name: str, subnet: str) -> Output:
    row, joined = await asyncio.gather(cloud.routers.find(name), cloud.subnets.find(subnet))
    return details(await cloud.routers.add_subnet(row, joined))


@verb(router_remove, "subnet", help="Take a router off a subnet.")
@click.argument("name", metavar="ROUTER")
@click.argument("subnet")
async def remove_subnet(cloud: Cloud, *, name: str, subnet: str) -> Output:
    row, joined = await asyncio.gather(cloud.routers.find(name), cloud.subnets.find(subnet))
    return details(await cloud.routers.remove_subnet(row, joined))
