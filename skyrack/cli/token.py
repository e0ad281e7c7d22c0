"""`skyrack token ...`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from skyrack.cli.output import Details, Done, Output
from skyrack.cli.verb import Settings, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud

token = click.Group("token", help="Logins.")


@verb(token, "issue", help="Log in; the token goes into SKYRACK_TOKEN.")
@click.option("--lifetime", "lifetime_s", type=click.IntRange(0, 7 * 86400), default=0, help="Seconds.  [12 h]")
async def issue(cloud: Cloud, *, lifetime_s: int) -> Output:
    settings = click.get_current_context().find_object(Settings) or Settings()
    user = settings.user or os.environ.get("SKYRACK_USER", "")
    password = os.environ.get("SKYRACK_PASSWORD", "")
    if settings.password_file:
        password = settings.password()
    if not user or not password:
        raise click.UsageError("a token is made from SKYRACK_USER and a password: set SKYRACK_PASSWORD or give --password-file")
    project = settings.project or os.environ.get("SKYRACK_PROJECT", "")
    row = await cloud.tokens.create(user=user, password=password, project=project, lifetime_s=lifetime_s)
    return Details(row)


@verb(token, "show", help="Whose the current login is, and until when.")
async def show(cloud: Cloud) -> Output:
    return Details(await cloud.tokens.current(), {"token": None})


@verb(token, "revoke", help="End the token in SKYRACK_TOKEN at once.")
async def revoke(cloud: Cloud) -> Output:
    if not os.environ.get("SKYRACK_TOKEN"):
        raise click.UsageError("set SKYRACK_TOKEN to the token that is to end")
    await cloud.tokens.revoke()
    return Done("", {"revoked": True})
