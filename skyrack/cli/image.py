"""`skyrack image ...`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table, whose
from skyrack.cli.parse import KeyValue, find_all
from skyrack.cli.progress import byte_bar
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.image import Image

QCOW2_MAGIC = b"QFI\xfb"

image = click.Group("image", help="Bootable templates.")
file_option = click.Path(dir_okay=False, path_type=Path)


def size(row: Image) -> str:
    return f"{row.size_bytes / (1 << 20):.1f} MiB" if row.size_bytes else ""


def details(row: Image) -> Details:
    fault = f"{row.fault.reason}: {row.fault.message}" if row.fault else None
    return Details(row, {"fault": fault})


@verb(image, "create", help="Register an image and upload its content.")
@click.argument("name")
@click.option("--file", "path", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--disk-format", type=click.Choice(["qcow2", "raw"]), help="Else seen from the file's first bytes.")
@click.option("--public", is_flag=True, help="For all projects (admins).")
@click.option("--min-disk", type=click.IntRange(0), default=0, help="GiB.")
@click.option("--min-ram", type=click.IntRange(0), default=0, help="MiB.")
@click.option("--property", "properties", multiple=True, type=KeyValue(), help="key=value; may be repeated.")
async def create(
    cloud: Cloud, *, name: str, path: Path, disk_format: str | None, properties: Sequence[tuple[str, str]], **options: Any
) -> Output:
    row = await cloud.images.create(
        name,
        format=disk_format if disk_format else await asyncio.to_thread(_format_of, path),
        public=options["public"],
        min_disk_gib=options["min_disk"],
        min_memory_mib=options["min_ram"],
        properties=dict(properties),
    )
    try:
        with byte_bar(f"upload {name}") as progress:
            return details(await cloud.images.upload(row, path, progress=progress))
    except BaseException:
        await _forget(cloud, row)
        raise


async def _forget(cloud: Cloud, row: Image) -> None:
    """An image without content is of use to nobody; if the cloud is away, it stays QUEUED."""
    from skyrack.client import CloudError

    with contextlib.suppress(CloudError, TimeoutError):
        async with asyncio.timeout(5):
            await cloud.images.delete(row)


def _format_of(path: Path) -> str:
    with path.open("rb") as file:
        return "qcow2" if file.read(4) == QCOW2_MAGIC else "raw"


@verb(image, "list", help="Public images and the project's own.")
@click.option("--name", default="")
@every_project
async def list_images(cloud: Cloud, *, name: str, all_projects: bool) -> Output:
    rows = [row async for row in cloud.images.list(name=name, all_projects=all_projects)]
    columns: dict[str, Any] = {
        "ID": "id",
        "Name": "name",
        "Status": "state",
        "Format": "format",
        "Size": size,
        "Public": "public",
    }
    return Table(rows, whose(columns, all_projects))


@verb(image, "show", help="All about one image.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return details(await cloud.images.find(name))


@verb(image, "save", help="Download an image's content.")
@click.argument("name")
@click.option("--file", "path", required=True, type=file_option)
async def save(cloud: Cloud, *, name: str, path: Path) -> Output:
    row = await cloud.images.find(name)
    with byte_bar(f"download {row.name}") as progress:
        await cloud.images.download(row, path, progress=progress)
    return Done(f"{path}: {row.size_bytes} bytes", {"file": str(path), "size_bytes": row.size_bytes, "sha256": row.sha256})


@verb(image, "set", help="Change an image's name, visibility or needs.")
@click.argument("image_name", metavar="IMAGE")
@click.option("--name")
@click.option("--public/--private", default=None, help="For all projects, or not (admins).")
@click.option("--min-disk", "min_disk_gib", type=click.IntRange(0), help="GiB.")
@click.option("--min-ram", "min_memory_mib", type=click.IntRange(0), help="MiB.")
async def set_image(cloud: Cloud, *, image_name: str, **changes: Any) -> Output:
    return details(await cloud.images.update(await cloud.images.find(image_name), **changes))


@verb(image, "delete", help="Delete images. Servers made from them go on.")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.images, names)
    for row in rows:
        await cloud.images.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
