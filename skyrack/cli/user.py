"""`skyrack user ...`. Passwords come by prompt or file, never by option: the command line is visible to all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table
from skyrack.cli.parse import find_all
from skyrack.cli.verb import read_password, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud

user = click.Group("user", help="Who may log in.")
password_file = click.option("--password-file", default="", help='First line is the new password; "-" = stdin.')


def new_password(path: str, name: str) -> str:
    """From the file, else asked for twice without echo."""
    if path:
        return read_password(path)
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for the password: give --password-file")
    return str(click.prompt(f"New password of {name}", hide_input=True, confirmation_prompt=True, err=True))


@verb(user, "create", help="Make a user (admins). `role add` gives rights.")
@click.argument("name")
@password_file
@click.option("--email", default="")
@click.option("--project", help="With --role: the project of a first right.")
@click.option("--role", type=click.Choice(["admin", "member", "reader"]), help="With --project.")
async def create(cloud: Cloud, *, name: str, password_file: str, email: str, project: str | None, role: str | None) -> Output:
    if (project is None) != (role is None):
        raise click.UsageError("--project and --role go together")
    home = await cloud.projects.find(project) if project else None
    row = await cloud.users.create(name, password=new_password(password_file, name), email=email)
    if home and role:
        await cloud.roles.grant(user=row, project=home, role=role)
    return Details(row)


@verb(user, "list", help="All users (admins).")
@click.option("--name", default="")
async def list_users(cloud: Cloud, *, name: str) -> Output:
    rows = [row async for row in cloud.users.list(name=name)]
    return Table(rows, {"ID": "id", "Name": "name", "Enabled": "enabled", "Email": "email"})


@verb(user, "show", help="All about one user.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return Details(await cloud.users.find(name))


@verb(user, "set", help="Change a user (admins).")
@click.argument("user_name", metavar="USER")
@click.option("--name")
@click.option("--email")
@click.option("--enable/--disable", "enabled", default=None)
@click.option("--password-prompt", is_flag=True, help="Ask for a new password.")
@password_file
async def set_user(cloud: Cloud, *, user_name: str, password_prompt: bool, password_file: str, **changes: Any) -> Output:
    row = await cloud.users.find(user_name)
    password = new_password(password_file, row.name) if password_prompt or password_file else None
    return Details(await cloud.users.update(row, password=password, **changes))


@verb(user, "password", help="Change your own password.")
@password_file
async def own_password(cloud: Cloud, *, password_file: str) -> Output:
    me = await cloud.tokens.current()
    return Details(await cloud.users.update(me.user_id, password=new_password(password_file, me.user_name)))


@verb(user, "delete", help="Delete users (admins).")
@click.argument("names", nargs=-1, required=True, metavar="USER...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.users, names)
    for row in rows:
        await cloud.users.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
