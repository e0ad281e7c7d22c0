"""The world stopped after each transaction of a create and of a delete: killed, overtaken by a delete, its node lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controllerd.domain.policy import Caller
from tests.controllerd.server.conftest import make_caller
from tests.controllerd.server.rig import CrashNow, Rig


@pytest.fixture
def worlds(tmp_path: Path, runtime, clock) -> Callable[[int], object]:
    """`worlds(n)`: a fresh one for the n-th moment."""

    @asynccontextmanager
    async def make(number: int) -> AsyncIterator[tuple[Rig, Caller]]:
        rig = Rig(tmp_path / f"{number}.db", runtime, clock)
        await rig.open()
        try:
            yield rig, await make_caller(rig, "alpha", "member")
        finally:
            await rig.close()

    return make


async def launch(rig: Rig, tenant: Caller) -> str:
    """A server with a volume, accepted."""
    flavor, image = await rig.equip(tenant)
    volume_id = await rig.add_volume(tenant)
    view = await rig.create(tenant, flavor, image, volume_ids=(volume_id,), user_data=b"#!/bin/sh")
    rig.transactions = 0
    return view.server.id


async def run_until(rig: Rig, transactions: int) -> bool:
    """Whether the world came to rest before."""
    rig.transactions_max = transactions
    try:
        await rig.run()
        return True
    except CrashNow:
        return False
    finally:
        rig.transactions_max = None


async def every_moment(worlds, prepare: Callable[[Rig, Caller], Awaitable[str]], act: Callable[..., Awaitable[None]]) -> int:
    """Runs `act` in a world stopped after 0, 1, 2... transactions, until it would come to rest by itself."""
    for number in range(200):
        async with worlds(number) as (rig, tenant):
            server_id = await prepare(rig, tenant)
            rested = await run_until(rig, number)
            await act(rig, tenant, server_id)
            if rested:
                return number
    raise AssertionError("the world does not come to rest")


async def check_gone(rig: Rig, volumes: int = 1) -> None:
    assert await rig.leftovers() == {}
    assert not any(node.guests for node in rig.nodes.values())
    states = [row["state"] for row in await rig.rows("SELECT state FROM volume")]
    assert states == ["AVAILABLE"] * volumes


async def test_killed_during_a_create(worlds) -> None:
    async def act(rig: Rig, tenant: Caller, server_id: str) -> None:
        await rig.crash()
        await rig.run()
        view = await rig.servers.get(tenant, server_id)
        assert view.state == "ACTIVE" and [a.state for a in view.attachments] == ["ATTACHED"]
        assert len(await rig.rows("SELECT * FROM claim")) == 1
        assert len(await rig.rows("SELECT * FROM usage_interval")) == 1
        assert len(await rig.rows("SELECT * FROM event WHERE kind = 'server.running'")) == 1

    assert await every_moment(worlds, launch, act) > 6


async def test_killed_again_and_again_during_one_create(rig: Rig, tenant: Caller, runtime) -> None:
    server_id = await launch(rig, tenant)
    for _ in range(30):
        await run_until(rig, rig.transactions + runtime.rng.randint(1, 12))
        await rig.crash()
    await rig.run()
    assert (await rig.servers.get(tenant, server_id)).state == "ACTIVE"


async def launched_and_deleted(rig: Rig, tenant: Caller) -> str:
    server_id = await launch(rig, tenant)
    await rig.run()
    await rig.servers.delete(tenant, server_id)
    rig.transactions = 0
    return server_id


async def test_killed_during_a_delete(worlds) -> None:
    async def act(rig: Rig, tenant: Caller, server_id: str) -> None:
        await rig.crash()
        await rig.run()
        await check_gone(rig)

    assert await every_moment(worlds, launched_and_deleted, act) > 3


async def test_deleted_at_every_moment_of_a_create(worlds) -> None:
    async def act(rig: Rig, tenant: Caller, server_id: str) -> None:
        assert (await rig.servers.delete(tenant, server_id)).state == "DELETING"
        await rig.run()
        await check_gone(rig)

    await every_moment(worlds, launch, act)


async def test_deleted_while_a_failed_create_unwinds(worlds) -> None:
    async def prepare(rig: Rig, tenant: Caller) -> str:
        server_id = await launch(rig, tenant)
        for node in rig.nodes.values():
            node.refuses = "no disk"
        await rig.run()
        rig.clock.forward(10.0)
        rig.transactions = 0
        return server_id

    async def act(rig: Rig, tenant: Caller, server_id: str) -> None:
        await rig.servers.delete(tenant, server_id)
        await rig.run()
        await check_gone(rig)

    await every_moment(worlds, prepare, act)


async def lose_the_servers_node(rig: Rig, server_id: str) -> None:
    server = await rig.server(server_id)
    if server is not None and server.node_id:
        await rig.lose(rig.nodes[server.node_id])


async def bring_all_back(rig: Rig) -> None:
    for node in rig.nodes.values():
        await rig.find_again(node)
    await rig.run()


async def test_the_node_lost_during_a_create(worlds) -> None:
    """The server fails with that reason (or was running already); what it may have left is removed when the node is back."""

    async def act(rig: Rig, tenant: Caller, server_id: str) -> None:
        before = await rig.server(server_id)
        await lose_the_servers_node(rig, server_id)
        await rig.run()
        view = await rig.servers.get(tenant, server_id)
        if before.state == "ACTIVE":
            assert view.state == "UNKNOWN"
        elif before.node_id:
            assert (view.state, view.server.fault_reason) == ("ERROR", "NODE_LOST")
            assert not await rig.rows("SELECT * FROM claim") and len(await rig.rows("SELECT * FROM tombstone")) == 1
        await bring_all_back(rig)
        assert not await rig.rows("SELECT * FROM tombstone")
        await rig.servers.delete(tenant, server_id)
        await rig.run()
        await check_gone(rig)

    await every_moment(worlds, launch, act)


async def test_the_node_lost_during_a_delete(worlds) -> None:
    """The delete does not wait for it; the claim is held by a tombstone until the node has removed the guest."""

    async def act(rig: Rig, tenant: Caller, server_id: str) -> None:
        before = await rig.server(server_id)
        await lose_the_servers_node(rig, server_id)
        await rig.run()
        assert await rig.server(server_id) is None
        if before is not None and before.observed_state != "GONE":
            buried = await rig.rows("SELECT vcpus, memory_mib, disk_gib FROM tombstone")
            assert buried == [{"vcpus": 1, "memory_mib": 512, "disk_gib": 1}]
        await bring_all_back(rig)
        await check_gone(rig)

    await every_moment(worlds, launched_and_deleted, act)


async def test_the_node_lost_and_the_server_deleted_at_every_moment(worlds) -> None:
    async def act(rig: Rig, tenant: Caller, server_id: str) -> None:
        await lose_the_servers_node(rig, server_id)
        await rig.servers.delete(tenant, server_id)
        await rig.run()
        await bring_all_back(rig)
        await check_gone(rig)

    await every_moment(worlds, launch, act)
