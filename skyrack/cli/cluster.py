"""`skyrack cluster ...`: the controllers, backup and restore, and whether what is agrees with what should be."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table
from skyrack.cli.progress import byte_bar
from skyrack.cli.verb import FAILED, fail, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.cluster import Cluster, Controller, Recovery

CONFIG = Path("/etc/skyrack/controllerd.toml")
DAEMON = "skyrack-controllerd"

cluster = click.Group("cluster", help="The control plane: controllers, backups, and what does not agree.")


def controllers(row: Cluster) -> str:
    return "\n".join(_controller(row, one) for one in row.controllers)


def _controller(row: Cluster, one: Controller) -> str:
    behind = row.seq - one.applied_seq
    told = [one.name, "leader" if one.leader else "standby", one.api_address, one.version]
    told += [f"{behind} behind"] if behind > 0 else []
    told += [f"clock {one.clock_offset_s:+.1f} s"] if abs(one.clock_offset_s) > 1 else []
    return " ".join(told)


def recovery(row: Recovery | None) -> str | None:
    """The report of a restore."""
    if row is None:
        return None
    told = f"{row.adopted} adopted, {row.missing} missing, {row.foreign} that nobody owns"
    return f"{told}; held: {', '.join(row.held_nodes)}" if row.held_nodes else told


def details(row: Cluster) -> Details:
    shown: dict[str, Any] = {"controllers": controllers(row), "recovery": recovery(row.recovery)}
    if not row.replicated:
        shown |= {"log_bytes": None, "log_bytes_max": None}
    return Details(row, shown)


@verb(cluster, "show", help="Which controllers there are, which one leads, how far the others are (admins).")
async def show(cloud: Cloud) -> Output:
    return details(await cloud.cluster.get())


@verb(cluster, "transfer", help="Hand leadership over, to CONTROLLER or any other (admins). Calls over 1 s are ended.")
@click.argument("controller", required=False, default="")
async def transfer(cloud: Cloud, *, controller: str) -> Output:
    row = await cloud.cluster.transfer(controller)
    return Done(f"{row.leader} leads now", {"leader": row.leader, "epoch": row.epoch})


@verb(
    cluster, "backup", help="Write the whole state to FILE (admins). Whoever has the file has the cloud: it holds the CA's key."
)
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
async def backup(cloud: Cloud, *, path: Path) -> Output:
    with byte_bar("backup") as progress:
        made = await cloud.cluster.backup(path, progress=progress)
    data = {"file": made.path, "size_bytes": made.size_bytes, "sha256": made.sha256}
    return Done(f"{made.path}: {made.size_bytes} bytes, sha256 {made.sha256}", data)


@verb(
    cluster,
    "verify",
    help="Where the state and what nodes report differ, and who mends it (admins). Exit code 1 if anything does.",
)
async def verify(cloud: Cloud) -> Output:
    rows = [row async for row in cloud.cluster.differences()]
    if rows:
        click.get_current_context().call_on_close(_differ)
    columns: dict[str, Any] = {
        "Kind": "kind",
        "Resource": lambda row: f"{row.resource_kind} {row.resource_id}",
        "Node": "node",
        "Owner": "owner",
        "Since": "since",
        "What": "message",
    }
    return Table(rows, columns)


def _differ() -> None:
    raise SystemExit(FAILED)


@verb(cluster, "release", help="After a restore: let go of what nobody owns, so that nodes are told what to do again (admins).")
async def release(cloud: Cloud) -> Output:
    return details(await cloud.cluster.release())


@verb(
    cluster, "restore", logs_in=False, help="Bring the cloud back from FILE, on this machine: its controller must be stopped."
)
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), default=CONFIG, help=f"[{CONFIG}]")
@click.option("--replace", is_flag=True, help="Even if there is a state already; it is kept beside.")
async def restore(*, path: Path, config: Path, replace: bool) -> Output:
    """What it does is controllerd's, which is installed on controllers only."""
    daemon = shutil.which(DAEMON)
    if daemon is None:
        fail(f"{DAEMON} is not installed here: take the file to a controller and run: {DAEMON} restore {path.name}", FAILED)
    words = [daemon, "restore", str(path), "--config", str(config), *(["--replace"] if replace else [])]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    said, why = await process.communicate()
    if process.returncode:
        fail(why.decode(errors="replace").strip() or f"{DAEMON} ended with {process.returncode}", FAILED)
    return Done(said.decode(errors="replace"), {"file": str(path)})
