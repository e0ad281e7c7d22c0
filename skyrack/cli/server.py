"""`skyrack server ...` and `skyrack console log show`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.fault import fault_text
from skyrack.cli.output import Details, Done, Output, Table, Text, whose
from skyrack.cli.parse import KeyValue, Pairs, find_all, find_one
from skyrack.cli.progress import steps
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.server import Server, ServerNetwork

DEADLINE_S = 300.0
USER_DATA_BYTES_MAX = 64 << 10

server = click.Group("server", help="Virtual machines.")
server_add = click.Group("add", help="Give a server a volume or a floating IP.")
server_remove = click.Group("remove", help="Take a volume or a floating IP from a server.")
server_console = click.Group("console", help="The serial console.")
add_floating = click.Group("floating", help="`add floating ip`: map a public address.")
remove_floating = click.Group("floating", help="`remove floating ip`: unmap it.")
console = click.Group("console", help="Console logs of servers.")
console_log = click.Group("log", help="What a server wrote to its serial console.")

server.add_command(server_add)
server.add_command(server_remove)
server.add_command(server_console)
server_add.add_command(add_floating)
server_remove.add_command(remove_floating)
console.add_command(console_log)

waits = click.option("--wait", is_flag=True, help="Until it is done; steps are told on standard error.")
deadline = click.option("--deadline", "deadline_s", type=float, default=DEADLINE_S, help="Seconds --wait may take.  [300]")


def addresses(row: Server) -> str:
    """ "private=10.0.0.5, 203.0.113.7; other=..." """
    networks: dict[str, list[str]] = {}
    for address in row.addresses:
        networks.setdefault(address.network_name, []).extend(ip for ip in (address.ip, address.floating_ip) if ip)
    return "; ".join(f"{name}={', '.join(ips)}" for name, ips in networks.items())


def timeline(row: Server) -> str:
    """A step a line, its milliseconds one under the other."""
    width = max((len(entry.name) for entry in row.timeline), default=0)
    return "\n".join(f"{entry.name:<{width}} {entry.since_accepted_ms:>6} ms" for entry in row.timeline)


def details(row: Server) -> Details:
    shown = {
        "addresses": addresses(row),
        "attachments": ", ".join(f"{a.volume_id} {a.device} {a.state}" for a in row.attachments),
        "fault": fault_text(row.fault),
        "node": row.node or None,
        "task_id": row.task_id or None,
        "timeline": timeline(row),
    }
    return Details(row, shown)


@verb(server, "create", help="Make a server and start it.")
@click.argument("name")
@click.option("--flavor", required=True, help="How large.")
@click.option("--image", required=True, help="What it boots from.")
@click.option("--network", "networks", multiple=True, help="A new port on this network; may be repeated.  [the only one]")
@click.option("--port", "ports", multiple=True, help="This existing port; may be repeated.")
@click.option("--nic", "nics", multiple=True, type=Pairs("net-id", "v4-fixed-ip", "port-id"), help="As --network or --port.")
@click.option("--security-group", "security_groups", multiple=True, help="May be repeated.  [default]")
@click.option("--key-name", default="", help="One of your keypairs.")
@click.option("--volume", "volumes", multiple=True, help="Attach this volume at launch; may be repeated.")
@click.option("--user-data", type=click.File("rb"), help="File the guest reads at its first boot.")
@click.option("--property", "metadata", multiple=True, type=KeyValue(), help="key=value; may be repeated.")
@click.option("--config-drive", is_flag=True, help="Metadata on a disk too.")
@click.option("--different-node-than", metavar="SERVER", help="Not on the node of that one.")
@click.option("--node", default="", help="On this node (admins).")
@waits
@deadline
async def create(cloud: Cloud, *, name: str, wait: bool, deadline_s: float, **options: Any) -> Output:
    row = await cloud.servers.create(name, **await _wanted(cloud, **options))
    if wait:
        with steps("server", name, launch=True) as progress:
            row = await cloud.servers.wait(row, "ACTIVE", deadline_s=deadline_s, progress=progress)
    return details(row)


async def _wanted(
    cloud: Cloud,
    *,
    flavor: str,
    image: str,
    networks: Sequence[str],
    ports: Sequence[str],
    nics: Sequence[dict[str, str]],
    security_groups: Sequence[str],
    key_name: str,
    volumes: Sequence[str],
    user_data: Any,
    metadata: Sequence[tuple[str, str]],
    config_drive: bool,
    different_node_than: str | None,
    node: str,
) -> dict[str, Any]:
    """The arguments of `servers.create`: names become ids, side by side."""
    content = user_data.read(USER_DATA_BYTES_MAX + 1) if user_data else b""
    if len(content) > USER_DATA_BYTES_MAX:
        raise click.UsageError(f"--user-data: at most {USER_DATA_BYTES_MAX} bytes")
    wishes = [{"net-id": name} for name in networks] + [{"port-id": name} for name in ports] + list(nics)
    found = await asyncio.gather(
        cloud.flavors.find(flavor),
        cloud.images.find(image),
        find_all(cloud.security_groups, security_groups),
        find_all(cloud.volumes, volumes),
        find_one(cloud.servers, different_node_than),
        asyncio.gather(*(_server_network(cloud, wish) for wish in wishes)),
    )
    names = ("flavor", "image", "security_groups", "volumes", "different_node_than", "networks")
    rest = {"keypair": key_name, "user_data": content, "config_drive": config_drive, "node": node}
    return {**dict(zip(names, found, strict=True)), **rest, "metadata": dict(metadata)}


async def _server_network(cloud: Cloud, wish: dict[str, str]) -> ServerNetwork:
    from skyrack.client.server import ServerNetwork

    if port := wish.get("port-id"):
        return ServerNetwork(port_id=(await cloud.ports.find(port)).id)
    if not wish.get("net-id"):
        raise click.UsageError("--nic needs net-id=.. or port-id=..")
    return ServerNetwork(network_id=(await cloud.networks.find(wish["net-id"])).id, fixed_ip=wish.get("v4-fixed-ip", ""))


@verb(server, "list", help="The project's servers.")
@click.option("--name", default="", help="Only those called so.")
@click.option("--status", default="", help="Only those in this state, e.g. ACTIVE.")
@every_project
async def list_servers(cloud: Cloud, *, name: str, status: str, all_projects: bool) -> Output:
    try:
        rows = [row async for row in cloud.servers.list(name=name, state=status, all_projects=all_projects)]
    except KeyError:
        raise click.UsageError(f"--status: there is no state {status!r}") from None
    columns: dict[str, Any] = {"ID": "id", "Name": "name", "Status": "state", "Networks": addresses, "Flavor": "flavor_name"}
    if any(row.node for row in rows):
        columns["Node"] = "node"
    return Table(rows, whose(columns, all_projects))


@verb(server, "show", help="All about one server, with the timeline of its launch.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    found = await cloud.servers.find(name)
    return details(await cloud.servers.get(found))  # lists, which names are looked up in, leave the timeline out


@verb(server, "set", help="Change a server's name or properties.")
@click.argument("server_name", metavar="SERVER")
@click.option("--name")
@click.option("--property", "metadata", multiple=True, type=KeyValue(), help="key=value, added; may be repeated.")
async def set_server(cloud: Cloud, *, server_name: str, name: str | None, metadata: Sequence[tuple[str, str]]) -> Output:
    row = await cloud.servers.find(server_name)
    merged = {**row.metadata, **dict(metadata)} if metadata else None
    return details(await cloud.servers.update(row, name=name, metadata=merged))


@verb(server, "delete", help="Delete servers, in any state. Volumes are kept.")
@click.argument("names", nargs=-1, required=True, metavar="SERVER...")
@waits
@deadline
async def delete(cloud: Cloud, *, names: Sequence[str], wait: bool, deadline_s: float) -> Output:
    rows = await find_all(cloud.servers, names)
    for row in rows:
        await cloud.servers.delete(row)
    for row in rows if wait else ():
        with steps("server", row.name) as progress:
            await cloud.servers.wait_gone(row, deadline_s=deadline_s, progress=progress)
    return Done("", {"deleted": [row.id for row in rows]})


@verb(server, "start", help="Start stopped servers.")
@click.argument("names", nargs=-1, required=True, metavar="SERVER...")
@waits
@deadline
async def start(cloud: Cloud, *, names: Sequence[str], wait: bool, deadline_s: float) -> Output:
    rows = [await cloud.servers.start(row) for row in await find_all(cloud.servers, names)]
    return await _settled(cloud, rows, "ACTIVE", wait, deadline_s)


@verb(server, "stop", help="Press the power button; power off after a while.")
@click.argument("names", nargs=-1, required=True, metavar="SERVER...")
@waits
@deadline
async def stop(cloud: Cloud, *, names: Sequence[str], wait: bool, deadline_s: float) -> Output:
    rows = [await cloud.servers.stop(row) for row in await find_all(cloud.servers, names)]
    return await _settled(cloud, rows, "STOPPED", wait, deadline_s)


@verb(server, "reboot", help="Restart running servers.")
@click.argument("names", nargs=-1, required=True, metavar="SERVER...")
@click.option("--hard/--soft", default=False, help="Power cycle, or ask the guest (default).")
@waits
@deadline
async def reboot(cloud: Cloud, *, names: Sequence[str], hard: bool, wait: bool, deadline_s: float) -> Output:
    rows = [await cloud.servers.reboot(row, hard=hard) for row in await find_all(cloud.servers, names)]
    return await _settled(cloud, rows, "ACTIVE", wait, deadline_s)


async def _settled(cloud: Cloud, rows: list[Server], state: str, wait: bool, deadline_s: float) -> Output:
    if wait:
        for place, row in enumerate(rows):
            with steps("server", row.name) as progress:
                rows[place] = await cloud.servers.wait(row, state, deadline_s=deadline_s, progress=progress)
    return Table(rows, {"ID": "id", "Name": "name", "Status": "state"})


@verb(server_console, "log", help="The end of a server's serial console log.")
@click.argument("name", metavar="SERVER")
@click.option("--lines", type=click.IntRange(0), help="Only the last so many lines.")
@click.option("--kib", type=click.IntRange(1, 1024), default=64, help="How much of the end.  [64]")
@click.option("--raw", is_flag=True, help="Bytes as the guest wrote them, escape sequences and all.")
async def show_console_log(cloud: Cloud, *, name: str, lines: int | None, kib: int, raw: bool) -> Output | None:
    data = await cloud.servers.console_log(await cloud.servers.find(name), bytes_max=kib << 10)
    if lines is not None:
        data = b"".join(data.splitlines(keepends=True)[-lines:]) if lines > 0 else b""
    if raw:
        sys.stdout.buffer.write(data)
        return None
    return Text(data.decode("utf-8", "replace").rstrip("\n"), "console_log")


console_log.add_command(server_console.commands["log"], "show")


@verb(server_add, "volume", help="Attach a volume.")
@click.argument("name", metavar="SERVER")
@click.argument("volume")
@waits
@deadline
async def add_volume(cloud: Cloud, *, name: str, volume: str, wait: bool, deadline_s: float) -> Output:
    row, disk = await asyncio.gather(cloud.servers.find(name), cloud.volumes.find(volume))
    attachment = await cloud.servers.add_volume(row, disk)
    if wait:
        with steps("volume", disk.name) as progress:
            disk = await cloud.volumes.wait(disk, "IN_USE", deadline_s=deadline_s, progress=progress)
        attachment = disk.attachment or attachment
    return Details(attachment)


@verb(server_remove, "volume", help="Detach a volume.")
@click.argument("name", metavar="SERVER")
@click.argument("volume")
@waits
@deadline
async def remove_volume(cloud: Cloud, *, name: str, volume: str, wait: bool, deadline_s: float) -> Output:
    row, disk = await asyncio.gather(cloud.servers.find(name), cloud.volumes.find(volume))
    attachment = await cloud.servers.remove_volume(row, disk)
    if wait:
        with steps("volume", disk.name) as progress:
            await cloud.volumes.wait(disk, "AVAILABLE", deadline_s=deadline_s, progress=progress)
    return Details(attachment)


@verb(add_floating, "ip", help="Map a floating IP to a server.")
@click.argument("name", metavar="SERVER")
@click.argument("address", metavar="IP")
async def add_floating_ip(cloud: Cloud, *, name: str, address: str) -> Output:
    row, floating_ip = await asyncio.gather(cloud.servers.find(name), cloud.floating_ips.find(address))
    return Details(await cloud.floating_ips.map(floating_ip, server=row))


@verb(remove_floating, "ip", help="Take a floating IP from a server; the project keeps it.")
@click.argument("name", metavar="SERVER")
@click.argument("address", metavar="IP")
async def remove_floating_ip(cloud: Cloud, *, name: str, address: str) -> Output:
    row, floating_ip = await asyncio.gather(cloud.servers.find(name), cloud.floating_ips.find(address))
    if floating_ip.server_id != row.id:
        raise click.UsageError(f"{floating_ip.ip} is not mapped to server {row.name}")
    return Details(await cloud.floating_ips.unmap(floating_ip))
