"""`skyrack subnet ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table, whose
from skyrack.cli.parse import Pairs, find_all, find_one
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.subnet import HostRoute, Subnet

ROUTE = Pairs("destination", "gateway", required=("destination", "gateway"))
POOL = Pairs("start", "end", required=("start", "end"))

subnet = click.Group("subnet", help="Address ranges on networks.")


def routes_of(pairs: Sequence[dict[str, str]]) -> list[HostRoute]:
    from skyrack.client.subnet import HostRoute

    return [HostRoute(destination=pair["destination"], nexthop=pair["gateway"]) for pair in pairs]


def routes_text(row: Any) -> str:
    return ", ".join(f"{route.destination} via {route.nexthop}" for route in row.routes)


def details(row: Subnet) -> Details:
    return Details(row, {"pools": ", ".join(f"{p.first}-{p.last}" for p in row.pools), "routes": routes_text(row)})


@verb(subnet, "create", help="Make a subnet on a network.")
@click.argument("name")
@click.option("--network", required=True)
@click.option("--subnet-range", "cidr", required=True, metavar="CIDR", help="e.g. 10.0.0.0/24")
@click.option("--gateway", default="auto", help='An address, "auto" (the first) or "none".  [auto]')
@click.option("--dhcp/--no-dhcp", default=None, help="Default: DHCP, but on external networks none.")
@click.option("--dns-nameserver", "dns_servers", multiple=True, metavar="IP")
@click.option("--allocation-pool", "pools", multiple=True, type=POOL)
@click.option("--host-route", "routes", multiple=True, type=ROUTE)
async def create(cloud: Cloud, *, name: str, network: str, cidr: str, gateway: str, **options: Any) -> Output:
    from skyrack.client.subnet import AddressPool

    row = await cloud.subnets.create(
        name,
        network=await cloud.networks.find(network),
        cidr=cidr,
        gateway_ip={"auto": None, "none": ""}.get(gateway, gateway),
        dhcp=options["dhcp"],
        pools=[AddressPool(first=pool["start"], last=pool["end"]) for pool in options["pools"]],
        dns_servers=options["dns_servers"],
        routes=routes_of(options["routes"]),
    )
    return details(row)


@verb(subnet, "list", help="Subnets of the networks the project sees.")
@click.option("--name", default="")
@click.option("--network", help="Only of this network.")
@every_project
async def list_subnets(cloud: Cloud, *, name: str, network: str | None, all_projects: bool) -> Output:
    where = await find_one(cloud.networks, network)
    rows = [row async for row in cloud.subnets.list(name=name, network=where, all_projects=all_projects)]
    columns = {"ID": "id", "Name": "name", "Network": "network_id", "Subnet": "cidr", "Gateway": "gateway_ip"}
    return Table(rows, whose(columns, all_projects))


@verb(subnet, "show", help="All about one subnet.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return details(await cloud.subnets.find(name))


@verb(subnet, "set", help="Change a subnet. Name servers and routes given replace those there were.")
@click.argument("subnet_name", metavar="SUBNET")
@click.option("--name")
@click.option("--dns-nameserver", "dns_servers", multiple=True, metavar="IP")
@click.option("--no-dns-nameservers", is_flag=True)
@click.option("--host-route", "routes", multiple=True, type=ROUTE)
@click.option("--no-host-routes", is_flag=True)
async def set_subnet(cloud: Cloud, *, subnet_name: str, name: str | None, **options: Any) -> Output:
    row = await cloud.subnets.update(
        await cloud.subnets.find(subnet_name),
        name=name,
        dns_servers=options["dns_servers"] if options["dns_servers"] or options["no_dns_nameservers"] else None,
        routes=routes_of(options["routes"]) if options["routes"] or options["no_host_routes"] else None,
    )
    return details(row)


@verb(subnet, "delete", help="Delete subnets no port uses.")
@click.argument("names", nargs=-1, required=True, metavar="SUBNET...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.subnets, names)
    for row in rows:
        await cloud.subnets.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
