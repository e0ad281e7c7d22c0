"""By the steps of docs/install.md: a controller that worked alone becomes one of three, a dead one is replaced."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from daemonkit.command import CommandFailed
from skyrack.client import Cloud
from skyrack.sandbox import config, etcd
from skyrack.sandbox.host import Host
from skyrack.sandbox.layout import Node
from skyrack.sandbox.rack import Rack
from skyrack.sandbox.unit import Unit
from skyrack.sandbox.up import bootstrap, connect
from tests.sandbox.leftover import traces

LIMIT_S = 60.0


@pytest.fixture
async def rack(base: Path) -> AsyncIterator[Rack]:
    name = f"t{uuid.uuid4().hex[:8]}"
    rack = Rack(name, base / name)
    try:
        await rack.power_on({"controllers": 3})
        yield rack
    finally:
        await rack.down()
    assert traces(rack.prefix, rack.directory) == {}


def configure(rack: Rack, host: Host, *, alone: bool) -> None:
    whole = config.files(rack.nodes()[0], rack.controllers())["controllerd.toml"]
    text = whole.partition("[cluster]")[0] if alone else whole
    (host.directory / "etc/skyrack/controllerd.toml").write_text(text)


async def set_up(host: Host) -> str:
    return await host.execute(*config.SET_UP, "bootstrap", "--admin-env", config.ADMIN_ENV, timeout_s=LIMIT_S)


async def until_all_follow(cloud: Cloud) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            seen = await cloud.cluster.get()
            if len(seen.controllers) == 3 and all(one.applied_seq >= seen.seq - 1 for one in seen.controllers):
                return
            await asyncio.sleep(0.2)


async def test_state_goes_with_it(rack: Rack) -> None:
    first = rack.host("c1")
    configure(rack, first, alone=True)
    assert "ready" in await set_up(first)
    assert not (first.directory / "etc/skyrack/etcd").exists()
    await first.start_unit("controllerd")
    await first.until("controllerd", timeout_s=LIMIT_S)
    async with connect(rack) as cloud:
        await cloud.projects.create("before")
        assert not (await cloud.cluster.get()).replicated
    await first.stop_unit("controllerd")

    configure(rack, first, alone=False)
    assert "added: certificates for etcd" in await set_up(first)
    await bootstrap(rack, rack.controllers())
    async with connect(rack) as cloud:
        assert (await cloud.cluster.get()).replicated
        await until_all_follow(cloud)
        await cloud.projects.create("between")
        await rack.kill("c1", None)
        await cloud.projects.create("after")
        assert {"before", "between", "after"} <= {project.name async for project in cloud.projects.list()}
        assert (await cloud.cluster.get()).leader != "c1"


def joining(node: Node, controllers: Sequence[Node]) -> list[Unit]:
    """Its etcd comes to a cluster that exists."""
    member, *rest = config.units(node, controllers)
    return [replace(member, argv=(*member.argv, "--initial-cluster-state=existing")), *rest]


async def ctl(rack: Rack, *words: str) -> str:
    """etcdctl on c1."""
    identity = ("--cacert", f"{etcd.TLS}/ca.pem", "--cert", f"{etcd.TLS}/client.pem", "--key", f"{etcd.TLS}/client.key")
    return await rack.host("c1").execute("etcdctl", "--endpoints", "https://127.0.0.1:2379", *identity, *words)


async def change(rack: Rack, *words: str) -> None:
    """A change of etcd's members. It refuses while it elects, and until those that are there have known each other for 5 s."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await ctl(rack, "--command-timeout=4s", "member", *words)
                return
            except CommandFailed as error:
                if "unhealthy cluster" not in error.message and "DeadlineExceeded" not in error.message:
                    raise
            await asyncio.sleep(0.5)


async def test_a_dead_one_is_replaced(rack: Rack) -> None:
    await bootstrap(rack, rack.controllers())
    async with connect(rack) as cloud:
        await cloud.projects.create("before")
        await rack.kill("c3", None)
        await asyncio.to_thread(shutil.rmtree, rack.host("c3").directory)

        await cloud.projects.create("while it is gone")  # etcd has a leader again
        member = next(line.split(",")[0] for line in (await ctl(rack, "member", "list")).splitlines() if ", c3, " in line)
        await change(rack, "remove", member)
        await change(rack, "add", "c3", "--peer-urls", "https://10.10.0.13:2380")
        again = Rack(rack.name, rack.directory, units=joining)
        await again.start(again.controllers()[2])
        await bootstrap(again, again.controllers())
        await until_all_follow(cloud)
        await rack.kill("c1", None)
        await cloud.projects.create("after")
        assert {"before", "after"} <= {project.name async for project in cloud.projects.list()}
