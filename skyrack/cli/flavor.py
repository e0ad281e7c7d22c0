"""`skyrack flavor ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table
from skyrack.cli.parse import find_all
from skyrack.cli.verb import verb

if TYPE_CHECKING:
    from skyrack.client import Cloud

flavor = click.Group("flavor", help="Named sizes of servers.")


@verb(flavor, "create", help="Make a flavor, private to the project.")
@click.argument("name")
@click.option("--vcpus", type=click.IntRange(1, 128), default=1, help="[1]")
@click.option("--ram", "memory_mib", type=click.IntRange(64), required=True, help="MiB.")
@click.option("--disk", "disk_gib", type=click.IntRange(1), default=1, help="Root disk, GiB.  [1]")
@click.option("--description", default="")
@click.option("--public", is_flag=True, help="For all projects (admins).")
async def create(cloud: Cloud, *, name: str, **options: Any) -> Output:
    return Details(await cloud.flavors.create(name, **options))


@verb(flavor, "list", help="Public flavors and the project's own.")
@click.option("--name", default="")
async def list_flavors(cloud: Cloud, *, name: str) -> Output:
    rows = [row async for row in cloud.flavors.list(name=name)]
    columns: dict[str, Any] = {"ID": "id", "Name": "name", "vCPUs": "vcpus", "RAM MiB": "memory_mib", "Disk GiB": "disk_gib"}
    columns["Public"] = lambda row: not row.project_id
    return Table(rows, columns)


@verb(flavor, "show", help="All about one flavor.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return Details(await cloud.flavors.find(name))


@verb(flavor, "set", help="Change what later servers get.")
@click.argument("flavor_name", metavar="FLAVOR")
@click.option("--name")
@click.option("--vcpus", type=click.IntRange(1, 128))
@click.option("--ram", "memory_mib", type=click.IntRange(64), help="MiB.")
@click.option("--disk", "disk_gib", type=click.IntRange(1), help="GiB.")
@click.option("--description")
async def set_flavor(cloud: Cloud, *, flavor_name: str, **changes: Any) -> Output:
    return Details(await cloud.flavors.update(await cloud.flavors.find(flavor_name), **changes))


@verb(flavor, "delete", help="Delete flavors. Servers keep their size.")
@click.argument("names", nargs=-1, required=True, metavar="FLAVOR...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.flavors, names)
    for row in rows:
        await cloud.flavors.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
