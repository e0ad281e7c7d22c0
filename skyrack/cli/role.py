"""`skyrack role ...`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from skyrack.cli.output import Done, Output, Table
from skyrack.cli.parse import find_one
from skyrack.cli.verb import verb

if TYPE_CHECKING:
    from skyrack.client import Cloud

ROLES = click.Choice(["admin", "member", "reader"])

role = click.Group("role", help="Users' rights in projects: admin, member (all of one project), reader (looks only).")


@verb(role, "add", help="Give a user a role in a project (admins).")
@click.argument("name", metavar="ROLE", type=ROLES)
@click.option("--user", required=True)
@click.option("--project", required=True)
async def add(cloud: Cloud, *, name: str, user: str, project: str) -> Output:
    who, where = await asyncio.gather(cloud.users.find(user), cloud.projects.find(project))
    await cloud.roles.grant(user=who, project=where, role=name)
    return Done("", {"user_id": who.id, "project_id": where.id, "role": name})


@verb(role, "remove", help="Take a role from a user (admins).")
@click.argument("name", metavar="ROLE", type=ROLES)
@click.option("--user", required=True)
@click.option("--project", required=True)
async def remove(cloud: Cloud, *, name: str, user: str, project: str) -> Output:
    who, where = await asyncio.gather(cloud.users.find(user), cloud.projects.find(project))
    await cloud.roles.revoke(user=who, project=where, role=name)
    return Done("", {"user_id": who.id, "project_id": where.id, "role": name})


@verb(role, "list", help="Who has which role where.")
@click.option("--user")
@click.option("--project")
async def list_roles(cloud: Cloud, *, user: str | None, project: str | None) -> Output:
    rows = await cloud.roles.list(user=await find_one(cloud.users, user), project=await find_one(cloud.projects, project))
    return Table(rows, {"Role": "role", "User": "user_id", "Project": "project_id"})
