"""`skyrack event list`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Output, Table, one_line, plain, text, whose
from skyrack.cli.parse import first
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.event import Event

event = click.Group("event", help="The history: who did what, and what became of it.")


def resource(row: Event) -> str:
    return f"{row.resource_kind} {row.resource_id}".strip()


def line(row: Event) -> str:
    return one_line(f"{text(row.time)}  {row.kind}  {resource(row)}  {row.message}")


@verb(event, "list", help="Newest first. With --follow the new ones as they happen (with --json one document a line).")
@click.option("--resource", "resource_id", metavar="ID", help="Only of this resource.")
@click.option("--kind", default="", help='e.g. "server.create".')
@click.option("--request-id", default="", help="Only what this request did.")
@every_project
@click.option("--limit", type=click.IntRange(1), default=50, help="[50]")
@click.option("--long", is_flag=True, help="With request ids.")
@click.option("--follow", is_flag=True, help="Until interrupted.")
async def list_events(
    cloud: Cloud, *, resource_id: str | None, kind: str, all_projects: bool, limit: int, follow: bool, **options: Any
) -> Output | None:
    if follow:
        await _follow(cloud, resource_id, kind, all_projects)
        return None
    found = cloud.events.list(resource=resource_id, kind=kind, request_id=options["request_id"], all_projects=all_projects)
    columns: dict[str, Any] = {"Time": "time", "Kind": "kind", "Resource": resource, "Message": "message"}
    if options["long"]:
        columns["Request"] = "request_id"
    return Table(await first(limit, found), whose(columns, all_projects))


async def _follow(cloud: Cloud, resource_id: str | None, kind: str, all_projects: bool) -> None:
    parameters = click.get_current_context().params
    as_json = parameters["as_json"] or parameters["form"] == "json"
    async for row in cloud.events.watch(resource=resource_id, all_projects=all_projects):
        if not kind or row.kind == kind:
            click.echo(json.dumps(plain(row)) if as_json else line(row))
