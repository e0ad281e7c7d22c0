"""Several controllers: etcd beside each of them, over mutual TLS; stand-ins take controllerd's place."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from daemonkit.errors import CommandFailed
from skyrack.sandbox import config, etcd
from skyrack.sandbox.layout import Node
from skyrack.sandbox.rack import Rack
from skyrack.sandbox.unit import Unit
from skyrack.sandbox.up import bootstrap
from tests.sandbox.leftover import traces
from tests.sandbox.stand_in import NOTIFIER

COUNTS = {"controllers": 3}
CLIENT = ("--cert", f"{etcd.TLS}/client.pem", "--key", f"{etcd.TLS}/client.key")
LIMIT_S = 30.0


def units(node: Node, controllers: Sequence[Node]) -> list[Unit]:
    real = config.units(node, controllers)
    return [unit if unit.name == "etcd" else replace(unit, argv=NOTIFIER.argv) for unit in real]


@pytest.fixture
async def rack(base: Path) -> AsyncIterator[Rack]:
    name = f"t{uuid.uuid4().hex[:8]}"
    rack = Rack(name, base / name, units=units)
    try:
        await rack.power_on(COUNTS)
        await bootstrap(rack, rack.controllers())
        yield rack
    finally:
        await rack.down()
    assert traces(rack.prefix, rack.directory) == {}


async def ctl(rack: Rack, node: str, *words: str, identity: Sequence[str] = CLIENT) -> str:
    """etcdctl, of the member on that node. Errors: CommandFailed."""
    flags = (
        "--endpoints",
        f"https://{node}:{etcd.CLIENT_PORT}",
        "--cacert",
        f"{etcd.TLS}/ca.pem",
        "--dial-timeout=2s",
        "--command-timeout=3s",
    )
    return await rack.host(node).execute("etcdctl", *flags, *identity, *words)


async def until_written(rack: Rack, node: str, value: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await ctl(rack, node, "put", "key", value)
                return
            except CommandFailed:
                await asyncio.sleep(0.2)


async def test_quorum_survives_power_failures(rack: Rack) -> None:
    listed = await ctl(rack, "c1", "member", "list")
    assert all(
        f"{name}, https://10.10.0.1{name[1]}:2380, https://10.10.0.1{name[1]}:2379" in listed for name in ("c1", "c2", "c3")
    )
    await ctl(rack, "c1", "put", "key", "one")
    await rack.kill("c1", None)
    await until_written(rack, "c2", "two")
    await rack.kill("c3", None)
    with pytest.raises(CommandFailed):
        await ctl(rack, "c2", "put", "key", "three")
    for node in rack.controllers():
        await rack.start(node)
    await until_written(rack, "c1", "four")
    assert "four" in await ctl(rack, "c3", "get", "key")


async def test_only_controllers_get_in(rack: Rack) -> None:
    own = ("--cert", "/etc/skyrack/tls/node.pem", "--key", "/etc/skyrack/tls/node.key")
    for identity in ((), own):
        with pytest.raises(CommandFailed):
            await ctl(rack, "c1", "get", "key", identity=identity)
    # the members' own port, where nothing but a member has business
    curl = (
        "curl",
        "--silent",
        "--http1.1",
        "--max-time",
        "5",
        "--cacert",
        f"{etcd.TLS}/ca.pem",
        "https://10.10.0.11:2380/members",
    )
    server = ("--cert", f"{etcd.TLS}/server.pem", "--key", f"{etcd.TLS}/server.key")
    assert "clientURLs" in await rack.host("c2").execute(*curl, *server, check=False)
    assert await rack.host("c2").execute(*curl, *own, check=False) == ""


async def test_another_up_changes_nothing(rack: Rack) -> None:
    def files() -> dict[Path, bytes]:
        roots = [rack.host(c.name).directory for c in rack.controllers()]
        found = [
            p for root in roots for part in ("etc/skyrack", "var/lib/skyrack/controllerd/ca") for p in (root / part).rglob("*")
        ]
        return {path: path.read_bytes() for path in found if path.is_file()}

    before = files()
    assert sum(path.name == "client.key" for path in before) == 3
    assert len({content for path, content in before.items() if path.name == "node.key"}) == 3
    assert len({content for path, content in before.items() if path.name == "etcd-ca.key"}) == 1
    await bootstrap(rack, rack.controllers())
    assert files() == before
