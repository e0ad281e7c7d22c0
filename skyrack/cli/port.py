"""`skyrack port ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table, whose
from skyrack.cli.parse import Pairs, find_all, find_one
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.port import Port, PortIp

port = click.Group("port", help="Addresses on networks.")


def ips(row: Port) -> str:
    return ", ".join(pair.ip for pair in row.fixed_ips)


def details(row: Port) -> Details:
    return Details(row, {"fixed_ips": ips(row), "node": row.node or None, "fault": row.fault or None})


@verb(port, "create", help="Make a port.")
@click.argument("name")
@click.option("--network", required=True)
@click.option("--fixed-ip", "fixed_ips", multiple=True, type=Pairs("subnet", "ip-address"), help="May be repeated.")
@click.option("--security-group", "groups", multiple=True)
@click.option("--disable-port-security", "unsecured", is_flag=True, help="No anti-spoof, no groups.")
@click.option("--mac-address", "mac", default="")
async def create(cloud: Cloud, *, name: str, network: str, **options: Any) -> Output:
    row = await cloud.ports.create(
        name,
        network=await cloud.networks.find(network),
        fixed_ips=[await _fixed_ip(cloud, wish) for wish in options["fixed_ips"]],
        security_groups=await find_all(cloud.security_groups, options["groups"]),
        port_security=False if options["unsecured"] else None,
        mac=options["mac"],
    )
    return details(row)


async def _fixed_ip(cloud: Cloud, wish: dict[str, str]) -> PortIp:
    from skyrack.client.port import PortIp

    subnet = await find_one(cloud.subnets, wish.get("subnet"))
    return PortIp(subnet_id=subnet.id if subnet else "", ip=wish.get("ip-address", ""))


@verb(port, "list", help="The project's ports.")
@click.option("--name", default="")
@click.option("--network", help="Only on this network.")
@click.option("--server", help="Only of this server.")
@every_project
async def list_ports(cloud: Cloud, *, name: str, network: str | None, server: str | None, all_projects: bool) -> Output:
    where = {"network": await find_one(cloud.networks, network), "server": await find_one(cloud.servers, server)}
    rows = [row async for row in cloud.ports.list(name=name, all_projects=all_projects, **where)]
    columns: dict[str, Any] = {"ID": "id", "Name": "name", "MAC": "mac", "IPs": ips, "Status": "state", "Purpose": "purpose"}
    return Table(rows, whose(columns, all_projects))


@verb(port, "show", help="All about one port.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return details(await cloud.ports.find(name))


@verb(port, "set", help="Change a port; security groups given replace those there were.")
@click.argument("port_name", metavar="PORT")
@click.option("--name")
@click.option("--security-group", "groups", multiple=True)
@click.option("--no-security-group", "no_groups", is_flag=True, help="None at all.")
@click.option("--enable-port-security/--disable-port-security", "port_security", default=None)
async def set_port(
    cloud: Cloud, *, port_name: str, name: str | None, groups: Sequence[str], no_groups: bool, port_security: bool | None
) -> Output:
    found = await find_all(cloud.security_groups, groups)
    row = await cloud.ports.update(
        await cloud.ports.find(port_name),
        name=name,
        security_groups=found if groups or no_groups else None,
        port_security=port_security,
    )
    return details(row)


@verb(port, "delete", help="Delete ports.")
@click.argument("names", nargs=-1, required=True, metavar="PORT...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.ports, names)
    for row in rows:
        await cloud.ports.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
