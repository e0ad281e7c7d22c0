"""`skyrack volume ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table, whose
from skyrack.cli.parse import find_all, find_one
from skyrack.cli.progress import steps
from skyrack.cli.server import deadline, waits
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.volume import Volume

volume = click.Group("volume", help="Block devices that outlive servers.")


def attached_to(row: Volume) -> str:
    return f"{row.attachment.server_id} on {row.attachment.device}" if row.attachment else ""


def details(row: Volume) -> Details:
    fault = f"{row.fault.reason}: {row.fault.message}" if row.fault else None
    return Details(
        row, {"attachment": attached_to(row), "fault": fault, "node": row.node or None, "task_id": row.task_id or None}
    )


@verb(volume, "create", help="Make a volume.")
@click.argument("name")
@click.option("--size", "size_gib", required=True, type=click.IntRange(1, 16384), help="GiB.")
@click.option("--image", help="Start with this image's content.")
@waits
@deadline
async def create(cloud: Cloud, *, name: str, size_gib: int, image: str | None, wait: bool, deadline_s: float) -> Output:
    row = await cloud.volumes.create(name, size_gib=size_gib, image=await find_one(cloud.images, image))
    if wait:
        with steps("volume", name) as progress:
            row = await cloud.volumes.wait(row, "AVAILABLE", deadline_s=deadline_s, progress=progress)
    return details(row)


@verb(volume, "list", help="The project's volumes.")
@click.option("--name", default="")
@every_project
async def list_volumes(cloud: Cloud, *, name: str, all_projects: bool) -> Output:
    rows = [row async for row in cloud.volumes.list(name=name, all_projects=all_projects)]
    columns: dict[str, Any] = {"ID": "id", "Name": "name", "Status": "state", "Size GiB": "size_gib"}
    columns["Attached to"] = attached_to
    return Table(rows, whose(columns, all_projects))


@verb(volume, "show", help="All about one volume.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return details(await cloud.volumes.find(name))


@verb(volume, "set", help="Rename a volume.")
@click.argument("volume_name", metavar="VOLUME")
@click.option("--name", required=True)
async def set_volume(cloud: Cloud, *, volume_name: str, name: str) -> Output:
    return details(await cloud.volumes.update(await cloud.volumes.find(volume_name), name=name))


@verb(volume, "delete", help="Delete volumes and what is on them.")
@click.argument("names", nargs=-1, required=True, metavar="VOLUME...")
@waits
@deadline
async def delete(cloud: Cloud, *, names: Sequence[str], wait: bool, deadline_s: float) -> Output:
    rows = await find_all(cloud.volumes, names)
    for row in rows:
        await cloud.volumes.delete(row)
    for row in rows if wait else ():
        with steps("volume", row.name) as progress:
            await cloud.volumes.wait_gone(row, deadline_s=deadline_s, progress=progress)
    return Done("", {"deleted": [row.id for row in rows]})
