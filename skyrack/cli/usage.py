"""`skyrack usage show`."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import click

from skyrack.cli.output import Details, Output
from skyrack.cli.parse import Moment, find_one
from skyrack.cli.verb import verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.usage import ServerUsage

usage = click.Group("usage", help="What a project consumed.")
DAYS = 28


def server_line(row: ServerUsage) -> str:
    traffic = f"{row.rx_bytes / 1e6:.1f} MB in, {row.tx_bytes / 1e6:.1f} MB out"
    return f"{row.name} ({row.server_id}): {row.hours:.2f} h, {row.cpu_s:.1f} CPU s, {traffic}"


@verb(usage, "show", help="Server hours, CPU and traffic between two moments.")
@click.option("--project", help="Another one (admins).")
@click.option("--start", type=Moment(), help="[28 days before the end]")
@click.option("--end", type=Moment(), help="[now]")
async def show(cloud: Cloud, *, project: str | None, start: datetime.datetime | None, end: datetime.datetime | None) -> Output:
    until = end or datetime.datetime.now(datetime.UTC)
    since = start or until - datetime.timedelta(days=DAYS)
    row = await cloud.usages.get(start=since, end=until, project=await find_one(cloud.projects, project))
    return Details(row, {"servers": "\n".join(server_line(one) for one in row.servers), "from": since, "to": until})
