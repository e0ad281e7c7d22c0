"""`skyrack task ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.fault import fault_text
from skyrack.cli.output import Details, Output, Table, text, whose
from skyrack.cli.parse import first
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.task import Task

task = click.Group("task", help="Durable operations: what is under way, how far, and why one failed.")


def progress(row: Task) -> str:
    return f"{sum(step.state == 'done' for step in row.steps)}/{len(row.steps)}"


def resource(row: Task) -> str:
    return f"{row.resource_kind} {row.resource_id}"


def details(row: Task) -> Details:
    steps = "\n".join(f"{step.name} {step.state} {text(step.ended_at)}".rstrip() for step in row.steps)
    return Details(row, {"steps": steps, "fault": fault_text(row.fault)})


@verb(task, "list", help="Newest first.")
@click.option("--resource", "resource_id", metavar="ID", help="Only of this resource.")
@click.option("--unfinished", is_flag=True, help="Only those under way.")
@every_project
@click.option("--limit", type=click.IntRange(1), default=50, help="[50]")
async def list_tasks(cloud: Cloud, *, resource_id: str | None, unfinished: bool, all_projects: bool, limit: int) -> Output:
    rows = await first(limit, cloud.tasks.list(resource=resource_id, unfinished=unfinished, all_projects=all_projects))
    columns: dict[str, Any] = {
        "ID": "id",
        "Kind": "kind",
        "Resource": resource,
        "Status": "state",
        "Steps": progress,
        "Began": "created_at",
    }
    return Table(rows, whose(columns, all_projects))


@verb(task, "show", help="The steps of one task, and its fault.")
@click.argument("task_id", metavar="ID")
async def show(cloud: Cloud, *, task_id: str) -> Output:
    return details(await cloud.tasks.get(task_id))
