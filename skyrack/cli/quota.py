"""`skyrack quota ...`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Output, Table
from skyrack.cli.parse import find_one
from skyrack.cli.verb import Body, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.quota import Quota

RESOURCES = (
    "servers", "vcpus", "memory_mib", "volumes", "volume_gib", "images", "image_gib", "networks", "subnets", "ports",
    "routers", "floating_ips", "security_groups", "security_group_rules", "flavors",
)  # fmt: skip

quota = click.Group("quota", help="What a project may hold, and what it holds.")


def table(row: Quota) -> Table:
    limit: Callable[[Any], str] = lambda item: "unlimited" if item.limit < 0 else str(item.limit)  # noqa: E731
    return Table(row.items, {"Resource": "resource", "Limit": limit, "In use": "in_use"})


@verb(quota, "show", help="Limits and what is in use.")
@click.argument("project", required=False)
async def show(cloud: Cloud, *, project: str | None) -> Output:
    return table(await cloud.quotas.get(await find_one(cloud.projects, project)))


def _limits(body: Body) -> Body:
    """One option a resource: --memory-mib N."""
    for resource in reversed(RESOURCES):
        body = click.option(f"--{resource.replace('_', '-')}", resource, type=click.IntRange(-1), metavar="N")(body)
    return body


@verb(quota, "set", help="Change a project's limits (admins); -1 = unlimited.")
@click.argument("project")
@_limits
async def set_quota(cloud: Cloud, *, project: str, **limits: int | None) -> Output:
    given = {resource: limit for resource, limit in limits.items() if limit is not None}
    if not given:
        raise click.UsageError("which limit? e.g. --servers 20")
    return table(await cloud.quotas.update(await cloud.projects.find(project), given))
