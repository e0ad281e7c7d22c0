"""`skyrack node ...`: machines of the cloud; `join` runs on a machine that is to become one."""

from __future__ import annotations

import base64
import binascii
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table
from skyrack.cli.verb import verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.node import Membership, Node

ROLES = click.Choice(["controller", "compute", "edge", "gateway", "storage"])
TLS_DIR = Path("/etc/skyrack/tls")
CLOCK_OFF_S = 5.0  # a clock that is further off is pointed out

node = click.Group("node", help="Machines of the cloud.")


def agents(row: Node) -> str:
    return "\n".join(
        f"{agent.kind} {'connected' if agent.connected else 'away'} {agent.version} {agent.address}"
        + ("" if agent.clock_offset_s is None else f" clock {agent.clock_offset_s:+.1f} s")
        for agent in row.agents
    )


def clock(row: Node) -> str:
    """The agent's that is furthest off; nothing while they are right."""
    offset_s = max((agent.clock_offset_s or 0.0 for agent in row.agents), key=abs, default=0.0)
    return f"{offset_s:+.1f} s" if abs(offset_s) > CLOCK_OFF_S else ""


def details(row: Node) -> Details:
    return Details(row, {"agents": agents(row)})


@verb(node, "list", help="All nodes (admins).")
async def list_nodes(cloud: Cloud) -> Output:
    rows = [row async for row in cloud.nodes.list()]
    columns: dict[str, Any] = {
        "Name": "name",
        "Roles": "roles",
        "Status": "state",
        "Enabled": "enabled",
        "vCPUs": lambda row: f"{row.vcpus_claimed}/{row.vcpus}",
        "RAM MiB": lambda row: f"{row.memory_mib_claimed}/{row.memory_mib}",
        "Disk GiB": lambda row: f"{row.disk_gib_claimed}/{row.disk_gib}",
        "Servers": "servers",
        "Clock": clock,
    }
    return Table(rows, columns)


@verb(node, "show", help="All about one node (admins).")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return details(await cloud.nodes.get(name))


@verb(node, "set", help="Let new servers be placed on a node, or not (admins). What runs goes on.")
@click.argument("name", metavar="NODE")
@click.option("--enable/--disable", "enabled", default=None)
async def set_node(cloud: Cloud, *, name: str, enabled: bool | None) -> Output:
    if enabled is None:
        raise click.UsageError("give --enable or --disable")
    return details(await cloud.nodes.update(name, enabled=enabled))


@verb(node, "delete", help="Forget nodes that are DOWN and hold nothing (admins). Their certificates end.")
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = [await cloud.nodes.get(name) for name in names]
    for row in rows:
        await cloud.nodes.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})


@verb(node, "token", help="Make a one-time token for `node join` (admins).")
@click.option("--name", required=True, help="The new node's name.")
@click.option("--role", "roles", multiple=True, required=True, type=ROLES, help="May be repeated.")
@click.option("--lifetime", "lifetime_s", type=click.IntRange(0, 86400), default=0, help="Seconds.  [1 h]")
async def token(cloud: Cloud, *, name: str, roles: Sequence[str], lifetime_s: int) -> Output:
    return Details(await cloud.nodes.create_join_token(name, roles=roles, lifetime_s=lifetime_s))


@dataclass(frozen=True)
class Invitation:
    """What a join token says: where the cloud is, how to know it, and the right to join once."""

    secret: str
    endpoints: tuple[str, ...]
    ca_pem: bytes


def decode(token: str) -> Invitation:
    """Errors: click.UsageError."""
    try:
        whole = json.loads(base64.urlsafe_b64decode(token.strip() + "=" * (-len(token.strip()) % 4)))
        return Invitation(str(whole["secret"]), tuple(str(one) for one in whole["endpoints"]), str(whole["ca"]).encode())
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise click.UsageError("that is not a join token (make one with: skyrack node token)") from None


@verb(
    node,
    "join",
    logs_in=False,
    help='Make this machine a node. TOKEN "-" is read from standard input, where other users of the machine cannot see it.',
)
@click.argument("token")
@click.option("--name", default="", help="As in the token.  [the host name]")
@click.option("--address", "addresses", multiple=True, required=True, help="The node's management IP; may be repeated.")
@click.option("--tls-dir", type=click.Path(file_okay=False, path_type=Path), default=TLS_DIR, help=f"[{TLS_DIR}]")
async def join(*, token: str, name: str, addresses: Sequence[str], tls_dir: Path) -> Output:
    """Makes the key here, has it certified, writes ca.pem, node.pem and node.key."""
    from daemonkit import tls

    invitation = decode(sys.stdin.readline() if token == "-" else token)
    name = name or socket.gethostname()
    _make_directory(tls_dir)
    key = tls.new_key()
    membership = await _certified(invitation, name, _request(key, name, addresses))
    files = tls.TlsFiles(tls_dir)
    tls.write_private(files.key, tls.key_pem(key))
    tls.write_private(files.certificate, membership.certificate_pem)
    tls.write_private(files.ca, membership.ca_pem)
    told = (
        f"{name} is a node now: {', '.join(membership.roles)}. Controllers for its agents: {', '.join(membership.controllers)}"
    )
    data = {"name": name, "roles": membership.roles, "controllers": membership.controllers, "tls_dir": str(tls_dir)}
    return Done(told, data)


def _make_directory(tls_dir: Path) -> None:
    """Before the token is spent: a directory that can't be written should cost nothing. Errors: OSError."""
    tls_dir.mkdir(parents=True, exist_ok=True)
    probe = tls_dir / "node.key.new"
    probe.touch(0o600)
    probe.unlink()


def _request(key: Any, name: str, addresses: Sequence[str]) -> bytes:
    from daemonkit import tls

    try:
        return tls.request(key, name, addresses)
    except ValueError as error:
        raise click.UsageError(f"--address or --name: {error}") from None


async def _certified(invitation: Invitation, name: str, csr_pem: bytes) -> Membership:
    from skyrack.client import Cloud

    async with Cloud.connect(invitation.endpoints, ca=invitation.ca_pem, environ={}) as cloud:
        return await cloud.nodes.join(secret=invitation.secret, name=name, csr_pem=csr_pem)
