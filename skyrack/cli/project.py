"""`skyrack project ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table
from skyrack.cli.parse import find_all
from skyrack.cli.verb import verb

if TYPE_CHECKING:
    from skyrack.client import Cloud

project = click.Group("project", help="Owners of resources.")


@verb(project, "create", help="Make a project (admins).")
@click.argument("name")
@click.option("--description", default="")
async def create(cloud: Cloud, *, name: str, description: str) -> Output:
    return Details(await cloud.projects.create(name, description=description))


@verb(project, "list", help="Your projects; admins: all.")
@click.option("--name", default="")
async def list_projects(cloud: Cloud, *, name: str) -> Output:
    rows = [row async for row in cloud.projects.list(name=name)]
    return Table(rows, {"ID": "id", "Name": "name", "Enabled": "enabled", "Description": "description"})


@verb(project, "show", help="All about one project.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return Details(await cloud.projects.find(name))


@verb(project, "set", help="Change a project (admins).")
@click.argument("project_name", metavar="PROJECT")
@click.option("--name")
@click.option("--description")
@click.option("--enable/--disable", "enabled", default=None)
async def set_project(cloud: Cloud, *, project_name: str, **changes: Any) -> Output:
    return Details(await cloud.projects.update(await cloud.projects.find(project_name), **changes))


@verb(project, "delete", help="Delete empty projects (admins).")
@click.argument("names", nargs=-1, required=True, metavar="PROJECT...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.projects, names)
    for row in rows:
        await cloud.projects.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
